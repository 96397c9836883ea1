"""Checkpoints: weights as safetensors, and a manifest with config, metrics and lineage.

    RUN/checkpoints/samples-000012800/weights.safetensors     weights for inference (the EMA, if there is one)
                                      training.safetensors    raw weights and optimiser state, for resuming
                                      manifest.json

A checkpoint is written under a temporary name and renamed when it is complete. Nothing is unpickled.

The fingerprint covers the architecture, the weights and the parents. The manifest's `seal` covers everything else that it says (data, marks,
metrics, …) except the paths of its parents, so changes of these are detected, too.
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
from iidrive.training.facts import require_facts

FORMAT = 2
"""Version of the format. Since version 2, config fields and parameters have other names than in iidrive 0.1.0."""

LFS_POINTER = b"version https://git-lfs"
"""How a file begins that stands for one in Git LFS."""
LFS_TOLD = "a Git LFS pointer, not weights. Fetch the file itself with `git lfs pull`."
"""What such a file is, for messages."""

Kind = Literal["tokenizer", "motion", "flow", "world", "route", "planner", "ego-mlp"]


@dataclass(frozen=True)
class Manifest:
    """Manifest of a checkpoint.

    Attributes:
        kind: kind of model.
        fingerprint: hash of architecture, weights and parents (see `fingerprint`).
        architecture: model config as plain values.
        samples_seen: training samples seen.
        code: git commit or version of the code.
        data: identity of the training data (see `Source.identity`).
        training: training config as plain values.
        metrics: losses and validation metrics.
        about: further facts, such as `trained_on` and `changes`.
        parents: checkpoints that it was made with, oldest first.
        marks: mismatches that were allowed (see core/lineage.py).
        files: file name → SHA-256 of the tensor files.
        format: version of the checkpoint format.
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
        """Lineage of this checkpoint, which is at `path`."""
        return Lineage(self.kind, self.fingerprint, str(path), self.parents[::-1], self.marks)

    @property
    def trained_on(self) -> tuple[dict[str, Any], ...]:
        """Training data of this model and of its ancestors: for each, the kind of model, data source, seed (of synthetic towns) and
        split.
        """
        return tuple(self.about.get("trained_on", ()))

    @property
    def changes(self) -> tuple[dict[str, Any], ...]:
        """Settings that were changed when the training was resumed: for each, `samples` seen so far, `field`, `from` and `to`."""
        return tuple(self.about.get("changes", ()))

    def also_trained_on(self, *others: Manifest) -> Manifest:
        """The manifest with the training data of other stages added to `trained_on`."""
        entries = [entry for manifest in (*others, self) for entry in manifest.trained_on]
        once = [entry for i, entry in enumerate(entries) if entry not in entries[:i]]
        return replace(self, about={**self.about, "trained_on": once})

    @property
    def origins(self) -> tuple[Parent, ...]:
        """The checkpoint whose weights the training started from; empty if it started from random weights."""
        return tuple(parent for parent in self.parents if parent.kind.startswith(INITIAL))

    def parent(self, kind: str) -> Parent:
        """The parent of this kind. Raises CheckpointError if there is none."""
        for parent in self.parents:
            if parent.kind == kind:
                return parent
        raise CheckpointError(f"the manifest of this {self.kind} names no {kind} that it was trained on.")


def fingerprint(architecture: Any, weights: Mapping[str, Tensor], parents: tuple[Parent, ...] = ()) -> str:
    """Hash of the architecture, all weights and the parents' fingerprints: 16 hex digits."""
    digest = hashlib.sha256(json.dumps(to_plain(architecture), sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    for parent in parents:
        digest.update(parent.fingerprint.encode())
    return digest.hexdigest()[:16]


def save(folder: Path, manifest: Manifest, weights: Mapping[str, Tensor], training: Mapping[str, Tensor] | None = None) -> Path:
    """Write a checkpoint folder atomically. Replaces a folder of the same name and removes temporary folders of killed processes.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk. Partial files are removed.
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
            (temporary / file).chmod(temporary.stat().st_mode & 0o666)  # safetensors creates files that only their owner can read
            files[file] = _digest(temporary / file)
        (temporary / "manifest.json").write_text(json.dumps(_sealed(replace(manifest, files=files)), indent=2) + "\n")
        if folder.exists():
            remove(folder)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: cannot be written ({error}). The checkpoints before it are complete; free some disk space and continue with `--resume on`."
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
    """Folder name of a checkpoint."""
    return f"samples-{samples_seen:09d}"


def newest_first(run: str | Path) -> list[Path]:
    """Checkpoint folders of a run, newest first."""
    folder = Path(run) / "checkpoints"
    return sorted(folder.glob("samples-*"), reverse=True) if os.path.isdir(folder) else []


def verify_checksums(path: Path) -> None:
    """Verify the checksums of a checkpoint. Raises CheckpointError if a file is missing or differs."""
    for file, digest in read_manifest(path).files.items():
        if not os.path.isfile(path / file) or _digest(path / file) != digest:
            raise CheckpointError(f"{path / file}: damaged or missing.")


def remove(folder: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that readers never see a part of it."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    os.replace(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def find(path: str | Path) -> Path:
    """The checkpoint folder for a path: the folder itself, the newest checkpoint of a run folder, or weights that come with the package.

    Raises:
        CheckpointError: if there is none.
    """
    path = shipped.place(path) or Path(path)
    manifest, weights = path / "manifest.json", path / "weights.safetensors"
    if os.path.isfile(manifest) and os.path.isfile(weights):  # os.path: False, not an error, for names that no system allows
        return path
    if os.path.isfile(manifest):
        kind = "a folder" if os.path.isdir(weights) else "missing"
        raise CheckpointError(
            f"{path}: no checkpoint: beside its manifest.json, weights.safetensors is {kind}. Give a run folder of `iidrive train`, or copy the "
            "checkpoint again."
        )
    newest = newest_first(path)
    if not newest:
        if os.path.isfile(path):
            if os.path.isfile(path.parent / "manifest.json"):
                raise CheckpointError(f"{path}: a file of a checkpoint; give its folder, {path.parent}.")
            raise CheckpointError(
                f"{path}: a file; expected the folder of a checkpoint. Convert II-World's weights (.pth) with `iidrive import ii-world`."
            )
        raise CheckpointError(
            f"{path}: no checkpoint here. Give a run folder of `iidrive train`, a folder with manifest.json, or a name listed by `iidrive weights`."
        )
    return newest[0]


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of a checkpoint, or of a run's newest checkpoint. A manifest without a seal, of an older version, is accepted.

    Raises:
        CheckpointError: if it cannot be read, or was changed after it was written.
    """
    file = find(path) / "manifest.json"
    try:
        plain = parse_json(file.read_bytes(), "manifest.json")
        seal = plain.pop("seal", None) if isinstance(plain, dict) else None
        manifest = from_plain(Manifest, plain, str(file))
        require_facts(manifest.data, manifest.metrics, manifest.about)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}). Use the checkpoint before it, or train again.") from None
    except (DataError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{file}: damaged manifest ({error}). Use the checkpoint before it, or train again.") from None
    if manifest.format != FORMAT:
        wrote = " (written by iidrive 0.1.0)" if manifest.format == 1 else ""
        raise CheckpointError(
            f"{file}: format {manifest.format}{wrote}, but this iidrive reads format {FORMAT}. Use the version that wrote it, or train again."
        )
    if seal is not None and seal != _sealed(manifest)["seal"]:
        raise CheckpointError(
            f"{file}: was changed after it was written: its seal is not that of what it says. Copy checkpoint folders whole, or train again."
        )
    return manifest


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint and its manifest. `path` is the path as given, `folder` is where its files are."""

    path: Path
    folder: Path
    manifest: Manifest

    @property
    def lineage(self) -> Lineage:
        """Lineage of the checkpoint."""
        return self.manifest.lineage(self.path)

    @property
    def as_parent(self) -> Parent:
        """This checkpoint as a parent in another checkpoint's manifest."""
        place = shipped.name_of(self.folder) or str(self.folder.resolve())
        return Parent(self.manifest.kind, place, self.manifest.fingerprint)

    def parent_path(self, kind: str) -> Path:
        """Current path of the parent of this kind: the recorded path, or the same relative path if the run folders were moved together."""
        return moved(self.manifest.parent(kind).path, self.folder)

    def weights(self) -> dict[str, Tensor]:
        """The weights for inference. Raises LineageError as `load` does."""
        return load(self.folder, self.manifest)

    def require_kind(self, kind: Kind) -> None:
        """Raise CheckpointError unless the checkpoint is of this kind."""
        require_kind(self.manifest, kind, self.path)

    def require_parent(self, kind: str, given: Lineage, allow: bool = False) -> tuple[str, ...]:
        """Check that `given` is the parent that it was trained with; see `lineage.matched` for `allow`, the result and errors."""
        return require_parent(self.manifest, kind, given, self.path, allow)


def read(path: str | Path | Checkpoint) -> Checkpoint:
    """Find a checkpoint (see `find`) and read its manifest. A `Checkpoint` is returned unchanged.

    Raises:
        CheckpointError: if there is none, or its manifest cannot be read.
    """
    if isinstance(path, Checkpoint):
        return path
    folder = find(path)
    return Checkpoint(Path(path), folder, read_manifest(folder))


def load_tensors(path: str | Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """Read the tensors of a checkpoint's file. Raises CheckpointError if it is missing or damaged."""
    file = find(path) / name
    try:
        return load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing.") from None
    except SafetensorError as error:
        with open(file, "rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(f"{file}: {LFS_TOLD}") from None
        raise CheckpointError(f"{file}: damaged ({error}). Use the checkpoint before it, or train again.") from None


def load(path: str | Path, manifest: Manifest) -> dict[str, Tensor]:
    """Read the weights for inference and verify their fingerprint.

    Raises:
        LineageError: if the weights are not those that the manifest describes.
    """
    weights = load_tensors(path)
    found = fingerprint(manifest.architecture, weights, manifest.parents)
    if found != manifest.fingerprint:
        raise LineageError(
            f"{find(path)}: the manifest says {manifest.kind} {manifest.fingerprint}, but architecture, weights and parents give {found}: a "
            "file was changed or comes from another checkpoint. Copy complete checkpoint folders, or train again."
        )
    return weights


def amend(path: str | Path, metrics: Mapping[str, float]) -> None:
    """Add metrics that were measured after training to a checkpoint's manifest. The fingerprint does not depend on them."""
    folder, manifest = find(path), read_manifest(path)
    Run(folder).write_json("manifest.json", _sealed(replace(manifest, metrics={**manifest.metrics, **metrics})))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a module.

    Raises CheckpointError, listing every name, shape and dtype that does not match (`states.require_fit`).
    """
    states.require_fit(weights, module.state_dict(), where)
    module.load_state_dict(dict(weights))


def moved(recorded: str | Path, child: str | Path) -> Path:
    """Current path of a parent: the recorded path, or the same path relative to `child` if both were moved together."""
    recorded = Path(recorded)
    if shipped.exists(recorded):
        return recorded
    try:
        there = find(child).resolve().parents[2].joinpath(*recorded.parts[-3:])
    except (CheckpointError, IndexError):
        return recorded
    return there if os.path.exists(there) else recorded


def require_kind(manifest: Manifest, kind: Kind, path: str | Path) -> None:
    """Raise CheckpointError unless the checkpoint is of this kind."""
    if manifest.kind != kind:
        raise CheckpointError(f"{path}: expected a {kind}, found a {manifest.kind} (kinds: {', '.join(get_args(Kind))}).")


def require_parent(manifest: Manifest, kind: str, given: Lineage, path: str | Path, allow: bool = False) -> tuple[str, ...]:
    """Check that `given` is the parent that the checkpoint was trained with; see `lineage.matched` for `allow`, the result and errors."""
    recorded = manifest.parent(kind)
    follow = {"tokenizer": "world", "world": "planner"}[kind]
    advice = (
        f"give the {kind} it was trained on (then at {recorded.path}; `iidrive lineage {shlex.quote(recorded.path)}` shows what is there "
        f"now), or train again on this one: `iidrive train {follow} {shlex.quote(given.path or recorded.path)} --run NEW_RUN`"
        f"{' and then the planner' if follow != manifest.kind else ''}."
    )
    return matched(manifest.lineage(path), kind, given, advice, allow)
