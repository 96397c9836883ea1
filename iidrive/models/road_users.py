"""Forecast grids in which road users are moved by the occupancy flow. All other classes come from the world model.

Shapes: B batch, H future steps, X, Y, Z voxels, x, y cells of the flow, K classes.
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
"""If the column that the flow points to has no road user, the nearest one within this many cells along x and y is used."""


ROAD_USERS: tuple[int, ...] = tuple(k for k in range(len(OCC_CLASSES)) if MOVABLE[k])
"""Classes of road users."""


DRIVEABLE = OCC_CLASSES.index("driveable_surface")


def movable_classes(like: Tensor) -> Bool[Tensor, "K"]:
    """Mask of the road-user classes, on the device of `like`."""
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
    """Add road users to future grids by moving the current ones along the flow.

    Where the occupancy probability at a column's centre (bilinear) reaches `threshold`, the column gets the road-user voxels of the current
    column that its backward flow points to, or of the nearest column with some.

    Args:
        ground: (B,H,X,Y,Z) future grids without road users, each in its own ego frame.
        present: (B,X,Y,Z) current grid in the current ego frame.
        taken: (B,H,x,y) occupancy probabilities of road users in the current ego frame, on the grid `fine`.
        threshold: probability from which a column is occupied.
        flow_m: (B,H,x,y,2) backward flow in the current ego frame, on the grid `fine`, metres.
        now_T_frame: (B,H,4,4) from each future ego frame to the current one.
        grid: grid of `ground` and `present`.
        fine: grid of `taken` and `flow_m`.
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
    """Flat index (x * Y + y) of the cell that contains each point, and whether the point is inside.

    Outside points get a cell at the edge.
    """
    x, y = (((points_m[..., axis] - grid.lower_m[axis]) / grid.voxel_m).floor() for axis in (0, 1))
    inside = (x >= 0) & (x < grid.shape[0]) & (y >= 0) & (y < grid.shape[1])
    return (x.clamp(0, grid.shape[0] - 1) * grid.shape[1] + y.clamp(0, grid.shape[1] - 1)).long(), inside


def _nearest(where: Bool[Tensor, "B X Y"]) -> Int[Tensor, "B X Y"]:
    """For each column, the flat index of the nearest column of the mask within `_REACH`; its own index if there is none."""
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
