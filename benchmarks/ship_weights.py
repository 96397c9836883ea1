"""Copy a planner, the models that it depends on, and an ego-status MLP into iidrive/weights/NAME, to ship them with the package.

Optimiser states are not copied. Manifests refer to each other by the names of the set. The commands that made the weights are written into the
planner's manifest.

    python benchmarks/ship_weights.py runs/planner runs/ego-mlp --name town-small --made-by "iidrive train tokenizer …" "iidrive train world …"

Fields of the planner's config that no weight depends on can be set afterwards, such as a limit that a later version has:
--set '{"fastest_mps": 12.1}'. The manifest names them, and the fingerprint changes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.lineage import Parent
from iidrive.models.planner import Planner, PlannerConfig
from iidrive.pipeline.load import load_agent
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Checkpoint, Manifest


def ship(planner: str, ego_mlp: str, name: str, made_by: Sequence[str], config: Mapping[str, Any]) -> Path:
    """Copy the weights of a set. Every copy keeps its fingerprint, unless `config` changes the planner's. Returns the folder of the set."""
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
    if config:  # raises if a weight depends on it
        fields = from_plain(PlannerConfig, {**top.manifest.architecture, **config}, "--set")
        checkpoint.load_weights(Planner(fields, load_agent(planner).model.forecaster.tokenizer.cells), weights["planner"], "--set")
    for kind, found in models.items():
        shutil.rmtree(folder / kind, ignore_errors=True)
        manifest = _named(found, name)
        if kind == "planner":
            manifest = replace(manifest, about={**manifest.about, "made_by": list(made_by)})
            manifest = _with_config(manifest, weights[kind], config) if config else manifest
        checkpoint.save(folder / kind, manifest, weights[kind])
        checkpoint.read(folder / kind).weights()
    load_agent(folder / "planner")
    return folder


def _named(found: Checkpoint, name: str) -> Manifest:
    parents = tuple(
        Parent(p.kind, "" if p in found.manifest.origins else f"{name}/{p.kind}", p.fingerprint) for p in found.manifest.parents
    )
    return replace(found.manifest, parents=parents, files={})


def _with_config(manifest: Manifest, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Manifest:
    """The planner's manifest with other fields of its config, and the fingerprint that belongs to them."""
    architecture = to_plain(from_plain(PlannerConfig, {**manifest.architecture, **config}, "--set"))
    mark = checkpoint.fingerprint(architecture, weights, manifest.parents)
    about = {**manifest.about, "set_after_training": {**manifest.about.get("set_after_training", {}), **config}}
    return replace(manifest, architecture=architecture, fingerprint=mark, about=about)


def main() -> None:
    """Copy the weights and print the size of the set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("planner")
    parser.add_argument("ego_mlp")
    parser.add_argument("--name", default="town-small")
    parser.add_argument("--made-by", nargs="+", required=True)
    parser.add_argument("--set", type=json.loads, default={}, dest="config", help="fields of the planner's config, as JSON")
    options = parser.parse_args()
    folder = ship(options.planner, options.ego_mlp, options.name, options.made_by, options.config)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
