"""Frames and training steps per second, and peak memory, on this machine's GPU. On a CPU, a small recipe checks that the script runs.

Every call is timed with synchronisation before and after. Inputs are on the device, and nothing else runs.

- `tokenizer`: encode one frame, quantise it with four given past maps, decode it to labels;
- `forecast`: six steps of the world model from given latents, without encoding and decoding;
- `forecast, frames`: from the codes of five keyframes to six labelled frames;
- `plan`: a plan with ii;
- `train …`: loss, gradients, clipping and AdamW of one batch of a stage;
- `loader …`: samples per second that worker processes prepare from compressed labels and from tokens.

`frames a second` is samples times frames per sample (six per forecast). Modes: float32, bf16, tf32, graph (a CUDA graph of the whole call), plain
(float32 without shortcuts, see `benchmarks/plain.py`), compiled (torch.compile of the expensive parts).

The tests marked `gpu` run first, for `--tests-minutes` at most. Then the rows are measured, the most important ones first. After `--minutes` the
script ends and names the rows that were not measured. A worker process measures. If a row fails or takes longer than `--row-seconds`, the table
says so, and a new process measures the rows after it. The JSON and the table (gpu.json, gpu.md) are written after every row, and the output of the
tests to gpu.tests.txt.

    python benchmarks/gpu.py                                    # recipe full
    python benchmarks/gpu.py --recipe tiny --seconds 0.1 --loader 2          # on a CPU
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, astuple, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

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
from iidrive.runtime import atomic
from iidrive.runtime.run_folder import allow_tf32, device, environment, peak_memory_gb
from iidrive.training.prefetch import Order, Steps, feed

PAST, CLASSES = 6, 18
MODES = {"float32": 0, "bf16": 1, "graph": 2, "plain": 3, "tf32": 4, "compiled": 8}
"""Modes, and how late each is measured. Compilation takes longest, so it comes last."""
FRAMES = {"tokenizer": 1, "forecast": FUTURE_STEPS, "forecast, frames": FUTURE_STEPS, "plan": 1}
"""Calls without gradients, and the frames that one makes of a sample."""
TRAININGS = ("train planner", "train world", "train tokenizer")
LATER = {"call": 0, "train": 2, "second batch size": 4, "loader": 4.5}
"""How late the others are measured, on the scale of `MODES`."""

PUBLISHED = {"forecast": "37 frames/s [1]", "train world": "2.9 GB [2]", "train tokenizer": "2.9 GB [2]"}
NOTES = (
    "[1] Published for II-World on an RTX 4090. Its timer leaves out tokenizer and decoder and does not synchronise, so it measures something else.",
    "[2] Published for II-World: memory to train.",
)
HEAD = "| case | mode | batch | ms | frames, steps or samples a second | peak GB | published |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Task:
    """A row to measure."""

    case: str
    mode: str
    batch: int

    @property
    def kind(self) -> str:
        """call, train or loader."""
        return "call" if self.case in FRAMES else self.case.split()[0]

    def __str__(self) -> str:
        return f"{self.case} ({self.mode}, batch {self.batch})"


@dataclass(frozen=True)
class Row:
    """A measurement: median seconds per call, frames or steps per second, and peak memory in GiB (on a CPU: of the process). Or an error."""

    case: str
    mode: str
    batch: int
    seconds: float = 0.0
    per_second: float = 0.0
    peak_gb: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        found = f"{self.seconds * 1e3:.1f} | {self.per_second:.1f} | {self.peak_gb:.2f}"
        return f"| {self.case} | {self.mode} | {self.batch} | {f'{self.error} | |' if self.error else found} | {PUBLISHED.get(self.case, '')} |"


def failed(task: Task, error: object) -> Row:
    """The row of a task that failed, with the first line of the error."""
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    text = next(iter(str(error).splitlines()), "").replace("|", "/")[:200]
    return Row(task.case, task.mode, task.batch, error=f"failed: {kind}{text}")


def tasks(recipe: Recipe, modes: Sequence[str], sizes: Sequence[int], loader: bool) -> list[Task]:
    """All rows, the most important first. Rows that use the same models are neighbours."""
    calls = [case for case in FRAMES if case != "forecast" or recipe.world.motion != "map"]
    found = {Task(case, mode, size): MODES[mode] for mode in modes for size in sizes for case in calls}
    found |= {Task(case, mode, size): MODES[mode] for mode in modes for size in sizes for case in TRAININGS if mode != "graph"}
    late = {task: rank + LATER[task.kind] + LATER["second batch size"] * sizes.index(task.batch) for task, rank in found.items()}
    if loader:
        late |= {Task(f"loader {of}", f"{n} workers", 8): LATER["loader"] for of in ("tokenizer", "world") for n in (0, 2, 4)}
    if not torch.cuda.is_available():
        late = {task: rank for task, rank in late.items() if task.mode != "graph"}
    return sorted(late, key=lambda task: (late[task], _group(task)))


def _group(task: Task) -> tuple[str, str, int]:
    """Rows that are measured with the same models, or the same data."""
    return (task.kind, "", 0) if task.kind == "loader" else (task.kind, task.mode, task.batch)


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
            poses[:, PAST:, :2, 3].flip(-1),
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


def call_of(case: str, agent: Agent, batch: Batch) -> Callable[[], Tensor]:
    """A call without gradients."""
    forecaster, inputs = agent.forecaster, batch.inputs
    tokenizer = forecaster.tokenizer
    if case == "tokenizer":
        assert inputs.occupancy is not None
        frame, clip = inputs.occupancy[:, -1], tokenizer.encode(inputs.occupancy[:, -5:].flatten(0, 1)).unflatten(0, (-1, 5))
        past, seen = tokenizer.align(clip, inputs.now_T_frame[:, -5:])
        return lambda: tokenizer.labels(tokenizer.quantiser(tokenizer.encode(frame), past, seen).latent)
    if case == "forecast":
        state = forecaster.initial_state(inputs)
        return lambda: forecaster.world.imagine(state, inputs.command).latents
    if case == "forecast, frames":
        return lambda: forecaster.forecast(inputs, range(1, FUTURE_STEPS + 1))[0]
    return lambda: agent.plan(inputs, ii=True)


@contextmanager
def train_step(case: str, agent: Agent, recipe: Recipe, batch: Batch) -> Iterator[Callable[[], object]]:
    """A training step. At the end the stage is frozen again, without gradients."""
    forecaster, tokenizer = agent.forecaster, agent.forecaster.tokenizer
    frames = {key: getattr(batch.inputs, key)[:, -recipe.clip_frames :] for key in ("occupancy", "now_T_frame")}
    model, module, part = {
        "train planner": (agent, agent.planner, batch),
        "train world": (forecaster, forecaster.world, batch),
        "train tokenizer": (tokenizer, tokenizer, replace(batch, inputs=replace(batch.inputs, **frames))),
    }[case]
    module.requires_grad_(True)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=batch.targets.valid.is_cuda)
    model.train()

    def step() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        model.loss(part)[0].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        return norm

    try:
        yield step
    finally:
        module.requires_grad_(False).zero_grad(set_to_none=True)
        model.eval()


def captured(call: Callable[[], Tensor]) -> Callable[[], object]:
    """The call, captured as a CUDA graph."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def reset_peak() -> None:
    """Forget the peak memory so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def measured(task: Task, frames: int, call: Callable[[], object], seconds: float) -> Row:
    """Repeat a call for some seconds, after two warm-up calls."""
    on_gpu = torch.cuda.is_available()
    wait = torch.cuda.synchronize if on_gpu else (lambda: None)
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
    return Row(task.case, task.mode, task.batch, median, frames / median, peak_gb)


@contextmanager
def models(recipe: Recipe, first: Task, seconds: float) -> Iterator[Callable[[Task], Row]]:
    """All models in the mode of a task, which measure it and others of the same mode and batch size."""
    place = device()
    allow_tf32(first.mode == "tf32")
    with plainly() if first.mode == "plain" else nullcontext():
        agent, batch = agent_of(recipe, first.mode, place), inputs_of(recipe, first.batch, place)

        def row(task: Task) -> Row:
            if task.case not in FRAMES:
                reset_peak()
                with train_step(task.case, agent, recipe, batch) as step:
                    return measured(task, 1, step, seconds)
            with torch.no_grad():
                call = call_of(task.case, agent, batch)
                reset_peak()
                return measured(task, task.batch * FRAMES[task.case], captured(call) if task.mode == "graph" else call, seconds)

        try:
            yield row
        finally:
            allow_tf32(False)


def plainly() -> AbstractContextManager[None]:
    """Models without their shortcuts. The module beside this file is imported only when needed."""
    from plain import plainly as without

    return without()


@contextmanager
def loaders(scenes: int, seconds: float) -> Iterator[Callable[[Task], Row]]:
    """Full-size samples per second by number of worker processes, in steps of eight. 0 workers: the training process itself."""
    from training import data

    with data("", scenes) as kinds:
        of_tokenizer, of_world = kinds

        def row(task: Task) -> Row:
            reset_peak()
            order = Order(0, task.batch, task.batch * 10_000)
            steps = Steps(of_world if task.case == "loader world" else of_tokenizer, order, [range(task.batch)])
            fed = iter(feed(steps, order.steps(0, order.samples), int(task.mode.split()[0])))
            return measured(task, task.batch, lambda: next(fed), seconds)

        yield row


def measure(recipe: Recipe, todo: Sequence[Task], seconds: float, scenes: int) -> Iterator[Row]:
    """Measure rows in this process. One that fails says so."""
    for (kind, *_), group in groupby(todo, _group):
        left = list(group)
        try:
            with loaders(scenes, seconds) if kind == "loader" else models(recipe, left[0], seconds) as row:
                while left:
                    try:
                        found = row(left[0])
                    except Exception as error:
                        found = failed(left[0], error)
                    left.pop(0)
                    yield found
        except Exception as error:  # the models could not be made
            yield from (failed(task, error) for task in left)
        gc.collect()
        torch.cuda.empty_cache()


def supervised(todo: Sequence[Task], command: Sequence[str], row_s: float, end: float) -> Iterator[Row]:
    """Rows from processes `command TASKS`, which print each as a line of JSON, until the monotonic time `end`.

    After a row that fails or takes longer than `row_s` seconds a new process goes on, because an error may leave a GPU unusable for the old one.
    """
    left = list(todo)
    while left and time.monotonic() < end:
        process = subprocess.Popen(
            [*command, json.dumps([astuple(t) for t in left])], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pass_on, args=(process, lines), daemon=True).start()
        try:
            row = None
            while left and (row is None or not row.error):
                row = _next_row(left[0], process, lines, row_s, end)
                if row is None:
                    return
                left.pop(0)
                yield row
        finally:
            _kill(process)


def _next_row(task: Task, process: subprocess.Popen[str], lines: queue.Queue[str | None], row_s: float, end: float) -> Row | None:
    """The next row that a process prints; None when the time is up."""
    due = time.monotonic() + row_s
    while True:
        try:
            line = lines.get(timeout=max(0.0, min(due, end) - time.monotonic()))
        except queue.Empty:
            return None if time.monotonic() >= end else failed(task, f"took longer than {row_s:g} s")
        if line is None:
            return failed(task, f"the process ended with status {process.wait()}")
        if line.startswith('{"case": '):
            return Row(**json.loads(line))
        print(line, end="", file=sys.stderr)


def _pass_on(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and its children. It leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tests_on_gpu(seconds: float, told: Path) -> str:
    """Run the tests that need a GPU, if there is one, for some seconds at most. Their output goes to `told`. Returns the outcome."""
    if not torch.cuda.is_available():
        return "not run: no GPU"
    files = map(str, sorted((Path(__file__).parents[1] / "tests").glob("test_gpu*.py")))
    return limited([sys.executable, "-m", "pytest", "-vv", "-rfEs", "--tb=short", "-m", "gpu", *files], seconds, told)


def limited(command: Sequence[str], seconds: float, told: Path) -> str:
    """Run a command for some seconds at most. Returns how it ended, with the last line of its output. Prints failed and skipped tests."""
    with told.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            status = f"status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:g} s"
        finally:
            _kill(process)
    lines = told.read_text(errors="replace").splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))))
    return f"{status}: {lines[-1].strip('= ') if lines else 'no output'} (see {told.name})"


def write(out: Path, rows: Sequence[Row], dropped: Sequence[Task], about: dict[str, Any]) -> None:
    """Write the JSON and the table, each at once."""
    found = {**about, "complete": not dropped, "dropped": [str(task) for task in dropped], "rows": [asdict(row) for row in rows]}
    atomic.write(out, json.dumps(found, indent=2) + "\n")
    missing = [f"Not measured: {'; '.join(map(str, dropped))}."] if dropped else []
    machine = f"{about['environment']['device']}, torch {torch.__version__}, recipe {about['recipe']}"
    lines = [machine, "", HEAD, *map(str, rows), "", *NOTES, f"Tests: {about['gpu tests']}.", *missing]
    atomic.write(out.with_suffix(".md"), "\n".join(lines) + "\n")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--recipe", default="full", choices=list(recipes.RECIPES))
    found.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    found.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    found.add_argument("--seconds", type=float, default=1.0, help="per row, without warm-up")
    found.add_argument("--row-seconds", type=float, default=120.0, help="limit of a row with warm-up and compilation")
    found.add_argument("--minutes", type=float, default=8.0, help="end after this time, with the tests")
    found.add_argument("--tests-minutes", type=float, default=2.5, help="limit of the tests; 0: no tests")
    found.add_argument("--loader", type=int, default=10, help="number of scenes with synthetic labels for the loaders; 0: no loaders")
    found.add_argument("--out", default="gpu.json")
    found.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(arguments)
    recipe, end = recipes.named(options.recipe), time.monotonic() + 60 * options.minutes
    if options.worker:
        todo = [Task(*task) for task in json.loads(options.worker)]
        for row in measure(recipe, todo, options.seconds, options.loader):
            print(json.dumps(asdict(row)), flush=True)
        return
    out, todo = Path(options.out), tasks(recipe, options.modes, options.batch, options.loader > 0)
    about: dict[str, Any] = {
        "environment": environment(),
        "recipe": options.recipe,
        "published": [PUBLISHED, *NOTES],
        "gpu tests": "running",
    }
    write(out, [], todo, about)
    limit = 60 * min(options.tests_minutes, options.minutes)
    about["gpu tests"] = tests_on_gpu(limit, out.with_suffix(".tests.txt")) if limit else "not run"
    print(f"tests: {about['gpu tests']}\n\n{HEAD}", flush=True)
    rows: list[Row] = []
    write(out, rows, todo, about)
    for row in supervised(todo, [sys.executable, __file__, *arguments, "--worker"], options.row_seconds, end):
        rows.append(row)
        print(row, flush=True)
        write(out, rows, todo[len(rows) :], about)
    dropped = todo[len(rows) :]
    print("", *NOTES, sep="\n")
    if dropped:
        print(f"Not measured within {options.minutes:g} minutes: {'; '.join(map(str, dropped))}. Use --modes or --batch to measure them.")


if __name__ == "__main__":
    main()
