"""Per-sample scores of a run, read from predictions (scored against cases), per-sample files or run folders, and joined by sample token."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.untrusted.npz import read_npz
from iidrive.scoring import npz
from iidrive.scoring.cases import FARTHEST_M, Cases
from iidrive.scoring.predictions import Predictions
from iidrive.scoring.protocols import protocol_named
from iidrive.scoring.readers import is_paths, read_paths
from iidrive.scoring.score import score

Array = np.ndarray

_PER_SAMPLE = ("token", "evaluated_full_future", "sparsedrive_L2", "sparsedrive_obj_box_col", "sparsedrive_gt_col")
_LIMIT = 1 << 28
"""Largest allowed size of all arrays of a per-sample file together, bytes."""
_MORE = ("scene", "predictions_sha256", "marks")
_LARGEST_L2_M = 10 * FARTHEST_M
"""Largest allowed L2, metres: a planned path stays within `FARTHEST_M` along an axis, and a true one within six times that."""


@dataclass(frozen=True)
class Sampled:
    """Per-sample scores of one run: `L2` in metres, `hit` (obj_box_col) and `gt_col` at each of the six steps.

    `scene` is the scene name of each sample, if known. `about` is the metadata of the predictions file; `marks` are those of a per-sample file.
    """

    name: str
    token: tuple[str, ...]
    L2: Float[Array, "n 6"]
    hit: Bool[Array, "n 6"]
    gt_col: Bool[Array, "n 6"]
    scene: tuple[str, ...] | None = None
    about: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


def read_runs(
    choice: str, cases: Cases | None, read: Callable[[Path], Predictions] = lambda path: read_paths(path).predictions
) -> list[Sampled]:
    """Read the runs (seeds) of one side of a comparison.

    `choice` names files or run folders, separated by commas or matched by a pattern (`'runs/a-*'`). Folds of one seed are joined by `+`, or
    matched by a pattern after `+` (`'+runs/a-fold*'`); their samples are pooled. `read` reads a predictions file.

    Raises:
        ConfigError: if nothing matches, or predictions are given without cases.
        DataError: if a file cannot be read or joined.
    """
    found: list[Sampled] = []
    for part in choice.split(","):
        pieces = pieces_of(part)
        runs = [_read(predictions_in(path), cases, read) for piece in pieces for path in _matches(piece)]
        found += runs if pieces == [part] else [pooled(runs)]
    return found


def pieces_of(part: str) -> list[str]:
    """The folds of one seed, as written. A seed without folds (one file, run folder or pattern) is returned as it is."""
    return [part] if "+" not in part or Path(part).exists() else [piece for piece in part.split("+") if piece]


def _matches(piece: str) -> list[Path]:
    path = Path(piece)
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    matches = [path] if path.exists() else sorted(anchor.glob(str(path.relative_to(anchor)))) if any(c in piece for c in "*?[") else []
    if not matches:
        raise ConfigError(f"'{piece}' does not exist. Give a predictions file, a per-sample file or a run folder.")
    return matches


def pooled(folds: Sequence[Sampled]) -> Sampled:
    """Pool folds, which are runs on different scenes, into one run. Metadata is kept if it is equal in all folds.

    Raises:
        DataError: if two folds score the same sample.
    """
    of: dict[str, str] = {}
    for fold in folds:
        again = [token for token in fold.token if token in of]
        if again:
            raise DataError(
                f"{of[again[0]]} and {fold.name} both score {npz.few(again)}, but folds must not share samples. "
                "If they are seeds, which share all samples, join them by commas."
            )
        of |= dict.fromkeys(fold.token, fold.name)
    scenes = [fold.scene for fold in folds if fold.scene is not None]
    return Sampled(
        "+".join(fold.name for fold in folds),
        tuple(of),
        *(np.concatenate([getattr(fold, name) for fold in folds]) for name in ("L2", "hit", "gt_col")),
        scene=tuple(name for scene in scenes for name in scene) if len(scenes) == len(folds) else None,
        about={key: value for key, value in folds[0].about.items() if all(fold.about.get(key) == value for fold in folds)},
        notes=tuple(dict.fromkeys(note for fold in folds for note in fold.notes)),
        marks=tuple(dict.fromkeys(mark for fold in folds for mark in fold.marks)),
    )


def holds_arrays(path: str) -> bool:
    """Whether a path is a run folder, a file with planned paths, or a pattern, rather than a text with tables."""
    return Path(path).is_dir() or is_paths(path) or (not Path(path).is_file() and any(c in path for c in "*?["))


def predictions_in(path: Path) -> Path:
    """The path itself if it is a file, else the predictions file of a run folder. Raises ConfigError unless there is exactly one."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("predictions*.npz"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise ConfigError(f"{path}: expected one predictions file in this run folder; found {names}. Name the file itself.")
    return found[0]


def rows_beside(predictions: Path) -> Path:
    """The per-sample file that `iidrive evaluate` writes with a predictions file: `rows-NAME.npz` beside `predictions-NAME.npz`."""
    return predictions.with_name(f"rows{predictions.name.removeprefix('predictions')}")


def _read(path: Path, cases: Cases | None, read: Callable[[Path], Predictions]) -> Sampled:
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        found, _ = read_npz(path, (*_PER_SAMPLE, *_MORE), _LIMIT)
        if "sparsedrive_L2" in found:
            return _per_sample(path, found, cases)
    if cases is None and path.name.startswith("predictions") and rows_beside(path).is_file():
        return _scored_before(path, rows_beside(path), read(path))
    if cases is None:
        raise ConfigError(
            f"{path} holds planned paths, which must be scored against the ground truth: add --cases CASES.npz "
            "(`iidrive cases` writes it; see docs/score-your-planner.md). Run folders of `iidrive evaluate` do not need it."
        )
    return scored(cases, read(path))


def _scored_before(path: Path, rows: Path, predictions: Predictions) -> Sampled:
    found, _ = read_npz(rows, (*_PER_SAMPLE, *_MORE), _LIMIT)
    if str(found.get("predictions_sha256")) != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ConfigError(f"{rows} holds the scores of other predictions than {path}; add --cases CASES.npz to score them again.")
    return replace(_per_sample(rows, found, None), name=str(path), about=predictions.meta, marks=())  # the marks come from the predictions


def _per_sample(path: Path, found: Mapping[str, Array], cases: Cases | None) -> Sampled:
    missing = [key for key in _PER_SAMPLE if key not in found]
    if missing:
        raise DataError(f"{path}: not a per-sample file, missing {', '.join(missing)}; write it with `iidrive score --per-sample`.")
    where, token = str(path), npz.names(found["token"], "token", str(path))
    shape = (len(token), FUTURE_STEPS)
    again = npz.repeated(token)
    if again:
        raise DataError(f"{where}: a sample may appear only once; repeated: {npz.few(again)}; write the file again.")
    keep = npz.flags(found["evaluated_full_future"], shape[:1], "evaluated_full_future", where)
    notes: tuple[str, ...] = ()
    scene_of: dict[str, str] = {}
    if "scene" in found:
        scene = npz.names(found["scene"], "scene", where)
        if len(scene) != len(token):
            raise DataError(
                f"{where}: {len(scene)} scene names for {len(token)} samples; write it again with `iidrive score --per-sample`."
            )
        scene_of = dict(zip(token, scene, strict=True))
    if cases is not None and cases.scene is not None:
        scene_of = dict(zip(cases.token, cases.scene, strict=True))
        foreign = [t for t, k in zip(token, keep, strict=True) if k and t not in scene_of]
        if foreign:
            notes = (f"{where}: {npz.few(foreign)} not in {cases.where}; left out.",)
            keep = keep & np.array([t in scene_of for t in token], bool)
    kept = tuple(t for t, k in zip(token, keep, strict=True) if k)
    l2 = npz.numbers(found["sparsedrive_L2"], np.float64, shape, "sparsedrive_L2", where)
    odd = ~((l2[keep] >= 0) & (l2[keep] <= _LARGEST_L2_M))
    if odd.any():
        raise DataError(
            f"{where}: sparsedrive_L2 must be 0 to {_LARGEST_L2_M:g} m; found {l2[keep][odd][0]:g} "
            f"({int(odd.any(axis=1).sum())} such samples); score the predictions again."
        )
    return Sampled(
        where,
        kept,
        l2[keep],
        npz.flags(found["sparsedrive_obj_box_col"], shape, "sparsedrive_obj_box_col", where)[keep],
        npz.flags(found["sparsedrive_gt_col"], shape, "sparsedrive_gt_col", where)[keep],
        tuple(scene_of[t] for t in kept) if scene_of else None,
        notes=notes,
        marks=npz.names(found["marks"], "marks", where) if "marks" in found else (),
    )


def scored(cases: Cases, predictions: Predictions) -> Sampled:
    """Score predictions per sample, joined by token. Samples that only one of the two files has are left out and reported in `notes`.

    Raises:
        DataError: if no predicted sample with a full future is in the cases, or the predictions have no tokens and the cases do.
    """
    notes = [cases.note] if cases.note else []
    if predictions.token is None:
        if cases.own_tokens or len(predictions) != len(cases):
            raise DataError(
                f"{predictions.where}: no sample tokens to join {len(predictions)} paths to {len(cases)} samples of {cases.where}; add a `token` "
                "array, or give a list with --tokens."
            )
        path, have = predictions.trajectory, np.ones(len(cases), bool)
    else:
        row_of = {token: row for row, token in enumerate(predictions.token)}
        have = np.array([token in row_of for token in cases.token], bool)
        path = np.zeros((len(cases), FUTURE_STEPS, 2), np.float32)
        rows = [row_of[token] for token, k in zip(cases.token, have, strict=True) if k]
        path[have] = predictions.trajectory[rows]
        lacking = [cases.token[int(i)] for i in np.flatnonzero(cases.full & ~have)]
        known = set(cases.token)
        foreign = [token for token in predictions.token if token not in known]
        if lacking:
            notes.append(f"{predictions.where}: no prediction for {npz.few(lacking)} of {cases.where}; left out.")
        if foreign:
            notes.append(f"{predictions.where}: {npz.few(foreign)} not in {cases.where}; left out.")
    if not (have & cases.full).any():
        raise DataError(f"{predictions.where}: no predicted sample with a full future is in {cases.where}; was another split predicted?")
    if not protocol_named("sparsedrive").has_obstacles(cases):
        notes.append(f"{cases.where} has no boxes, so collisions cannot be compared and collision rows of 0 mean nothing.")
    scores = score(replace(cases, gt_ego_fut_masks=cases.gt_ego_fut_masks & have[:, None], pred=None), path)
    keep = np.flatnonzero(scores.steps.evaluated)
    return Sampled(
        predictions.where,
        tuple(cases.token[int(i)] for i in keep),
        scores.steps.per_step["L2"][keep].astype(np.float64),
        scores.steps.per_step["obj_box_col"][keep],
        scores.steps.per_step["obj_col"][keep],
        tuple(cases.scene[int(i)] for i in keep) if cases.scene is not None else None,
        predictions.meta,
        tuple(notes),
    )
