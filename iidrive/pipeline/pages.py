"""HTML pages of evaluation runs: tables, charts, worst samples, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.pipeline.evaluate import Assessment
from iidrive.pipeline.pictures import Bad, draw, worst
from iidrive.pipeline.testset import TestSet, about_line
from iidrive.report.charts import Calibration, Curve, planner_chart, reliability_chart
from iidrive.report.page import Page, Table, write_index
from iidrive.scoring.forecast import ForecastScores
from iidrive.scoring.score import Scores
from iidrive.scoring.tables import format_scores

Pictures = list[tuple[str, str]]


def evaluation_page(name: str, found: Assessment, on: TestSet) -> Path:
    """Write index.html of an evaluation, with charts and the worst samples, into its run folder. Returns the path."""
    shown = found.shown
    tables: list[tuple[str, str | Table]] = []
    pictures: Pictures = []
    if shown is not None:
        planned = {} if shown.planned is None else {name: shown.planned}
        pictures = charts_of(planned, shown.forecast, on.run.folder)
        if shown.planned is not None:
            bad = worst(shown.planned, on.tracks)
            tables.append(("Reference table", format_scores(shown.planned)))
            tables.append((f"The worst {len(bad)} samples, at most two per scene", worst_table(bad, on, shown.failures)))
            pictures += draw(on, shown.forecaster, shown.clips, {name: shown.plans}, [one.sample for one in bad], "worst-")
        if shown.forecast is not None:
            tables.append(("Forecasting, percent", forecast_table(shown.forecast)))
    tables.append(("Full text output", found.text))
    about = {key: str(value) for key, value in found.scores["about"].items() if key != "lineage"}
    lead = about_line(on.source, on.split)
    return write_index(on.run.folder, Page(f"iidrive: {name}", lead, list(about.items()), tables, pictures))


def charts_of(scores: Mapping[str, Scores], forecast: ForecastScores | None, folder: Path) -> Pictures:
    """Draw charts of planners over time and of a world model's calibration, if given: (caption, path relative to `folder`)."""
    pictures: Pictures = []
    if scores:
        nothing = np.full(FUTURE_STEPS, np.nan)
        curves = [Curve(name, s.per_step["L2"], s.per_step["obj_box_col"] if s.events else nothing) for name, s in scores.items()]
        seconds = [STEP_S * (k + 1) for k in range(FUTURE_STEPS)]
        planner_chart(curves, seconds, folder / "pictures" / "planners.png")
        pictures.append(
            ("Planners over time: mean distance from the true path, and the fraction of samples that collide", "pictures/planners.png")
        )
    if forecast is not None and forecast.reliability:
        calibration = {
            place: Calibration(r.cells, r.expected / np.maximum(r.cells, 1), r.taken / np.maximum(r.cells, 1))
            for place, r in forecast.reliability.items()
        }
        reliability_chart(calibration, forecast.ahead_s, folder / "pictures" / "reliability.png")
        pictures.append(
            ("Calibration of the world model's probability of a road user; the diagonal is perfect", "pictures/reliability.png")
        )
    return pictures


def worst_table(bad: Sequence[Bad], on: TestSet, failures: Mapping[str, str] | None = None) -> Table:
    """One row per sample: scene, keyframe, token, steps with a collision, mean L2, and, with `failures`, why it collides."""
    rows = [[on.tracks[b.sample.track].name, str(b.sample.keyframe), b.token, str(b.events), f"{b.l2_m:.3f}"] for b in bad]
    header = ["scene", "keyframe", "token", "steps with a collision", "L2, m"]
    if failures:
        return Table([*header, "why"], [[*row, failures.get(b.token, "")] for row, b in zip(rows, bad, strict=True)])
    return Table(header, rows)


def forecast_table(forecast: ForecastScores) -> Table:
    """One row per forecaster: mIoU, IoU and movers IoU in percent at every horizon."""
    figures = {"mIoU": "mIoU", "IoU": "IoU", **({"movers_IoU": "movers IoU"} if forecast.ceiling is not None else {})}
    times = [f"{step * STEP_S:g} s" for step in forecast.steps]
    rows = []
    for name in forecast.rows:
        values = [value for figure in figures for value in forecast.figure(name, figure)]
        marked = f"{name} *" if name in forecast.privileged else name
        rows.append([marked, *("-" if np.isnan(value) else f"{100 * value:.2f}" for value in values)])
    return Table(["forecast (* uses future information)", *(f"{figures[f]} {t}" for f in figures for t in times)], rows)
