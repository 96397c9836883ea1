"""Static surroundings of a scene from its lidar sweeps: points, cubes that rays passed, and ground heights, in the global frame.

Shapes: n points, X, Y, Z cubes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from iidrive.core.scene import GridSpec, Scene
from iidrive.data.derive.objects import BoxesOverTime, inside, thinned
from iidrive.data.derive.sweeps import Sweep, read_cells

Array = np.ndarray

REACH_M = 57.0
"""Surroundings reach this far beyond the ego's path: the corner of an 80 m grid."""
BELOW_M, ABOVE_M = 4.0, 9.0
"""Surroundings reach this far below and above the ego's heights."""
BOX_MARGIN_M = 0.1
THIN_M = 0.1
"""One static point and one point of each object are kept per cube of this edge length, metres."""
GROUND_CELL_M = 1.6
GROUND_POINTS = 5
"""Minimum number of points of a ground cell."""
LOWEST = 5.0
"""The ground height of a cell is this percentile of its points' heights, because reflections cause points below the ground."""
STEEPEST = 0.2
"""Largest slope of the ground, so that objects which hide it do not raise it."""
GROUND_KNOWN_M = 4.0
"""The ground is known up to this distance from a cell with points, metres."""
_SEVERAL = 1 << 20


@dataclass(frozen=True)
class GroundMap:
    """Ground heights on a lattice: `z_m` (X,Y), NaN if unknown, starting at the corner `lower_m`."""

    z_m: Float[Array, "X Y"]
    lower_m: tuple[float, float]
    cell_m: float

    def __call__(self, xy_m: Float[Array, "n 2"]) -> Float[Array, "n"]:
        """As `sweeps.Ground`."""
        cell = np.floor((xy_m - np.array(self.lower_m)) / self.cell_m).astype(np.int64)
        return read_cells(self.z_m, cell, np.nan)


@dataclass(frozen=True)
class Surroundings:
    """Static points and free space around a scene's path, from all of its sweeps.

    `static_m` (n,3): points outside all boxes. `passed` (X,Y,Z): cubes of `spec` (global frame) that a ray passed before its point. `object_m`:
    points of every track in its box's own frame.
    """

    static_m: Float[Array, "n 3"]
    passed: Bool[Array, "X Y Z"]
    spec: GridSpec
    object_m: dict[str, Float[Array, "m 3"]]
    ground: GroundMap
    sweeps: int

    def was_passed(self, points_m: Float[Array, "n 3"]) -> Bool[Array, "n"]:
        """Whether a ray passed the cubes that contain these points (global frame, metres)."""
        at = np.floor((points_m - np.array(self.spec.lower_m)) / self.spec.voxel_m).astype(np.int64)
        return read_cells(self.passed, at, False)


def bounds(scene: Scene, voxel_m: float) -> GridSpec:
    """The cubes around a scene's path, in the global frame."""
    path = np.stack([keyframe.global_T_ego.translation_m for keyframe in scene.keyframes])
    lower = path.min(0) - (REACH_M, REACH_M, BELOW_M)
    upper = path.max(0) + np.array([REACH_M, REACH_M, ABOVE_M])
    size = np.ceil((upper - lower) / voxel_m).astype(int)
    return GridSpec(tuple(size.tolist()), tuple(lower.tolist()), voxel_m)


def accumulate(scene: Scene, sweeps: Iterable[Sweep], over_time: BoxesOverTime, voxel_m: float = 0.4) -> Surroundings | None:
    """Accumulate all sweeps of a scene; None without sweeps.

    Points outside all boxes are static in the global frame. Points in a box move with its track. A ray passes a cube if it goes through it and ends
    at least one cube later.
    """
    spec = bounds(scene, voxel_m)
    passed = np.zeros(spec.shape, bool)
    static: list[Array] = []
    objects: dict[str, list[Array]] = {}
    count = 0
    for sweep in sweeps:
        count += 1
        points = sweep.points_m
        within = ((points > np.array(spec.lower_m)) & (points < np.array(spec.upper_m))).all(1)
        _mark_passed(passed, spec, sweep.origin_m, points)
        points = points[within]
        free_of_boxes = np.ones(len(points), bool)
        boxes = over_time.at(sweep.timestamp_us)
        for b, rows, local in inside(points, boxes, BOX_MARGIN_M):
            objects.setdefault(boxes.track[b], []).append(local)
            free_of_boxes[rows] = False
        static.append(points[free_of_boxes])
        if sum(map(len, static)) > 4 * _SEVERAL:  # thinned from time to time, to limit memory
            static = [_thin(static)]
    if not count:
        return None
    standing = _thin(static)
    tracks = {track: _thin(parts) for track, parts in objects.items()}
    return Surroundings(standing, passed, spec, tracks, ground_of(standing, spec), count)


def _thin(parts: list[Array]) -> Array:
    points = np.concatenate(parts)
    return points[thinned(points, THIN_M)]


def _mark_passed(passed: Bool[Array, "X Y Z"], spec: GridSpec, origin_m: Float[Array, "3"], points_m: Float[Array, "n 3"]) -> None:
    """Mark the cubes that rays pass, in place: sampled every half cube, up to one cube before the point. One ray is cast to each cube."""
    voxel, lower = spec.voxel_m, np.array(spec.lower_m)
    start = (origin_m - lower) / voxel
    ends = (points_m - lower) / voxel
    ends = ends[thinned(ends, 1.0)]
    way = ends - start
    length = np.linalg.norm(way, axis=1)
    looks = np.maximum(np.ceil(2 * (length - 1.0)), 0).astype(np.int64)
    # Rays that leave the volume are followed up to its boundary.
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(way > 0, (np.array(spec.shape) - start) / way, np.where(way < 0, -start / way, np.inf)).min(1)
    looks = np.minimum(looks, np.floor(2 * length * np.clip(room, 0, 1)).astype(np.int64))
    step = (way / np.maximum(2 * length, 1e-9)[:, None]).astype(np.float32)
    begin, (_, wide, high) = start.astype(np.float32), spec.shape
    flat = passed.reshape(-1)
    share = max(1, _SEVERAL // max(int(looks.max(initial=1)), 1))
    for first in range(0, len(looks), share):
        some, move = looks[first : first + share], step[first : first + share]
        ray = np.repeat(np.arange(len(some)), some)
        look = (np.arange(len(ray)) - np.repeat(np.cumsum(some) - some, some)).astype(np.float32)
        at = [(begin[axis] + look * move[ray, axis]).astype(np.int32) for axis in range(3)]
        inside_ = (at[0] >= 0) & (at[0] < spec.shape[0]) & (at[1] >= 0) & (at[1] < wide) & (at[2] >= 0) & (at[2] < high)
        flat[((at[0] * wide + at[1]) * high + at[2])[inside_]] = True


def ground_of(points_m: Float[Array, "n 3"], spec: GridSpec) -> GroundMap:
    """The ground below points: the lower envelope, of slope `STEEPEST` at most, of low percentiles in cells of `GROUND_CELL_M`."""
    cell = GROUND_CELL_M
    shape = tuple(int(np.ceil(n * spec.voxel_m / cell)) for n in spec.shape[:2])
    at = np.floor((points_m[:, :2] - np.array(spec.lower_m[:2])) / cell).astype(np.int64).clip(0, np.array(shape) - 1)
    number = at[:, 0] * shape[1] + at[:, 1]
    order = np.lexsort((points_m[:, 2], number))
    cells, first, count = np.unique(number[order], return_index=True, return_counts=True)
    enough = count >= GROUND_POINTS
    lowest = points_m[order][first[enough] + (count[enough] * LOWEST / 100).astype(np.int64), 2]
    z = np.full(shape[0] * shape[1], np.inf)
    z[cells[enough]] = lowest
    z = z.reshape(shape)
    known = np.isfinite(z)
    if not known.any():
        return GroundMap(np.full(shape, np.nan), spec.lower_m[:2], cell)
    reach = int(np.ceil(GROUND_KNOWN_M / cell)) + 3
    offset = np.arange(-reach, reach + 1) * cell
    rise = STEEPEST * np.hypot(offset[:, None], offset[None])
    envelope = ndimage.grey_erosion(np.where(known, z, 1e6), structure=-rise, mode="constant", cval=1e6)
    near = np.asarray(ndimage.distance_transform_edt(~known)) * cell <= GROUND_KNOWN_M
    return GroundMap(np.where(near, envelope, np.nan), spec.lower_m[:2], cell)
