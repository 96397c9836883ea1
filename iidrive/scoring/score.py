"""Per-sample values averaged into scores, and scores as JSON and npz. Steps and samples are averaged nowhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.scoring import npz
from iidrive.scoring.cases import Cases
from iidrive.scoring.planning.setting import PlanningSteps, prepare
from iidrive.scoring.planning.sparsedrive import HEADLESS
from iidrive.scoring.protocols import Protocol, protocol_named

Array = np.ndarray


@dataclass(frozen=True)
class Scores:
    """The scores of one protocol. Collision rates are 0..1 (not percent), `L2` is in metres.

    `per_step`: mean over samples at each step. `columns`: the values of the printed columns. `average`: the single number of each row.
    `events`: number of samples that collide at each step (collision rows only). `steps`: per-sample values. `token`: their sample tokens.
    If the cases hold no obstacle, `events` is empty and the rates are NaN.
    """

    protocol: str
    n_scored: int
    n_skipped: int
    per_step: Mapping[str, Float32[Array, "6"]]
    columns: Mapping[str, Float64[Array, "c"]]
    average: Mapping[str, float]
    events: Mapping[str, Int64[Array, "6"]]
    steps: PlanningSteps
    token: tuple[str, ...]
    note: str = ""


def prefix_means(per_step: Float32[Array, "6"]) -> Float64[Array, "6"]:
    """Column k is the mean of steps 1..k, in float64."""
    value = np.asarray(per_step, np.float64)
    return np.array([value[: k + 1].mean() for k in range(len(value))])


def rate(events: Int64[Array, "6"], n: int) -> Float32[Array, "6"]:
    """Fraction of samples that collide at each step, rounded as in the reference evaluator: float32(count / n)."""
    return (np.asarray(events) / n).astype(np.float32)


def averaged(columns: Float64[Array, "6"], which: tuple[int, ...] = (1, 3, 5)) -> float:
    """Mean of the 1 s, 2 s and 3 s columns, in float64."""
    return float(np.mean(columns[list(which)]))


def score(cases: Cases, trajectories: Float[Array, "n 6 2"], protocol: str = "sparsedrive") -> Scores:
    """Score planned paths by one protocol. The paths must be in the order of the cases (see `predictions.align`).

    Sums run in the order of the cases, in float32 for L2 as in the reference evaluators. So the order of a predictions file does not matter,
    and cases in the evaluator's order reproduce its digits. Reordering the cases changes L2 in the seventh digit and never changes collisions.

    Raises:
        ConfigError: for an unknown protocol.
        DataError: if no sample has a full future, a scored path holds NaN or infinity, or the cases lack what the protocol needs.
    """
    return score_all(cases, trajectories, [protocol])[0]


def score_all(cases: Cases, trajectories: Float[Array, "n 6 2"], names: Sequence[str]) -> list[Scores]:
    """Score planned paths by several protocols in one pass. Raises as `score` does."""
    rows = [protocol_named(name) for name in names]
    setting = prepare(cases, trajectories)
    return [aggregate(row, row.evaluate(setting), cases.token, cases.where, cases.note, row.has_obstacles(cases)) for row in rows]


def score_possible(cases: Cases, trajectories: Float[Array, "n 6 2"], names: Sequence[str]) -> tuple[list[Scores], list[str]]:
    """As `score_all`, but skip protocols that these cases or paths lack data for. Returns the scores, and one reason per skipped protocol.

    Raises:
        DataError: if no protocol can be scored, or a path that every protocol scores holds NaN or infinity.
    """
    setting = prepare(cases, trajectories)
    found, lacking = [], []
    for row in map(protocol_named, names):
        try:
            found.append(aggregate(row, row.evaluate(setting), cases.token, cases.where, cases.note, row.has_obstacles(cases)))
        except DataError as error:
            lacking.append(f"{row.name} is left out: {error}")
    if not found:
        raise DataError(lacking[0].split(": ", 1)[1])
    return found, lacking


def aggregate(
    protocol: Protocol, steps: PlanningSteps, token: tuple[str, ...], where: str = "cases", note: str = "", obstacles: bool = True
) -> Scores:
    """Average a protocol's per-sample values. If `obstacles` is false, collision rates are NaN and `note` says why.

    Raises:
        DataError: if no sample is evaluated, or none has a future keyframe at some step: its distance would be 0 without a comparison.
    """
    n = int(steps.evaluated.sum())
    if n == 0:
        raise DataError(f"{where}: none of the {len(token)} samples has {FUTURE_STEPS} future keyframes, so there is nothing to score.")
    lacking = np.flatnonzero(~steps.exists[steps.evaluated].any(axis=0))
    if len(lacking):
        raise DataError(
            f"{where}: no sample has a future keyframe at {STEP_S * (lacking[0] + 1):.1f} s, so there is nothing to score at that step."
        )
    per_step: dict[str, Array] = {}
    events: dict[str, Array] = {}
    for name in protocol.rows:
        value = steps.per_step[name][steps.evaluated]
        per_step[name] = _mean(value)
        if value.dtype == bool:
            events[name] = value.sum(axis=0, dtype=np.int64)
    columns = {name: _columns(protocol, steps, name, value) for name, value in per_step.items()}
    if not obstacles:
        nothing = f"Collisions cannot be scored: {where} has no box that {protocol.name} counts as an obstacle ({protocol.obstacles})."
        note = f"{nothing} {note}" if note else nothing
        for name in events:
            per_step[name], columns[name] = np.full_like(per_step[name], np.nan), np.full_like(columns[name], np.nan)
        events = {}
    elif told := _headless(steps):
        note = f"{note} {told}" if note else told
    average = {name: averaged(value, protocol.averaged) for name, value in columns.items()}
    return Scores(protocol.name, n, len(token) - n, per_step, columns, average, events, steps, token, note)


def _headless(steps: PlanningSteps) -> str:
    """A note on collisions at steps at which a plan repeats a point, if there are any."""
    if HEADLESS not in steps.per_step:
        return ""
    met = steps.per_step["obj_box_col"][steps.evaluated]
    count = int((met & steps.per_step[HEADLESS][steps.evaluated]).sum())
    if not count:
        return ""
    return (
        f"{count} of {int(met.sum())} obj_box_col events are at steps at which the plan repeats a point. It has no heading there, and this evaluator "
        "turns the car to face right. Let a plan that stops go on by a few millimetres per step."
    )


def _mean(value: Array) -> Float32[Array, "6"]:
    if value.dtype == bool:
        return rate(value.sum(axis=0, dtype=np.int64), len(value))
    # A sequential float32 sum, not NumPy's pairwise one: the evaluators add sample by sample.
    return np.cumsum(value, axis=0, dtype=np.float32)[-1] / np.float32(len(value))


def _columns(protocol: Protocol, steps: PlanningSteps, name: str, per_step: Float32[Array, "6"]) -> Float64[Array, "c"]:
    if protocol.averaging == "prefix":
        return prefix_means(per_step)
    if protocol.averaging == "value":
        return per_step.astype(np.float64)
    if protocol.averaging == "prefix_float32":
        own_steps = [_mean(steps.per_step.get(f"{name}_{h}s", steps.per_step[name])[steps.evaluated]) for h in (1, 2, 3)]
        return np.array([torch.from_numpy(value[: 2 * h]).mean().item() for h, value in zip((1, 2, 3), own_steps, strict=True)])
    # A sequential float64 sum, as Python adds floats.
    own = [steps.detail[f"{name}_{h}s"][steps.evaluated].astype(np.float64) for h in (1, 2, 3)]
    return np.array([np.cumsum(value)[-1] / len(value) for value in own])


def to_json(*scores: Scores) -> dict[str, object]:
    """Scores as plain values for `json.dump`, one object per protocol. Values that cannot be scored are None."""
    return {
        one.protocol: {
            "n_scored": one.n_scored,
            "n_skipped": one.n_skipped,
            "per_step": {name: _plain(value.tolist()) for name, value in one.per_step.items()},
            "columns": {name: _plain(value.tolist()) for name, value in one.columns.items()},
            "average": dict(zip(one.average, _plain(list(one.average.values())), strict=True)),
            "events": {name: one.events[name].tolist() if name in one.events else None for name in one.per_step if name != "L2"},
        }
        for one in scores
    }


def _plain(values: list[float]) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values]


def per_sample(*scores: Scores) -> dict[str, Array]:
    """Per-sample arrays of all given scores, in the order of the cases, named `<protocol>_<array>`, with `evaluated_full_future` and `token`.

    The prefix of `occworld`'s arrays is `vad_norange`: VAD's metric without the range filter.
    """
    arrays: dict[str, Array] = {}
    for one in scores:
        prefix = protocol_named(one.protocol).prefix or one.protocol
        arrays |= {f"{prefix}_{name}": value for name, value in one.steps.detail.items()}
    return arrays | {"evaluated_full_future": scores[0].steps.full, "token": np.array(scores[0].token, dtype=np.str_)}


def write_per_sample(
    path: str | Path, *scores: Scores, scene: Sequence[str] | None = None, of: str | Path = "", marks: Iterable[str] = ()
) -> None:
    """Write `per_sample` as npz, atomically.

    If given, the file also holds the scene of each sample, the SHA-256 of the predictions file `of`, and `marks`.

    Raises:
        DataError: if the file cannot be written.
    """
    arrays = per_sample(*scores)
    if scene is not None:
        arrays["scene"] = np.array(tuple(scene), dtype=np.str_)
    if of:
        arrays["predictions_sha256"] = np.array(hashlib.sha256(Path(of).read_bytes()).hexdigest())
    if marks := tuple(marks):
        arrays["marks"] = np.array(marks, dtype=np.str_)
    npz.write_npz(path, arrays)
