"""Manifests of models that are to be trained, and weights to start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from iidrive.core.config_io import to_plain
from iidrive.core.lineage import INITIAL, Lineage, Parent, joined
from iidrive.data.joint import Joint, splits_of
from iidrive.data.scene_lists import is_list
from iidrive.data.source import Source
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime.run_folder import code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Checkpoint, Manifest
from iidrive.training.optim import TrainConfig


def new_manifest(
    kind: checkpoint.Kind,
    config: Any,
    training: TrainConfig,
    source: Source,
    split: str,
    recipe: Recipe,
    parents: tuple[Checkpoint, ...] = (),
    about: dict[str, Any] | None = None,
) -> Manifest:
    """Manifest of a model before its training."""
    data = {**source.identity(), "split": split, "occupancy": source.occupancy_source, "command": source.command_source}
    entries = [_trained_on(kind, part, own) for part, own in splits_of(source, split)]
    if isinstance(source, Joint):
        data["shares"] = dict(recipe.shares)
        for part, entry in zip(source.sources, entries, strict=True):
            entry |= {"occupancy": part.occupancy_source, "command": part.command_source, "share": recipe.shares.get(part.name)}
    about = {"recipe": recipe.name, "town": to_plain(recipe.town), "trained_on": entries, **(about or {})}
    above = tuple(parent.as_parent for parent in parents)
    made = Manifest(kind, "", to_plain(config), 0, code_version(), to_plain(data), to_plain(training), {}, about, above)
    return made.also_trained_on(*(parent.manifest for parent in parents))


def _trained_on(kind: checkpoint.Kind, source: Source, split: str) -> dict[str, Any]:
    """One source that trains a model."""
    own: dict[str, Any] = {"kind": kind, "source": source.name, "seed": source.identity().get("seed"), "split": split}
    if is_list(split):
        own["scenes"] = list(source.scene_names(split))  # the file may change or go
    return own


def start_from(
    init: str, module: nn.Module, manifest: Manifest, allow: bool = False, fine_tuned_from: tuple[Parent, ...] = (), new: Sequence[str] = ()
) -> Manifest:
    """Initialise a model from the checkpoint `init` ("": keep its weights). Returns the manifest with that checkpoint as an ancestor.

    A checkpoint of a later stage stands for its own model of this kind: `town-small` is a planner, and gives its tokenizer to a tokenizer.
    `fine_tuned_from` are the checkpoints that the parent's own training started from: a model of theirs may be trained on with the fine-tuned parent.
    `new` are the names of parts that the checkpoint may lack. They then keep their own weights.

    Raises:
        CheckpointError: for a checkpoint of another kind or architecture.
        LineageError: for a world model or planner with other parents; with `allow` a mark is added instead.
    """
    if not init:
        return manifest
    found = checkpoint.read(init)
    if any(parent.kind == manifest.kind for parent in found.manifest.parents):
        found = checkpoint.read(found.parent_path(manifest.kind))
    found.require_kind(manifest.kind)
    marks: list[tuple[str, ...]] = []
    for parent in manifest.parents[-1:]:
        if found.manifest.parent(parent.kind).fingerprint not in [origin.fingerprint for origin in fine_tuned_from]:
            marks.append(found.require_parent(parent.kind, Lineage(parent.kind, parent.fingerprint, parent.path), allow))
    weights = found.weights()
    for part in new:
        if not any(_of(part, name) for name in weights):
            weights |= {name: value for name, value in module.state_dict().items() if _of(part, name)}
    checkpoint.load_weights(module, weights, init)
    origin = Parent(INITIAL + found.manifest.kind, str(found.folder.resolve()), found.manifest.fingerprint)
    above = (*manifest.parents, origin)
    return replace(manifest, parents=above, marks=joined(manifest.marks, found.manifest.marks, *marks)).also_trained_on(found.manifest)


def _of(part: str, name: str) -> bool:
    """Whether a weight belongs to a part of a model."""
    return name.startswith(f"{part}.")
