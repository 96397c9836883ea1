"""Reading maps as sums of table rows gives what `grid_sample` gives, gradients included."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from iidrive.models.layers import CellGrid, DeformableAttention

SIZE = (6, 5)
GRID = CellGrid(SIZE, (-1.0, 0.5), 0.4)


def points() -> torch.Tensor:
    """(2,40,3,2) metres: inside, on cells, on the edge's fading, outside, far outside."""
    torch.manual_seed(0)
    made = torch.rand(2, 40, 3, 2, dtype=torch.float64) * 4 - torch.tensor([2.0, 1.0])
    made[0, :6, 0] = GRID.points(made)[:, 2]
    made[0, 6:8, 0] = torch.tensor([[1e4, 0.5], [-1e4, -1e4]])
    return made.requires_grad_()


def by_grid_sample(maps: torch.Tensor, points_m: torch.Tensor) -> torch.Tensor:
    index = (points_m - points_m.new_tensor(GRID.first_m)) / GRID.cell_m
    grid = (index * points_m.new_tensor([2 / (n - 1) for n in SIZE]) - 1).flip(-1)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def test_maps_are_read_as_by_grid_sample() -> None:
    at, maps = points(), torch.randn(2, 7, *SIZE, dtype=torch.float64, requires_grad=True)
    read, plain = GRID.read(maps, at), by_grid_sample(maps, at)
    torch.testing.assert_close(read, plain, atol=1e-10, rtol=0)
    weight = torch.randn_like(plain)
    off_cells = torch.ones_like(at)
    off_cells[0, :6, 0] = 0  # on a cell's middle the slope depends on the side that one looks to
    for mine, theirs, mask in zip(
        torch.autograd.grad((read * weight).sum(), (maps, at)),
        torch.autograd.grad((plain * weight).sum(), (maps, at)),
        (torch.ones_like(maps), off_cells),
        strict=True,
    ):
        torch.testing.assert_close(mine * mask, theirs * mask, atol=1e-8, rtol=0)


def test_inside_is_the_reading_of_a_map_of_ones() -> None:
    at = points().detach()
    torch.testing.assert_close(GRID.inside(at), GRID.read(torch.ones(2, 1, *SIZE, dtype=torch.float64), at))


def test_deformable_attention_reads_points_as_defined() -> None:
    attention, tokens = deformable()
    (x, y), count = SIZE, SIZE[0] * SIZE[1]

    def plain() -> torch.Tensor:
        values = attention.value(tokens).view(3, x, y, 4, 4).permute(0, 3, 4, 1, 2)
        offsets, weights = attention.offsets(tokens).view(3, count, 4, 4, 2), attention.weights(tokens).view(3, count, 4, 4).softmax(-1)
        at = torch.arange(count, dtype=torch.float64)
        cell = torch.stack([(at % y + 0.5) / y, (at // y + 0.5) / x], -1)
        places = 2 * (cell[:, None, None] + offsets / torch.tensor([y, x])) - 1
        read = F.grid_sample(values.flatten(0, 1), places.permute(0, 2, 1, 3, 4).flatten(0, 1), align_corners=False)
        mixed = (read.view(3, 4, 4, count, 4) * weights.permute(0, 2, 1, 3)[:, :, None]).sum(-1)
        return attention.out(mixed.permute(0, 3, 1, 2).flatten(2))

    mine, theirs = attention(tokens, SIZE), plain()
    torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)
    weight, inputs = torch.randn_like(theirs), [tokens, *attention.parameters()]
    for a, b in zip(torch.autograd.grad((mine * weight).sum(), inputs), torch.autograd.grad((theirs * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def deformable() -> tuple[DeformableAttention, torch.Tensor]:
    torch.manual_seed(1)
    attention = DeformableAttention(16, 4).double()
    torch.nn.init.normal_(attention.offsets.weight)
    torch.nn.init.normal_(attention.weights.weight)
    return attention, torch.randn(3, SIZE[0] * SIZE[1], 16, dtype=torch.float64, requires_grad=True)


def test_places_that_are_no_numbers_read_none() -> None:
    at = torch.full((1, 1, 2, 2), torch.nan)
    at[0, 0, 1] = 0
    read = GRID.read(torch.ones(1, 1, *SIZE), at)[0, 0, 0]
    assert read.isnan().tolist() == [True, False]
