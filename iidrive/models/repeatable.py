"""Deterministic versions of `grid_sample` and `cumsum` for GPUs, used under `torch.use_deterministic_algorithms`.

PyTorch has no deterministic GPU version of these two: it adds in varying order. For all other operations used here it has one.

Shapes: B batch, C channels, X, Y cells, P, Q points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from iidrive.models.cpu.sampling import bordered, corners, table_of, weighted_rows


def wanted(tensor: Tensor) -> bool:
    """Whether a deterministic version is needed: the tensor is on a GPU and deterministic algorithms are enabled."""
    return tensor.device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def grid_sample(maps: Float[Tensor, "B C X Y"], places: Float[Tensor, "B P Q 2"]) -> Float[Tensor, "B C P Q"]:
    """`F.grid_sample(maps, places, align_corners=False)`: bilinear values at `places` (along Y, along X) in [-1, 1]; 0 outside."""
    if not wanted(maps):
        return F.grid_sample(maps, places, align_corners=False)
    size = (maps.shape[2], maps.shape[3])
    y, x = (((places[..., axis] + 1) * count - 1) / 2 for axis, count in ((0, size[1]), (1, size[0])))
    return read_rows(maps, x, y)


def grid_sample_gradients(
    grad: Float[Tensor, "B C P Q"], maps: Float[Tensor, "B C X Y"], places: Float[Tensor, "B P Q 2"]
) -> tuple[Float[Tensor, "B C X Y"], Float[Tensor, "B P Q 2"]]:
    """Gradients of `grid_sample` with respect to maps and places, given the gradient of its output."""
    if not wanted(maps):
        bilinear, zeros = 0, 0
        return torch.ops.aten.grid_sampler_2d_backward(grad, maps, places, bilinear, zeros, False, [True, True])
    with torch.enable_grad():
        of = maps.detach().requires_grad_(), places.detach().requires_grad_()
        to_maps, to_places = torch.autograd.grad(grid_sample(*of), of, grad)
    return to_maps, to_places


def read_rows(maps: Float[Tensor, "B C X Y"], x: Float[Tensor, "B P Q"], y: Float[Tensor, "B P Q"]) -> Float[Tensor, "B C P Q"]:
    """Bilinear values at points (x, y) in cell units, as weighted sums of table rows; 0 outside."""
    size = (maps.shape[2], maps.shape[3])
    cells, weights = corners(x, y, size)
    table = table_of(maps.permute(0, 2, 3, 1))
    first = torch.arange(len(maps), device=cells.device, dtype=cells.dtype) * (bordered(size)[0] * bordered(size)[1])
    rows = cells + first[:, None, None]
    read = weighted_rows(table, rows.flatten(1), weights.flatten(1))
    return read.view(*x.shape, maps.shape[1]).permute(0, 3, 1, 2)


def running_sum(values: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
    """`values.cumsum(axis)`, deterministic if needed."""
    if not wanted(values):
        return values.cumsum(axis)
    made, total = [], torch.zeros_like(values.select(axis, 0))
    for part in values.unbind(axis):
        total = total + part
        made.append(total)
    return torch.stack(made, axis)
