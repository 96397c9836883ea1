"""The type of a finding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One finding about a table.

    `kind`: short name. `suspect`: whether the numbers should not be trusted before `decide`, the decisive test, is done. `open`: what could not be
    examined.
    """

    kind: str
    sentence: str
    suspect: bool = False
    evidence: tuple[str, ...] = ()
    decide: str = ""
    open: str = ""
