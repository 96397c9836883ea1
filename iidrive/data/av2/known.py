"""On-disk cache of what each readable log lacks, so that a copy with hundreds of logs is read completely only once.

There is one JSON file per root. An entry is valid while the sizes and times of the log's files are unchanged. Unreadable logs are not
cached.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from iidrive.core.errors import DataError
from iidrive.core.untrusted.json_text import read_json
from iidrive.core.version import VERSION
from iidrive.data.av2.log import ANNOTATIONS, CALIBRATION, POSES, About
from iidrive.runtime import atomic


def log_files(folder: Path) -> list[Path]:
    """The files of a log that are read, if they exist."""
    paths = [folder / ANNOTATIONS, folder / POSES, folder / CALIBRATION, *sorted((folder / "map").glob("log_map_archive_*.json"))]
    return [path for path in paths if path.is_file()]


class KnownLogs:
    """Cached `About` of the logs of one root."""

    def __init__(self, root: Path, version: int, cache: Path) -> None:
        """Read the cache file of a root. Starts empty if the file is absent, damaged or of another version."""
        self.path = cache / f"av2-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
        self._version = f"{VERSION} {version}"
        self._found: dict[str, tuple[str, About]] = {}
        self._changed = False
        try:
            held = read_json(self.path)
            if held["version"] == self._version:
                self._found = {name: (key, _about(value)) for name, (key, value) in held["logs"].items()}
        except (DataError, LookupError, TypeError, ValueError, AttributeError):
            pass  # the logs are read again

    def get(self, folder: Path) -> About | None:
        """The cached entry of a log; None if there is none or the log's files have changed."""
        key, about = self._found.get(folder.name, ("", None))
        return about if about and key == _key(folder) else None

    def add(self, folder: Path, about: About) -> None:
        """Add an entry for a log."""
        self._found[folder.name] = _key(folder), about
        self._changed = True

    def save(self) -> None:
        """Write the cache file if an entry was added. If that fails, the logs are read again next time."""
        if not self._changed:
            return
        logs = {name: (key, vars(about)) for name, (key, about) in self._found.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(self.path, json.dumps({"version": self._version, "logs": logs}))
            self._changed = False
        except (OSError, DataError):
            pass


def _key(folder: Path) -> str:
    stats = [(path.name, path.stat()) for path in log_files(folder)]
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)


def _about(value: Mapping[str, object]) -> About:
    """Parse one log's entry. Raises TypeError or LookupError if it is invalid."""
    mapped, calibrated, ego_rows, lost = (value[name] for name in ("mapped", "calibrated", "ego_rows", "without_counterpart"))
    if not (isinstance(mapped, bool) and isinstance(calibrated, bool) and isinstance(ego_rows, int) and isinstance(lost, dict)):
        raise TypeError("not an entry of a log")
    return About(mapped, calibrated, ego_rows, Counter({str(name): int(count) for name, count in lost.items()}))
