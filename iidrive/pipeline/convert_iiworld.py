"""Convert published II-World files to iidrive checkpoints and back, without changing any value.

A published file holds a dict of tensors, in one of the containers and with one of the naming schemes that `published_file` reads. The world model's
file may also hold its tokenizer, under `vqvae.`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.core.lineage import Parent
from iidrive.models import states
from iidrive.models.iiworld import keys as iiworld_keys
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.published_file import Choice, read_published
from iidrive.runtime import atomic
from iidrive.runtime.run_folder import code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest

State = dict[str, Tensor]
NESTED = "vqvae."


def import_ii_world(
    stage1: str, stage2: str, out: str | Path, ema: Choice = "", say: Callable[[str], None] = lambda sentence: None
) -> list[Path]:
    """Write checkpoints OUT/tokenizer and OUT/world from published files; either file may be missing. Returns the written folders.

    Args:
        stage1: file of the scene tokenizer, or empty.
        stage2: file of the world model, or empty.
        out: folder to write.
        ema: which set of weights to use if a file has two (see `published_file.read_published`).
        say: called with notes about what was chosen.

    Raises:
        ConfigError: if no file is given.
        CheckpointError: if names or shapes do not fit (all are listed), or a file is that of the other stage.
        LineageError: if the world model's file holds another tokenizer than the one given.
    """
    if not stage1 and not stage2:
        raise ConfigError("nothing to import: give --stage1 A.pth, --stage2 B.pth or both.")
    out, written, recipe = Path(out), [], recipes.published()
    model = WorldModel(recipe.world, recipe.tokenizer.cells(), recipe.tokenizer.grid)
    wanted_world = iiworld_keys.world_to_published(model.state_dict())
    wanted = _published_tokenizer(Tokenizer(recipe.tokenizer))
    known = (*wanted, *wanted_world, *(NESTED + name for name in wanted))
    files = {file: read_published(file, known, ema) for file in (stage1, stage2) if file}
    for file, read in files.items():
        for note in read.notes:
            say(note)
        _require_stage(file, read.state, wanted, wanted_world, file == stage1)
    world, nested = iiworld_keys.nested(files[stage2].state) if stage2 else ({}, {})
    given = files[stage1].state if stage1 else nested
    if stage1 and nested and (different := states.unequal(given, nested)):
        raise LineageError(
            f"{stage2}: its world model was trained on another tokenizer than {stage1} (they differ in "
            f"{states.first(different, 4)}). Give its own tokenizer, or leave out --stage1: the file contains it."
        )
    source, config = stage1 or stage2, recipe.tokenizer
    tokenizer = Tokenizer(config)
    if given:
        codes = given.get(CODEBOOK)
        if codes is not None and codes.ndim == 2 and codes.shape[1] == config.quantiser.width and 1 < len(codes) != config.quantiser.codes:
            say(f"{source}: its codebook has {len(codes)} codes (published: {config.quantiser.codes}).")
            config = replace(config, quantiser=replace(config.quantiser, codes=len(codes)))
            tokenizer = Tokenizer(config)
        states.require_fit(given, _published_tokenizer(tokenizer), source)
    if stage2:
        states.require_fit(world, wanted_world, stage2)
    parents: tuple[Parent, ...] = ()
    if given:
        about = {"ema": True} if files[source].averaged else {}
        convert = iiworld_keys.tokenizer_from_published
        path = _write(out / "tokenizer", "tokenizer", config, tokenizer, given, convert, source, about=about)
        parents = (Parent("tokenizer", str(path.resolve()), checkpoint.read_manifest(path).fingerprint),)
        written.append(path)
    if stage2:
        about = {"nested": bool(nested), **({"ema": True} if files[stage2].averaged else {})}
        convert = iiworld_keys.world_from_published
        written.append(_write(out / "world", "world", recipe.world, model, world, convert, stage2, parents, about))
    return written


_OWN = frozenset({"classes", "quantiser.codebook", "motion_time"})
CODEBOOK = "vq.embedding.weight"


def _published_tokenizer(tokenizer: Tokenizer) -> State:
    return iiworld_keys.tokenizer_to_published(tokenizer.state_dict() | {iiworld_keys.STARTED: torch.tensor(True)})


def _require_stage(file: str, state: State, tokenizer: State, world: State, first: bool) -> None:
    """Raise CheckpointError for a file of the other stage, or with iidrive's own names."""
    own, nested = iiworld_keys.nested(state)
    is_first, is_second = (any(name in wanted for name in own) for wanted in (tokenizer, world))
    if first and is_second:
        inside = ", and its tokenizer in it" if nested else ""
        raise CheckpointError(f"{file}: this is a stage 2 file (the world model{inside}): give it with --stage2.")
    if not first and is_first and not is_second:
        raise CheckpointError(f"{file}: this is a stage 1 file (the scene tokenizer): give it with --stage1.")
    if first and nested and not is_first:
        raise CheckpointError(f"{file}: its tokenizer is nested in a stage 2 file (`{NESTED}…`): give it with --stage2.")
    if any(name in _OWN for name in own):
        raise CheckpointError(f"{file}: these weights have iidrive's own names, so they need no import: use their folder directly.")


def export_ii_world(folder: str | Path, stage1: str, stage2: str) -> None:
    """Write published files from FOLDER/tokenizer and FOLDER/world, which `import_ii_world` wrote or which were fine-tuned from it.

    If the world model was imported with a nested tokenizer, its tokenizer is nested again.

    Raises:
        ConfigError: if no file is given.
        CheckpointError: if a model has parts that the published model does not have.
        LineageError: if the tokenizer is not the world model's, or weights do not match their manifest. Nothing is written then.
    """
    if not stage1 and not stage2:
        raise ConfigError("nothing to export: name the files with --stage1 A.pth, --stage2 B.pth or both.")
    if stage1 and stage2 and Path(stage1).resolve() == Path(stage2).resolve():
        raise ConfigError(f"both stages would be written to {stage1}: give two different files.")
    tokenizer, world = Path(folder) / "tokenizer", Path(folder) / "world"
    manifest = checkpoint.read_manifest(world) if stage2 else None
    nested = manifest is not None and bool(manifest.about.get("nested"))
    made: State = {}
    if stage1 or nested:
        found = checkpoint.read_manifest(tokenizer)
        made = iiworld_keys.tokenizer_to_published(checkpoint.load(tokenizer, found))
        if manifest is not None and any(parent.kind == "tokenizer" for parent in manifest.parents):
            checkpoint.require_parent(manifest, "tokenizer", found.lineage(tokenizer), world)
    if manifest is not None:
        whole = iiworld_keys.world_to_published(checkpoint.load(world, manifest))
        _save(stage2, whole | ({NESTED + name: value for name, value in made.items()} if nested else {}))
    if stage1:
        _save(stage1, made)


def _write(
    folder: Path,
    kind: checkpoint.Kind,
    config: Any,
    module: nn.Module,
    state: State,
    convert: Callable[[State], State],
    source: str,
    parents: tuple[Parent, ...] = (),
    about: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of published weights. `state` must have the names and shapes of the published architecture."""
    weights = convert(state)
    checkpoint.load_weights(module, weights, source)
    if (folder / "checkpoints").exists():
        raise ConfigError(f"{folder} already holds checkpoints. Give another folder with --out.")
    origin = {"file": Path(source).name, "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
    manifest = Manifest(kind, "", to_plain(config), 0, code_version(), {}, about={"imported": origin, **(about or {})}, parents=parents)
    mark = checkpoint.fingerprint(config, weights, parents)
    return checkpoint.save(folder / "checkpoints" / f"samples-{0:09d}", replace(manifest, fingerprint=mark), weights)


def _save(path: str, state: State) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(target) as temporary:
        torch.save({"state_dict": state}, temporary)
