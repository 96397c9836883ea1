"""Copy a planner, the models that it depends on, and an ego-status MLP into iidrive/weights/NAME, to ship them with the package.

Optimiser states are not copied. Manifests refer to each other by the names of the set. The commands that made the weights are written into the
planner's manifest.

    python benchmarks/ship_weights.py runs/planner runs/ego-mlp --name town-small --made-by "iidrive train tokenizer …" "iidrive train world …"
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iidrive.core.lineage import Parent
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Checkpoint, Manifest


def ship(planner: str, ego_mlp: str, name: str, made_by: Sequence[str]) -> Path:
    """Copy the weights of a set. Every copy keeps its fingerprint. Returns the folder of the set."""
    top = checkpoint.read(planner)
    world = checkpoint.read(top.parent_path("world"))
    models = {
        "planner": top,
        "world": world,
        "tokenizer": checkpoint.read(world.parent_path("tokenizer")),
        "ego-mlp": checkpoint.read(ego_mlp),
    }
    folder = shipped.FOLDER / name
    weights = {kind: found.weights() for kind, found in models.items()}  # before any is replaced: some may be in the set already
    for kind, found in models.items():
        shutil.rmtree(folder / kind, ignore_errors=True)
        manifest = _named(found, name)
        if kind == "planner":
            manifest = replace(manifest, about={**manifest.about, "made_by": list(made_by)})
        checkpoint.save(folder / kind, manifest, weights[kind])
        checkpoint.read(folder / kind).weights()
    return folder


def _named(found: Checkpoint, name: str) -> Manifest:
    parents = tuple(
        Parent(p.kind, "" if p in found.manifest.origins else f"{name}/{p.kind}", p.fingerprint) for p in found.manifest.parents
    )
    return replace(found.manifest, parents=parents, files={})


def main() -> None:
    """Copy the weights and print the size of the set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("planner")
    parser.add_argument("ego_mlp")
    parser.add_argument("--name", default="town-small")
    parser.add_argument("--made-by", nargs="+", required=True)
    options = parser.parse_args()
    folder = ship(options.planner, options.ego_mlp, options.name, options.made_by)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
