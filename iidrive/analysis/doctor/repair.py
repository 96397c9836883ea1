"""Search for a transformation that corrects planned paths: mirrored, rotated, scaled, shifted in time, or assigned to another row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from iidrive.analysis.doctor.doctor import Report, diagnose
from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.printed import WEIGHTS, parse_tables
from iidrive.analysis.leakage.parts import known_parts, nearest_steady
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.cases import Cases
from iidrive.scoring.predictions import Predictions
from iidrive.scoring.sampled import scored
from iidrive.scoring.score import score
from iidrive.scoring.tables import format_scores

Array = np.ndarray


def diagnose_predictions(cases: Cases, predictions: Predictions) -> Report:
    """Score predictions, examine the table, and try transformations that would correct the paths.

    Raises:
        DataError: as `sampled.scored` does.
    """
    run = scored(cases, predictions)
    rows = {token: i for i, token in enumerate(cases.token)}
    order = np.array([rows[token] for token in run.token])
    plan_row = {token: i for i, token in enumerate(predictions.token)} if predictions.token is not None else rows
    path = predictions.trajectory[[plan_row[token] for token in run.token]].astype(np.float64)
    true = cases.true_path()[order].astype(np.float64)
    full = np.zeros((len(cases), FUTURE_STEPS, 2), np.float32)
    full[order] = path
    evaluated = np.zeros(len(cases), bool)
    evaluated[order] = True
    scores = score(replace(cases, gt_ego_fut_masks=cases.gt_ego_fut_masks & evaluated[:, None], pred=None), full)
    table = replace(parse_tables(format_scores(scores), predictions.where)[0], heading="scored now")
    report = diagnose([table])
    diagnosis = report.tables[0]
    notes = [Finding("joining", note) for note in run.notes]
    repair = _repair(path, true)
    error, nearest = np.full((2, len(cases)), np.nan)
    error[order], nearest[order] = np.linalg.norm(path - true, axis=-1)[:, -1], nearest_steady(true)
    known = [
        Finding(
            "leak in part",
            part.sentence(),
            True,
            decide="Check whether the model was trained on these samples or reads their future: `iidrive audit`.",
        )
        for part in known_parts(error, nearest, cases.scene)
    ]
    return Report((replace(diagnosis, findings=(*diagnosis.findings, *notes, repair, *known)),))


def repair(cases: Cases, paths: Float[Array, "n 6 2"]) -> Finding | None:
    """The transformation that would correct `paths` (in the order of the cases); None if none of the tested ones does.

    Samples without a full future are ignored.
    """
    full = cases.full
    if not full.any():
        return None
    found = _repair(np.asarray(paths, np.float64)[full], cases.true_path()[full].astype(np.float64))
    return found if found.suspect else None


def _repair(path: Float[Array, "n 6 2"], true: Float[Array, "n 6 2"]) -> Finding:
    """The transformation that lowers L2 most. It is suspicious if it halves L2."""

    def l2(plan: Array) -> float:
        return float((np.linalg.norm(plan - true, axis=-1) @ (WEIGHTS / 36)).mean())

    x, y = path[..., 0], path[..., 1]
    scale = max(float((path * true).sum() / max((path**2).sum(), 1e-12)), 0.0)
    tries = {
        "left and right exchanged (sign of x)": ("sign flip", path * [-1, 1]),
        "forward and backward exchanged (sign of y)": ("sign flip", path * [1, -1]),
        "turned by half a turn (both signs)": ("sign flip", -path),
        "x and y exchanged": ("wrong frame", path[..., ::-1]),
        "taken from the ego frame (x forward, y left) to the lidar frame": ("wrong frame", np.stack([-y, x], -1)),
        "turned the other way by a quarter": ("wrong frame", np.stack([y, -x], -1)),
        "summed up, as if they were offsets": ("units", np.cumsum(path, axis=1)),
        f"scaled by {scale:.3g}": ("units", path * scale),
        "moved one step earlier": ("shifted steps", np.concatenate([path[:, 1:], 2 * path[:, -1:] - path[:, -2:-1]], axis=1)),
        "moved one step later": ("shifted steps", np.concatenate([np.zeros_like(path[:, :1]), path[:, :-1]], axis=1)),
    }
    now = l2(path)
    results = {name: (kind, l2(plan)) for name, (kind, plan) in tries.items()}
    if len(path) > 2:
        for shift in (-2, -1, 1, 2):
            where = f"of the sample {abs(shift)} rows {'before' if shift > 0 else 'after'}"
            results[where] = ("mis-paired", l2(np.roll(path, shift, axis=0)))
    name, (kind, best) = min(results.items(), key=lambda item: item[1][1])
    if best < 0.5 * now and now > 0.05:
        return Finding(
            kind,
            f"with paths {name}, L2 avg falls from {now:.4f} to {best:.4f} m.",
            True,
            ("tried: " + "; ".join(f"{n}: {v:.3f} m" for n, (_, v) in results.items()),),
            "Convert the paths (docs/score-your-planner.md, The frame), write them again and score them.",
        )
    return Finding(
        "frame", f"no mirrored, turned, scaled or shifted path fits better by half (best: {name}, {best:.3f} against {now:.3f} m)."
    )
