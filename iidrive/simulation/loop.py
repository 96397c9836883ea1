"""The loop: scenes side by side, a plan for each every half second, a controller that follows it, and others who go on every tenth.

Side by side means that the plans of all scenes are one forward pass. What comes out does not depend on which process drives which scenes: they
are always driven in the same company.
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
from iidrive.simulation.eyes import Eyes

Array = np.ndarray
Plan = Callable[[Inputs, Sequence[DrivenScene]], Tensor]
"""Inputs → paths (B,6,2) of LIDAR_TOP in the lidar frame, metres, 0.5 s apart. Only an oracle looks at the scenes."""


@dataclass(frozen=True)
class LoopConfig:
    """How scenes are driven.

    Attributes:
        agents: whether the others react to the ego, or do what they did in the recorded scene.
        displace: start beside the path, turned, at another speed.
        go_on: drive on after an at-fault contact and off the road.
        moments: moments of 0.1 s after which a drive ends; 0: with the scene.
        together: scenes that are driven side by side: their plans are one forward pass.
        delay_s: how long a plan takes: so long the car goes on by the plan before. At most the time from plan to plan.
        dropped: share of the occupancy's columns that are free in what the planner sees, drawn anew for every keyframe.
    """

    agents: Agents = "reactive"
    displace: bool = False
    go_on: bool = False
    moments: int = 0
    together: int = 16
    delay_s: float = 0.0
    dropped: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.delay_s <= STEP_S:
            raise ConfigError(f"delay_s lies between 0 and {STEP_S} s, the time from plan to plan; found {self.delay_s:g}.")
        if not 0 <= self.dropped <= 1:
            raise ConfigError(f"dropped is a share, from 0 to 1; found {self.dropped:g}.")


class Starts:
    """Scenes of a town at their starts, each made once and handed out as often as somebody is to drive it."""

    def __init__(self, town: Town, config: LoopConfig) -> None:
        self.town, self.config = town, config
        self._made: dict[str, DrivenScene] = {}

    def __call__(self, name: str) -> DrivenScene:
        """A scene at its start, the caller's own."""
        if name not in self._made:
            self._made[name] = begin(self.town, name, self.config)
        return self._made[name].copy()


def drive_scenes(names: Sequence[str], starts: Starts, plan: Plan, tokenizer: Tokenizer | None) -> list[Rollout]:
    """Drive scenes side by side. `tokenizer` makes the codes that `plan` reads; None for a planner that reads none."""
    config = starts.config
    scenes, eyes = [starts(name) for name in names], Eyes(tokenizer, config.dropped)
    late = round(config.delay_s / DT_S)
    before: dict[str, tuple[Reference, CarState]] = {}
    while active := [scene for scene in scenes if not scene.over]:
        plans = plan(eyes.look(active), active).numpy(force=True).astype(np.float64)
        wanted = reference(plans, LEVER_M)
        for row, scene in enumerate(active):
            mine, state = wanted.select(np.array([row])), scene.state
            scene.go(_followed(state, mine, before.get(scene.name), late), mine, config.go_on)
            before[scene.name] = mine, state
    return [scene.rollout() for scene in scenes]


def _followed(state: CarState, plan: Reference, before: tuple[Reference, CarState] | None, late: int) -> list[CarState]:
    """The states of one car until the next plan. For the first `late` of them it goes on by the plan before, if there was one."""
    if not late or before is None:
        return follow(state, plan, STEPS_PER_KEYFRAME)
    old, made_at = before
    waited = follow(state, old, late, made_at, STEPS_PER_KEYFRAME)
    rest = STEPS_PER_KEYFRAME - late
    return waited + (follow(waited[-1], plan, rest, state, late) if rest else [])


def drive_expert(names: Sequence[str], starts: Starts) -> list[Rollout]:
    """The same with the town's own driver at the wheel. Scenes were drawn until nobody collided, so it has no collisions by construction."""
    found = []
    for name in names:
        scene = starts(name)
        while not scene.over:
            scene.let_drive()
        found.append(scene.rollout())
    return found


def begin(town: Town, name: str, config: LoopConfig) -> DrivenScene:
    """A scene at its start, displaced if wanted: drawn again until the ego is on the road and touches nobody."""
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
