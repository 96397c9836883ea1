"""Time and memory of the full-size models, relative to the same models in plain torch and in units of one convolution.

`plain` is the model without its shortcuts (`plain.py`), with the same weights and results. It shows the time of a straightforward implementation,
such as the published one, on this machine. The unit is a 3x3 convolution, 128 → 128 channels, on a 1x128x100x100 float32 map (median of many runs).
`published` is the time of the published II-World code in that unit on one machine (two threads); `aim` is the target there. Every measurement runs in
a separate process, so that its peak memory is not affected by others.

The cases of the world model are those of its roll-out alone, as it was before the occupancy flow. The flow has cases of its own. The last line of the
output says what the flow adds to a roll-out: both are timed alternately in one process.

    python benchmarks/model.py                         # all cases, prints the table of benchmarks/README.md
    python benchmarks/model.py --flow                  # the roll-out with the flow beside the one without, prints one line of JSON
    python benchmarks/model.py --case rollout          # one case, prints one line of JSON
    python benchmarks/model.py --case rollout --plain  # the same without shortcuts
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from plain import plainly
from torch import nn

from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.scene import FUTURE_STEPS
from iidrive.models.compute import ComputeConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.occupancy_flow import FlowConfig, FlowLearner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.runtime.run_folder import peak_memory_gb


@dataclass(frozen=True)
class Case:
    """A timed case: `make` builds it and returns the call to time. `published`, `aim` (units) and `published_gb`, if known."""

    title: str
    make: Callable[[], Callable[[], torch.Tensor]]
    published: float | None = None
    aim: float | None = None
    published_gb: float | None = None


def conv_unit(repeats: int = 15) -> float:
    """Median seconds of the unit convolution."""
    conv, x = nn.Conv2d(128, 128, 3, padding=1), torch.randn(1, 128, 100, 100)
    with torch.no_grad():
        return median(lambda: conv(x), repeats)


def median(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one warm-up call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def street() -> torch.Tensor:
    """Labels (1,1,200,200,16) similar to a street: ground, two kerbs, blocks, mostly free."""
    labels = torch.full((200, 200, 16), 17, dtype=torch.uint8)
    labels[:, :, 2] = 14
    labels[:, 70:130, 2] = 11
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        x, y = (int(v) for v in torch.randint(0, 190, (2,), generator=generator))
        labels[x : x + 9, y : y + 5, 3 : 3 + int(torch.randint(2, 8, (1,), generator=generator))] = int(
            torch.randint(0, 17, (1,), generator=generator)
        )
    return labels[None, None]


def tokenizer(compute: ComputeConfig | None = None) -> Tokenizer:
    """A tokenizer of published size with random weights; the cost does not depend on them."""
    torch.manual_seed(0)
    return Tokenizer(recipes.full().tokenizer, compute)


def tokenizer_frame() -> Callable[[], torch.Tensor]:
    """Encode, quantise against a given history, decode and argmax one frame."""
    model, frame = tokenizer().eval(), street()
    clip, eye = torch.randn(1, 5, 128, 50, 50), torch.eye(4).expand(1, 5, 4, 4)

    @torch.no_grad()
    def call() -> torch.Tensor:
        quantised = model.quantiser(model.encode(frame[:, 0]), *model.align(clip, eye))
        return model.labels(quantised.latent)

    return call


def tokenizer_loss(compute: ComputeConfig | None = None) -> tuple[Tokenizer, Callable[[], torch.Tensor]]:
    """The model, and the loss of one frame with a given history, as in the published code."""
    model, frame = tokenizer(compute).train(), street()
    past, saw = torch.randn(1, 4, 128, 50, 50), torch.ones(1, 4, 1, 50, 50)
    return model, lambda: model.frame_loss(frame[:, 0], past, saw)[0]


def forward_backward(made: tuple[nn.Module, Callable[[], torch.Tensor]]) -> Callable[[], torch.Tensor]:
    """A training step without the optimiser. Returns the loss and the norm of all gradients."""
    model, loss_of = made

    def call() -> torch.Tensor:
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        return torch.stack([loss.detach(), norm])

    return call


def forecaster(compute: ComputeConfig | None = None, flow: bool = False) -> tuple[Forecaster, Batch]:
    """World model at published size, with or without the occupancy flow, with a batch of one sample of random codes."""
    config = recipes.full().world if flow else replace(recipes.full().world, flow=FlowConfig())
    small = tokenizer(compute)
    model = Forecaster(small, WorldModel(config, small.cells, small.config.grid, compute))
    with torch.no_grad():  # weights initialised to 0 would hide the layers before them from the comparison of results
        for p in model.world.parameters():
            if not p.any():
                p.normal_(0, 0.02)
    codes = torch.randint(0, 512, (1, 12, sum(small.quantiser.level_cells)))
    eye = torch.eye(4).expand(1, 6, 4, 4).clone()
    eye[:, :, 0, 3] = torch.arange(-5, 1) * 2.0
    targets = torch.eye(4).expand(1, 6, 4, 4).clone()
    targets[:, :, 0, 3] = torch.arange(1, 7) * 2.0
    known, valid = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 6, dtype=torch.bool)
    age = torch.arange(5, -1, -1)[None] * 0.5
    inputs = Inputs(("a",), eye, known, age, torch.zeros(1, dtype=torch.long), torch.eye(4)[None], None, codes[:, :6])
    return model, Batch(inputs, Targets(targets, valid, torch.zeros(1, 6, 2), torch.full((1, 6), 0.5), None, codes[:, 6:]), 0.5)


def rollout(steps: int) -> Callable[[], torch.Tensor]:
    """A rollout of some steps from given latents."""
    model, batch = forecaster()
    model.eval()
    with torch.no_grad():
        memory = model.initial_state(batch.inputs)

    @torch.no_grad()
    def call() -> torch.Tensor:
        return model.world.imagine(memory, batch.inputs.command, steps).latents

    return call


def world_loss(compute: ComputeConfig | None = None) -> tuple[Forecaster, Callable[[], torch.Tensor]]:
    """The model, and the loss of a six-step rollout of one sample."""
    model, batch = forecaster(compute)
    return model.train(), lambda: model.loss(batch)[0]


def flow_alone() -> Callable[[], torch.Tensor]:
    """The occupancy flow of one sample from given latents."""
    model, batch = forecaster(flow=True)
    net = model.eval().world.flow
    assert net is not None
    latents = model.latents(batch.inputs.codes)

    @torch.no_grad()
    def call() -> torch.Tensor:
        return net.of(batch.inputs, latents).taken

    return call


def flow_loss(compute: ComputeConfig | None = None) -> tuple[FlowLearner, Callable[[], torch.Tensor]]:
    """The occupancy flow with its tokenizer, and the loss of one sample with random labels."""
    model, batch = forecaster(compute, flow=True)
    net = model.world.flow
    assert net is not None
    taken = torch.rand(1, 1 + FUTURE_STEPS, *net.fine.shape[:2]) < 0.1
    origin = torch.where(taken[:, 1:, ..., None], torch.randn(1, FUTURE_STEPS, *net.fine.shape[:2], 2), torch.nan)
    labelled = replace(batch, targets=replace(batch.targets, taken=taken, flow_m=origin))
    learner = FlowLearner(model.tokenizer, net).train()
    return learner, lambda: learner.loss(labelled)[0]


@torch.no_grad()
def rollout_with_flow(repeats: int) -> dict[str, float]:
    """Median seconds of a six-step roll-out from codes without and with the flow, which take turns, and the median of their ratios."""
    calls = []
    for flow in (False, True):
        model, batch = forecaster(flow=flow)
        calls.append(partial(model.eval().imagine, batch.inputs, FUTURE_STEPS))
    times: list[list[float]] = []
    for _ in range(repeats + 1):  # the first round warms up
        times.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            times[-1].append(time.perf_counter() - start)
    without, beside = (statistics.median(side) for side in zip(*times[1:], strict=True))
    return {"without_s": without, "with_s": beside, "ratio": statistics.median(b / a for a, b in times[1:])}


CASES = {
    "frame": Case("tokenizer, one frame", tokenizer_frame, 95.0, 75.0),
    "tokenizer-step": Case("tokenizer, training step", lambda: forward_backward(tokenizer_loss()), 378.0, 190.0, 3.0),
    "step": Case("world model, one step", lambda: rollout(1), 6.3),
    "rollout": Case("world model, six steps", lambda: rollout(6), 41.0, 14.0),
    "world-step": Case("world model, training step", lambda: forward_backward(world_loss()), 124.0, 60.0, 1.5),
    "flow": Case("occupancy flow, one sample", flow_alone),
    "flow-step": Case("occupancy flow, training step", lambda: forward_backward(flow_loss())),
}


def measure(name: str, repeats: int, plain: bool) -> dict[str, Any]:
    """Seconds, units, peak GB, and the result of one case (or its norm), measured in this process."""
    call = CASES[name].make()
    unit = conv_unit()
    with plainly() if plain else nullcontext():
        seconds = median(call, repeats)
        peak_gb, result = peak_memory_gb(), call().double()
    unit = (unit + conv_unit()) / 2
    numbers = result.tolist() if result.numel() == 2 else [float(result.norm())]
    return {"seconds": seconds, "units": seconds / unit, "unit_s": unit, "peak_gb": peak_gb, "result": numbers}


def elsewhere(options: argparse.Namespace, *what: str) -> dict[str, Any]:
    """The same in a separate process. `what`: the options that say what to measure."""
    command = [sys.executable, __file__, *what, "--repeats", str(options.repeats), "--threads", str(options.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Run one case, or all cases in separate processes, alternating with and without shortcuts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES))
    parser.add_argument("--plain", action="store_true", help="without shortcuts; with --case")
    parser.add_argument("--flow", action="store_true", help="only the roll-out with the occupancy flow beside the one without")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.flow:
        print(json.dumps(rollout_with_flow(options.repeats)))
        return
    if options.case:
        print(json.dumps({"case": options.case, "plain": options.plain, **measure(options.case, options.repeats, options.plain)}))
        return
    print("| case | now / plain | aim / published | units now | plain | published | peak GB now | plain | published |")
    print("|" + "---|" * 9)
    for name, case in CASES.items():
        pairs = [(elsewhere(options, "--case", name), elsewhere(options, "--case", name, "--plain")) for _ in range(options.rounds)]
        for now, plain in pairs:
            # loss or norm of the result; norm of the gradients
            if any(abs(a / b - 1) > bound for a, b, bound in zip(now["result"], plain["result"], (1e-4, 1e-3), strict=False)):
                sys.exit(f"{case.title}: results differ: {now['result']} with shortcuts, {plain['result']} without")
        ratio = statistics.median(now["seconds"] / plain["seconds"] for now, plain in pairs)
        units, peaks = (
            [statistics.median(found[key] for found in side) for side in zip(*pairs, strict=True)] for key in ("units", "peak_gb")
        )
        aim = f"{case.aim / case.published:.2f}" if case.aim and case.published else ""
        published = f"{case.published:.0f}" if case.published else ""
        memory = f"{case.published_gb:.1f}" if case.published_gb else ""
        print(
            f"| {case.title} | {ratio:.2f} | {aim} | {units[0]:.0f} | {units[1]:.0f} | {published} "
            f"| {peaks[0]:.2f} | {peaks[1]:.2f} | {memory} |",
            flush=True,
        )
    rounds = [elsewhere(options, "--flow") for _ in range(options.rounds)]
    without, beside, ratio = (statistics.median(found[key] for found in rounds) for key in ("without_s", "with_s", "ratio"))
    print(f"\nsix steps from codes: {without:.3f} s without the occupancy flow, {beside:.3f} s with it, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
