"""Costs of a full-size training besides computation: data loading, memory, start-up time, and all-reduce.

    python benchmarks/training.py [--root NUSCENES]      # all cases, prints the tables of benchmarks/README.md
    python benchmarks/training.py loader                 # one case

Only ratios are reported; both sides of a ratio are measured alternately in one run. Labels are generated in Occ3D's layout (compressed npz,
200x200x16, two masks). They are for the keyframes of nuScenes if `--root` is given, so that scenes are built from its tables, else for towns. Codes
are random.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import model as models
import numpy as np
import torch
from torch import nn

from iidrive.core.scene import GridSpec, OccGrid, Scene
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames
from iidrive.data.nuscenes.labels import read
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache, build
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.compute import ComputeConfig
from iidrive.pipeline import recipes
from iidrive.runtime import distributed
from iidrive.runtime.run_folder import peak_memory_gb
from iidrive.training.optim import EMA, TrainConfig
from iidrive.training.prefetch import Order, Steps, feed

Array = np.ndarray
KEYFRAMES, KEPT_GB = 28_130, 1.5
"""Keyframes of nuScenes train, and the memory limit of OccupancyFrames for them. The limit is scaled down to the generated data."""

LOSSES: dict[str, Callable[[ComputeConfig], tuple[Any, Callable[[], torch.Tensor]]]] = {
    "tokenizer": models.tokenizer_loss,
    "world": models.world_loss,
}
OPTIONS = ("eager", "checkpointing", "bf16", "checkpointing+bf16", "compile")
COMPILE_S = 180
BEGAN = time.perf_counter()


class Labelled(Town):
    """Towns whose occupancy is read from files."""

    def __init__(self, config: TownConfig, folder: Path) -> None:
        super().__init__(config)
        self.folder = folder

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Read as nuScenes' labels are."""
        return read(self.folder / scene.name / scene.keyframes[index].token / "labels.npz", spec, "labels")


def street(rng: np.random.Generator) -> bytes:
    """A file of labels that look and compress like Occ3D's: uneven ground, denser near the ego, boxes, free; two masks."""
    grid = np.full((200, 200, 16), 17, np.uint8)
    seen = rng.random((200, 200)) < np.clip(1.5 - np.hypot(*np.indices((200, 200)) - 100) / 80, 0, 1)
    height, kind = (np.kron(rng.choice(of, (20, 20)), np.ones((10, 10), np.int64)) for of in ((2, 3), (11, 13, 14)))
    x, y = np.nonzero(seen)
    grid[x, y, height[x, y]] = kind[x, y]
    for _ in range(60):
        x, y = rng.integers(0, 185, 2)
        part = grid[x : x + rng.integers(2, 15), y : y + rng.integers(2, 8), 3 : rng.integers(5, 12)]
        part[rng.random(part.shape) < 0.7] = rng.choice([4, 10, 15, 16])
    blocks = [np.kron(rng.random((50, 50, 4)) < 0.3, np.ones((4, 4, 4), bool)) for _ in range(2)]
    lidar, camera = ((block ^ (rng.random(block.shape) < 0.008)).astype(np.uint8) for block in blocks)
    file = io.BytesIO()
    np.savez_compressed(file, semantics=grid, mask_lidar=lidar, mask_camera=camera)
    return file.getvalue()


def write_labels(folder: Path, scenes: list[Scene], different: int = 24) -> float:
    """Labels of every keyframe, `different` ones in turn. Returns their mean size in kB."""
    rng = np.random.default_rng(0)
    made = [street(rng) for _ in range(different)]
    for scene in scenes:
        for i, keyframe in enumerate(scene.keyframes):
            path = folder / scene.name / keyframe.token / "labels.npz"
            path.parent.mkdir(parents=True)
            path.write_bytes(made[i % different])
    return float(np.mean([len(one) for one in made])) / 1000


@contextmanager
def data(root: str, scenes: int) -> Iterator[tuple[ClipDataset, ClipDataset]]:
    """The tokenizer's clips and the world model's windows at full size, from files in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = folder / "gts"
        labels.mkdir()
        source: Source = Labelled(TownConfig(train_scenes=scenes, keyframes=40), labels)
        names = source.scene_names("train")
        if root:
            source = NuScenes(NuScenesConfig(root, occupancy="labels", gts=str(labels), cache=str(folder / "cache")))
            names = source.scene_names("all")[:scenes]
        read_once = [source.scene(n) for n in names]
        kilobytes = write_labels(labels, read_once)
        tracks = [EgoTrack.of(scene) for scene in read_once]
        keyframes = sum(len(scene) for scene in read_once)
        note(f"{len(names)} scenes, {keyframes} keyframes, {kilobytes:.0f} kB a file of labels, from {source.name}")
        recipe = recipes.full()
        past = recipe.clip_frames - 1
        occupancy = OccupancyFrames(source, recipe.tokenizer.grid, KEYFRAMES, KEPT_GB * keyframes / KEYFRAMES)
        clips = ClipDataset(tracks, ClipSpec(past=past, future=1, full_future=False, first=past), occupancy)
        rng, codes = np.random.default_rng(0), recipe.tokenizer.quantiser.codes
        cells = sum(models.tokenizer().quantiser.level_cells)
        cache = build(
            Stub(source, names), names, lambda s: rng.integers(0, codes, (len(s), cells)), folder / "tokens", "none", codes, cells
        )
        yield clips, ClipDataset(tracks, ClipSpec(), None, TokenCache(cache.folder), future=True)


class Stub:
    """A source with a minimal identity, because its own identity would read labels that do not exist."""

    def __init__(self, source: Source, names: tuple[str, ...]) -> None:
        self.source, self.names = source, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def identity(self) -> dict[str, object]:
        """Name and scenes."""
        return {"name": self.source.name, "scenes": list(self.names)}


def fed(clips: ClipDataset, steps: int, workers: int, batch: int = 1) -> Iterator[object]:
    """An iterator over the batches of a training."""
    order = Order(0, batch, batch * steps)
    return iter(feed(Steps(clips, order, [range(batch)]), order.steps(0, order.samples), workers))


def note(sentence: str) -> None:
    """Print progress with elapsed seconds on stderr."""
    print(f"{time.perf_counter() - BEGAN:.0f} s: {sentence}", file=sys.stderr, flush=True)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call, which hardly depends on other programs."""
    began = time.process_time()
    call()
    return time.process_time() - began


def loader(root: str, only: str, steps: int = 1, samples: int = 40) -> None:
    """Time to prepare a sample relative to a training step, and the time that a training waits for samples."""
    print("| | sample / step | a device may be faster by | waits, 0 workers | 1 | 2 | samples a second, 1 worker / none | 2 / none |")
    print("|---|---|---|---|---|---|---|---|")
    with data(root, 10) as both:
        for name, clips in zip(LOSSES, both, strict=True):
            if only not in ("", name):
                continue
            model, loss_of = LOSSES[name](ComputeConfig())
            optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

            def step(model: nn.Module = model, loss_of: Callable[[], torch.Tensor] = loss_of, optimiser: Any = optimiser) -> None:
                model.zero_grad()
                loss_of().backward()
                optimiser.step()

            step()
            source = fed(clips, 10_000, 0)
            next(source)
            step_s, sample_s = [], []
            for _ in range(steps):
                step_s.append(cpu_seconds(step))
                sample_s += [cpu_seconds(partial(next, source)) for _ in range(samples)]
            note(f"{name}: a step {statistics.median(step_s):.2f} s, a sample {1000 * statistics.mean(sample_s):.1f} ms")
            share = statistics.mean(sample_s) / statistics.median(step_s)
            waits = []
            for workers in (0, 1, 2):
                ready, waited = fed(clips, steps + 1, workers), 0.0
                next(ready)  # starts the workers
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                    waited += seconds(partial(next, ready))
                note(f"{name}, {workers} workers: waited {waited:.3f} s")
                waits.append(waited / (time.perf_counter() - began))
            rates = {}
            for workers in (0, 1, 2):
                ready = fed(clips, 101, workers)
                next(ready)
                rates[workers] = 100 / seconds(lambda ready=ready: [None for _ in ready])
            shown = " | ".join(f"{100 * w:.2f} %" for w in waits)
            print(
                f"| {name} | {share:.4f} | {1 / share:.0f} | {shown} | {rates[1] / rates[0]:.2f} | {rates[2] / rates[0]:.2f} |", flush=True
            )


def own_mb() -> float:
    """Memory of this process and its workers, MB. Shared pages are divided among the processes that share them (PSS)."""
    total = 0
    for pid in (os.getpid(), *(p.pid for p in multiprocessing.active_children())):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def memory(root: str, only: str, passes: tuple[int, ...] = (1, 3, 10)) -> None:
    """Memory after several passes over a small data set, without training."""
    print("| | workers | " + " | ".join(f"after {n} passes" for n in passes) + " |\n|---|---|" + "---|" * len(passes))
    with data(root, 2) as both:
        for name, clips in zip(LOSSES, both, strict=True):
            if only not in ("", name):
                continue
            for workers in (0, 2):
                size = len(clips)
                ready, found = fed(clips, passes[-1] * size + 8, workers), []
                for before, now in pairwise((0, *passes)):
                    for _ in range((now - before) * size):
                        next(ready)
                    found.append(own_mb())
                ready = None
                shown = " | ".join(f"{mb / found[0]:.3f}" for mb in found)
                print(f"| {name}, {size} samples ({found[0]:.0f} MB) | {workers} | {shown} |", flush=True)


def start(root: str, only: str, repeats: int = 2) -> None:
    """Time from the command to the first training step, in units of `import torch`."""
    scenes = "--recipe.town.train_scenes"
    choices = {"`train tokenizer --recipe tiny`, 220 towns": (scenes, "220"), "the same, 16 towns": (scenes, "16")}
    times: dict[str, list[float]] = {"torch": [], "help": []} | {name: [] for name in choices}
    for _ in range(repeats):
        times["torch"].append(seconds(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)))
        helped = [sys.executable, "-m", "iidrive", "--help"]
        times["help"].append(seconds(lambda: subprocess.run(helped, check=True, capture_output=True)))  # noqa: B023
        for name, more in choices.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "iidrive", "train", "tokenizer", "--run", f"{folder}/run", "--recipe", "tiny"]
                times[name].append(first_step([*command, "--recipe.train_tokenizer.log_every", "2", *more], Path(folder) / "run"))
    unit = statistics.median(times.pop("torch"))
    print("| from the command to | imports of torch |\n|---|---|")
    for name, found in times.items():
        title = "`iidrive --help`" if name == "help" else f"the first step of {name}"
        print(f"| {title} | {statistics.median(found) / unit:.1f} ({min(found) / unit:.1f}..{max(found) / unit:.1f}) |")


def first_step(command: list[str], run: Path) -> float:
    """Seconds until a training has logged its first step; the process is then killed."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
            if process.poll() is not None:
                raise RuntimeError(process.stderr.read() if process.stderr else "")
            time.sleep(0.02)
        found = time.perf_counter() - began
        process.kill()
    return found


def options(root: str, only: str) -> None:
    """Time and memory of every training option, each in a separate process. The default is measured twice."""
    print("| | | time / eager | peak GB | with AdamW and average | loss | cosine of the gradients |\n|---|---|---|---|---|---|---|")
    for name in LOSSES:
        if only not in ("", name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            first: dict[str, float] = {}
            for choice in (*OPTIONS[:4], "eager", *OPTIONS[4:]):
                command = [sys.executable, __file__, "option", "--model", name, "--option", choice, "--out", f"{folder}/{choice}.pt"]
                try:
                    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_S).stdout
                except subprocess.TimeoutExpired:
                    print(f"| {name} | {choice} | not done after {COMPILE_S} s | | | | |", flush=True)
                    continue
                found = json.loads(text.splitlines()[-1])
                note(f"{name} {choice}: {found}")
                first = first or found
                grads = [torch.load(f"{folder}/{of}.pt").double() for of in ("eager", choice)]
                cosine = float(nn.functional.cosine_similarity(*grads, 0))
                print(
                    f"| {name} | {choice} | {found['s'] / first['s']:.2f} | {found['peak_gb']:.2f} | {found['all_gb']:.2f} "
                    f"| {found['loss']:.5g} | {cosine:.6f} |",
                    flush=True,
                )


def option(name: str, choice: str, out: str, repeats: int = 1) -> None:
    """One training step with one option, measured; its gradient is written to `out`."""
    compute = ComputeConfig(torch.bfloat16 if "bf16" in choice else None, "checkpointing" in choice)
    model, loss_of = LOSSES[name](compute)
    for parameter in model.parameters():
        if not parameter.any():  # weights initialised to 0 would hide the layers before them
            nn.init.normal_(parameter, std=0.02)
    if choice == "compile":
        for part in model.compute_modules():
            part.compile(dynamic=False)
    moving = [p for p in model.parameters() if p.requires_grad]

    def step() -> torch.Tensor:
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    loss = float(step().detach())
    torch.save(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in moving]), out)
    times = [cpu_seconds(step) for _ in range(repeats)]
    peak = peak_memory_gb()
    optimiser = torch.optim.AdamW(moving)
    average = EMA(model.world if name == "world" else model, TrainConfig())
    optimiser.step()
    average.update(model.world if name == "world" else model, 1)
    times.append(cpu_seconds(step))
    print(json.dumps({"s": statistics.median(times), "peak_gb": peak, "all_gb": peak_memory_gb(), "loss": loss}))


def together(root: str, only: str) -> None:
    """Time to all-reduce all gradients over two processes, relative to a training step."""
    print("| | numbers | sum / step of one sample | sum / global batch of 64 on two processes | slowest |\n|---|---|---|---|---|")
    for name in LOSSES:
        if only not in ("", name):
            continue
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(2):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_PORT": port}
            about = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "sum"} | {k: str(v) for k, v in numbers.items()}
            command = [sys.executable, __file__, "member", "--model", name]
            started.append(subprocess.Popen(command, env=os.environ | about, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in started]
        found = json.loads(outputs[0].splitlines()[-1])
        one = found["sum"] / found["step"]
        print(
            f"| {name} | {found['numbers'] / 1e6:.1f} M | {one:.3f} | {one / 32:.5f} | {found['slowest'] / found['step']:.3f} |", flush=True
        )


def member(name: str, rounds: int = 1) -> None:
    """One of the two processes: alternates a training step and the all-reduce, with one thread."""
    torch.set_num_threads(1)
    process_group = distributed.join()
    model, loss_of = LOSSES[name](ComputeConfig())
    moving = [p for p in model.parameters() if p.requires_grad]
    loss_of().backward()
    process_group.sum(torch.zeros(8))
    steps, sums = [], []

    def add() -> None:
        grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in moving]
        process_group.sum(torch.cat(grads)).split([p.numel() for p in moving])

    add()
    for _ in range(rounds):
        model.zero_grad()
        steps.append(seconds(lambda: loss_of().backward()))
        for _ in range(5):
            process_group.barrier()
            sums.append(seconds(add))
    numbers = sum(p.numel() for p in moving)
    print(json.dumps({"step": statistics.median(steps), "sum": statistics.median(sums), "slowest": max(sums), "numbers": numbers}))
    distributed.leave()


CASES: dict[str, Callable[[str, str], None]] = {
    "loader": loader,
    "memory": memory,
    "start": start,
    "options": options,
    "together": together,
}


def main() -> None:
    """Run one case, or all cases in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", choices=[*CASES, "option", "member"], help="what to measure; default: everything")
    parser.add_argument("--root", default="", help="folder of nuScenes whose tables are read (v1.0-mini will do)")
    parser.add_argument("--model", choices=list(LOSSES), default="", help="default: both")
    parser.add_argument("--option", choices=OPTIONS, default="eager")
    parser.add_argument("--out", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.case == "option":
        option(chosen.model, chosen.option, chosen.out)
    elif chosen.case == "member":
        member(chosen.model)
    elif chosen.case:
        CASES[chosen.case](chosen.root, chosen.model)
    else:
        for name in CASES:
            print(f"\n{name}\n", flush=True)
            subprocess.run([sys.executable, __file__, name, *(["--root", chosen.root] if chosen.root else [])], check=True)


if __name__ == "__main__":
    main()
