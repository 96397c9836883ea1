"""The privileged forecast that every world model has to be compared with: present voxels of tracked boxes move with their boxes.

Everything else stands still and is seen from where the ego will be. Boxes are known here, which no model is given.

Shapes: H horizons, n boxes, X, Y, Z voxels. Frames: the ego's at present, unless a name says otherwise.
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
"""A heading that changes by more between two keyframes was labelled the other way round: the box does not turn."""

_GROUND = np.isin(np.arange(256), [OCC[name] for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")])


@dataclass(frozen=True)
class Moves:
    """Boxes of movable classes as they are at present and where they are at each horizon, all in the present ego frame.

    `centre_m` (H,n,3) and `yaw_rad` (H,n); `known` (H,n) is false for a box that is no longer there.
    """

    boxes: Boxes
    centre_m: Float[Array, "H n 3"]
    yaw_rad: Float[Array, "H n"]
    known: Bool[Array, "H n"]


def constant_turn_moves(scene: Scene, index: int, steps: Sequence[int]) -> Moves:
    """Every box keeps the turn rate and the velocity in its own frame of the interval before the present; new boxes stand still."""
    now = scene.keyframes[index]
    boxes = _movable(scene, index)
    before = scene.keyframes[max(index - 1, 0)]
    earlier = before.boxes.moved(geometry.invert(now.global_T_ego.matrix), "ego")
    place = boxes.found_in(earlier)
    place = np.where(place < 0, len(earlier), place)
    centre = np.concatenate([earlier.centre_m, boxes.centre_m])
    new = place == len(earlier)
    place = np.where(new, len(earlier) + np.arange(len(boxes)), place)  # a new box stands where it was
    seconds = max((now.timestamp_us - before.timestamp_us) / 1e6, 1e-3)
    turn = geometry.wrap_angle(boxes.yaw_rad - np.concatenate([earlier.yaw_rad, boxes.yaw_rad])[place])
    turn = np.where(abs(turn) > _JUMP_RAD, 0.0, turn)
    moved = boxes.centre_m - centre[place]
    # A chord of a steady turn lies half the turn before the present heading; the next one lies as far after it, and is as long.
    heading = np.arctan2(moved[:, 1], moved[:, 0]) + turn / 2
    speed = np.hypot(moved[:, 0], moved[:, 1]) / np.sinc(turn / (2 * np.pi)) / seconds
    time = STEP_S * np.array(steps)[:, None]
    angle = turn / seconds * time
    chord = speed * time * np.sinc(angle / (2 * np.pi))
    ahead = np.stack([chord * np.cos(heading + angle / 2), chord * np.sin(heading + angle / 2), moved[:, 2] / seconds * time], -1)
    return Moves(boxes, boxes.centre_m + ahead, boxes.yaw_rad + angle, np.ones(angle.shape, bool))


def true_moves(scene: Scene, index: int, steps: Sequence[int]) -> Moves:
    """Where every box truly goes: an oracle. A box whose track has ended is gone.

    Raises:
        IndexError: where the scene ends before the last step.
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
    """The present grid with every box moved, in the ego frames of the horizons; `ground` is `without_boxes` of it.

    A cell belongs to a moved box where its centre lies inside, or the box's centre in the cell, as boxes are made into voxels. Its voxels are
    those of the box's class where that point of the box is at present, or in the nearest cell beside that has some: so no holes open
    and no edge frays, and what was not seen of a box stays unseen. Smaller boxes are painted over larger ones. What enters the grid
    later is not there: nobody has seen its voxels.
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
    """For each point the nearest cell of a mask among the one that holds it and the eight beside: its indices, and whether there is one."""
    at = (points - np.array(spec.lower_m[:2])) / spec.voxel_m - 0.5  # cell centres are the integers
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
    """The grid without the voxels of movable classes inside boxes: free, with the ground of the nearest column that has some below."""
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
