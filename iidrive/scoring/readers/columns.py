"""One list of tokens and one of paths, `{"token": […], "trajectory": […]}`, also as pandas writes a DataFrame to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.scoring.readers.by_token import PATH_KEYS, is_truth
from iidrive.scoring.readers.rows import TOKEN_KEYS, Rows, named

_TOKENS = (*TOKEN_KEYS, "tokens", "sample_tokens")


def is_columns(value: Any) -> bool:
    """Whether a value is a dict with a list of text under a name of tokens, and other values."""
    return isinstance(value, dict) and len(value) > 1 and _tokens(value) != ""


def read_columns(value: Mapping[str, Any], where: str) -> Rows:
    """The paths of two columns. Raises DataError if no other column has as many rows, or several may be the paths, and as `rows.named`."""
    key = _tokens(value)
    tokens = _column(value[key])
    assert tokens is not None
    others = {name: rows for name, inner in value.items() if name != key and (rows := _column(inner)) is not None}
    fits = [name for name, rows in others.items() if len(rows) == len(tokens) and not is_truth(name) and not isinstance(rows[0], str)]
    fits = [name for name in PATH_KEYS if name in fits][:1] or fits
    if len(fits) != 1:
        lengths = ", ".join(f"{printable(repr(name), 40)} ({len(rows)})" for name, rows in list(others.items())[:4]) or "no list"
        told = f"several columns that may be the paths, {', '.join(printable(repr(name), 40) for name in fits[:4])}: name the right one 'trajectory'"
        raise DataError(
            f"{where}: found {told if fits else f'{len(tokens)} tokens and, beside them, {lengths}: write one path for each token'}."
        )
    return named(zip(tokens, others[fits[0]], strict=True), "columns of tokens and paths", where)


def _tokens(value: Mapping[Any, Any]) -> str:
    """The name of the column of tokens; '' if there is none."""
    for name in _TOKENS:
        rows = _column(value.get(name))
        if rows is not None and all(isinstance(token, str) for token in rows):
            return name
    return ""


def _column(value: Any) -> list[Any] | None:
    """The rows of a column: a list, an array, or pandas' dict by row number. None for anything else and for no rows."""
    if isinstance(value, dict) and list(value) == [str(i) for i in range(len(value))]:
        value = list(value.values())
    elif hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except DataError:  # a damaged tensor
            return None
        value = array.tolist() if array.dtype.kind == "U" else list(array) if array.ndim else []
    return list(value) if isinstance(value, list | tuple) and value else None
