"""Frames and training steps per second, and peak memory, on this machine's GPU. On a CPU, a small recipe checks that the script runs.

Every call is timed with synchronisation before and after. Inputs are on the device, and nothing else runs.

- `tokenizer`: encode one frame, quantise it with four given past maps, decode it to labels;
- `forecast`: six steps of the world model from given latents, without encoding and decoding;
- `forecast, frames`: from the codes of five keyframes to six labelled frames;
- `plan`: a plan with ii;
- `train …`: loss, gradients, clipping and AdamW of one batch of a stage;
- `loader …`: samples per second that worker processes prepare from compressed labels and from tokens.

`frames a second` is samples times frames per sample (six per forecast). Modes: float32, tf32, bf16, compiled (torch.compile of the expensive parts),
graph (a CUDA graph of the whole call), plain (float32 without shortcuts, see `benchmarks/plain.py`). The tests marked `gpu` run first. No measurement
begins after `--minutes`. Published for II-World: 37 frames per second on an RTX 4090, without tokenizer and decoder and without synchronisation, and
2.9 GB for training. That measures something else, so it is not directly comparable with any row here.

    python benchmarks/gpu.py                                    # recipe full; prints the table, writes gpu.json
    python benchmarks/gpu.py --recipe tiny --seconds 0.1 --loader 2          # on a CPU
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.scene import FUTURE_STEPS, ROAD_GRID, ROUTE_AHEAD, ROUTE_BEHIND
from iidrive.models.compute import ComputeConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime.run_folder import allow_tf32, device, environment, peak_memory_gb
from iidrive.training.prefetch import Order, Steps, feed

MODES = ("float32", "plain", "tf32", "bf16", "graph", "compiled")
PAST, CLASSES = 6, 18


@dataclass(frozen=True)
class Row:
    """A measurement: median seconds per call, frames or steps per second, and peak memory in GiB (on a CPU: of the process)."""

    case: str
    mode: str
    batch: int
    seconds: float
    per_second: float
    peak_gb: float


def inputs_of(recipe: Recipe, size: int, place: torch.device) -> Batch:
    """A batch of random labels and codes with straight ego paths; the cost does not depend on the content."""
    grid, (x, y) = recipe.tokenizer.grid.shape, recipe.tokenizer.latent_size
    cells = sum(Tokenizer(recipe.tokenizer).quantiser.level_cells)
    with place:
        steps = torch.arange(1 - PAST, FUTURE_STEPS + 1)
        poses = torch.eye(4).repeat(size, PAST + FUTURE_STEPS, 1, 1)
        poses[:, :, 0, 3] = 2.0 * steps
        labels = torch.randint(0, CLASSES, (size, PAST + FUTURE_STEPS, *grid), dtype=torch.uint8)
        codes = torch.randint(0, recipe.tokenizer.quantiser.codes, (size, PAST + FUTURE_STEPS, cells))
        eye = torch.eye(4).repeat(size, 1, 1)
        inputs = Inputs(
            ("",) * size,
            poses[:, :PAST],
            torch.ones(size, PAST, dtype=torch.bool),
            (-0.5 * steps[:PAST]).repeat(size, 1),
            torch.zeros(size, dtype=torch.long),
            eye,
            labels[:, :PAST],
            codes[:, :PAST],
            eye.double(),
        )
        targets = Targets(
            poses[:, PAST:],
            torch.ones(size, FUTURE_STEPS, dtype=torch.bool),
            poses[:, PAST:, :2, 3].flip(-1),
            torch.rand(size, FUTURE_STEPS),
            labels[:, PAST:],
            codes[:, PAST:],
            torch.zeros(size, FUTURE_STEPS + 1, 2 * x, 2 * y, dtype=torch.bool),
            torch.zeros(size, FUTURE_STEPS, 2 * x, 2 * y, 2),
            torch.ones(size, 8, FUTURE_STEPS + 1, 5),
            torch.ones(size, 8, FUTURE_STEPS + 1, dtype=torch.bool),
            torch.ones(size, *ROAD_GRID.shape[:2], dtype=torch.bool),
            torch.ones(size, dtype=torch.bool),
            torch.zeros(size, ROUTE_BEHIND + 1 + ROUTE_AHEAD, 2),
        )
    return Batch(inputs, targets, 0.5)


def agent_of(recipe: Recipe, mode: str, place: torch.device) -> Agent:
    """All models of a recipe with random weights."""
    compute = ComputeConfig(torch.bfloat16 if mode == "bf16" else None)
    tokenizer = Tokenizer(recipe.tokenizer, compute)
    tokenizer.quantiser.started.fill_(True)
    forecaster = Forecaster(tokenizer, WorldModel(recipe.world, tokenizer.cells, tokenizer.config.grid, compute))
    agent = Agent(forecaster, Planner(recipe.planner, tokenizer.cells), True).to(place).eval()
    if mode == "compiled":
        for part in agent.compute_modules():
            part.compile(dynamic=False)
    return agent


def calls(agent: Agent, batch: Batch) -> Iterator[tuple[str, int, Callable[[], Tensor]]]:
    """Calls timed without gradients: (name, frames per sample, call)."""
    forecaster, inputs = agent.forecaster, batch.inputs
    tokenizer = forecaster.tokenizer
    assert inputs.occupancy is not None
    frame, clip = inputs.occupancy[:, -1], tokenizer.encode(inputs.occupancy[:, -5:].flatten(0, 1)).unflatten(0, (-1, 5))
    past, seen = tokenizer.align(clip, inputs.now_T_frame[:, -5:])
    state = forecaster.initial_state(inputs) if forecaster.world.config.motion != "map" else None
    yield "tokenizer", 1, lambda: tokenizer.labels(tokenizer.quantiser(tokenizer.encode(frame), past, seen).latent)
    if state is not None:
        yield "forecast", FUTURE_STEPS, lambda: forecaster.world.imagine(state, inputs.command).latents
    yield "forecast, frames", FUTURE_STEPS, lambda: forecaster.forecast(inputs, range(1, FUTURE_STEPS + 1))[0]
    yield "plan", 1, lambda: agent.plan(inputs, ii=True)


def train_steps(agent: Agent, recipe: Recipe, batch: Batch) -> Iterator[tuple[str, Callable[[], object]]]:
    """Training steps: (name, call). The tokenizer comes last, because it is frozen in the others."""
    forecaster, tokenizer = agent.forecaster, agent.forecaster.tokenizer
    frames = {key: getattr(batch.inputs, key)[:, -recipe.clip_frames :] for key in ("occupancy", "now_T_frame")}
    clip = replace(batch, inputs=replace(batch.inputs, **frames))
    yield "train planner", _train_step(agent, agent.planner, batch)
    yield "train world", _train_step(forecaster, forecaster.world, batch)
    yield "train tokenizer", _train_step(tokenizer, tokenizer, clip)


def _train_step(model: Tokenizer | Forecaster | Agent, module: nn.Module, batch: Batch) -> Callable[[], object]:
    module.requires_grad_(True)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=batch.targets.valid.is_cuda)
    model.train()

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        model.loss(batch)[0].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        return norm

    return step


def captured(call: Callable[[], Tensor]) -> Callable[[], object]:
    """The call, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measured(case: str, mode: str, size: int, frames: int, call: Callable[[], object], seconds: float) -> Row:
    """Repeat a call for some seconds, after two warm-up calls."""
    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    for k in range(1000):
        wait()
        start = time.perf_counter()
        call()
        wait()
        if k >= 2:
            times.append(time.perf_counter() - start)
        if times and sum(times) >= seconds:
            break
    median = sorted(times)[len(times) // 2]
    peak_gb = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory_gb()
    return Row(case, mode, size, median, frames / median, peak_gb)


def measure(recipe: Recipe, modes: Sequence[str], sizes: Sequence[int], seconds: float) -> Iterator[Row]:
    """Measure all rows of the models. Mode graph is skipped on a CPU."""
    place = device()
    for mode, size in ((mode, size) for mode in modes for size in sizes):
        if mode == "graph" and place.type != "cuda":
            continue
        allow_tf32(mode == "tf32")
        with plainly() if mode == "plain" else nullcontext():
            agent, batch = agent_of(recipe, mode, place), inputs_of(recipe, size, place)
            with torch.no_grad():
                for case, frames, call in calls(agent, batch):
                    yield measured(case, mode, size, size * frames, captured(call) if mode == "graph" else call, seconds)
            if mode != "graph":
                for case, step in train_steps(agent, recipe, batch):
                    yield measured(case, mode, size, 1, step, seconds)
        allow_tf32(False)


def plainly() -> AbstractContextManager[None]:
    """Models without their shortcuts. The module beside this file is imported only when needed."""
    from plain import plainly as without

    return without()


def loading(scenes: int, seconds: float) -> Iterator[Row]:
    """Full-size samples per second by number of worker processes, in steps of eight. 0 workers: the training process itself."""
    from training import data

    with data("", scenes) as kinds:
        for (name, clips), workers in (
            (kind, workers) for kind in zip(("tokenizer", "world"), kinds, strict=True) for workers in (0, 2, 4)
        ):
            order = Order(0, 8, 8 * 10_000)
            fed = iter(feed(Steps(clips, order, [range(8)]), order.steps(0, order.samples), workers))
            yield measured(f"loader {name}", f"{workers} workers", 8, 8, lambda fed=fed: next(fed), seconds)
            del fed  # ends its processes


def tests_on_gpu() -> str:
    """Run the tests that need a GPU, if there is one, and return the outcome."""
    if not torch.cuda.is_available():
        return "not run: no GPU"
    ended = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(Path(__file__).parents[1] / "tests")], check=False)
    return "passed" if ended.returncode == 0 else f"pytest ended with status {ended.returncode}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="full", choices=list(recipes.RECIPES))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="per row, without warm-up")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no measurement after this time")
    parser.add_argument("--loader", type=int, default=10, help="number of scenes with synthetic labels for the loaders; 0: no loaders")
    parser.add_argument("--out", default="gpu.json")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    passed = tests_on_gpu()
    print("| case | mode | batch | ms | frames, steps or samples a second | peak GB |\n|---|---|---|---|---|---|")
    rows, complete = [], True
    models = measure(recipes.named(options.recipe), options.modes, options.batch, options.seconds)
    for row in chain(models, loading(options.loader, options.seconds) if options.loader else ()):
        rows.append(row)
        print(f"| {row.case} | {row.mode} | {row.batch} | {row.seconds * 1e3:.1f} | {row.per_second:.1f} | {row.peak_gb:.2f} |", flush=True)
        if time.perf_counter() - began > 60 * options.minutes:
            complete = False
            print(f"stopped after {options.minutes:g} minutes; use --modes or --batch to measure the missing rows")
            break
    about = {"environment": environment(), "recipe": options.recipe, "gpu tests": passed, "complete": complete}
    Path(options.out).write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
