"""Checkpoints: weights as safetensors beside a manifest that says what they are and what they descend from.

    RUN/checkpoints/samples-000012800/weights.safetensors     for use (the moving average, where there is one)
                                      training.safetensors    raw weights, optimiser state: to go on training
                                      manifest.json

A checkpoint is written under a temporary name and renamed when whole. Nothing is unpickled.

The fingerprint is that of architecture, weights and parents. The manifest's `seal` is that of all it says (data, marks, metrics, …) but where
its parents lie, so that a change of these is noticed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.errors import CheckpointError, ConfigError, DataError, LineageError
from iidrive.core.lineage import INITIAL, Lineage, Parent, matched
from iidrive.core.untrusted.json_text import parse_json
from iidrive.models import states
from iidrive.runtime.run_folder import Run
from iidrive.training import shipped

FORMAT = 2
"""2: fields of configs and parameters were renamed after iidrive 0.1.0."""

Kind = Literal["tokenizer", "motion", "flow", "world", "planner", "ego-mlp"]


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint that is not a tensor. `architecture` and `training` are the configs as plain values.

    `parents` are oldest first; `marks` say which mismatches were allowed on the way (see lineage.py). `files` are the SHA-256 of the tensors' files.
    """

    kind: Kind
    fingerprint: str
    architecture: dict[str, Any]
    samples_seen: int
    code: str
    data: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    parents: tuple[Parent, ...] = ()
    marks: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def lineage(self, path: str | Path = "") -> Lineage:
        """The chain of this checkpoint, which lies at `path`."""
        return Lineage(self.kind, self.fingerprint, str(path), self.parents[::-1], self.marks)

    @property
    def trained_on(self) -> tuple[dict[str, Any], ...]:
        """What trained this model and all that it was made with: kind of the model, source, seed (of towns) and split of each."""
        return tuple(self.about.get("trained_on", ()))

    def also_trained_on(self, *others: Manifest) -> Manifest:
        """The same manifest, with the data of other stages among those that trained it."""
        entries = [entry for manifest in (*others, self) for entry in manifest.trained_on]
        once = [entry for i, entry in enumerate(entries) if entry not in entries[:i]]
        return replace(self, about={**self.about, "trained_on": once})

    @property
    def origins(self) -> tuple[Parent, ...]:
        """The checkpoint whose weights the training started from, if it did not start from nothing."""
        return tuple(parent for parent in self.parents if parent.kind.startswith(INITIAL))

    def parent(self, kind: str) -> Parent:
        """The parent of a kind. Raises CheckpointError if there is none."""
        for parent in self.parents:
            if parent.kind == kind:
                return parent
        raise CheckpointError(f"this {self.kind} names no {kind} that it was trained on.")


def fingerprint(architecture: Any, weights: Mapping[str, Tensor], parents: tuple[Parent, ...] = ()) -> str:
    """16 hex digits that follow from the architecture, every weight's bytes and the parents."""
    digest = hashlib.sha256(json.dumps(to_plain(architecture), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    for parent in parents:
        digest.update(parent.fingerprint.encode())
    return digest.hexdigest()[:16]


def save(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], training: Mapping[str, Tensor] | None = None) -> Path:
    """Write a checkpoint folder; it appears whole or not at all. An older one of the same name is replaced; what killed processes left is removed.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk. Nothing of it stays.
    """
    for left in (*folder.parent.glob(".*.tmp"), *folder.parent.glob(".*.gone")):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    tensors = {"weights.safetensors": weights, **({} if training is None else {"training.safetensors": training})}
    files = {}
    try:
        temporary.mkdir(parents=True)
        for file, values in tensors.items():
            save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, temporary / file)
            (temporary / file).chmod(temporary.stat().st_mode & 0o666)  # it is made for its owner's eyes alone
            files[file] = _digest(temporary / file)
        (temporary / "manifest.json").write_text(json.dumps(_sealed(replace(manifest, files=files)), indent=2) + "\n")
        if folder.exists():
            remove(folder)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: cannot be written ({error}). The checkpoints before it are whole; make room and go on with `--resume on`."
        ) from None
    return folder


def _sealed(manifest: Manifest) -> dict[str, Any]:
    """The plain values of a manifest, with its seal."""
    plain = to_plain(manifest)
    said = {**plain, "parents": [{**parent, "path": ""} for parent in plain["parents"]]}
    return {**plain, "seal": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def name(samples_seen: int) -> str:
    """A checkpoint's folder name."""
    return f"samples-{samples_seen:09d}"


def newest_first(run: str | Path) -> list[Path]:
    """The checkpoints of a run folder."""
    return sorted((Path(run) / "checkpoints").glob("samples-*"), reverse=True)


def require_whole(path: Path) -> None:
    """Raise CheckpointError if a file of a checkpoint is missing or is not as it was written."""
    for file, digest in read_manifest(path).files.items():
        if not (path / file).is_file() or _digest(path / file) != digest:
            raise CheckpointError(f"{path / file}: damaged or missing.")


def remove(folder: Path) -> None:
    """Delete a checkpoint; it leaves the view of readers at once."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint folder that a path means: itself, the newest under a run folder, or that of weights which come with the package.

    Raises:
        CheckpointError: if there is none.
    """
    path = shipped.place(path) or Path(path)
    if (path / "manifest.json").is_file() and (path / "weights.safetensors").is_file():
        return path
    newest = newest_first(path)
    if not newest:
        if path.is_file():
            raise CheckpointError(
                f"{path}: a file, where the folder of a checkpoint is needed. Weights of II-World (.pth) come in with `iidrive import ii-world`."
            )
        raise CheckpointError(
            f"{path}: no checkpoint here. Give a run folder of `iidrive train`, a folder with manifest.json, or a name of `iidrive weights`."
        )
    return newest[0]


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a checkpoint (or of the newest of a run). One of before there were seals is taken as it is.

    Raises:
        CheckpointError: if it cannot be read, or was changed after it was written.
    """
    file = find(path) / "manifest.json"
    try:
        plain = parse_json(file.read_bytes(), "manifest.json")
        seal = plain.pop("seal", None) if isinstance(plain, dict) else None
        manifest = from_plain(Manifest, plain, str(file))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}). Use the checkpoint before it, or train again.") from None
    except (DataError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{file}: damaged manifest ({error}). Use the checkpoint before it, or train again.") from None
    if manifest.format != FORMAT:
        wrote = " (written by iidrive 0.1.0)" if manifest.format == 1 else ""
        raise CheckpointError(
            f"{file}: format {manifest.format}{wrote}, this iidrive reads format {FORMAT}. Use the version that wrote it, or train again."
        )
    if seal is not None and seal != _sealed(manifest)["seal"]:
        raise CheckpointError(
            f"{file}: was changed after it was written: its seal is not that of what it says. Copy checkpoint folders whole, or train again."
        )
    return manifest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest was read: `path` as it was given, `folder` where its files lie."""

    path: Path
    folder: Path
    manifest: Manifest

    @property
    def lineage(self) -> Lineage:
        """What it is and what it descends from."""
        return self.manifest.lineage(self.path)

    @property
    def as_parent(self) -> Parent:
        """How a checkpoint that is made with this one names it."""
        place = shipped.name_of(self.folder) or str(self.folder.resolve())
        return Parent(self.manifest.kind, place, self.manifest.fingerprint)

    def parent_path(self, kind: str) -> Path:
        """Where the parent of a kind lies now: at its recorded place, or at the same place relative to a run that was moved as a whole."""
        return moved(self.manifest.parent(kind).path, self.folder)

    def weights(self) -> dict[str, Tensor]:
        """The weights for use. Raises LineageError as `load` does."""
        return load(self.folder, self.manifest)

    def require_kind(self, kind: Kind) -> None:
        """Raise CheckpointError unless it is of a kind."""
        require_kind(self.manifest, kind, self.path)

    def require_parent(self, kind: str, given: Lineage, allow: bool = False) -> tuple[str, ...]:
        """Refuse another parent than the one it was trained on, or with `allow` return the mark (see lineage.matched)."""
        return require_parent(self.manifest, kind, given, self.path, allow)


def read(path: str | Path | Checkpoint) -> Checkpoint:
    """A checkpoint and its manifest, from its folder or from a run folder (the newest); one that was read already is returned as it is.

    Raises:
        CheckpointError: if there is none, or its manifest cannot be read.
    """
    if isinstance(path, Checkpoint):
        return path
    folder = find(path)
    return Checkpoint(Path(path), folder, read_manifest(folder))


def load_tensors(path: str | Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """The tensors of a checkpoint's file."""
    file = find(path) / name
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing.") from None
    except SafetensorError as error:
        raise CheckpointError(f"{file}: damaged ({error}). Use the checkpoint before it, or train again.") from None


def load(path: str | Path, manifest: Manifest) -> dict[str, Tensor]:
    """The weights for use, whose fingerprint must be the one in the manifest.

    Raises:
        LineageError: if the weights are not those that the manifest describes.
    """
    weights = load_tensors(path)
    found = fingerprint(manifest.architecture, weights, manifest.parents)
    if found != manifest.fingerprint:
        raise LineageError(
            f"{find(path)}: the manifest says {manifest.kind} {manifest.fingerprint}, but architecture, weights and parents give {found}: a "
            "file was changed or comes from another checkpoint. Copy checkpoint folders whole, or train again."
        )
    return weights


def amend(path: str | Path, metrics: Mapping[str, float]) -> None:
    """Add metrics that were measured after training to a checkpoint's manifest. The fingerprint does not depend on them."""
    folder, manifest = find(path), read_manifest(path)
    Run(folder).write_json("manifest.json", _sealed(replace(manifest, metrics={**manifest.metrics, **metrics})))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a module, strictly: every name, shape and kind of number that does not fit is listed (see `states.require_fit`)."""
    states.require_fit(weights, module.state_dict(), where)
    module.load_state_dict(dict(weights))


def moved(recorded: str | Path, child: str | Path) -> Path:
    """Where a parent lies now: at its recorded place, or at the same place relative to a run folder that was moved as a whole with `child`."""
    recorded = Path(recorded)
    if shipped.exists(recorded):
        return recorded
    try:
        there = find(child).resolve().parents[2].joinpath(*recorded.parts[-3:])
    except CheckpointError:
        return recorded
    return there if there.exists() else recorded


def require_kind(manifest: Manifest, kind: Kind, path: str | Path) -> None:
    """Raise CheckpointError unless the checkpoint is of a kind."""
    if manifest.kind != kind:
        raise CheckpointError(f"{path}: expected a {kind}, found a {manifest.kind} (kinds: {', '.join(get_args(Kind))}).")


def require_parent(manifest: Manifest, kind: str, given: Lineage, path: str | Path, allow: bool = False) -> tuple[str, ...]:
    """Refuse another parent than the one that the checkpoint was trained on, or with `allow` return the mark (see lineage.matched)."""
    recorded = manifest.parent(kind)
    follow = {"tokenizer": "world", "world": "planner"}[kind]
    advice = (
        f"give the {kind} it was trained on (it lay at {recorded.path}; `iidrive lineage {shlex.quote(recorded.path)}` says what lies there "
        f"now), or train anew on this one: `iidrive train {follow} {shlex.quote(given.path or recorded.path)} --run NEW_RUN`"
        f"{' and then the planner' if follow != manifest.kind else ''}."
    )
    return matched(manifest.lineage(path), kind, given, advice, allow)
