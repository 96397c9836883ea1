"""Rows of a results file: the path of each sample and its token, if there is one. All bad rows are counted before an error is raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.scoring import npz
from iidrive.scoring.readers.shapes import Shaped, joined, shaped

Array = np.ndarray

TOKEN_KEYS = ("token", "sample_token", "sample_idx")


@dataclass(frozen=True)
class Rows:
    """Paths (n,6,2) in the order of the file. `token` is None for files without tokens. `form` is the detected format."""

    path: Array
    token: tuple[str, ...] | None
    form: str


def named(pairs: Iterable[tuple[Any, Any]], form: str, where: str, path_of: Callable[[Any], Any] = lambda value: value) -> Rows:
    """Rows from (token, value) pairs. `path_of` extracts the path from a value.

    Raises:
        DataError: for invalid tokens or bad paths. The message names the first bad path and counts all.
    """
    values, tokens = [], []
    for i, (token, value) in enumerate(pairs):
        tokens.append(token_name(token, i, where))
        values.append(value)
    return _gathered(values, [f"sample {token}" for token in tokens], tuple(tokens), form, where, path_of)


def unnamed(values: Sequence[Any], form: str, where: str, path_of: Callable[[Any], Any] = lambda value: value) -> Rows:
    """Rows without tokens. Raises DataError as `named`."""
    return _gathered(values, [f"row {i}" for i in range(len(values))], None, form, where, path_of)


def _gathered(
    values: Sequence[Any], whose: Sequence[str], token: tuple[str, ...] | None, form: str, where: str, path_of: Callable[[Any], Any]
) -> Rows:
    found: list[Shaped] = []
    bad: list[tuple[str, str]] = []
    for value, name in zip(values, whose, strict=True):
        try:
            found.append(shaped(path_of(value), f"the path of {name}"))
        except DataError as error:
            bad.append((name, str(error)))
    if bad:
        more = f" {len(bad)} of {len(values)} paths are bad: {few([name for name, _ in bad])}." if len(bad) > 1 else ""
        raise DataError(f"{where}: {bad[0][1]}{more}")
    if not found:
        raise DataError(f"{where}: the file has no paths; predict every sample with a full future.")
    path, said = joined(found, whose, where)
    return Rows(path, token, f"{form}{said}")


def few(names: Sequence[str]) -> str:
    """The first three names, followed by … if there are more."""
    return ", ".join(printable(name) for name in names[:3]) + (", …" if len(names) > 3 else "")


def token_name(token: Any, i: int, where: str) -> str:
    """`token` if it is a valid sample token; `i` is its row. Raises DataError otherwise."""
    if not isinstance(token, str):
        raise DataError(f"{where}: a sample token must be text; found {what(token)} in row {i}.")
    if not token or not token.isprintable() or token != token.strip():
        raise DataError(
            f"{where}: a sample token must be text without surrounding spaces or control characters; found {printable(repr(token[:80]))} in row {i}."
        )
    if len(token) > 200:
        raise DataError(
            f"{where}: a sample token must have at most 200 characters; found {len(token)} in row {i} ({printable(token, 40)})."
        )
    return token


def what(value: object) -> str:
    """A short description of a value for messages: its text or its type."""
    if isinstance(value, str):
        return f"the text {printable(repr(value[:40]))}"
    return "nothing (null)" if value is None else f"{type(value).__name__.lstrip('_').lower()}"


def keys_of(row: dict[Any, Any]) -> str:
    """`3 keys (a, b, c)`."""
    return npz.few([str(key) if isinstance(key, str | int) else what(key) for key in row], "key")
