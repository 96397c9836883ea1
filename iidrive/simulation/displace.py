"""Displaced starts: the ego starts beside its path, rotated, and at another speed, so that the planner must recover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.geometry import wrap_angle
from iidrive.data.town.traffic import EgoState

LATERAL_M = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
TURNED_DEG = (-10.0, -5.0, -2.0, 2.0, 5.0, 10.0)
PACES = (0.7, 1.3)
_TRIES = 100


@dataclass(frozen=True)
class Start:
    """Displacement of a start: metres to the left, rotation to the left in radians, and factor on the speed."""

    left_m: float
    turned_rad: float
    pace: float

    def displaced(self, ego: EgoState, start: EgoState) -> EgoState:
        """Displace the state `ego`, which is `start` or an earlier one. Distances from the start are multiplied by `pace`."""
        cos, sin = np.cos(start.heading_rad), np.sin(start.heading_rad)
        left = np.array([-sin, cos])
        way = self.pace * (ego.xy_m - start.xy_m)
        turn_cos, turn_sin = np.cos(self.turned_rad), np.sin(self.turned_rad)
        turned = np.array([turn_cos * way[0] - turn_sin * way[1], turn_sin * way[0] + turn_cos * way[1]])
        heading = float(wrap_angle(ego.heading_rad + self.turned_rad))
        return EgoState(start.xy_m + self.left_m * left + turned, heading, self.pace * ego.speed_mps)


def drawn(seed: tuple[int, ...], good: Callable[[Start], bool]) -> Start:
    """Draw displaced starts until one satisfies `good`.

    Raises:
        DataError: if none of a hundred does.
    """
    rng = np.random.default_rng((*seed, 16))
    for _ in range(_TRIES):
        start = Start(float(rng.choice(LATERAL_M)), float(np.deg2rad(rng.choice(TURNED_DEG))), float(rng.choice(PACES)))
        if good(start):
            return start
    raise DataError(f"none of {_TRIES} displaced starts is free and on the road (seed {seed}).")
