"""Every model and loss of every recipe, at its own size, runs without the host: nothing is copied to the device in a call, no result is
waited for.

On the `meta` device full size costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from no_host import no_host
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.scene import FUTURE_STEPS, ROAD_GRID, ROUTE_AHEAD, ROUTE_BEHIND, GridSpec
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import EgoMLP, copy_warped
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import CellGrid
from iidrive.models.occupancy_flow import FlowLearner
from iidrive.models.planner import Agent, Planner
from iidrive.models.reaction_loss import ReactionLearner
from iidrive.models.route import RouteHead, RouteLearner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline.on_device import confusion
from iidrive.pipeline.recipes import RECIPES, Recipe
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.simulation import observer
from iidrive.simulation.driven import DrivenScene
from iidrive.training import loop
from iidrive.training.checkpoint import Manifest
from iidrive.training.optim import EMA, TrainConfig
from iidrive.training.state import State, Trainable, TrainTask

META = torch.device("meta")
ROWS, PAST, CLASSES = 2, 6, 18
MODELS = {(r.tokenizer, r.world, r.planner, r.ego_mlp): r for r in reversed([recipe() for recipe in RECIPES.values()])}
"""One recipe for each set of models."""


@pytest.fixture(scope="module", params=MODELS.values(), ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


def made(recipe: Recipe) -> tuple[Tokenizer, Forecaster, Agent]:
    """All models of a recipe, with class weights where it counts classes."""
    weights = (1.0,) * CLASSES if recipe.tokenizer.voxel_loss == "balanced" else ()
    with META:
        tokenizer = Tokenizer(replace(recipe.tokenizer, class_weights=weights, lovasz_weights=weights))
        forecaster = Forecaster(tokenizer, WorldModel(recipe.world, tokenizer.cells, tokenizer.config.grid))
        return tokenizer, forecaster, Agent(forecaster, Planner(recipe.planner, tokenizer.cells), train_ii=True)


def reacting(recipe: Recipe, tokenizer: Tokenizer) -> Forecaster:
    """A world model with a reaction net."""
    with META:
        world = WorldModel(replace(recipe.world, reactions=recipe.reactions), tokenizer.cells, tokenizer.config.grid)
        return Forecaster(tokenizer, world)


def batch(recipe: Recipe, past: int = PAST) -> Batch:
    """A batch with everything that any loss reads."""
    grid, (x, y) = recipe.tokenizer.grid.shape, recipe.tokenizer.latent_size
    with META:
        cells = sum(Tokenizer(recipe.tokenizer).quantiser.level_cells)

        def labels(frames: int) -> Tensor:
            return torch.empty(ROWS, frames, *grid, dtype=torch.uint8)

        def codes(frames: int) -> Tensor:
            return torch.empty(ROWS, frames, cells, dtype=torch.int64)

        def true(*shape: int) -> Tensor:
            return torch.ones(ROWS, *shape, dtype=torch.bool)

        inputs = Inputs(
            ("a", "b"),
            torch.empty(ROWS, past, 4, 4),
            true(past),
            torch.empty(ROWS, past),
            torch.empty(ROWS, dtype=torch.int64),
            torch.empty(ROWS, 4, 4),
            labels(past),
            codes(past),
            torch.empty(ROWS, 4, 4, dtype=torch.float64),
        )
        moments, fine = FUTURE_STEPS + 1, (2 * x, 2 * y)
        targets = Targets(
            torch.empty(ROWS, FUTURE_STEPS, 4, 4),
            true(FUTURE_STEPS),
            torch.empty(ROWS, FUTURE_STEPS, 2),
            torch.empty(ROWS, FUTURE_STEPS),
            labels(FUTURE_STEPS),
            codes(FUTURE_STEPS),
            true(moments, *fine),
            torch.empty(ROWS, FUTURE_STEPS, *fine, 2),
            torch.empty(ROWS, 3, moments, 5),
            true(3, moments),
            true(*ROAD_GRID.shape[:2]),
            true(),
            torch.empty(ROWS, ROUTE_BEHIND + 1 + ROUTE_AHEAD, 2),
            torch.empty(ROWS, FUTURE_STEPS, 2),
        )
    return Batch(inputs, targets, 0.5)


class OfTwo(ProcessGroup):
    """One of two processes, whose numbers the other one doubles."""

    def sum(self, values: Tensor) -> Tensor:
        return 2 * values


def train_step(monkeypatch: pytest.MonkeyPatch, model: Trainable, module: nn.Module, config: TrainConfig, part: Batch) -> None:
    """A step of the training loop of one of two processes; AdamW's own part of it is torch's, and `_read` is the one place that may
    wait.
    """
    module.requires_grad_(True)
    state = State.start(TrainTask(model, module, Manifest("planner", "", {}, 0, "", {}), None), replace(config, group=0), META)
    monkeypatch.setattr(state.optimiser, "step", lambda: None)
    monkeypatch.setattr(loop, "_read", lambda values: [1.0] * len(values))
    model.train()
    with no_host():
        loop._step(state, [part], None, Run(Path()), OfTwo(0, 2))  # pyright: ignore[reportArgumentType]
        assert state.ema is not None
        state.ema.update(module, 1)
    grads = [name for name, p in module.named_parameters() if p.grad is not None]
    assert len(grads) > 5


@pytest.mark.slow
def test_training_steps(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, forecaster, agent = made(recipe)
    world, whole, clip = forecaster.world, batch(recipe), batch(recipe, recipe.clip_frames)
    train_step(monkeypatch, agent, agent.planner, recipe.train_planner, whole)
    train_step(monkeypatch, tokenizer, tokenizer, recipe.train_tokenizer, clip)
    if world.prior is not None:
        train_step(monkeypatch, world.prior, world.prior, recipe.train_motion, whole)
    if world.flow is not None:
        train_step(monkeypatch, FlowLearner(tokenizer, world.flow), world.flow, recipe.train_flow, whole)
        learner = ReactionLearner(reacting(recipe, tokenizer))
        train_step(monkeypatch, learner, learner.net, recipe.train_reactions, whole)
    if recipe.planner.route.points:
        with META:
            head = RouteHead(recipe.planner.route, recipe.planner.latent_width, tokenizer.cells)
        train_step(monkeypatch, RouteLearner(tokenizer, head), head, recipe.train_route, whole)
    train_step(monkeypatch, forecaster, world, recipe.train_world, whole)
    with META:
        ego_mlp = EgoMLP(recipe.ego_mlp)
    train_step(monkeypatch, ego_mlp, ego_mlp, recipe.train_ego_mlp, whole)


@pytest.mark.slow
def test_encoding_forecasting_and_planning(recipe: Recipe) -> None:
    tokenizer, forecaster, agent = made(recipe)
    inputs = batch(recipe).inputs
    assert inputs.occupancy is not None
    own = None
    if recipe.world.flow.width and recipe.planner.accelerations:
        with META:
            own = Agent(reacting(recipe, tokenizer), Planner(replace(recipe.planner, per_candidate=True), tokenizer.cells), train_ii=True)
    with no_host(), torch.no_grad():
        codes = tokenizer.tokenize(inputs.occupancy, inputs.now_T_frame).codes
        tokenizer.tokenize_scene(inputs.occupancy[0], inputs.now_T_frame[0].double())
        labels = tokenizer.labels(tokenizer.latent_of(codes))
        forecast, imagined = forecaster.forecast(inputs, (0, FUTURE_STEPS))
        plans = [agent.plan(inputs, ii) for ii in (False, True)]
        if own is not None:
            plans.append(own.plan(inputs, ii=True))
    assert codes.shape == (ROWS, sum(tokenizer.quantiser.level_cells))
    assert labels.shape == (ROWS, *recipe.tokenizer.grid.shape)
    assert forecast.shape == (ROWS, 2, *recipe.tokenizer.grid.shape)
    assert imagined.latents.shape == (ROWS, FUTURE_STEPS, recipe.world.width, *recipe.tokenizer.latent_size)
    assert [plan.shape for plan in plans] == [(ROWS, FUTURE_STEPS, 2)] * len(plans)


@pytest.mark.slow
def test_the_closed_loop_waits_for_plans_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observer bring occupancy and poses of scenes to the device; what is made of them there is not waited for before the plan is read."""
    tokenizer, _, agent = made(RECIPES["tiny"]())
    town = Town(TownConfig(train_scenes=2, keyframes=14))
    passes: list[str] = []
    for owner, name in ((tokenizer, "encode"), (tokenizer, "align"), (tokenizer.quantiser, "forward")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name), passes))
    monkeypatch.setattr(observer, "device", lambda: META)
    inputs = observer.Observer(tokenizer).observe([DrivenScene(town, name) for name in town.scene_names("train")])
    assert len(passes) % 3 == 0
    assert len(passes) > 0
    assert inputs.codes is not None
    with no_host():
        plan = agent.plan(inputs, ii=True)
    assert plan.shape == (2, FUTURE_STEPS, 2)


def watched(run: Callable[..., object], passes: list[str]) -> Callable[..., object]:
    """A function that must do without the host."""

    def again(*given: Any) -> object:
        passes.append(run.__name__)
        with no_host():
            return run(*given)

    return again


def test_copies_of_the_present_and_counts_of_voxels() -> None:
    """What evaluation makes of grids where they lie."""
    grid, (now,) = GridSpec((8, 8, 4)), torch.empty(1, ROWS, 8, 8, 4, dtype=torch.uint8, device="meta")
    with no_host():
        copied = copy_warped(now, torch.empty(ROWS, 3, 4, 4, device="meta"), grid)
        counts = confusion(copied[:, 0], now)
    assert copied.shape == (ROWS, 3, 8, 8, 4)
    assert counts.shape == (CLASSES, CLASSES)


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        (lambda x: x + x.new_tensor([1.0, 2.0, 3.0]), "new_tensor"),
        (lambda x: x * torch.tensor(2.0), "on the host"),
        (lambda x: x + torch.ones(3).to(x.device), "aten.ones.default on the host"),
        (lambda x: torch.linalg.inv(x), "linalg_check_errors"),
        (lambda x: x[:, [0, 2]], "list or a mask"),
    ],
)
def test_a_constant_from_the_host_is_found_where_it_is_planted(
    planted: Callable[[Tensor], Tensor], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, maps, poses = CellGrid((4, 4), (0.0, 0.0), 1.0), torch.empty(1, 2, 4, 4, device="meta"), torch.empty(1, 4, 4, device="meta")
    with no_host():
        cells.warp(maps, poses)
    seen_from = CellGrid.seen_from

    def slower(self: CellGrid, src_T_dst: Tensor) -> Tensor:
        planted(src_T_dst[:, :3, :3])
        return seen_from(self, src_T_dst)

    monkeypatch.setattr(CellGrid, "seen_from", slower)
    with pytest.raises(AssertionError, match=told), no_host():
        cells.warp(maps, poses)


def test_a_constant_in_a_training_step_is_found_where_it_is_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loss, in the sum over processes, and in the average of the weights."""
    recipe = RECIPES["tiny"]()
    with META:
        model = EgoMLP(recipe.ego_mlp)
    part = batch(recipe)
    train_step(monkeypatch, model, model, recipe.train_ego_mlp, part)
    for owner, name in ((EgoMLP, "loss"), (loop, "_summed"), (EMA, "update")):
        with monkeypatch.context() as planted:
            planted.setattr(owner, name, slower(getattr(owner, name), model))
            with pytest.raises(AssertionError, match="on the host"):
                train_step(monkeypatch, model, model, recipe.train_ego_mlp, part)


def slower(whole: Callable[..., object], model: nn.Module) -> Callable[..., object]:
    """A function that brings a number to the device first."""

    def run(*given: Any) -> object:
        torch.ones(1).to(next(model.parameters()).device)
        return whole(*given)

    return run


@pytest.mark.parametrize(
    "planted", [lambda x: x.sum().item(), lambda x: bool((x > 0).any()), lambda x: x.unique(), lambda x: x[x > 0], lambda x: x.nonzero()]
)
def test_waiting_for_a_result_is_found(planted: Callable[[Tensor], object]) -> None:
    """Also in a backward pass."""
    with pytest.raises((AssertionError, RuntimeError)), no_host():
        planted(torch.empty(3, device="meta"))
    x = torch.empty(3, device="meta", requires_grad=True)
    made = x * 2
    made.register_hook(planted)
    with pytest.raises((AssertionError, RuntimeError)), no_host():
        made.sum().backward()
