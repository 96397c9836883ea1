"""The transfer table: its intervals by hand, and the command once on tiny data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_nuscenes import make

from iidrive.analysis.transfer import transfer as transferring
from iidrive.analysis.transfer.results import Cell, Measured, table
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError
from iidrive.data.nuscenes.source import NuScenes
from iidrive.runtime.run_folder import Run
from iidrive.scoring.forecast import RowCounts


def counts(hits: int, misses: int) -> RowCounts:
    """One scene in which a class is forecast right so often and taken for free so often, at every horizon."""
    histogram = np.zeros((4, 18, 18), np.int64)
    histogram[:, 4, 4], histogram[:, 4, 17] = hits, misses
    return replace(RowCounts.zero(4), samples=1, histogram=histogram)


def test_a_forecast_is_pooled_over_scenes_and_its_interval_draws_them() -> None:
    """Two scenes with IoU 1 of 1 and 0 of 3 voxels: 25 % pooled, and 0 or 100 % where one scene is drawn twice."""
    cell = Cell.of_counts([counts(1, 0), counts(0, 3)], "mIoU", 2)
    assert (cell.value, cell.low, cell.high) == pytest.approx((25.0, 0.0, 100.0))
    same = Cell.of_counts([counts(1, 1), counts(1, 1)], "mIoU", 1)
    assert (same.value, same.low, same.high) == pytest.approx((50.0, 50.0, 50.0))
    one = Cell.of_counts([counts(1, 1)], "mIoU", 1)
    assert one.value == pytest.approx(50)
    assert np.isnan(one.low), "one scene has no interval"


def test_what_cannot_be_measured_is_a_dash() -> None:
    assert Cell.of_counts([counts(1, 0)] * 2, "movers_IoU", 1).shown() == "-"
    assert Cell(1.5).shown() == "1.500"
    assert Cell(12.34, 10.0, 15.0).shown() == "12.3 (10.0 to 15.0)"
    assert Cell(float("nan")).to_json() == {"value": None, "low": None, "high": None}
    names = ["L2 avg", "obj_box_col avg", "EPDMS", "mIoU 1 s", "mIoU 2 s", "mIoU 3 s", "movers IoU 1 s"]
    lines = table([Measured("towns only", {name: Cell(1.0) for name in names}, {}, {})]).splitlines()
    assert [line.split()[:2] for line in lines if "towns" in line] == [["towns", "only"]] * 3


@pytest.mark.slow
def test_the_command_makes_the_table_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten tiny scenes of nuScenes: all of mini_train and mini_val."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    train = ("scene-0061", "scene-0553", "scene-0655", "scene-0757", "scene-0796", "scene-1077", "scene-1094", "scene-1100")
    make(Path("n"), (*train, "scene-0103", "scene-0916"), keyframes=8)
    brief = [f"--recipe.train_{stage}.samples=4" for stage in ("tokenizer", "motion", "flow", "world", "planner")]
    towns = ["--recipe.town.train_scenes=2", "--recipe.town.test_scenes=1", "--recipe.town.keyframes=12"]
    command = ["study", "transfer", "--root", "n", "--recipe=tiny", *brief, *towns, "--out", "t", "--json", "t.json"]
    main(command)
    told = capsys.readouterr().out
    assert "2 test scenes prove little" in told
    found = json.loads(Path("t.json").read_text())
    rows = found["data"]["nuscenes"]["rows"]
    assert list(rows) == ["towns only", "real only", "towns, then real", "ctrv; copy warped"]
    assert rows["towns only"]["trained on"].startswith("town train")
    assert rows["towns, then real"]["trained on"].startswith("nuscenes mini_train")
    for row in rows.values():
        assert row["L2 avg"]["value"] == row["protocols"]["sparsedrive"]["L2"]
        assert row["L2 avg"]["low"] <= row["L2 avg"]["value"] + 1e-5 <= row["L2 avg"]["high"] + 2e-5
        assert {"vad", "stp3"} <= row["protocols"].keys()
        assert any(reason.startswith("uniad is left out") for reason in row["left_out"])  # it counts samples at the end, which have no plan
    assert found["planners"]["towns only"]["fingerprint"] != found["planners"]["towns, then real"]["fingerprint"]
    written = {path: path.stat().st_mtime_ns for path in Path("t").rglob("weights.safetensors")}
    main(command)
    assert {path: path.stat().st_mtime_ns for path in Path("t").rglob("weights.safetensors")} == written, "nothing is trained again"
    assert json.loads(Path("t.json").read_text()) == found


def test_a_transfer_needs_real_data_that_was_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SystemExit):
        main(["study", "transfer", "--data", "town,nuscenes", "--root", "n"])
    assert "a transfer is to real data" in " ".join(capsys.readouterr().err.split())
    source = NuScenes(str(make(tmp_path / "n")))
    monkeypatch.setattr(NuScenes, "usual_split", lambda self, part: "mini_val")
    with pytest.raises(ConfigError, match=r"nuscenes: 2 of the test scenes train \(scene-0103, scene-0916\)"):
        transferring.test(source, {}, Run.start(tmp_path / "r", {}))
