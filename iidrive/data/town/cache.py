"""Disk cache of generated scenes: one file per scene, one for its raster, and one for its branches (simulation/branches.py), if they are needed.
Files are written atomically and verified when read. Their total size is limited.

    ${IIDRIVE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/iidrive}/towns/<key>/<scene>.safetensors
                                                                     <scene>@<cell, metres>.safetensors
                                                                     <scene>@branches-<key>.safetensors

The key depends on everything that decides a scene, so files are never stale. Several processes may read, write and clear the cache at the
same time. If the folder cannot be written, there is one warning and scenes are generated every time.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iidrive.core.errors import ConfigError
from iidrive.runtime import atomic

FOLDER_VARIABLE = "IIDRIVE_CACHE"
BYTES_VARIABLE = "IIDRIVE_CACHE_BYTES"
USUAL_BYTES = 2_000_000_000

SUFFIX = ".safetensors"
BESIDE = "@"
"""What follows the scene's name in the names of other files about it: its raster, and its branches."""
RECENT_S = 600.0
"""A file's time of last use is updated only if it is older than this, seconds."""
LEFTOVER_S = 3600.0
"""A temporary file older than this is from a killed process and is removed, seconds."""
LOOK_EVERY = 1 / 32
"""The size of the folder is measured each time this fraction of the limit has been written."""
LEFT_AFTER_TRIM = 0.9


def cache_folder() -> Path:
    """Cache folder: `$IIDRIVE_CACHE`, else `iidrive` in `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidrive"


def cache_limit() -> int:
    """Size limit of the scene cache: `$IIDRIVE_CACHE_BYTES`, else 2 GB.

    Raises:
        ConfigError: if the variable is not an integer.
    """
    given = os.environ.get(BYTES_VARIABLE, "")
    if not given:
        return USUAL_BYTES
    if not (given.isascii() and given.isdigit()):
        raise ConfigError(f"{BYTES_VARIABLE} must be a whole number of bytes, such as {USUAL_BYTES}; found '{given}'.")
    return int(given)


@dataclass(frozen=True)
class Size:
    """Number of scenes in a cache, and their total bytes."""

    scenes: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float


class SceneCache:
    """Scene files below `folder`, about `limit` bytes at most. The least recently used files are removed first.

    With several processes, each may exceed the limit by a few percent before it measures the folder again.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "towns" if folder is None else folder
        self.limit = cache_limit() if limit is None else limit
        self._writes = True
        self._unseen_bytes: float = self.limit  # the first write measures the folder

    def path(self, key: str, name: str) -> Path:
        """Path of a scene's file."""
        return self.folder / key / f"{name}{SUFFIX}"

    def holds(self, key: str, name: str) -> bool:
        """Whether a scene's file exists. It may be damaged."""
        with suppress(OSError):
            return self.path(key, name).is_file()
        return False

    def read(self, key: str, name: str) -> bytes | None:
        """Read a scene's file and mark it as used. None if it cannot be read."""
        path = self.path(key, name)
        with suppress(OSError):
            content = path.read_bytes()
            with suppress(OSError):  # another user's file, or removed meanwhile
                if time.time() - path.stat().st_mtime > RECENT_S:
                    os.utime(path)
            return content
        return None

    def write(self, key: str, name: str, content: bytes) -> None:
        """Write a scene's file. If that fails, warn once and stop writing."""
        if not self._writes or len(content) > self.limit:
            return
        path = self.path(key, name)
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(path, content)
            except FileNotFoundError:  # another process may have removed the empty folder; try again
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(path, content)
            self._unseen_bytes += len(content)
            if self._unseen_bytes > self.limit * LOOK_EVERY:
                self._unseen_bytes = 0
                self._trim()
        except OSError as error:
            self._writes = False
            warnings.warn(
                f"scenes cannot be cached in {self.folder} ({error.strerror or error}), so they are generated every time. "
                f"Free some space there, or set {FOLDER_VARIABLE} to another folder.",
                stacklevel=2,
            )

    def size(self) -> Size:
        """Number and total size of the cached scenes."""
        return _total(self._entries())

    def clear(self) -> Size:
        """Remove all scenes. Returns what was removed. Raises OSError if a file cannot be removed."""
        entries = self._entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        self._tidy(0.0)
        return _total(entries)

    def _files(self, pattern: str) -> list[_Entry]:
        found = []
        for path in self.folder.glob(f"*/{pattern}"):
            with suppress(OSError):  # removed meanwhile
                state = path.stat()
                found.append(_Entry(path, state.st_size, state.st_mtime))
        return found

    def _entries(self) -> list[_Entry]:
        return [e for e in self._files(f"*{SUFFIX}") if not e.path.name.startswith(".")]

    def _trim(self) -> None:
        """Remove the least recently used files while the cache is too large. A process that has a file open can still read it."""
        entries = self._entries()
        total = sum(e.bytes for e in entries)
        if total > self.limit:
            for entry in sorted(entries, key=lambda e: (e.used, e.path.name)):
                if total <= self.limit * LEFT_AFTER_TRIM:
                    break
                with suppress(OSError):
                    entry.path.unlink(missing_ok=True)
                    total -= entry.bytes
        self._tidy(LEFTOVER_S)

    def _tidy(self, age_s: float) -> None:
        """Remove temporary files that are at least `age_s` old, and empty folders."""
        now = time.time()
        for entry in self._files(f".*{SUFFIX}.*.tmp"):
            if now - entry.used >= age_s:
                with suppress(OSError):
                    entry.path.unlink()
        for folder in self.folder.glob("*/"):
            with suppress(OSError):  # not empty
                folder.rmdir()


def _total(entries: Sequence[_Entry]) -> Size:
    return Size(sum(BESIDE not in e.path.name for e in entries), sum(e.bytes for e in entries))
