"""Occupancy flow of road users: the probability that each cell around the ego is occupied, and the backward flow to where its occupant is
now.

All outputs are in the current ego frame, so static objects have no flow and one forecast is valid for every path of the ego. Each past
latent is upsampled to cells of half the size, which resolve road users better, and warped to the current frame by the ego motion. A small
U-Net at latent resolution reads all frames together. For each fine cell and step it predicts the occupancy probability (intra: what is
where) and the backward flow (inter: how it moved there), as in the Waymo occupancy flow challenge (Mahjourian et al. 2022, arXiv
2203.03875).

Shapes: B batch, T frames (oldest first, the last is the current one), C latent channels, W features, x, y latent cells, S future steps,
H = S + 1 times (now, then the steps), X, Y fine cells (2x, 2y).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.models.compute import ComputeConfig, in_autocast
from iidrive.models.layers import CellGrid, grid_centres, planar, read_grid, transform_inverse
from iidrive.models.losses import Counts, masked_mean
from iidrive.models.norm import Norm
from iidrive.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class FlowConfig:
    """Settings of the occupancy flow.

    Attributes:
        width: channels of the U-Net's finest maps, a multiple of 8; 0 for no occupancy flow.
        lifted: channels per fine cell and frame.
        flow_weight: weight of the flow error (metres) relative to 100 times the cross entropy.
        threshold: probability from which a forecast shows a road user in a cell.
    """

    width: int = 0
    lifted: int = 8
    flow_weight: float = 0.2
    threshold: float = 0.25

    def __post_init__(self) -> None:
        if self.width < 0 or self.width % 8:
            raise ConfigError(f"the occupancy flow's width must be 0 or a positive multiple of 8; found {self.width}.")


@dataclass(frozen=True)
class OccupancyFlow:
    """Output of the occupancy flow, in the current ego frame.

    Attributes:
        taken: (B,H,X,Y) logits that a road user occupies a cell, now and at every future step.
        flow_m: (B,S,X,Y,2) backward flow: from a cell at a step to where its road user is now, along x and y, metres.
        features: (B,W,x,y) maps that both are made from, for the reaction net.
    """

    taken: Float[Tensor, "B H X Y"]
    flow_m: Float[Tensor, "B S X Y 2"]
    features: Float[Tensor, "B W x y"]


def fine_grid(grid: GridSpec, latent_size: tuple[int, int]) -> GridSpec:
    """Grid of the occupancy flow: cells of half a latent cell (at least one voxel) over the same area, one cell high."""
    voxels = max(grid.shape[0] // (2 * latent_size[0]), 1)
    return GridSpec((grid.shape[0] // voxels, grid.shape[1] // voxels, 1), grid.lower_m, grid.voxel_m * voxels)


class Pyramid(nn.Module):
    """The coarser scales of a U-Net: two halvings, and back to the size of its input."""

    def add_scales(self, width: int) -> None:
        """Make the layers. `width`: channels at the input's size."""
        self.down = nn.ModuleList(nn.Sequential(conv(low, 2 * width, 2), conv(2 * width, 2 * width)) for low in (width, 2 * width))
        self.middle = conv(4 * width, 2 * width)
        self.last = nn.Sequential(conv(3 * width, width), conv(width, width))

    def fused(self, fine: Float[Tensor, "B W x y"]) -> Float[Tensor, "B W x y"]:
        """Maps that have seen all scales."""
        middle = self.down[0](fine)
        coarse = self.down[1](middle)
        middle = self.middle(torch.cat([_enlarged(coarse, middle), middle], 1))
        return self.last(torch.cat([_enlarged(middle, fine), fine], 1))


class FlowNet(Pyramid):
    """Predicts `OccupancyFlow` from the latents of past frames."""

    def __init__(
        self, config: FlowConfig, latent_width: int, history: int, cells: CellGrid, grid: GridSpec, compute: ComputeConfig
    ) -> None:
        super().__init__()
        self.config, self.history, self.compute = config, history, compute
        self.fine = fine_grid(grid, cells.size)
        if self.fine.shape[:2] != (2 * cells.size[0], 2 * cells.size[1]):
            raise ConfigError(
                f"occupancy flow needs latent cells of at least two voxels per side; found {grid.shape} voxels and {cells.size} cells."
            )
        width, lifted = config.width, config.lifted
        self.lift = nn.Sequential(nn.Conv2d(latent_width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 4 * lifted, 1))
        self.first = nn.Sequential(conv(history * (4 * lifted + 1), width), conv(width, width))
        self.add_scales(width)
        self.out = nn.Conv2d(width, 4 * (1 + 3 * FUTURE_STEPS), 1)
        assert self.out.bias is not None
        with torch.no_grad():  # initially nothing is occupied and nothing moves
            self.out.weight.mul_(0.1)
            self.out.bias.copy_(torch.cat([torch.full((4 * (1 + FUTURE_STEPS),), -3.0), torch.zeros(8 * FUTURE_STEPS)]))

    @in_autocast
    def forward(
        self, latents: Float[Tensor, "B T C x y"], now_T_frame: Float[Tensor, "B T 4 4"], known: Bool[Tensor, "B T"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fields of an `OccupancyFlow`, as a tuple. `known` (B,T) is false before the scene began."""
        batch, frames = latents.shape[:2]
        lifted = F.pixel_shuffle(self.lift(latents.flatten(0, 1)), 2).unflatten(0, (batch, frames))
        frame_T_now = transform_inverse(now_T_frame[:, :-1])
        there = planar(frame_T_now, grid_centres(self.fine, now_T_frame).expand(batch, frames - 1, -1, -1, -1))
        before = read_grid(lifted[:, :-1].flatten(0, 1), there.flatten(0, 1), self.fine).unflatten(0, (batch, frames - 1))
        seen = torch.cat([before, lifted[:, -1:]], 1) * known[:, :, None, None, None]
        maps = F.pixel_unshuffle(seen.flatten(1, 2), 2)
        told = known.to(maps.dtype)[:, :, None, None].expand(-1, -1, *maps.shape[2:])
        features = self.fused(self.first(torch.cat([maps, told], 1)))
        taken, flow = F.pixel_shuffle(self.out(features), 2).split([1 + FUTURE_STEPS, 2 * FUTURE_STEPS], 1)
        return taken, _FLOW_M * flow.unflatten(1, (FUTURE_STEPS, 2)).permute(0, 1, 3, 4, 2), features

    def of(self, inputs: Inputs, latents: Float[Tensor, "B T C x y"]) -> OccupancyFlow:
        """Occupancy flow of samples, from the latents of all their frames."""
        return OccupancyFlow(*self(latents[:, -self.history :], inputs.now_T_frame[:, -self.history :], inputs.known[:, -self.history :]))


_FLOW_M = 4.0
"""Flow for a network output of 1, metres."""


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with normalisation and SiLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), Norm(8, outputs, silu=True))


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(small, like.shape[2:], mode="bilinear", align_corners=False)


class FlowLearner(nn.Module):
    """The flow net with its frozen tokenizer, for training."""

    def __init__(self, tokenizer: Tokenizer, net: FlowNet) -> None:
        super().__init__()
        self.tokenizer, self.net = tokenizer.eval().requires_grad_(False), net

    def train(self, mode: bool = True) -> FlowLearner:
        """Set the mode of the net. The tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time."""
        return [self.net]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of valid elements of a batch: times that exist, and cells whose flow is known."""
        valid, known = _known(batch)
        return {"moments": valid.sum(), "cells": known.sum()}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """100 times the binary cross entropy over cells and times, plus the weighted smooth-L1 error of the flow where it is known,
        metres.
        """
        inputs, targets = batch.inputs, batch.targets
        assert inputs.codes is not None
        assert targets.taken is not None
        assert targets.flow_m is not None
        made = self.net.of(inputs, self.tokenizer.latent_of(inputs.codes[:, -self.net.history :]))
        valid, known = _known(batch)
        counts = counts or self.counts(batch)
        entropy = 100 * F.binary_cross_entropy_with_logits(made.taken, targets.taken.to(made.taken.dtype), reduction="none").mean((2, 3))
        off = F.smooth_l1_loss(made.flow_m, targets.flow_m.nan_to_num(0), reduction="none").sum(-1)
        parts = {
            "taken": masked_mean((entropy * valid).sum(), counts["moments"]),
            "flow": self.net.config.flow_weight * masked_mean((off * known).sum(), counts["cells"]),
        }
        return parts["taken"] + parts["flow"], parts


def _known(batch: Batch) -> tuple[Bool[Tensor, "B H"], Bool[Tensor, "B S X Y"]]:
    targets = batch.targets
    assert targets.flow_m is not None
    valid = torch.cat([torch.ones_like(targets.valid[:, :1]), targets.valid], 1)
    return valid, targets.flow_m[..., 0].isfinite() & targets.valid[:, :, None, None]
