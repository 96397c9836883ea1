"""Lineage of models, token caches and predictions files: which checkpoints each was made with. Mismatched pairs are refused here.

    planner 1a2b… ← world 3c4d… ← tokenizer 5e6f…

If the user allows a mismatch, it is recorded as a **mark**: a sentence that is written into every result made with it, and into every later
result made from those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iidrive.core.errors import LineageError
from iidrive.core.text import printable

MARKED = "MISMATCH ALLOWED"
"""First line of a table whose numbers were made with mismatched stages."""

TRAINED_HERE = "TRAINED ON THESE SCENES"
"""First line of a table scored on scenes that the model was trained on. Marks of this kind begin with it."""

OVERRIDE = "To run it anyway, and mark every number: --allow-mismatch on."

WHY = {
    "tokenizer": "The same token index means something different in two separately trained codebooks",
    "world": "Latents of two separately trained world models are not comparable",
}


_LONGEST_MARK = 1000

INITIAL = "initial "
"""Prefix of the kind of an ancestor whose weights a training started from."""


@dataclass(frozen=True)
class Parent:
    """A checkpoint that another artefact was made with: its kind, path and fingerprint."""

    kind: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Lineage:
    """The lineage of an artefact.

    Attributes:
        kind: kind of checkpoint, or `tokens`, `predictions` or `scores`.
        fingerprint: fingerprint of the checkpoint; empty for tokens, predictions and scores.
        path: where the artefact is.
        ancestors: checkpoints that it was made with, nearest first.
        marks: mismatches that were allowed.
    """

    kind: str
    fingerprint: str = ""
    path: str = ""
    ancestors: tuple[Parent, ...] = ()
    marks: tuple[str, ...] = ()

    def __str__(self) -> str:
        links = [f"{self.kind} {self.fingerprint}", *(f"{a.kind} {a.fingerprint}" for a in self.ancestors)]
        return " ← ".join(printable(link.strip()) for link in links)

    def of(self, kind: str) -> str:
        """Fingerprint of the checkpoint of this kind in the chain; "" if there is none."""
        if self.kind == kind:
            return self.fingerprint
        return next((a.fingerprint for a in self.ancestors if a.kind == kind), "")

    def child(self, kind: str, path: str = "") -> Lineage:
        """Lineage of tokens, predictions or scores that were made with this."""
        return Lineage(kind, "", path, (Parent(self.kind, self.path, self.fingerprint), *self.ancestors), self.marks)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON, as in predictions files and scores."""
        return {"chain": str(self), "links": [vars(p) for p in self.links], "marks": list(self.marks)}

    @property
    def links(self) -> tuple[Parent, ...]:
        """The whole chain, nearest first."""
        return Parent(self.kind, self.path, self.fingerprint), *self.ancestors

    @staticmethod
    def from_plain(plain: Mapping[str, Any], where: str) -> Lineage:
        """The inverse of `to_plain`. Raises LineageError for anything else."""
        try:
            first, *rest = (Parent(str(p["kind"]), str(p["path"]), str(p["fingerprint"])) for p in plain["links"])
            return Lineage(first.kind, first.fingerprint, first.path, tuple(rest), tuple(str(m) for m in plain["marks"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LineageError(f"{where}: its lineage is damaged ({error!r}). Write the file again with `iidrive evaluate`.") from None


def matched(user: Lineage, kind: str, given: Lineage, advice: str, allow: bool = False) -> tuple[str, ...]:
    """Check that `user` was made with the same checkpoint of kind `kind` as `given` holds.

    Returns:
        () if it was, or one mark if it was not and `allow` is true.

    Raises:
        LineageError: for a mismatch that is not allowed, with both chains and `advice`.
    """
    wanted, found = user.of(kind), given.of(kind)
    if wanted == found:
        return ()
    if user.kind == "tokens":
        sentence = f"these tokens were written by {kind} {wanted}, but the {kind} in use is {found}"
        mark = f"tokens of {kind} {wanted} read with {kind} {found}"
    else:
        sentence = f"this {user.kind} was trained on {kind} {wanted or '(none)'}, but {kind} {found} was given"
        mark = f"{user.kind} {user.fingerprint}, trained on {kind} {wanted or '(none)'}, used with {kind} {found}"
    if allow:
        return (mark,)
    raise LineageError(
        f"{user.path}: {sentence}.\n  expected: {user}\n  given:    {given}\n{WHY.get(kind, 'They do not belong together')}: {advice}\n{OVERRIDE}"
    )


def joined(*marks: Iterable[str]) -> tuple[str, ...]:
    """Marks of several artefacts, in order, without repeats."""
    return tuple(dict.fromkeys(m for some in marks for m in some))


def mark_lines(marks: Iterable[str]) -> str:
    """Lines to print above a table, one per mark; "" without marks."""
    return "".join(f"{marked(mark)}\n" for mark in marks)


def marked(mark: str) -> str:
    """A mark as it is printed, with `MISMATCH ALLOWED` or `TRAINED ON THESE SCENES` in front."""
    told = printable(mark, _LONGEST_MARK)
    return told if told.startswith(TRAINED_HERE) else f"{MARKED}: {told}"


def mark_numbers(scores: Mapping[str, Any], marks: Iterable[str]) -> dict[str, Any]:
    """Scores with `marks` added at the top and in every nested mapping; unchanged without marks."""
    marks = list(marks)
    if not marks:
        return dict(scores)
    return {"marks": marks, **{k: {**v, "marks": marks} if isinstance(v, Mapping) else v for k, v in scores.items()}}
