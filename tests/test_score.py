"""Scores, table and checksum: against the evaluator, the reference runs, and small cases by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cases import along, make_cases, random_cases, reordered

from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.cases import read_cases, write_cases
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.score import Scores, averaged, prefix_means, rate, score, score_all, score_possible, to_json, write_per_sample
from iidrive.scoring.tables import (
    NUSCENES_VAL_OBJ_COL,
    NUSCENES_VAL_SAMPLES,
    checksum_sentence,
    format_scores,
    format_table,
    samples_sentence,
)

FORWARD = (0.0, 1.0)
CAR = (0.0, 5.0, 0.0, 1.0, 1.0, 1.0, 0.0)


def with_events(scores: Scores, n: int, **events: tuple[int, ...]) -> Scores:
    """The same scores as if `n` samples had given these events."""
    per_step = {**scores.per_step, **{name: rate(np.array(count), n) for name, count in events.items()}}
    columns = {name: prefix_means(value) for name, value in per_step.items()}
    counts = {**scores.events, **{name: np.array(count) for name, count in events.items()}}
    average = {name: averaged(value) for name, value in columns.items()}
    return replace(scores, n_scored=n, per_step=per_step, columns=columns, average=average, events=counts)


@pytest.fixture
def small() -> Scores:
    """Two samples ahead, one hit by the plan at step 2 alone, and one whose scene ends."""
    cases = make_cases([along((1.0, 0.0)), along(FORWARD), along(FORWARD)], [(0, 2, CAR)], masks=[6, 6, 3])
    return score(cases, np.stack([along(FORWARD)] * 3))


def test_the_evaluators_aggregates_and_table(shared: Path) -> None:
    folder = shared / "fixtures" / "protocols"
    expected = json.loads((folder / "planning_aggregate.json").read_text())["sparsedrive"]
    cases = read_cases(folder / "inputs.npz")
    assert cases.pred is not None
    scores = score(cases, cases.pred)
    assert (scores.n_scored, scores.n_skipped) == (expected["N"], 40)
    assert scores.average["obj_col"] == expected["metric_dict"]["obj_col"]
    assert scores.average["obj_box_col"] == expected["metric_dict"]["obj_box_col"]
    assert scores.average["L2"] == pytest.approx(expected["metric_dict"]["L2"], rel=1e-7)
    assert format_table(scores) == expected["table"]


def test_the_reference_checksum_is_reproduced_to_the_last_digit(shared: Path) -> None:
    reference = json.loads((shared / "fixtures" / "protocols" / "reference_run_counts.json").read_text())
    assert reference["N"] == NUSCENES_VAL_SAMPLES
    assert tuple(reference["obj_col"]["counts"]) == NUSCENES_VAL_OBJ_COL
    columns = prefix_means(rate(np.array(reference["obj_col"]["counts"]), reference["N"]))
    assert averaged(columns) == reference["obj_col"]["avg"]


def test_the_reference_run_as_printed(small: Scores) -> None:
    # R1: obj_box_col decodes to 1, 2, 4, 11, 23, 74 events (36 N avg = 302 weighted events).
    run = with_events(small, NUSCENES_VAL_SAMPLES, obj_col=NUSCENES_VAL_OBJ_COL, obj_box_col=(1, 2, 4, 11, 23, 74))
    run = replace(run, n_skipped=900)
    lines = format_scores(run).splitlines()
    assert lines[1] == "|   metrics   |  0.5s  |  1.0s  |  1.5s  |  2.0s  |  2.5s  |  3.0s  |  avg   |"
    assert lines[3] == "|   obj_col   | 0.742% | 0.713% | 0.684% | 0.659% | 0.649% | 0.638% | 0.670% |"
    assert lines[4] == "| obj_box_col | 0.020% | 0.029% | 0.046% | 0.088% | 0.160% | 0.374% | 0.164% |"
    assert lines[7] == "obj_box_col: 0.164%"
    assert lines[8].startswith("L2: ")
    assert lines[9].startswith("{'obj_col': 0.006701612793323066, 'obj_box_col': 0.0016387749116499133, 'L2': ")
    assert lines[10] == "obj_col events per step, of 5119 samples: 38 35 32 30 31 30"
    assert lines[11] == "obj_box_col events per step, of 5119 samples: 1 2 4 11 23 74"
    assert "skipped 900: the scene ends before 3.0 s" in lines[12]
    assert "the obj_col row is that of nuScenes val" in lines[13]


def test_by_hand(small: Scores) -> None:
    assert to_json(small)["sparsedrive"] == {
        "n_scored": 2,
        "n_skipped": 1,
        "per_step": {
            "obj_col": [0.0] * 6,
            "obj_box_col": [0.0, 0.5, 0.0, 0.0, 0.0, 0.0],
            "L2": pytest.approx(1.25 * np.sqrt(2) * np.arange(1, 7), rel=1e-6),
        },
        "columns": {
            "obj_col": [0.0] * 6,
            "obj_box_col": pytest.approx([0, 1 / 4, 1 / 6, 1 / 8, 1 / 10, 1 / 12]),
            "L2": pytest.approx(1.25 * np.sqrt(2) * np.arange(2, 8) / 2, rel=1e-6),
        },
        "average": {
            "obj_col": 0.0,
            "obj_box_col": pytest.approx((1 / 4 + 1 / 8 + 1 / 12) / 3),
            "L2": pytest.approx(1.25 * np.sqrt(2) * 2.5, rel=1e-6),
        },
        "events": {"obj_col": [0] * 6, "obj_box_col": [0, 1, 0, 0, 0, 0]},
    }
    json.dumps(to_json(small))
    assert samples_sentence(small) == "scored 2 samples; skipped 1: the scene ends before 3.0 s."


def test_a_plan_that_repeats_a_point_is_told_that_it_faces_right() -> None:
    beside = (2.3, 3.0, 0.0, 0.4, 0.4, 1.0, 0.0)
    cases = make_cases([along(FORWARD)], [(0, step, beside) for step in range(1, 7)])
    stops = np.array([[[0, 1], [0, 2], [0, 3], [0, 3], [0, 3], [0, 3]]], np.float32)
    told = format_scores(score(cases, stops)).splitlines()[-1]
    assert told.startswith("3 of 3 obj_box_col events are at steps at which the plan repeats a point.")
    creeps = stops + np.array([0, 0.005]) * np.array([0, 0, 0, 1, 2, 3])[:, None]
    found = score(cases, creeps.astype(np.float32))
    assert found.events["obj_box_col"].sum() == 0
    assert not found.note
    assert not score(cases, np.zeros_like(stops)).note, "a plan that stands all the time faces forwards"


def test_the_checksum_sentence_distinguishes_three_cases(small: Scores) -> None:
    n = NUSCENES_VAL_SAMPLES
    assert "the ground truth is complete and unchanged" in checksum_sentence(with_events(small, n, obj_col=NUSCENES_VAL_OBJ_COL))
    wrong = checksum_sentence(with_events(small, n, obj_col=(38, 35, 32, 30, 31, 29)))
    assert "mis-paired" in wrong
    assert "38, 35, 32, 30, 31, 29" in wrong
    assert "cannot be checked" in checksum_sentence(with_events(small, n - 1, obj_col=NUSCENES_VAL_OBJ_COL))


def test_the_true_path_scores_zero_apart_from_its_own_collisions() -> None:
    cases = make_cases([along(FORWARD)] * 2, [(0, 2, CAR)])
    scores = score(cases, cases.true_path())
    assert scores.events["obj_col"].tolist() == [0, 1, 0, 0, 0, 0]
    assert scores.average["obj_box_col"] == 0
    assert scores.average["L2"] == 0


def test_per_sample_values_are_written_under_the_evaluators_names(small: Scores, tmp_path: Path) -> None:
    write_per_sample(tmp_path / "a.npz", small)
    write_per_sample(tmp_path / "b.npz", small)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as found:
        names = {f"sparsedrive_{k}" for k in ("gt_col", "pred_col_raw", "obj_box_col", "L2", "yaw_gt", "yaw_pred")}
        assert set(found.files) == names | {"evaluated_full_future", "token"}
        assert found["token"].tolist() == ["sample0", "sample1", "sample2"]
        assert found["sparsedrive_obj_box_col"].sum() == 1


def test_nothing_to_score_is_an_error() -> None:
    cases = make_cases([along(FORWARD)] * 2, masks=[5, 0])
    with pytest.raises(DataError, match="none of the 2 samples"):
        score(cases, cases.true_path())


def test_nan_and_unknown_protocols_are_errors() -> None:
    cases = make_cases([along(FORWARD)])
    with pytest.raises(DataError, match="NaN"):
        score(cases, np.full((1, 6, 2), np.nan))
    with pytest.raises(ConfigError, match="unknown protocol 'unaid'"):
        score(cases, cases.true_path(), "unaid")


def test_all_skips_protocols_that_lack_data() -> None:
    cases = make_cases([along(FORWARD)] * 2, [(0, 2, CAR)], masks=[6, 3])
    path = cases.true_path().copy()
    path[1] = np.nan
    names = ["sparsedrive", "uniad", "stp3", "vad"]
    found, lacking = score_possible(cases, path, names)
    assert [one.protocol for one in found] == ["sparsedrive", "vad"]
    assert "uniad is left out" in lacking[0]
    assert "1 sample (sample1) have no plan" in lacking[0]
    assert "`ego_pose`" in lacking[1]
    assert list(to_json(*found)) == ["sparsedrive", "vad"]
    for name in names[1:3]:
        with pytest.raises(DataError, match=r"predict every sample|leave the protocol out"):
            score_all(cases, path, ["sparsedrive", name])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    cases, path = random_cases(seed, n=8, boxes_per_step=4)
    cases = replace(cases, gt_ego_fut_masks=cases.gt_ego_fut_masks | (np.arange(8) == 0)[:, None])
    order = np.random.default_rng(seed).permutation(8)
    plain = score(cases, align(cases, Predictions(path, cases.token)))
    shuffled = Predictions(path[order], tuple(cases.token[i] for i in order))
    assert json.dumps(to_json(score(cases, align(cases, shuffled)))) == json.dumps(to_json(plain))
    other = reordered(cases, order)
    moved = score(other, align(other, shuffled))
    assert moved.average["obj_box_col"] == plain.average["obj_box_col"]
    assert moved.average["obj_col"] == plain.average["obj_col"]
    assert moved.average["L2"] == pytest.approx(plain.average["L2"], rel=1e-6)


def test_the_command_scores_by_several_protocols(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = make_cases([along(FORWARD)] * 2, [(0, 2, CAR)])
    write_cases(tmp_path / "c.npz", replace(cases, pred=cases.true_path()))
    main(
        ["score", str(tmp_path / "c.npz"), "--protocol", "all", "--json", str(tmp_path / "c.json"), "--per-sample", str(tmp_path / "s.npz")]
    )
    told = capsys.readouterr().out
    assert "uniad's definition planning metrics" in told
    assert "Never compare two lines" in told
    assert "stp3 is left out: " in told
    assert list(json.loads((tmp_path / "c.json").read_text())) == ["sparsedrive", "uniad", "vad", "occworld"]
    with np.load(tmp_path / "s.npz") as found:
        assert {"sparsedrive_gt_col", "uniad_gt_box_coll", "vad_L2_1s", "vad_norange_L2_1s", "token"} <= set(found.files)
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path / "c.npz"), "--protocol", "vad,stp3"])
    assert "leave the protocol out" in " ".join(capsys.readouterr().err.split())
