"""EPDMS of single plans: the recorded ego passes, a plan into a box fails, and sources without lanes report missing parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from driven import street
from small_scene import keyframe, straight_scene

from iidrive.cli.main import main
from iidrive.core.errors import DataError
from iidrive.core.scene import Boxes, Scene, VectorMap
from iidrive.data.clips import EgoTrack
from iidrive.data.source import true_path
from iidrive.data.town.source import Town, TownConfig
from iidrive.pipeline.pdm import pdm
from iidrive.scoring.driving.pdm import RecordedScene


def with_boxes(scene: Scene, *who: tuple[str, np.ndarray]) -> Scene:
    """A scene with cars by track and their place (k,2) at every keyframe, heading along +x; a car is absent where its place is NaN."""
    frames = []
    for k, frame in enumerate(scene.keyframes):
        here = [(track, place[k]) for track, place in who if np.isfinite(place[k]).all()]
        n = len(here)
        centre = np.array([[*place, 0.8] for _, place in here]).reshape(n, 3)
        boxes = Boxes(
            "global", centre, np.tile([4.5, 1.9, 1.6], (n, 1)), np.zeros(n), np.zeros(n, int), tuple(t for t, _ in here), np.full(n, 9)
        )
        frames.append(replace(frame, boxes=boxes))
    return replace(scene, keyframes=tuple(frames), map=street())


def test_others_are_where_their_tracks_are_between_keyframes() -> None:
    place = np.stack([20.0 + 2.0 * np.arange(10), np.zeros(10)], -1)
    place[5:] = np.nan
    recorded = RecordedScene.of(with_boxes(straight_scene(10), ("a", place)))
    others = recorded.others(1)
    assert others.centre_m[:16, 0, 0] == pytest.approx(22.0 + 0.4 * np.arange(16))
    assert others.present[:, 0].tolist() == [True] * 16 + [False] * 15
    assert others.speed_mps[3, 0] == pytest.approx(4.0)


def test_the_recorded_ego_passes_and_a_plan_into_a_box_fails() -> None:
    standing = np.tile([22.0, 0.0], (12, 1))
    frames = tuple(keyframe(f"s-{i}", i * 500_000, x_m=min(2.0 * i, 12.0)) for i in range(12))  # stops at 12 m
    recorded = RecordedScene.of(with_boxes(Scene("s", frames, VectorMap()), ("a", standing)))
    true = true_path(recorded.scene, 4).points_m
    straight_on = np.stack([np.zeros(6), 2.0 * np.arange(1, 7)], -1)
    mine, human = recorded.score(4, straight_on, true)
    assert human.epdms > 0.6
    assert human.multipliers["NC"] == 1
    assert human.parts["EP"] == 1
    assert mine.multipliers["NC"] == 0  # it is at 20 m after 3 s, its front at 23.5 m; the car's rear is at 19.75 m


def test_starts_are_as_recorded() -> None:
    start = RecordedScene.of(straight_scene(10, speed_mps=4.0)).start(3)
    assert start.speed_mps[0] == pytest.approx(4.0)
    assert start.xy_m[0] == pytest.approx([6.0, 0.0])
    assert start.steer_rad[0] == 0


def test_the_past_of_a_plan_is_the_recorded_ego_every_tenth_of_a_second() -> None:
    recorded = RecordedScene.of(straight_scene(10, speed_mps=4.0))
    past = recorded.past(4)
    assert past.xy_m[:, 0] == pytest.approx(8.0 + 0.4 * np.arange(-15, 0))
    assert past.speed_mps == pytest.approx(4.0)
    assert past.yaw_rad == pytest.approx(0.0)
    assert [len(recorded.past(k).yaw_rad) for k in range(4)] == [0, 5, 10, 15]
    drive = recorded.drive(4, np.stack([np.zeros(6), 2.0 * np.arange(1, 7)], -1))
    assert (drive.past.xy_m == past.xy_m).all()
    assert drive.ego.xy_m[0] == pytest.approx([8.0, 0.0])


@pytest.mark.slow
def test_a_town_is_scored_with_its_lanes(tmp_path: Path) -> None:
    town = Town(TownConfig(train_scenes=0, val_scenes=0, test_scenes=2, keyframes=12))
    tracks = [EgoTrack.of(town.scene(name)) for name in town.scene_names("test")]
    true = {token: track.path[i] for track in tracks for i, token in enumerate(track.tokens)}
    stays = {token: np.zeros((6, 2)) for token in true}
    found = pdm("still", town, tracks, stays)
    assert found.left_out == 2 * 6
    assert found.to_json()["drives"] == 2 * 6
    assert found.to_json()["scenes"] == 2
    truth = found.truth.to_json()
    assert truth["parts"]["DDC"] == 1
    assert truth["parts"]["EP"] == 1
    assert truth["parts"]["LK"] is None
    assert found.plans.to_json()["parts"]["EP"] < 1
    assert "still against true path" in found.text()
    assert pdm("true path", town, tracks, true).text().count("true path") == 1
    with pytest.raises(DataError, match="sample tokens"):
        pdm("other", town, tracks, {"unknown": np.zeros((6, 2))})


@pytest.mark.slow
def test_nuscenes_leaves_out_parts_without_lanes(nuscenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", "--data", "nuscenes", "--root", str(nuscenes_root), "--protocol", "pdm", "--json", str(tmp_path / "s.json")])
    found = json.loads((tmp_path / "s.json").read_text())["pdm"]
    assert found["scenes"] == 2
    assert found["drives"] == 69
    assert {name for name, value in found["parts"].items() if value is None} == {"DDC", "TLC", "LK", "EC"}
    assert found["parts"]["NC"] == 1
    assert found["epdms"] > 0.9
    assert "true path" in capsys.readouterr().out


def test_cases_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["score", "cases.npz", "--protocol", "pdm"], ["score", "--data", "town", "--protocol", "pdm"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "pdm needs maps and tracks" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_adds_it_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "tiny", "--recipe.town.keyframes", "9", "--recipe.town.test_scenes", "2"]
    main(["evaluate", "ctrv", "--protocol", "pdm", "--run", str(tmp_path / "run"), "--json", str(tmp_path / "s.json"), *options])
    found = json.loads((tmp_path / "s.json").read_text())
    assert set(found["pdm"]["rows"]) == {"true path", "ctrv"}
    assert "sparsedrive" in found
    assert "pdm: every plan is followed for 3 s" in capsys.readouterr().out
