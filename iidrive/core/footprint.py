"""Bird's-eye-view grid cells inside boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core.scene import Boxes, GridSpec

Array = np.ndarray

EGO_SIZE_M = (4.084, 1.85)
"""Length and width of the ego vehicle (nuScenes' car), metres, as in SparseDrive's protocol."""
EGO_CENTRE_M = 1.44
"""Distance from the rear axle forward to the centre of the ego: 0.94 m to LIDAR_TOP and 0.5 m more."""

MARGIN_CELLS = 0.3
"""Boxes are enlarged by this many cells on every side when their voxels are collected, so that voxels they only touch count too."""


@dataclass(frozen=True)
class Footprint:
    """M pairs of a box and a cell inside it, ordered by box.

    Attributes:
        box: (M,) index of the box.
        x: (M,) first index of the cell.
        y: (M,) second index of the cell.
        local_m: (M,2) position of the cell's centre in the box's frame (forward, left), metres from the box's centre.
    """

    box: Int[Array, "m"]
    x: Int[Array, "m"]
    y: Int[Array, "m"]
    local_m: Float[Array, "m 2"]

    def mask(self, spec: GridSpec) -> Bool[Array, "X Y"]:
        """The cells inside any box."""
        out = np.zeros(spec.shape[:2], bool)
        out[self.x, self.y] = True
        return out


def footprint(boxes: Boxes, spec: GridSpec, margin_m: float = 0.0) -> Footprint:
    """The cells whose centre lies inside a box or on its edge. Boxes must be in the grid's frame; heights are ignored.

    Args:
        boxes: N boxes.
        spec: the grid.
        margin_m: boxes are enlarged by this on every side, metres.
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
    """As `footprint`, for N rectangles.

    Args:
        centre_m: (N,2) centres, metres.
        size_m: (N,2) length along the heading, and width, metres.
        yaw_rad: (N,) headings.
        spec: the grid.
        margin_m: rectangles are enlarged by this on every side, metres.
        centre_cell: always include the cell that holds a rectangle's centre, however thin the rectangle is.
    """
    shape, voxel = np.array(spec.shape[:2]), spec.voxel_m
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    half = size_m / 2 + margin_m
    # half extents of each rotated rectangle's axis-aligned bounding box
    reach = np.stack([abs(cos) * half[:, 0] + abs(sin) * half[:, 1], abs(sin) * half[:, 0] + abs(cos) * half[:, 1]], -1)
    at = (centre_m - np.array(spec.lower_m[:2])) / voxel - 0.5  # in cells; cell centres are at integers
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
    """Concatenated ranges: start[0], start[0] + 1, … (length[0] numbers), then start[1], …"""
    before = np.cumsum(length) - length
    return np.arange(int(length.sum())) - np.repeat(before - start, length)
