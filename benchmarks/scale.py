"""Estimates for nuScenes, Argoverse 2 and Waymo at full size on 8 to 512 GPUs: time of a step, data loading, hours and cost.

    python benchmarks/scale.py                # the tables of docs/scale.md
    python benchmarks/scale.py --write        # put them into docs/scale.md
    python benchmarks/scale.py --count        # count FLOP and operations of the current models

No GPU was measured. Every number is counted on the models (`COUNTED`), measured on a CPU (`MEASURED`), published by a manufacturer (`PUBLISHED`) or
assumed (`ASSUMED`). The time of a step is a lower bound: the maximum of FLOP / published peak and operations x launch time, plus the
all-reduce, which does not overlap with either.

FLOP: one multiplication or addition of convolutions, matrix products and attention. Sampling and adding maps is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from iidrive.models.occupancy_flow import FlowLearner
from iidrive.models.route import RouteLearner
from iidrive.pipeline import recipes
from iidrive.training.optim import TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- from benchmarks/scale.py -->", "<!-- to here -->"
GPUS = (8, 16, 32, 64, 128, 256, 512)
LABEL_FRAMES, CODE_FRAMES = 5, 12
"""Keyframes per sample: a clip of labels for the tokenizer, a clip of codes for the world model and the planner."""


@dataclass(frozen=True)
class Counted:
    """A stage at full size: trainable weights, FLOP per sample (forward and backward), and operations per pass with two samples, without views."""

    weights: int
    flop: float
    operations: int


COUNTED = {
    "tokenizer": Counted(20_211_040, 1182.4e9, 1_624),
    "world": Counted(2_480_274, 125.6e9, 8_220),
    "flow": Counted(1_173_868, 10.5e9, 208),
    "route": Counted(620_067, 1.36e9, 520),
    "planner": Counted(431_322, 74.3e9, 3_685),
}
WORKERS = (1, 2, 4)
LARGE = ("tokenizer", "world")
"""The stages with detailed tables."""


@dataclass(frozen=True)
class Measured:
    """Measured on two CPU cores by the benchmarks beside this file.

    `step_s`, `peak_gb`: time and peak memory of a step of one sample (`model.py`). `load_s`: CPU time to load a sample (`training.py loader`).
    `label_bytes`: size of a file of synthetic labels in Occ3D's layout. `token_bytes`: size of a keyframe's tokens (`tokens.py`).
    """

    step_s: Mapping[str, float]
    peak_gb: Mapping[str, float]
    load_s: Mapping[str, float]
    label_bytes: int = 82_000
    token_bytes: int = 15_142


MEASURED = Measured(
    step_s={"tokenizer": 2.3, "world": 0.85},
    peak_gb={"tokenizer": 1.58, "world": 1.21},
    load_s={"tokenizer": 0.020, "world": 0.0008},
)


@dataclass(frozen=True)
class Published:
    """From NVIDIA's data sheets: dense FLOP/s of the H100 SXM, and bytes per second of NDR InfiniBand to and from a GPU of another node."""

    flops: Mapping[str, float]
    link_bytes_s: float = 50e9
    gpus_a_node: int = 8
    memory_gb: float = 80.0


PUBLISHED = Published({"32": 67e12, "tf32": 494e12, "bf16": 989e12})


@dataclass(frozen=True)
class Assumed:
    """Assumptions, not measured.

    Attributes:
        launch_s: time to launch one operation from Python.
        hop_s: latency from GPU to GPU in a ring, in addition to the transfer.
        price: price of a GPU hour, in any currency.
        load_spread: standard deviation of the time to load a sample, relative to its mean.
        keyframes: keyframes of the training splits at 2 Hz, from the published numbers of scenes.
    """

    launch_s: float = 5e-6
    hop_s: float = 5e-6
    price: float = 2.5
    load_spread: float = 0.5
    keyframes: Mapping[str, int] = field(default_factory=lambda: {"nuScenes": 28_130, "Argoverse 2": 700 * 31, "Waymo": 798 * 40})


ASSUMED = Assumed()


@dataclass(frozen=True)
class Step:
    """A training step on some GPUs: samples per GPU, and lower bounds of the time of its parts, seconds."""

    samples: int
    arithmetic_s: float
    launch_s: float
    sum_s: float

    @property
    def seconds(self) -> float:
        """Lower bound of the time of the whole step."""
        return max(self.arithmetic_s, self.launch_s) + self.sum_s


def config_of(stage: str) -> TrainConfig:
    """The training config of a stage in recipe full."""
    return getattr(recipes.full(), f"train_{stage}")


def batch_on(gpus: int, batch: int) -> int:
    """The recipe's global batch size; with more GPUs than that, one sample per GPU, which is another recipe."""
    return max(batch, gpus)


def step_on(stage: str, gpus: int, precision: str = "32", assumed: Assumed = ASSUMED) -> Step:
    """A step on some GPUs without gradient accumulation. The all-reduce is a ring: 2 (n - 1) / n times the gradients' bytes."""
    counted, samples = COUNTED[stage], batch_on(gpus, config_of(stage).batch) // gpus
    ring = 2 * (gpus - 1)
    total = ring / gpus * 4 * counted.weights / PUBLISHED.link_bytes_s + ring * assumed.hop_s
    return Step(samples, samples * counted.flop / PUBLISHED.flops[precision], counted.operations * assumed.launch_s, total)


def samples_of(stage: str, keyframes: int) -> float:
    """Samples of a training on so many keyframes, with the same number of epochs as recipe full on nuScenes."""
    return config_of(stage).samples * keyframes / ASSUMED.keyframes["nuScenes"]


def hours(stage: str, gpus: int, precision: str = "32") -> float:
    """Hours of a training on all three data sets together, a lower bound."""
    steps = samples_of(stage, sum(ASSUMED.keyframes.values())) / batch_on(gpus, config_of(stage).batch)
    return steps * step_on(stage, gpus, precision).seconds / 3600


def waiting(stage: str, gpus: int, workers: int, precision: str = "32", steps: int = 1500, ahead: int = 2) -> float:
    """Time of a step including waiting for data, relative to the step itself. Simulated, because all GPUs wait for the slowest one.

    Worker k of a GPU prepares steps k, k + workers, … and prefetches `ahead` of them (`training/prefetch.py`). Loading times are drawn from a gamma
    distribution.
    """
    rng, step = np.random.default_rng(0), step_on(stage, gpus, precision)
    shape = step.samples / ASSUMED.load_spread**2  # shape of the sum over the samples
    ready, begun, now = np.zeros((steps, gpus)), np.zeros(steps), 0.0
    for k in range(steps):
        loads = rng.gamma(shape, step.samples * MEASURED.load_s[stage] / shape, gpus)
        before = ready[k - workers] if k >= workers else 0.0
        room = begun[k - ahead * workers] if k >= ahead * workers else 0.0
        ready[k] = np.maximum(before, room) + loads
        begun[k] = max(now, ready[k].max())
        now = begun[k] + step.seconds
    half = steps // 2  # the first steps wait for the first batches
    return (now - begun[half]) / ((steps - half) * step.seconds)


def table(head: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def text() -> str:
    """All tables with their captions, as Markdown."""
    return "\n\n".join(
        [
            "**Data.** Tokens are stored on disk once; only the tokenizer reads labels.",
            table(["training split", "keyframes", "tokens, GB", "labels, GB", *(f"{s}: steps of 64" for s in COUNTED)], data_rows()),
            "**Stages** at full size, float32.",
            table(
                [
                    "stage",
                    "weights, M",
                    "GFLOP a sample",
                    "operations a step",
                    "CPU: s a sample",
                    "peak, GB",
                    "all samples on that CPU, days",
                ],
                stage_rows(),
            ),
            "**A step**: lower bounds of its parts in milliseconds. From 128 GPUs on, the batch size is the number of GPUs.",
            table(["GPUs", *(f"{s}: {part}" for s in LARGE for part in ("samples", "arithmetic", "launches", "sum"))], step_rows()),
            "**Data loading**: data rate of all GPUs together, and CPU cores per GPU for loading, if every step takes its lower bound.",
            table(["GPUs", *(f"{s}, {what}" for s in LARGE for what in ("MB/s", "cores a GPU"))], feed_rows()),
            "**Waiting for data**, simulated: time of a tokenizer step relative to the step without waiting, by number of workers per GPU.",
            table(["GPUs", *(f"{p}, {w} workers" for p in ("32", "bf16") for w in WORKERS)], waiting_rows()),
            "**Hours and cost** of all three data sets together, lower bounds.",
            table(["GPUs", *(f"{s}, h" for s in COUNTED), "all, h", "GPU hours", f"cost at {ASSUMED.price:g} a GPU hour"], hour_rows()),
            "**Memory** of a GPU, GB: the part that FSDP would shard, and the part that it would not.",
            table(
                ["stage", "weights, gradients, AdamW, average", "a step of one sample, on the CPU", "FSDP on 64 GPUs saves"],
                memory_rows(),
            ),
            "**Other precisions**: hours on 64 GPUs, lower bounds, and the limiting part.",
            table(["precision", *(f"{s}, h" for s in COUNTED), "bound by"], precision_rows()),
        ]
    )


def data_rows() -> Iterator[Sequence[object]]:
    """One row per data set, and one for all."""
    for name, keyframes in {**ASSUMED.keyframes, "all three": sum(ASSUMED.keyframes.values())}.items():
        steps = [f"{samples_of(stage, keyframes) / config_of(stage).batch:,.0f}" for stage in COUNTED]
        size = keyframes * MEASURED.token_bytes / 1e9, keyframes * MEASURED.label_bytes / 1e9
        yield [name, f"{keyframes:,}", *(f"{gb:.2f}" for gb in size), *steps]


def stage_rows() -> Iterator[Sequence[object]]:
    """One row per stage."""
    for stage, counted in COUNTED.items():
        second, peak = MEASURED.step_s.get(stage), MEASURED.peak_gb.get(stage)
        days = second and second * samples_of(stage, sum(ASSUMED.keyframes.values())) / 86_400
        cells = [f"{counted.weights / 1e6:.2f}", f"{counted.flop / 1e9:,.0f}", f"{counted.operations:,}", second or "", peak or ""]
        yield [stage, *cells, f"{days:,.0f}" if days else ""]


def step_rows() -> Iterator[Sequence[object]]:
    """One row per number of GPUs."""
    for gpus in GPUS:
        cells: list[object] = [gpus]
        for stage in LARGE:
            step = step_on(stage, gpus)
            cells += [step.samples, *(f"{1e3 * part:.1f}" for part in (step.arithmetic_s, step.launch_s, step.sum_s))]
        yield cells


def feed_rows() -> Iterator[Sequence[object]]:
    """One row per number of GPUs."""
    size = {"tokenizer": LABEL_FRAMES * MEASURED.label_bytes, "world": CODE_FRAMES * MEASURED.token_bytes}
    for gpus in GPUS:
        cells: list[object] = [gpus]
        for stage, of_sample in size.items():
            step = step_on(stage, gpus)
            rate = step.samples / step.seconds
            cells += [f"{gpus * rate * of_sample / 1e6:,.0f}", f"{rate * MEASURED.load_s[stage]:.2f}"]
        yield cells


def waiting_rows() -> Iterator[Sequence[object]]:
    """One row per number of GPUs."""
    for gpus in GPUS:
        yield [gpus, *(f"{waiting('tokenizer', gpus, workers, p):.2f}" for p in ("32", "bf16") for workers in WORKERS)]


def hour_rows() -> Iterator[Sequence[object]]:
    """One row per number of GPUs."""
    for gpus in GPUS:
        each = [hours(stage, gpus) for stage in COUNTED]
        yield [
            gpus,
            *(f"{h:,.2f}" for h in each),
            f"{sum(each):,.2f}",
            f"{gpus * sum(each):,.0f}",
            f"{gpus * sum(each) * ASSUMED.price:,.0f}",
        ]


STATE_BYTES = 20
"""Bytes per weight: weight, gradient, two moments of AdamW and EMA, float32."""


def memory_rows(gpus: int = 64) -> Iterator[Sequence[object]]:
    """One row per stage of `LARGE`. The measured memory of a step includes weights and gradients."""
    for stage in LARGE:
        state = STATE_BYTES * COUNTED[stage].weights / 1e9
        yield [stage, f"{state:.2f}", MEASURED.peak_gb[stage], f"{state * (1 - 1 / gpus):.2f}"]


def precision_rows(gpus: int = 64) -> Iterator[Sequence[object]]:
    """One row per precision."""
    for precision in PUBLISHED.flops:
        steps = {stage: step_on(stage, gpus, precision) for stage in COUNTED}
        binds = [f"{stage}: {'arithmetic' if step.arithmetic_s > step.launch_s else 'launches'}" for stage, step in steps.items()]
        yield [precision, *(f"{hours(stage, gpus, precision):,.2f}" for stage in COUNTED), ", ".join(binds)]


class Operations(TorchDispatchMode):
    """Counts operations that compute, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        aliases = [made.alias_info for made in func._schema.returns]
        self.count += (
            not any(alias is not None and not alias.is_write for alias in aliases) and func.overloadpacket is not torch.ops.aten.detach
        )
        if func.overloadpacket is torch.ops.aten.grid_sampler_2d:  # its decomposition on meta takes a hundred operations
            return args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:3])
        return func(*args, **(kwargs or {}))


def counted(stages: Sequence[str] = tuple(COUNTED)) -> dict[str, Counted]:
    """Count the current stages: forward and backward with two samples on the `meta` device, which takes the GPU code path without computing."""
    import gpu

    recipe, meta = recipes.full(), torch.device("meta")
    with meta:
        agent = gpu.agent_of(recipe, "float32", meta)
    batch = gpu.inputs_of(recipe, 2, meta)
    frames = {key: getattr(batch.inputs, key)[:, -recipe.clip_frames :] for key in ("occupancy", "now_T_frame")}
    clip = replace(batch, inputs=replace(batch.inputs, **frames))
    forecaster, tokenizer = agent.forecaster, agent.forecaster.tokenizer
    flow, route, found = forecaster.world.flow, agent.planner.route, {}
    assert flow is not None
    assert route is not None
    parts = {
        "tokenizer": (tokenizer, tokenizer, clip),
        "world": (forecaster, forecaster.world, batch),
        "flow": (FlowLearner(tokenizer, flow), flow, batch),
        "route": (RouteLearner(tokenizer, route), route, batch),
        "planner": (agent, agent.planner, batch),
    }
    for stage in stages:
        model, module, part = parts[stage]
        agent.requires_grad_(False)
        module.requires_grad_(True)
        for frozen in (forecaster.world.prior, flow, route):  # trained separately, before the world model or the planner
            if frozen is not None and frozen is not module:
                frozen.requires_grad_(False)
        model.train()
        operations, flop = Operations(), FlopCounterMode(display=False)
        with flop, operations:
            model.loss(part)[0].backward()
        weights = sum(p.numel() for p in module.parameters() if p.requires_grad)
        found[stage] = Counted(weights, flop.get_total_flops() / 2, operations.count)
    return found


def main() -> None:
    """Print the tables, write them into docs/scale.md, or count the models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument("--count", action="store_true", help="count the current models")
    options = parser.parse_args()
    if options.count:
        print(*counted().items(), sep="\n")
        return
    print(text())
    if options.write:
        page = PAGE.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        PAGE.write_text(f"{before}\n\n{text()}\n\n{after}")


if __name__ == "__main__":
    main()
