"""A scene set going again: the same road users as in the recorded scene, who now react to an ego that may drive otherwise."""

from __future__ import annotations

import copy

from iidrive.core.errors import DataError
from iidrive.core.scene import STEP_S, Boxes
from iidrive.data.town.config import TownConfig
from iidrive.data.town.record import Cast, boxes_at, track_names
from iidrive.data.town.traffic import DT_S, EgoState
from iidrive.data.town.world import WARM_S, World, make_place, make_players


class LiveScene:
    """The moment of a scene that its traffic has reached. With its own driver at the wheel it goes on exactly as recorded.

    Two branches of a scene are two copies: `scene.copy()`.
    """

    def __init__(self, config: TownConfig, world: World, keyframe: int = 0) -> None:
        """The scene at one of its keyframes; its traffic is simulated up to there (some 3 ms a step of 0.1 s). The last eight keyframes before the
        recorded ones, -8 to -1, are there too: traffic moves for four seconds before a scene begins.

        Raises:
            DataError: for a world that this config does not make.
        """
        name = world.scene.name
        town, attempt = world.draw
        place = make_place(config, name, town)
        players = make_players(config, name, place, town, attempt) if place else None
        if players is None:
            raise DataError(f"scene {name} was made by another version of the town or with another config; make it again.")
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
        """Where the ego is now."""
        return self.traffic.ego

    def step(self, ego: EgoState | None = None) -> None:
        """Go on by 0.1 s. `ego` is where the ego is then; without it the town's own driver drives."""
        self.traffic.step(ego)
        self.time_s = round(self.time_s + DT_S, 3)

    def cast(self) -> Cast:
        """Everyone but the ego, of this one moment."""
        return self._players.cast(self.traffic.now()).select(self._kept)

    @property
    def tracks(self) -> tuple[str, ...]:
        """The names of everyone in the cast, as in the recorded scene."""
        return self._names

    def boxes(self) -> Boxes:
        """Everyone within 80 m of the ego now, in the global frame, with the tracks that they have in the recorded scene."""
        return boxes_at(self.cast(), 0, self.traffic.xy[0], self._names)

    def copy(self) -> LiveScene:
        """The same moment once more; neither of the two influences the other from then on."""
        other = copy.copy(self)
        other.traffic = self.traffic.copy()
        return other
