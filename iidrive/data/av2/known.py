"""What was found of logs that could be read, kept on disk: a copy with hundreds of them is then read whole only once.

One JSON file a root. A log counts as known while its files' sizes and times stay as they were; logs that could not be read are never kept.
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
    """The files that are read of a log, those that exist."""
    paths = [folder / ANNOTATIONS, folder / POSES, folder / CALIBRATION, *sorted((folder / "map").glob("log_map_archive_*.json"))]
    return [path for path in paths if path.is_file()]


class KnownLogs:
    """What is known of the logs of one root, by their folders."""

    def __init__(self, root: Path, version: int, cache: Path) -> None:
        """What `cache` holds of a root; nothing where the file is absent, damaged, or of another version."""
        self.path = cache / f"av2-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
        self._version = f"{VERSION} {version}"
        self._found: dict[str, tuple[str, About]] = {}
        self._changed = False
        try:
            held = read_json(self.path)
            if held["version"] == self._version:
                self._found = {name: (key, _about(value)) for name, (key, value) in held["logs"].items()}
        except (DataError, LookupError, TypeError, ValueError, AttributeError):
            pass  # the logs are the truth; they are read again

    def get(self, folder: Path) -> About | None:
        """What a log lacks, if that is known and its files are as they were."""
        key, about = self._found.get(folder.name, ("", None))
        return about if about and key == _key(folder) else None

    def add(self, folder: Path, about: About) -> None:
        """Keep what was found of a log."""
        self._found[folder.name] = _key(folder), about
        self._changed = True

    def save(self) -> None:
        """Write the file if anything was added; where that fails, the logs are read again next time."""
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
    """One log's entry. Raises TypeError or LookupError for what is none."""
    mapped, calibrated, ego_rows, lost = (value[name] for name in ("mapped", "calibrated", "ego_rows", "without_counterpart"))
    if not (isinstance(mapped, bool) and isinstance(calibrated, bool) and isinstance(ego_rows, int) and isinstance(lost, dict)):
        raise TypeError("not what a log lacks")
    return About(mapped, calibrated, ego_rows, Counter({str(name): int(count) for name, count in lost.items()}))
