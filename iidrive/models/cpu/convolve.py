"""Convolutions of the tokenizer with fewer operations: the first one, over repeating columns, and those after upsampling.

Shapes: B batch, X, Y cells, Z voxels of a column, K classes, E class embedding channels, C, D channels, U distinct columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from iidrive.models import cpu
from iidrive.models.cpu.products import linear


def convolve_columns(labels: UInt8[Tensor, "B X Y Z"], classes: Float[Tensor, "K E"], conv: nn.Conv2d) -> Float[Tensor, "B D X Y"]:
    """`conv` (3x3, padding 1) of maps whose channels are the embedded labels of columns, (z e).

    Few columns are distinct. So each distinct column is multiplied with the nine weight matrices once, and every cell sums nine rows of the
    resulting table. Plain version: `plain.convolve_columns`.
    """
    if not cpu.pays_for(labels):
        return conv(F.embedding(labels.long(), classes).flatten(3).permute(0, 3, 1, 2).contiguous())
    assert conv.bias is not None
    batch, x, y, _ = labels.shape
    columns, index = distinct_columns(labels)
    table = linear(F.embedding(columns.long(), classes).flatten(1), conv.weight.permute(2, 3, 0, 1).flatten(0, 2))
    table = F.pad(table.view(len(columns), 9, -1), (0, 0, 0, 0, 0, 1))  # a last row of zeros for cells outside
    index = F.pad(index.view(batch, x, y), (1, 1, 1, 1), value=len(columns)) * 9
    taps = torch.stack([index[:, i : i + x, j : j + y] + (3 * i + j) for i in range(3) for j in range(3)], -1)
    made = F.embedding_bag(taps.flatten(0, 2), table.flatten(0, 1), mode="sum") + conv.bias
    return made.view(batch, x, y, -1).permute(0, 3, 1, 2)


def distinct_columns(labels: UInt8[Tensor, "B X Y Z"]) -> tuple[UInt8[Tensor, "U Z"], Int[Tensor, "B*X*Y"]]:
    """The distinct columns, in any order, and for each cell the index of its column. Plain version: `plain.distinct_columns`."""
    flat = labels.flatten(0, 2)
    words = F.pad(flat, (0, -flat.shape[1] % 8)).contiguous().view(torch.int64)
    names = words[:, 0]
    for word in words[:, 1:].unbind(1):
        _, names = torch.unique(names, return_inverse=True)
        _, place = torch.unique(word, return_inverse=True)
        names = names * (int(place.max()) + 1) + place
    _, index = torch.unique(names, return_inverse=True)
    first = torch.empty(int(index.max()) + 1, dtype=torch.long, device=labels.device)
    first[index] = torch.arange(len(index), device=labels.device)
    return flat[first], index


class EnlargedConv(nn.Sequential):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution.

    Each of the four new cells of an old one depends on 2x2 old cells only. So it is a 2x2 convolution with summed weights: 16 products
    instead of 36. Plain version: `plain.enlarged_conv`.
    """

    def __init__(self, width: int) -> None:
        super().__init__(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, input: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B D 2X 2Y"]:
        if not cpu.pays_for(input):
            return super().forward(input)
        conv = self[1]
        assert isinstance(conv, nn.Conv2d)
        _, _, x, y = input.shape
        around = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
        weights = [_halves(half, 3) for half in _halves(conv.weight, 2)]
        made = [F.conv2d(around[:, :, i : i + x + 1, j : j + y + 1], weights[i][j], conv.bias) for i in range(2) for j in range(2)]
        cells = _Interleaved.apply(*made)
        assert isinstance(cells, Tensor)
        return cells


class _Interleaved(torch.autograd.Function):
    """Interleaves four maps (B,D,X,Y) into one (B,D,2X,2Y): each 2x2 block has one cell of each map, row by row."""

    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        batch, width, x, y = maps[0].shape
        cells = maps[0].new_empty(batch, 2 * x, 2 * y, width).permute(0, 3, 1, 2)
        for part, made in zip(_parts(cells), maps, strict=True):
            part.copy_(made)
        return cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in _parts(grad_outputs[0]))


def _parts(cells: Float[Tensor, "B D X2 Y2"]) -> list[Tensor]:
    return [cells[:, :, i::2, j::2] for i in range(2) for j in range(2)]


def _halves(weight: Float[Tensor, "..."], axis: int) -> tuple[Tensor, Tensor]:
    """The two summed weights along an axis for the first, and for the second, of the two new cells of an old one."""
    a, b, c = weight.unbind(axis)
    return torch.stack([a, b + c], axis), torch.stack([a + b, c], axis)
