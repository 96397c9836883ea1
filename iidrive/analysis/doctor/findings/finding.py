"""One thing that the doctor says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing to know about a table: `kind` a short name, `suspect` whether the number should not be believed before `decide` is done.

    `open` names what could not be examined: the absence of a suspicion says nothing about it.
    """

    kind: str
    sentence: str
    suspect: bool = False
    evidence: tuple[str, ...] = ()
    decide: str = ""
    open: str = ""
