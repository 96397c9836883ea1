"""Exact outcomes of candidate plans, from true boxes and the map: labels for training, and the truth beside predictions.

Shapes: B batch, A candidates, S steps, R steps with a known second after them, N boxes, X, Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iidrive.core.batch import Targets
from iidrive.core.comfort import Limits
from iidrive.core.footprint import EGO_SIZE_M
from iidrive.core.scene import FUTURE_STEPS, ROAD_GRID, STEP_S
from iidrive.models.candidates import LIDAR_TO_CENTRE_M, headings, rectangles_meet
from iidrive.models.layers import constant, planar
from iidrive.models.outcomes import STEPS_AHEAD, read_along

_STANDING_M = 1.0
"""An expert who drives less than this in all steps makes no progress that a candidate could lack, metres."""


@dataclass(frozen=True)
class OutcomeLabels:
    """True outcomes of candidates.

    Attributes:
        collision: (B,A,S) whether it touches a box at each step.
        distance_m: (B,A) mean distance to the true path over the steps that exist, metres.
        ttc: (B,A,R) whether it touches a box now or within 1 s at constant velocity.
        off_road: (B,A,S) whether a corner is outside the drivable area at each step; false for samples without a map.
        progress: (B,A) distance driven before the first collision or departure, as a fraction of the expert's, 0 to 1.
        uncomfortable: (B,A) whether a limit of comfort is exceeded, by finite differences of its points and of the ego's last one.
    """

    collision: Bool[Tensor, "B A S"]
    distance_m: Float[Tensor, "B A"]
    ttc: Bool[Tensor, "B A R"]
    off_road: Bool[Tensor, "B A S"]
    progress: Float[Tensor, "B A"]
    uncomfortable: Bool[Tensor, "B A"]


def outcome_labels(
    candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"], before: Float[Tensor, "B 2"]
) -> OutcomeLabels:
    """Outcomes of candidates (lidar frame, metres). `before` is the ego's position one step ago, lidar frame, metres."""
    met = collisions(candidates, targets, ego_T_lidar)
    off = departures(candidates, targets, ego_T_lidar)
    valid = targets.valid
    far = (candidates - targets.path[:, None]).norm(dim=-1)
    distance = (far * valid[:, None]).sum(-1) / valid.sum(1).clamp(min=1)[:, None]
    hops = torch.diff(candidates, dim=2, prepend=torch.zeros_like(candidates[:, :, :1])).norm(dim=-1)
    free = ~(met | off).cummax(2).values
    own = torch.diff(targets.path, dim=1, prepend=torch.zeros_like(targets.path[:, :1])).norm(dim=-1).sum(1)[:, None]
    progress = torch.where(own < _STANDING_M, 1.0, ((hops * free).sum(-1) / own.clamp(min=_STANDING_M)).clamp(max=1))
    return OutcomeLabels(met, distance, soon(candidates, targets, ego_T_lidar), off, progress, uncomfortable(candidates, before))


def collisions(candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Bool[Tensor, "B A S"]:
    """Whether each candidate (lidar frame, metres) touches a true box at each step."""
    return _touching(candidates, headings(candidates), targets, ego_T_lidar, 0)


def soon(candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Bool[Tensor, "B A R"]:
    """Whether each candidate touches a true box at a step, or would within `STEPS_AHEAD` steps if it went on at its velocity there."""
    forward = headings(candidates)
    hops = torch.diff(candidates, dim=2, prepend=torch.zeros_like(candidates[:, :, :1])).norm(dim=-1, keepdim=True)
    known = FUTURE_STEPS - STEPS_AHEAD
    at = [candidates[:, :, :known] + ahead * (hops * forward)[:, :, :known] for ahead in range(STEPS_AHEAD + 1)]
    met = [_touching(points, forward[:, :, :known], targets, ego_T_lidar, ahead) for ahead, points in enumerate(at)]
    return torch.stack(met).any(0)


def departures(candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Bool[Tensor, "B A S"]:
    """Whether a corner of the ego is outside the drivable area at each step. False beyond `ROAD_GRID`, and for samples without a map."""
    assert targets.drivable is not None
    assert targets.road_known is not None
    outside = (~targets.drivable & targets.road_known[:, None, None]).to(candidates.dtype)
    read = read_along(candidates, outside[:, None].expand(-1, candidates.shape[2], -1, -1), ROAD_GRID, ego_T_lidar, (2, 2))
    return read[..., 0] > 0.5


def uncomfortable(candidates: Float[Tensor, "B A S 2"], before: Float[Tensor, "B 2"]) -> Bool[Tensor, "B A"]:
    """Whether each candidate exceeds a limit of comfort: acceleration, brake, jerk and lateral acceleration, yaw rate (see `core.comfort`).

    `before` is the ego's position one step ago, lidar frame, metres.
    """
    limits = Limits()
    start = torch.stack([before, torch.zeros_like(before)], 1)[:, None].expand(-1, candidates.shape[1], -1, -1)
    hops = torch.diff(torch.cat([start, candidates], 2), dim=2)
    speed = hops.norm(dim=-1) / STEP_S
    acceleration = torch.diff(speed, dim=-1) / STEP_S
    jerk = torch.diff(acceleration, dim=-1) / STEP_S
    forward = headings(candidates)
    turn = torch.cat([constant((0.0, 1.0), candidates).expand_as(forward[:, :, :1]), forward], 2)
    rate = torch.diff(torch.atan2(turn[..., 0], turn[..., 1]), dim=-1)
    rate = torch.atan2(rate.sin(), rate.cos()) / STEP_S
    aside = rate * speed[..., 1:]
    return (
        (acceleration > limits.accelerate).any(-1)
        | (acceleration < limits.brake).any(-1)
        | (jerk.abs() > limits.longitudinal_jerk).any(-1)
        | (rate.abs() > limits.yaw_rate).any(-1)
        | (aside.abs() > limits.lateral_acceleration).any(-1)
    )


def _touching(
    points: Float[Tensor, "B A s 2"], forward: Float[Tensor, "B A s 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"], ahead: int
) -> Bool[Tensor, "B A s"]:
    """Whether the ego, at `points` with headings `forward`, touches a true box `ahead` steps after each point's own step."""
    assert targets.boxes is not None
    assert targets.boxes_known is not None
    moments = slice(1 + ahead, 1 + ahead + points.shape[2])
    centre = planar(ego_T_lidar, points + LIDAR_TO_CENTRE_M * forward)
    forward = torch.einsum("bij,basj->basi", ego_T_lidar[:, :2, :2], forward)
    boxes = targets.boxes[:, :, moments].transpose(1, 2)[:, None]  # B 1 s N 5
    other = torch.stack([boxes[..., 2].cos(), boxes[..., 2].sin()], -1)
    size = constant(EGO_SIZE_M, points)
    meet = rectangles_meet(centre[..., None, :], forward[..., None, :], boxes[..., :2], other, size, boxes[..., 3:])
    return (meet & targets.boxes_known[:, :, moments].transpose(1, 2)[:, None]).any(-1)
