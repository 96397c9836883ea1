"""VAD's planning metric (released evaluator, commit 1688c4b1), which OccWorld copies without the range filter (commit 1ee7f77e).

Obstacles are vehicles and humans with lidar points at t = 0. Each keeps its size of t = 0 and moves by its float32 displacements until the first
keyframe without it. They are drawn into UniAD's grid with reversed rows (row = -y, column = x right), which shifts the ego block by up to one
cell. `obj_col` reads cells about 25 m away from the planned point, because the published code halves the grid's start. This is kept to reproduce
its numbers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from iidrive.core.geometry import turned_corners
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring import raster
from iidrive.scoring.cases import Cases
from iidrive.scoring.planning.setting import PlanningSteps, Setting, agent_numbers, road_users
from iidrive.scoring.planning.uniad import CELL_M, CELLS, EDGE_M, EGO_CELLS

Array = np.ndarray

RANGE_M = (15.0, 30.0)
"""VAD keeps agents whose centre at t = 0 has |x| and |y| below these limits, lidar frame."""


def vad(setting: Setting) -> PlanningSteps:
    """Collisions and distances of samples with a full future. Agents count within |x| < 15 m and |y| < 30 m."""
    return _evaluate(setting, RANGE_M)


def occworld(setting: Setting) -> PlanningSteps:
    """VAD's metric without the range filter."""
    return _evaluate(setting, None)


def _evaluate(setting: Setting, within_m: tuple[float, float] | None) -> PlanningSteps:
    corner, step = followed(setting.cases, within_m)
    true, planned = (_block_hits(corner, step, p) for p in (setting.true, setting.path))
    full = setting.full[:, None]
    free = ~true & full
    obj_col, obj_box_col = _points(corner, step, setting.path) & free, planned & free
    distance = np.where(full, setting.distance(), np.float32(0))
    per_step = {"obj_col": obj_col, "obj_box_col": obj_box_col, "L2": distance}
    detail = {f"{name}_{h}s": horizon(value, 2 * h, setting.full) for name, value in per_step.items() for h in (1, 2, 3)}
    return PlanningSteps(setting.cases.gt_ego_fut_masks, setting.full, per_step, {**detail, "obj_box_col_step": obj_box_col})


def horizon(value: Array, steps: int, evaluated: Bool[Array, "n"]) -> Float32[Array, "n"]:
    """Mean of the first `steps` steps of each sample, summed sequentially in float32; NaN for samples that are not evaluated."""
    total = np.cumsum(value[:, :steps].astype(np.float32), axis=1, dtype=np.float32)[:, -1]
    return np.where(evaluated, total / np.float32(steps), np.float32(np.nan))


def followed(cases: Cases, within_m: tuple[float, float] | None) -> tuple[Float[Array, "k 4 2"], Int[Array, "k"]]:
    """Corners, as cells (column, row), of every tracked agent at every step until its track ends, and their flat steps."""
    key, agents = agent_numbers(cases)
    key = key * (FUTURE_STEPS + 1)
    # One row per sample and agent: the index of its box at each step, or -1.
    first = np.flatnonzero((cases.box_t == 0) & road_users(cases)[cases.box_label] & cases.box_valid)
    if within_m is not None:
        near = (np.abs(cases.box[first, :2].astype(np.float32)) < np.array(within_m, np.float32)).all(axis=1)
        first = first[near]
    where = np.full(agents * (FUTURE_STEPS + 1), -1)
    where[key + cases.box_t] = np.arange(len(key))
    track = where[key[first, None] + np.arange(FUTURE_STEPS + 1)]
    seen = np.logical_and.accumulate(track >= 0, axis=1)[:, 1:]
    box = cases.box[np.where(track >= 0, track, 0)]
    hop = np.where(seen[..., None], np.diff(box[..., :2], axis=1), 0).astype(np.float32)
    turn = np.where(seen, np.diff(box[..., 6], axis=1), 0).astype(np.float32)
    centre = np.cumsum(hop, axis=1, dtype=np.float32) + box[:, :1, :2].astype(np.float32)
    half_turn = np.float32(np.pi / 2)
    stored = (-box[:, :1, 6] - np.pi / 2).astype(np.float32)
    yaw = np.cumsum(turn, axis=1, dtype=np.float32) - (stored + half_turn)
    agent, t = np.nonzero(seen)
    corner = _corners(centre[agent, t], yaw[agent, t], box[agent, 0, 3:5].astype(np.float32))
    return corner, cases.box_case[first[agent]].astype(np.int64) * FUTURE_STEPS + t


def _corners(centre: Float32[Array, "k 2"], yaw: Float32[Array, "k"], size: Float32[Array, "k 2"]) -> Float[Array, "k 4 2"]:
    corner = turned_corners(centre, size, np.cos(yaw), np.sin(yaw)) * np.array([1, -1], np.float32)
    return np.round((corner.astype(np.float64) - EDGE_M) / CELL_M)


def _block_hits(corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"]) -> Bool[Array, "n 6"]:
    at = path.reshape(-1, 2).astype(np.float64) / CELL_M
    rows = np.trunc(CELLS - (at[:, 1:] + (EGO_CELLS[1], EGO_CELLS[0])))
    columns = np.trunc(at[:, :1] + EGO_CELLS[2:])
    bound = np.clip(np.concatenate([rows, columns], axis=1), 0, CELLS - 1)
    return raster.rectangles_hit(corner, step, bound, CELLS).reshape(path.shape[:2])


def _points(corner: Array, step: Int[Array, "k"], path: Float32[Array, "n 6 2"]) -> Bool[Array, "n 6"]:
    """Whether the cell that the evaluator reads for the planned point is covered."""
    start = np.float32((EDGE_M + CELL_M / 2) / 2)
    flat = path.reshape(-1, 2)
    row = np.trunc((-start - flat[:, 1]) / np.float32(CELL_M)).astype(np.float64)
    column = np.trunc((-start + flat[:, 0]) / np.float32(CELL_M)).astype(np.float64)
    inside = (row >= 0) & (row < CELLS) & (column >= 0) & (column < CELLS)
    hit = raster.rectangles_hit(corner, step, np.stack([row, row, column, column], axis=1), CELLS) & inside
    return hit.reshape(path.shape[:2])
