"""Published II-World files in, iidrive checkpoints out, and back again without touching a number.

A published file is a pickle that holds a dict of tensors, bare or under `state_dict`, now and then with `module.` before every name. The
world model's file may hold the tokenizer it was trained on under `vqvae.`. Files are read with torch's allow-list of plain types: anything
else in them is refused, not run.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.core.lineage import Parent
from iidrive.core.text import printable
from iidrive.models import states
from iidrive.models.iiworld import keys as iiworld_keys
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.runtime import atomic
from iidrive.runtime.run_folder import code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest

State = dict[str, Tensor]
PREFIX = "module."
NESTED = "vqvae."


def read_published(path: str | Path) -> State:
    """The tensors of a published file under their published names.

    Raises:
        CheckpointError: if the file is missing, damaged, holds other things than tensors and plain values, or no tensors at all.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: not there, or not a file. Give the .pth file of II-World's stage 1 or stage 2.")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values ({refused[1]}), so it was not loaded. Where you trust it, load it in its own "
                "code base and save its `state_dict` alone."
            ) from None
        raise _damaged(path, "its pickle cannot be read") from None
    except Exception as error:  # a damaged pickle can end in any error at all
        raise _damaged(path, " ".join(str(error).split()) or type(error).__name__) from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        keys = f" of {', '.join(map(str, list(loaded)[:4]))} …" if isinstance(loaded, Mapping) and loaded else ""
        raise CheckpointError(f"{path}: expected a dict of tensors, bare or under `state_dict`; found a {type(loaded).__name__}{keys}.")
    odd = [str(k) for k, v in loaded.items() if v.layout != torch.strided or v.is_meta or v.is_complex()]
    if odd:
        raise CheckpointError(
            f"{path}: expected plain tensors of real numbers; {', '.join(odd[:4])} are sparse, complex or without values."
        )
    vast = [str(k) for k, v in loaded.items() if v.numel() * v.element_size() > v.untyped_storage().nbytes()]
    if vast:
        raise CheckpointError(
            f"{path}: {', '.join(printable(k) for k in vast[:4])} claim more values than the file holds (strides of 0); save the tensors whole, "
            "with `.clone()`."
        )
    # each a tensor of its own: names that share memory cannot be stored
    state = {str(k): v.detach().clone() for k, v in loaded.items()}
    while all(name.startswith(PREFIX) for name in state):
        state = {name[len(PREFIX) :]: v for name, v in state.items()}
    return state


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a file of weights, or damaged ({reason}). Download it again.")


def import_ii_world(stage1: str, stage2: str, out: str | Path) -> list[Path]:
    """Checkpoints OUT/tokenizer and OUT/world from published files; either may be missing. Returns the folders that were written.

    Raises:
        ConfigError: without any file. CheckpointError: if names or shapes do not fit, with all of them. LineageError: if the world model's
            file holds another tokenizer than the one given.
    """
    if not stage1 and not stage2:
        raise ConfigError("nothing to import: give --stage1 A.pth, --stage2 B.pth or both.")
    out, written = Path(out), []
    world, nested = iiworld_keys.nested(read_published(stage2)) if stage2 else ({}, {})
    given = read_published(stage1) if stage1 else nested
    if stage1 and nested and (different := states.unequal(given, nested)):
        raise LineageError(
            f"{stage2}: its world model was trained on another tokenizer than {stage1} (they differ in "
            f"{states.first(different, 4)}). Give the tokenizer that belongs to it, or leave --stage1 out: the file holds its own."
        )
    recipe, source = recipes.published(), stage1 or stage2
    tokenizer, model = Tokenizer(recipe.tokenizer), WorldModel(recipe.world, recipe.tokenizer.cells(), recipe.tokenizer.grid)
    if given:
        published = iiworld_keys.tokenizer_to_published(tokenizer.state_dict() | {iiworld_keys.STARTED: torch.tensor(True)})
        states.require_fit(given, published, source)
    if stage2:
        states.require_fit(world, iiworld_keys.world_to_published(model.state_dict()), stage2)
    parents: tuple[Parent, ...] = ()
    if given:
        path = _write(out / "tokenizer", "tokenizer", recipe.tokenizer, tokenizer, given, iiworld_keys.tokenizer_from_published, source)
        parents = (Parent("tokenizer", str(path.resolve()), checkpoint.read_manifest(path).fingerprint),)
        written.append(path)
    if stage2:
        about = {"nested": bool(nested)}
        convert = iiworld_keys.world_from_published
        written.append(_write(out / "world", "world", recipe.world, model, world, convert, stage2, parents, about))
    return written


def export_ii_world(folder: str | Path, stage1: str, stage2: str) -> None:
    """Published files from FOLDER/tokenizer and FOLDER/world: what `import_ii_world` wrote, or what was trained on from it.

    A world model that came with a nested tokenizer is given one again: the one that it was trained on.

    Raises:
        ConfigError: without any file to write. CheckpointError: if a model has parts that the published one does not have. LineageError: if the
            tokenizer is not the world model's, or weights are not those of their manifest. Nothing is written then.
    """
    if not stage1 and not stage2:
        raise ConfigError("nothing to export: name the files with --stage1 A.pth, --stage2 B.pth or both.")
    if stage1 and stage2 and Path(stage1).resolve() == Path(stage2).resolve():
        raise ConfigError(f"both stages would be written to {stage1}: name two files.")
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
    """A checkpoint of published weights, whose names and shapes are those of the published architecture."""
    weights = convert(state)
    checkpoint.load_weights(module, weights, source)
    if (folder / "checkpoints").exists():
        raise ConfigError(f"{folder} already holds checkpoints. Name another folder with --out.")
    origin = {"file": Path(source).name, "sha256": hashlib.sha256(Path(source).read_bytes()).hexdigest()}
    manifest = Manifest(kind, "", to_plain(config), 0, code_version(), {}, about={"imported": origin, **(about or {})}, parents=parents)
    mark = checkpoint.fingerprint(config, weights, parents)
    return checkpoint.save(folder / "checkpoints" / f"samples-{0:09d}", replace(manifest, fingerprint=mark), weights)


def _save(path: str, state: State) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(target) as temporary:
        torch.save({"state_dict": state}, temporary)
