"""Layers that the tokenizer, the world model and the planner share.

Shapes: B batch, C channels, X, Y cells of a bird's-eye-view map (X forward, Y left, as in the ego frame), N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from iidrive.core.scene import GridSpec
from iidrive.models import cpu, repeatable
from iidrive.models.cpu.products import Linear, crossed, linear
from iidrive.models.norm import Norm


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose running statistics are updated by `update_running_stats`, not in the forward pass.

    In training, each forward pass normalises with the statistics of its own samples and stores them. When a global batch is computed in
    several groups or processes, the running statistics are then updated once, with the mean over the groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.kept: list[Float[Tensor, "2 C"]] = []

    def forward(self, input: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B C X Y"]:
        if not self.training:
            return super().forward(input)
        with torch.no_grad():
            variance, mean = torch.var_mean(input, (0, 2, 3))
            self.kept.append(torch.stack([mean, variance]))
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)

    @torch.no_grad()
    def update_running_stats(self, groups: int, mean: Callable[[Tensor], Tensor] = lambda kept: kept) -> None:
        """Update the running statistics with the stored statistics of `groups` groups. `mean` averages over processes."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        calls = torch.stack(self.kept).unflatten(0, (groups, -1)).mean(0)
        self.kept.clear()
        for seen in mean(calls):
            self.running_mean.lerp_(seen[0], self.momentum or 0.0)
            self.running_var.lerp_(seen[1], self.momentum or 0.0)
            self.num_batches_tracked += 1


class ResBlock(nn.Module):
    """Residual block: x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(groups, inputs, eps=1e-6, silu=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = Norm(groups, outputs, eps=1e-6, silu=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B D X Y"]:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return self.shortcut(x) + h


class CellAttention(nn.Module):
    """Residual single-head self-attention over all cells of a map. Plain version: `plain.cell_attention`."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B C X Y"]:
        tokens = rearrange(self.norm(x), "b c x y -> b (x y) c").contiguous()
        q, k = (linear(tokens, f.weight.flatten(1), f.bias) for f in (self.q, self.k))
        # out(p v) = p out(v), because probabilities p sum to one, so `out` is folded into the value projection
        assert self.v.bias is not None
        out = self.out.weight.flatten(1)
        v = linear(tokens, out @ self.v.weight.flatten(1), F.linear(self.v.bias, out, self.out.bias))
        return x + rearrange(_mixed(q, k, v), "b (x y) c -> b c x y", x=x.shape[2])


def _mixed(q: Float[Tensor, "B N C"], k: Float[Tensor, "B N C"], v: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """Attention: PyTorch's on a GPU or in mixed precision; otherwise with a full N x N matrix, which is faster on a CPU."""
    if cpu.pays_for(q) and not torch.is_autocast_enabled("cpu"):
        return torch.stack([_attention(*parts) for parts in zip(q, k, v, strict=True)]) if len(q) else v
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]


def _attention(q: Float[Tensor, "N C"], k: Float[Tensor, "N C"], v: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    made = _Attention.apply(q, k, v)
    assert isinstance(made, Tensor)
    return made


class _Attention(torch.autograd.Function):
    """Attention that stores its probabilities and overwrites all other N x N matrices, because allocating them is as slow as filling
    them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        probabilities = linear(q * q.shape[-1] ** -0.5, k)
        for part in probabilities.split(_ROWS):
            part.copy_(part.softmax(-1))
        ctx.save_for_backward(q, k, v, probabilities)
        return linear(probabilities, v.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        q, k, v, probabilities = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        gradients = linear(grad, v)
        for gradient, probability in zip(gradients.split(_ROWS), probabilities.split(_ROWS), strict=True):
            gradient.sub_((gradient * probability).sum(-1, keepdim=True)).mul_(probability)
        return linear(gradients, k.T * scale), crossed(gradients, q * scale), crossed(probabilities, grad)


_ROWS = 128
"""Rows of an attention matrix that are processed together: few enough to fit the CPU cache."""


class DeformableAttention(nn.Module):
    """Deformable attention: each cell samples a few points around itself, with offsets and weights computed from its own features.

    Sampling is bilinear with zeros outside. Points of cell (i, j) are at ((j + 0.5) / Y, (i + 0.5) / X) plus offset / size. The first
    component of an offset is along Y (the last axis), the second along X. Plain version: `plain.deformable_attention`.
    """

    def __init__(self, width: int, heads: int, points: int = 4) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.value = Linear(width, width)
        self.offsets = Linear(width, heads * points * 2)
        self.weights = Linear(width, heads * points)
        self.out = Linear(width, width)
        self.reset()

    def reset(self) -> None:
        """Initialise: zero weights; offset biases in a ring, with one direction per head and one distance per point."""
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        angle = torch.arange(self.heads) * (2 * torch.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        bias = ring[:, None] * torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.reshape(-1))

    def forward(self, tokens: Float[Tensor, "B N C"], size: tuple[int, int]) -> Float[Tensor, "B N C"]:
        batch, count, width = tokens.shape
        x, y = size
        points = self.heads * self.points
        # One product computes all three. Points come before cells in memory, so that later operations are contiguous along cells.
        scale = constant((2 / y, 2 / x), tokens).repeat(points)
        weight = torch.cat([self.value.weight, self.offsets.weight * scale[:, None], self.weights.weight])
        bias = torch.cat([self.value.bias, self.offsets.bias * scale, self.weights.bias])
        value, offsets, weights = linear(tokens, weight, bias).split([width, 2 * points, points], -1)
        value = rearrange(value, "b (x y) (h d) -> (b h) d x y", x=x, h=self.heads)
        offsets = rearrange(offsets, "b n (h p two) -> (b h) p n two", h=self.heads, two=2)
        weights = rearrange(weights, "b n (h p) -> (b h) 1 p n", h=self.heads).softmax(2)
        j = (torch.arange(y, device=tokens.device, dtype=tokens.dtype) + 0.5) * 2 / y - 1
        i = (torch.arange(x, device=tokens.device, dtype=tokens.dtype) + 0.5) * 2 / x - 1
        cell = torch.stack([j[None].expand(x, y), i[:, None].expand(x, y)], -1).reshape(count, 2)
        exact = torch.promote_types(tokens.dtype, torch.float32)
        mixed = _MixedPoints.apply(value.to(exact), cell.to(exact) + offsets, weights.to(exact))
        assert isinstance(mixed, Tensor)
        return self.out(rearrange(mixed, "(b h) d n -> b n (h d)", b=batch))


class _MixedPoints(torch.autograd.Function):
    """`(F.grid_sample(maps, places) * weights).sum(2)` for maps (B,D,X,Y), places (B,P,N,2) and weights (B,1,P,N), giving (B,D,N).

    The sampled values, P times as large as the result, are not stored but sampled again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(maps, places, weights)
        return repeatable.grid_sample(maps, places).mul_(weights).sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        maps, places, weights = ctx.saved_tensors
        grad = grad.contiguous()[:, :, None]  # otherwise all later tensors would be channels_last
        to_weights = repeatable.grid_sample(maps, places).mul_(grad).sum(1, keepdim=True)
        to_maps, to_places = repeatable.grid_sample_gradients(grad * weights, maps, places)
        return to_maps, to_places, to_weights


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """MLP: Linear, ReLU, Linear."""
    return nn.Sequential(Linear(inputs, hidden), nn.ReLU(), Linear(hidden, outputs))


@dataclass(frozen=True)
class CellGrid:
    """Positions of a latent map's cells in the ego frame, and bilinear sampling of maps.

    The encoder's stride-2 convolutions centre cell i on voxel `factor * i`, so its centre is at lower + (factor * i + 0.5) * voxel.

    Attributes:
        size: cells along x and y.
        first_m: position (x, y) of the centre of cell (0, 0), metres.
        cell_m: distance between cells, metres.
        height_m: maps are warped as if they were on the plane z = `height_m`.
    """

    size: tuple[int, int]
    first_m: tuple[float, float]
    cell_m: float
    height_m: float = 0.0

    def points(self, like: Tensor) -> Float[Tensor, "X Y 2"]:
        """Cell centres (x, y) in the ego frame, metres."""
        x = self.first_m[0] + self.cell_m * torch.arange(self.size[0], device=like.device, dtype=like.dtype)
        y = self.first_m[1] + self.cell_m * torch.arange(self.size[1], device=like.device, dtype=like.dtype)
        return torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)

    def read(self, maps: Float[Tensor, "B C X Y"], points_m: Float[Tensor, "B P Q 2"]) -> Float[Tensor, "B C P Q"]:
        """Bilinear values of maps at points (x, y) in their own ego frame, metres; 0 outside. Plain version: `plain.read`."""
        x, y = self._index(points_m)
        if cpu.pays_for(maps) or repeatable.wanted(maps):
            return repeatable.read_rows(maps, x, y)
        places = torch.stack([(2 * y + 1) / self.size[1] - 1, (2 * x + 1) / self.size[0] - 1], -1)  # grid_sample takes the last axis first
        return F.grid_sample(maps, places.to(maps.dtype), align_corners=False)

    def inside(self, points_m: Float[Tensor, "B P Q 2"]) -> Float[Tensor, "B 1 P Q"]:
        """`read` of a map of ones: 1 inside, falling to 0 within one cell outside. Plain version: `plain.inside`."""
        x, y = self._index(points_m)
        return (_weight_inside(x, self.size[0]) * _weight_inside(y, self.size[1]))[:, None]

    def _index(self, points_m: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ((points_m[..., axis] - self.first_m[axis]) / self.cell_m for axis in (0, 1))
        return x, y

    def warp(self, maps: Float[Tensor, "B C X Y"], src_T_dst: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B C X Y"]:
        """Warp maps from frame src to frame dst; 0 outside the maps."""
        return self.read(maps, self.seen_from(src_T_dst))

    def seen_from(self, src_T_dst: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B X Y 2"]:
        """Cell centres (x, y) of frame dst in frame src, metres."""
        shift = src_T_dst[:, :2, 3] + self.height_m * src_T_dst[:, :2, 2]
        return torch.einsum("bij,xyj->bxyi", src_T_dst[:, :2, :2], self.points(src_T_dst)) + shift[:, None, None]


def read_grid(maps: Float[Tensor, "B C X Y"], points_m: Float[Tensor, "B P Q 2"], grid: GridSpec) -> Float[Tensor, "B C P Q"]:
    """Bilinear values of maps on a grid at points (x, y) in its ego frame, metres; 0 outside.

    `CellGrid.read` is faster for maps with many channels that need no gradient.
    """
    y, x = (2 * (points_m[..., axis] - grid.lower_m[axis]) / (grid.shape[axis] * grid.voxel_m) - 1 for axis in (1, 0))
    return repeatable.grid_sample(maps, torch.stack([y, x], -1).to(maps.dtype))


def grid_centres(grid: GridSpec, like: Tensor) -> Float[Tensor, "X Y 2"]:
    """Centres (x, y) of a grid's cells in its ego frame, metres."""
    x, y = (
        grid.lower_m[axis] + (torch.arange(grid.shape[axis], device=like.device, dtype=like.dtype) + 0.5) * grid.voxel_m for axis in (0, 1)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)


def planar(dst_T_src: Float[Tensor, "*B 4 4"], points_m: Float[Tensor, "*B P Q 2"]) -> Float[Tensor, "*B P Q 2"]:
    """Map points (x, y) from frame src to frame dst, for transforms that rotate about z only."""
    return torch.einsum("...ij,...pqj->...pqi", dst_T_src[..., :2, :2], points_m) + dst_T_src[..., None, None, :2, 3]


def _weight_inside(index: Tensor, count: int) -> Tensor:
    """Total bilinear weight of existing cells along one axis, for points in cell units."""
    return (torch.minimum(index, count - 1 - index) + 1).clamp(0, 1)


def constant(values: Sequence[float], like: Tensor) -> Shaped[Tensor, "n"]:
    """`like.new_tensor(values)` without the GPU synchronisation of a copy from the host."""
    return torch.cat([like.new_empty(0), *(like.new_full((1,), value) for value in values)])


def identity(like: Tensor) -> Float[Tensor, "4 4"]:
    """The 4x4 identity, with the device and dtype of `like`."""
    return torch.eye(4, device=like.device, dtype=like.dtype)


def transform_inverse(transform: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Inverse of rigid transforms, `torch.linalg.inv(transform)`, computed by transposition."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    translation = -(rotation @ transform[..., :3, 3:])
    bottom = transform[..., 3:, :]
    return torch.cat([torch.cat([rotation, translation], -1), bottom], -2)


def rigid_inverse(transform: Float[Tensor, "*B 4 4"]) -> Float[Tensor, "*B 4 4"]:
    """Inverse of rigid transforms.

    On a CPU it uses `inv`, because the codes of trained tokenizers depend on its last bits; else transposition.
    """
    return torch.linalg.inv_ex(transform).inverse if cpu.pays_for(transform) else transform_inverse(transform)


def planar_transform(xy_m: Float[Tensor, "*B 2"], cos: Float[Tensor, "*B"], sin: Float[Tensor, "*B"]) -> Float[Tensor, "*B 4 4"]:
    """4x4 transforms of planar motions: translations in metres, cosine and sine of the yaw."""
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [
        torch.stack([cos, -sin, zero, xy_m[..., 0]], -1),
        torch.stack([sin, cos, zero, xy_m[..., 1]], -1),
        torch.stack([zero, zero, one, zero], -1),
        torch.stack([zero, zero, zero, one], -1),
    ]
    return torch.stack(rows, -2)
