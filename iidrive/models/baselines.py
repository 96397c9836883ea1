"""Planners and forecasters that anything learned has to beat. All read a `Seen` batch and nothing else, as the learned ones do.

A plan is the path of the LIDAR_TOP origin in the current lidar frame (x right, y forward), six steps of 0.5 s, (B,6,2) metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from iidrive.classes import FREE
from iidrive.models.layers import planar_transform, transform_inverse
from iidrive.models.world import MOTION, past_motions
from iidrive.scene import FUTURE_STEPS, MANOEUVRES, STEP_S, Batch, GridSpec, Seen


def lidar_path(now_T_future: Float[Tensor, "B S 4 4"], ego_T_lidar: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B S 2"]:
    """LIDAR_TOP positions in the current lidar frame, from future ego poses in the current ego frame."""
    lidar = transform_inverse(ego_T_lidar)[:, None] @ now_T_future @ ego_T_lidar[:, None]
    return lidar[..., :2, 3]


def still(seen: Seen) -> Float[Tensor, "B 6 2"]:
    """Stay where you are."""
    return seen.now_T_frame.new_zeros(len(seen.tokens), FUTURE_STEPS, 2)


def constant_velocity(seen: Seen) -> Float[Tensor, "B 6 2"]:
    """Go on as between the last two keyframes: LIDAR_TOP velocity over the real time between them. Stands still at a scene's first keyframe."""
    before = lidar_path(seen.now_T_frame[:, -2:-1], seen.ego_T_lidar)[:, 0]
    velocity = torch.where(seen.known[:, -2, None], -before / _last_interval_s(seen)[:, None], 0.0)
    return velocity[:, None] * _horizons_s(seen)[None, :, None]


def constant_turn(seen: Seen, steps: int = FUTURE_STEPS) -> Float[Tensor, "B S 4 4"]:
    """Ego poses now_T_future under constant turn rate and velocity (the twist between the last two keyframes, kept)."""
    moved = transform_inverse(seen.now_T_frame[:, -2])
    yaw = torch.atan2(moved[:, 1, 0], moved[:, 0, 0])
    seconds = _last_interval_s(seen)
    # the twist whose exponential is the observed motion: V(yaw) u = xy, V = [[s, -c], [c, s]] with s = sin(yaw)/yaw, c = (1-cos(yaw))/yaw
    s, c = _sinc(yaw), _cosc(yaw)
    x, y = moved[:, 0, 3], moved[:, 1, 3]
    scale = s.square() + c.square()
    u = torch.stack([s * x + c * y, -c * x + s * y], -1) / scale[:, None]
    known = seen.known[:, -2]
    rate = torch.where(known, yaw / seconds, 0.0)
    u = torch.where(known[:, None], u / seconds[:, None], 0.0)
    time = _horizons_s(seen)[:steps]
    angle = rate[:, None] * time
    s, c = _sinc(angle), _cosc(angle)
    xy = torch.stack([s * u[:, None, 0] - c * u[:, None, 1], c * u[:, None, 0] + s * u[:, None, 1]], -1) * time[:, None]
    return planar_transform(xy, angle.cos(), angle.sin())


def ctrv(seen: Seen) -> Float[Tensor, "B 6 2"]:
    """Constant turn rate and velocity."""
    return lidar_path(constant_turn(seen), seen.ego_T_lidar)


KINEMATIC = {"still": still, "constant-velocity": constant_velocity, "ctrv": ctrv}
"""Planners without weights, by the name that the command line takes."""


@dataclass(frozen=True)
class EgoMLPConfig:
    """Two hidden layers over the ego's own past (AD-MLP: Zhai et al. 2023) and the command; corrects constant turn rate and velocity."""

    hidden: int = 256
    history: int = 5


class EgoMLP(nn.Module):
    """Plans from the ego's status alone: it sees no road and nobody else."""

    def __init__(self, config: EgoMLPConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.history * (MOTION + 1) + len(MANOEUVRES)
        self.net = nn.Sequential(
            nn.Linear(inputs, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, FUTURE_STEPS * 2),
        )

    def plan(self, seen: Seen) -> Float[Tensor, "B 6 2"]:
        """Plans of a batch."""
        return ctrv(seen) + self.net(ego_status(seen, self.config.history)).view(-1, FUTURE_STEPS, 2)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean distance to the true path over the steps that exist."""
        distance = (self.plan(batch.observation) - batch.target.path).norm(dim=-1)
        valid = batch.target.valid
        loss = (distance * valid).sum() / valid.sum().clamp(min=1)
        return loss, {"L2": loss.detach()}


def ego_status(seen: Seen, history: int) -> Float[Tensor, "B D"]:
    """Past motions with a flag whether each was observed, and the one-hot command."""
    motions = past_motions(seen.now_T_frame, seen.known, seen.age_s)[:, -history:]
    known = seen.known[:, :-1][:, -history:, None].to(motions.dtype)
    command = nn.functional.one_hot(seen.command, len(MANOEUVRES)).to(motions.dtype)
    return torch.cat([torch.cat([motions, known], -1).flatten(1), command], -1)


def copy_last(occupancy: UInt8[Tensor, "B X Y Z"], steps: int) -> UInt8[Tensor, "B S X Y Z"]:
    """Forecast: nothing changes in the ego's own frame."""
    return occupancy[:, None].expand(-1, steps, -1, -1, -1)


def copy_warped(occupancy: UInt8[Tensor, "B X Y Z"], now_T_future: Float[Tensor, "B S 4 4"], spec: GridSpec) -> UInt8[Tensor, "B S X Y Z"]:
    """Forecast: the world stands still and the ego moves through it. Nearest voxel on the ground plane; free where nothing was seen."""
    device = occupancy.device
    x, y = (torch.from_numpy(spec.centres(axis)).float().to(device) for axis in (0, 1))
    p = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    moved = torch.einsum("bsij,xyj->bsxyi", now_T_future[..., :2, :2], p) + now_T_future[..., None, None, :2, 3]
    index = ((moved - torch.tensor(spec.lower_m[:2], device=device)) / spec.voxel_m).floor().long()
    size = torch.tensor(spec.shape[:2], device=device)
    inside = ((index >= 0) & (index < size)).all(-1)
    i, j = index.clamp(min=0).minimum(size - 1).unbind(-1)
    sample = torch.arange(len(occupancy), device=device)[:, None, None, None]
    return torch.where(inside[..., None], occupancy[sample, i, j], FREE)


def _last_interval_s(seen: Seen) -> Tensor:
    return torch.where(seen.known[:, -2], seen.age_s[:, -2], STEP_S).clamp(min=1e-3)


def _horizons_s(seen: Seen) -> Tensor:
    return STEP_S * torch.arange(1, FUTURE_STEPS + 1, device=seen.age_s.device, dtype=seen.now_T_frame.dtype)


def _sinc(angle: Tensor) -> Tensor:
    return torch.sinc(angle / torch.pi)


def _cosc(angle: Tensor) -> Tensor:
    """(1 - cos a) / a, and a / 2 near zero."""
    return torch.sinc(angle / (2 * torch.pi)).square() * angle / 2
