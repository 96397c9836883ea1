"""Inputs from users: results files of other code bases, damaged files, and nuScenes folders with the usual differences."""

from __future__ import annotations

import collections
import json
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nuscenes
import torch
from make_cases import along, make_cases, random_cases

from iidrive.cli.main import main
from iidrive.core.classes import FREE
from iidrive.core.errors import ConfigError, DataError
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.scoring.accumulate import PlanningScore
from iidrive.scoring.cases import write_cases
from iidrive.scoring.occupancy import OccupancyScore
from iidrive.scoring.predictions import Predictions, write_predictions
from iidrive.scoring.protocols import PROTOCOLS
from iidrive.scoring.readers import is_paths, read_paths
from iidrive.scoring.score import score, to_json
from iidrive.scoring.tables import format_scores

N = 5
PATH = (np.arange(1, 7)[None, :, None] * np.array([0.25, 2.0]) * np.arange(1, N + 1)[:, None, None]).astype(np.float32)
TOKENS = [f"t{i}" for i in range(N)]
OFFSETS = np.diff(PATH, axis=1, prepend=0)
TURN = np.arctan2(OFFSETS[..., 1:], OFFSETS[..., :1])
COMMAND = torch.tensor([[[[0.0, 1.0, 0.0]]]])


def vad(i: int) -> torch.Tensor:
    return torch.tensor(np.stack([OFFSETS[i] * 0.5, OFFSETS[i], OFFSETS[i] * 2]))


def text(path: np.ndarray) -> str:
    return "Thoughts: (1, 2) ahead\nTrajectory:\n[" + ", ".join(f"({x:.2f},{y:.2f})" for x, y in path) + "]"


FORMS: dict[str, tuple[object, str]] = {
    "AD-MLP": ({t: p[None] for t, p in zip(TOKENS, PATH, strict=True)}, "a table by sample token"),
    "AD-MLP with heading": ({t: np.concatenate([p, p[:, :1]], 1)[None] for t, p in zip(TOKENS, PATH, strict=True)}, "heading) left out"),
    "headings": ({t: np.concatenate([p, a], 1) for t, p, a in zip(TOKENS, PATH, TURN, strict=True)}, "heading) left out"),
    "zero headings": ({t: np.concatenate([p, 0 * a], 1) for t, p, a in zip(TOKENS, PATH, TURN, strict=True)}, "heading) left out"),
    "UniAD": (
        {"bbox_results": [{"token": t, "planning_traj": torch.tensor(p)[None]} for t, p in zip(TOKENS, PATH, strict=True)], "occ": {}},
        "UniAD's results",
    ),
    "UniAD's rows": ([{"token": t, "planning_traj": p[None], "planning_traj_gt": p} for t, p in zip(TOKENS, PATH, strict=True)], "UniAD"),
    "VAD": ({"meta": {}, "results": {}, "plan_results": {t: [vad(i), COMMAND] for i, t in enumerate(TOKENS)}}, "VAD's results"),
    "submission": ({"meta": {}, "results": dict(zip(TOKENS, PATH.tolist(), strict=True))}, "a nuScenes submission"),
    "defaultdict": (collections.defaultdict(list, zip(TOKENS, PATH, strict=True)), "a table"),
    "ordered": (collections.OrderedDict(zip(TOKENS, PATH, strict=True)), "a table"),
    "seven": ({t: np.concatenate([[[0, 0]], p]) for t, p in zip(TOKENS, PATH, strict=True)}, "the point at t = 0 left out"),
    "half": ({t: torch.tensor(p).half() for t, p in zip(TOKENS, PATH, strict=True)}, "a table"),
    "nested": ({t: {"plan": p, "cmd": 2} for t, p in zip(TOKENS, PATH, strict=True)}, "a table"),
    "other key": ([{"token": t, "pred_traj": p} for t, p in zip(TOKENS, PATH, strict=True)], "rows with a token each"),
    "sample_token": ([{"sample_token": t, "trajectory": p} for t, p in zip(TOKENS, PATH, strict=True)], "rows with a sample token each"),
    "answers": ({t: text(p) for t, p in zip(TOKENS, PATH, strict=True)}, "answers in text"),
    "VAD, other mappings and batch axis": (
        collections.defaultdict(
            dict,
            plan_results=collections.OrderedDict((t, (vad(i).numpy()[None], COMMAND[0, 0].numpy())) for i, t in enumerate(TOKENS)),
            meta={},
        ),
        "VAD's results",
    ),
    "UniAD, as its model returns it": (
        {"bbox_results": [{"token": t, "planning": {"result_planning": {"sdc_traj": p[None]}}} for t, p in zip(TOKENS, PATH, strict=True)]},
        "UniAD's results",
    ),
    "SparseDrive with tokens": (
        [{"img_bbox": {"final_planning": torch.tensor(p)}, "token": t} for t, p in zip(TOKENS, PATH, strict=True)],
        "rows with a token each",
    ),
    "an axis of length 1 within": ({t: p[:, None] for t, p in zip(TOKENS, PATH, strict=True)}, "a table"),
    "points with names": (
        {t: [{"x": float(x), "y": float(y), "v": 1.0} for x, y in p] for t, p in zip(TOKENS, PATH, strict=True)},
        "a table",
    ),
    "a name around it": ({"predictions": {t: p.tolist() for t, p in zip(TOKENS, PATH, strict=True)}}, "a table"),
    "the truth beside it": (
        [{"token": t, "traj_gt": p * 0, "pred": p} for t, p in zip(TOKENS, PATH, strict=True)],
        "rows with a token each",
    ),
    "columns": ({"token": TOKENS, "trajectory": PATH.tolist()}, "columns of tokens and paths"),
    "columns of arrays": (
        {"sample_tokens": np.array(TOKENS), "trajs": PATH, "gt_trajs": PATH * 0, "note": "x"},
        "columns of tokens and paths",
    ),
    "a DataFrame's JSON": (
        {"token": {str(i): t for i, t in enumerate(TOKENS)}, "path": {str(i): p.tolist() for i, p in enumerate(PATH)}},
        "columns of tokens and paths",
    ),
    "answers in rows": ([{"token": t, "GPT": text(p)} for t, p in zip(TOKENS, PATH, strict=True)], "rows with a token"),
}


@pytest.mark.parametrize("form", FORMS)
def test_results_in_formats_of_other_code_bases(form: str, tmp_path: Path) -> None:
    value, said = FORMS[form]
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(value))
    found = read_paths(tmp_path / "r.pkl")
    assert found.predictions.token == tuple(TOKENS)
    np.testing.assert_allclose(found.predictions.trajectory, PATH, rtol=1e-5)
    assert said in found.form
    assert found.form in found.assumed


def test_rows_of_vad_have_no_tokens(tmp_path: Path) -> None:
    rows = [{"pts_bbox": {"ego_fut_preds": vad(i), "ego_fut_cmd": COMMAND}, "metric_results": {}} for i in range(N)]
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(rows))
    found = read_paths(tmp_path / "r.pkl").predictions
    assert found.token is None
    np.testing.assert_allclose(found.trajectory, PATH, rtol=1e-6)


def test_lines_and_torch_files(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"token": t, "trajectory": p.tolist()}) for t, p in zip(TOKENS, PATH, strict=True))
    (tmp_path / "a.jsonl").write_text(lines + "\n")
    torch.save({t: torch.tensor(p) for t, p in zip(TOKENS, PATH, strict=True)}, tmp_path / "b.pth")
    for name in ("a.jsonl", "b.pth"):
        np.testing.assert_array_equal(read_paths(tmp_path / name).predictions.trajectory, PATH)
        assert is_paths(tmp_path / name)
    (tmp_path / "log.json").write_text('{"mode": "train", "loss": 1}\n{"mode": "train", "loss": 2}\n')
    assert not is_paths(tmp_path / "log.json")
    (tmp_path / "a.jsonl").write_text(lines + "\n{")
    with pytest.raises(DataError, match="line 6"):
        read_paths(tmp_path / "a.jsonl")


ARRAYS: dict[str, tuple[Any, bool]] = {
    "npy with a second axis of length 1": (PATH[:, None], False),
    "npy with a first axis of length 1": (PATH[None], False),
    "npy with headings": (np.concatenate([PATH, TURN], -1), False),
    "npz of one array": ({"arr_0": PATH}, False),
    "npz of paths and tokens": ({"preds": PATH, "tokens": np.array(TOKENS)}, True),
    "npz by token": (dict(zip(TOKENS, PATH, strict=True)), True),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_as_others_write_them(name: str, tmp_path: Path) -> None:
    value, named = ARRAYS[name]
    path = tmp_path / f"r.{name[:3]}"
    if isinstance(value, dict):
        np.savez(path, **value)
    else:
        np.save(path, value)
    found = read_paths(path).predictions
    assert found.token == (tuple(TOKENS) if named else None)
    np.testing.assert_array_equal(found.trajectory, PATH)


REFUSED: dict[str, tuple[Any, str]] = {
    "only the truth": (
        {t: {"gt_trajectory": p} for t, p in zip(TOKENS, PATH, strict=True)},
        "has only the true path, 'gt_trajectory', and no plan",
    ),
    "turned": ({t: p.T for t, p in zip(TOKENS, PATH, strict=True)}, r"found \(2, 6\)\. Turn it, so that a row is a point"),
    "in one row": ({t: p.ravel() for t, p in zip(TOKENS, PATH, strict=True)}, r"found \(12,\)\. Reshape it to \(6, 2\)"),
    "as text": (
        {t: [[str(x), str(y)] for x, y in p] for t, p in zip(TOKENS, PATH, strict=True)},
        "must be numbers .* found the text '0.25'",
    ),
    "all bad ones counted": (
        {**dict(zip(TOKENS, PATH, strict=True)), "t1": PATH[1][:5], "t3": PATH[3][:4]},
        r"sample t1 must have shape \(6, 2\).*found \(5, 2\).*2 of 5 paths are bad: sample t1, sample t3",
    ),
    "columns that differ": ({"token": TOKENS[:3], "trajectory": PATH}, r"found 3 tokens and, beside them, 'trajectory' \(5\)"),
    "two columns of paths": ({"token": TOKENS, "a": PATH, "b": PATH}, r"several columns that may be the paths, 'a', 'b'"),
    "eight steps": ({t: np.zeros((8, 2)) for t in TOKENS}, r"found \(8, 2\).*If the points are 0.5 s apart, write the first 6"),
    "seven without the present": ({t: np.ones((7, 2)) for t in TOKENS}, r"its first point is not the ego at t = 0"),
    "any third column": ({t: np.concatenate([p, p * 100], 1)[:, :3] for t, p in zip(TOKENS, PATH, strict=True)}, "is not the heading"),
    "shapes that differ": ({"a": PATH[0], "b": np.zeros((7, 2))}, r"the path of sample b has \(7, 2\), the first one \(6, 2\)"),
    "three paths": ({t: np.zeros((3, 6, 2)) for t in TOKENS}, "write one of them"),
    "two that may be it": ({t: {"plan": p, "other": p} for t, p in zip(TOKENS, PATH, strict=True)}, "'plan', 'other'"),
    "two forms": ({"bbox_results": [], "plan_results": {}}, "it may be VAD's results .* or UniAD's results"),
    "no command": ({"plan_results": {"a": [vad(0), COMMAND * 0]}}, "must be one-hot of length 3"),
    "not all commands": ({"plan_results": {"a": [vad(0)[0], COMMAND]}}, "one path per command"),
    "booleans": ({"a": PATH[0] > 0}, "found booleans"),
    "one boolean": ({"a": [[True, 0.5], *PATH[0][1:].tolist()]}, "found booleans"),
    "kilometres": ({"a": PATH[0] * 1e30}, "farther than 100 km"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_results_that_are_refused(name: str, tmp_path: Path) -> None:
    value, message = REFUSED[name]
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=message) as error:
        read_paths(tmp_path / "r.pkl")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "told"), [("c8", "complex64"), ([("token", "U4"), ("path", "f4", (6, 2))], r"\[\('token'")])
def test_arrays_of_other_kinds_are_named(kind: Any, told: str, tmp_path: Path) -> None:
    np.save(tmp_path / "r.npy", np.zeros((N, 6), kind))
    with pytest.raises(DataError, match=rf"r\.npy: the array must be numbers of shape \(6, 2\); found {told}"):
        read_paths(tmp_path / "r.npy")


# ------------------------------------------------------------------------------------------------------------------- cases

CAR = (0.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lidar_pose": np.full((2, 7, 3), np.nan)}, "lidar_pose of sample sample0 holds NaN"),
        ({"ego_pose": np.full((2, 7, 3), 1e300)}, "ego_pose of sample sample0 holds NaN, infinity or more than 100000 m"),
        ({"box_agent": np.array([0, -1])}, "box_agent must be 0"),
        ({"box_agent": np.array([0, 1 << 40])}, "box_agent must be 0"),
        ({"box_agent": np.array([3, 3])}, "box_agent 3 appears twice at step 1 of sample sample0"),
        ({"box": np.array([CAR, (1e300, *CAR[1:])])}, "farther away than 100000 m or is larger than 1000 m: row 1"),
        ({"gt_ego_fut_offsets": np.full((2, 6, 2), 1e38)}, "moves more than 100000 m in step 1"),
        ({"box": np.ones((2, 7), bool)}, "box must hold numbers; found bool"),
    ],
)
def test_damaged_truth_is_refused(change: dict[str, Any], message: str) -> None:
    cases = make_cases([along((0.0, 1.0))] * 2, [(0, 1, CAR), (0, 1, CAR)])
    with pytest.raises(DataError, match=message):
        replace(cases, **change)


# ----------------------------------------------------------------------------------------------------------------- absence


def test_without_boxes_collision_rates_are_not_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = make_cases([along((0.0, 1.0))] * 2)
    for protocol in ("sparsedrive", "uniad", "vad"):
        found = score(cases, cases.true_path(), protocol)
        plain = to_json(found)[protocol]
        assert isinstance(plain, dict)
        assert plain["average"] == {"obj_col": None, "obj_box_col": None, "L2": 0.0}
        assert plain["events"] == {"obj_col": None, "obj_box_col": None}
        printed = format_scores(found)
        assert "Collisions cannot be scored" in printed
        assert "0.000%" not in printed
        assert "nan" not in printed
    write_cases(tmp_path / "c.npz", cases)
    main(["score", str(tmp_path / "c.npz"), "--protocol", "sparsedrive,uniad", "--json", str(tmp_path / "s.json")])
    assert "0.000" not in capsys.readouterr().out.replace("0.0000", "")
    assert json.loads((tmp_path / "s.json").read_text())["uniad"]["columns"]["obj_col"] == [None] * 6
    collected = PlanningScore("sparsedrive")
    collected.update(cases, cases.true_path())
    assert not collected.compute()["sparsedrive"].events


def test_without_a_true_future_nothing_is_zero() -> None:
    cases = make_cases([along((0.0, 1.0))] * 2, [(0, 1, CAR)])
    none = replace(cases, gt_ego_fut_masks=np.zeros((2, 6), bool))
    for protocol in ("sparsedrive", "uniad", "vad", "occworld"):
        with pytest.raises(DataError, match="nothing to score"):
            score(none, cases.true_path(), protocol)
    short = replace(cases, gt_ego_fut_masks=np.arange(6) < np.array([[4], [3]]))
    with pytest.raises(DataError, match=r"no sample has a future keyframe at 2\.5 s"):
        score(short, cases.true_path(), "uniad")
    one = replace(cases, gt_ego_fut_masks=np.arange(6) < np.array([[4], [6]]))
    assert score(one, cases.true_path() + np.float32(1), "uniad").per_step["L2"][5] > 0
    collected = PlanningScore("uniad")
    collected.update(short, cases.true_path())
    with pytest.raises(DataError, match=r"2\.5 s"):
        collected.compute()


def test_poses_beyond_the_true_path_may_hold_anything() -> None:
    cases, path = random_cases(3, 8, 3)
    pose = np.concatenate([np.zeros((8, 1, 3)), np.concatenate([path, np.zeros((8, 6, 1))], 2)], 1)
    row, step = np.argwhere(~cases.gt_ego_fut_masks)[-1]
    odd = pose.copy()
    odd[row, step + 1] = np.inf
    whole, damaged = (replace(cases, lidar_pose=one, ego_pose=one) for one in (pose, odd))
    for protocol in PROTOCOLS:
        assert to_json(score(damaged, path, protocol)) == to_json(score(whole, path, protocol))


def test_boxes_that_a_protocol_ignores_are_not_obstacles() -> None:
    cases = make_cases([along((0.0, 1.0))], [(0, 1, CAR), (0, 2, CAR)])
    unseen = replace(cases, box_valid=np.zeros(2, bool))
    assert "obj_col" not in score(unseen, unseen.true_path(), "sparsedrive").events
    assert "obj_col" in score(unseen, unseen.true_path(), "uniad").events
    people = replace(cases, box_label=np.ones(2, np.int8))
    assert "obj_col" in score(people, people.true_path(), "sparsedrive").events
    assert "obj_col" not in score(people, people.true_path(), "uniad").events


def test_an_all_free_grid_is_not_a_perfect_forecast() -> None:
    free = np.full((1, 7, 4, 4, 2), FREE, np.uint8)
    found = OccupancyScore()
    found.update(free, free)
    scores = found.compute()
    assert all(np.isnan(v) for v in scores["occworld"]["mIoU"])  # pyright: ignore[reportIndexIssue]
    assert all(np.isnan(v) for v in scores["iiworld"]["mIoU"])  # pyright: ignore[reportIndexIssue]


# ---------------------------------------------------------------------------------------------------------------- nuScenes


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_nuscenes.make(tmp_path / "nuscenes")


def opened(root: Path, **options: Any) -> NuScenes:
    return NuScenes(NuScenesConfig(str(root), cache=str(root.parent / "cache"), **options))


def test_unused_categories_and_unknown_records_are_not_errors(tiny: Path) -> None:
    before = opened(tiny).scene("scene-0103").keyframes[0].boxes
    more = [{"token": f"x{i}", "name": name, "index": i} for i, name in enumerate(("noise", "flat.sidewalk", ["a", "list"]))]
    tiny_nuscenes.edit(tiny, "category", lambda r: r.extend(more))
    tiny_nuscenes.edit(tiny, "instance", lambda r: r.append({"token": "nobody", "category_token": "gone"}))
    (tiny / "v1.0-mini" / "lidarseg.json").write_text("[]")
    np.testing.assert_array_equal(opened(tiny).scene("scene-0103").keyframes[0].boxes.label, before.label)
    tiny_nuscenes.edit(tiny, "category", lambda r: r[0].update(name=["a", "list"]))
    with pytest.raises(DataError, match=r"category\.json.*expected a string"):
        opened(tiny)


@pytest.mark.parametrize("name", ["", "..", "../elsewhere", "a\\b"])
def test_a_scene_name_that_is_no_folder_is_refused(tiny: Path, name: str) -> None:
    tiny_nuscenes.edit(tiny, "scene", lambda r: r[0].update(name=name))
    with pytest.raises(DataError, match=r"scene\.json: record scene-0103-token has name .*expected the name of a folder"):
        opened(tiny)


def test_a_scene_name_with_control_characters_is_refused(tiny: Path) -> None:
    tiny_nuscenes.edit(tiny, "scene", lambda r: r[0].update(name="x\x1b[2J\n"))
    with pytest.raises(DataError, match=r"scene\.json: record .* has name x\\x1b\[2J\\n; expected a string without control characters"):
        opened(tiny)


def test_common_folder_layouts(tiny: Path, tmp_path: Path) -> None:
    (tiny / "maps" / "expansion" / "tinytown.json").rename(tiny / "maps" / "tinytown.json")
    assert opened(tiny).scene("scene-0103").map.layers
    nested = tmp_path / "nested"
    nested.mkdir()
    (nested / "v1.0-mini").symlink_to(tiny, target_is_directory=True)
    assert opened(nested).folder == nested / "v1.0-mini" / "v1.0-mini"
    assert opened(nested, version="v1.0-mini").scene("scene-0103").map.layers
    (tiny / "v1.0-mini").rename(tiny / "advanced_12Hz_trainval")
    assert opened(tiny).folder.name == opened(tiny, version="advanced_12Hz_trainval").folder.name == "advanced_12Hz_trainval"
    with pytest.raises(DataError, match=r"Expected the tables at .*nuscenes.v1\.0-mini.scene\.json"):
        opened(tiny, version="v1.0-mini")


def test_custom_splits(tiny: Path, tmp_path: Path) -> None:
    (tiny / "v1.0-mini" / "splits.json").write_text('{"mine": ["scene-0916"]}')
    (tmp_path / "list.txt").write_text("scene-0916\n\nscene-0103\n")
    (tmp_path / "list.json").write_text('["scene-0103"]')
    source = opened(tiny)
    assert source.scene_names("mine") == ("scene-0916",)
    assert source.scene_names(str(tmp_path / "list.txt")) == ("scene-0916", "scene-0103")
    assert source.scene_names(str(tmp_path / "list.json")) == ("scene-0103",)
    (tmp_path / "list.json").write_text('["scene-0103", "scene-0103"]')
    with pytest.raises(DataError, match="listed twice"):
        source.scene_names(str(tmp_path / "list.json"))


def test_official_splits_are_not_replaced(tiny: Path) -> None:
    (tiny / "v1.0-mini" / "splits.json").write_text('{"mini_val": ["scene-0103"]}')
    source = opened(tiny)
    assert source.scene_names("mini_val") == ("scene-0103", "scene-0916")
    assert any("splits.json has a mini_val of its own: the official mini_val is used" in note for note in source.missing())
    (tiny / "v1.0-mini" / "splits.json").write_text('{"mini_val": ["scene-0916", "scene-0103"]}')
    assert not any("splits.json" in note for note in opened(tiny).missing())


def test_a_list_without_a_scene_of_these_tables_shows_its_names(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0103\n0916\n")
    with pytest.raises(
        ConfigError, match=r"none of the 2 scenes of split '.*list\.txt' \(0103, 0916\); its scenes are named like scene-0103"
    ):
        opened(tiny).scene_names(str(tmp_path / "list.txt"))


def test_explicit_folders_without_a_match_are_errors(tiny: Path) -> None:
    path = tiny / "all" / "gts" / "scene-0103" / "scene-0103-sample-00" / "labels.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    for option in ("gts", "predicted"):
        with pytest.raises(DataError, match=rf"`{option}` holds no occupancy.*scene-0103-sample-00.labels\.npz.*Did you mean .*all.gts\?"):
            opened(tiny, **{option: str(tiny / "all")})
    opened(tiny, gts=str(tiny / "all" / "gts"))


def far(records: list[dict[str, Any]]) -> None:
    records[5]["translation"][0] += 1000


def shared_pose(records: list[dict[str, Any]]) -> None:
    records[5]["ego_pose_token"] = records[2]["ego_pose_token"]


def at_12_hz(records: list[dict[str, Any]]) -> None:
    for record in records:
        record["timestamp"] = record["timestamp"] // 6


DAMAGE: dict[str, tuple[str, Any, str]] = {
    "a sample lost": ("sample", lambda r: r.pop(3), r"points to next 'scene-0103-sample-03', which is not in sample\.json"),
    "a box of 1e300 m": ("sample_annotation", lambda r: r[3].update(translation=[1e300, 0, 0]), "expected numbers of at most 1e\\+07"),
    "an integer of 400 digits": ("sample_annotation", lambda r: r[3].update(translation=[10**400, 0, 0]), "expected 3 finite"),
    "one pose for two samples": ("sample_data", shared_pose, "share the ego pose"),
    "a jump of 1 km": ("ego_pose", far, "the car moves 100[0-9] m in 0.50 s"),
    "keyframes at 12 Hz": ("sample", at_12_hz, r"keyframes of scene-\d+ are 0\.083\d? s apart \(median\), where .* step of 0\.5 s"),
    "an annotation lost": (
        "sample_annotation",
        lambda r: r.pop(3),
        r"announces 8 annotations \(nbr_annotations\), and 7 are there \(1 such",
    ),
    "all annotations lost": ("sample_annotation", list.clear, r"announces 8 annotations .* and 0 are there \(4 such"),
    "an annotation twice": ("sample_annotation", lambda r: r.append(r[3]), "appears twice"),
    "an instance twice": ("sample_annotation", lambda r: r.append({**r[3], "token": "copy"}), "appears twice in sample"),
    "a pose twice": ("ego_pose", lambda r: r.append(r[5]), r"ego_pose\.json.*appears twice"),
    "a timestamp beyond int64": ("sample", lambda r: r[7].update(timestamp=10**20), "integer timestamp"),
    "a count beyond int64": ("sample_annotation", lambda r: r[3].update(num_lidar_pts=10**20), "expected an integer from 0 to"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tables_are_named(name: str, tiny: Path) -> None:
    table, change, message = DAMAGE[name]
    tiny_nuscenes.edit(tiny, table, change)
    with pytest.raises(DataError, match=message):
        opened(tiny)


def test_jitter_and_subsets_are_no_damage(tiny: Path) -> None:
    """Real keyframes are 0.40 to 0.60 s apart, a single gap is larger, and subsets keep instances that have no annotation left."""

    def jitter(records: list[dict[str, Any]]) -> None:
        for i, record in enumerate(records):
            record["timestamp"] += (-1) ** i * 40_000 + (600_000 if i % 8 == 7 else 0)

    tiny_nuscenes.edit(tiny, "sample", jitter)
    tiny_nuscenes.edit(tiny, "instance", lambda r: r.append({**r[0], "token": "elsewhere"}))
    assert len(opened(tiny).scene("scene-0103").keyframes) == 8


@pytest.mark.parametrize("rest", ["[]", "garbage", '[{"token": "a"}]'])
def test_a_table_is_one_array(rest: str, tiny: Path) -> None:
    path = tiny / "v1.0-mini" / "log.json"
    path.write_text(path.read_text() + "\n" + rest)
    with pytest.raises(DataError, match=r"log\.json: there is text after the array of 1 records"):
        opened(tiny)


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"token": ' + "9" * 5000 + "}]"])
def test_unreadable_tables_are_named(text: str, tiny: Path) -> None:
    (tiny / "v1.0-mini" / "log.json").write_text(text)
    with pytest.raises(DataError, match=r"log\.json"):
        opened(tiny)


@pytest.mark.parametrize("change", [{"segment_length": [1e12, 0, 0]}, {"start_pose": [float("nan"), 0, 0]}, {"radius": 0}])
def test_impossible_lanes_are_refused(change: dict[str, Any], tiny: Path) -> None:
    path = tiny / "maps" / "expansion" / "tinytown.json"
    whole = json.loads(path.read_text())
    whole["arcline_path_3"]["lane-0"][0].update(change)
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=r"tinytown\.json.*lane-0"):
        opened(tiny).scene("scene-0103")


# ---------------------------------------------------------------------------------------------- the inputs that were collected

READ = ("p01", "p02", "p03", "p04", "p05", "p06", "p07", "p09", "p10", "p11", "p12", "p13", "p14", "p15", "p16", "p17", "p19", "p20")
SAME = tuple(name for name in READ if name not in ("p07", "p14"))


def test_collected_results_give_one_answer(shared: Path) -> None:
    folder = shared / "fixtures" / "field" / "pred"
    files = {path.name[:3]: path for path in folder.glob("p*")}
    base = read_paths(files["p01"]).predictions
    for name in READ:
        found = read_paths(files[name]).predictions
        assert len(found) == len(base) == 69
        assert found.token == (None if name == "p06" else base.token)
        if name in SAME:
            np.testing.assert_allclose(found.trajectory, base.trajectory, atol=0.01)
    for name, message in (("p08", "2 of 68 paths are bad"), ("p18", "found \\(8, 2\\)")):
        with pytest.raises(DataError, match=message):
            read_paths(files[name])


@pytest.mark.parametrize("pattern", ["m1", "m2", "m3", "s1", "s2", "s3", "t1", "t3", "t4", "u1", "u2"])
def test_collected_damage_is_one_sentence(pattern: str, shared: Path) -> None:
    (path,) = (shared / "fixtures" / "field" / "fuzz").glob(f"{pattern}-*")
    with pytest.raises(DataError) as error:
        read_paths(path)
    assert str(error.value).isprintable()
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["m7-recipe-anchor-bomb", "s13-recipe-key-twice", "t24-recipe-latin1", "t25-recipe-town-null"])
def test_collected_recipes_are_refused_by_name(name: str, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recipes", str(shared / "fixtures" / "field" / "fuzz" / f"{name}.yaml")])
    assert stop.value.code == 2
    assert f"{name}.yaml" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.slow
def test_collected_installs_open(shared: Path, nuscenes_root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    subprocess.run(["bash", str(shared / "fixtures" / "field" / "nus" / "make.sh"), str(nuscenes_root), str(made)], check=True)
    whole = {"n01", "n02", "n03", "n04", "n20", "n21"}
    for name in sorted(whole | {"n12"}):
        source = NuScenes(NuScenesConfig(str(made / name), cache=str(tmp_path / "cache")))
        assert len(source.scene("scene-0103").keyframes) == 40
        assert source.scene("scene-0103").map.layers
        assert bool(sum(len(k.boxes) for k in source.scene("scene-0103").keyframes)) == (name in whole)
    assert NuScenes(NuScenesConfig(str(made / "n03"))).scene_names("mini_custom_val") == ("scene-0103", "scene-0916")


@pytest.mark.slow
def test_a_stage_in_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (
        (b"train_world: {batch: 0}", "r.yaml: train_world: batch must be at least 1"),
        (b"train_world: {batch: x}", "r.yaml: --recipe.train_world.batch"),
        (b"train_world: {group: ~}", "r.yaml: train_world.group: expected int, found None"),
        (b"town: ~", "r.yaml: town must hold fields"),
        (b"\xff\xfet\x00", "r.yaml: not text in UTF-8"),
        (b"- 1", "r.yaml: expected names and values"),
        (b"town: {seed: 1, seed: 2}", "'seed' is given twice"),
    ):
        (tmp_path / "r.yaml").write_bytes(content)
        with pytest.raises(SystemExit):
            main(["recipes", str(tmp_path / "r.yaml")])
        assert message in capsys.readouterr().err.replace("\n", "")


def test_scores_go_to_regular_files_only(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cases("c.npz", make_cases([along((0.0, 1.0))], [(0, 1, CAR)]))
    for option in ("--json", "--per-sample"):
        for target in (".", "/dev/null"):
            with pytest.raises(SystemExit) as stop:
                main(["score", "c.npz", option, target])
            assert stop.value.code == 2
            assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", "c.npz", "--json", "/proc/x.json"])
    assert Path("/dev/null").is_char_device()


def test_control_characters_of_files_stay_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "c.npz", make_cases([along((0.0, 1.0))], [(0, 1, CAR)]))
    path = tmp_path / "p.npz"
    np.savez(path, token=np.array(["a"]), trajectory=PATH[:1], frame=np.array("\x1b[2J\n" + "x" * 100_000), reference=np.array("lidar_top"))
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path / "c.npz"), "--predictions", str(path)])
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("command", ["score", "lineage"])
def test_control_characters_of_lineages_are_escaped(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "x\x1b[2J\ny"
    lineage = {"links": [{"kind": odd, "path": odd, "fingerprint": odd}], "marks": [odd]}
    write_cases(tmp_path / "c.npz", make_cases([along((0.0, 1.0))], [(0, 1, CAR)]))
    write_predictions(tmp_path / "p.npz", ["sample0"], PATH[:1], {"lineage": lineage})
    main(
        ["lineage", str(tmp_path / "p.npz")]
        if command == "lineage"
        else ["score", str(tmp_path / "c.npz"), "--predictions", str(tmp_path / "p.npz")]
    )
    said = capsys.readouterr().out
    assert "MISMATCH ALLOWED: x\\x1b[2J\\ny\n" in said
    assert "\x1b" not in said


def test_predictions_of_no_samples_are_refused() -> None:
    cases = make_cases([along((0.0, 1.0))], masks=[3])
    with pytest.raises(DataError, match="none of the 1 samples"):
        score(cases, Predictions(PATH[:1], ("sample0",)).trajectory)
