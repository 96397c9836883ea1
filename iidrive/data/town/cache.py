"""Scenes on disk, so that a town is simulated once: one file a scene, whole or absent, checked when read, bounded in bytes.

    ${IIDRIVE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/iidrive}/towns/<key>/<scene>.safetensors

The key names everything that decides a scene, so files are never stale. Several processes may read, write and clear at once. A folder that
cannot be written costs one warning; scenes are then made anew.
"""

from __future__ import annotations

import os
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from iidrive.core.errors import ConfigError
from iidrive.runtime import atomic

FOLDER_VARIABLE = "IIDRIVE_CACHE"
BYTES_VARIABLE = "IIDRIVE_CACHE_BYTES"
USUAL_BYTES = 2_000_000_000

SUFFIX = ".safetensors"
RECENT_S = 600.0
"""A file that was marked as used less than this long ago is not marked again."""
LEFTOVER_S = 3600.0
"""A temporary file older than this was left behind by a process that was killed."""
LOOK_EVERY = 1 / 32
"""The folder is measured after this share of its limit was written."""
LEFT_AFTER_TRIM = 0.9


def cache_folder() -> Path:
    """Where iidrive keeps what it can make again: `$IIDRIVE_CACHE`, else `iidrive` in `$XDG_CACHE_HOME` or `~/.cache`."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidrive"


def cache_limit() -> int:
    """How many bytes of scenes are kept: `$IIDRIVE_CACHE_BYTES`, else 2 GB.

    Raises:
        ConfigError: when the variable is not a whole number of bytes.
    """
    given = os.environ.get(BYTES_VARIABLE, "")
    if not given:
        return USUAL_BYTES
    if not (given.isascii() and given.isdigit()):
        raise ConfigError(f"{BYTES_VARIABLE} must be a whole number of bytes, such as {USUAL_BYTES}; found '{given}'.")
    return int(given)


@dataclass(frozen=True)
class Size:
    """What a cache holds."""

    scenes: int
    bytes: int


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float


class SceneCache:
    """Files of scenes below `folder`, at most about `limit` bytes of them: those used longest ago are removed first.

    With several processes at work each may exceed the limit by a few percent before it looks again.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = cache_folder() / "towns" if folder is None else folder
        self.limit = cache_limit() if limit is None else limit
        self._writes = True
        self._unseen_bytes: float = self.limit  # the first write looks

    def path(self, key: str, name: str) -> Path:
        """The file of a scene."""
        return self.folder / key / f"{name}{SUFFIX}"

    def holds(self, key: str, name: str) -> bool:
        """Whether there is a file, be it good or damaged."""
        with suppress(OSError):
            return self.path(key, name).is_file()
        return False

    def read(self, key: str, name: str) -> bytes | None:
        """What was written, and mark it as used now; None where there is nothing that can be read."""
        path = self.path(key, name)
        with suppress(OSError):
            content = path.read_bytes()
            with suppress(OSError):  # it may be somebody else's file, or gone by now
                if time.time() - path.stat().st_mtime > RECENT_S:
                    os.utime(path)
            return content
        return None

    def write(self, key: str, name: str, content: bytes) -> None:
        """Keep a scene; a folder that does not take it is not asked again, and said once."""
        if not self._writes or len(content) > self.limit:
            return
        path = self.path(key, name)
        try:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(path, content)
            except FileNotFoundError:  # another process may have removed the empty folder meanwhile: once more
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(path, content)
            self._unseen_bytes += len(content)
            if self._unseen_bytes > self.limit * LOOK_EVERY:
                self._unseen_bytes = 0
                self._trim()
        except OSError as error:
            self._writes = False
            warnings.warn(
                f"towns cannot be kept in {self.folder} ({error.strerror or error}), so they are made again every time. "
                f"Make room there, or set {FOLDER_VARIABLE} to another folder.",
                stacklevel=2,
            )

    def size(self) -> Size:
        """How many scenes there are, and their bytes."""
        entries = self._entries()
        return Size(len(entries), sum(e.bytes for e in entries))

    def clear(self) -> Size:
        """Remove every scene; returns what was removed. Raises OSError where that is not allowed."""
        entries = self._entries()
        for entry in entries:
            entry.path.unlink(missing_ok=True)
        self._tidy(0.0)
        return Size(len(entries), sum(e.bytes for e in entries))

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
        """Remove what was used longest ago while there is too much. A reader that has a file open keeps it until it is done."""
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
        """Remove temporary files of at least this age, and empty folders."""
        now = time.time()
        for entry in self._files(f".*{SUFFIX}.*.tmp"):
            if now - entry.used >= age_s:
                with suppress(OSError):
                    entry.path.unlink()
        for folder in self.folder.glob("*/"):
            with suppress(OSError):  # not empty
                folder.rmdir()
