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
from iidrive.data.town.config import scene_seed
from iidrive.data.town.source import Town
from iidrive.models.tokenizer import Tokenizer
from iidrive.scoring.driving.contacts import contacts
from iidrive.scoring.driving.rollout import Rollout
from iidrive.scoring.driving.tracking import CarState, Reference, follow, reference
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
    """

    agents: Agents = "reactive"
    displace: bool = False
    go_on: bool = False
    moments: int = 0
    together: int = 16


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
    scenes, eyes, config = [starts(name) for name in names], Eyes(tokenizer), starts.config
    while active := [scene for scene in scenes if not scene.over]:
        plans = plan(eyes.look(active), active).numpy(force=True).astype(np.float64)
        states = joined_states(active)
        wanted = reference(plans, LEVER_M)
        steps = follow(states, wanted, STEPS_PER_KEYFRAME)
        for row, scene in enumerate(active):
            one = np.array([row])
            mine = Reference(wanted.xy_m[one], wanted.yaw_rad[one], wanted.speed_mps[one], wanted.curvature_pm[one])
            scene.go([step.select(one) for step in steps], mine, config.go_on)
    return [scene.rollout() for scene in scenes]


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
