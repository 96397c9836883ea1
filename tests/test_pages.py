"""Pages of evaluations and drives: the worst samples come first, and the page shows the measured values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iidrive.cli.main import main
from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import infer
from iidrive.pipeline.pages import forecast_table, worst_table
from iidrive.pipeline.pictures import worst
from iidrive.pipeline.testset import TestSet
from iidrive.report.charts import Calibration, reliability_chart
from iidrive.runtime.run_folder import Run
from iidrive.scoring.forecast import ForecastScores, RowCounts
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.score import score

TOWN = TownConfig(train_scenes=0, val_scenes=0, test_scenes=3, keyframes=12)
OPTIONS = [f"--recipe.town.{k}={v}" for k, v in {"train_scenes": 0, "val_scenes": 0, "test_scenes": 3, "keyframes": 12}.items()]


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> TestSet:
    return TestSet(Town(TOWN), "test", Run(tmp_path_factory.mktemp("run")))


@pytest.mark.slow
def test_the_worst_samples_have_most_collisions_and_largest_l2(on: TestSet) -> None:
    tokens, paths = infer.plans(KINEMATIC["ctrv"], scored_clips(on.tracks))
    scores = score(on.cases, align(on.cases, Predictions(paths, tokens, {}, "ctrv")))
    bad = worst(scores, on.tracks)
    assert 1 < len(bad) <= 6
    places = [(-b.events, -b.l2_m) for b in bad]
    assert places == sorted(places)
    assert max(np.unique([b.sample.track for b in bad], return_counts=True)[1]) <= 2
    first = bad[0]
    row = scores.token.index(first.token)
    assert on.tracks[first.sample.track].tokens[first.sample.keyframe] == first.token
    assert first.l2_m == pytest.approx(float(np.mean(scores.steps.per_step["L2"][row])))
    assert first.events == int(scores.steps.per_step["obj_box_col"][scores.steps.evaluated].sum(1).max())
    table = worst_table(bad, on)
    assert table.rows[0][2] == first.token
    assert worst(scores, on.tracks, most=1) == bad[:1]


@pytest.mark.slow
def test_an_evaluation_leaves_a_page_with_its_worst_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    main(["evaluate", "ctrv", "--run", str(run), "--json", str(tmp_path / "s.json"), *OPTIONS])
    assert f"page: {run / 'index.html'}" in capsys.readouterr().out
    page = (run / "index.html").read_text()
    pictures = sorted((run / "pictures").glob("worst-*.png"))
    assert len(pictures) == 6, "two of each of three scenes"
    assert all(f"pictures/{path.name}" in page for path in pictures)
    assert "pictures/planners.png" in page
    tokens = {token for track in read_tracks(Town(TOWN), Town(TOWN).scene_names("test")) for token in track.tokens}
    assert sum(f"<td>{token}</td>" in page for token in tokens) == 6
    assert 'href="scores.json"' in page
    scores = json.loads((tmp_path / "s.json").read_text())
    assert f"{scores['sparsedrive']['average']['L2']:.4f}" in page


@pytest.mark.slow
def test_drives_leave_a_page_with_every_scene(tmp_path: Path) -> None:
    run = tmp_path / "run"
    main(["drive", "still", "--scenes", "2", "--run", str(run), "--baselines", "off", *OPTIONS, "--recipe.town.keyframes=17"])
    page = (run / "index.html").read_text()
    lines = [json.loads(line) for line in (run / "scenes.jsonl").read_text().splitlines()]
    for line in lines:
        assert f"<td>{line['scene']}</td>" in page
        assert f">{100 * line['epdms']:.1f}</td>" in page
    assert "drove on" in page
    assert page.count("<svg") == 2 + 7 + 8, "intervals of EPDMS, of the driver's parts (it makes no plans, so no EC) and of the planner's"
    assert 'href="drive.json"' in page


def test_forecasts_are_a_table_with_marks_and_absence() -> None:
    counts = RowCounts.zero(2)
    found = ForecastScores(0, {"world model": counts, "transport": counts}, (0, 2), None, {"transport": "knows boxes"})
    table = forecast_table(found)
    assert list(table.header[1:]) == ["mIoU 0 s", "mIoU 1 s", "IoU 0 s", "IoU 1 s"]
    assert [row[0] for row in table.rows] == ["world model", "transport *"]
    assert {cell for row in table.rows for cell in row[1:]} == {"-"}


def test_charts_are_drawn_even_if_no_bin_has_cells(tmp_path: Path) -> None:
    nothing = Calibration(np.zeros((1, 12), int), np.zeros((1, 12)), np.zeros((1, 12)))
    path = reliability_chart({"all cells": nothing}, [1.0], tmp_path / "new" / "r.png")
    assert path.read_bytes().startswith(b"\x89PNG")
