"""Which cells of a grid, seen from above, lie inside boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core.scene import Boxes, GridSpec

Array = np.ndarray

EGO_SIZE_M = (4.084, 1.85)
"""Length and width of the ego (nuScenes' car), as SparseDrive's protocol has them."""
EGO_CENTRE_M = 1.44
"""Centre of the ego ahead of the rear axle: 0.5 m ahead of LIDAR_TOP, which is 0.94 m ahead of it."""

MARGIN_CELLS = 0.3
"""What moves is looked for in boxes that are enlarged by this many cells on every side, so that voxels which a box only touches are its own."""


@dataclass(frozen=True)
class Footprint:
    """M pairs of a box and a cell inside it, boxes in order: `box` (M,), the cell's indices `x` and `y` (M,), and where the cell's centre
    lies in the box: `local_m` (M,2) along the heading and to its left, metres, from the box's centre."""

    box: Int[Array, "m"]
    x: Int[Array, "m"]
    y: Int[Array, "m"]
    local_m: Float[Array, "m 2"]

    def mask(self, spec: GridSpec) -> Bool[Array, "X Y"]:
        """The cells that lie inside any box."""
        out = np.zeros(spec.shape[:2], bool)
        out[self.x, self.y] = True
        return out


def footprint(boxes: Boxes, spec: GridSpec, margin_m: float = 0.0) -> Footprint:
    """The cells whose centre lies inside a box, its edge included, that is enlarged by `margin_m` on every side.

    Boxes are taken to be in the frame of the grid. Heights play no part.
    """
    return rectangles(boxes.centre_m[:, :2], boxes.size_m[:, :2], boxes.yaw_rad, spec, margin_m)


def rectangles(
    centre_m: Float[Array, "n 2"],
    size_m: Float[Array, "n 2"],
    yaw_rad: Float[Array, "n"],
    spec: GridSpec,
    margin_m: float = 0.0,
    centre_cell: bool = False,
) -> Footprint:
    """The same for bare rectangles: centres, length along the heading and width, headings.

    With `centre_cell` the cell that holds a rectangle's centre is its own however thin the rectangle is.
    """
    shape, voxel = np.array(spec.shape[:2]), spec.voxel_m
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    half = size_m / 2 + margin_m
    # the window of cells that a turned rectangle can reach
    reach = np.stack([abs(cos) * half[:, 0] + abs(sin) * half[:, 1], abs(sin) * half[:, 0] + abs(cos) * half[:, 1]], -1)
    at = (centre_m - np.array(spec.lower_m[:2])) / voxel - 0.5  # cell centres are the integers
    home = np.rint(at)
    low, high = np.ceil(at - reach / voxel - 1e-6), np.floor(at + reach / voxel + 1e-6)
    if centre_cell:
        low, high = np.minimum(low, home), np.maximum(high, home)
    first = np.clip(low, 0, shape).astype(np.int64)
    extent = np.clip(high + 1, 0, shape).astype(np.int64) - first
    extent = np.maximum(extent, 0)
    cells = extent.prod(axis=1)
    box = np.repeat(np.arange(len(cells)), cells)
    place = ranges(np.zeros_like(cells), cells)
    x, y = first[box, 0] + place // extent[box, 1], first[box, 1] + place % extent[box, 1]
    dx, dy = (x - at[box, 0]) * voxel, (y - at[box, 1]) * voxel
    local = np.stack([cos[box] * dx + sin[box] * dy, cos[box] * dy - sin[box] * dx], -1)
    inside = (abs(local) <= half[box] + 1e-9).all(axis=1)
    if centre_cell:
        inside |= (x == home[box, 0]) & (y == home[box, 1])
    return Footprint(box[inside], x[inside], y[inside], local[inside])


def ranges(start: Int[Array, "n"], length: Int[Array, "n"]) -> Int[Array, "m"]:
    """start[0], start[0] + 1, … (length[0] numbers), then start[1], …"""
    before = np.cumsum(length) - length
    return np.arange(int(length.sum())) - np.repeat(before - start, length)
