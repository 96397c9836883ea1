"""UniAD's planning metric. It makes the same decisions as the released evaluator (commit dd161b22).

Vehicles and cycles, with or without lidar points, are drawn into a 200 x 200 image of 0.5 m cells in the lidar frame (row = y forward,
column = x right). The ego is a block of 8 x 4 cells that is never rotated. All samples count: a step without a future keyframe adds 0 to the sum
and still counts in the denominator, so the values shrink with the horizon.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int

from iidrive.core.errors import DataError
from iidrive.core.geometry import turned_corners
from iidrive.scoring import npz, raster
from iidrive.scoring.planning.setting import VEHICLES, PlanningSteps, Setting

Array = np.ndarray

CELLS = 200
CELL_M = 0.5
EDGE_M = -50.0
EGO_CELLS = (97, 104, 98, 101)
"""First and last row, first and last column of the ego block with the ego at the origin: -1.5..2.5 m forward, 1 m to each side."""


def uniad(setting: Setting) -> PlanningSteps:
    """Collisions and distances of every sample.

    Raises:
        DataError: if a sample has no plan. This evaluator also counts samples without a full future.
    """
    cases = setting.cases
    if not setting.planned.all():
        lacking = [cases.token[i] for i in np.flatnonzero(~setting.planned)]
        raise DataError(
            f"{cases.where}: UniAD also counts samples without a full future, and {npz.few(lacking)} have no plan; predict every sample."
        )
    use = np.flatnonzero(setting.named(VEHICLES))
    corner = corners(cases.box[setting.row[use]])
    step = setting.step[use]
    shape = setting.path.shape[:2]
    true, planned = (block_hits(corner, step, p, CELLS, EGO_CELLS) for p in (setting.true, setting.path))
    point = _points(corner, step, setting.path).reshape(shape)
    mask = cases.gt_ego_fut_masks
    # The image of a missing keyframe is all "unknown", which counts as occupied. So the true path collides and the step is not counted.
    true, planned = true.reshape(shape) | ~mask, planned.reshape(shape)
    obj_col, obj_box_col = point & ~true, planned & ~true
    distance = np.where(mask, setting.distance(), np.float32(0))
    per_step = {"obj_col": obj_col, "obj_box_col": obj_box_col, "L2": distance}
    detail = {"obj_col": obj_col.astype(np.float32), "obj_box_col": obj_box_col.astype(np.float32), "L2": distance, "gt_box_coll": true}
    return PlanningSteps(mask, np.ones(len(cases), bool), per_step, detail)


def corners(box: Array) -> Float32[Array, "k 4 2"]:
    """Corners of boxes (k,7) as whole cells (column, row), in mmdet3d's float32 arithmetic."""
    return np.round((corners_m(box) + np.float32(-EDGE_M)) / np.float32(CELL_M))


def corners_m(box: Array) -> Float32[Array, "k 4 2"]:
    """Corners of boxes (k,7), float32 metres, in order around the box."""
    box = box.astype(np.float32)
    return turned_corners(box[:, :2], box[:, 3:5], np.cos(box[:, 6]), np.sin(box[:, 6]))


def block_hits(
    corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"], size: int, block: tuple[int, int, int, int]
) -> Bool[Array, "s"]:
    """Whether the ego block, moved to the cell of the path, overlaps a polygon at each flat step."""
    cell = np.floor(path.reshape(-1, 2).astype(np.float64) / CELL_M)
    bound = np.stack([cell[:, 1] + block[0], cell[:, 1] + block[1], cell[:, 0] + block[2], cell[:, 0] + block[3]], axis=-1)
    return raster.rectangles_hit(corner, step, np.clip(bound, 0, size - 1), size)


def _points(corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"]) -> Bool[Array, "s"]:
    """Whether the cell of the path point is covered at each flat step; false outside the image."""
    start = np.float32(EDGE_M + CELL_M / 2)
    cell = np.trunc((path.reshape(-1, 2) - start) / np.float32(CELL_M)).astype(np.float64)
    inside = ((cell >= 0) & (cell < CELLS)).all(axis=1)
    return raster.rectangles_hit(corner, step, cell[:, [1, 1, 0, 0]], CELLS) & inside
