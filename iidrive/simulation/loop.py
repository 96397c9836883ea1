"""The closed loop: the planner plans every 0.5 s, and a controller follows the plan while all road users are simulated in steps of 0.1 s.

Scenes are driven in groups, and the plans of a group are one forward pass. The groups do not depend on the number of processes, so neither
do the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.scene import STEP_S
from iidrive.data.town.config import scene_seed
from iidrive.data.town.source import Town
from iidrive.models.tokenizer import Tokenizer
from iidrive.scoring.driving.contacts import contacts
from iidrive.scoring.driving.rollout import Rollout
from iidrive.scoring.driving.tracking import DT_S, CarState, Reference, follow, reference
from iidrive.simulation.displace import Start, drawn
from iidrive.simulation.driven import LEVER_M, STEPS_PER_KEYFRAME, Agents, DrivenScene
from iidrive.simulation.observer import Observer
from iidrive.simulation.perception import Perception

Array = np.ndarray
Plan = Callable[[Inputs, Sequence[DrivenScene]], Tensor]
"""(inputs, scenes) → paths (B,6,2) of LIDAR_TOP in the lidar frame, metres, 0.5 s apart. Only an oracle uses the scenes."""


@dataclass(frozen=True)
class LoopConfig:
    """Options of the closed loop.

    Attributes:
        agents: other road users react to the ego (reactive), or replay the recorded scene (replay).
        displace: start beside the path, rotated, at another speed.
        go_on: continue after an at-fault collision and off the road.
        moments: length of a drive in states 0.1 s apart; 0 for the whole scene.
        together: scenes per group; the plans of a group are one forward pass.
        delay_s: planning time, seconds. Until then the ego follows the previous plan. At most the time between two plans.
        dropped: fraction of occupancy columns set to free in the planner's input, drawn again for every keyframe.
        depth_error: standard deviation of the error of a road user's distance in the planner's input, as a fraction of the distance.
    """

    agents: Agents = "reactive"
    displace: bool = False
    go_on: bool = False
    moments: int = 0
    together: int = 16
    delay_s: float = 0.0
    dropped: float = 0.0
    depth_error: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_s <= STEP_S:
            raise ConfigError(f"delay_s must be from 0 to {STEP_S} s, the time between two plans; found {self.delay_s:g}.")
        if not 0 <= self.dropped <= 1:
            raise ConfigError(f"dropped must be from 0 to 1; found {self.dropped:g}.")
        if not 0 <= self.depth_error <= 1:
            raise ConfigError(f"depth_error must be from 0 to 1; found {self.depth_error:g}.")


class Starts:
    """Scenes at their start states. Each is made once; every call returns a copy."""

    def __init__(self, town: Town, config: LoopConfig) -> None:
        self.town, self.config = town, config
        self._made: dict[str, DrivenScene] = {}

    def __call__(self, name: str) -> DrivenScene:
        """A copy of a scene at its start."""
        if name not in self._made:
            self._made[name] = begin(self.town, name, self.config)
        return self._made[name].copy()


def drive_scenes(names: Sequence[str], starts: Starts, plan: Plan, tokenizer: Tokenizer | None) -> list[Rollout]:
    """Drive a group of scenes.

    Args:
        names: names of the scenes.
        starts: their start states.
        plan: the planner.
        tokenizer: encodes the occupancy for the planner; None for a planner that reads no codes.
    """
    config = starts.config
    scenes, observer = [starts(name) for name in names], Observer(tokenizer, Perception(config.dropped, config.depth_error))
    late = round(config.delay_s / DT_S)
    before: dict[str, tuple[Reference, CarState]] = {}
    while active := [scene for scene in scenes if not scene.over]:
        plans = plan(observer.observe(active), active).numpy(force=True).astype(np.float64)
        wanted = reference(plans, LEVER_M)
        for row, scene in enumerate(active):
            mine, state = wanted.select(np.array([row])), scene.state
            scene.go(_followed(state, mine, before.get(scene.name), late), mine, config.go_on)
            before[scene.name] = mine, state
    return [scene.rollout() for scene in scenes]


def _followed(state: CarState, plan: Reference, before: tuple[Reference, CarState] | None, late: int) -> list[CarState]:
    """States of one car until the next plan, 0.1 s apart. It follows the previous plan, if there is one, for the first `late` of them."""
    if not late or before is None:
        return follow(state, plan, STEPS_PER_KEYFRAME)
    old, made_at = before
    waited = follow(state, old, late, made_at, STEPS_PER_KEYFRAME)
    rest = STEPS_PER_KEYFRAME - late
    return waited + (follow(waited[-1], plan, rest, state, late) if rest else [])


def drive_expert(names: Sequence[str], starts: Starts) -> list[Rollout]:
    """Drive scenes with the town's expert driver. It has no collisions by construction, because only scenes without any were kept."""
    found = []
    for name in names:
        scene = starts(name)
        while not scene.over:
            scene.step_expert()
        found.append(scene.rollout())
    return found


def begin(town: Town, name: str, config: LoopConfig) -> DrivenScene:
    """A scene at its start. With `config.displace` the start is drawn until the ego is on the road and touches no road user."""
    moments = config.moments or None
    if not config.displace:
        return DrivenScene(town, name, config.agents, None, moments)

    def good(start: Start) -> bool:
        scene = DrivenScene(town, name, config.agents, start, moments)
        begun = scene.rollout()
        return not scene.road.off(begun.ego.corners_m).any() and not contacts(begun.ego, begun.others, scene.road)

    return DrivenScene(town, name, config.agents, drawn(scene_seed(town.config, name), good), moments)


def joined_states(scenes: Sequence[DrivenScene]) -> CarState:
    """The egos of several scenes as one state."""
    return CarState(*(np.concatenate([getattr(scene.state, name) for scene in scenes]) for name in CarState.__dataclass_fields__))
