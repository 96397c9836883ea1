"""Predictions: planned paths of N samples, as one npz file joined to cases by sample token.

Frame: LIDAR_TOP of each sample's own keyframe, x right, y forward, metres. Point t = 1..6 is 0.5..3.0 s ahead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.text import printable
from iidrive.core.untrusted.json_text import parse_json
from iidrive.core.untrusted.npz import read_npz
from iidrive.scoring import npz
from iidrive.scoring.cases import Cases, require_finite, row_tokens

Array = np.ndarray

PREDICTIONS_LIMIT = 1 << 28
"""Largest total size of a predictions file's arrays, bytes."""


@dataclass(frozen=True)
class Predictions:
    """Planned LIDAR_TOP paths (n,6,2) in the lidar frame of each sample, metres.

    `token` is None for a file without tokens. `meta` is what the file states about its origin. `where` names the file in messages.

    Raises:
        DataError: for a shape other than (n,6,2), NaN or infinity, a duplicate token, or a number of tokens other than n.
    """

    trajectory: Float32[Array, "n 6 2"]
    token: tuple[str, ...] | None
    meta: Mapping[str, object] = field(default_factory=dict)
    where: str = "predictions"

    def __post_init__(self) -> None:
        n = len(self.token) if self.token is not None else len(np.atleast_1d(self.trajectory))
        path = npz.numbers(self.trajectory, np.float32, (n, FUTURE_STEPS, 2), "trajectory", self.where)
        object.__setattr__(self, "trajectory", path)
        tokens = self.token if self.token is not None else row_tokens(n)
        again = npz.repeated(tokens)
        if again:
            raise DataError(f"{self.where}: a sample may be predicted only once; repeated: {npz.few(again)}; was the output merged twice?")
        require_finite(path, np.ones(n, bool), tokens, self.where)

    def __len__(self) -> int:
        return len(self.trajectory)


def read_predictions(path: str | Path) -> Predictions:
    """Read planned paths: `token` (n,), `trajectory` (n,6,2), `frame` 'lidar', `reference` 'lidar_top', optional `meta` as JSON.

    A file with `pred` (n,6,2) instead of `trajectory` is accepted. Without tokens it can only be joined, row by row, to cases without tokens.

    Raises:
        DataError: if the file is missing, damaged, pickled, in another frame, or fails a check of `Predictions`.
    """
    where = str(path)
    found, _ = read_npz(path, ("trajectory", "pred", "token", "frame", "reference", "meta"), PREDICTIONS_LIMIT)
    bare = "trajectory" not in found
    needed = ("pred",) if bare and "pred" in found else ("trajectory", "token", "frame", "reference")
    missing = [key for key in needed if key not in found]
    if missing:
        raise DataError(f"{where}: not a predictions file: {', '.join(missing)} missing; found {sorted(found)}. Expected {list(needed)}.")
    for key, expected in (("frame", "lidar"), ("reference", "lidar_top")):
        if key in found and npz.scalar_text(found[key]) != expected:
            raise DataError(
                f"{where}: {key} is '{printable(npz.scalar_text(found[key]))}', but paths must be those of the lidar_top origin in the current "
                "lidar frame (x right, y forward); convert them with `iidrive.data.source.to_lidar_path` and write them again."
            )
    meta = _meta(found["meta"], where) if "meta" in found else {}
    token = npz.names(found["token"], "token", where) if "token" in found else None
    return Predictions(found["pred" if bare else "trajectory"], token, meta, where)


def _meta(value: Array, where: str) -> Mapping[str, object]:
    """The `meta` object of a predictions file. Raises DataError for anything but a JSON object."""
    try:
        meta = parse_json(npz.scalar_text(value), f"{where}: meta is not JSON")
    except DataError as error:
        raise DataError(f"{error} `write_predictions` writes it.") from error
    if not isinstance(meta, dict):
        raise DataError(f"{where}: meta must be a JSON object; found {printable(meta, 40)}; write it with `write_predictions`.")
    try:
        json.dumps(meta, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"{where}: meta holds text that is not Unicode ({printable(str(error), 40)}); write it again.") from error
    return meta


def write_predictions(
    path: str | Path, tokens: Sequence[str], trajectories: Float[Array, "n 6 2"], meta: Mapping[str, object] | None = None
) -> None:
    """Write planned LIDAR_TOP paths (lidar frame, metres) atomically. Raises DataError as `Predictions` does."""
    predictions = Predictions(trajectories, tuple(tokens), meta or {}, str(path))
    npz.write_npz(
        path,
        {
            "token": np.array(tuple(tokens), dtype=np.str_),
            "trajectory": predictions.trajectory,
            "frame": np.array("lidar"),
            "reference": np.array("lidar_top"),
            "meta": np.array(json.dumps(dict(predictions.meta), sort_keys=True)),
        },
    )


def align(cases: Cases, predictions: Predictions) -> Float32[Array, "n 6 2"]:
    """Planned paths in the order of the cases, joined by sample token.

    Samples without a full future may be missing from the predictions; their rows are NaN.

    Raises:
        DataError: if predicted tokens are not in the cases, if a sample with a full future has no prediction, if only the cases have tokens,
            or if neither has tokens and the numbers of rows differ.
    """
    if predictions.token is None:
        if cases.own_tokens:
            raise DataError(
                f"{predictions.where}: no sample tokens, but {cases.where} has them; add a `token` array to join by, or a list with --tokens."
            )
        if len(predictions) != len(cases):
            raise DataError(
                f"{predictions.where}: {len(predictions)} paths for {len(cases)} samples of {cases.where}, and no tokens to join by."
            )
        return predictions.trajectory
    row_of = {token: row for row, token in enumerate(cases.token)}
    extra = [token for token in predictions.token if token not in row_of]
    rows = np.array([row_of[token] for token in predictions.token if token in row_of], np.int64)
    have = np.zeros(len(cases), bool)
    have[rows] = True
    lacking = [cases.token[i] for i in np.flatnonzero(cases.full & ~have)]
    if extra:
        without = f", and no prediction for {npz.few(lacking)} of it" if lacking else ""
        raise DataError(f"{predictions.where}: {npz.few(extra)} not in {cases.where}{without}; was another split predicted?")
    if lacking:
        raise DataError(
            f"{predictions.where}: no prediction for {npz.few(lacking)} of {cases.where}; predict every sample with a full future."
        )
    out = np.full((len(cases), FUTURE_STEPS, 2), np.nan, np.float32)
    out[rows] = predictions.trajectory
    return out
