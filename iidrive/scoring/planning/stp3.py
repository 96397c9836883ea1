"""ST-P3's planning metric and AD-MLP's copy of it. They make the same decisions as the released evaluators (commits 6b11e132, 4b93ba08).

Each future keyframe is drawn in its own ego frame (row = x forward, column = y left). Vehicles and humans that exist at t = 0 are drawn, with or
without lidar points. The image is sampled from the current frame by nearest cell. The path of LIDAR_TOP (lidar frame) is used on this ego-frame
image unchanged: the 0.94 m between lidar and rear axle is ignored. The ego is UniAD's block, which is never rotated.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from iidrive.core.geometry import turned_corners
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring import raster
from iidrive.scoring.cases import Cases
from iidrive.scoring.planning.setting import PlanningSteps, Setting, agent_numbers, needs_poses, road_users
from iidrive.scoring.planning.uniad import CELL_M, CELLS, EDGE_M, EGO_CELLS

Array = np.ndarray

_PROBE = np.stack(np.meshgrid(np.arange(EGO_CELLS[0], EGO_CELLS[1] + 1), np.arange(EGO_CELLS[2], EGO_CELLS[3] + 1)), -1).reshape(-1, 2)
"""Row and column of the ego block's 32 cells when the ego is at the origin."""
LEVER_M = 0.943713
"""Distance from the rear axle forward to LIDAR_TOP in nuScenes."""
_STILL_M = 0.1
"""AD-MLP treats a plan that stays within this |x| and |y| as standing still."""


def stp3(setting: Setting) -> PlanningSteps:
    """Collisions and distances of samples with a full future.

    Raises:
        DataError: if the cases have no ego poses.
    """
    per_step = _per_step(setting, _looked_up(setting, setting.true)[0], *_looked_up(setting, setting.path), setting.distance())
    return PlanningSteps(
        setting.cases.gt_ego_fut_masks, setting.full, per_step, _detail(setting, per_step, ("obj_col", "obj_box_col", "L2"))
    )


def admlp(setting: Setting) -> PlanningSteps:
    """ST-P3's metric, with plans that stay within 0.1 m of the origin scored as standing still. `obj_col` is always 0.

    Whether a plan stands still is decided separately for the steps of each horizon. So `per_step` also holds `L2_1s` and so on for 1 and 2 s.
    """
    true, (planned, _) = _looked_up(setting, setting.true)[0], _looked_up(setting, setting.path)
    nowhere = replace(setting, path=np.zeros_like(setting.path))
    still_hit, _ = _looked_up(nowhere, nowhere.path)
    distance, still_distance = setting.distance(), nowhere.distance()
    never = np.zeros_like(planned)
    per_step: dict[str, Array] = {}
    for h in (1, 2, 3):
        still = (np.abs(setting.path[:, : 2 * h]).max(axis=(1, 2)) < np.float32(_STILL_M))[:, None]
        found = _per_step(setting, true, np.where(still, still_hit, planned), never, np.where(still, still_distance, distance))
        per_step |= {name if h == 3 else f"{name}_{h}s": value for name, value in found.items()}
    return PlanningSteps(setting.cases.gt_ego_fut_masks, setting.full, per_step, _detail(setting, per_step, ("obj_box_col", "L2")))


def _looked_up(setting: Setting, path: Float32[Array, "n 6 2"]) -> tuple[Bool[Array, "n 6"], Bool[Array, "n 6"]]:
    """Whether an obstacle covers a cell of the ego block, and whether one covers the path point, at each step."""
    point = _point(path)
    source = warped(np.concatenate([_probes(path), point[:, :, None]], axis=2), needs_poses(setting.cases)[1])
    hit = _covered(setting.cases, source.reshape(-1, *source.shape[2:])).reshape(source.shape[:3])
    inside = ((point >= 0) & (point < CELLS)).all(axis=2)
    return np.any(hit[:, :, :-1], axis=2).reshape(inside.shape), hit[:, :, -1] & inside


def _per_step(setting: Setting, true: Array, planned: Array, point: Array, distance: Array) -> dict[str, Array]:
    counted = setting.full[:, None] & ~true
    return {
        "obj_col": point & counted,
        "obj_box_col": planned & counted,
        "L2": np.where(setting.full[:, None], distance, np.float32(0)),
    }


def _detail(setting: Setting, per_step: dict[str, Array], names: tuple[str, ...]) -> dict[str, Array]:
    return {name: np.where(setting.full[:, None], per_step[name].astype(np.float32), np.float32(np.nan)) for name in names}


def _probes(path: Float32[Array, "n 6 2"]) -> Float[Array, "n 6 32 2"]:
    """(row, column) of the ego block's cells along a path: rows from y forward, columns from x to the left."""
    at = path[..., ::-1].astype(np.float64) * (1, -1) / CELL_M
    return np.clip(np.trunc(at[:, :, None] + _PROBE), 0, CELLS - 1)


def _point(path: Float32[Array, "n 6 2"]) -> Float[Array, "n 6 2"]:
    start = np.float32(EDGE_M + CELL_M / 2)
    flipped = path[..., ::-1] * np.array((1, -1), np.float32)
    return np.trunc((flipped - start) / np.float32(CELL_M)).astype(np.float64)


def warped(cell: Float[Array, "n 6 c 2"], ego_pose: Float[Array, "n 7 3"]) -> Float[Array, "n 6 c 2"]:
    """The cell (row, column) of each future keyframe's own image that the evaluator samples for a cell of the current image.

    This is the evaluator's float32 grid sampling: cell centres in -1..1 are rotated by the accumulated yaw, shifted by the accumulated
    translation, and rounded.
    """
    yaw, shift = _accumulated(ego_pose)
    cos, sin = torch.cos(yaw)[..., None], torch.sin(yaw)[..., None]
    centre = torch.linspace(-1, 1, CELLS) * (CELLS - 1) / CELLS
    index = torch.from_numpy(np.clip(cell, 0, CELLS - 1).astype(np.int64))
    row, column = centre[index[..., 0]], centre[index[..., 1]]
    reach = -EDGE_M
    x = column * cos - row * sin + (shift[..., 1] / reach)[..., None]
    y = column * sin + row * cos + (-(shift[..., 0] / reach))[..., None]
    where = torch.stack([y, x], dim=-1)
    return torch.round(((where + 1) * CELLS - 1) / 2).numpy().astype(np.float64)


def _accumulated(ego_pose: Float[Array, "n 7 3"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Yaw (n,6), radians, and translation (n,6,2), metres, of each future keyframe in the current ego frame, multiplied step by step in float32."""
    pose = _planar(torch.from_numpy(ego_pose))
    between = (torch.linalg.inv(pose[:, 1:]) @ pose[:, :-1]).float()
    yaws, shifts = [], []
    total = torch.eye(3).expand(len(pose), 3, 3)
    for t in range(FUTURE_STEPS):
        step = between[:, t]
        turned = step[:, :2, :2].transpose(1, 2)
        back = torch.eye(3).repeat(len(pose), 1, 1)
        back[:, :2, :2] = turned
        back[:, :2, 2] = -(turned @ step[:, :2, 2:])[..., 0]
        total = total @ back
        yaws.append(torch.atan2(-total[:, 0, 1], total[:, 0, 0]))
        shifts.append(total[:, :2, 2])
    return torch.stack(yaws, 1), torch.stack(shifts, 1)


def _planar(pose: torch.Tensor) -> torch.Tensor:
    cos, sin, one = torch.cos(pose[..., 2]), torch.sin(pose[..., 2]), torch.ones_like(pose[..., 2])
    rows = [[cos, -sin, pose[..., 0]], [sin, cos, pose[..., 1]], [0 * one, 0 * one, one]]
    return torch.stack([torch.stack(r, -1) for r in rows], -2)


def obstacles(cases: Cases) -> Int[Array, "k"]:
    """Rows of the future boxes that are drawn: vehicles and humans whose agent is a vehicle or human at t = 0 too."""
    drawn = road_users(cases)[cases.box_label]
    key, agents = agent_numbers(cases)
    known = np.zeros(agents, bool)
    known[key[drawn & (cases.box_t == 0)]] = True
    return np.flatnonzero(drawn & (cases.box_t > 0) & known[key])


def own_corners(cases: Cases, row: Int[Array, "k"]) -> Float[Array, "k 4 2"]:
    """Box corners as cells (column, row) in the image of the box's own keyframe."""
    pose = needs_poses(cases)[1][cases.box_case[row], cases.box_t[row]]
    box = cases.box[row]
    # From the current lidar frame to the current ego frame (a quarter turn and the lever arm), then to the ego frame of the box's keyframe.
    x, y = box[:, 1] + LEVER_M - pose[:, 0], -box[:, 0] - pose[:, 1]
    cos, sin = np.cos(pose[:, 2]), np.sin(pose[:, 2])
    x, y = x * cos + y * sin, y * cos - x * sin
    yaw = box[:, 6] - np.pi / 2 - pose[:, 2]
    corner = turned_corners(np.stack([x, y], axis=-1), box[:, 3:5], np.cos(yaw), np.sin(yaw))
    return np.round((corner[..., ::-1] - EDGE_M) / CELL_M)


def _covered(cases: Cases, cell: Float[Array, "s c 2"]) -> Bool[Array, "s c"]:
    """Whether each cell (row, column) of a flat step is covered in the image of that step."""
    row = obstacles(cases)
    step = cases.box_case[row].astype(np.int64) * FUTURE_STEPS + cases.box_t[row] - 1
    return raster.cells_hit(own_corners(cases, row), step, cell, CELLS)
