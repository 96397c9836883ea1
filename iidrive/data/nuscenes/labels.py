"""Reader of occupancy files in Occ3D's layout, `<folder>/<scene>/<sample token>/labels.npz`. Grids can be cropped and coarsened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from iidrive.core.class_tables import ASSUMED, require_free
from iidrive.core.classes import FREE, IGNORE
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, GridSpec, OccGrid, OccSource
from iidrive.core.text import printable
from iidrive.core.untrusted.npz import read_npz
from iidrive.data.occupancy_grids import read_grids

Array = np.ndarray

LIMIT = 1 << 28
"""Maximum size of the arrays read from one file, bytes: seven grids of eight bytes per voxel, and their velocities."""


def read(path: Path, spec: GridSpec, source: OccSource) -> OccGrid:
    """Read the occupancy of one keyframe and bring it onto the grid `spec`.

    A label file holds `semantics` and optionally `mask_camera`, uint8 (200,200,16) on `OCC3D_GRID`. A derived file, as `iidrive occupancy` writes it,
    also holds `mask_lidar`: voxels where it is 0 are unknown (255). A predicted file may have any form that `occupancy_grids.read_grids` reads,
    with a single grid. Its camera mask is not read.

    Raises:
        DataError: naming the file, if it is missing or damaged, lacks an array, has another shape, dtype or class, or if a class other than
            17 (free) fills most of the grid.
        ConfigError: as `regrid`.
    """
    missing = "Download the file, or use occupancy='auto' to derive occupancy where there is no file."
    if source == "predicted":
        if not path.exists():
            raise DataError(f"{path} is missing. {missing}")
        grids = read_grids(path, "predicted", ASSUMED, option="").labels
        if len(grids) != 1:
            raise DataError(
                f"{path}: {len(grids)} grids, but only one (of the current time) is allowed here; write that one to its own file."
            )
        return regrid(_grid(grids[0], source, None, path), spec)
    derived = source == "derived"
    wanted = (("semantics",), ("mask_lidar",), ("mask_camera",)) if derived else (("semantics",), ("mask_camera",))
    found = _arrays(path, wanted, 1, "Download the file again.", missing)
    for name, array in found.items():
        if array.shape != OCC3D_GRID.shape or array.dtype != np.uint8:
            raise DataError(
                f"{path}: '{name}' must be uint8 {OCC3D_GRID.shape}; found {array.dtype} {array.shape}. Download the file again."
            )
    known = found.pop("mask_lidar", None)
    semantics, *mask = found.values()
    require_free(semantics, str(path), "", truth=True)
    if known is not None:
        semantics = np.where(known != 0, semantics, np.uint8(IGNORE))
    return regrid(_grid(semantics, source, mask[0].astype(bool) if mask else None, path), spec)


def _grid(semantics: Array, source: OccSource, mask: Array | None, path: Path) -> OccGrid:
    try:
        return OccGrid(semantics, OCC3D_GRID, source, mask)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def tokens_in(folder: Path, files_alone: bool = False) -> frozenset[str]:
    """Sample tokens that a folder has occupancy for: the names of its files and subfolders, or of its files only."""
    names = os.listdir(folder) if folder.is_dir() else []
    files = {name.removesuffix(kind) for name in names for kind in (".npz", ".npy") if name.endswith(kind)}
    return frozenset(files if files_alone else files | set(names))


def place(folder: Path, scene: str, token: str) -> Path:
    """Path of a keyframe's file: the first that exists in the layouts of `occupancy_files`, else `<scene>/<token>/labels.npz`."""
    stems = (folder / scene / token / "labels", folder / scene / token / "pred", folder / scene / token, folder / token)
    paths = [stem.with_name(f"{stem.name}.{kind}") for stem in stems for kind in ("npz", "npy")]
    return next((path for path in paths if path.is_file()), paths[0])


def _arrays(path: Path, wanted: Sequence[Sequence[str]], optional: int = 0, advice: str = "", missing: str = "") -> dict[str, np.ndarray]:
    """Read one array per group of names in `wanted`: the first name that the file has. The last `optional` groups may be absent."""
    if not path.exists():
        raise DataError(f"{path} is missing. {missing or advice}")
    try:
        held, others = read_npz(path, [name for names in wanted for name in names], LIMIT)
    except DataError as error:
        said = str(error).removeprefix(f"{path}: ").removesuffix(".")
        raise DataError(f"{path} is not a readable .npz file ({said}). {advice}") from error
    found: dict[str, np.ndarray] = {}
    for k, names in enumerate(wanted):
        name = next((n for n in names if n in held), None)
        if name is not None:
            found[name] = held[name]
        elif k < len(wanted) - optional:
            inside = printable(", ".join([*held, *others]), 200) or "none"
            raise DataError(f"{path} has no array '{names[0]}'; found {inside}. {advice}")
    return found


def regrid(grid: OccGrid, spec: GridSpec) -> OccGrid:
    """Crop occupancy to `spec` and coarsen it. Voxels of `spec` are blocks of m x m x m original voxels.

    A block gets its most frequent class other than free (the lowest index on a tie). It is free if it holds only free and unknown voxels,
    and unknown if all its voxels are unknown. It is visible to the cameras if one of its voxels is.

    Raises:
        ConfigError: if the grids are not aligned or `spec` reaches beyond the original.
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
    """Group voxels into blocks: (x, y, z) → (x/m, y/m, z/m, m³)."""
    x, y, z = (n // m for n in values.shape)
    return values.reshape(x, m, y, m, z, m).transpose(0, 2, 4, 1, 3, 5).reshape(x, y, z, m**3)


def _majority(semantics: UInt8[Array, "x y z"], m: int) -> UInt8[Array, "a b c"]:
    """Class of each block by the rule of `regrid`. Votes are counted only in blocks that are not empty."""
    blocks = _blocks(semantics, m)
    out = np.where((blocks == IGNORE).all(axis=-1), IGNORE, FREE).astype(np.uint8)
    solid = (blocks < FREE).any(axis=-1)
    votes = blocks[solid]
    block, voxel = np.nonzero(votes < FREE)
    counts = np.bincount(block * FREE + votes[block, voxel], minlength=len(votes) * FREE).reshape(-1, FREE)
    out[solid] = counts.argmax(axis=1)
    return out
