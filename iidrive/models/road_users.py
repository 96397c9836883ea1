"""A forecast's grids with road users where the occupancy flow says they are: transported over what the world model imagines of everything else.

Shapes: B batch, H future steps, X, Y, Z voxels, x, y cells of the flow, M voxels of the grid along one of them, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from iidrive.core.classes import FREE, MOVABLE, OCC_CLASSES
from iidrive.core.scene import GridSpec
from iidrive.models.layers import constant, grid_centres, planar, read_grid

_REACH = 2
"""A cell whose origin shows no road user takes the nearest one at most so many cells beside it, along either axis."""


ROAD_USERS: tuple[int, ...] = tuple(k for k in range(len(OCC_CLASSES)) if MOVABLE[k])
"""The classes of road users."""


DRIVEABLE = OCC_CLASSES.index("driveable_surface")


def movable_classes(like: Tensor) -> Bool[Tensor, "K"]:
    """Which classes are road users', on the device of a tensor."""
    return constant([k in ROAD_USERS for k in range(len(OCC_CLASSES))], like.new_empty(0, dtype=torch.bool))


def transported(
    ground: UInt8[Tensor, "B H X Y Z"],
    present: UInt8[Tensor, "B X Y Z"],
    taken: Float[Tensor, "B H x y"],
    threshold: float,
    flow_m: Float[Tensor, "B H x y 2"],
    now_T_frame: Float[Tensor, "B H 4 4"],
    grid: GridSpec,
    fine: GridSpec,
) -> UInt8[Tensor, "B H X Y Z"]:
    """`ground`, grids without road users in the ego frames `now_T_frame` of future steps, with those of `present` carried to where they are then.

    `taken` (probabilities) and `flow_m` are told in the present ego frame on the grid `fine`. Where the probability at a column's centre, bilinear
    between cells, reaches `threshold`, the column shows the road users' voxels of the present column that the flow of its cell points back to, or
    of the nearest column beside it that has some.
    """
    batch, steps = taken.shape[:2]
    here = planar(now_T_frame, grid_centres(grid, now_T_frame).expand(batch, steps, -1, -1, -1))
    cell, _ = _flat_cell(here, fine)
    shown = read_grid(taken.flatten(0, 1)[:, None], here.flatten(0, 1), fine).view(cell.shape) >= threshold
    back = flow_m.flatten(2, 3).gather(2, cell.flatten(2)[..., None].expand(-1, -1, -1, 2)).view(here.shape)
    column, there = _flat_cell(here + back, grid)
    movable = movable_classes(present)[present.long()]
    columns = torch.where(movable, present, FREE).flatten(1, 2)
    column = _nearest(movable.any(-1)).flatten(1)[:, None].expand(-1, steps, -1).gather(2, column.flatten(2))
    voxels = columns.gather(1, column.flatten(1)[..., None].expand(-1, -1, columns.shape[-1])).view(batch, steps, *grid.shape)
    return torch.where((shown & there)[..., None] & (voxels != FREE), voxels, ground)


def _flat_cell(points_m: Float[Tensor, "*P 2"], grid: GridSpec) -> tuple[Int[Tensor, "*P"], Bool[Tensor, "*P"]]:
    """Number of the cell that holds a point, in rows of x, and whether there is one; a cell at the edge where there is none."""
    x, y = (((points_m[..., axis] - grid.lower_m[axis]) / grid.voxel_m).floor() for axis in (0, 1))
    inside = (x >= 0) & (x < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
    return (x.clamp(0, grid.shape[0] - 1) * grid.shape[1] + y.clamp(0, grid.shape[1] - 1)).long(), inside


def _nearest(where: Bool[Tensor, "B X Y"]) -> Int[Tensor, "B X Y"]:
    """For every column the number of the nearest one of a mask within reach; its own where there is none."""
    batch, x, y = where.shape
    number = torch.arange(x * y, device=where.device).view(1, x, y).expand(batch, x, y)
    out, found = number, where
    padded = F.pad(where, (_REACH,) * 4)
    span = range(-_REACH, _REACH + 1)
    for i, j in sorted(((i, j) for i in span for j in span), key=lambda step: (step[0] ** 2 + step[1] ** 2, step)):
        beside = padded[:, _REACH + i : _REACH + i + x, _REACH + j : _REACH + j + y]
        out = torch.where(beside & ~found, number + (i * y + j), out)
        found = found | beside
    return out
