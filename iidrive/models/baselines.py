"""Baseline planners and forecasters. They read `Inputs` only, like the learned models.

A plan is the path of the LIDAR_TOP origin in the current lidar frame (x right, y forward): six steps of 0.5 s, (B,6,2) metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.classes import FREE
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES, GridSpec
from iidrive.models.ego_motion import MOTION, constant_turn, ego_status, horizons_s, last_interval_s, lidar_path
from iidrive.models.layers import constant, grid_centres
from iidrive.models.losses import Counts, masked_mean


def still(inputs: Inputs) -> Float[Tensor, "B 6 2"]:
    """Stand still."""
    return inputs.now_T_frame.new_zeros(len(inputs.tokens), FUTURE_STEPS, 2)


def constant_velocity(inputs: Inputs) -> Float[Tensor, "B 6 2"]:
    """Constant LIDAR_TOP velocity, as between the last two keyframes. Stands still at a scene's first keyframe."""
    before = lidar_path(inputs.now_T_frame[:, -2:-1], inputs.ego_T_lidar)[:, 0]
    velocity = torch.where(inputs.known[:, -2, None], -before / last_interval_s(inputs)[:, None], 0.0)
    return velocity[:, None] * horizons_s(inputs)[None, :, None]


def ctrv(inputs: Inputs) -> Float[Tensor, "B 6 2"]:
    """Constant turn rate and velocity."""
    return lidar_path(constant_turn(inputs), inputs.ego_T_lidar)


KINEMATIC = {"still": still, "constant-velocity": constant_velocity, "ctrv": ctrv}
"""Command-line name → planner without weights."""


@dataclass(frozen=True)
class EgoMLPConfig:
    """MLP with two hidden layers over past ego motion and the command (AD-MLP: Zhai et al. 2023). Corrects constant turn rate and velocity.

    Attributes:
        hidden: width of both hidden layers.
        history: number of past ego motions in the input.
    """

    hidden: int = 256
    history: int = 5


class EgoMLP(nn.Module):
    """Plans from ego motion and command only, without any perception."""

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

    def plan(self, inputs: Inputs) -> Float[Tensor, "B 6 2"]:
        """Plans of a batch: LIDAR_TOP positions in the current lidar frame, metres."""
        return ctrv(inputs) + self.net(ego_status(inputs, self.config.history)).view(-1, FUTURE_STEPS, 2)

    def compute_modules(self) -> list[nn.Module]:
        """Empty, because the model is small."""
        return []

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of valid elements of a batch: future steps that exist."""
        return {"steps": batch.targets.valid.sum()}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean distance to the true path over the steps that exist, metres."""
        distance = (self.plan(batch.inputs) - batch.targets.path).norm(dim=-1)
        valid = batch.targets.valid
        loss = masked_mean((distance * valid).sum(), (counts or self.counts(batch))["steps"])
        return loss, {"L2": loss.detach()}


def copy_last(occupancy: UInt8[Tensor, "B X Y Z"], steps: int) -> UInt8[Tensor, "B S X Y Z"]:
    """Forecast: the current occupancy at every step, unchanged in the ego frame."""
    return occupancy[:, None].expand(-1, steps, -1, -1, -1)


def copy_warped(occupancy: UInt8[Tensor, "B X Y Z"], now_T_future: Float[Tensor, "B S 4 4"], spec: GridSpec) -> UInt8[Tensor, "B S X Y Z"]:
    """Forecast: the world stands still and the ego moves. Nearest-neighbour warp in the ground plane; free outside the current grid."""
    p = grid_centres(spec, occupancy.new_empty(0, dtype=torch.float64)).float()
    moved = torch.einsum("bsij,xyj->bsxyi", now_T_future[..., :2, :2], p) + now_T_future[..., None, None, :2, 3]
    index = ((moved - constant(spec.lower_m[:2], p)) / spec.voxel_m).floor().long()
    size = constant(spec.shape[:2], index)
    inside = ((index >= 0) & (index < size)).all(-1)
    i, j = index.clamp(min=0).minimum(size - 1).unbind(-1)
    sample = torch.arange(len(occupancy), device=occupancy.device)[:, None, None, None]
    return torch.where(inside[..., None], occupancy[sample, i, j], FREE)
