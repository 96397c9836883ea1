"""Weights that come with the package: `town-small` and the models below it, `town-small/world` and so on.

They are checkpoints like any other, without what is needed to train on. Wherever a command takes a run folder or a checkpoint, it takes these names.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "weights"
"""Where they lie: SET/MODEL/manifest.json and weights.safetensors, and SET/README.md, which says what they are."""

PLANNER = "planner"
"""The model that a set's own name stands for."""


def sets() -> tuple[str, ...]:
    """The sets, by the name that stands for their planner."""
    return tuple(sorted(path.parts[-3] for path in FOLDER.glob(f"*/{PLANNER}/manifest.json")))


def names() -> tuple[str, ...]:
    """Every name, the sets first: town-small, town-small/ego-mlp, …"""
    found = sorted(path.parent.relative_to(FOLDER) for path in FOLDER.glob("*/*/manifest.json"))
    return (*sets(), *(path.as_posix() for path in found if path.parts[1] != PLANNER))


def card(name: str) -> str | None:
    """What a set says of itself, as Markdown: data, tables, limits, the commands that made it. None for an unknown set."""
    return (FOLDER / name / "README.md").read_text(encoding="utf-8") if name in sets() else None


def place(name: str | Path) -> Path | None:
    """The checkpoint folder of a name; None for anything else. A path of that name that exists comes first."""
    text = Path(name).as_posix()
    if text not in names() or Path(name).exists():
        return None
    return FOLDER / (text if "/" in text else f"{text}/{PLANNER}")


def name_of(folder: Path) -> str | None:
    """The name of a checkpoint folder; None where it did not come with the package."""
    try:
        parts = folder.resolve().relative_to(FOLDER.resolve()).parts
    except ValueError:
        return None
    return parts[0] if parts[1:] == (PLANNER,) else "/".join(parts)


def exists(path: str | Path) -> bool:
    """Whether there is something at a path, or weights of that name."""
    return Path(path).exists() or place(path) is not None
