"""Scene flow from tracked boxes: where every point that is occupied at one keyframe is at another.

Displacements are in metres in the ego frame of the *first* keyframe, so they are zero for anything that stands still. Every point of a
tracked box moves rigidly with the box. This works for any source with tracked boxes, forwards and backwards in time.

Shapes: S steps, X, Y cells, Z voxels above each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from iidrive.core import geometry
from iidrive.core.classes import FREE, IGNORE, MOVABLE, OCC_OF_CATEGORY
from iidrive.core.footprint import MARGIN_CELLS, footprint
from iidrive.core.scene import GridSpec, Scene

Array = np.ndarray


@dataclass(frozen=True)
class Flow:
    """Bird's-eye-view displacements.

    Attributes:
        motion_m: (S,X,Y,2) displacement along x and y, metres; NaN where unknown, 0 for cells outside all boxes.
        known: (S,X,Y) false where the cell's box has no box at the other keyframe, and everywhere if that keyframe does not exist.
        owner: (X,Y) movable class of the box that holds the cell; 17 (free) outside all boxes.
    """

    motion_m: Float32[Array, "S X Y 2"]
    known: Bool[Array, "S X Y"]
    owner: UInt8[Array, "X Y"]

    def of_voxels(self, semantics: UInt8[Array, "X Y Z"]) -> tuple[Float32[Array, "S X Y Z 2"], Bool[Array, "S X Y Z"]]:
        """Displacement of each voxel, metres, and whether it is known.

        A voxel of a movable class moves with the box that holds its cell if the classes agree, else its flow is unknown. Voxels of other
        classes do not move. Free and unknown voxels have no flow.
        """
        movable = MOVABLE[semantics]
        own = movable & (semantics == self.owner[..., None])
        motion = np.where(movable[..., None], self.motion_m[..., None, :], np.float32(0))
        exists = self.known.any(axis=(1, 2)).reshape(-1, 1, 1, 1)
        known = exists & ((semantics != FREE) & (semantics != IGNORE)) & (~movable | (own & self.known[..., None]))
        return np.where(known[..., None], motion, np.float32(np.nan)), known


def flow(scene: Scene, index: int, steps: Sequence[int], spec: GridSpec) -> Flow:
    """Displacement of each cell from keyframe `index` to the keyframes `index + step`, in the ego frame of keyframe `index`.

    `steps` may be negative. Where boxes overlap, the smaller one owns the cell.
    """
    now = scene.keyframes[index]
    ego_T_global = geometry.invert(now.global_T_ego.matrix)
    boxes = now.boxes.select(MOVABLE[OCC_OF_CATEGORY[now.boxes.label]]).moved(ego_T_global, "ego")
    cells = footprint(boxes, spec, MARGIN_CELLS * spec.voxel_m)
    order = np.argsort(-boxes.size_m.prod(axis=1)[cells.box], kind="stable")  # NumPy keeps the last write: the smaller box
    box, x, y, local = (part[order] for part in (cells.box, cells.x, cells.y, cells.local_m))
    owner = np.full(spec.shape[:2], FREE, np.uint8)
    owner[x, y] = OCC_OF_CATEGORY[boxes.label[box]]
    motion = np.zeros((len(steps), *spec.shape[:2], 2), np.float32)
    known = np.ones(motion.shape[:3], bool)
    here = geometry.placed(boxes.centre_m[box, :2], boxes.yaw_rad[box], local)
    for s, step in enumerate(steps):
        if not 0 <= index + step < len(scene):
            motion[s], known[s] = np.nan, False
            continue
        other = scene.keyframes[index + step].boxes.moved(ego_T_global, "ego")
        if not len(box):
            continue
        place = boxes.found_in(other)[box]
        tracked = place >= 0
        moved = np.full((len(box), 2), np.nan)
        there = place[tracked]
        moved[tracked] = geometry.placed(other.centre_m[there, :2], other.yaw_rad[there], local[tracked]) - here[tracked]
        motion[s, x, y], known[s, x, y] = moved, tracked
    return Flow(motion, known, owner)


def velocities(
    scene: Scene, index: int, semantics: UInt8[Array, "X Y Z"], spec: GridSpec
) -> tuple[Float32[Array, "X Y Z 2"], Bool[Array, "X Y Z"]]:
    """Velocity of each voxel, m/s along x and y of the keyframe's ego frame, and whether it is known.

    It is the average over the interval before the keyframe, or over the one after it if the track did not exist before.
    """
    motion, known = flow(scene, index, (-1, 1), spec).of_voxels(semantics)
    frames, now = scene.keyframes, scene.keyframes[index].timestamp_us
    before_s = (frames[max(index - 1, 0)].timestamp_us - now) / 1e6
    after_s = (frames[min(index + 1, len(scene) - 1)].timestamp_us - now) / 1e6
    before, after = (part / np.float32(s or np.nan) for part, s in zip(motion, (before_s, after_s), strict=True))
    return np.where(known[0][..., None], before, after), known[0] | known[1]
