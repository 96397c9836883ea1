"""Types of lidar sweeps and ground heights, and the interface of sources that provide them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M
from iidrive.core.scene import Scene

Array = np.ndarray

_BODY_MARGIN_M = 0.4


def read_cells(table: Shaped[Array, "*s"], cell: Int[Array, "n d"], outside: float | bool) -> Shaped[Array, "n"]:
    """Values of a table at cells given by their indices; `outside` for cells beyond its edges."""
    within = ((cell >= 0) & (cell < np.array(table.shape))).all(1)
    out = np.full(len(cell), outside)
    out[within] = table[tuple(cell[within].T)]
    return out


def hits_ego(ego_m: Float[Array, "n 3"]) -> Bool[Array, "n"]:
    """Mask of points (ego frame, metres) that were reflected by the ego vehicle: within its outline in bird's-eye view."""
    away = np.abs(ego_m[:, :2] - (EGO_CENTRE_M, 0.0))
    return np.asarray((away <= np.array(EGO_SIZE_M) / 2 + _BODY_MARGIN_M).all(1))


@dataclass(frozen=True)
class Sweep:
    """One lidar sweep: time, points (n,3) and sensor position (3,), both in the global frame, metres."""

    timestamp_us: int
    points_m: Float[Array, "n 3"]
    origin_m: Float[Array, "3"]


class Ground(Protocol):
    """Ground heights."""

    def __call__(self, xy_m: Float[Array, "n 2"]) -> Float[Array, "n"]:
        """Heights z at positions x, y, global frame, metres; NaN if unknown."""
        ...


@runtime_checkable
class HasSweeps(Protocol):
    """A source that may have lidar sweeps and ground heights."""

    def sweeps(self, scene: Scene, every: int) -> Iterator[Sweep]:
        """Every `every`-th sweep of a scene, in order of time; none if there are no sweep files. Raises DataError for a damaged file."""
        ...

    def ground(self, scene: Scene) -> Ground | None:
        """The ground heights of the dataset; None if it has none."""
        ...
