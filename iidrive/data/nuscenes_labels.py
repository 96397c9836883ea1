"""Occupancy files in Occ3D's layout: `<folder>/<scene>/<sample token>/labels.npz`, read whole, cropped or coarsened to a grid."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from iidrive.classes import FREE, IGNORE
from iidrive.errors import ConfigError, DataError
from iidrive.scene import OCC3D_GRID, GridSpec, OccGrid

Array = np.ndarray

SEMANTICS_KEYS = {"labels": ("semantics",), "predicted": ("semantics", "pred", "arr_0")}
"""Accepted names of the class array; predicted files go by several."""


def read(path: Path, spec: GridSpec, source: Literal["labels", "predicted"]) -> OccGrid:
    """Occupancy of one keyframe from a file with `semantics` (and, for labels, `mask_camera`), uint8 (200,200,16) on OCC3D_GRID.

    Predicted files may call the array `semantics`, `pred` or `arr_0`, and have no camera mask.

    Raises:
        DataError: naming the file, if it is missing, damaged, lacks an array, or holds another shape, dtype or class.
        ConfigError: as `regrid`.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            key = next((k for k in SEMANTICS_KEYS[source] if k in arrays.files), None)
            wanted = [key or SEMANTICS_KEYS[source][0], *(["mask_camera"] if source == "labels" else [])]
            for name in wanted:
                if name not in arrays.files:
                    raise DataError(f"{path} has no array '{name}'; found {', '.join(arrays.files) or 'none'}. Fetch the file again.")
            found = [np.asarray(arrays[name]) for name in wanted]
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing. Fetch the file, or choose occupancy='auto' to derive what has no file.") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own ways to say that a file is broken
        raise DataError(f"{path} is not a readable .npz file ({type(error).__name__}: {error}). Fetch the file again.") from error
    for name, array in zip(wanted, found, strict=True):
        if array.shape != OCC3D_GRID.shape or array.dtype != np.uint8:
            raise DataError(f"{path}: '{name}' must be uint8 {OCC3D_GRID.shape}; found {array.dtype} {array.shape}. Fetch the file again.")
    try:
        whole = OccGrid(found[0], OCC3D_GRID, source, found[1].astype(bool) if source == "labels" else None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return regrid(whole, spec)


def regrid(grid: OccGrid, spec: GridSpec) -> OccGrid:
    """The same occupancy on a grid whose voxels are blocks of m x m x m of the original's, inside its bounds.

    A block is free if all its voxels are; else it takes its most frequent class other than free (the lower index wins a tie); unknown
    voxels have no vote, and the block is unknown only if all of them are. A block is visible to the cameras if one of its voxels is.

    Raises:
        ConfigError: if the grids do not line up or `spec` reaches out of the original.
    """
    if spec == grid.spec:
        return grid
    fine = grid.spec
    ratio = spec.voxel_m / fine.voxel_m
    m = max(round(ratio), 1)
    offset = (np.array(spec.lower_m) - np.array(fine.lower_m)) / fine.voxel_m
    first = np.rint(offset).astype(np.int64)
    last = first + np.array(spec.shape) * m
    aligned = abs(ratio - m) < 1e-6 and bool((np.abs(offset - first) < 1e-4).all())
    if not aligned or (first < 0).any() or (last > np.array(fine.shape)).any():
        raise ConfigError(
            f"occupancy files hold {fine.shape} voxels of {fine.voxel_m} m from {fine.lower_m} m; a grid "
            f"{spec.shape} of {spec.voxel_m} m from {spec.lower_m} m must lie inside and be made of whole voxels. "
            "Change the grid, or choose occupancy='derived'."
        )
    window = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    semantics = np.ascontiguousarray(grid.semantics[window])
    mask = None if grid.camera_mask is None else grid.camera_mask[window]
    if m > 1:
        semantics = _majority(semantics, m)
        mask = None if mask is None else np.any(_blocks(mask, m), axis=-1)
    return OccGrid(semantics, spec, grid.source, mask)


def _blocks(values: Array, m: int) -> Array:
    """(x, y, z) → (x/m, y/m, z/m, m³)."""
    x, y, z = (n // m for n in values.shape)
    return values.reshape(x, m, y, m, z, m).transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, m**3)


def _majority(semantics: UInt8[Array, "x y z"], m: int) -> UInt8[Array, "a b c"]:
    """The block rule of `regrid`; counts are made only for blocks that hold something."""
    blocks = _blocks(semantics, m)
    out = np.where((blocks == IGNORE).all(axis=-1), IGNORE, FREE).astype(np.uint8)
    solid = (blocks < FREE).any(axis=-1)
    votes = blocks[solid]
    block, voxel = np.nonzero(votes < FREE)
    counts = np.bincount(block * FREE + votes[block, voxel], minlength=len(votes) * FREE).reshape(-1, FREE)
    out[solid] = counts.argmax(axis=1)
    return out
