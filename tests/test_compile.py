"""torch.compile takes each model whole, once: no break in the graph, and no second compilation for other inputs of the same shape.

Compiled, a model gives what it gives without, up to rounding: it takes a GPU's way, not a CPU's shortcuts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from iidrive.core.batch import Inputs
from iidrive.core.scene import FUTURE_STEPS
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import planar_transform
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes

TINY = recipes.tiny()
ROWS, FRAMES = 2, 6


@pytest.fixture(scope="module")
def agent() -> Agent:
    """Tiny models with attention, whose outputs all depend on their inputs."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(replace(TINY.tokenizer, middle_attention=True, class_weights=(1.0,) * 18))
    world = WorldModel(replace(TINY.world, strides=(2,)), tokenizer.cells, tokenizer.config.grid)
    made = Agent(Forecaster(tokenizer, world), Planner(TINY.planner, tokenizer.cells), train_ii=True).eval()
    for p in made.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.05)
    return made


def counting() -> Any:
    """A backend that counts graphs, with nothing compiled before. Imported here, because torch's compiler takes seconds to import."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    return CompileCounterWithBackend("eager")


def inputs(agent: Agent, seed: int) -> Inputs:
    """A batch of drives in noise."""
    draw = torch.Generator().manual_seed(seed)

    def poses(*shape: int) -> Tensor:
        yaw = torch.randn(*shape, generator=draw) / 10
        return planar_transform(torch.randn(*shape, 2, generator=draw), yaw.cos(), yaw.sin())

    cells = sum(agent.forecaster.tokenizer.quantiser.level_cells)
    return Inputs(
        tuple(f"{seed}-{row}" for row in range(ROWS)),
        torch.cat([poses(ROWS, FRAMES - 1), torch.eye(4).expand(ROWS, 1, 4, 4)], 1),
        torch.rand(ROWS, FRAMES, generator=draw) > 0.2,
        torch.arange(FRAMES - 1.0, -1, -1).expand(ROWS, -1) / 2,
        torch.randint(0, 3, (ROWS,), generator=draw),
        poses(ROWS),
        torch.randint(0, 18, (ROWS, FRAMES, *TINY.tokenizer.grid.shape), generator=draw).to(torch.uint8),
        torch.randint(0, TINY.tokenizer.quantiser.codes, (ROWS, FRAMES, cells), generator=draw),
    )


def encode(agent: Agent, x: Inputs) -> Tensor:
    assert x.occupancy is not None
    return agent.forecaster.tokenizer.tokenize(x.occupancy, x.now_T_frame).codes


def decode(agent: Agent, x: Inputs) -> Tensor:
    assert x.codes is not None
    (logits,) = agent.forecaster.tokenizer.read(agent.forecaster.latents(x.codes[:, -1]), lambda logits: (logits,))
    return logits


def forecast(agent: Agent, x: Inputs) -> tuple[Tensor, Tensor]:
    """Two steps, from codes to labels. A compiler writes out each further one as it does the first: all six take most of a minute."""
    labels, imagined = agent.forecaster.forecast(x, (0, 1, 2))
    return imagined.latents, labels


def plan(agent: Agent, x: Inputs) -> Tensor:
    return agent.plan(x, ii=True)


@pytest.mark.slow
@pytest.mark.parametrize("run", [encode, decode, forecast, plan])
def test_whole_and_once(run: Callable[[Agent, Inputs], Tensor | tuple[Tensor, ...]], agent: Agent) -> None:
    backend = counting()
    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=False)
    with torch.no_grad():
        batches = [inputs(agent, seed) for seed in (1, 2)]
        made, found = ([_all(each(agent, x)) for x in batches] for each in (run, compiled))
    assert backend.frame_count == 1
    assert not any(torch.equal(a, b) for a, b in zip(*made, strict=True))
    for expected, value in ((a, b) for one, other in zip(made, found, strict=True) for a, b in zip(one, other, strict=True)):
        if value.is_floating_point():
            torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
        else:  # a code or a label beside the boundary may be the next one
            assert bool((value != expected).float().mean() < 0.01)


def _all(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.slow
def test_a_step_serves_all_steps_of_a_roll_out(agent: Agent) -> None:
    """Compiled for the first one, whose memory lies in memory as it was observed, and for those after it; never again, whatever is rolled
    out.
    """
    world, backend = agent.forecaster.world, counting()
    step = torch.compile(world.step, backend=backend, fullgraph=True, dynamic=False)
    for seed, compiled in ((1, 2), (2, 2)):
        x = inputs(agent, seed)
        with torch.no_grad():
            state = start = agent.forecaster.initial_state(x)
            for _ in range(FUTURE_STEPS):
                state, latent, _ = step(state, x.command)
            expected = world.imagine(start, x.command).latents[:, -1]
        assert backend.frame_count == compiled
        torch.testing.assert_close(latent, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_break_and_a_second_compilation_would_be_found(agent: Agent) -> None:
    """A value that the host reads breaks the graph; one that it keeps compiles it anew."""
    backend = counting()

    def reads(x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(reads, backend="eager", fullgraph=True)(torch.ones(3))
    scaled = torch.compile(lambda x, by: x * by, backend=backend, fullgraph=True, dynamic=False)
    for by in (1.0, 2.0):
        scaled(torch.ones(3), by)
    assert backend.frame_count == 2
