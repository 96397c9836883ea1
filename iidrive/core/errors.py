"""Errors that a user can act on: each says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from iidrive.core.text import printable


class IIDriveError(Exception):
    """Base of every error that iidrive raises on purpose; the command line prints it without a traceback."""


class DataError(IIDriveError):
    """A file or a value of the data is missing, damaged or not what it should be."""


class ConfigError(IIDriveError):
    """An option or a combination of options cannot work."""


class CheckpointError(IIDriveError):
    """A checkpoint is missing, damaged or of another architecture."""


class LineageError(IIDriveError):
    """Two artefacts that do not descend from the same tokenizer were put together."""


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """One sentence about a name that is not known, with the nearest known one: `unknown split 'minival'; ...`."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name)[:200], names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{printable(name)}'.{hint} Known: {', '.join(names) or 'none'}."
