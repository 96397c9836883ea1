"""Lidar sweeps and ground heights of an Argoverse 2 log.

LOG/sensors/lidar/<time in nanoseconds>.feather                points of both lidars (x, y, z) in the egovehicle frame at that time
LOG/map/<log>_ground_height_surface____<city>.npy              heights (y, x), NaN if unknown
LOG/map/<log>___img_Sim2_city.json                             city to pixels: s * (R @ xy + t)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.json_text import all_numbers, read_json
from iidrive.core.untrusted.npz import read_npy
from iidrive.data.av2.log import POSES, poses
from iidrive.data.av2.tables import AGAIN, FARTHEST_M, Table
from iidrive.data.derive.sweeps import Sweep, hits_ego, read_cells

Array = np.ndarray

LIMIT = 1 << 28
"""Maximum size of a file of heights, bytes."""
_HIGHEST_M = 1e4


def read_sweeps(folder: Path, every: int, axle_T_lidar: Float[Array, "4 4"], ego_T_axle: Float[Array, "4 4"]) -> Iterator[Sweep]:
    """Every n-th sweep of a log; none without `sensors/lidar`. Rays are assumed to start at the upper lidar.

    Raises:
        DataError: naming the file, if a sweep is damaged, is not named by its time, or has no pose.
    """
    files = sorted((folder / "sensors" / "lidar").glob("*.feather"))
    for path in files:
        if not path.stem.isdecimal() or int(path.stem) >= 1 << 63:
            raise DataError(f"{printable_line(str(path))}: a sweep is named by its moment in nanoseconds. {AGAIN}")
    files = sorted(files, key=lambda path: int(path.stem))[::every]
    if not files:
        return
    at_ns = np.array([int(path.stem) for path in files], np.int64)
    for path, time_ns, pose in zip(files, at_ns, poses(folder / POSES, at_ns), strict=True):
        points = Table(path).numbers(("x", "y", "z"))
        points = points[~hits_ego(geometry.apply(ego_T_axle, points))]
        yield Sweep(int(time_ns // 1000), geometry.apply(pose, points), geometry.apply(pose, axle_T_lidar[:3, 3]))


@dataclass(frozen=True)
class GroundHeights:
    """Heights (rows, columns) on pixels of the city: pixel = scale * (rotation @ xy + shift)."""

    z_m: Float[Array, "r c"]
    rotation: Float[Array, "2 2"]
    shift: Float[Array, "2"]
    scale: float

    def __call__(self, xy_m: Float[Array, "n 2"]) -> Float[Array, "n"]:
        """As `derive.sweeps.Ground`."""
        column, row = np.floor(self.scale * (xy_m @ self.rotation.T + self.shift)).astype(np.int64).T
        return read_cells(self.z_m, np.stack([row, column], -1), np.nan)


def read_ground(folder: Path) -> GroundHeights | None:
    """The ground heights of a log's map; None if it has none.

    Raises:
        DataError: naming the file, if it is damaged or the position of its pixels is missing.
    """
    files = sorted((folder / "map").glob("*_ground_height_surface____*.npy"))
    if not files:
        return None
    heights = read_npy(files[0], LIMIT)
    where = printable_line(str(files[0]))
    if heights.ndim != 2 or heights.dtype.kind != "f" or (np.abs(heights) > _HIGHEST_M).any():
        raise DataError(
            f"{where}: expected heights of at most {_HIGHEST_M:g} m in rows and columns; found {heights.dtype} {heights.shape}. {AGAIN}"
        )
    place = next(iter(sorted((folder / "map").glob("*___img_Sim2_city.json"))), None)
    if place is None:
        raise DataError(f"{where}: where its pixels lie, a file *___img_Sim2_city.json beside it says, and there is none. {AGAIN}")
    raw = read_json(place)
    try:
        rotation, shift, scale = np.array(raw["R"], float).reshape(2, 2), np.array(raw["t"], float).reshape(2), float(raw["s"])
        given = np.array([*rotation.ravel(), *shift, scale])
        if not all_numbers([raw["R"], raw["t"], [raw["s"]]]):
            raise ValueError("something else than numbers")
        if not ((np.abs(given) <= FARTHEST_M).all() and scale > 0):
            raise ValueError("NaN or numbers that are too large")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{printable_line(str(place))}: expected R, t and s ({printable(str(error), 80)}). {AGAIN}") from error
    return GroundHeights(heights.astype(np.float64), rotation, shift, scale)
