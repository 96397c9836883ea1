"""Reactions of road users to a plan: a forecast for each candidate instead of one for all.

The occupancy flow forecasts what road users do while the ego drives as it usually does. This net changes the forecast to what they do if the ego
follows a given path. It reads the flow's features and probabilities, and the cells that the ego would take at every step, and adds a correction
to the logits of the future steps. It is trained on branches: a simulation is copied at a keyframe, the ego follows another plan for three
seconds, and the others react to it (simulation/branches.py). The paths of branches are drawn without regard to the future, so the net learns
what a path causes, not what a path that an expert chose says about the others.

Shapes: B batch, A candidates, S future steps, H = S + 1 times (now, then the steps), W features, x, y latent cells, X, Y fine cells (2x, 2y).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.errors import ConfigError
from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.models.candidates import LIDAR_TO_CENTRE_M, headings
from iidrive.models.compute import ComputeConfig, in_autocast
from iidrive.models.layers import grid_centres, planar
from iidrive.models.occupancy_flow import OccupancyFlow, Pyramid, conv


@dataclass(frozen=True)
class ReactionConfig:
    """Settings of the reaction net.

    Attributes:
        width: channels of its finest maps, a multiple of 8; 0 for no reaction net.
    """

    width: int = 0

    def __post_init__(self) -> None:
        if self.width < 0 or self.width % 8:
            raise ConfigError(f"the reaction net's width must be 0 or a positive multiple of 8; found {self.width}.")


class ReactionNet(Pyramid):
    """Corrects an occupancy flow for candidates of the ego."""

    def __init__(self, config: ReactionConfig, features: int, fine: GridSpec, compute: ComputeConfig) -> None:
        """`features`: channels of the flow's features. `fine`: grid of the flow."""
        super().__init__()
        self.config, self.fine, self.compute = config, fine, compute
        width = config.width
        self.scene = nn.Conv2d(features + 4 * (1 + FUTURE_STEPS), width, 3, padding=1)
        self.path = nn.Conv2d(4 * FUTURE_STEPS, width, 3, padding=1, bias=False)
        self.join = conv(width, width)
        self.add_scales(width)
        self.out = nn.Conv2d(width, 4 * FUTURE_STEPS, 1)
        assert self.out.bias is not None
        with torch.no_grad():  # initially nobody reacts
            self.out.weight.zero_()
            self.out.bias.zero_()

    @in_autocast
    def forward(
        self, features: Float[Tensor, "B W x y"], taken: Float[Tensor, "B H X Y"], ego: Float[Tensor, "B A S X Y"]
    ) -> Float[Tensor, "B A S X Y"]:
        """Logits that a road user occupies a cell at every future step, for each candidate.

        Args:
            features: (B,W,x,y) features of the occupancy flow.
            taken: (B,H,X,Y) its logits, now and at every step.
            ego: (B,A,S,X,Y) fraction of each cell that the ego takes at every step (see `footprint_maps`).
        """
        batch, candidates = ego.shape[:2]
        seen = self.scene(torch.cat([features, F.pixel_unshuffle(taken.sigmoid(), 2)], 1))
        asked = self.path(F.pixel_unshuffle(ego.flatten(0, 1), 2)).unflatten(0, (batch, candidates))
        made = self.out(self.fused(self.join((asked + seen[:, None]).flatten(0, 1))))
        return taken[:, None, 1:] + F.pixel_shuffle(made, 2).unflatten(0, (batch, candidates))

    def of(
        self, flow: OccupancyFlow, candidates: Float[Tensor, "B A S 2"], ego_T_lidar: Float[Tensor, "B 4 4"]
    ) -> Float[Tensor, "B A S X Y"]:
        """As `forward`, for an occupancy flow and candidates in the current lidar frame, metres."""
        return self(flow.features, flow.taken, footprint_maps(candidates, self.fine, ego_T_lidar))


def from_behind(flow: OccupancyFlow, fine: GridSpec) -> Bool[Tensor, "B S X Y"]:
    """Cells whose occupant, by the flow, is behind the ego now: behind its rear bumper, at most `_FOLLOWS_M` beside its axis."""
    origin = grid_centres(fine, flow.flow_m) + flow.flow_m
    return (origin[..., 0] < EGO_CENTRE_M - EGO_SIZE_M[0] / 2) & (origin[..., 1].abs() < _FOLLOWS_M)


_FOLLOWS_M = 2.5


def footprint_maps(candidates: Float[Tensor, "B A S 2"], grid: GridSpec, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B A S X Y"]:
    """Fraction of each cell that the ego takes along its length and width at every step (their product), current ego frame.

    Args:
        candidates: (B,A,S,2) paths in the current lidar frame, metres.
        grid: grid of the maps.
        ego_T_lidar: (B,4,4) LIDAR_TOP to ego frame.
    """
    ahead = headings(candidates)
    centre = planar(ego_T_lidar, candidates + LIDAR_TO_CENTRE_M * ahead)
    along = torch.einsum("bij,basj->basi", ego_T_lidar[:, :2, :2], ahead)
    here = grid_centres(grid, candidates)

    def share(axis: Float[Tensor, "B A S 2"], side_m: float) -> Float[Tensor, "B A S X Y"]:
        off = torch.einsum("xyi,basi->basxy", here, axis) - (centre * axis).sum(-1)[..., None, None]
        return (0.5 + (side_m / 2 - off.abs()) / grid.voxel_m).clamp(0, 1)

    length, width = EGO_SIZE_M
    return share(along, length) * share(torch.stack([-along[..., 1], along[..., 0]], -1), width)
