"""Live simulation of a recorded scene: the same road users, which react to an ego that may drive differently."""

from __future__ import annotations

import copy

from iidrive.core.errors import DataError
from iidrive.core.scene import STEP_S, Boxes
from iidrive.data.town.config import TownConfig
from iidrive.data.town.record import Cast, boxes_at, track_names
from iidrive.data.town.traffic import DT_S, EgoState
from iidrive.data.town.world import WARM_S, World, make_place, make_players


class LiveScene:
    """Simulation state of a scene. With the expert driver it continues exactly as recorded. Use `copy()` to branch it."""

    def __init__(self, config: TownConfig, world: World, keyframe: int = 0) -> None:
        """Simulate a scene up to one of its keyframes (about 3 ms per step of 0.1 s).

        `keyframe` may be -8 to -1 too, because traffic is simulated for four seconds before the first recorded keyframe.

        Raises:
            DataError: if `world` was not made with this config and version.
        """
        name = world.scene.name
        town, attempt = world.draw
        place = make_place(config, name, town)
        players = make_players(config, name, place, town, attempt) if place else None
        if players is None:
            raise DataError(f"scene {name} was made by another version of the town or with another config; generate it again.")
        self.name = name
        self.traffic = players.traffic()
        self._players = players
        self._kept = world.kept
        self._names = track_names(name, int(world.kept.sum()))
        self.time_s = -WARM_S
        for _ in range(round((WARM_S + keyframe * STEP_S) / DT_S)):
            self.step()

    @property
    def ego(self) -> EgoState:
        """Current state of the ego."""
        return self.traffic.ego

    def step(self, ego: EgoState | None = None) -> None:
        """Advance by 0.1 s. `ego` is the ego's state after the step; None to let the expert driver drive."""
        self.traffic.step(ego)
        self.time_s = round(self.time_s + DT_S, 3)

    def cast(self) -> Cast:
        """Current state of all road users except the ego."""
        return self._players.cast(self.traffic.now()).select(self._kept)

    @property
    def tracks(self) -> tuple[str, ...]:
        """Track names of the cast, as in the recorded scene."""
        return self._names

    def boxes(self) -> Boxes:
        """Current boxes within 80 m of the ego, global frame, with the track names of the recorded scene."""
        return boxes_at(self.cast(), 0, self.traffic.xy[0], self._names)

    def copy(self) -> LiveScene:
        """An independent copy of the current state."""
        other = copy.copy(self)
        other.traffic = self.traffic.copy()
        return other
