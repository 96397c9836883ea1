"""Arrays of npz files: checks of types and shapes, and atomic writing. `core.untrusted.npz` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import DTypeLike

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.runtime import atomic

Array = np.ndarray


def write_npz(path: str | Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz file atomically. Equal arrays give equal bytes.

    Raises:
        DataError: if the folder does not exist or cannot be written.
    """
    try:
        with atomic.whole(path) as temporary, temporary.open("wb") as handle:
            np.savez(handle, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check that the folder exists.") from error


def numbers(value: object, dtype: DTypeLike, shape: tuple[int, ...], key: str, where: str) -> Float[Array, "..."]:
    """`value` as an array of `dtype` and `shape`. Raises DataError for another shape, and for booleans or non-numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise DataError(f"{where}: {key} must hold numbers; found {array.dtype}.")
    _shape(array, shape, key, where)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def integers(value: object, shape: tuple[int, ...], key: str, where: str) -> Int[Array, "..."]:
    """`value` as an integer array of the given shape; its dtype is kept. Raises DataError for anything else."""
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: {key} must hold integers; found {array.dtype}.")
    _shape(array, shape, key, where)
    return array


def flags(value: object, shape: tuple[int, ...], key: str, where: str) -> Bool[Array, "..."]:
    """`value`, which may hold only 0 and 1, as a bool array of the given shape. Raises DataError for anything else."""
    array = np.asarray(value)
    array = numbers(array.astype(np.uint8) if array.dtype == bool else array, np.float64, shape, key, where)
    odd = (array != 0) & (array != 1)
    if odd.any():
        raise DataError(f"{where}: {key} may hold only 0 and 1; found {array[odd][0]:g}.")
    return array.astype(bool)


def names(value: Array, key: str, where: str) -> tuple[str, ...]:
    """A one-dimensional unicode array as strings. Raises DataError for anything else."""
    if value.ndim != 1 or value.dtype.kind != "U":
        raise DataError(f"{where}: {key} must be a one-dimensional unicode array; found {value.dtype} of shape {value.shape}.")
    try:
        return tuple(value.tolist())
    except ValueError as error:  # code points that Unicode does not have
        raise DataError(f"{where}: {key} holds text that is not Unicode ({error}); write it again.") from error


def _shape(array: Array, shape: tuple[int, ...], key: str, where: str) -> None:
    if array.shape != shape:
        raise DataError(f"{where}: {key} must have shape {shape}; found {array.shape}.")


def few(tokens: Sequence[str], noun: str = "sample") -> str:
    """`7 samples (a, b, c, …)`: the count and the first three names."""
    shown = ", ".join(printable(t if t.isprintable() else repr(t)) for t in tokens[:3]) + (", …" if len(tokens) > 3 else "")
    return f"{len(tokens)} {noun}{'' if len(tokens) == 1 else 's'} ({shown})"


def repeated(tokens: Sequence[str]) -> list[str]:
    """Tokens that appear more than once, each listed once, in the order of their second appearance."""
    if len(set(tokens)) == len(tokens):
        return []
    seen: set[str] = set()
    again: dict[str, None] = {}
    for token in tokens:
        if token in seen:
            again[token] = None
        seen.add(token)
    return list(again)


def scalar_text(value: Array) -> str:
    """The text of a 0-dimensional array; a description (dtype and shape) of any other array."""
    try:
        return str(value.item()) if value.ndim == 0 else f"{value.dtype} of shape {value.shape}"
    except ValueError:  # code points that Unicode does not have
        return "text that is not Unicode"
