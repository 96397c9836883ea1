"""Cross-validation: files of scene names as splits, marks of models tested on their training scenes, and pooled folds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes

from iidrive.analysis.compare.compare import compare
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError
from iidrive.data.scene_lists import folds
from iidrive.data.town.source import Town
from iidrive.scoring.sampled import Sampled, pieces_of, pooled, read_runs
from iidrive.training import checkpoint

SCENES = ("scene-0061", "scene-0103", "scene-0553", "scene-0916")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a nuScenes with four scenes; commands run beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return ["--data", "nuscenes", "--root", str(tiny_nuscenes.make(tmp_path / "nuscenes", SCENES, keyframes=10))]


def test_every_scene_is_tested_on_once_and_never_trained_on_there() -> None:
    made = folds("abcdefg", 3)
    assert [test for _, test in made] == [("a", "d", "g"), ("b", "e"), ("c", "f")]
    assert [train for train, _ in made] == [("b", "c", "e", "f"), ("a", "c", "d", "f", "g"), ("a", "b", "d", "e", "g")]
    for count in (1, 8):
        with pytest.raises(ConfigError, match=f"7 scenes make 2 to 7 folds; {count} were asked for"):
            folds("abcdefg", count)


def test_the_command_writes_files_that_are_splits(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["folds", *data, "--split", "all", "--count", "2"])
    assert capsys.readouterr().out.startswith("4 scenes of nuscenes all in 2 folds: folds/K-train.txt")
    assert Path("folds/0-test.txt").read_text() == "scene-0061\nscene-0553\n"
    assert Path("folds/0-train.txt").read_text() == "scene-0103\nscene-0916\n"
    main(["score", *data, "--split", "folds/1-test.txt"])
    assert "20 samples of nuscenes folds/1-test.txt, 8 with a full future" in capsys.readouterr().out


def test_towns_take_a_file_of_scenes(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("town-val-00001\ntown-train-00000\n")
    assert Town().scene_names(str(path)) == ("town-val-00001", "town-train-00000")
    path.write_text("town-val-99999\n")
    with pytest.raises(DataError, match="the town has no scene 'town-val-99999'"):
        Town().scene_names(str(path))


def test_ego_mlp_is_not_trained_on_what_it_is_tested_on(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["folds", *data, "--split", "all", "--count", "2"])

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["evaluate", *arguments, *data, "--recipe", "tiny"])
        return capsys.readouterr().err

    assert "ego-mlp would be trained on 2 of its test scenes (scene-0103, scene-0916)" in refused(
        "ego-mlp", "--split", "folds/1-test.txt", "--train-split", "folds/0-train.txt"
    )
    assert "ctrv is not trained here" in refused("ctrv", "--train-split", "folds/0-train.txt")
    main(["evaluate", "ego-mlp", *data, "--recipe", "tiny", "--split", "folds/1-test.txt", "--train-split", "folds/1-train.txt"])
    manifest = checkpoint.read("runs/evaluate-ego-mlp-1-test/ego-mlp").manifest
    assert [entry["scenes"] for entry in manifest.trained_on] == [["scene-0061", "scene-0553"]]


@pytest.mark.slow
def test_a_model_of_a_file_of_scenes_is_marked_where_they_test_it_even_when_the_file_is_gone(
    data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["folds", *data, "--split", "all", "--count", "2"])
    main(["train", "tokenizer", *data, "--recipe", "tiny", "--split", "folds/0-train.txt", "--run", "t"])
    for path in Path("folds").glob("0-*"):
        path.unlink()
    capsys.readouterr()
    main(["evaluate", "t", *data, "--split", "folds/1-test.txt"])  # fold 1 tests on what trained it
    assert "TRAINED ON THESE SCENES: tokenizer" in capsys.readouterr().out
    main(["evaluate", "t", *data, "--split", "folds/1-train.txt"])
    assert "TRAINED ON THESE SCENES" not in capsys.readouterr().out


def run(name: str, token: str, l2: float, scene: str = "", **about: object) -> Sampled:
    """A run whose L2 is the same for each of its samples, which are the letters of `token`."""
    n = len(token)
    nothing = np.zeros((n, 6), bool)
    return Sampled(name, tuple(token), np.full((n, 6), l2), nothing, nothing, (scene,) * n if scene else None, about)


def test_folds_are_pooled_sample_by_sample() -> None:
    made = pooled([run("one", "ab", 1.0, "s", seed=1, fold=0), run("two", "c", 2.0, "t", seed=1, fold=1)])
    assert made.token == ("a", "b", "c")
    assert made.L2[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert made.scene == ("s", "s", "t")
    assert made.about == {"seed": 1}
    assert made.name == "one+two"
    assert pooled([run("one", "ab", 1.0, "s"), run("two", "c", 2.0)]).scene is None
    with pytest.raises(DataError, match=r"one and two both score 1 sample.* folds must not share samples"):
        pooled([run("one", "ab", 1.0), run("two", "bc", 2.0)])
    other = pooled([run("three", "cb", 3.0, "t"), run("four", "a", 3.0, "s")])  # other folds of the same scenes, in another order
    assert compare([made], [other]).n == 3


def test_sides_of_folds_on_the_command_line(tmp_path: Path) -> None:
    assert pieces_of("a+b") == ["a", "b"]
    assert pieces_of("+runs/a-*") == ["runs/a-*"]
    assert pieces_of("a") == ["a"]
    (tmp_path / "c++").mkdir()
    assert pieces_of(str(tmp_path / "c++")) == [str(tmp_path / "c++")]
    with pytest.raises(ConfigError, match="'nowhere-1' does not exist"):
        read_runs("nowhere-1+nowhere-2", None)


def test_compare_pools_the_folds_of_both_sides(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["folds", *data, "--split", "all", "--count", "2"])
    for planner in ("still", "ctrv"):
        for k in range(2):
            main(["evaluate", planner, *data, "--split", f"folds/{k}-test.txt", "--run", f"{planner}-{k}", "--json", f"{planner}-{k}.json"])
    capsys.readouterr()
    main(["compare", "ctrv-0+ctrv-1", "+still-?"])
    shown = capsys.readouterr().out
    assert "16 samples" in shown
    assert "4 scenes" in shown
    assert json.loads(Path("ctrv-0.json").read_text())
