"""Bilinear reading of maps as weighted sums of rows of a table: a row holds all channels of a cell, so memory is read in long runs.

Shapes: R rows of a table (cells of all maps), C channels, N points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def corners(x: Float[Tensor, "*N"], y: Float[Tensor, "*N"], size: tuple[int, int]) -> tuple[Int[Tensor, "*N 4"], Float[Tensor, "*N 4"]]:
    """The four cells (x * size[1] + y) around points told in cells, and their bilinear weights, zero for cells outside of the map."""
    low_x, low_y = x.detach().floor(), y.detach().floor()
    (left, right), (x0, x1) = _line(x - low_x, low_x, size[0])
    (under, over), (y0, y1) = _line(y - low_y, low_y, size[1])
    cells = torch.stack([x0 * size[1] + y0, x0 * size[1] + y1, x1 * size[1] + y0, x1 * size[1] + y1], -1)
    return cells.int(), torch.stack([left * under, left * over, right * under, right * over], -1)


def _line(part: Tensor, low: Tensor, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Linear weights and places of the two cells around points on a line of `count` cells."""
    first, second = (1 - part) * ((low >= 0) & (low < count)), part * ((low >= -1) & (low < count - 1))
    return (first, second), (low.clamp(0, count - 1), (low + 1).clamp(0, count - 1))


def weighted_rows(table: Float[Tensor, "R C"], rows: Int[Tensor, "N K"], weights: Float[Tensor, "N K"]) -> Float[Tensor, "N C"]:
    """Sums of K weighted rows of a table."""
    return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.to(table.dtype))
