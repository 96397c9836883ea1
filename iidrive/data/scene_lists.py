"""Files with scene names, which stand for a split of any source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.text import printable
from iidrive.core.untrusted.files import decode, read_bytes
from iidrive.core.untrusted.json_text import parse_json

LONGEST = 1 << 24
"""Bytes of a file of splits or scene names."""


def is_list(split: str) -> bool:
    """Whether what was given for a split is a file."""
    return Path(split).is_file()


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


def folds(names: Sequence[str], count: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Scenes to train on and to test on, `count` times: every scene is tested on once. Fold k tests on names k, k + count, ….

    Raises:
        ConfigError: for fewer than two folds, or more than there are scenes.
    """
    if not 2 <= count <= len(names):
        raise ConfigError(f"{len(names)} scenes make 2 to {len(names)} folds; {count} were asked for.")
    return [(tuple(name for i, name in enumerate(names) if i % count != k), tuple(names[k::count])) for k in range(count)]
