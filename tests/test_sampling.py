"""Sampling maps as sums of table rows equals `grid_sample`, including gradients."""

from __future__ import annotations

import torch

from iidrive.models import plain
from iidrive.models.layers import CellGrid

SIZE = (6, 5)
GRID = CellGrid(SIZE, (-1.0, 0.5), 0.4)


def points() -> torch.Tensor:
    """(2,40,3,2) metres: inside, on cells, on the edge's fading, outside, far outside."""
    torch.manual_seed(0)
    made = torch.rand(2, 40, 3, 2, dtype=torch.float64) * 4 - torch.tensor([2.0, 1.0])
    made[0, :6, 0] = GRID.points(made)[:, 2]
    made[0, 6:8, 0] = torch.tensor([[1e4, 0.5], [-1e4, -1e4]])
    return made.requires_grad_()


def test_maps_are_sampled_as_by_grid_sample() -> None:
    at, maps = points(), torch.randn(2, 7, *SIZE, dtype=torch.float64, requires_grad=True)
    read, formula = GRID.read(maps, at), plain.read(GRID, maps, at)
    torch.testing.assert_close(read, formula, atol=1e-10, rtol=0)
    weight = torch.randn_like(formula)
    off_cells = torch.ones_like(at)
    off_cells[0, :6, 0] = 0  # on a cell's middle the slope depends on the side that one looks to
    for mine, theirs, mask in zip(
        torch.autograd.grad((read * weight).sum(), (maps, at)),
        torch.autograd.grad((formula * weight).sum(), (maps, at)),
        (torch.ones_like(maps), off_cells),
        strict=True,
    ):
        torch.testing.assert_close(mine * mask, theirs * mask, atol=1e-8, rtol=0)


def test_inside_equals_sampling_a_map_of_ones() -> None:
    at = points().detach()
    torch.testing.assert_close(GRID.inside(at), GRID.read(torch.ones(2, 1, *SIZE, dtype=torch.float64), at))
    torch.testing.assert_close(GRID.inside(at), plain.inside(GRID, at), atol=1e-10, rtol=0)


def test_nan_positions_give_nan() -> None:
    at = torch.full((1, 1, 2, 2), torch.nan)
    at[0, 0, 1] = 0
    read = GRID.read(torch.ones(1, 1, *SIZE), at)[0, 0, 0]
    assert read.isnan().tolist() == [True, False]
