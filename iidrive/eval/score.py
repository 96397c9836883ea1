"""From per-sample values to the numbers and the table of the reference runs; the only place where steps and samples are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from iidrive.errors import DataError
from iidrive.eval import npz
from iidrive.eval.cases import Cases
from iidrive.eval.protocols import PlanningSteps, protocol_named
from iidrive.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray

NUSCENES_VAL_SAMPLES = 5119
NUSCENES_VAL_OBJ_COL = (38, 35, 32, 30, 31, 30)
"""Collisions of the true path itself per step on nuScenes val: the same for every model, hence a checksum of the evaluation set."""


@dataclass(frozen=True)
class Scores:
    """One protocol's numbers. Collision rates are fractions of 1 (not percent), `L2` metres.

    `per_step` the mean over samples at each step, `columns` what is printed below each time, `average` the single number of a row,
    `events` how many samples collide at each step (collision rows only), `steps` the per-sample values, `token` their samples.
    """

    protocol: str
    n_scored: int
    n_skipped: int
    per_step: Mapping[str, Float32[Array, "6"]]
    columns: Mapping[str, Float64[Array, "6"]]
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
    """Share of samples that collide at each step, as the evaluator holds it: float32(count / n)."""
    return (np.asarray(events) / n).astype(np.float32)


def averaged(columns: Float64[Array, "6"], which: tuple[int, ...] = (1, 3, 5)) -> float:
    """Mean of the 1 s, 2 s and 3 s columns, in float64."""
    return float(np.mean(columns[list(which)]))


def score(cases: Cases, trajectories: Float[Array, "n 6 2"], protocol: str = "sparsedrive") -> Scores:
    """Score planned paths, in the order of the cases (see `cases.align`), by one protocol.

    Sums run in the order of the cases, in float32 for L2 as in the evaluator, so the order of a predictions file cannot matter, and
    files in the evaluator's order give its digits. (Reordering the cases themselves moves L2 in the seventh digit, collisions never.)

    Raises:
        ConfigError: for an unknown protocol.
        DataError: if no sample has a full future, or a scored path holds NaN or infinity.
    """
    row = protocol_named(protocol)
    steps = row.evaluate(cases, trajectories)
    n = int(steps.evaluated.sum())
    if n == 0:
        raise DataError(
            f"{cases.where}: none of the {len(cases)} samples has {FUTURE_STEPS} future keyframes, so there is nothing to score."
        )
    per_step: dict[str, Array] = {}
    events: dict[str, Array] = {}
    for name, field in row.rows:
        value: Array = getattr(steps, field)[steps.evaluated]
        if value.dtype == bool:
            events[name] = value.sum(axis=0, dtype=np.int64)
            per_step[name] = rate(events[name], n)
        else:
            # A running float32 sum, not NumPy's pairwise one: the evaluator adds sample after sample.
            per_step[name] = np.cumsum(value, axis=0, dtype=np.float32)[-1] / np.float32(n)
    columns = {name: prefix_means(value) for name, value in per_step.items()}
    average = {name: averaged(value, row.averaged) for name, value in columns.items()}
    return Scores(protocol, n, len(cases) - n, per_step, columns, average, events, steps, cases.token, cases.note)


def to_json(scores: Scores) -> dict[str, object]:
    """The aggregates as plain values under the protocol's name, ready for `json.dump`."""
    return {
        scores.protocol: {
            "n_scored": scores.n_scored,
            "n_skipped": scores.n_skipped,
            "per_step": {name: value.tolist() for name, value in scores.per_step.items()},
            "columns": {name: value.tolist() for name, value in scores.columns.items()},
            "average": dict(scores.average),
            "events": {name: value.tolist() for name, value in scores.events.items()},
        }
    }


def per_sample(scores: Scores) -> dict[str, Array]:
    """Per-sample arrays, rows in the order of the cases: `<protocol>_gt_col` and so on, `evaluated_full_future`, `token`."""
    fields = ("gt_col", "pred_col_raw", "obj_box_col", "L2", "yaw_gt", "yaw_pred")
    arrays = {f"{scores.protocol}_{field}": getattr(scores.steps, field) for field in fields}
    return arrays | {"evaluated_full_future": scores.steps.evaluated, "token": np.array(scores.token, dtype=np.str_)}


def write_per_sample(path: str | Path, scores: Scores) -> None:
    """Write `per_sample` as npz, whole or not at all. Raises DataError where it cannot be written."""
    npz.write_npz(path, per_sample(scores))


def format_table(scores: Scores) -> str:
    """The evaluator's table, byte for byte: prefix means per column, collisions in percent, L2 in metres."""
    labels = protocol_named(scores.protocol).columns
    lines = [["metrics", *labels, "avg"]]
    for name, columns in scores.columns.items():
        lines.append([name, *(_cell(scores, name, value) for value in (*columns.tolist(), scores.average[name]))])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    body = ["|" + "|".join(f" {_centred(text, width)} " for text, width in zip(line, widths, strict=True)) + "|" for line in lines]
    return "\n".join([rule, body[0], rule, *body[1:], rule])


def _cell(scores: Scores, name: str, value: float) -> str:
    return f"{value * 100:.3f}%" if name in scores.events else f"{value:.4f}"


def _centred(text: str, width: int) -> str:
    """Centred as the evaluator's table printer does it: the odd blank goes right of texts of odd length, left of even ones."""
    spare = width - len(text)
    left = spare // 2 + (spare % 2) * (len(text) % 2 == 0)
    return " " * left + text + " " * (spare - left)


def format_scores(scores: Scores) -> str:
    """All that is printed for one run: table, two summary lines, the averages at full precision, events, who was skipped, checksum."""
    lines = [format_table(scores)]
    lines += [f"{name}: {_cell(scores, name, value)}" for name, value in scores.average.items() if name != "obj_col"]
    lines.append(repr(dict(scores.average)))
    for name, count in scores.events.items():
        lines.append(f"{name} events per step, of {scores.n_scored} samples: {' '.join(str(k) for k in count.tolist())}")
    lines += [samples_sentence(scores), checksum_sentence(scores)]
    return "\n".join([*lines, scores.note] if scores.note else lines)


def samples_sentence(scores: Scores) -> str:
    """How many samples were scored and skipped, and why."""
    if scores.n_skipped == 0:
        return f"scored {scores.n_scored} samples; skipped none."
    return f"scored {scores.n_scored} samples; skipped {scores.n_skipped}: the scene ends before {STEP_S * FUTURE_STEPS:.1f} s."


def checksum_sentence(scores: Scores) -> str:
    """Whether the obj_col row, which no model can change, is the one of nuScenes val; "" for protocols without that row."""
    if scores.protocol != "sparsedrive":
        return ""
    found = tuple(scores.events["obj_col"].tolist())
    known = f"{', '.join(str(k) for k in NUSCENES_VAL_OBJ_COL)} of {NUSCENES_VAL_SAMPLES}"
    if scores.n_scored != NUSCENES_VAL_SAMPLES:
        return (
            f"checksum: {scores.n_scored} samples were scored and nuScenes val has {NUSCENES_VAL_SAMPLES}: this is another set, "
            "so its obj_col row cannot be checked."
        )
    if found == NUSCENES_VAL_OBJ_COL:
        return f"checksum: the obj_col row is that of nuScenes val ({known}): the truth is complete and unchanged."
    return (
        f"checksum: {NUSCENES_VAL_SAMPLES} samples as in nuScenes val, but obj_col has {', '.join(str(k) for k in found)} events "
        f"where nuScenes val has {known}: paths and boxes are mis-paired or the data was changed; do not compare this table with others."
    )
