"""Content of occupancy files of other code bases, converted to Occ3D's classes.

Arrays are dense, (200, 200, 16) with an optional leading time axis and axes of length 1, or sparse, (N, 4) rows of x, y, z, class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from iidrive.core.class_tables import OCC3D_VOXELS, SURROUNDOCC_VOXELS, ClassTable, require_free
from iidrive.core.classes import FREE, IGNORE, OCC_CLASSES
from iidrive.core.errors import DataError
from iidrive.core.scene import OCC3D_GRID
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.npz import member_names, read_npy, read_npz
from iidrive.data.occupancy_files import Role

Array = np.ndarray

LIMIT = 1 << 28
"""Maximum size of the arrays read from one file, bytes: seven grids of eight bytes per voxel, and their velocities."""
KEYS: dict[Role, tuple[str, ...]] = {
    "predicted": ("semantics", "pred", "occ_label", "arr_0"),
    "labels": ("semantics", "occ_label", "arr_0"),
}
"""Names of the class array. The first that a file has is read."""
MASKS = ("mask_camera", "occ_mask_camera")
OPTION: dict[Role, str] = {"predicted": "--classes", "labels": "--truth-classes"}
FASTEST_MPS = 1e3
"""Largest allowed predicted velocity along any axis. Larger values are treated as damaged data."""


@dataclass(frozen=True)
class Grids:
    """Content of a file.

    Attributes:
        labels: (t,200,200,16) Occ3D classes, the current time first.
        mask: (200,200,16) camera mask of the current time; None if the file has none.
    """

    labels: UInt8[Array, "t 200 200 16"]
    mask: Bool[Array, "200 200 16"] | None = None


def looks_like_occupancy(path: str | Path) -> bool:
    """Whether a file, or the first npz file in a folder's subfolders, has a class array of one of the names in `KEYS`."""
    path = Path(path)
    first = path if path.is_file() else next((p for depth in ("*/*/*.npz", "*/*.npz") for p in path.glob(depth)), None)
    held = (member_names(first) or ()) if first is not None and first.suffix == ".npz" else ()
    return any(f"{name}.npy" in held for name in KEYS["predicted"][:3]) and "trajectory.npy" not in held and "token.npy" not in held


def has_mask(path: Path) -> bool:
    """Whether a file has a camera mask. Only the names of its arrays are read."""
    return any(f"{name}.npy" in (member_names(path) or ()) for name in MASKS)


def read_grids(path: Path, role: Role, table: ClassTable, option: str | None = None) -> Grids:
    """Read the class grids of one sample, the current time first, and the camera mask if there is one.

    A file holds one dense grid, several along a first axis, or sparse rows of the occupied voxels of the current time.

    Args:
        path: the file.
        role: whether it holds predictions or labels.
        table: its class numbering.
        option: command-line option that names the class table, for error messages; empty if there is none, None for the usual one.

    Raises:
        DataError: naming the file, if it is missing or damaged, or holds anything but labels of the table.
    """
    where, option = printable_line(str(path)), OPTION[role] if option is None else option
    found = _arrays(path, KEYS[role])
    mask = next((found.pop(name) for name in MASKS if name in found), None)
    ((name, array),) = found.items()
    if array.ndim == 2 and array.shape[1] == 4:
        if table.assumed:
            advice = (
                f"add {option} occ3d for {OCC3D_VOXELS}, or {option} surroundocc for {SURROUNDOCC_VOXELS}"
                if option
                else "write dense grids"
            )
            raise DataError(
                f"{where}: '{name}' holds rows of x, y, z and class, {array.shape}, of an unknown grid and class numbering: {advice}."
            )
        grids = _dense(whole_numbers(array, name, where), table, where)[None]
    else:
        grids = _shaped(array, name, where)
        grids = whole_numbers(grids, name, where)
        if grids.min(initial=0) < 0 or grids.max(initial=0) > IGNORE:
            raise DataError(
                f"{where}: '{name}' must hold classes 0..{FREE}, and {IGNORE} where the truth is unknown. Write the file again."
            )
        if table.assumed:
            require_free(grids[0].astype(np.uint8), where, option, role == "labels")
        grids = table.translate(grids, where)
    return Grids(np.ascontiguousarray(grids), None if mask is None else _mask(mask, where))


def _arrays(path: Path, keys: tuple[str, ...]) -> dict[str, Array]:
    """The class array and the camera mask, by their names in the file."""
    if not path.exists():
        raise DataError(f"{path} is missing. Write the file again.")
    kind = "npy" if path.suffix == ".npy" else "npz"
    try:
        if kind == "npy":
            return {"the array": read_npy(path, LIMIT)}
        members = [name.removesuffix(".npy") for name in member_names(path) or ()]
        key = next((name for name in keys if name in members), None)
        mask = next((name for name in MASKS if name in members), None)
        found, others = read_npz(path, [name for name in (key, mask) if name], LIMIT)
    except DataError as error:
        raise _unreadable(path, kind, error) from error
    if key is None:
        inside = printable(", ".join([*found, *others]), 200) or "none"
        raise DataError(f"{path} has no array '{keys[0]}' (or {', '.join(keys[1:])}); found {inside}. Write the file again.")
    return found


def _unreadable(path: Path, kind: str, error: DataError) -> DataError:
    said = str(error).removeprefix(f"{path}: ").removesuffix(".").removesuffix("; write the file again")
    return DataError(f"{path} is not a readable .{kind} file ({said}). Write the file again.")


def whole_numbers(array: Array, name: str, where: str) -> Array:
    """Convert labels of any numeric dtype to integers. Raises DataError for fractions, NaN, booleans and other types."""
    if array.dtype.kind in "iu":
        return array
    what = f"'{name}' must hold integers"
    if array.dtype.kind == "b":
        raise DataError(f"{where}: {what}; found booleans, which say that a voxel is occupied but not by which class. Write class labels.")
    if array.dtype.kind != "f":
        raise DataError(f"{where}: {what}; found {array.dtype} {array.shape}. Write the file again.")
    if not np.isfinite(array).all() or (array != np.rint(array)).any() or float(np.abs(array).max(initial=0)) > 1 << 20:
        rows = array.ndim == 2 and array.shape[1] == 4
        advice = "Write indices of voxels, not metres" if rows else "Write class labels, not class scores"
        raise DataError(f"{where}: {what}; found {array.dtype} with fractions, NaN or infinity. {advice}.")
    return array.astype(np.int32)


def _shaped(array: Array, name: str, where: str) -> Array:
    """Reshape a dense array to (t, 200, 200, 16). Raises DataError for any other shape, with a guess of what it is."""
    shape, grid = array.shape, OCC3D_GRID.shape
    ones = len(shape) - 4
    if ones > 0 and shape[:ones] == (1,) * ones:
        array = array.reshape(shape[ones:])
    scores = array.ndim == 4 and len(OCC_CLASSES) - 2 <= len(array) <= len(OCC_CLASSES) + 2
    if scores and array.dtype.kind in "iu":  # as many times, unless they are one-hot
        scores = array.shape[1:] == grid and bool((array.sum(axis=0) == 1).all())
    if array.ndim in (3, 4) and array.shape[-3:] == grid and array.size and not scores:
        return array.reshape(-1, *grid)
    raise DataError(
        f"{where}: '{name}' must hold integers in shape {grid}, or (times, {', '.join(map(str, grid))}); "
        f"found {array.dtype} {shape}{_looks_like(shape)}. Write the file again."
    )


def _looks_like(shape: tuple[int, ...]) -> str:
    grid, inner = OCC3D_GRID.shape, tuple(n for n in shape if n != 1)
    if inner in ((16, 200, 200), (200, 16, 200)):
        return ", whose axes are in another order: reorder them to x, y, z (np.moveaxis)"
    if len(inner) == 4 and inner[:3] == grid and inner[3] <= len(OCC_CLASSES) + 2:
        return ", which looks like class scores: take the argmax over the last axis"
    if len(inner) == 4 and inner[1:] == grid and len(OCC_CLASSES) - 2 <= inner[0] <= len(OCC_CLASSES) + 2:
        return ", which looks like class scores: take the argmax over the first axis"
    if len(inner) == 1 and inner[0] == int(np.prod(grid)):
        return ", which is a flattened grid: reshape it"
    if len(inner) == 2 and inner[0] == 4:
        return ", which looks like transposed sparse rows: transpose it"
    if len(inner) == 3 and inner != grid:
        return ", which is not Occ3D's grid of 200 x 200 x 16 voxels of 0.4 m"
    return ""


def _dense(rows: Array, table: ClassTable, where: str) -> UInt8[Array, "200 200 16"]:
    """Dense grid of sparse rows (x, y, z, class).

    Voxels without a row are free. Raises DataError for rows outside the grid or in conflict.
    """
    shape = np.array(OCC3D_GRID.shape)
    place, label = rows[:, :3], rows[:, 3]
    if ((place < 0) | (place >= shape)).any():
        low, high = (tuple(edge(place, axis=0).tolist()) for edge in (np.min, np.max))
        turned = place[:, ::-1]
        hint = "They are of another grid."
        if not ((turned < 0) | (turned >= shape)).any():
            hint = "They fit as z, y, x: reverse the columns."
        raise DataError(
            f"{where}: rows of x, y, z, class must lie in {tuple(shape.tolist())} voxels; found indices {low} to {high}. {hint}"
        )
    if ((label < 0) | (label > IGNORE)).any():
        raise DataError(f"{where}: rows of x, y, z, class must hold classes of 0..{IGNORE} in the last column. Write the file again.")
    labels = table.translate(label, where, rows=True)
    flat = np.ravel_multi_index(tuple(place.T.astype(np.int64)), OCC3D_GRID.shape)
    out = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    out.reshape(-1)[flat] = labels
    if (out.reshape(-1)[flat] != labels).any():
        raise DataError(f"{where}: some voxels have two rows with different classes. Write each voxel once.")
    return out


def _mask(mask: Array, where: str) -> Bool[Array, "200 200 16"]:
    if mask.shape[-3:] != OCC3D_GRID.shape or mask.ndim not in (3, 4) or mask.dtype.kind not in "iub":
        raise DataError(
            f"{where}: the camera mask must hold integers in shape {OCC3D_GRID.shape}; found {mask.dtype} {mask.shape}. Write the file again."
        )
    return (mask if mask.ndim == 3 else mask[0]).astype(bool)


def read_flow(path: Path, times: int) -> Float[Array, "t 200 200 16 2"] | None:
    """Read the predicted velocities of one sample, the array `flow`: m/s along x and y of each time's ego frame. None if there is none.

    The array is (200,200,16,2) for the current time, or has all `times` along a first axis.

    Raises:
        DataError: naming the file, if it is damaged or `flow` has another shape or holds NaN or more than `FASTEST_MPS`.
    """
    if path.suffix == ".npy":
        return None
    try:
        found = read_npz(path, ("flow",), LIMIT)[0].get("flow")
    except DataError as error:
        raise _unreadable(path, "npz", error) from error
    if found is None:
        return None
    shape = (*OCC3D_GRID.shape, 2)
    if found.shape not in (shape, (times, *shape)) or found.dtype.kind != "f" or not (np.abs(found) <= FASTEST_MPS).all():
        raise DataError(
            f"{path}: 'flow' must hold velocities (x and y) of at most {FASTEST_MPS:g} m/s in shape {shape} or {(times, *shape)}; "
            f"found {found.dtype} {found.shape}. Write the file again."
        )
    return found.reshape(-1, *shape)
