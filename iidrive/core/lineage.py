"""What descends from what: the chain of a model, a token cache or a predictions file, and the one place where mismatched pairs are refused.

    planner 1a2b… ← world 3c4d… ← tokenizer 5e6f…

A mismatch that is allowed on purpose becomes a **mark**, a sentence that goes into everything made with it and everything that descends from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iidrive.core.errors import LineageError

MARKED = "MISMATCH ALLOWED"
"""What the table of a number starts with that was made with stages which do not belong together."""

TRAINED_HERE = "TRAINED ON THESE SCENES"
"""What the table of a number starts with whose scenes trained the model. Such a mark starts with it too."""

OVERRIDE = "To run it in spite of that, and mark every number: --allow-mismatch on."

WHY = {
    "tokenizer": "Two codebooks trained apart do not agree on what a token means",
    "world": "Latents imagined by world models trained apart do not mean the same",
}


INITIAL = "initial "
"""What stands before the kind of an ancestor whose weights a training started from."""


@dataclass(frozen=True)
class Parent:
    """A checkpoint that another one was made with: where it lay and its fingerprint."""

    kind: str
    path: str
    fingerprint: str


@dataclass(frozen=True)
class Lineage:
    """A thing, where it lies, what it descends from (nearest first), and the marks it carries.

    `kind` is that of a checkpoint, or `tokens`, `predictions`, `scores`; those three have no fingerprint of their own ("").
    """

    kind: str
    fingerprint: str = ""
    path: str = ""
    ancestors: tuple[Parent, ...] = ()
    marks: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ← ".join([f"{self.kind} {self.fingerprint}".strip(), *(f"{a.kind} {a.fingerprint}".strip() for a in self.ancestors)])

    def of(self, kind: str) -> str:
        """The fingerprint of that kind in this chain, "" if there is none."""
        if self.kind == kind:
            return self.fingerprint
        return next((a.fingerprint for a in self.ancestors if a.kind == kind), "")

    def child(self, kind: str, path: str = "") -> Lineage:
        """The chain of something without weights that was made with this: tokens, predictions, scores."""
        return Lineage(kind, "", path, (Parent(self.kind, self.path, self.fingerprint), *self.ancestors), self.marks)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it, in predictions files and scores."""
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
            raise LineageError(f"{where}: its lineage is damaged ({error!r}). Write the file anew with `iidrive evaluate`.") from None


def matched(user: Lineage, kind: str, given: Lineage, advice: str, allow: bool = False) -> tuple[str, ...]:
    """Whether `user` descends from the thing of that kind in `given`: () if it does, else the mark if `allow`.

    Raises:
        LineageError: for a mismatch that is not allowed, with both chains and what to run (`advice`).
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
    """Marks of several things, each once, in order."""
    return tuple(dict.fromkeys(m for some in marks for m in some))


def mark_lines(marks: Iterable[str]) -> str:
    """What stands above a table made with marks: a line each; "" without any."""
    return "".join(f"{marked(mark)}\n" for mark in marks)


def marked(mark: str) -> str:
    """A mark as it is shown, with what kind it is of."""
    return mark if mark.startswith(TRAINED_HERE) else f"{MARKED}: {mark}"


def mark_numbers(scores: Mapping[str, Any], marks: Iterable[str]) -> dict[str, Any]:
    """Scores whose every block of numbers says what was overridden (`marks`); unchanged without marks."""
    marks = list(marks)
    if not marks:
        return dict(scores)
    return {"marks": marks, **{k: {**v, "marks": marks} if isinstance(v, Mapping) else v for k, v in scores.items()}}
