"""Weights of other projects, in and out."""

from __future__ import annotations

from iidrive.pipeline import convert_iiworld
from iidrive.training import checkpoint


def import_ii_world(stage1: str = "", stage2: str = "", out: str = "runs/ii-world") -> None:
    """Make iidrive checkpoints of published II-World weights.

    Args:
        stage1: .pth file of the scene tokenizer.
        stage2: .pth file of the world model; it may hold its tokenizer.
        out: folder to write: OUT/tokenizer and OUT/world.
    """
    for path in convert_iiworld.import_ii_world(stage1, stage2, out):
        manifest = checkpoint.read_manifest(path)
        print(f"{manifest.kind} {manifest.fingerprint}: {path}")


def export_ii_world(folder: str, stage1: str = "", stage2: str = "") -> None:
    """Write weights back as published II-World files.

    Args:
        folder: what `iidrive import ii-world` wrote.
        stage1: .pth file to write for the scene tokenizer.
        stage2: .pth file to write for the world model.
    """
    convert_iiworld.export_ii_world(folder, stage1, stage2)
    print("\n".join(f"wrote {path}" for path in (stage1, stage2) if path))
