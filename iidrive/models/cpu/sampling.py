"""Bilinear sampling of maps as weighted sums of table rows. A row holds all channels of a cell, so memory is read contiguously.

Maps are padded with zeros, so that points outside need no special case.

Shapes: B batch, X, Y cells, R rows of a table, C channels, N points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_BORDER = (1, 2)
"""Cells of zero padding before and after a map, along both axes."""


def bordered(size: tuple[int, int]) -> tuple[int, int]:
    """Size of a padded map, cells."""
    return size[0] + sum(_BORDER), size[1] + sum(_BORDER)


def table_of(cells: Float[Tensor, "B X Y C"]) -> Float[Tensor, "R C"]:
    """Cells of padded maps as table rows, map after map."""
    return F.pad(cells, (0, 0, *_BORDER, *_BORDER)).flatten(0, 2)


def corners(x: Float[Tensor, "*N"], y: Float[Tensor, "*N"], size: tuple[int, int]) -> tuple[Int[Tensor, "4 *N"], Float[Tensor, "4 *N"]]:
    """Row indices in one padded map of the four cells around each point (in cell units), and their bilinear weights."""
    x, y = x.clamp(-1, size[0]), y.clamp(-1, size[1])
    low_x, low_y = x.detach().floor(), y.detach().floor()
    right, over = x - low_x, y - low_y
    left, under = 1 - right, 1 - over
    row = bordered(size)[1]
    # a NaN position reads an arbitrary cell, with NaN weights
    first = ((low_x + _BORDER[0]) * row + low_y + _BORDER[0]).nan_to_num(0).int()
    cells = torch.stack([first, first + 1, first + row, first + (row + 1)])
    return cells, torch.stack([left * under, left * over, right * under, right * over])


def weighted_rows(table: Float[Tensor, "R C"], rows: Int[Tensor, "K N"], weights: Float[Tensor, "K N"]) -> Float[Tensor, "N C"]:
    """Weighted sums of K table rows."""
    return F.embedding_bag(rows.t().contiguous(), table, mode="sum", per_sample_weights=weights.to(table.dtype).t().contiguous())
