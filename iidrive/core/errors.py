"""Errors for the user. Each message says what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from iidrive.core.text import printable


class IIDriveError(Exception):
    """Base of every error that iidrive raises on purpose; the command line prints it without a traceback."""


class DataError(IIDriveError):
    """Input data are missing, damaged or of the wrong form."""


class ConfigError(IIDriveError):
    """An option, or a combination of options, is invalid."""


class CheckpointError(IIDriveError):
    """A checkpoint is missing, damaged or from another architecture."""


class LineageError(IIDriveError):
    """Two artefacts (models, tokens, predictions) that do not descend from the same tokenizer were combined."""


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """Message for an unknown name, with the nearest known one: `unknown split 'minival'. Did you mean 'mini_val'? Known: …`."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name)[:200], names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{printable(name)}'.{hint} Known: {', '.join(names) or 'none'}."
