"""The forecast table: rows, metrics, pooling, rows that need a source, and the oracle rollout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from iidrive.core.errors import ConfigError
from iidrive.data.clips import EgoTrack, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import transform_inverse
from iidrive.models.occupancy_flow import FlowConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.transport import transport, true_moves, without_boxes
from iidrive.models.world import WorldModel
from iidrive.pipeline import infer, recipes
from iidrive.pipeline.forecast_rows import ROWS
from iidrive.pipeline.tokens import scene_codes
from iidrive.scoring.forecast import FIGURES, ForecastScores, RowCounts
from iidrive.scoring.movers import MoverCounts, count, mover_truth, movers_in, tracks_inside

OLD = ("world model", "copy last", "copy warped", "copy warped, true motion (oracle)")
LED = "world model, true path (oracle)"


@pytest.fixture(scope="module")
def source() -> Town:
    return Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1))


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    torch.manual_seed(0)
    recipe = recipes.tiny()
    tokenizer = Tokenizer(recipe.tokenizer).eval()
    return Forecaster(tokenizer, WorldModel(recipe.world, tokenizer.cells, tokenizer.config.grid)).eval()


@pytest.fixture(scope="module")
def clips(source: Town, forecaster: Forecaster):
    tracks = [EgoTrack.of(source.scene(name)) for name in source.scene_names("test")]
    codes = {t.name: scene_codes(forecaster.tokenizer, source, source.scene(t.name)) for t in tracks}
    return scored_clips(tracks, lambda name, rows: codes[name][rows], source, forecaster.tokenizer.config.grid)


@pytest.fixture(scope="module")
def scores(source: Town, forecaster: Forecaster, clips) -> ForecastScores:
    return infer.forecasts(forecaster, clips, forecaster.tokenizer.config.grid, batch=12, source=source, oracle_every=2)


@pytest.mark.slow
def test_every_row_and_figure_in_json(scores: ForecastScores) -> None:
    found = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert list(found["rows"]) == list(ROWS)
    assert found["seconds"] == [0, 1, 2, 3]
    wanted = {
        "mIoU",
        "IoU",
        "movers_IoU",
        "movers_precision",
        "movers_recall",
        "movable_mIoU",
        "unseen_mIoU",
        "corridor_IoU",
        "path_error_m",
    }
    for name, row in found["rows"].items():
        assert wanted <= set(row)
        assert all(len(row[figure]) == 4 for figure in FIGURES)
        predicted = name in ("world model", "copy warped", "transport")
        assert [value is None for value in row["path_error_m"]] == ([True, False, False, False] if predicted else [True] * 4)
        assert row["unseen_mIoU"][0] is None  # nothing is out of sight at 0 s
    assert set(found["privileged"]) == {"copy warped, true motion (oracle)", "transport", "transport, true flow", LED}
    assert found["n"] == found["rows"]["copy last"]["n"] > found["rows"][LED]["n"] > 0


@pytest.mark.slow
def test_without_a_source_the_basic_rows_have_the_same_numbers(scores: ForecastScores, forecaster: Forecaster, clips) -> None:
    bare = infer.forecasts(forecaster, clips, forecaster.tokenizer.config.grid)
    assert tuple(bare.rows) == OLD
    for name in OLD:
        np.testing.assert_array_equal(bare.rows[name].histogram, scores.rows[name].histogram)
        assert np.isnan(bare.figure(name, "movers_IoU")).all()
        assert bare.to_json()["rows"][name]["movers_IoU"] == [None] * 4
    assert bare.table().count("\n") == 4
    old = [line.split()[-8:] for line in bare.table().splitlines()]
    assert [line.split()[-8:] for line in scores.table().splitlines()[:5]] == old


@pytest.mark.slow
def test_true_flow_reaches_the_ceiling_for_movers_in_the_grid(scores: ForecastScores) -> None:
    assert scores.ceiling is not None
    every, seen = (counts.iou() for counts in scores.ceiling)
    true_flow = scores.figure("transport, true flow", "movers_seen_IoU")
    np.testing.assert_allclose(true_flow, seen, atol=0.06)  # at 1.6 m two road users share a cell now and then
    assert scores.figure("transport, true flow", "movers_IoU")[3] < every[3]  # objects that enter the grid cannot be transported
    moved, copied = scores.figure("transport", "movers_IoU"), scores.figure("copy warped", "movers_IoU")
    assert moved[0] == copied[0] == every[0]
    assert all(a > b for a, b in zip(moved[1:], copied[1:], strict=True))
    assert min(scores.figure("transport, true flow", "movers_precision")) > 0.8


@pytest.mark.slow
def test_on_the_usual_grid_true_flow_is_within_three_points(source: Town) -> None:
    scene, spec = source.scene(source.scene_names("test")[0]), recipes.COARSE_GRID
    moved = shown = MoverCounts.zero()
    for index in range(0, len(scene) - 6, 4):
        now, then = (source.occupancy(scene, i, spec).semantics for i in (index, index + 4))
        now_T_then = np.linalg.inv(scene.keyframes[index].global_T_ego.matrix) @ scene.keyframes[index + 4].global_T_ego.matrix
        moves = true_moves(scene, index, (4,))
        made = transport(now, without_boxes(now, moves.boxes, spec), moves, now_T_then[None], spec)[0]
        truth = mover_truth(scene, index + 4, spec, tracks_inside(scene, index, spec))
        moved, shown = moved + count(movers_in(made), truth), shown + count(movers_in(then), truth)
    assert shown.iou() > 0.5
    assert abs(moved.iou() - shown.iou()) < 0.03


@pytest.mark.slow
def test_the_table_names_everything(scores: ForecastScores) -> None:
    text = scores.table()
    for part in ("movers IoU", "movers precision", "out of sight mIoU", "in corridor", "path error", "ceiling", "transport *", f"{LED}: "):
        assert part in text
    assert "nan" not in text
    assert max(map(len, text.splitlines())) < 180


def test_counts_are_pooled_over_processes_and_absence_is_none() -> None:
    zero = RowCounts.zero(1)
    one = RowCounts(1, *zero_matrices(), MoverCounts(*map(np.array, ([1], [2], [3]))), *(MoverCounts.zero(1),) * 2, np.array([2.0]), 1)
    two = RowCounts(2, *zero_matrices(), MoverCounts(*map(np.array, ([3], [3], [3]))), *(MoverCounts.zero(1),) * 2, np.array([1.0]), 2)
    both = sum((one, two), zero)
    assert both.samples == 3
    assert FIGURES["movers_IoU"](both) == [4 / 7]
    assert FIGURES["movers_precision"](both) == [4 / 5]
    assert FIGURES["movers_recall"](both) == [4 / 6]
    assert FIGURES["path_error_m"](both) == [1.0]
    empty = ForecastScores(0, {"nothing": zero}, (0,), (MoverCounts.zero(1),) * 2).to_json()
    assert all(empty["rows"]["nothing"][figure] == [None] for figure in FIGURES)
    assert empty["movers_ceiling"] == {"movers_IoU": [None], "movers_seen_IoU": [None]}


def zero_matrices() -> tuple[np.ndarray, ...]:
    return (np.zeros((1, 18, 18), np.int64),) * 3


def test_movable_miou_by_hand() -> None:
    matrix = np.zeros((1, 18, 18), np.int64)
    matrix[0, 4, 4], matrix[0, 4, 17], matrix[0, 17, 7], matrix[0, 11, 11] = (
        3,
        1,
        2,
        100,
    )  # car 3/4, pedestrian 0/2; the road is not movable
    row = RowCounts(1, *(matrix,) * 3, *(MoverCounts.zero(1),) * 3, np.zeros(1))
    assert FIGURES["movable_mIoU"](row) == [0.375]


@pytest.mark.slow
def test_the_oracle_rollout_follows_the_true_path(forecaster: Forecaster, clips) -> None:
    batch = clips.batch([8, 9])
    frames = torch.cat([torch.eye(4).expand(2, 1, 4, 4), batch.targets.now_T_frame], 1)
    motions = transform_inverse(frames[:, :-1]) @ frames[:, 1:]
    led, own = forecaster.imagine(batch.inputs, 6, motions), forecaster.imagine(batch.inputs, 6)
    torch.testing.assert_close(led.now_T_frame, batch.targets.now_T_frame, atol=1e-4, rtol=0)
    assert not torch.allclose(own.now_T_frame, led.now_T_frame, atol=1e-3)
    own_motions = torch.cat([torch.eye(4).expand(2, 1, 4, 4), own.now_T_frame], 1)
    again = forecaster.imagine(batch.inputs, 6, transform_inverse(own_motions[:, :-1]) @ own_motions[:, 1:])
    torch.testing.assert_close(again.latents, own.latents, atol=1e-3, rtol=1e-3)  # along its own path the prediction is the same


@pytest.mark.slow
def test_the_published_rollout_has_no_oracle(forecaster: Forecaster, clips) -> None:
    config = recipes.tiny().world
    published = WorldModel(
        type(config)(**{**vars(config), "motion": "map", "align": "none", "residual": "none", "voxel_weight": 0.0, "flow": FlowConfig()}),
        forecaster.tokenizer.cells,
        forecaster.tokenizer.config.grid,
    )
    with pytest.raises(ConfigError, match="true path"):
        Forecaster(forecaster.tokenizer, published).imagine(clips.batch([0]).inputs, 1, torch.eye(4).expand(1, 1, 4, 4))
