"""Privileged baseline forecast: the current voxels of tracked boxes move with their boxes, and everything else stands still.

It uses true boxes, which no model is given.

Shapes: H horizons, n boxes, X, Y, Z voxels. Everything is in the current ego frame unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import distance_transform_edt

from iidrive.core import geometry
from iidrive.core.classes import FREE, MOVABLE, OCC, OCC_OF_CATEGORY
from iidrive.core.footprint import MARGIN_CELLS, footprint, rectangles
from iidrive.core.scene import STEP_S, Boxes, GridSpec, Scene

Array = np.ndarray

_JUMP_RAD = 1.0
"""A larger change of heading between two keyframes is treated as a labelling error (flipped box), not as a turn."""

_GROUND = np.isin(np.arange(256), [OCC[name] for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")])


@dataclass(frozen=True)
class Moves:
    """Boxes of movable classes now and at each horizon, in the current ego frame.

    Attributes:
        boxes: the current boxes.
        centre_m: (H,n,3) future centres, metres.
        yaw_rad: (H,n) future headings.
        known: (H,n) false if the box no longer exists.
    """

    boxes: Boxes
    centre_m: Float[Array, "H n 3"]
    yaw_rad: Float[Array, "H n"]
    known: Bool[Array, "H n"]


def constant_turn_moves(scene: Scene, index: int, steps: Sequence[int]) -> Moves:
    """Moves at constant turn rate and velocity: each box keeps its motion of the last interval. New boxes stand still."""
    now = scene.keyframes[index]
    boxes = _movable(scene, index)
    before = scene.keyframes[max(index - 1, 0)]
    earlier = before.boxes.moved(geometry.invert(now.global_T_ego.matrix), "ego")
    place = boxes.found_in(earlier)
    place = np.where(place < 0, len(earlier), place)
    centre = np.concatenate([earlier.centre_m, boxes.centre_m])
    new = place == len(earlier)
    place = np.where(new, len(earlier) + np.arange(len(boxes)), place)  # a new box stands still
    seconds = max((now.timestamp_us - before.timestamp_us) / 1e6, 1e-3)
    turn = geometry.wrap_angle(boxes.yaw_rad - np.concatenate([earlier.yaw_rad, boxes.yaw_rad])[place])
    turn = np.where(abs(turn) > _JUMP_RAD, 0.0, turn)
    moved = boxes.centre_m - centre[place]
    # In a steady turn, the last chord points half a turn before the current heading, and the next one half a turn after it.
    heading = np.arctan2(moved[:, 1], moved[:, 0]) + turn / 2
    speed = np.hypot(moved[:, 0], moved[:, 1]) / np.sinc(turn / (2 * np.pi)) / seconds
    time = STEP_S * np.array(steps)[:, None]
    angle = turn / seconds * time
    chord = speed * time * np.sinc(angle / (2 * np.pi))
    ahead = np.stack([chord * np.cos(heading + angle / 2), chord * np.sin(heading + angle / 2), moved[:, 2] / seconds * time], -1)
    return Moves(boxes, boxes.centre_m + ahead, boxes.yaw_rad + angle, np.ones(angle.shape, bool))


def true_moves(scene: Scene, index: int, steps: Sequence[int]) -> Moves:
    """True moves of all boxes (oracle). A box whose track has ended is unknown.

    Raises:
        IndexError: if the scene ends before the last step.
    """
    boxes = _movable(scene, index)
    ego_T_global = geometry.invert(scene.keyframes[index].global_T_ego.matrix)
    centre, yaw = np.tile(boxes.centre_m, (len(steps), 1, 1)), np.tile(boxes.yaw_rad, (len(steps), 1))
    known = np.zeros(yaw.shape, bool)
    for h, step in enumerate(steps):
        then = scene.keyframes[index + step].boxes.moved(ego_T_global, "ego")
        place = boxes.found_in(then)
        known[h] = place >= 0
        centre[h, known[h]], yaw[h, known[h]] = then.centre_m[place[known[h]]], then.yaw_rad[place[known[h]]]
    return Moves(boxes, centre, yaw, known)


def transport(
    occupancy: UInt8[Array, "X Y Z"],
    ground: UInt8[Array, "X Y Z"],
    moves: Moves,
    now_T_future: Float[Array, "H 4 4"],
    spec: GridSpec,
) -> UInt8[Array, "H X Y Z"]:
    """The current grid with all boxes moved, in the ego frame of each horizon.

    A cell belongs to a moved box if the cell's centre is inside the box, or the box's centre inside the cell. The cell gets the voxels of
    the box's class from where the same point of the box is now, or from the nearest adjacent cell that has some, so that no holes appear.
    Parts of a box that are not observed now stay unobserved. Smaller boxes are painted over larger ones. Boxes that enter the grid later
    are missing.

    Args:
        occupancy: (X,Y,Z) the current grid.
        ground: (X,Y,Z) the same grid without boxes (see `without_boxes`).
        moves: moves of the boxes.
        now_T_future: (H,4,4) from the ego frame of each horizon to the current one.
        spec: the grid.
    """
    classes = OCC_OF_CATEGORY[moves.boxes.label]
    present = {c: (occupancy == c).any(-1) for c in np.unique(classes)}
    out = np.empty((len(now_T_future), *spec.shape), np.uint8)
    points = np.stack(np.meshgrid(spec.centres(0), spec.centres(1), indexing="ij"), -1)
    larger_first = np.argsort(-moves.boxes.size_m.prod(axis=1), kind="stable")
    for h, now_T_then in enumerate(now_T_future):
        out[h] = _looked_up(ground, points @ now_T_then[:2, :2].T + now_T_then[:2, 3], spec)
        boxes = larger_first[moves.known[h, larger_first]]
        if not len(boxes):
            continue
        then_T_now = geometry.invert(now_T_then)
        centre = geometry.apply(then_T_now, moves.centre_m[h, boxes])
        yaw = moves.yaw_rad[h, boxes] + geometry.heading(then_T_now)
        cells = rectangles(centre[:, :2], moves.boxes.size_m[boxes, :2], yaw, spec, centre_cell=True)
        box = boxes[cells.box]
        source = geometry.placed(moves.boxes.centre_m[box, :2], moves.boxes.yaw_rad[box], cells.local_m)
        columns = np.full((len(box), spec.shape[2]), FREE, np.uint8)
        for class_, where in present.items():
            own = np.flatnonzero(classes[box] == class_)
            x, y, found = _nearest(where, source[own], spec)
            column = occupancy[x[found], y[found]]
            columns[own[found]] = np.where(column == class_, column, np.uint8(FREE))
        up = np.rint((centre[:, 2] - moves.boxes.centre_m[boxes, 2]) / spec.voxel_m).astype(np.int64)[cells.box]
        pair, k = np.nonzero(columns != FREE)
        z = k + up[pair]
        inside = (z >= 0) & (z < spec.shape[2])
        pair, k, z = pair[inside], k[inside], z[inside]
        out[h, cells.x[pair], cells.y[pair], z] = columns[pair, k]
    return out


def _movable(scene: Scene, index: int) -> Boxes:
    now = scene.keyframes[index]
    return now.boxes.select(MOVABLE[OCC_OF_CATEGORY[now.boxes.label]]).moved(geometry.invert(now.global_T_ego.matrix), "ego")


_BESIDE = np.stack(np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing="ij"), -1).reshape(9, 2)


def _nearest(
    where: Bool[Array, "X Y"], points: Float[Array, "n 2"], spec: GridSpec
) -> tuple[Int[Array, "n"], Int[Array, "n"], Bool[Array, "n"]]:
    """For each point, the nearest masked cell among its own cell and the eight around it: its indices, and whether there is one."""
    at = (points - np.array(spec.lower_m[:2])) / spec.voxel_m - 0.5  # in cells; cell centres are at integers
    cell = np.rint(at).astype(np.int64)[:, None] + _BESIDE
    inside = ((cell >= 0) & (cell < spec.shape[:2])).all(-1)
    cell = cell.clip(0, np.array(spec.shape[:2]) - 1)
    far = np.where(inside & where[cell[..., 0], cell[..., 1]], np.square(cell - at[:, None]).sum(-1), np.inf)
    best = far.argmin(1)
    rows = np.arange(len(points))
    return cell[rows, best, 0], cell[rows, best, 1], np.isfinite(far[rows, best])


def _looked_up(grid: UInt8[Array, "X Y Z"], points: Float[Array, "*n 2"], spec: GridSpec) -> UInt8[Array, "*n Z"]:
    inside, index = np.ones(points.shape[:-1], bool), []
    for axis in (0, 1):
        i = np.floor((points[..., axis] - spec.lower_m[axis]) / spec.voxel_m).astype(np.int64)
        inside &= (i >= 0) & (i < spec.shape[axis])
        index.append(np.minimum(np.maximum(i, 0), spec.shape[axis] - 1))
    out = grid[index[0], index[1]]
    out[~inside] = FREE
    return out


def without_boxes(occupancy: UInt8[Array, "X Y Z"], boxes: Boxes, spec: GridSpec) -> UInt8[Array, "X Y Z"]:
    """The grid without voxels of movable classes inside boxes. They become free, or the ground class of the nearest column with ground."""
    covered = footprint(boxes, spec, MARGIN_CELLS * spec.voxel_m).mask(spec)
    taken = covered[..., None] & MOVABLE[occupancy]
    out = np.where(taken, np.uint8(FREE), occupancy)
    columns = taken.any(-1)
    ground = np.where(_GROUND[out], out, np.uint8(FREE))
    solid = (ground != FREE).any(-1) & ~columns
    if columns.any() and solid.any():
        nearest = np.asarray(distance_transform_edt(~solid, return_distances=False, return_indices=True))
        x, y = nearest[0], nearest[1]
        below = ground[x[columns], y[columns]]
        out[columns] = np.where((out[columns] == FREE) & (below != FREE) & taken[columns], below, out[columns])
    return out
