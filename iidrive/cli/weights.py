"""Commands about weights: the shipped ones, and import from and export to other projects."""

from __future__ import annotations

from typing import Literal

from iidrive.core.errors import ConfigError, unknown
from iidrive.core.text import aligned
from iidrive.pipeline import convert_iiworld
from iidrive.training import checkpoint, shipped


def weights(names: list[str] = []) -> None:  # noqa: B006 - never written to
    """List the weights shipped with iidrive. Their names can be used wherever a command takes a run folder.

    Args:
        names: sets of weights to describe: data, results, limits, and the commands that made them.
    """
    for name in names:
        card = shipped.card(name)
        if card is None:
            raise ConfigError(unknown("set of weights", name, shipped.sets()))
        print(card)
    if names:
        return
    rows = [["name", "kind", "recipe", "trained on", "samples", "MB", "fingerprint"]]
    for known in shipped.names():
        found = checkpoint.read(known)
        manifest = found.manifest
        size = sum(path.stat().st_size for path in found.folder.iterdir()) / 1e6
        data = f"{manifest.data['source']} {manifest.data['split']}"
        rows.append(
            [known, manifest.kind, manifest.about["recipe"], data, f"{manifest.samples_seen:,}", f"{size:.1f}", manifest.fingerprint]
        )
    print(aligned(rows))
    print(
        f"\n`iidrive weights {shipped.sets()[0]}` describes how they were made; `iidrive evaluate {shipped.sets()[0]} --test-ii on` tests them."
    )


def import_ii_world(stage1: str = "", stage2: str = "", out: str = "runs/ii-world", ema: Literal["", "on", "off"] = "") -> None:
    """Convert published II-World weights to iidrive checkpoints.

    Args:
        stage1: .pth file of the scene tokenizer.
        stage2: .pth file of the world model; it may hold its tokenizer.
        out: folder to write: OUT/tokenizer and OUT/world.
        ema: on: use the moving average in the file; off: its weights; default: the weights, or the average of a file without weights.
    """
    for path in convert_iiworld.import_ii_world(stage1, stage2, out, ema, lambda sentence: print(f"note: {sentence}")):
        manifest = checkpoint.read_manifest(path)
        print(f"{manifest.kind} {manifest.fingerprint}: {path}")


def export_ii_world(folder: str, stage1: str = "", stage2: str = "") -> None:
    """Write weights back as published II-World files.

    Args:
        folder: folder written by `iidrive import ii-world`.
        stage1: .pth file to write for the scene tokenizer.
        stage2: .pth file to write for the world model.
    """
    convert_iiworld.export_ii_world(folder, stage1, stage2)
    print("\n".join(f"wrote {path}" for path in (stage1, stage2) if path))
