"""A GPU gives what a CPU gives: losses, gradients, codes, forecasts, plans and scores. It repeats its bits, and waits for no result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_gpu import GPU, GPU_MARKS, PLACES, load_benchmark, use
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.scene import FUTURE_STEPS
from iidrive.data.clips import OccupancyFrames, keyframes, read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import EgoMLP
from iidrive.models.forecast import Forecaster
from iidrive.models.occupancy_flow import FlowLearner
from iidrive.models.planner import Agent
from iidrive.models.reaction_loss import ReactionLearner
from iidrive.models.route import RouteLearner
from iidrive.models.world import WorldModel
from iidrive.pipeline import infer, recipes
from iidrive.pipeline.on_device import confusion
from iidrive.pipeline.tokens import codes_in_memory
from iidrive.runtime.run_folder import repeat_bits
from iidrive.scoring import metrics

BENCHMARK = load_benchmark()
TINY = recipes.tiny()
LOSSES = ("tokenizer", "motion", "flow", "reactions", "world", "route", "planner", "ego-mlp")
CHEAP = ("motion", "flow", "reactions", "route", "planner", "ego-mlp")
CPU = torch.device("cpu")
REACTING = replace(TINY.world, reactions=TINY.reactions)


def made() -> Agent:
    """All models on the CPU. No weight is zero, so that all outputs depend on the inputs."""
    torch.manual_seed(0)
    agent = BENCHMARK.agent_of(TINY, "float32", CPU)
    for p in agent.parameters():
        if not bool(p.any()):
            nn.init.normal_(p, std=0.05)
    return agent


def batch() -> Batch:
    """Random labels and codes."""
    torch.manual_seed(1)
    return BENCHMARK.inputs_of(TINY, 2, CPU)


def learner(name: str) -> tuple[nn.Module, nn.Module]:
    """What computes a loss, and whose weights it trains."""
    agent = made()
    forecaster, tokenizer, world, head = agent.forecaster, agent.forecaster.tokenizer, agent.forecaster.world, agent.planner.route
    assert world.prior is not None
    assert world.flow is not None
    assert head is not None
    torch.manual_seed(2)
    mlp = EgoMLP(TINY.ego_mlp)
    reactions = ReactionLearner(Forecaster(tokenizer, WorldModel(REACTING, tokenizer.cells, tokenizer.config.grid)))
    nn.init.normal_(reactions.net.out.weight, std=0.05)
    return {
        "tokenizer": (tokenizer, tokenizer),
        "motion": (world.prior, world.prior),
        "flow": (FlowLearner(tokenizer, world.flow), world.flow),
        "reactions": (reactions, reactions.net),
        "world": (forecaster, world),
        "route": (RouteLearner(tokenizer, head), head),
        "planner": (agent, agent.planner),
        "ego-mlp": (mlp, mlp),
    }[name]


def gradients(model: nn.Module, module: nn.Module, part: Batch) -> list[Tensor]:
    """A loss and all gradients."""
    module.requires_grad_(True)
    loss, _ = model.loss(part)  # pyright: ignore[reportCallIssue]
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return [loss.detach(), *grads]


@contextmanager
def unsynchronised(place: torch.device) -> Iterator[None]:
    """On a GPU, raises an error if the block waits for a result."""
    if place.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("name", "on"), [*((name, "cpu") for name in CHEAP), *(pytest.param(name, GPU, marks=GPU_MARKS) for name in LOSSES)]
)
def test_losses_and_gradients(name: str, on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64."""
    place, found = use(on, monkeypatch), []
    for at in (CPU, place):
        model, module = learner(name)
        model, module = model.double().to(at), module.double().to(at)
        part = batch().as_type(torch.float64).to(at)
        with unsynchronised(at):
            found.append(gradients(model, module, part))
    assert sum(bool(grad.any()) for grad in found[0][1:]) > 3
    for a, b in zip(*found, strict=True):
        assert b.device.type == place.type
        torch.testing.assert_close(b.cpu(), a, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("on", [pytest.param(GPU, marks=GPU_MARKS)])
def test_a_gpu_that_has_to_repeat_itself_does(on: str) -> None:
    """Every loss and gradient has the same bits twice, in float32; torch raises an error for an operation that could not promise it."""
    repeat_bits(True)
    try:
        for name in LOSSES:
            found = []
            for _ in range(2):
                model, module = learner(name)
                found.append(gradients(model.to(on), module.to(on), batch().to(torch.device(on))))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), name
    finally:
        repeat_bits(False)


def answers(agent: Agent, inputs: Inputs) -> dict[str, Tensor]:
    """All that inference gives."""
    forecaster, tokenizer = agent.forecaster, agent.forecaster.tokenizer
    assert inputs.occupancy is not None
    labels, imagined = forecaster.forecast(inputs, (0, 1, FUTURE_STEPS))
    assert imagined.flow is not None
    return {
        "codes": tokenizer.tokenize(inputs.occupancy, inputs.now_T_frame).codes,
        "scene codes": tokenizer.tokenize_scene(inputs.occupancy[0], inputs.now_T_frame[0].double()),
        "forecast": labels,
        "latents": imagined.latents,
        "motion": imagined.now_T_frame,
        "flow": imagined.flow.taken,
        **{f"plan, ii {ii}": agent.plan(inputs, ii) for ii in (False, True)},
        "cost": agent.choice(inputs, ii=True).cost_m,
    }


@pytest.mark.parametrize("on", [pytest.param(GPU, marks=GPU_MARKS)])
def test_codes_forecasts_and_plans(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64. A code or label beside a boundary may be the next one."""
    place, agent, inputs = use(on, monkeypatch), made().double(), batch().as_type(torch.float64).inputs
    other, there = copy.deepcopy(agent).to(place), inputs.to(place)
    with torch.no_grad():
        expected = answers(agent, inputs)
        with unsynchronised(place):
            found = answers(other, there)
    for name, value in expected.items():
        assert found[name].device.type == place.type
        if value.is_floating_point():
            torch.testing.assert_close(found[name].cpu(), value, atol=1e-6, rtol=1e-6)
        else:
            assert bool((found[name].cpu() != value).float().mean() < 1e-3), name
        assert len(value.unique()) > 3, name


@pytest.mark.parametrize("on", [pytest.param(GPU, marks=GPU_MARKS)])
def test_scores(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, forecast table, reconstruction and plans of a scene, from labels to counts, in float32."""
    town, grid = Town(TownConfig(train_scenes=1, keyframes=10)), TINY.tokenizer.grid
    tracks, agent, mlp = read_tracks(town, "train"), made(), learner("ego-mlp")[0]
    given = codes_in_memory(agent.forecaster.tokenizer, town, tracks)
    clips = scored_clips(tracks, given, town, grid)
    rows, frames = np.arange(len(tracks[0].tokens)), OccupancyFrames(town, grid, keyframes(tracks))
    found = []
    for at in ("cpu", on):
        with monkeypatch.context() as patched:
            place = use(at, patched)
            models, own_mlp = copy.deepcopy(agent).to(place), copy.deepcopy(mlp).to(place)
            tokens = codes_in_memory(models.forecaster.tokenizer, town, tracks)(tracks[0].name, rows)
            table = infer.forecasts(models.forecaster, clips, grid, source=town, batch=2, oracle_every=1)
            back = infer.reconstruction(models.forecaster.tokenizer, given, frames, [(tracks[0].name, rows)])
            plans = [infer.plans(plan, clips)[1] for plan in (partial(models.plan, ii=True), own_mlp.plan)]
            found.append((tokens, table, back, plans))
    (tokens, table, back, plans), (other_tokens, other_table, other_back, other_plans) = found
    assert (tokens != other_tokens).mean() < 0.01
    assert list(other_table.rows) == list(table.rows)
    assert "transport, true flow" in table.rows
    for name, counts in table.rows.items():
        for kind in ("histogram", "in_true_frame", "unseen"):
            assert_close_counts(getattr(other_table.rows[name], kind), getattr(counts, kind))
        np.testing.assert_allclose(other_table.rows[name].path_m, counts.path_m, atol=1e-3)
    for name, counts in table.reliability.items():
        np.testing.assert_allclose(other_table.reliability[name].expected.sum(-1), counts.expected.sum(-1), rtol=1e-4)
    assert_close_counts(other_back, back)
    np.testing.assert_allclose(other_plans, plans, atol=1e-3)


def assert_close_counts(found: np.ndarray, expected: np.ndarray) -> None:
    """Counts differ by no more than voxels beside a boundary."""
    assert found.sum() == expected.sum()
    assert np.abs(found - expected).sum() <= 2e-3 * expected.sum()


@pytest.mark.parametrize("on", PLACES)
def test_voxel_counts(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = use(on, monkeypatch)
    torch.manual_seed(0)
    truth = torch.randint(0, 19, (3, 7, 5, 4)).to(torch.uint8)
    truth[truth == 18] = 255
    labels = torch.randint(0, 18, truth.shape).to(torch.uint8)
    there = truth.to(place), labels.to(place)
    with unsynchronised(place):
        counts = confusion(*there)
    np.testing.assert_array_equal(counts.numpy(force=True), metrics.confusion(truth.numpy(), labels.numpy()))
