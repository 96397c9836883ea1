"""Models with a planted leak, and models without one, for the tests of the audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from iidrive.analysis.leakage.counterfactual import Wrapped
from iidrive.analysis.leakage.subject import Make, Pipeline, forecast, planned, tokenizing
from iidrive.core.batch import Batch
from iidrive.core.scene import Command, Pose, Scene
from iidrive.data.source import Source, true_path
from iidrive.data.town.source import Town
from iidrive.models.baselines import KINEMATIC, EgoMLP, EgoMLPConfig, constant_velocity, copy_warped, ctrv
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner, PlannerConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes

RECIPE = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=2, keyframes=12))
TOWN = Town(RECIPE.town)
GRID = RECIPE.tokenizer.grid


def _driver(planner: PlannerConfig) -> Agent:
    torch.manual_seed(0)
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    forecaster = Forecaster(tokenizer, WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid))
    agent = Agent(forecaster, Planner(planner, tokenizer.cells), True)
    for weight in agent.planner.parameters():  # corrections are initialised to 0; here every input must affect the plan
        weight.data += 0.05 * torch.randn_like(weight)
    return agent.eval()


DRIVER = _driver(replace(RECIPE.planner, accelerations=()))
CHOOSER = _driver(RECIPE.planner)
ENCODE = tokenizing(DRIVER.forecaster.tokenizer)


class _Changed(Wrapped):
    """A source whose keyframe i is made by `change(scene, i)`."""

    def __init__(self, real: Source, **change: Callable[[Scene, int], object]) -> None:
        super().__init__(real)
        self.change = change

    def scene(self, name: str) -> Scene:
        scene = self.real.scene(name)
        made = ({key: f(scene, i) for key, f in self.change.items()} for i in range(len(scene)))
        return replace(scene, keyframes=tuple(replace(k, **m) for k, m in zip(scene.keyframes, made, strict=True)))


class _NextOccupancy(Wrapped):
    """Occupancy of the next keyframe."""

    def occupancy(self, scene: Scene, index: int, spec):  # pyright: ignore[reportMissingParameterType]
        return self.real.occupancy(scene, min(index + 1, len(scene) - 1), spec)


class _NextBoxes(Wrapped):
    """Occupancy with a car drawn at every box of the next keyframe."""

    def occupancy(self, scene: Scene, index: int, spec):  # pyright: ignore[reportMissingParameterType]
        grid = self.real.occupancy(scene, index, spec)
        labels = grid.semantics.copy()
        later = scene.keyframes[min(index + 1, len(scene) - 1)].boxes.centre_m
        labels.ravel()[: 40 * len(later)] = 4
        return replace(grid, semantics=labels)


class _Nearest(Wrapped):
    """Occupancy with as many cars drawn as the present boxes are metres away from the ego, or as the map has metres to its corner."""

    def __init__(self, real: Source, reads_map: bool) -> None:
        super().__init__(real)
        self.reads_map = reads_map

    def occupancy(self, scene: Scene, index: int, spec):  # pyright: ignore[reportMissingParameterType]
        grid = self.real.occupancy(scene, index, spec)
        labels, now = grid.semantics.copy(), scene.keyframes[index]
        points = np.array([[*scene.map.layers["drivable_area"].bounds[:2]]]) if self.reads_map else now.boxes.centre_m[:, :2]
        away = np.linalg.norm(points - now.global_T_ego.translation_m[:2], axis=1)
        labels.ravel()[: round(float(away.sum()))] = 4
        return replace(grid, semantics=labels)


def _smoothed(scene: Scene, i: int) -> Pose:
    """A pose filter that looks one keyframe ahead."""
    near = scene.keyframes[i : i + 2]
    middle = np.mean([k.global_T_ego.translation_m for k in near], axis=0)
    return Pose(scene.keyframes[i].global_T_ego.rotation, middle)


def _turns(scene: Scene, i: int) -> Command:
    """nuScenes' command: the direction of the true path after 3 s."""
    side = true_path(scene, i).points_m[-1, 0]
    return Command("right" if side > 0.5 else "left" if side < -0.5 else "straight", "route")


def _next_command(scene: Scene, i: int) -> Command:
    return scene.keyframes[min(i + 1, len(scene) - 1)].command


def _middle_time(scene: Scene, i: int) -> int:
    """A time stamp between this keyframe and the next."""
    near = scene.keyframes[i : i + 2]
    return sum(k.timestamp_us for k in near) // len(near)


def _commanded(batch: Batch) -> dict[str, Tensor]:
    """Constant velocity, shifted by the command."""
    return {"plan": constant_velocity(batch.inputs) + batch.inputs.command[:, None, None]}


def _planned(batch: Batch) -> dict[str, Tensor]:
    return {"plan": DRIVER.plan(batch.inputs, True)}


def _from_target(batch: Batch) -> dict[str, Tensor]:
    return {"plan": 0.5 * ctrv(batch.inputs) + 0.5 * batch.targets.path}


def _by_occupancy(batch: Batch) -> dict[str, Tensor]:
    """Constant turn rate and velocity, shifted by the mean label of the present occupancy."""
    assert batch.inputs.occupancy is not None
    return {"plan": ctrv(batch.inputs) + batch.inputs.occupancy[:, -1].float().mean((1, 2, 3))[:, None, None]}


def _first_frame(batch: Batch) -> dict[str, Tensor]:
    """Where nothing came before, the velocity is that of the next pose (II-World's converter)."""
    inputs = batch.inputs
    steps = torch.arange(1, 7)[None, :, None]
    return {"plan": torch.where(inputs.known[:, -2, None, None], ctrv(inputs), batch.targets.path[:, :1] * steps)}


def _true_motion(batch: Batch) -> dict[str, Tensor]:
    """The decoder is given the true future motion (II-World's default mode)."""
    inputs = batch.inputs
    assert inputs.occupancy is not None
    return {"forecast": copy_warped(inputs.occupancy[:, -1], batch.targets.now_T_frame, GRID)}


def _future_codes(batch: Batch) -> dict[str, Tensor]:
    assert batch.targets.codes is not None
    return {"plan": ctrv(batch.inputs) + batch.targets.codes[:, :, :5].float().mean((1, 2))[:, None, None]}


def _batch_mean(batch: Batch) -> dict[str, Tensor]:
    """Batch normalisation left in training mode."""
    plan = ctrv(batch.inputs)
    return {"plan": plan - 0.1 * plan.mean(0)}


def _sorted(batch: Batch) -> dict[str, Tensor]:
    plan = constant_velocity(batch.inputs)
    return {"plan": plan[plan[:, -1, 1].argsort()]}


def _by_place(batch: Batch) -> dict[str, Tensor]:
    return {"plan": ctrv(batch.inputs) + 0.1 * torch.arange(len(batch.inputs.tokens))[:, None, None]}


class _Remembers:
    """Blends in the last call's plan."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        plan = ctrv(batch.inputs)
        out = plan if self.last is None or len(self.last) != len(plan) else 0.9 * plan + 0.1 * self.last
        self.last = plan
        return {"plan": out}


def _memorised() -> Callable[[Batch], dict[str, Tensor]]:
    known = {}
    for name in TOWN.scene_names("test"):
        scene = TOWN.scene(name)
        known |= {k.token: torch.from_numpy(true_path(scene, i).points_m) for i, k in enumerate(scene.keyframes)}
    return lambda batch: {"plan": torch.stack([known[token] for token in batch.inputs.tokens])}


def _early(source: Source, name: str) -> np.ndarray:
    """Codes made in the wrong order: each keyframe's are the next one's."""
    codes = ENCODE(source, name)
    return codes[np.minimum(np.arange(len(codes)) + 1, len(codes) - 1)]


@cache
def _codes(name: str) -> np.ndarray:
    return ENCODE(TOWN, name)


def _stored(name: str, indices: np.ndarray) -> np.ndarray:
    """A cache of them."""
    return _codes(name)[np.minimum(indices + 1, len(_codes(name)) - 1)]


@dataclass(frozen=True)
class Planted:
    """A model with a leak, and the input that must be named."""

    make: Make
    named: str


def changed(**change: Callable[[Scene, int], object]) -> Callable[[Source], Source]:
    """A source on top of another, with some fields of keyframes computed by these functions."""
    return partial(_Changed, **change)


PLANTED: dict[str, Planted] = {
    "plan reads the true path": Planted(lambda: Pipeline(_from_target), "later poses"),
    "velocity of the next pose at a scene's start": Planted(lambda: Pipeline(_first_frame), "later poses"),
    "poses smoothed with the next one": Planted(
        lambda: Pipeline(lambda b: {"plan": constant_velocity(b.inputs)}, wrap=changed(global_T_ego=_smoothed)), "later poses"
    ),
    "command made from the true path": Planted(lambda: Pipeline(_commanded, wrap=changed(command=_turns)), "later poses"),
    "command of the next keyframe": Planted(lambda: Pipeline(_commanded, wrap=changed(command=_next_command)), "later commands"),
    "time of the next keyframe": Planted(
        lambda: Pipeline(lambda b: {"plan": constant_velocity(b.inputs)}, wrap=changed(timestamp_us=_middle_time)), "later times"
    ),
    "occupancy of the next keyframe": Planted(
        lambda: Pipeline(
            _by_occupancy,
            occupancy=GRID,
            wrap=_NextOccupancy,
        ),
        "later occupancy",
    ),
    "boxes of the next keyframe": Planted(
        lambda: Pipeline(
            _by_occupancy,
            occupancy=GRID,
            wrap=_NextBoxes,
        ),
        "later boxes",
    ),
    "boxes of the present": Planted(
        lambda: Pipeline(
            _by_occupancy,
            occupancy=GRID,
            wrap=partial(_Nearest, reads_map=False),
        ),
        "boxes up to now",
    ),
    "the map": Planted(
        lambda: Pipeline(
            _by_occupancy,
            occupancy=GRID,
            wrap=partial(_Nearest, reads_map=True),
        ),
        "map and route",
    ),
    "tokens made a keyframe early": Planted(lambda: Pipeline(_planned, _early), "tokens that saw later keyframes"),
    "stored tokens that saw the future": Planted(lambda: Pipeline(_planned, ENCODE, _stored), "tokens that saw later keyframes"),
    "future tokens in the batch": Planted(lambda: Pipeline(_future_codes, ENCODE), "targets of the batch"),
    "true future motion in the decoder": Planted(lambda: Pipeline(_true_motion, occupancy=GRID), "later poses"),
    "mean over the batch": Planted(lambda: Pipeline(_batch_mean), "other samples of the batch"),
    "plans sorted within the batch": Planted(lambda: Pipeline(_sorted), "other samples of the batch"),
    "place in the batch": Planted(lambda: Pipeline(_by_place), "place in the batch"),
    "state carried between calls": Planted(lambda: Pipeline(_Remembers()), "state carried between calls"),
    "paths looked up by sample token": Planted(lambda: Pipeline(_memorised()), "sample tokens and scene names"),
}


def _mlp() -> nn.Module:
    torch.manual_seed(0)
    return EgoMLP(EgoMLPConfig(hidden=16)).eval().requires_grad_(False)


MLP = _mlp()

CLEAN: dict[str, Make] = {
    "still": lambda: Pipeline(lambda b: {"plan": KINEMATIC["still"](b.inputs)}),
    "constant velocity": lambda: Pipeline(lambda b: {"plan": constant_velocity(b.inputs)}),
    "constant turn rate and velocity": lambda: Pipeline(lambda b: {"plan": ctrv(b.inputs)}),
    "ego-status MLP": lambda: Pipeline(lambda b: {"plan": MLP.plan(b.inputs)}),  # pyright: ignore
    "planner that chooses": lambda: Pipeline(lambda b: planned(CHOOSER, b, True), ENCODE),
    "planner": lambda: Pipeline(lambda b: {"plan": DRIVER.plan(b.inputs, False)}, ENCODE),
    "planner with ii": lambda: Pipeline(_planned, ENCODE),
    "world model": lambda: Pipeline(lambda b: forecast(DRIVER.forecaster, b), ENCODE),
    "planner with its stored tokens": lambda: Pipeline(_planned, ENCODE, lambda name, at: _codes(name)[at]),
    "copied occupancy": lambda: Pipeline(lambda b: {"forecast": b.inputs.occupancy[:, -1:]}, occupancy=GRID),  # pyright: ignore
}
