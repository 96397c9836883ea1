"""Transformations between common conventions of Occ3D-shaped grids: rotated, mirrored, reshaped, shifted, or with other voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from iidrive.core.class_tables import SURROUNDOCC_VOXELS, Voxels
from iidrive.core.scene import OCC3D_GRID, GridSpec

Array = np.ndarray
Grid = Bool[Array, "200 200 16"]
Change = Callable[[Grid], Grid]

_EGO_T_LIDAR_M = (0.94, 0.0, 1.84)
"""Position of nuScenes' lidar in the ego frame, metres. Its x axis points to the right of the ego."""


def orientations() -> dict[str, tuple[str, Change]]:
    """The ways to swap, mirror and reshape axes: description → (kind of finding, transformation of the prediction)."""
    flat = {
        (False, False, False): ("as they are", "axes"),
        (False, True, False): ("mirrored from front to back (x)", "mirrored"),
        (False, False, True): ("mirrored from left to right (y)", "mirrored"),
        (False, True, True): ("turned by half a turn", "turned"),
        (True, False, False): ("with x and y exchanged", "axes"),
        (True, True, False): ("turned to the left by a quarter", "turned"),
        (True, False, True): ("turned to the right by a quarter", "turned"),
        (True, True, True): ("with x and y exchanged and both mirrored", "axes"),
    }
    out: dict[str, tuple[str, Change]] = {}
    for upside in (False, True):
        for (swap, x, y), (name, kind) in flat.items():
            whole = name if not upside else "turned upside down (z)" if name == "as they are" else f"{name}, and upside down (z)"
            out[whole] = "mirrored" if upside and name == "as they are" else kind, _oriented(swap, x, y, upside)
    for order in ((2, 1, 0), (1, 2, 0)):
        out[f"reshaped from {('z, y, x', 'z, x, y')[order[0] == 1]}"] = "axes", _reshaped(order)
    return out


def _oriented(swap: bool, x: bool, y: bool, z: bool) -> Change:
    steps = tuple(slice(None, None, -1 if turned else 1) for turned in (x, y, z))
    return lambda grid: (grid.transpose(1, 0, 2) if swap else grid)[steps]


def _reshaped(order: tuple[int, int, int]) -> Change:
    """Values that were written in another axis order and reshaped to x, y, z without a transpose."""
    return lambda grid: np.ascontiguousarray(grid).reshape(16, 200, 200).transpose(order)


def refitted() -> dict[str, tuple[str, Change]]:
    """Grids with other voxels, resampled at the centres of Occ3D's voxels: description → (kind of finding, transformation)."""
    out: dict[str, tuple[str, Change]] = {}
    for voxel in (0.2, 0.32, 0.5, 0.8):
        around = Voxels(GridSpec(lower_m=(-100 * voxel, -100 * voxel, -1.0), voxel_m=voxel), "ego")
        out[f"of {voxel:g} m voxels around the ego"] = "scaled", _read_at(around)
    corner = ", ".join(f"{low:g}" for low in SURROUNDOCC_VOXELS.spec.lower_m)
    name = f"of {SURROUNDOCC_VOXELS.spec.voxel_m:g} m voxels from ({corner}) m in the frame of the lidar (SurroundOcc's)"
    out[name] = "scaled", _read_at(SURROUNDOCC_VOXELS)
    return out


def _read_at(voxels: Voxels) -> Change:
    """Resample a grid that lies on `voxels` at the centres of Occ3D's voxels."""
    low, size = voxels.spec.lower_m, voxels.spec.voxel_m

    def change(grid: Grid) -> Grid:
        x, y, z = (OCC3D_GRID.centres(axis) for axis in range(3))
        if voxels.frame == "lidar":  # x right, y forward
            ahead, left, up = x - _EGO_T_LIDAR_M[0], y - _EGO_T_LIDAR_M[1], z - _EGO_T_LIDAR_M[2]
            seen = grid.transpose(1, 0, 2)  # axes: forward, right, up
            return _take(seen, ((ahead, low[1]), (-left, low[0]), (up, low[2])), size)
        return _take(grid, ((x, low[0]), (y, low[1]), (z, low[2])), size)

    return change


def _take(grid: Grid, axes: Sequence[tuple[Array, float]], voxel_m: float) -> Grid:
    index = [np.floor((points - low) / voxel_m).astype(np.int64) for points, low in axes]
    inside = [(i >= 0) & (i < n) for i, n in zip(index, grid.shape, strict=True)]
    found = grid[np.ix_(*(np.clip(i, 0, n - 1) for i, n in zip(index, grid.shape, strict=True)))]
    return found & inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]


def shifted(grid: Grid, cells: tuple[int, int, int]) -> Grid:
    """A grid shifted by some voxels along each axis; new voxels are free."""
    out = np.zeros_like(grid)
    to = tuple(slice(max(n, 0), size + min(n, 0)) for n, size in zip(cells, grid.shape, strict=True))
    of = tuple(slice(max(-n, 0), size + min(-n, 0)) for n, size in zip(cells, grid.shape, strict=True))
    out[to] = grid[of]
    return out


def shift_that_fits(pairs: Sequence[tuple[Grid, Grid]]) -> tuple[int, int, int]:
    """The common shift in voxels that maximises the overlap of predictions with the truth, from (prediction, truth) pairs."""
    shape = OCC3D_GRID.shape
    total = np.zeros(shape)
    for pred, true in pairs[:4]:
        spectrum = np.conj(np.fft.rfftn(pred.astype(np.float32))) * np.fft.rfftn(true.astype(np.float32))
        total += np.fft.irfftn(spectrum, shape, axes=(0, 1, 2))
    best = np.unravel_index(int(total.argmax()), shape)
    x, y, z = (int(k) - n if k > n // 2 else int(k) for k, n in zip(best, shape, strict=True))
    return x, y, z
