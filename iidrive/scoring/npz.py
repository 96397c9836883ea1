"""npz files that are read with checks and written whole or not at all."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import DTypeLike

from iidrive.core.errors import DataError
from iidrive.runtime import atomic

Array = np.ndarray


def read_npz(path: str | Path, keys: Collection[str]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays of `keys` that the file holds, and the names of all others, which are not read.

    Raises:
        DataError: if the file is missing, unreadable, truncated, no npz, or holds pickled Python objects under one of `keys`.
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise DataError(f"{path}: this is a single npy array; expected an npz archive.")
        with opened as archive:
            found: dict[str, Array] = {}
            for key in archive.files:
                if key in keys:
                    found[key] = _load(archive, key, path)
            return found, tuple(sorted(set(archive.files) - set(keys)))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the path of an npz file.") from error
    except (zipfile.BadZipFile, EOFError, ValueError, MemoryError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable npz archive ({said}); it may be cut short or of another kind: write it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _load(archive: np.lib.npyio.NpzFile, key: str, path: str | Path) -> Array:
    try:
        return archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{path}: '{key}' holds pickled Python objects, which are never loaded because they can run code; "
            "save it as a plain array (text as a unicode array)."
        ) from error
    except (zlib.error, NotImplementedError, SyntaxError, TokenError, TypeError) as error:
        raise DataError(f"{path}: '{key}' is damaged ({error}); write the file again.") from error


def write_npz(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file, whole or not at all. Equal arrays give equal bytes.

    Raises:
        DataError: if the folder does not exist or cannot be written.
    """
    try:
        with atomic.whole(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check that the folder exists.") from error


def numbers(value: object, dtype: DTypeLike, shape: tuple[int, ...], key: str, where: str) -> Float[Array, "..."]:
    """`value` as real numbers of one type and shape; DataError otherwise."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: {key} must hold numbers; found {array.dtype}.")
    _shape(array, shape, key, where)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def integers(value: object, shape: tuple[int, ...], key: str, where: str) -> Int[Array, "..."]:
    """`value` as integers of its own width and the given shape; DataError otherwise."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: {key} must hold integers; found {array.dtype}.")
    _shape(array, shape, key, where)
    return array


def flags(value: object, shape: tuple[int, ...], key: str, where: str) -> Bool[Array, "..."]:
    """`value`, which may only hold 0 and 1, as booleans of the given shape; DataError otherwise."""
    array = numbers(value, np.float64, shape, key, where)
    odd = (array != 0) & (array != 1)
    if odd.any():
        raise DataError(f"{where}: {key} may hold only 0 and 1; found {array[odd][0]:g}.")
    return array.astype(bool)


def names(value: Array, key: str, where: str) -> tuple[str, ...]:
    """A one-dimensional unicode array as strings; DataError otherwise."""
    if value.ndim != 1 or value.dtype.kind != "U":
        raise DataError(f"{where}: {key} must be a one-dimensional unicode array; found {value.dtype} of shape {value.shape}.")
    return tuple(value.tolist())


def _shape(array: Array, shape: tuple[int, ...], key: str, where: str) -> None:
    if array.shape != shape:
        raise DataError(f"{where}: {key} must have shape {shape}; found {array.shape}.")


def few(tokens: Sequence[str], noun: str = "sample") -> str:
    """`7 samples (a, b, c, …)`: how many, and the first few."""
    shown = ", ".join(t if t.isprintable() else repr(t) for t in tokens[:3]) + (", …" if len(tokens) > 3 else "")
    return f"{len(tokens)} {noun}{'' if len(tokens) == 1 else 's'} ({shown})"


def repeated(tokens: Sequence[str]) -> list[str]:
    """Tokens that stand more than once, each named once, in the order of their second appearance."""
    if len(set(tokens)) == len(tokens):
        return []
    seen: set[str] = set()
    again: dict[str, None] = {}
    for token in tokens:
        if token in seen:
            again[token] = None
        seen.add(token)
    return list(again)
