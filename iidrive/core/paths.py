"""Paths given by the user."""

from __future__ import annotations

from pathlib import Path

from iidrive.core.errors import ConfigError
from iidrive.core.text import printable_line


def expanded(path: str | Path) -> Path:
    """A path with `~` and `~user` replaced by the home folder.

    Raises:
        ConfigError: if there is no such user, or the path holds a zero byte.
    """
    if "\0" in str(path):
        raise ConfigError(f"{printable_line(str(path))}: a path cannot hold a zero byte.")
    try:
        return Path(path).expanduser()
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"{printable_line(str(path))}: there is no such home folder; write the full path.") from error
