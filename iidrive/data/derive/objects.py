"""Boxes of a scene at any time, which of them are parked, and the points that belong to each.

Shapes: n points, b boxes at one time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core import geometry
from iidrive.core.scene import Boxes, Scene

Array = np.ndarray

PARKED_M = 0.5
"""A track whose boxes stay within this distance of the first one is parked."""
PARKED_KEYFRAMES = 3
"""A track that is annotated at fewer keyframes is not treated as parked."""
GROUND_IN_BOX_M = 0.1
"""Points lower than this above a box's bottom belong to the ground, metres."""
_ALONE_US = 250_000
"""A box that is annotated at only one of two neighbouring keyframes exists this long around it, microseconds."""


@dataclass(frozen=True)
class BoxesOverTime:
    """The boxes of a scene at its keyframes, including parked ones at all keyframes, in the global frame."""

    times_us: Int[Array, "k"]
    boxes: tuple[Boxes, ...]

    @staticmethod
    def of(scene: Scene) -> BoxesOverTime:
        """The annotated boxes of a scene. Parked tracks are added at the keyframes where they are not annotated."""
        annotated = [keyframe.boxes for keyframe in scene.keyframes]
        parked = _parked(annotated)
        completed = []
        for boxes in annotated:
            here = set(boxes.track)
            absent = np.array([track not in here for track in parked.track], bool)
            completed.append(_joined(boxes, parked.select(absent)))
        return BoxesOverTime(np.array([keyframe.timestamp_us for keyframe in scene.keyframes], np.int64), tuple(completed))

    def at(self, time_us: int) -> Boxes:
        """The boxes at a time, interpolated linearly between the keyframes before and after it."""
        after = int(np.clip(np.searchsorted(self.times_us, time_us), 1, len(self.times_us) - 1)) if len(self.times_us) > 1 else 0
        before = max(after - 1, 0)
        one, two = self.boxes[before], self.boxes[after]
        span = self.times_us[after] - self.times_us[before]
        share = float(np.clip((time_us - self.times_us[before]) / max(span, 1), 0, 1))
        place = one.found_in(two)
        both = np.flatnonzero(place >= 0)
        centre, yaw = one.centre_m.copy(), one.yaw_rad.copy()
        centre[both] += share * (two.centre_m[place[both]] - one.centre_m[both])
        yaw[both] += share * geometry.wrap_angle(two.yaw_rad[place[both]] - one.yaw_rad[both])
        near_one, near_two = (abs(time_us - self.times_us[k]) <= _ALONE_US for k in (before, after))
        kept = (place >= 0) | near_one
        new = (two.found_in(one) < 0) & near_two
        return _joined(replace(one, centre_m=centre, yaw_rad=yaw).select(kept), two.select(new))


def _parked(annotated: list[Boxes]) -> Boxes:
    """The first box of every parked track."""
    first: dict[str, tuple[int, int]] = {}
    seen: dict[str, int] = {}
    moved: set[str] = set()
    for k, boxes in enumerate(annotated):
        for i, track in enumerate(boxes.track):
            at, row = first.setdefault(track, (k, i))
            seen[track] = seen.get(track, 0) + 1
            if np.linalg.norm(boxes.centre_m[i] - annotated[at].centre_m[row]) > PARKED_M:
                moved.add(track)
    out = Boxes.empty("global")
    for k, boxes in enumerate(annotated):
        own = [first[t][0] == k and t not in moved and seen[t] >= PARKED_KEYFRAMES for t in boxes.track]
        out = _joined(out, boxes.select(np.array(own, bool)))
    return out


def _joined(one: Boxes, two: Boxes) -> Boxes:
    columns = ("centre_m", "size_m", "yaw_rad", "label", "lidar_points")
    joined = {name: np.concatenate([getattr(one, name), getattr(two, name)]) for name in columns}
    return Boxes(one.frame, track=(*one.track, *two.track), **joined)


def inside(points_m: Float[Array, "n 3"], boxes: Boxes, margin_m: float) -> Iterator[tuple[int, Int[Array, "m"], Float[Array, "m 3"]]]:
    """For every box that holds points: (index of the box, rows of the points, the points in the box's own frame).

    A box is enlarged by `margin_m` on all sides except at the bottom, where its lowest `GROUND_IN_BOX_M` belong to the ground.
    """
    order = np.argsort(points_m[:, 0])
    along = points_m[order, 0]
    for b in range(len(boxes)):
        half = boxes.size_m[b] / 2
        reach = np.hypot(half[0], half[1]) + margin_m
        first, last = np.searchsorted(along, boxes.centre_m[b, 0] + np.array([-reach, reach]))
        near = order[first:last]
        near = near[np.abs(points_m[near, 1] - boxes.centre_m[b, 1]) <= reach]
        if not len(near):
            continue
        away = points_m[near] - boxes.centre_m[b]
        local = np.column_stack([geometry.placed(np.zeros(2), -boxes.yaw_rad[b], away[:, :2]), away[:, 2]])
        held = (
            (np.abs(local[:, :2]) <= half[:2] + margin_m).all(1)
            & (local[:, 2] >= GROUND_IN_BOX_M - half[2])
            & (local[:, 2] <= half[2] + margin_m)
        )
        if held.any():
            yield b, near[held], local[held]


def carried(local_m: Float[Array, "n 3"], boxes: Boxes, box: int) -> Float[Array, "n 3"]:
    """Transform points from a box's own frame to the frame of the boxes."""
    centre = boxes.centre_m[box]
    return np.column_stack([geometry.placed(centre[:2], boxes.yaw_rad[box], local_m[:, :2]), centre[2] + local_m[:, 2]])


def thinned(points_m: Float[Array, "n 3"], voxel_m: float) -> Bool[Array, "n"]:
    """Mask of the first point in every cube of a lattice with edges `voxel_m`."""
    if not len(points_m):
        return np.zeros(0, bool)
    cubes = np.floor(points_m / voxel_m).astype(np.int64)
    cubes -= cubes.min(0)
    y, z = cubes[:, 1].max() + 1, cubes[:, 2].max() + 1
    _, first = np.unique((cubes[:, 0] * y + cubes[:, 1]) * z + cubes[:, 2], return_index=True)
    out = np.zeros(len(points_m), bool)
    out[first] = True
    return out
