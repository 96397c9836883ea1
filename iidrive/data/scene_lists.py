"""Files with scene names, which stand for a split of any source."""

from __future__ import annotations

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.core.untrusted.files import decode, read_bytes
from iidrive.core.untrusted.json_text import parse_json

LONGEST = 1 << 24
"""Bytes of a file of splits or scene names."""


def read_list(path: str) -> tuple[str, ...]:
    """Scene names of a file: a JSON list, or one name a line.

    Raises:
        DataError: naming the file, if it is empty, names a scene twice or holds anything else.
    """
    text = decode(read_bytes(path, LONGEST), path)
    names = parse_json(text, path) if text.lstrip().startswith(("[", "{")) else [line.strip() for line in text.splitlines() if line.strip()]
    return checked_names(names, path)


def checked_names(names: object, where: str) -> tuple[str, ...]:
    """Scene names of a file. Raises DataError, naming `where`, if they are no list of names, or one stands twice."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise DataError(f"{where}: expected a list of scene names, as in ['scene-0103']; found {printable(names, 60)}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: scene {printable(twice)} stands twice; keep one.")
    return tuple(names)
