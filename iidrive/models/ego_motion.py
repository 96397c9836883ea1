"""Ego motion: features of the observed motion, and its extrapolation.

Shapes: B batch, T frames up to the current one (oldest first), S future steps, M motion features. Ego frames, metres, radians, seconds.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES, STEP_S
from iidrive.models.layers import identity, planar_transform, transform_inverse
from iidrive.models.losses import Counts, masked_mean

MOTION = 9
"""Number of features per step of motion: translation (x, y), quaternion (w, x, y, z), velocity (x, y) and yaw rate."""


def motion_between(prev_T_next: Float[Tensor, "*B 4 4"], seconds: Float[Tensor, "*B"] | float = STEP_S) -> Float[Tensor, "*B M"]:
    """Features of one step of planar motion in the earlier ego frame: (dx, dy, qw, 0, 0, qz, vx, vy, yaw rate), metres, radians,
    seconds.
    """
    yaw = torch.atan2(prev_T_next[..., 1, 0], prev_T_next[..., 0, 0])
    xy = prev_T_next[..., :2, 3]
    zero = torch.zeros_like(yaw)
    quaternion = torch.stack([(yaw / 2).cos(), zero, zero, (yaw / 2).sin()], -1)
    time = seconds if isinstance(seconds, Tensor) else torch.full_like(yaw, seconds)
    return torch.cat([xy, quaternion, xy / time[..., None], (yaw / time)[..., None]], -1)


def past_motions(
    now_T_frame: Float[Tensor, "B T 4 4"], known: Bool[Tensor, "B T"], age_s: Float[Tensor, "B T"]
) -> Float[Tensor, "B T-1 M"]:
    """Motion between consecutive frames of a clip; no motion before the scene began."""
    step = transform_inverse(now_T_frame[:, :-1]) @ now_T_frame[:, 1:]
    seconds = torch.where(known[:, :-1], age_s[:, :-1] - age_s[:, 1:], STEP_S).clamp(min=1e-3)
    motions = motion_between(step, seconds)
    still = motion_between(identity(step).expand_as(step))
    return torch.where(known[:, :-1, None], motions, still)


def lidar_path(now_T_future: Float[Tensor, "B S 4 4"], ego_T_lidar: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B S 2"]:
    """LIDAR_TOP positions in the current lidar frame, from future ego poses in the current ego frame."""
    lidar = transform_inverse(ego_T_lidar)[:, None] @ now_T_future @ ego_T_lidar[:, None]
    return lidar[..., :2, 3]


def constant_turn(inputs: Inputs, steps: int = FUTURE_STEPS) -> Float[Tensor, "B S 4 4"]:
    """Ego poses now_T_future under constant turn rate and velocity: the twist between the last two keyframes is kept."""
    moved = transform_inverse(inputs.now_T_frame[:, -2])
    yaw = torch.atan2(moved[:, 1, 0], moved[:, 0, 0])
    seconds = last_interval_s(inputs)
    # Twist whose exponential is the observed motion: V(yaw) u = xy, V = [[s, -c], [c, s]] with s = sin(yaw)/yaw, c = (1-cos(yaw))/yaw.
    s, c = _sinc(yaw), _cosc(yaw)
    x, y = moved[:, 0, 3], moved[:, 1, 3]
    scale = s.square() + c.square()
    u = torch.stack([s * x + c * y, -c * x + s * y], -1) / scale[:, None]
    known = inputs.known[:, -2]
    rate = torch.where(known, yaw / seconds, 0.0)
    u = torch.where(known[:, None], u / seconds[:, None], 0.0)
    time = horizons_s(inputs)[:steps]
    angle = rate[:, None] * time
    s, c = _sinc(angle), _cosc(angle)
    xy = torch.stack([s * u[:, None, 0] - c * u[:, None, 1], c * u[:, None, 0] + s * u[:, None, 1]], -1) * time[:, None]
    return planar_transform(xy, angle.cos(), angle.sin())


def ego_status(inputs: Inputs, history: int) -> Float[Tensor, "B D"]:
    """Features of the last `history` motions, each with a flag whether it was observed, and the one-hot command."""
    motions = past_motions(inputs.now_T_frame, inputs.known, inputs.age_s)[:, -history:]
    known = inputs.known[:, :-1][:, -history:, None].to(motions.dtype)
    command = nn.functional.one_hot(inputs.command, len(MANOEUVRES)).to(motions.dtype)
    return torch.cat([torch.cat([motions, known], -1).flatten(1), command], -1)


class MotionPrior(nn.Module):
    """Predicts the ego's future poses from its past motion and the command, as corrections to constant turn rate and velocity.

    It has few inputs, so it trains on a hundred thousand samples within seconds.
    """

    def __init__(self, width: int, history: int) -> None:
        super().__init__()
        self.history = history
        inputs = history * (MOTION + 1) + len(MANOEUVRES)
        self.net = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, FUTURE_STEPS * 3)
        )

    def forward(self, inputs: Inputs) -> Float[Tensor, "B S 4 4"]:
        """Future ego poses in the current ego frame."""
        base = constant_turn(inputs)
        start = identity(base).expand(len(base), 1, 4, 4)
        steps = transform_inverse(torch.cat([start, base[:, :-1]], 1)) @ base
        out = self.net(ego_status(inputs, self.history)).view(-1, FUTURE_STEPS, 3)
        yaw = torch.atan2(steps[..., 1, 0], steps[..., 0, 0]) + 0.1 * out[..., 2]
        moves = planar_transform(steps[..., :2, 3] + out[..., :2], yaw.cos(), yaw.sin())
        poses = [moves[:, 0]]
        for k in range(1, FUTURE_STEPS):
            poses.append(poses[-1] @ moves[:, k])
        return torch.stack(poses, 1)

    def compute_modules(self) -> list[nn.Module]:
        """Empty, because the model is small."""
        return []

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of valid elements of a batch: future steps that exist."""
        return {"steps": batch.targets.valid.sum()}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean position error, metres, plus ten times the mean yaw error, radians, over the steps that exist."""
        poses, true, valid = self(batch.inputs), batch.targets.now_T_frame, batch.targets.valid
        distance = (poses[..., :2, 3] - true[..., :2, 3]).norm(dim=-1)
        turn = transform_inverse(poses) @ true
        angle = torch.atan2(turn[..., 1, 0], turn[..., 0, 0]).abs()
        count = (counts or self.counts(batch))["steps"]
        parts = {"distance": masked_mean((distance * valid).sum(), count), "angle": 10 * masked_mean((angle * valid).sum(), count)}
        return parts["distance"] + parts["angle"], parts


def last_interval_s(inputs: Inputs) -> Float[Tensor, "B"]:
    """Seconds between the last two keyframes; the nominal step if there is no earlier keyframe."""
    return torch.where(inputs.known[:, -2], inputs.age_s[:, -2], STEP_S).clamp(min=1e-3)


def step_before(inputs: Inputs, path: Float[Tensor, "B S 2"]) -> Float[Tensor, "B 2"]:
    """Position of LIDAR_TOP 0.5 s ago, current lidar frame, metres, from its mean velocity since the last keyframe.

    At a scene's first keyframe it is the first step of `path`, mirrored.
    """
    was = lidar_path(inputs.now_T_frame[:, -2:-1], inputs.ego_T_lidar)[:, 0]
    return torch.where(inputs.known[:, -2, None], was * (STEP_S / last_interval_s(inputs))[:, None], -path[:, 0])


def horizons_s(inputs: Inputs) -> Float[Tensor, "6"]:
    """Times of the six future steps: 0.5, 1.0, … 3.0 s."""
    return STEP_S * torch.arange(1, FUTURE_STEPS + 1, device=inputs.age_s.device, dtype=inputs.now_T_frame.dtype)


def _sinc(angle: Tensor) -> Tensor:
    return torch.sinc(angle / torch.pi)


def _cosc(angle: Tensor) -> Tensor:
    """(1 - cos a) / a; stable near 0, where it is a / 2."""
    return torch.sinc(angle / (2 * torch.pi)).square() * angle / 2
