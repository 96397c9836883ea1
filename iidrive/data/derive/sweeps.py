"""What a lidar measured over a scene, and which source can give it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from iidrive.core.scene import Scene

Array = np.ndarray


@dataclass(frozen=True)
class Sweep:
    """One turn of a lidar: its time, its points (n,3) and where it stood (3,), both in the global frame, metres."""

    timestamp_us: int
    points_m: Float[Array, "n 3"]
    origin_m: Float[Array, "3"]


class Ground(Protocol):
    """The height of the ground."""

    def __call__(self, xy_m: Float[Array, "n 2"]) -> Float[Array, "n"]:
        """Its z in the global frame at places of the global frame; NaN where it is not known."""
        ...


@runtime_checkable
class HasSweeps(Protocol):
    """A source whose copy may hold lidar sweeps and the height of the ground."""

    def sweeps(self, scene: Scene, every: int) -> Iterator[Sweep]:
        """Every `every`-th sweep of a scene, in order of time; none where the copy has no sweep files. Raises DataError for a damaged file."""
        ...

    def ground(self, scene: Scene) -> Ground | None:
        """The height of the ground as the dataset gives it; None where it does not."""
        ...
