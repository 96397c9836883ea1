"""Losses that are NaN or infinite in a training log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NO_NUMBER = re.compile(r"[\"']?\s{0,4}[:=]\s{0,4}(?:tensor\()?[-+]?(nan|inf|infinity)\b", re.IGNORECASE)
_MOST = 200
"""Largest number of loss names kept."""
_NAME = re.compile(r"[\w./-]{1,80}$")


@dataclass(frozen=True)
class BadLoss:
    """A loss that was printed as NaN or infinity: name, first and last such line (counted from 0), and whether the last loss line is one of them."""

    name: str
    first: int
    last: int
    stays: bool


def read_losses(lines: Sequence[str]) -> list[BadLoss]:
    """All losses that were NaN or infinite on some line, in order of appearance."""
    found: dict[str, tuple[int, int]] = {}
    latest = -1
    for at, line in enumerate(lines):
        if "loss" not in line and "Loss" not in line and "LOSS" not in line:
            continue
        latest = at
        if "nan" not in line and "NaN" not in line and "NAN" not in line and "inf" not in line and "Inf" not in line:
            continue
        for match in _NO_NUMBER.finditer(line):
            name = _NAME.search(line[max(0, match.start() - 80) : match.start()])
            if name and "loss" in name[0].lower():
                key = name[0].strip("./-")[:60]
                if key in found or len(found) < _MOST:
                    found[key] = (found[key][0] if key in found else at, at)
    return [BadLoss(name, first, last, last == latest) for name, (first, last) in found.items()]
