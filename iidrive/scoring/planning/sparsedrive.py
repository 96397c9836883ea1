"""SparseDrive's open-loop planning metric. It makes the same decisions as the released evaluator (commit ec0225d4).

Obstacles are boxes of all classes with lidar points at the same step, as polygons. Polygons that touch count as a collision. Only samples with
six future keyframes are evaluated.
"""

from __future__ import annotations

import numpy as np
import shapely
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from iidrive.core.errors import DataError
from iidrive.core.geometry import turned_corners
from iidrive.scoring.planning.setting import PlanningSteps, Setting

Array = np.ndarray

# The evaluator holds these sizes in float32, which changes decisions between boxes that barely touch.
_EGO_LENGTH_M = float(np.float32(4.084))
_EGO_WIDTH_M = float(np.float32(1.85))
_EGO_AHEAD_M = 0.5
"""Distance from the path point to the centre of the ego box, along the heading."""
_STILL_M = 0.5
"""If the first and last point of a path are closer than this, the heading is straight ahead at all steps."""
_SLACK_M = 1e-3
"""Margin of the distance filter. It is far above any rounding error, so the filter changes no decision."""


def sparsedrive_yaw(path: Float32[Array, "n 6 2"]) -> Float32[Array, "n 6"]:
    """Heading at each step, radians, lidar frame.

    It is the direction from the previous to the next point; the origin precedes the first point. At the last step it is the direction from the
    previous point. If the first and the last of the six points are less than 0.5 m apart, it is pi/2 at all steps.

    Computed by PyTorch in float32 as in the evaluator, because the rounding decides between boxes that barely touch.
    """
    hop, still = _hops(path)
    yaw = torch.atan2(hop[..., 1], hop[..., 0])
    return torch.where(still[:, None], torch.tensor(np.pi / 2, dtype=torch.float32), yaw).numpy()


HEADLESS = "obj_box_col_headless"
"""Name of `without_heading` among a sample's values."""


def without_heading(path: Float32[Array, "n 6 2"]) -> Bool[Array, "n 6"]:
    """Steps whose heading is that of a hop of length 0, so that the evaluator turns the car to face right. None if the whole path stands still."""
    hop, still = _hops(path)
    return ((hop == 0).all(-1) & ~still[:, None]).numpy()


def _hops(path: Float32[Array, "n 6 2"]) -> tuple[Float32[Tensor, "n 6 2"], Bool[Tensor, "n"]]:
    """The hop that gives each step its heading, and whether the whole path stands still."""
    points = torch.from_numpy(np.ascontiguousarray(path, np.float32))
    padded = torch.cat([torch.zeros_like(points[:, :1]), points], dim=1)
    hop = torch.cat([padded[:, 2:] - padded[:, :-2], padded[:, -1:] - padded[:, -2:-1]], dim=1)
    return hop, torch.linalg.norm(points[:, -1] - points[:, 0], dim=-1) < _STILL_M


def sparsedrive(setting: Setting) -> PlanningSteps:
    """Collisions and distances of samples with a full future.

    Raises:
        DataError: if an obstacle near a path has NaN or infinity.
    """
    cases, full = setting.cases, setting.full
    # Samples that are not evaluated may hold any value; use 0 to avoid warnings.
    path = np.where(full[:, None, None], setting.path, np.float32(0))
    true = np.where(full[:, None, None], setting.true, np.float32(0))
    distance = np.where(full[:, None], setting.distance(), np.float32(0))
    yaw_gt, yaw_pred = sparsedrive_yaw(true), sparsedrive_yaw(path)
    use = cases.box_valid[setting.row] & full[cases.box_case[setting.row]]
    row, step = setting.row[use], setting.step[use]
    gt_col = sparsedrive_hits(true, yaw_gt, cases.box, row, step)
    raw = sparsedrive_hits(path, yaw_pred, cases.box, row, step)
    found = raw & ~gt_col
    counted = full[:, None]
    yaw = {"yaw_gt": np.where(counted, yaw_gt, np.float32(0)), "yaw_pred": np.where(counted, yaw_pred, np.float32(0))}
    per_step = {"obj_col": gt_col, "obj_box_col": found, "L2": distance, HEADLESS: without_heading(path)}
    return PlanningSteps(
        cases.gt_ego_fut_masks, full, per_step, {"gt_col": gt_col, "pred_col_raw": raw, "obj_box_col": found, "L2": distance, **yaw}
    )


def sparsedrive_hits(
    path: Float32[Array, "n 6 2"], yaw: Float32[Array, "n 6"], box: Float[Array, "m 7"], row: Int[Array, "k"], step: Int[Array, "k"]
) -> Bool[Array, "n 6"]:
    """Whether the ego box at each step shares a point with an obstacle.

    `box[row[i]]` is an obstacle at flat step `step[i]` (6 * sample + 0..5). Boxes of zero or negative size are obstacles too: a polygon without
    area still has corners.

    Raises:
        DataError: if such an obstacle has NaN or infinity (the evaluator raises, too).
    """
    # As in the evaluator: the centre and the cosines are float32, the corners and everything after them float64.
    angle = torch.from_numpy(np.ascontiguousarray(yaw)).reshape(-1)
    ahead = torch.stack([angle.cos(), angle.sin()], dim=-1)
    centre = (torch.from_numpy(np.ascontiguousarray(path)).reshape(-1, 2) + _EGO_AHEAD_M * ahead).numpy()
    x, y, half = box[row, 0], box[row, 1], 0.5 * np.hypot(box[row, 3], box[row, 4])
    gap = (x - centre[step, 0]) ** 2 + (y - centre[step, 1]) ** 2
    if not np.isfinite(gap).all() or not np.isfinite(half).all() or not np.isfinite(box[row, 6]).all():
        raise DataError("an obstacle's box or an ego position holds NaN or infinity, so collisions cannot be decided.")
    near = np.flatnonzero(gap <= (half + 0.5 * np.hypot(_EGO_LENGTH_M, _EGO_WIDTH_M) + _SLACK_M) ** 2)
    obstacle, at = box[row[near]], step[near]
    turned = yaw.reshape(-1)[at]
    rotation = np.cos(turned).astype(np.float64), np.sin(turned).astype(np.float64)
    ego = turned_corners(centre[at].astype(np.float64), np.full((len(at), 2), (_EGO_LENGTH_M, _EGO_WIDTH_M)), *rotation)
    other = turned_corners(obstacle[:, :2], obstacle[:, 3:5], np.cos(obstacle[:, 6]), np.sin(obstacle[:, 6]))
    out = np.zeros(len(centre), bool)
    out[at[shapely.intersects(shapely.polygons(ego), shapely.polygons(other))]] = True
    return out.reshape(yaw.shape)
