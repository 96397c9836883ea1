"""Checks of what a checkpoint's manifest says besides its weights: training data, changes and metrics. Manifests come from other people too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iidrive.core.errors import DataError
from iidrive.core.text import printable

_NUMBER = (int, float)
_NOTHING = type(None)

_TRAINED_ON: dict[str, tuple[type, ...]] = {"kind": (str,), "source": (str,), "seed": (int, _NOTHING), "split": (str,)}
_SHARED: dict[str, tuple[type, ...]] = {"share": (*_NUMBER, _NOTHING), "occupancy": (str,), "command": (str,)}
_SOURCE: dict[str, tuple[type, ...]] = {"source": (str,), "occupancy": (str,), "command": (str,)}
_BEST: dict[str, tuple[type, ...]] = {"name": (str,), "value": _NUMBER, "samples": (int,)}
_CHANGE: dict[str, tuple[type, ...]] = {"samples": (int,), "field": (str,), "from": _NUMBER, "to": _NUMBER}


def require_facts(data: Mapping[str, Any], metrics: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Check the entries that commands read. Others may hold anything.

    Raises:
        DataError: for an entry that is missing or of another type.
    """
    for entry in _entries(about, "trained_on", _TRAINED_ON):
        if "share" in entry:
            _require(entry, "trained_on", _SHARED)
        scenes = entry.get("scenes", [])
        if not isinstance(scenes, list) or not all(isinstance(name, str) for name in scenes):
            raise DataError(f"the scenes of trained_on must be names; found {printable(scenes)}")
    _entries(about, "changes", _CHANGE)
    _entries(data, "sources", _SOURCE)
    town = about.get("town", {})
    if not isinstance(town, dict | _NOTHING):
        raise DataError(f"town must hold settings; found {printable(town)}")
    best = metrics.get("best")
    if best is not None and not isinstance(best, dict):
        raise DataError(f"best must hold a name, a value and samples; found {printable(best)}")
    if best:
        _require(best, "metrics", _BEST)
    for name, value in metrics.items():
        if name != "best" and type(value) not in (*_NUMBER, _NOTHING):
            raise DataError(f"the metric {printable(name)} must be a number; found {printable(value)}")


def _entries(given: Mapping[str, Any], name: str, types: Mapping[str, tuple[type, ...]]) -> list[Mapping[str, Any]]:
    """The list `name`, each of whose entries has fields of these types."""
    entries = given.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{name} must be a list of entries; found {printable(entries)}")
    for entry in entries:
        _require(entry, name, types)
    return entries


def _require(entry: Mapping[str, Any], name: str, types: Mapping[str, tuple[type, ...]]) -> None:
    for key, kinds in types.items():
        if key not in entry or type(entry[key]) not in kinds:
            raise DataError(f"an entry of {name} has no valid '{key}': {printable(dict(entry), 120)}")
