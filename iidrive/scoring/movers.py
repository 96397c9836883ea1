"""Movers: how well an occupancy forecast predicts the cells of moving road users, in bird's-eye view.

- A *mover* is a box of a movable class (bicycle, bus, car, construction vehicle, motorcycle, pedestrian, trailer, truck) that was faster than
  0.5 m/s over the half second before its keyframe. A box whose track did not exist at that time counts as moving.
- The cells of a mover are those whose centre lies inside its box, enlarged by 0.3 cells on every side.
- The cells of all other boxes, dilated by one cell, are ignored unless they also belong to a mover. At the first keyframe of a scene speeds are
  unknown, so all boxes are ignored.
- The movers of a predicted grid are the cells with a voxel of a movable class.

Sum the counts over samples first, then compute IoU, precision and recall.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from iidrive.core import geometry
from iidrive.core.classes import FREE, MOVABLE, OCC_OF_CATEGORY
from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M, MARGIN_CELLS, footprint
from iidrive.core.scene import FUTURE_STEPS, STEP_S, GridSpec, Scene

Array = np.ndarray

MOVING_MPS = 0.5

_SHIFT_M = 1.5
_SPEED_UP_MPS2 = 2.0
_SHARPEST_PER_M = 0.2
_SPAN_S = FUTURE_STEPS * STEP_S


@dataclass(frozen=True)
class MoverTruth:
    """Ground truth of one keyframe in its ego frame: the cells of movers, and the cells to ignore."""

    moving: Bool[Array, "X Y"]
    ignored: Bool[Array, "X Y"]


@dataclass(frozen=True)
class MoverCounts:
    """Numbers of mover cells, one per horizon: in both truth and forecast (`hit`), in the forecast (`found`), in the truth (`true`)."""

    hit: Int[Array, "*h"]
    found: Int[Array, "*h"]
    true: Int[Array, "*h"]

    @staticmethod
    def zero(*shape: int) -> MoverCounts:
        """Counts of zero."""
        return MoverCounts(*(np.zeros(shape, np.int64) for _ in range(3)))

    def __add__(self, other: MoverCounts) -> MoverCounts:
        return MoverCounts(self.hit + other.hit, self.found + other.found, self.true + other.true)

    def iou(self) -> Float[Array, "*h"]:
        """Intersection over union, 0..1; NaN if there is no mover in either truth or forecast."""
        return _ratio(self.hit, self.found + self.true - self.hit)

    def precision(self) -> Float[Array, "*h"]:
        """Fraction of the forecast cells that belong to a mover, 0..1; NaN if none was forecast."""
        return _ratio(self.hit, self.found)

    def recall(self) -> Float[Array, "*h"]:
        """Fraction of the movers' cells that were forecast, 0..1; NaN if nothing moved."""
        return _ratio(self.hit, self.true)


def _ratio(part: Int[Array, "*h"], whole: Int[Array, "*h"]) -> Float[Array, "*h"]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def speeds(scene: Scene, index: int) -> Float[Array, "n"]:
    """Speed of every box of a keyframe in the ground plane over the interval before it, m/s.

    Infinite for a track that did not exist at the previous keyframe; NaN for all boxes at the first keyframe.
    """
    now = scene.keyframes[index]
    if not index:
        return np.full(len(now.boxes), np.nan)
    before = scene.keyframes[index - 1]
    place = now.boxes.found_in(before.boxes)
    seconds = (now.timestamp_us - before.timestamp_us) / 1e6
    earlier = np.concatenate([before.boxes.centre_m, np.full((1, 3), np.inf)])[place]  # place -1 selects the row of infinity
    return np.linalg.norm(now.boxes.centre_m[:, :2] - earlier[:, :2], axis=1) / seconds


def mover_truth(scene: Scene, index: int, spec: GridSpec, of: Collection[str] | None = None) -> MoverTruth:
    """The movers of a keyframe on a grid in its ego frame. With `of`, only the given tracks are movers; all other boxes are ignored."""
    now = scene.keyframes[index]
    boxes = now.boxes.moved(geometry.invert(now.global_T_ego.matrix), "ego")
    moves = (speeds(scene, index) > MOVING_MPS) & MOVABLE[OCC_OF_CATEGORY[boxes.label]]
    if of is not None:
        moves &= np.array([track in of for track in boxes.track], bool)
    moving, rest = (footprint(boxes.select(keep), spec, MARGIN_CELLS * spec.voxel_m).mask(spec) for keep in (moves, ~moves))
    return MoverTruth(moving, grown(rest) & ~moving)


def tracks_inside(scene: Scene, index: int, spec: GridSpec) -> frozenset[str]:
    """Tracks whose box lies wholly inside the grid at a keyframe."""
    now = scene.keyframes[index]
    boxes = now.boxes.moved(geometry.invert(now.global_T_ego.matrix), "ego")
    corners = geometry.box_corners_bev(boxes.centre_m[:, :2], boxes.size_m[:, 0], boxes.size_m[:, 1], boxes.yaw_rad)
    whole = np.asarray(((corners > spec.lower_m[:2]) & (corners < spec.upper_m[:2])).all(axis=(1, 2)), bool)
    return frozenset(track for track, w in zip(boxes.track, whole.tolist(), strict=True) if w)


def grown(mask: Bool[Array, "X Y"]) -> Bool[Array, "X Y"]:
    """A mask dilated by one cell, with 8-connectivity."""
    for axis in (0, 1):
        ahead, behind = np.zeros_like(mask), np.zeros_like(mask)
        inner, outer = [slice(None)] * 2, [slice(None)] * 2
        inner[axis], outer[axis] = slice(1, None), slice(None, -1)
        ahead[tuple(inner)], behind[tuple(outer)] = mask[tuple(outer)], mask[tuple(inner)]
        mask = mask | ahead | behind
    return mask


def movers_in(occupancy: UInt8[Array, "*b X Y Z"]) -> Bool[Array, "*b X Y"]:
    """The cells of a grid that have a voxel of a movable class."""
    movable = MOVABLE.take(occupancy)
    if movable.shape[-1] % 8 == 0:  # read eight voxels as one uint64, several times faster
        movable = movable.view(np.uint64) != 0
    out = movable[..., 0]
    for k in range(1, movable.shape[-1]):
        out = out | movable[..., k]
    return out


def count(found: Bool[Array, "X Y"], truth: MoverTruth, within: Bool[Array, "X Y"] | None = None) -> MoverCounts:
    """Count the mover cells of one grid against the truth. With `within`, only these cells count."""
    counted = ~truth.ignored if within is None else within & ~truth.ignored
    found, true = found & counted, truth.moving & counted
    return MoverCounts(*(np.array(np.count_nonzero(x)) for x in (found & true, found, true)))


def cell_points(spec: GridSpec) -> Float[Array, "X Y 2"]:
    """Cell centres (x, y) of a grid in its ego frame, metres."""
    return np.stack(np.meshgrid(spec.centres(0), spec.centres(1), indexing="ij"), -1)


def cells_of(points_m: Float[Array, "X Y 2"], spec: GridSpec) -> tuple[Int[Array, "X Y"], Int[Array, "X Y"], Bool[Array, "X Y"]]:
    """Indices (x, y) of the cells that contain the points, and whether each point is inside the grid. Indices of outside points are clamped."""
    inside, index = np.ones(points_m.shape[:-1], bool), []
    for axis in (0, 1):
        i = np.floor((points_m[..., axis] - spec.lower_m[axis]) / spec.voxel_m).astype(np.int64)
        inside &= (i >= 0) & (i < spec.shape[axis])
        index.append(np.minimum(np.maximum(i, 0), spec.shape[axis] - 1))
    return index[0], index[1], inside


def read_at(labels: UInt8[Array, "X Y Z"], frame_T_true: Float[Array, "4 4"], spec: GridSpec, fill: int = FREE) -> UInt8[Array, "X Y Z"]:
    """Resample a grid to the true ego frame: each cell takes the label of the cell that contains its centre, or `fill` outside the grid."""
    x, y, inside = cells_of(cell_points(spec) @ frame_T_true[:2, :2].T + frame_T_true[:2, 3], spec)
    out = labels[x, y]
    out[~inside] = fill
    return out


def corridor(points_m: Float[Array, "*n 2"], speed_mps: float, yaw_rate_radps: float) -> Bool[Array, "*n"]:
    """Whether points (current ego frame, metres) are swept by a plausible plan of the ego within 3 s.

    Plausible plans follow the arc of the current speed and yaw rate, shifted sideways by up to 1.5 m. The radius is at least 5 m; the arc is
    straight if the ego stands. The ego may stop or accelerate by at most 2 m/s², so it drives at most 3 v + 9 m along the arc. Its footprint
    (4.084 x 1.85 m, centre 1.44 m ahead of the rear axle) is swept along all these plans. Along the arc, nine positions within the footprint's
    length are tested.
    """
    speed = max(speed_mps, 0.0)
    bend = float(np.clip(yaw_rate_radps / max(speed, 1e-6), -_SHARPEST_PER_M, _SHARPEST_PER_M)) if speed > MOVING_MPS else 0.0
    far = speed * _SPAN_S + _SPEED_UP_MPS2 * _SPAN_S**2 / 2
    half_length, half_width = EGO_SIZE_M[0] / 2, EGO_SIZE_M[1] / 2 + _SHIFT_M
    rear, front = EGO_CENTRE_M - half_length, EGO_CENTRE_M + half_length
    x, y = points_m[..., 0], points_m[..., 1]
    # Arc length of the nearest point on the arc, and signed distance to its left.
    if abs(bend) < 1e-5:
        along, left = x, y
    else:
        along = np.arctan2(bend * x, 1 - bend * y) / bend
        left = (1 - np.hypot(bend * x, 1 - bend * y)) / bend
    out = np.zeros(x.shape, bool)
    near = (along > rear - 1) & (along < far + front + 1) & (abs(left) < half_width + 1)
    along, left = along[near], left[near]
    ahead = along - (along - np.linspace(rear, front, 9)[:, None]).clip(0, far)  # from the rear axles of footprints on the path
    angle = bend * ahead
    half = np.sinc(angle / (2 * np.pi))  # sin(angle) / angle = half * cos(angle / 2), (1 - cos(angle)) / angle = half² * angle / 2
    local = ahead * half * np.cos(angle / 2) * (1 - bend * left)
    across = left * np.cos(angle) + ahead * half**2 * angle / 2
    hit = (abs(local - EGO_CENTRE_M) <= half_length + 1e-9) & (abs(across) <= half_width + 1e-9)
    out[near] = hit.any(0)
    return out
