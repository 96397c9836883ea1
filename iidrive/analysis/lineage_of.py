"""The lineage of any path: a checkpoint, a token cache, a predictions file, a scores file, or a run folder with some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iidrive.core.errors import CheckpointError, DataError, LineageError
from iidrive.core.lineage import Lineage, Parent, marked
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.json_text import read_json
from iidrive.data.tokens import TokenCache
from iidrive.scoring.predictions import Predictions, read_predictions
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Manifest

_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Suffixes of weights, which have a lineage only in the folder of a checkpoint."""


def trace(path: str | Path) -> list[Lineage]:
    """The lineages of everything at a path, down to two folder levels below.

    Raises:
        DataError: if the path does not exist or nothing there has a lineage.
    """
    path = shipped.place(path) or Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such path. Give a checkpoint, a token cache, a predictions file, a scores file or a run folder.")
    found = _of_file(path) if path.is_file() else _of_folder(path, depth=2)
    if not found:
        raise DataError(f"{path}: nothing here has a lineage. Expected a checkpoint, a token cache, a predictions file or scores.")
    return found


def describe(lineage: Lineage) -> str:
    """The lineage as text: the chain, the recorded path of every ancestor and whether it is still there, the training data, settings that
    changed on the way, and the marks."""
    manifest = _manifest(lineage)
    lines = [f"{lineage.path}: {lineage}"]
    lines += [f"  {a.kind} {a.fingerprint}: {_now(a, lineage)}" for a in lineage.ancestors if a.path]
    if manifest is not None:
        lines += [f"  {_data(entry)}" for entry in manifest.trained_on]
        lines += [f"  {c['field']} changed from {c['from']:g} to {c['to']:g} after {c['samples']} samples" for c in manifest.changes]
    lines += [f"  {marked(mark)}" for mark in lineage.marks]
    return "\n".join(map(printable_line, lines))


def fit_together(lineages: Sequence[Lineage]) -> str:
    """One sentence: whether several lineages share their tokenizer (and world model); "" if there is nothing to compare."""
    for kind in ("tokenizer", "world"):
        of = {mark: [item.path for item in lineages if item.of(kind) == mark] for mark in dict.fromkeys(i.of(kind) for i in lineages)}
        of.pop("", None)
        if len(of) > 1:
            groups = "; ".join(f"{kind} {mark}: {', '.join(paths)}" for mark, paths in of.items())
            return f"{len(of)} different {kind}s, which must not be mixed: {groups}."
        if kind == "tokenizer" and not (of and len(next(iter(of.values()))) > 1):
            return ""
    return "All of these descend from one tokenizer and at most one world model: they may be used together."


def _is_checkpoints(manifest: Path) -> bool:
    """Whether a manifest is that of a checkpoint rather than of a token cache."""
    try:
        found = read_json(manifest)
    except DataError:
        return False
    return isinstance(found, dict) and "architecture" in found


def _manifest(lineage: Lineage) -> Manifest | None:
    """The manifest of a checkpoint; None for what is no checkpoint."""
    try:
        return checkpoint.read_manifest(lineage.path) if lineage.fingerprint else None
    except CheckpointError:
        return None


def _data(entry: Mapping[str, Any]) -> str:
    """One source that trained a stage: split, seed where there is one, and of several sources the share, occupancy and commands."""
    told = [f"{entry['source']} {entry['split']}"]
    told += [f"seed {entry['seed']}"] if entry["seed"] is not None else []
    if "share" in entry:
        told += ["all samples" if entry["share"] is None else f"share {entry['share']:g}", entry["occupancy"], entry["command"]]
    return f"{entry['kind']} trained on {', '.join(told)}"


def _now(parent: Parent, child: Lineage) -> str:
    """The recorded path of a parent, and whether the parent is still there."""
    try:
        found = checkpoint.read_manifest(checkpoint.moved(parent.path, child.path)).fingerprint
    except CheckpointError:
        return f"{parent.path} (no longer there)"
    if found == parent.fingerprint:
        return str(parent.path)
    return f"{parent.path} (replaced by another one, {found}: it was trained again in the same folder)"


def _of_file(path: Path) -> list[Lineage]:
    if (path.parent / "weights.safetensors").is_file() and path.name in ("manifest.json", "weights.safetensors", "training.safetensors"):
        return [checkpoint.read_manifest(path.parent).lineage(path.parent)]
    if path.suffix == ".npz":
        return [lineage_of_predictions(read_predictions(path))]
    if path.suffix in _WEIGHTS:
        raise DataError(
            f"{path}: weights of another project have no lineage here. Convert II-World's with `iidrive import ii-world`, and give the folder."
        )
    try:
        about = read_json(path).get("about", {})
    except (DataError, AttributeError) as error:
        said = str(error).removeprefix(f"{path}: ").rstrip(".")
        raise DataError(f"{path}: neither a predictions file (.npz) nor scores (.json): {said}.") from None
    return [_placed(about["lineage"], str(path))] if isinstance(about, dict) and "lineage" in about else []


def lineage_of_predictions(predictions: Predictions) -> Lineage:
    """The lineage stored with planned paths; without one, their origin is unknown."""
    plain = predictions.meta.get("lineage")
    return _placed(plain, predictions.where) if plain else Lineage("predictions of unknown origin", path=predictions.where)


def _placed(plain: object, where: str) -> Lineage:
    if not isinstance(plain, dict):
        raise LineageError(f"{where}: its lineage is damaged ({printable(plain)}). Write the file again with `iidrive evaluate`.")
    return replace(Lineage.from_plain(plain, where), path=where)


def _of_folder(folder: Path, depth: int) -> list[Lineage]:
    if (folder / "weights.safetensors").is_file() or any((folder / "checkpoints").glob("samples-*")):
        return [checkpoint.read_manifest(folder).lineage(folder)]
    if (folder / "manifest.json").is_file():
        if _is_checkpoints(folder / "manifest.json"):
            checkpoint.find(folder)  # raises the error that says what is missing
        return [TokenCache(folder).lineage]
    found = [item for file in sorted(folder.glob("predictions*.npz")) for item in _of_file(file)]
    if (folder / "scores.json").is_file():
        found += _of_file(folder / "scores.json")
    if depth:
        found += [item for below in sorted(p for p in folder.iterdir() if p.is_dir()) for item in _of_folder(below, depth - 1)]
    return found
