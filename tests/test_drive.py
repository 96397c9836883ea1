"""Closed loop: recorded driving reproduces the recorded scene, planner inputs equal those in open loop, and drives are reproducible."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from together import run_together

import iidrive
from iidrive.cli.main import main
from iidrive.core.batch import Inputs
from iidrive.core.classes import FREE
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.lineage import Lineage
from iidrive.core.scene import GridSpec
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import KINEMATIC, ctrv
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.arms import Placebo
from iidrive.pipeline.drive import DECIDE, code_digest, drive_all, drive_rows
from iidrive.pipeline.drivers import Driver, driver_of, planning, source_of, subject_of
from iidrive.pipeline.testset import TestSet
from iidrive.pipeline.tokens import scene_codes
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.runtime.sources import PACKAGE
from iidrive.scoring.driving.rollout import PAST_STEPS, Road
from iidrive.scoring.driving.tracking import CarState
from iidrive.simulation.displace import LATERAL_M, PACES, Start, drawn
from iidrive.simulation.driven import PAST, DrivenScene, road_of
from iidrive.simulation.foresight import true_occupancy
from iidrive.simulation.kept import read_rollout, write_rollout
from iidrive.simulation.loop import LoopConfig, Starts, begin, drive_expert, drive_scenes
from iidrive.simulation.observer import Observer
from iidrive.simulation.perception import Perception

CONFIG = TownConfig(train_scenes=0, val_scenes=0, test_scenes=4, keyframes=17)
NAMES = tuple(f"town-test-{k:05d}" for k in range(3))
RECIPE = replace(recipes.tiny(), town=CONFIG)


def plain_ctrv(inputs: Inputs, scenes: object) -> torch.Tensor:
    return ctrv(inputs)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(CONFIG)


def as_recorded(town: Town, name: str) -> DrivenScene:
    """A scene whose ego was set to its recorded state every 0.1 s."""
    expert = drive_expert([name], Starts(town, LoopConfig()))[0].ego
    scene = DrivenScene(town, name)
    for first in range(1, len(expert.yaw_rad), 5):
        rows = range(first, first + 5)
        scene.go([CarState.rolling(expert.xy_m[k][None], expert.yaw_rad[k][None], expert.speed_mps[k][None]) for k in rows], None)
    return scene


@pytest.mark.slow
def test_the_expert_driver_drives_as_recorded(town: Town) -> None:
    for rollout in drive_expert(NAMES, Starts(town, LoopConfig())):
        scene = town.scene(rollout.name)
        recorded = np.stack([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
        assert (rollout.ego.xy_m[::5] == recorded).all()
        at = {track: i for i, track in enumerate(rollout.others.track)}
        for k, keyframe in enumerate(scene.keyframes):
            rows = [at[track] for track in keyframe.boxes.track]
            assert (rollout.others.centre_m[5 * k, rows] == keyframe.boxes.centre_m[:, :2]).all()


@pytest.mark.slow
def test_planner_inputs_equal_those_in_open_loop(town: Town) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    recorded = town.scene(NAMES[0])
    driven, observer = as_recorded(town, NAMES[0]), Observer(tokenizer)
    got = observer.observe([driven])
    track = EgoTrack.of(recorded)
    codes = scene_codes(tokenizer, town, recorded)
    clips = scored_clips([track], lambda name, rows: codes[rows])
    # the last keyframe but six is the last sample with a full future; the drive goes on to the end of the scene
    now = len(recorded) - 1
    assert [m.time_s for m in driven.keyframes[-3:]] == [0.5 * (now - 2), 0.5 * (now - 1), 0.5 * now]
    past = np.arange(now - PAST, now + 1)
    assert (got.codes[0].numpy() == codes[past]).all()
    wanted = np.linalg.inv(track.global_T_ego[now]) @ track.global_T_ego[past]
    assert got.now_T_frame[0].numpy() == pytest.approx(wanted, abs=1e-5)
    assert got.command[0] == track.command[now]
    sample = clips.batch([len(clips) - 1]).inputs
    assert (got.ego_T_lidar == sample.ego_T_lidar).all()
    assert got.age_s[0].numpy() == pytest.approx(sample.age_s[0].numpy(), abs=1e-6)
    assert got.known.all()


@pytest.mark.slow
def test_history_before_the_start_is_from_the_warm_up(town: Town) -> None:
    scene = DrivenScene(town, NAMES[1])
    assert [m.time_s for m in scene.keyframes] == [-2.5, -2.0, -1.5, -1.0, -0.5, 0.0]
    live = town.live(NAMES[1], -2)
    assert scene.keyframes[3].global_T_ego.translation_m[:2] == pytest.approx(live.ego.xy_m)
    assert scene.keyframes[-1].boxes.track == town.scene(NAMES[1]).keyframes[0].boxes.track


@pytest.mark.slow
def test_the_past_of_a_drive_is_what_the_town_drove_before(town: Town) -> None:
    live, states = town.live(NAMES[1], -3), []
    for _ in range(PAST_STEPS):
        states.append(live.ego)
        live.step()
    scene = DrivenScene(town, NAMES[1])
    assert (scene.record.ego[0].xy_m == live.ego.xy_m).all(), "the last state of the past is 0.1 s before the start"
    past = scene.rollout().past
    assert (past.xy_m == np.array([ego.xy_m for ego in states])).all()
    assert (past.yaw_rad == np.array([ego.heading_rad for ego in states])).all()
    assert (past.speed_mps == np.array([ego.speed_mps for ego in states])).all()
    displaced = DrivenScene(town, NAMES[1], start=Start(0.5, 0.1, 1.3))
    for k, time in ((0, -1.5), (5, -1.0), (10, -0.5)):
        keyframe = next(m for m in displaced.keyframes if m.time_s == time)
        assert displaced.past.xy_m[k] == pytest.approx(keyframe.global_T_ego.translation_m[:2])
    assert displaced.past.speed_mps == pytest.approx(1.3 * past.speed_mps)


@pytest.mark.slow
def test_results_do_not_depend_on_the_group(town: Town) -> None:
    together = drive_scenes(NAMES, Starts(town, LoopConfig()), plain_ctrv, None)
    for rollout in together:
        alone = drive_scenes([rollout.name], Starts(town, LoopConfig()), plain_ctrv, None)[0]
        assert (alone.ego.xy_m == rollout.ego.xy_m).all()
        assert (alone.others.centre_m == rollout.others.centre_m).all()
        assert alone.ended == rollout.ended


@pytest.mark.slow
def test_others_react_or_replay(town: Town) -> None:
    def still(inputs: Inputs, scenes: object) -> torch.Tensor:
        return KINEMATIC["still"](inputs)

    reactive, replay = (drive_scenes(NAMES, Starts(town, LoopConfig(agents=a, go_on=True)), still, None) for a in ("reactive", "replay"))
    expert = drive_expert(NAMES, Starts(town, LoopConfig()))
    for one, other, recorded in zip(reactive, replay, expert, strict=True):
        assert (other.others.centre_m == recorded.others.centre_m).all()
        assert one.ego.speed_mps[-1] == 0
    assert any((one.others.centre_m != recorded.others.centre_m).any() for one, recorded in zip(reactive, expert, strict=True))


@pytest.mark.slow
def test_a_delayed_plan_is_followed_late(town: Town) -> None:
    """If the second plan is to stop, the ego stops later by the delay. Without a delay nothing changes."""

    def stops(inputs: Inputs, scenes: Sequence[DrivenScene]) -> torch.Tensor:
        along = torch.stack([torch.zeros(6), 5.0 * 0.5 * torch.arange(1, 7)], -1).expand(len(scenes), 6, 2)
        return torch.where(torch.tensor([len(scene.record.plans) == 0 for scene in scenes])[:, None, None], along, torch.zeros_like(along))

    gone = []
    for delay_s in (0.0, 0.2, 0.5):
        rollout = drive_scenes(NAMES[:1], Starts(town, LoopConfig(go_on=True, moments=31, delay_s=delay_s)), stops, None)[0]
        gone.append(float(np.hypot(*np.diff(rollout.ego.xy_m, axis=0).T).sum()))
    assert gone[0] + 0.5 < gone[1] < gone[2] - 0.5
    with pytest.raises(ConfigError, match=r"from 0 to 0\.5 s"):
        LoopConfig(delay_s=0.6)


@pytest.mark.slow
def test_dropped_columns_are_free_and_depend_on_the_seed(town: Town, agent: Agent) -> None:
    tokenizer, scene = agent.forecaster.tokenizer, DrivenScene(town, NAMES[0])
    seen = [Observer(tokenizer, Perception(share)).observe([scene]).codes for share in (0.0, 0.3, 0.3)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[2] is not None
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    grid = np.full((40, 40, 4), 11, np.uint8)
    kept = Perception(0.3).occupancy(grid, (1, 2))
    gone = (kept == FREE).all(-1)
    assert (kept[~gone] == 11).all()
    assert 0.25 < gone.mean() < 0.35
    assert Perception().occupancy(grid, (1, 2)) is grid


@pytest.mark.slow
def test_road_users_at_wrong_distances_stay_on_their_line_of_sight(town: Town, agent: Agent) -> None:
    tokenizer, scene = agent.forecaster.tokenizer, DrivenScene(town, NAMES[0])
    seen = [Observer(tokenizer, Perception(depth_error=error)).observe([scene]).codes for error in (0.0, 0.2, 0.2)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[2] is not None
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    moment = scene.keyframes[-1]
    here = moment.global_T_ego.translation_m[:2]
    moved = Perception(depth_error=0.2).boxes(moment.boxes, here, (1, 2))
    before, after = (boxes.centre_m[:, :2] - here for boxes in (moment.boxes, moved))
    near, far = np.hypot(*before.T), np.hypot(*after.T)
    assert np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]).max() < 1e-6 * near.max() * far.max()
    assert 0.1 < np.std(far / near - 1) < 0.3
    assert Perception().boxes(moment.boxes, here, (1, 2)) is moment.boxes
    with pytest.raises(ConfigError, match="depth_error must be"):
        LoopConfig(depth_error=-0.1)


@pytest.mark.slow
def test_a_drive_ends_where_it_fails_unless_it_goes_on(town: Town) -> None:
    def full_speed(inputs: Inputs, scenes: object) -> torch.Tensor:
        return torch.tensor([0.0, 6.0]).expand(len(inputs.tokens), 6, 2) * torch.arange(1, 7)[:, None]

    ended = drive_scenes(NAMES, Starts(town, LoopConfig()), full_speed, None)
    on = drive_scenes(NAMES, Starts(town, LoopConfig(go_on=True)), full_speed, None)
    assert all(one.ended for one in ended)
    for one, other in zip(ended, on, strict=True):
        moments = len(one.ego.yaw_rad)
        assert moments < len(other.ego.yaw_rad) == 81
        assert (one.ego.xy_m == other.ego.xy_m[:moments]).all()
        assert not other.ended


@pytest.mark.slow
def test_displaced_starts_are_drawn_once_per_scene(town: Town) -> None:
    config = LoopConfig(displace=True, moments=6)
    first, again = (begin(town, NAMES[0], config) for _ in range(2))
    assert (first.state.xy_m == again.state.xy_m).all()
    nominal = begin(town, NAMES[0], LoopConfig()).state
    way = first.state.xy_m[0] - nominal.xy_m[0]
    left = np.array([-np.sin(nominal.yaw_rad[0]), np.cos(nominal.yaw_rad[0])])
    assert np.abs(np.array(LATERAL_M) - way @ left).min() < 1e-9
    assert np.abs(np.array(PACES) * nominal.speed_mps[0] - first.state.speed_mps[0]).min() < 1e-9
    # the past goes along: seen from the ego it is as it was, at another pace
    seen, before = ([np.linalg.inv(s.keyframes[-1].global_T_ego.matrix) @ m.global_T_ego.matrix for m in s.keyframes]
                    for s in (first, begin(town, NAMES[0], LoopConfig())))  # fmt: skip
    pace = first.state.speed_mps[0] / nominal.speed_mps[0]
    assert np.stack(seen)[:, :2, 3] == pytest.approx(pace * np.stack(before)[:, :2, 3], abs=1e-9)
    rollout = drive_scenes(NAMES[:1], Starts(town, config), plain_ctrv, None)[0]
    assert (rollout.ego.xy_m[0] == first.state.xy_m[0]).all()
    expert = drive_expert(NAMES[:1], Starts(town, replace(config, moments=0)))[0]
    assert (expert.ego.xy_m[0] == first.state.xy_m[0]).all()
    assert not expert.ended


def test_a_start_is_drawn_until_it_is_good() -> None:
    wanted = drawn((0, 2, 0), lambda start: start.left_m == 1.0 and start.pace == 0.7)
    assert (wanted.left_m, wanted.pace) == (1.0, 0.7)
    with pytest.raises(DataError, match="displaced starts"):
        drawn((0, 2, 0), lambda start: False)
    assert isinstance(wanted, Start)


@pytest.mark.slow
def test_a_stored_drive_is_read_unchanged(town: Town, tmp_path: Path) -> None:
    rollout = drive_scenes(NAMES[:1], Starts(town, LoopConfig()), plain_ctrv, None)[0]
    write_rollout(tmp_path / "a.npz", rollout)
    found = read_rollout(tmp_path / "a.npz")
    assert (found.name, found.ended, found.planned_moments) == (rollout.name, rollout.ended, rollout.planned_moments)
    assert (found.ego.xy_m == rollout.ego.xy_m).all()
    assert (found.others.centre_m == rollout.others.centre_m).all()
    assert found.others.track == rollout.others.track
    assert (found.plan_speed_mps == rollout.plan_speed_mps).all()
    assert len(rollout.past.yaw_rad) == PAST_STEPS
    assert all((getattr(found.past, name) == getattr(rollout.past, name)).all() for name in ("xy_m", "yaw_rad", "speed_mps"))
    np.savez(tmp_path / "b.npz", name="x")
    with pytest.raises(DataError, match=r"b\.npz: not a file of `iidrive drive`"):
        read_rollout(tmp_path / "b.npz")


def rows(folder: Path, process_group: ProcessGroup | None = None) -> dict:
    on = TestSet(Town(CONFIG), "test", Run(folder, process_group or ProcessGroup()), NAMES)
    folder.mkdir(exist_ok=True)
    return drive_rows("ctrv", (), on, RECIPE, LoopConfig(together=2), ("still",)).scores


def shared_drive(process_group: ProcessGroup, folder: Path) -> None:
    rows(folder, process_group)


@pytest.mark.slow
def test_drives_resume_and_are_divided_over_processes(tmp_path: Path) -> None:
    first = rows(tmp_path / "one")
    files = sorted((tmp_path / "one").glob("rollouts/ctrv-*/*.npz"))
    assert [f.stem for f in files] == list(NAMES)
    before = {f: f.read_bytes() for f in files}
    times = {f: f.stat().st_mtime_ns for f in files}
    files[2].unlink()
    assert rows(tmp_path / "one") == first
    assert {f: f.read_bytes() for f in files} == before
    assert [f for f in files if f.stat().st_mtime_ns != times[f]] == [files[2]]
    run_together(2, shared_drive, tmp_path / "two")
    shared = {f.relative_to(tmp_path / "two"): f.read_bytes() for f in (tmp_path / "two").glob("rollouts/*/*.npz")}
    assert shared == {f.relative_to(tmp_path / "one"): f.read_bytes() for f in (tmp_path / "one").glob("rollouts/*/*.npz")}
    assert (tmp_path / "one" / "drive.json").read_bytes() == (tmp_path / "two" / "drive.json").read_bytes()


TOWN_OPTIONS = ["--recipe", "tiny", "--recipe.town.keyframes", "9", "--recipe.town.test_scenes", "1"]


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["drive", "still", "--scenes", "2", "--run", str(tmp_path / "run"), "--json", str(tmp_path / "s.json"), *TOWN_OPTIONS])
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["scenes"] == 2
    assert scores["at_fault_collisions"] == 0
    assert set(scores["parts"]) == {"NC", "DAC", "DDC", "TLC", "EP", "TTC", "LK", "HC", "EC"}
    assert {name for name, value in scores["parts"].items() if value is None} == set(scores["absent"]) == {"TLC"}
    assert set(scores["rows"]) == {"town's driver", "still", "constant-velocity", "ctrv"}
    assert 0 <= scores["epdms"] <= 1
    printed = capsys.readouterr().out
    assert "scenes were sampled until no vehicle collided" in printed
    assert 0 < scores["tracking_error_m"]["mean"] < scores["tracking_error_m"]["worst"] < 0.2
    assert f"driver within {100 * scores['tracking_error_m']['mean']:.1f} cm on average" in printed
    assert scores["at_fault_collisions_per_km_interval"] == [0, 0]
    assert set(scores["parts_intervals"]) == {name for name, value in scores["parts"].items() if value is not None}
    lines = [json.loads(line) for line in (tmp_path / "run" / "scenes.jsonl").read_text().splitlines()]
    assert [line["scene"] for line in lines if line["planner"] == "still"] == ["town-test-00000", "town-test-00001"]


def standing_path(inputs: Inputs) -> torch.Tensor:
    return torch.zeros(len(inputs.tokens), 6, 2)


def bad_path(inputs: Inputs) -> torch.Tensor:
    return torch.zeros(len(inputs.tokens), 6, 3)


@pytest.mark.slow
def test_a_custom_planner_function_can_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("from iidrive.models.baselines import ctrv\n\n\ndef plan(inputs):\n    return ctrv(inputs).numpy()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = ["--baselines", "off", *TOWN_OPTIONS]
    main(["drive", "mine:plan", "--run", str(tmp_path / "a"), "--json", str(tmp_path / "a.json"), *options])
    main(["drive", "ctrv", "--run", str(tmp_path / "b"), "--json", str(tmp_path / "b.json"), *options])
    mine, own = (json.loads((tmp_path / f"{k}.json").read_text()) for k in "ab")
    assert mine["epdms"] == own["epdms"]
    assert mine["km"] == own["km"] > 0
    for planner, said in (
        ("test_drive:standing_path", "never moves"),
        ("test_drive:bad_path", "finite paths of shape"),
        ("test_drive:nothing", "expected an importable module:function"),
        ("no_such_module:plan", "expected an importable module:function"),
        ("nobody", "planner"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["drive", planner, "--run", str(tmp_path / "c"), *options])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_an_edited_planner_function_is_driven_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def km(speed: float) -> float:
        (tmp_path / "edited.py").write_text(
            "import torch\n\n\ndef plan(inputs):\n"
            f"    path = torch.tensor([0.0, {speed}]) * torch.arange(1, 7)[:, None]\n"
            "    return path.expand(len(inputs.tokens), 6, 2)\n"
        )
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        options = ["--baselines", "off", "--json", str(tmp_path / "s.json"), *TOWN_OPTIONS]
        main(["drive", "edited:plan", "--run", str(tmp_path / "run"), *options])
        return json.loads((tmp_path / "s.json").read_text())["km"]

    first = km(0.5)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.glob("run/rollouts/edited*/*.npz")}
    assert km(0.5) == first
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("run/rollouts/edited*/*.npz")} == files
    assert km(1.0) > first


def first_plan(inputs: Inputs) -> torch.Tensor:
    return ctrv(inputs)


def test_the_source_of_a_function_is_known_only_if_its_name_says_what_it_does() -> None:
    assert source_of(first_plan)
    assert source_of(first_plan) != source_of(standing_path)
    assert source_of(first_plan) == source_of(first_plan)

    def inner(inputs: Inputs) -> torch.Tensor:
        return ctrv(inputs)

    for unknown in (inner, lambda inputs: ctrv(inputs), partial(first_plan), len, torch.nn.Linear(1, 1)):
        assert source_of(unknown) is None
    assert source_of(partial(first_plan), "test_drive:first_plan"), "a module says what it holds under a name"
    assert source_of(len, "builtins:len") is None


@pytest.mark.slow
def test_a_function_of_unknown_source_is_driven_again(town: Town, tmp_path: Path) -> None:
    called = []

    def plan(inputs: Inputs) -> torch.Tensor:
        called.append(len(inputs.tokens))
        return ctrv(inputs)

    on = TestSet(town, "test", Run(tmp_path), NAMES[:1])
    for expected in (2, 4):
        drive_all([driver_of(plan, "plan")], on, LoopConfig(moments=11))
        assert len(called) == expected
    assert len(list(tmp_path.glob("rollouts/plan-*"))) == 1


def test_drives_are_named_by_the_code_that_makes_them(tmp_path: Path) -> None:
    for name in ("simulation", "models/cpu", "cli"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.py").write_text("x = 1\n")
    digest = code_digest(tmp_path)
    (tmp_path / "cli" / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) == digest
    for name in ("simulation", "models/cpu"):
        (tmp_path / name / "a.py").write_text("x = 2\n")
        assert code_digest(tmp_path) != digest
        digest = code_digest(tmp_path)
    assert code_digest() == code_digest()


def test_the_code_that_makes_drives_includes_what_it_imports() -> None:
    files = {file for pattern in DECIDE for file in PACKAGE.glob(pattern)}
    imported = {
        name
        for file in files
        for name in re.findall(r"^from iidrive\.((?:scoring|simulation|models)[.\w]*) import", file.read_text(), re.M)
    }
    assert {"scoring.driving.contacts", "simulation.driven"} <= imported
    decide = {file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for file in files}
    assert {name for name in imported if (PACKAGE / name.replace(".", "/")).with_suffix(".py").is_file()} <= decide


@pytest.mark.slow
def test_a_replayed_scene_leaves_the_table_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, options = tmp_path / "run", ["--scenes", "2", *TOWN_OPTIONS]
    main(["drive", "ctrv", "--run", str(run), *options])
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in run.rglob("*") if f.is_file()}
    table = json.loads((run / "drive.json").read_text())
    main(["drive", "ctrv", "--run", str(run), "--scene", "town-test-00001", *options])
    assert f"page: {run / 'replay' / 'town-test-00001' / 'index.html'}" in capsys.readouterr().out
    assert {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in before} == before
    assert {f.relative_to(run).parts[0] for f in run.rglob("*") if f.is_file() and f not in before} == {"replay"}
    replayed = run / "replay" / "town-test-00001"
    assert not list(replayed.glob("rollouts/*/*.npz")), "the drives of the table are replayed"
    alone = json.loads((replayed / "drive.json").read_text())
    assert alone["scenes"] == 1
    assert table["scenes"] == 2
    lines = [[json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()] for folder in (run, replayed)]
    assert [line for line in lines[0] if line["scene"] == "town-test-00001"] == lines[1]
    main(["drive", "ctrv", "--run", str(tmp_path / "new"), "--scene", "town-test-00001", *options])
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["replay"]


@pytest.mark.slow
def test_from_python(tmp_path: Path) -> None:
    town = Town(replace(CONFIG, keyframes=9))
    driven = iidrive.drive(ctrv, town, scenes=1, run=tmp_path / "a")
    named = iidrive.drive("ctrv", town, scenes=1, run=tmp_path / "b")
    assert [row.name for row in driven.rows] == ["town's driver", "ctrv"]
    assert driven.row("ctrv").to_json() == named.row("ctrv").to_json()
    assert "ctrv" in driven.text()
    assert driven.tracking is not None
    assert driven.tracking == named.tracking
    short = iidrive.drive(ctrv, town, scenes=1, config=LoopConfig(moments=11), run=tmp_path / "c")
    assert short.tracking is None, "no plan of 3 s"
    assert "tracking error" in driven.text()
    assert "tracking error" not in short.text()


def test_models_that_do_not_plan_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="module:function"):
        subject_of("nothing")
    with pytest.raises(SystemExit):
        main(["drive", "still", "--scenes", "-1", "--run", str(tmp_path / "a"), *TOWN_OPTIONS])


@pytest.fixture(scope="module")
def agent() -> Agent:
    return make_agent()


def make_agent() -> Agent:
    """A planner with candidates that reads the forecast, with random weights."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    world = WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid)
    made = Agent(Forecaster(tokenizer, world), Planner(replace(RECIPE.planner, overlap_m=1e3), tokenizer.cells), True).eval()
    assert world.flow is not None
    with torch.no_grad():
        made.planner.outcomes.out.weight.normal_(0, 0.2)
        world.flow.out.weight.normal_(0, 1.0)
    return made


@pytest.mark.slow
def test_every_arm_drives_and_the_placebo_uses_another_scene(town: Town, agent: Agent) -> None:
    config, tokenizer = LoopConfig(moments=11), agent.forecaster.tokenizer
    found = {
        arm: drive_scenes(NAMES, Starts(town, config), planning(agent, arm), tokenizer)
        for arm in ("off", "on", "shared", "shuffled", "oracle")
    }
    ends = {arm: np.stack([one.ego.xy_m[-1] for one in rollouts]) for arm, rollouts in found.items()}
    assert (ends["on"] == ends["shared"]).all()
    assert all((ends[arm] != ends["on"]).any() for arm in ("off", "shuffled", "oracle"))


@pytest.mark.slow
def test_the_placebo_is_a_sample_of_the_scene_before_with_the_same_command(town: Town, agent: Agent) -> None:
    tokenizer = agent.forecaster.tokenizer
    placebo = Placebo(town, tokenizer)
    commands = {name: EgoTrack.of(town.scene(name)).command for name in town.scene_names("test")}
    assert len({int(c) for track in commands.values() for c in track}) > 1, "the scenes need two commands, or this tests little"
    for name in commands:
        number = int(name[-5:])
        others = sorted((other for other in commands if other != name), key=lambda other: (other > name, abs(int(other[-5:]) - number)))
        for keyframe in (0, 7, 16):
            for command in range(3):
                track, at = placebo.elsewhere(name, keyframe, command)
                wanted = next((other for other in others if command in commands[other]), None)
                assert track.name == (wanted or others[0])
                if wanted is None:
                    assert at == keyframe
                else:
                    assert commands[wanted][at] == command
                    assert abs(at - keyframe) == np.abs(np.flatnonzero(commands[wanted] == command) - keyframe).min()
    made = placebo(NAMES[:2], [9, 3], [0, 0])
    for row, name in enumerate(NAMES[:2]):
        track, at = placebo.elsewhere(name, [9, 3][row], 0)
        clips = ClipDataset([track], ClipSpec(full_future=False), codes=lambda n, rows: scene_codes(tokenizer, town, town.scene(n))[rows])
        alone = clips.batch([at]).inputs
        assert made.tokens[row] == track.tokens[at]
        assert alone.codes is not None
        assert made.codes is not None
        assert torch.equal(made.codes[row], alone.codes[0])
        assert torch.equal(made.now_T_frame[row], alone.now_T_frame[0])
    lonely = Town(replace(CONFIG, test_scenes=1))
    with pytest.raises(ConfigError, match="two scenes in the split"):
        Placebo(lonely, tokenizer).elsewhere(NAMES[0], 0, 0)


def shuffled_drive(process_group: ProcessGroup, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    agent = make_agent()
    driver = Driver("planner, ii shuffled", planning(agent, "shuffled"), agent.forecaster.tokenizer, Lineage("planner", "made"))
    on = TestSet(Town(CONFIG), "test", Run(folder, process_group))
    drive_all([driver], on, LoopConfig(together=2, go_on=True))


@pytest.mark.slow
def test_the_placebo_does_not_depend_on_processes_or_a_resume(tmp_path: Path) -> None:
    def found(folder: str) -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in (tmp_path / folder).glob("rollouts/planner-ii-shuffled-*/*.npz")}

    run_together(1, shuffled_drive, tmp_path / "one")
    first = found("one")
    assert len(first) == 4
    run_together(2, shuffled_drive, tmp_path / "two")
    assert found("two") == first
    for name in ("town-test-00002", "town-test-00003"):
        next((tmp_path / "one").glob(f"rollouts/planner-ii-shuffled-*/{name}.npz")).unlink()
    run_together(1, shuffled_drive, tmp_path / "one")
    assert found("one") == first


@pytest.mark.slow
def test_the_oracle_forecast_equals_what_happens(town: Town) -> None:
    scene, grid = as_recorded(town, NAMES[0]), GridSpec((40, 40, 1), (-32.0, -32.0, -1.0), 1.6)
    expert = drive_expert(NAMES[:1], Starts(town, LoopConfig()))[0].ego
    early = DrivenScene(town, NAMES[0])
    states = [CarState.rolling(expert.xy_m[k][None], expert.yaw_rad[k][None], expert.speed_mps[k][None]) for k in range(1, 31)]
    seen = true_occupancy(early, states, grid)
    wanted = FlowTargets(town, grid)(NAMES[0], 0)["taken"][1:]
    # the recorded scene lists boxes within 80 m of where the ego is then: the grid lies within
    assert (seen == wanted).all()
    assert seen.any()
    assert len(scene.keyframes) > len(early.keyframes)


@pytest.mark.slow
def test_a_scene_that_begins_off_the_road_is_left_out_and_named(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver can be scored there, including the town's own."""
    elsewhere = shapely.box(-1e4, -1e4, -9e3, -9e3)

    def somewhere(of: Town, name: str) -> Road:
        road = road_of(of, name)
        return replace(road, drivable=elsewhere) if name == NAMES[1] else road

    monkeypatch.setattr("iidrive.pipeline.drive.road_of", somewhere)
    on = TestSet(town, "test", Run.start(tmp_path, {}), NAMES)
    found = drive_rows("ctrv", (), on, RECIPE, LoopConfig(moments=6), ())
    assert found.scores["left_out"] == [NAMES[1]]
    assert found.scores["scenes"] == 2
    assert f"left out, 1 of the scenes: the map has no road where the ego starts ({NAMES[1]})" in found.text
    alone = TestSet(town, "test", Run.start(tmp_path / "alone", {}), NAMES[1:2])
    with pytest.raises(ConfigError, match="no road where the ego starts in any of these scenes"):
        drive_rows("ctrv", (), alone, RECIPE, LoopConfig(moments=6), ())
