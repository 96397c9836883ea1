"""Weights that come with the package: the set `town-small` and its models, such as `town-small/world`.

They are normal checkpoints without the state for resuming. Commands accept these names wherever they accept a run folder or a checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "weights"
"""Folder of the weights: SET/MODEL/manifest.json, SET/MODEL/weights.safetensors, and the model card SET/README.md."""

PLANNER = "planner"
"""The model that the name of a set alone refers to."""


def sets() -> tuple[str, ...]:
    """Names of the sets. A set's name alone refers to its planner."""
    return tuple(sorted(path.parts[-3] for path in FOLDER.glob(f"*/{PLANNER}/manifest.json")))


def names() -> tuple[str, ...]:
    """All names, sets first: town-small, town-small/ego-mlp, …"""
    found = sorted(path.parent.relative_to(FOLDER) for path in FOLDER.glob("*/*/manifest.json"))
    return (*sets(), *(path.as_posix() for path in found if path.parts[1] != PLANNER))


def card(name: str) -> str | None:
    """Model card of a set, as Markdown: data, tables, limits, and the commands that made it. None for an unknown set."""
    return (FOLDER / name / "README.md").read_text(encoding="utf-8") if name in sets() else None


def place(name: str | Path) -> Path | None:
    """Checkpoint folder for a name. None for any other text, or if a file or folder of that name exists."""
    text = Path(name).as_posix()
    if text not in names() or Path(name).exists():
        return None
    return FOLDER / (text if "/" in text else f"{text}/{PLANNER}")


def name_of(folder: Path) -> str | None:
    """Name of a checkpoint folder; None if it does not belong to the package."""
    try:
        parts = folder.resolve().relative_to(FOLDER.resolve()).parts
    except ValueError:
        return None
    return parts[0] if parts[1:] == (PLANNER,) else "/".join(parts)


def exists(path: str | Path) -> bool:
    """Whether the path exists or is the name of weights that come with the package."""
    return os.path.exists(path) or place(path) is not None  # os.path: False, not an error, for names that no system allows
