"""Sources of scenes. A new dataset is one file and one line in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iidrive.data.nuscenes import NuScenes, NuScenesConfig
from iidrive.data.source import Source
from iidrive.data.town import Town, TownConfig

SOURCES: dict[str, tuple[type, Callable[[Any], Source]]] = {
    "town": (TownConfig, Town),
    "nuscenes": (NuScenesConfig, NuScenes),
}
"""Name on the command line → (config type, what makes the source from it)."""
