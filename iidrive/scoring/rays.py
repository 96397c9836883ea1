"""RayIoU as in SparseOcc's released evaluator (commit af4d9df8): simulated lidar rays through the true and the forecast grid.

14040 rays start at each origin (39 pitches x 360 azimuths). A ray ends in the first voxel that is not free, or in the last voxel of the grid; its
depth is the distance at which it leaves that voxel. Rays whose true voxel is free do not count. A ray is a true positive if both voxels have the
same class and their depths differ by less than a threshold of 1, 2 or 4 m.

Shape letters: g grids, o origins, r rays (of all origins together).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8

from iidrive.core.classes import FREE
from iidrive.core.errors import DataError

Array = np.ndarray

THRESHOLDS_M = (1.0, 2.0, 4.0)
GRID = (200, 200, 16)
_START_M = (-40.0, -40.0, -1.0)
_VOXEL_M = 0.4
_TOP_RAD = 0.21
"""Pitches increase in equal steps until one exceeds this."""
_MOST_STEPS = 1000


@dataclass(frozen=True)
class RayCounts:
    """Ray counts per class: true positives per threshold (`hit`), `true` and `forecast`. Add the counts of samples and processes with `+`."""

    hit: Int64[Array, "3 17"] = field(default_factory=lambda: np.zeros((len(THRESHOLDS_M), FREE), np.int64))
    true: Int64[Array, "17"] = field(default_factory=lambda: np.zeros(FREE, np.int64))
    forecast: Int64[Array, "17"] = field(default_factory=lambda: np.zeros(FREE, np.int64))

    def __add__(self, other: RayCounts) -> RayCounts:
        return RayCounts(self.hit + other.hit, self.true + other.true, self.forecast + other.forecast)

    def iou(self) -> Float64[Array, "3 17"]:
        """IoU per threshold and class, 0..1; NaN for a class that no counted ray hits."""
        union = self.true + self.forecast - self.hit
        return np.divide(self.hit, union, out=np.full(union.shape, np.nan), where=union > 0)

    def ray_iou(self) -> float:
        """Mean IoU over thresholds and over classes that a counted ray hits, 0..1; NaN if there is none."""
        iou = self.iou()
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")


def directions() -> Float32[Array, "14040 3"]:
    """Unit vectors of the rays. The first ten pitches are downward slopes of 1/1, 1/2, … 1/10; from there they increase by the last difference.
    Azimuths are 0..359 degrees."""
    pitch = [-(np.pi / 2 - np.arctan(k)) for k in range(1, 11)]
    while pitch[-1] < _TOP_RAD:
        pitch.append(pitch[-1] + (pitch[-1] - pitch[-2]))
    up, around = np.array(pitch)[:, None], np.deg2rad(np.arange(360))
    flat = np.broadcast_to(np.sin(up), (len(pitch), 360))
    return np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), flat], axis=-1).reshape(-1, 3).astype(np.float32)


def render(grids: UInt8[Array, "g 200 200 16"], origins_m: Float[Array, "o 3"]) -> tuple[UInt8[Array, "g r"], Float32[Array, "g r"]]:
    """Class and depth (metres) at which each ray ends in each grid. Origins are in the ego frame, metres; rays of the first origin come first.

    Raises:
        DataError: for grids of another shape or dtype, or origins that are not finite (o, 3).
    """
    if grids.ndim != 4 or grids.shape[1:] != GRID or grids.dtype != np.uint8:
        raise DataError(f"RayIoU needs uint8 grids of shape (g, {', '.join(map(str, GRID))}); found {grids.dtype} of shape {grids.shape}.")
    if np.ndim(origins_m) != 2 or np.shape(origins_m)[1] != 3 or not np.isfinite(origins_m).all():
        raise DataError(f"RayIoU needs finite origins of shape (o, 3) in the ego frame, metres; found shape {np.shape(origins_m)}.")
    # As in the evaluator, voxel coordinates are rounded to float32; everything before and after is float64.
    origin = torch.from_numpy(np.asarray(origins_m, np.float64))[:, None]
    start, ends = torch.tensor(_START_M), origin + torch.from_numpy(directions())
    voxel = torch.tensor([_VOXEL_M] * 3)
    begin = ((origin - start) / voxel).float().expand(ends.shape).reshape(-1, 3).double().numpy()
    reach = ((ends - start) / voxel).float().reshape(-1, 3).double().numpy() - begin
    return _walk(grids, begin, reach / np.sqrt((reach**2).sum(axis=1, keepdims=True)))


def _walk(grids: Array, begin: Float64[Array, "r 3"], way: Float64[Array, "r 3"]) -> tuple[Array, Array]:
    n, size = len(begin), np.array(GRID)
    stride = np.array([GRID[1] * GRID[2], GRID[2], 1])
    flat = grids.reshape(len(grids), -1)
    label = np.broadcast_to(flat[:, :1], (len(grids), n)).copy()
    depth = np.full((len(grids), n), -1.0, np.float32)
    open_ = np.ones((len(grids), n), bool)
    at = np.trunc(begin).astype(np.int64)
    turn = np.where(way >= 0, 1, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cross = np.where(way != 0, (at + (turn > 0) - begin) / way, np.inf)
        pace = np.where(way != 0, turn / way, np.inf)
    ray, been = np.arange(n), np.zeros(n, bool)
    for _ in range(_MOST_STEPS):
        inside = np.all((at >= 0) & (at < size), axis=1).reshape(len(ray))
        # Drop rays that have left the grid or have ended in all grids.
        go = (inside | ~been) & np.any(open_[:, ray], axis=0)
        if not go.all():
            ray, been, inside, at, turn, cross, pace = (x[go] for x in (ray, been, inside, at, turn, cross, pace))
        if not len(ray):
            break
        axis = _next(cross)
        rows = np.arange(len(ray))
        leave = cross[rows, axis]
        voxel = np.where(inside, at @ stride, 0)
        for g in range(len(grids)):
            live = np.flatnonzero(open_[g, ray] & inside)
            here = ray[live]
            label[g, here], depth[g, here] = flat[g, voxel[live]], leave[live]
            open_[g, here] = label[g, here] == FREE
        been |= inside
        at[rows, axis] += turn[rows, axis]
        cross[rows, axis] += pace[rows, axis]
    return label, depth * np.float32(_VOXEL_M)


def _next(cross: Float64[Array, "r 3"]) -> Int64[Array, "r"]:
    """The axis whose voxel border the ray crosses first. Ties are resolved in the order z, y, x."""
    x, y, z = cross.T
    return np.where((x < y) & (x < z), 0, np.where((y < z) & ~(x < y), 1, 2))


def count_rays(
    gt: UInt8[Array, "200 200 16"],
    pred: UInt8[Array, "200 200 16"],
    origins_m: Float[Array, "o 3"],
    counted: Bool[Array, "r"] | None = None,
) -> RayCounts:
    """Ray counts of one sample; rays where `counted` is false are left out. Raises DataError as `render` does."""
    (true, forecast), (depth, found) = render(np.stack([gt, pred]), origins_m)
    use = true != FREE
    if counted is not None:
        use &= counted
    true, forecast, gap = true[use], forecast[use], np.abs(found[use] - depth[use])
    same = true == forecast
    hit = np.stack([np.bincount(true[same & (gap < t)], minlength=256)[:FREE] for t in THRESHOLDS_M])
    return RayCounts(hit, np.bincount(true, minlength=256)[:FREE], np.bincount(forecast, minlength=256)[:FREE])
