"""Scores of occupancy folders as JSON and as a table."""

from __future__ import annotations

import numpy as np

from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.scoring.occupancy import TIMES, iiworld_table
from iidrive.scoring.occupancy_folders import Result
from iidrive.scoring.rays import THRESHOLDS_M


def to_json(result: Result) -> dict[str, object]:
    """All scores as plain values, in percent; NaN as None."""
    found = result.score.compute()
    if result.rays is not None:
        each = 100 * result.rays.iou()
        means = [float(np.nanmean(row)) if not np.isnan(row).all() else float("nan") for row in each]
        found["rayiou"] = {
            "RayIoU": 100 * result.rays.ray_iou(),
            "per_threshold": {f"{metres:g} m": value for metres, value in zip(THRESHOLDS_M, means, strict=True)},
            "per_class": each.tolist(),
        }
    if result.movers is not None:
        parts = (("IoU", result.movers.iou()), ("precision", result.movers.precision()), ("recall", result.movers.recall()))
        found["movers"] = {name: (100 * values).tolist() for name, values in parts}
    if result.flow is not None:
        found["flow"] = {"mAVE_mps": result.flow.mave(), "per_class_mps": result.flow.per_class(), "files": result.flow.files}
    seconds = [k * STEP_S for k in range(result.score.times)]
    plain = _plain({**found, "n_skipped": result.skipped, "seconds": seconds, "notes": list(result.notes)})
    assert isinstance(plain, dict)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value


RULES = {
    "iiworld": ("II-World", "no camera mask; classes with IoU 0 left out; unknown truth counts as occupied in IoU"),
    "occworld": ("OccWorld", "no camera mask; absent classes count as 1; unknown truth counts against the forecast"),
    "occ3d": ("Occ3D", "inside the camera mask, now; classes absent from the truth left out"),
    "rayiou": ("RayIoU", "simulated lidar rays, now; mean of thresholds 1, 2 and 4 m"),
}


def format_result(result: Result) -> str:
    """The rules side by side in percent, with the meaning of each, and what was left out."""
    found = to_json(result)
    times = result.score.times
    heads = ["now"] if times == 1 else ["now", "1 s", "2 s", "3 s", "average"]
    lines = [f"{'':<10}{'':<7}" + "".join(f"{head:>9}" for head in heads)]
    for key, (name, meaning) in RULES.items():
        for metric, values in _rows(found.get(key), times):
            shown = "".join(f"{'-' if value is None else f'{value:.2f}':>9}" for value in values)
            lines.append(f"{name:<10}{metric:<7}{shown:<{9 * len(heads)}}  {meaning}")
            name = meaning = ""
    if result.movers is not None:
        at = [k for k in (0, 2, 4, 6) if k < times]
        shown = "".join(f"{'-' if np.isnan(v) else f'{100 * v:.2f}':>9}" for v in result.movers.iou()[at])
        lines.append(
            f"{'movers':<10}{'IoU':<7}{shown:<{9 * len(heads)}}  moving road users in bird's-eye view, true boxes against predicted cells"
        )
    if result.flow is not None:
        value = result.flow.mave()
        shown = "- (no true positives)" if np.isnan(value) else f"{value:.3f} m/s"
        lines.append(f"mAVE: {shown}, mean over movable classes of the velocity error in voxels of the correct class")
    rays = found.get("rayiou")
    if isinstance(rays, dict):
        lines.append("RayIoU at " + ", ".join(f"{k}: {'-' if v is None else f'{v:.2f}'}" for k, v in rays["per_threshold"].items()))
    if times == TIMES:
        lines += ["II-World's own table:", iiworld_table(result.score.compute()["iiworld"])]  # pyright: ignore[reportArgumentType]
    skipped = (
        f"skipped {result.skipped}: the scene or its ground truth ends before {STEP_S * FUTURE_STEPS:.1f} s"
        if result.skipped
        else "skipped none"
    )
    lines.append(f"scored {result.score.samples} samples; {skipped}.")
    return "\n".join([*(line.rstrip() for line in lines), *result.notes])


def _rows(found: object, times: int) -> list[tuple[str, list[float | None]]]:
    """(metric, one value per column) of a rule's scores."""
    if found is None:
        return []
    rest: list[float | None] = [] if times == 1 else [None] * 4
    if not isinstance(found, dict):
        return [("mIoU", [found, *rest])]  # pyright: ignore[reportReturnType]
    if "RayIoU" in found:
        return [("", [found["RayIoU"], *rest])]
    at = [k for k in (0, 2, 4, 6) if k < times]
    rows = []
    for m, metric in enumerate(("mIoU", "IoU")):
        values = found[metric] if len(found[metric]) == times else [None, *found[metric]]
        rows.append((metric, [*(values[k] for k in at), *([found["average"][m]] if times > 1 else [])]))
    return rows
