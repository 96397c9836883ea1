"""Files of scene names, which can be given instead of a split of any source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.text import printable
from iidrive.core.untrusted.files import decode, read_bytes
from iidrive.core.untrusted.json_text import parse_json

LONGEST = 1 << 24
"""Maximum size of a file of splits or scene names, bytes."""


def is_list(split: str) -> bool:
    """Whether `split` is the path of a file rather than the name of a split."""
    return Path(split).is_file()


def read_list(path: str) -> tuple[str, ...]:
    """Read scene names from a file: a JSON list, or one name per line.

    Raises:
        DataError: naming the file, if it is empty, repeats a scene or holds anything else.
    """
    text = decode(read_bytes(path, LONGEST), path)
    names = parse_json(text, path) if text.lstrip().startswith(("[", "{")) else [line.strip() for line in text.splitlines() if line.strip()]
    return checked_names(names, path)


def checked_names(names: object, where: str) -> tuple[str, ...]:
    """Check scene names read from a file. Raises DataError, naming `where`, if they are not a list of names or one is repeated."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise DataError(f"{where}: expected a list of scene names, as in ['scene-0103']; found {printable(names, 60)}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: scene {printable(twice)} is listed twice; keep one.")
    return tuple(names)


def folds(names: Sequence[str], count: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Cross-validation folds: `count` pairs of training scenes and test scenes. Fold k tests on scenes k, k + count, k + 2 count, ….

    Raises:
        ConfigError: for fewer than two folds, or more folds than scenes.
    """
    if not 2 <= count <= len(names):
        raise ConfigError(f"{len(names)} scenes make 2 to {len(names)} folds; {count} were asked for.")
    return [(tuple(name for i, name in enumerate(names) if i % count != k), tuple(names[k::count])) for k in range(count)]
