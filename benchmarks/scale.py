"""nuScenes, Argoverse 2 and Waymo at full size on 8 to 512 GPUs, on paper: what a step needs, what it waits for, hours and cost.

    python benchmarks/scale.py                # the tables of docs/scale.md
    python benchmarks/scale.py --write        # put them into docs/scale.md
    python benchmarks/scale.py --count        # count arithmetic and operations of the models as they are now

No GPU was measured. What stands here is counted on the models (weights, arithmetic, operations), measured on a CPU (`MEASURED`), published by a maker
(`PUBLISHED`) or assumed (`ASSUMED`), and each has a name. A step's time is a lower bound:

    the larger of arithmetic / published peak and operations x time to launch one, then the sum over GPUs, which does not overlap with either.

FLOP: one multiplication or addition of convolutions, matrix products and attention; reading and adding maps is left out.
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
from iidrive.pipeline import recipes
from iidrive.training.optim import TrainConfig

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- from benchmarks/scale.py -->", "<!-- to here -->"
GPUS = (8, 16, 32, 64, 128, 256, 512)
LABEL_FRAMES, CODE_FRAMES = 5, 12
"""Keyframes of a sample: a clip of labels for the tokenizer, a window of codes for the world model and the planner."""


@dataclass(frozen=True)
class Counted:
    """A stage at full size: weights that move, FLOP of a sample forwards and backwards, operations of a pass with two samples, views apart."""

    weights: int
    flop: float
    operations: int


COUNTED = {
    "tokenizer": Counted(20_211_040, 1182.4e9, 1_624),
    "world": Counted(2_480_274, 125.6e9, 8_220),
    "flow": Counted(1_173_868, 10.5e9, 208),
    "planner": Counted(424_238, 73.9e9, 1_964),
}
WORKERS = (1, 2, 4)
LARGE = ("tokenizer", "world")
"""Stages that the tables go into."""


@dataclass(frozen=True)
class Measured:
    """On two CPU cores, by the benchmarks beside this file: seconds of a step of one sample (`model.py`), its peak memory, GB, and processor
    seconds to load one (`training.py loader`); bytes of a file of labels, made up in Occ3D's layout, and of a keyframe's tokens (`tokens.py`)."""

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
    """From NVIDIA's data sheets of the H100 SXM (dense FLOP/s) and of NDR InfiniBand: bytes a second to and from a GPU of another node."""

    flops: Mapping[str, float]
    link_bytes_s: float = 50e9
    gpus_a_node: int = 8
    memory_gb: float = 80.0


PUBLISHED = Published({"32": 67e12, "tf32": 494e12, "bf16": 989e12})


@dataclass(frozen=True)
class Assumed:
    """What nobody here has measured.

    Attributes:
        launch_s: to launch one operation from Python.
        hop_s: from GPU to GPU in a ring, beside the bytes.
        price: of a GPU's hour, in any currency.
        load_spread: standard deviation of what loading a sample takes, as a share of its mean.
        keyframes: of the training splits, two a second, by their makers' numbers of scenes.
    """

    launch_s: float = 5e-6
    hop_s: float = 5e-6
    price: float = 2.5
    load_spread: float = 0.5
    keyframes: Mapping[str, int] = field(default_factory=lambda: {"nuScenes": 28_130, "Argoverse 2": 700 * 31, "Waymo": 798 * 40})


ASSUMED = Assumed()


@dataclass(frozen=True)
class Step:
    """A step of a stage on some GPUs: samples of each, and seconds that its parts take at least."""

    samples: int
    arithmetic_s: float
    launch_s: float
    sum_s: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return max(self.arithmetic_s, self.launch_s) + self.sum_s


def config_of(stage: str) -> TrainConfig:
    """The schedule of a stage in recipe full."""
    return getattr(recipes.full(), f"train_{stage}")


def batch_on(gpus: int, batch: int) -> int:
    """The recipe's global batch; a sample for each GPU where they are more than that, which is another recipe."""
    return max(batch, gpus)


def step_on(stage: str, gpus: int, precision: str = "32", assumed: Assumed = ASSUMED) -> Step:
    """A step on some GPUs, all samples of a GPU at once. The sum is a ring's: twice the gradients' bytes, less one part."""
    counted, samples = COUNTED[stage], batch_on(gpus, config_of(stage).batch) // gpus
    ring = 2 * (gpus - 1)
    total = ring / gpus * 4 * counted.weights / PUBLISHED.link_bytes_s + ring * assumed.hop_s
    return Step(samples, samples * counted.flop / PUBLISHED.flops[precision], counted.operations * assumed.launch_s, total)


def samples_of(stage: str, keyframes: int) -> float:
    """Samples of a training on so many keyframes: each is seen as often as recipe full sees those of nuScenes."""
    return config_of(stage).samples * keyframes / ASSUMED.keyframes["nuScenes"]


def hours(stage: str, gpus: int, precision: str = "32") -> float:
    """Of a training on all three data sets together."""
    steps = samples_of(stage, sum(ASSUMED.keyframes.values())) / batch_on(gpus, config_of(stage).batch)
    return steps * step_on(stage, gpus, precision).seconds / 3600


def waiting(stage: str, gpus: int, workers: int, precision: str = "32", steps: int = 1500, ahead: int = 2) -> float:
    """How many times as long as its own time a step takes because some GPU waits for data: simulated, since all wait for the slowest of many.

    Worker k of a GPU makes steps k, k + workers, …, each `ahead` of them before they are needed (`training/prefetch.py`); what a step's samples
    take to load is drawn from a gamma distribution.
    """
    rng, step = np.random.default_rng(0), step_on(stage, gpus, precision)
    shape = step.samples / ASSUMED.load_spread**2  # of a sum of samples
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
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def text() -> str:
    """All tables."""
    return "\n\n".join(
        [
            "**Data.** Tokens are kept on disk once; labels are read by the tokenizer alone.",
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
            "**A step**, milliseconds at least, by what it is bound by. From 128 GPUs on the batch is as large as there are GPUs.",
            table(["GPUs", *(f"{s}: {part}" for s in LARGE for part in ("samples", "arithmetic", "launches", "sum"))], step_rows()),
            "**Fed**: what all GPUs together read, and processor cores beside each GPU that load for it, if every step is as short as it can be.",
            table(["GPUs", *(f"{s}, {what}" for s in LARGE for what in ("MB/s", "cores a GPU"))], feed_rows()),
            "**Waiting for data**, simulated: tokenizer steps as multiples of what they take by themselves, with so many workers a GPU.",
            table(["GPUs", *(f"{p}, {w} workers" for p in ("32", "bf16") for w in WORKERS)], waiting_rows()),
            "**Hours and cost** of all three data sets together, at least.",
            table(["GPUs", *(f"{s}, h" for s in COUNTED), "all, h", "GPU hours", f"cost at {ASSUMED.price:g} a GPU hour"], hour_rows()),
            "**Memory** of a GPU, GB: what FSDP would share out, and what it would not.",
            table(
                ["stage", "weights, gradients, AdamW, average", "a step of one sample, on the CPU", "FSDP on 64 GPUs saves"],
                memory_rows(),
            ),
            "**The same in other precisions**: hours at least on 64 GPUs, and what then binds.",
            table(["precision", *(f"{s}, h" for s in COUNTED), "bound by"], precision_rows()),
        ]
    )


def data_rows() -> Iterator[Sequence[object]]:
    """One row a data set, and all."""
    for name, keyframes in {**ASSUMED.keyframes, "all three": sum(ASSUMED.keyframes.values())}.items():
        steps = [f"{samples_of(stage, keyframes) / config_of(stage).batch:,.0f}" for stage in COUNTED]
        size = keyframes * MEASURED.token_bytes / 1e9, keyframes * MEASURED.label_bytes / 1e9
        yield [name, f"{keyframes:,}", *(f"{gb:.2f}" for gb in size), *steps]


def stage_rows() -> Iterator[Sequence[object]]:
    """One row a stage."""
    for stage, counted in COUNTED.items():
        second, peak = MEASURED.step_s.get(stage), MEASURED.peak_gb.get(stage)
        days = second and second * samples_of(stage, sum(ASSUMED.keyframes.values())) / 86_400
        told = [f"{counted.weights / 1e6:.2f}", f"{counted.flop / 1e9:,.0f}", f"{counted.operations:,}", second or "", peak or ""]
        yield [stage, *told, f"{days:,.0f}" if days else ""]


def step_rows() -> Iterator[Sequence[object]]:
    """One row a number of GPUs."""
    for gpus in GPUS:
        cells: list[object] = [gpus]
        for stage in LARGE:
            step = step_on(stage, gpus)
            cells += [step.samples, *(f"{1e3 * part:.1f}" for part in (step.arithmetic_s, step.launch_s, step.sum_s))]
        yield cells


def feed_rows() -> Iterator[Sequence[object]]:
    """One row a number of GPUs."""
    size = {"tokenizer": LABEL_FRAMES * MEASURED.label_bytes, "world": CODE_FRAMES * MEASURED.token_bytes}
    for gpus in GPUS:
        cells: list[object] = [gpus]
        for stage, of_sample in size.items():
            step = step_on(stage, gpus)
            rate = step.samples / step.seconds
            cells += [f"{gpus * rate * of_sample / 1e6:,.0f}", f"{rate * MEASURED.load_s[stage]:.2f}"]
        yield cells


def waiting_rows() -> Iterator[Sequence[object]]:
    """One row a number of GPUs."""
    for gpus in GPUS:
        yield [gpus, *(f"{waiting('tokenizer', gpus, workers, p):.2f}" for p in ("32", "bf16") for workers in WORKERS)]


def hour_rows() -> Iterator[Sequence[object]]:
    """One row a number of GPUs."""
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
"""Of a weight: itself, its gradient, two moments of AdamW and the moving average, float32."""


def memory_rows(gpus: int = 64) -> Iterator[Sequence[object]]:
    """One row a large stage. The step's memory was measured with the weights and gradients in it."""
    for stage in LARGE:
        state = STATE_BYTES * COUNTED[stage].weights / 1e9
        yield [stage, f"{state:.2f}", MEASURED.peak_gb[stage], f"{state * (1 - 1 / gpus):.2f}"]


def precision_rows(gpus: int = 64) -> Iterator[Sequence[object]]:
    """One row a precision."""
    for precision in PUBLISHED.flops:
        steps = {stage: step_on(stage, gpus, precision) for stage in COUNTED}
        binds = [f"{stage}: {'arithmetic' if step.arithmetic_s > step.launch_s else 'launches'}" for stage, step in steps.items()]
        yield [precision, *(f"{hours(stage, gpus, precision):,.2f}" for stage in COUNTED), ", ".join(binds)]


class Operations(TorchDispatchMode):
    """Counts what is computed, not what is only looked at in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        aliases = [made.alias_info for made in func._schema.returns]
        self.count += (
            not any(alias is not None and not alias.is_write for alias in aliases) and func.overloadpacket is not torch.ops.aten.detach
        )
        if func.overloadpacket is torch.ops.aten.grid_sampler_2d:  # its own way to this shape takes a hundred operations
            return args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:3])
        return func(*args, **(kwargs or {}))


def counted(stages: Sequence[str] = tuple(COUNTED)) -> dict[str, Counted]:
    """The stages as they are now: two samples forwards and backwards, on the `meta` device, where a GPU's way is taken and nothing is computed."""
    import gpu

    recipe, meta = recipes.full(), torch.device("meta")
    with meta:
        agent = gpu.agent_of(recipe, "float32", meta)
    batch = gpu.inputs_of(recipe, 2, meta)
    frames = {key: getattr(batch.inputs, key)[:, -recipe.clip_frames :] for key in ("occupancy", "now_T_frame")}
    clip = replace(batch, inputs=replace(batch.inputs, **frames))
    forecaster, tokenizer = agent.forecaster, agent.forecaster.tokenizer
    flow, found = forecaster.world.flow, {}
    assert flow is not None
    parts = {
        "tokenizer": (tokenizer, tokenizer, clip),
        "world": (forecaster, forecaster.world, batch),
        "flow": (FlowLearner(tokenizer, flow), flow, batch),
        "planner": (agent, agent.planner, batch),
    }
    for stage in stages:
        model, module, part = parts[stage]
        agent.requires_grad_(False)
        module.requires_grad_(True)
        for frozen in (forecaster.world.prior, flow):  # trained before the world model, each by itself
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
    """Print, write or count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument("--count", action="store_true", help="count the models anew")
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
