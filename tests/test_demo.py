"""The whole pipeline at tiny size: on towns with the demo, on real scenes with the separate commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iidrive.cli.main import main
from iidrive.training import checkpoint

TINY = ["--recipe", "tiny", "--recipe.town.train_scenes", "2", "--recipe.town.test_scenes", "2", "--recipe.town.keyframes", "16"]


@pytest.mark.slow
def test_demo_on_towns_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is there, and the same seed gives the same weights, tokens and tables."""
    tables = []
    for name in ("a", "b"):
        out = tmp_path / name
        main(["demo", "--out", str(out), *TINY])
        assert (out / "index.html").stat().st_size > 3000
        pictures = sorted(path.name.rsplit("town")[0] for path in (out / "pictures").glob("*.png"))
        assert pictures == ["", "", "planners.png", "reliability.png", *["worst-"] * 4]
        marks = [checkpoint.read_manifest(out / stage).fingerprint for stage in ("tokenizer", "world", "planner")]
        codes = [p.read_bytes() for p in sorted((out / "tokens-test").rglob("*.safetensors"))]
        tables.append((marks, codes, (out / "scores.json").read_text()))
    assert tables[0] == tables[1]
    printed = capsys.readouterr().out
    for row in ("still", "constant-velocity", "ctrv", "ego-mlp", "planner, ii off", "planner, ii on", "copy warped", "world model"):
        assert row in printed
    scores = json.loads(tables[0][2])
    assert scores["forecast"]["n"] == 20
    assert set(scores["planning"]) >= {"still", "planner, ii on"}
    assert set(scores["choices"]) == {"planner, ii off", "planner, ii on"}
    for state, found in scores["choices"].items():
        assert found["spread_3s_m"] > 1
        assert found["steps_met_oracle"] <= found["steps_met"]
        sentence = f"the farthest ends {found['spread_3s_m']:.1f} m from the way at 3 s"
        assert sentence in printed.split(f"{state}\n")[1], "below the planner's reference table"
        assert sentence in (tmp_path / "a/index.html").read_text()


@pytest.mark.slow
def test_stage_by_stage_on_real_scenes(
    nuscenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train on mini_val's two scenes, test on one of them: the commands fit together and ii is switched freely at test time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = ["--data", "nuscenes", "--root", str(nuscenes_root), "--split"]
    (tmp_path / "one.txt").write_text("scene-0103\n")
    real, tested = [*data, "mini_val"], [*data, str(tmp_path / "one.txt")]
    stage1, stage2, tokens = str(tmp_path / "tok"), str(tmp_path / "world"), str(tmp_path / "tokens")
    main(["train", "tokenizer", "--run", stage1, *real, "--recipe", "tiny"])
    main(["tokens", stage1, tokens, *real])
    main(["train", "world", stage1, "--run", stage2, "--tokens", tokens, *real, "--recipe", "tiny"])
    for train in ("on", "off"):
        planner = str(tmp_path / f"planner-{train}")
        main(["train", "planner", stage2, "--train-ii", train, "--run", planner, "--tokens", tokens, *real, "--recipe", "tiny"])
        expected = {}
        for test in ("on", "off"):
            out = tmp_path / f"{train}-{test}.json"
            main(["evaluate", planner, *tested, "--test-ii", test, "--json", str(out), "--run", str(tmp_path / f"e-{train}-{test}")])
            found = json.loads(out.read_text())
            assert (found["about"]["train_ii"], found["about"]["test_ii"]) == (train, test)
            assert found["about"]["occupancy"] == "derived"
            expected[test] = found["choices"]["steps_expected"]
        assert expected["on"] != expected["off"]
    printed = capsys.readouterr().out
    assert "command: oracle (derived from the true future)" in printed
    assert "occupancy: derived" in printed
    assert "the outcome head was trained only with the current scene" in printed


@pytest.mark.slow
def test_a_run_folder_explains_itself_and_can_be_resumed(tmp_path: Path) -> None:
    run = tmp_path / "tok"
    main(["train", "tokenizer", "--run", str(run), *TINY])
    about = json.loads((run / "run.json").read_text())
    assert about["recipe"]["name"] == "tiny"
    assert about["environment"]["torch"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["samples"] == 16
    assert np.isfinite([line["loss"] for line in lines]).all()
    before = checkpoint.read_manifest(run).fingerprint
    main(["train", "tokenizer", "--run", str(run), "--resume", "on", *TINY])
    assert checkpoint.read_manifest(run).fingerprint == before
