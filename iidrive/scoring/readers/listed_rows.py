"""Rows with a sample token each, `{"token": …, "trajectory": path}`, as a list or as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iidrive.core.errors import DataError
from iidrive.scoring.readers.by_token import PATH_KEYS, path_in
from iidrive.scoring.readers.rows import TOKEN_KEYS, Rows, named, what
from iidrive.scoring.readers.texts import points_in


def token_key(row: Mapping[str, Any]) -> str:
    """The key of a row's token; '' if the row has none."""
    return next((key for key in TOKEN_KEYS if key in row), "")


def is_listed(value: Any) -> bool:
    """Whether a value is a list of dicts and the first one has a token."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict) and bool(token_key(value[0]))


def read_listed(value: Sequence[Mapping[str, Any]], where: str) -> Rows:
    """The paths of rows with tokens. Raises DataError for rows without token or path, and as `rows.named`."""
    key = token_key(value[0])
    pairs = []
    for i, row in enumerate(value):
        if not isinstance(row, dict) or key not in row:
            found = "" if isinstance(row, dict) else f"; it is {what(row)}"
            raise DataError(f"{where}: row {i} has no '{key}'{found}; every row needs token and trajectory.")
        pairs.append((row[key], (i, {name: inner for name, inner in row.items() if name != key})))
    return named(pairs, f"rows with a {'sample token' if key == 'sample_idx' else key.replace('_', ' ')} each", where, _path)


def _path(entry: tuple[int, dict[str, Any]]) -> Any:
    i, row = entry
    if any(key in row for key in PATH_KEYS):
        return path_in(row)
    texts = [inner for inner in row.values() if isinstance(inner, str) and points_in(inner) is not None]
    if len(texts) == 1:
        return points_in(texts[0])
    try:
        return path_in(row)
    except DataError as error:
        raise DataError(f"row {i} has no 'trajectory'; every row needs token and trajectory ({str(error).rstrip('.')}).") from error
