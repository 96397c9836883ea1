"""Open-loop planning protocols: what one evaluator says about each step of each sample, before any averaging.

A protocol is a pure function of the cases and the planned paths. It returns per-sample values with a flag for which samples count;
`score` turns them into a table. To add one, write its function, add a row to `PROTOCOLS`, and pin it to that evaluator's own outputs.
Numbers of different protocols are never comparable, so each row of `PROTOCOLS` says in words what its numbers mean.

Shape letters: n samples, m boxes of all samples and steps, p box-step pairs near an ego box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from jaxtyping import Bool, Float, Float32, Int

from iidrive.errors import ConfigError, DataError, unknown
from iidrive.eval.cases import Cases, require_finite
from iidrive.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray


@dataclass(frozen=True)
class PlanningSteps:
    """What a protocol finds at each of the six steps; rows that are not `evaluated` hold 0.

    `gt_col`, `pred_col_raw`: the true or planned ego box hits an obstacle. `obj_box_col`: the planned one hits and the true one does not.
    `L2` metres between the planned and the true position. `yaw_gt`, `yaw_pred` radians, the headings that the boxes were given.
    """

    evaluated: Bool[Array, "n"]
    gt_col: Bool[Array, "n 6"]
    pred_col_raw: Bool[Array, "n 6"]
    obj_box_col: Bool[Array, "n 6"]
    L2: Float32[Array, "n 6"]
    yaw_gt: Float32[Array, "n 6"]
    yaw_pred: Float32[Array, "n 6"]


@dataclass(frozen=True)
class Protocol:
    """One evaluator: its function, its printed rows (row name → field of `PlanningSteps`), and what its numbers mean in words.

    `averaged` are the columns (indices of steps) whose mean is the single number of a row.
    """

    name: str
    evaluate: Callable[[Cases, Array], PlanningSteps]
    rows: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    averaged: tuple[int, ...]
    frame: str
    obstacles: str
    ego_box: str
    heading: str
    averaging: str
    samples: str


# SparseDrive. The sizes are held in float32 there, which moves decisions between boxes that touch.
_EGO_LENGTH_M = float(np.float32(4.084))
_EGO_WIDTH_M = float(np.float32(1.85))
_EGO_AHEAD_M = 0.5
"""The ego box's centre lies this far ahead of the path's point, along the heading."""
_STILL_M = 0.5
"""First and last point of a path closer than this: the heading is straight ahead at all steps."""
_SLACK_M = 1e-3
"""Added to the reach within which two boxes could touch; far above any rounding, so leaving out the rest changes no decision."""

_CORNER_ALONG = np.array([-0.5, -0.5, 0.5, 0.5])
_CORNER_LEFT = np.array([-0.5, 0.5, 0.5, -0.5])


def sparsedrive_yaw(path: Float32[Array, "n 6 2"]) -> Float32[Array, "n 6"]:
    """Heading at each step, radians: direction from the previous to the next point (the origin comes before the first); at the last
    step from the one before; pi/2 at all steps where the first and the last of the six points are less than 0.5 m apart.

    Computed by PyTorch in float32, as the evaluator does: its rounding decides between boxes that barely touch.
    """
    points = torch.from_numpy(np.ascontiguousarray(path, np.float32))
    padded = torch.cat([torch.zeros_like(points[:, :1]), points], dim=1)
    hop = torch.cat([padded[:, 2:] - padded[:, :-2], padded[:, -1:] - padded[:, -2:-1]], dim=1)
    yaw = torch.atan2(hop[..., 1], hop[..., 0])
    still = torch.linalg.norm(points[:, -1] - points[:, 0], dim=-1) < _STILL_M
    return torch.where(still[:, None], torch.tensor(np.pi / 2, dtype=torch.float32), yaw).numpy()


def sparsedrive(cases: Cases, trajectories: Float[Array, "n 6 2"]) -> PlanningSteps:
    """SparseDrive's open-loop planning metric (released evaluator, commit ec0225d4), decision for decision.

    `trajectories` are LIDAR_TOP positions in each sample's lidar frame, metres, in the order of the cases. Only samples with six future
    keyframes are evaluated. Obstacles are the boxes with lidar points of all classes at the same step; touching counts.

    Raises:
        DataError: for another shape, or NaN or infinity in an evaluated path.
    """
    path = np.asarray(trajectories, np.float32)
    if path.shape != (len(cases), FUTURE_STEPS, 2):
        raise DataError(f"{cases.where}: {len(cases)} samples need paths of shape {(len(cases), FUTURE_STEPS, 2)}; found {path.shape}.")
    evaluated = cases.full
    require_finite(path, evaluated, cases.token, cases.where)
    # Rows that are not evaluated may hold anything; zeros keep them quiet.
    path = np.where(evaluated[:, None, None], path, np.float32(0))
    true = np.where(evaluated[:, None, None], cases.true_path(), np.float32(0))
    offset = torch.from_numpy(path) - torch.from_numpy(true)
    distance = (offset**2).sum(dim=-1).sqrt().numpy()
    yaw_gt, yaw_pred = sparsedrive_yaw(true), sparsedrive_yaw(path)

    row = np.flatnonzero((cases.box_t > 0) & cases.box_valid & evaluated[cases.box_case])
    step = cases.box_case[row].astype(np.int64) * FUTURE_STEPS + cases.box_t[row] - 1
    gt_col = sparsedrive_hits(true, yaw_gt, cases.box, row, step)
    raw = sparsedrive_hits(path, yaw_pred, cases.box, row, step)
    counted = evaluated[:, None]
    return PlanningSteps(
        evaluated,
        gt_col,
        raw,
        raw & ~gt_col,
        distance,
        np.where(counted, yaw_gt, np.float32(0)),
        np.where(counted, yaw_pred, np.float32(0)),
    )


def sparsedrive_hits(
    path: Float32[Array, "n 6 2"], yaw: Float32[Array, "n 6"], box: Float[Array, "m 7"], row: Int[Array, "k"], step: Int[Array, "k"]
) -> Bool[Array, "n 6"]:
    """Whether the ego box at each step shares a point with an obstacle.

    `box[row[i]]` is an obstacle at flat step `step[i]` (sample times 6, plus step 0..5). Boxes of zero or negative size are obstacles
    like any other: a polygon without area still has its corners.

    Raises:
        DataError: if such an obstacle holds NaN or infinity (the evaluator raises there too).
    """
    # float32 for the centre and the cosines, float64 from the corners on: the order of the evaluator's arithmetic.
    angle = torch.from_numpy(np.ascontiguousarray(yaw)).reshape(-1)
    ahead = torch.stack([angle.cos(), angle.sin()], dim=-1)
    centre = (torch.from_numpy(np.ascontiguousarray(path)).reshape(-1, 2) + _EGO_AHEAD_M * ahead).numpy()
    length, width = np.full(len(centre), _EGO_LENGTH_M), np.full(len(centre), _EGO_WIDTH_M)
    x, y, half = box[row, 0], box[row, 1], 0.5 * np.hypot(box[row, 3], box[row, 4])
    gap = (x - centre[step, 0]) ** 2 + (y - centre[step, 1]) ** 2
    if not np.isfinite(gap).all() or not np.isfinite(half).all() or not np.isfinite(box[row, 6]).all():
        raise DataError("an obstacle's box or an ego position holds NaN or infinity; no collision can be decided.")
    near = np.flatnonzero(gap <= (half + 0.5 * np.hypot(_EGO_LENGTH_M, _EGO_WIDTH_M) + _SLACK_M) ** 2)
    obstacle, at = box[row[near]], step[near]
    turned = yaw.reshape(-1)[at]
    rotation = np.cos(turned).astype(np.float64), np.sin(turned).astype(np.float64)
    ego = _polygons(centre[at].astype(np.float64), length[at], width[at], *rotation)
    other = _polygons(obstacle[:, :2], obstacle[:, 3], obstacle[:, 4], np.cos(obstacle[:, 6]), np.sin(obstacle[:, 6]))
    out = np.zeros(len(centre), bool)
    out[at[shapely.intersects(ego, other)]] = True
    return out.reshape(yaw.shape)


def _polygons(
    centre: Float[Array, "p 2"], length: Float[Array, "p"], width: Float[Array, "p"], cos: Float[Array, "p"], sin: Float[Array, "p"]
) -> Array:
    """Shapely polygons of rotated rectangles, corners in float64, clockwise from the rear right."""
    along = length[:, None] * _CORNER_ALONG
    left = width[:, None] * _CORNER_LEFT
    x = along * cos[:, None] - left * sin[:, None] + centre[:, :1]
    y = along * sin[:, None] + left * cos[:, None] + centre[:, 1:]
    return np.asarray(shapely.polygons(np.stack([x, y], axis=-1)))


PROTOCOLS: dict[str, Protocol] = {
    "sparsedrive": Protocol(
        name="sparsedrive",
        evaluate=sparsedrive,
        rows=(("obj_col", "gt_col"), ("obj_box_col", "obj_box_col"), ("L2", "L2")),
        columns=tuple(f"{STEP_S * (t + 1):.1f}s" for t in range(FUTURE_STEPS)),
        averaged=(1, 3, 5),
        frame="LIDAR_TOP of the current keyframe, x right, y forward",
        obstacles="boxes of all classes with lidar points, at the same step; obj_col is the true path's own collision rate",
        ego_box="4.084 x 1.85 m, centre 0.5 m ahead of the path's point along the heading; polygons, touching counts",
        heading="central difference including the origin, last step backward, straight ahead if the path's ends are within 0.5 m",
        averaging="each column is the mean of the steps up to it; avg is the mean of the 1 s, 2 s and 3 s columns",
        samples="samples with six future keyframes (5119 on nuScenes val)",
    )
}
"""Every protocol by name. A number means nothing without the row that made it."""


def protocol_named(name: str) -> Protocol:
    """A row of `PROTOCOLS`. Raises ConfigError for an unknown name, naming the nearest known one."""
    if name not in PROTOCOLS:
        raise ConfigError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]
