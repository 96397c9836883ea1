"""BEV-Planner's planning metric. It makes the same decisions as the released evaluator (commit 01c28d6d).

All positions are in the current ego frame (x forward, y left); paths are those of the rear axle. Vehicles and cycles with lidar points are
drawn on a grid of 0.1 m cells (row = y left, column = x forward). The ego's cells are rotated one by one to the direction of the last step,
so gaps may open between them; a step shorter than 1 m does not rotate them. A horizon collides if any of its steps does.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from iidrive.scoring import raster
from iidrive.scoring.planning.setting import VEHICLES, PlanningSteps, Setting, needs_poses
from iidrive.scoring.planning.stp3 import LEVER_M
from iidrive.scoring.planning.uniad import corners_m
from iidrive.scoring.planning.vad import horizon

Array = np.ndarray

CELLS = 1000
_CELL_M = np.float32(0.1)
_START_M = np.float32(-49.95)
_ORIGIN = float(_START_M / _CELL_M)
_AHEAD_M = 0.5 + 0.985793
"""Distance from the rear axle to the centre of the ego box: 0.5 m ahead of the lidar, at the evaluator's own lidar offset."""
_STILL_M = 1.0


def _ego_cells() -> Float[Array, "c 2"]:
    """(forward, left) of the cells inside the ego box at the origin, in cells from the origin."""
    sides = []
    for low, high in ((_AHEAD_M - 4.084 / 2, _AHEAD_M + 4.084 / 2), (-1.85 / 2, 1.85 / 2)):
        first, last = np.ceil((low - _START_M) / _CELL_M), np.floor((high - _START_M) / _CELL_M)
        sides.append(np.arange(first, last + 1) + _ORIGIN)
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)


def bevplanner(setting: Setting) -> PlanningSteps:
    """Collisions and distances of samples with a full future.

    The planned path of LIDAR_TOP is converted to the rear axle by adding its error to the true rear-axle path.

    Raises:
        DataError: if the cases have no ego poses.
    """
    true, path = paths(setting)
    use = np.flatnonzero(setting.named(VEHICLES) & setting.cases.box_valid[setting.row])
    corner, step = _corners(setting.cases.box[setting.row[use]]), setting.step[use]
    hit_true, hit_path = (_hits(corner, step, p) for p in (true, path))
    full = setting.full[:, None]
    free = ~hit_true & full
    obj_col, obj_box_col = _points(corner, step, path) & free, hit_path & free
    distance = np.where(full, np.sqrt(((path - true) ** 2).sum(axis=-1)), np.float32(0))
    per_step = {"obj_col": obj_col, "obj_box_col": obj_box_col, "L2": distance}
    detail = {f"L2_{h}s": horizon(distance, 2 * h, setting.full) for h in (1, 2, 3)}
    for name, value in (("obj_col", obj_col), ("obj_box_col", obj_box_col)):
        any_step = np.logical_or.accumulate(value, axis=1)[:, 1::2]
        found = np.where(full, any_step.astype(np.float32), np.float32(np.nan))
        detail |= {f"{name}_{h}s": found[:, h - 1] for h in (1, 2, 3)}
    return PlanningSteps(setting.cases.gt_ego_fut_masks, setting.full, per_step, {**detail, "obj_box_col_step": obj_box_col})


def paths(setting: Setting) -> tuple[Float32[Array, "n 6 2"], Float32[Array, "n 6 2"]]:
    """True and planned positions of the rear axle in the current ego frame (x forward, y left), metres."""
    lidar, ego = needs_poses(setting.cases)
    true = ego[:, 1:, :2]
    error = setting.path.astype(np.float64) - lidar[:, 1:, :2]
    return true.astype(np.float32), (true + np.stack([error[..., 1], -error[..., 0]], axis=-1)).astype(np.float32)


def _corners(box: Float[Array, "k 7"]) -> Float[Array, "k 4 2"]:
    """Box corners as cells (column forward, row left), truncated to whole cells."""
    ego = box.copy()
    ego[:, 0], ego[:, 1], ego[:, 6] = box[:, 1] + LEVER_M, -box[:, 0], box[:, 6] - np.pi / 2
    return np.trunc((corners_m(ego) - _START_M) / _CELL_M).astype(np.float64)


def _hits(corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"]) -> Bool[Array, "n 6"]:
    hop = np.diff(path, axis=1, prepend=np.float32(0)).reshape(-1, 2)
    turn = np.where(np.sqrt((hop**2).sum(axis=1)) < np.float32(_STILL_M), np.float32(0), np.arctan2(hop[:, 1], hop[:, 0]))
    at = (path.reshape(-1, 2) / _CELL_M).astype(np.float64)
    ego = _ego_cells()
    # Cells are computed only for steps with an obstacle within reach.
    reach = float(np.linalg.norm(ego, axis=1).max()) + 3
    low, high = raster.extent(corner)
    middle, half = (low + high) / 2, (high - low) / 2
    centre = np.clip(at - _ORIGIN, 0, CELLS - 1)[step]
    near = (np.abs(middle - centre) <= half + reach).all(axis=1)
    busy, which = np.unique(step[near], return_inverse=True)
    out = np.zeros(len(at), bool)
    near_corner = corner[near]
    for some in np.split(np.arange(len(busy)), np.arange(1024, len(busy), 1024)):
        if not len(some):
            continue
        mine = (which >= some[0]) & (which <= some[-1])
        cos, sin = np.cos(turn[busy[some]])[:, None], np.sin(turn[busy[some]])[:, None]
        forward = np.round(ego[:, 0] * cos - ego[:, 1] * sin - _ORIGIN)
        left = np.round(ego[:, 0] * sin + ego[:, 1] * cos - _ORIGIN)
        cell = np.stack([left, forward], axis=-1) + at[busy[some], None, ::-1]
        cell = np.clip(np.trunc(cell), 0, CELLS - 1)
        out[busy[some]] = raster.cells_hit(near_corner[mine], which[mine] - some[0], cell, CELLS).any(axis=1)
    return out.reshape(path.shape[:2])


def _points(corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"]) -> Bool[Array, "n 6"]:
    cell = np.trunc((path.reshape(-1, 2) - _START_M) / _CELL_M).astype(np.float64)
    inside = ((cell >= 0) & (cell < CELLS)).all(axis=1)
    return (raster.rectangles_hit(corner, step, cell[:, [1, 1, 0, 0]], CELLS) & inside).reshape(path.shape[:2])
