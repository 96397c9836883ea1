"""Answers of language models, `{token: text}`, where the text contains the points, such as GPT-Driver's `[(0.01, 2.5), …]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.scoring.readers.rows import Rows, named

_NUMBER = r"[-+]?\d{1,12}(?:\.\d{0,20})?"
_PAIR = re.compile(rf"[(\[]\s*({_NUMBER})\s*,\s*({_NUMBER})\s*[)\]]")
_BETWEEN = re.compile(r"\s*,?\s*")
_LONGEST = 1 << 16


def points_in(text: str) -> list[list[float]] | None:
    """The last list of at least two points in an answer; None if there is none."""
    runs: list[list[list[float]]] = []
    end = -1
    for found in _PAIR.finditer(text[-_LONGEST:]):
        point = [float(found[1]), float(found[2])]
        if runs and _BETWEEN.fullmatch(text[-_LONGEST:], end, found.start()):
            runs[-1].append(point)
        else:
            runs.append([point])
        end = found.end()
    return runs[-1] if runs and len(runs[-1]) > 1 else None


def is_texts(value: Any) -> bool:
    """Whether a value is a dict of strings and at least one contains points."""
    if not isinstance(value, dict) or not value or not all(isinstance(text, str) for text in value.values()):
        return False
    return any(points_in(text) is not None for text in value.values())


def read_texts(value: Mapping[str, str], where: str) -> Rows:
    """The paths of answers in text. Raises DataError for answers without points, and as `rows.named`."""
    return named(value.items(), "answers in text, the last list of points of each", where, _points)


def _points(text: str) -> list[list[float]]:
    found = points_in(text)
    if found is None:
        raise DataError(f"an answer has no list of points: {printable(repr(text[:60]))}.")
    return found
