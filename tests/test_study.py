"""The study: arms differ as described, results are paired by scene and corrected, and the command resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from iidrive.analysis.study import study
from iidrive.analysis.study.arms import ARMS, CHOSEN_IN, NONE, recipe_of
from iidrive.analysis.study.open_loop import kept_as
from iidrive.analysis.study.results import Setting, answer_lines, rank_correlations
from iidrive.analysis.study.study import StudyConfig
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError
from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.testset import TestSet
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint

SCENES = tuple(f"scene-{k}" for k in range(12))


def setting(shared: np.ndarray, none: np.ndarray, metric: str = "EPDMS", name: str = "closed") -> Setting:
    values = {NONE: {metric: none}, "shared": {metric: shared}, "oracle": {metric: none}}
    kinds = {"manoeuvre": ("left",) * 12, "conflict": ("a",) * 6 + ("b",) * 6}
    return Setting(name, SCENES, kinds, values, {"still": {metric: none[0]}})


def test_arms_differ_as_described() -> None:
    assert {arm.key for arm in ARMS} == {*("none", "held", "loss only", "shared", "per candidate", "shuffled", "oracle", "regressor")}
    recipe = recipes.demo()
    assert recipe_of(recipe, "regressor", 0).planner.accelerations == ()
    assert recipe_of(recipe, "held", 0) == replace(recipe, planner=replace(recipe.planner, held=True))
    assert recipe_of(recipe, "reacting", 0) == replace(recipe, planner=replace(recipe.planner, per_candidate=True))
    assert recipe_of(recipe, "ii", 3, 0.5).train_planner.seed == 3
    assert recipe_of(recipe, "ii", 3, 0.5).train_planner.learning_rate == recipe.train_planner.learning_rate / 2
    assert recipe_of(recipe, "present", 0) == recipe
    assert {CHOSEN_IN[arm.weights] for arm in ARMS} <= {arm.key for arm in ARMS}


def test_differences_average_seeds_and_pair_scenes() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(12)
    none = np.stack([hard, hard])
    better = setting(np.stack([hard + 0.3, hard + 0.1]), none)
    test, p = better.differences("EPDMS")["shared against none"]
    assert test.difference == pytest.approx(0.2)
    assert p == pytest.approx(2 * 2 / 2**12)  # two arms are compared, so that the smaller p counts twice
    assert better.differences("EPDMS")["oracle against none"][1] == 1
    said = better.sentences()
    assert said[0].endswith(": better.")
    assert said[1].endswith("no difference that these scenes can show.")
    fewer = setting(np.zeros((2, 12)), np.ones((2, 12)), "at_fault")
    assert fewer.sentences()[0].endswith(": better.")
    worse = setting(np.ones((2, 12)), np.zeros((2, 12)), "at_fault")
    assert worse.sentences()[0].endswith(": worse.")


def test_the_future_is_compared_with_the_scene_that_stands_still() -> None:
    rng = np.random.default_rng(0)
    none, gain = rng.random((2, 12)), rng.random(12)
    values = {NONE: {"EPDMS": none}, "held": {"EPDMS": none + 0.1}, "shared": {"EPDMS": none + 0.1 + gain}}
    found = Setting("closed", SCENES, {}, values, {}).differences("EPDMS")
    assert list(found) == ["held against none", "shared against none", "shared against held"]
    assert found["shared against held"][0].difference == pytest.approx(gain.mean())
    both = [Setting(name, SCENES, {}, values, {}) for name in ("closed", "hard")]
    questions = ["Does planning by an imagined future help?", "Is it the future that helps, and not the longer history?"]
    assert [*both[0].answers()] == questions
    assert all(answer.startswith("closed: EPDMS") and answer.endswith(": better.") for answer in both[0].answers().values())
    _, *lines = answer_lines(both)
    assert [line[:2] for line in lines] == [[question, name] for question in questions for name in ("closed", "hard")]
    assert {line[2] for line in lines} == {"better"}
    assert [line[0] for line in both[0].difference_lines("EPDMS")[1:]] == [*found]
    same = setting(none, none).difference_lines("EPDMS")[1:]
    assert {line[1] for line in same} == {"none shown"}
    per = Setting("closed", SCENES, {}, {**values, "per candidate": values["held"]}, {}).comparisons
    assert per["per candidate against shared"] == ("per candidate", "shared")
    without = Setting("closed", SCENES, {}, {arm: values[arm] for arm in (NONE, "shared")}, {})
    assert list(without.differences("EPDMS")) == ["shared against none"]


def test_results_by_kind_of_scene() -> None:
    none = np.zeros((1, 12))
    found = setting(np.repeat([[1.0, 0.5]], 6, axis=1).reshape(1, 12), none)
    assert list(found.kind_tables()) == ["closed, by conflict: EPDMS, points"], "all have the same manoeuvre"
    lines = found.by_kind("conflict", "EPDMS")
    assert lines[0] == ["EPDMS, points", "a (6)", "b (6)"]
    values = found.mean("shared", "EPDMS")
    assert lines[2] == ["shared", f"{100 * values[:6].mean():.3g}", f"{100 * values[6:].mean():.3g}"]
    assert "still" in found.table()
    plain = found.to_json()
    assert set(plain["arms"]) == {NONE, "shared", "oracle"}
    by_scene = plain["by_scene"]
    assert np.mean(by_scene["arms"]["shared"]["EPDMS"]) == plain["arms"]["shared"]["EPDMS"]["mean"]
    assert by_scene["scene"] == list(SCENES)
    assert [*by_scene["conflict"]] == ["a"] * 6 + ["b"] * 6
    assert by_scene["others"]["still"]["EPDMS"] == none[0].tolist()


@pytest.mark.slow
def test_rank_correlation_of_open_and_closed_loop() -> None:
    """A positive rank correlation of L2 and EPDMS means that open loop ranks the planners in the wrong order."""
    quality = np.array([0.1, 0.5, 0.9])
    closed = {name: {"EPDMS": np.full((1, 12), q) + 0.01 * np.arange(12)} for name, q in zip(("none", "b", "c"), quality, strict=True)}
    opened = {name: {"L2": np.full((1, 12), q)} for name, q in zip(("none", "b", "c"), quality, strict=True)}
    found = rank_correlations(Setting("open", SCENES, {}, opened, {}), Setting("closed", SCENES, {}, closed, {}))
    assert [(one.metric, one.rho, one.planners) for one in found] == [("L2", pytest.approx(1.0), 3)]
    two = {name: opened[name] for name in ("none", "b")}
    assert rank_correlations(Setting("open", SCENES, {}, two, {}), Setting("closed", SCENES, {}, closed, {})) == []
    hard = 10 * np.arange(12)  # some scenes are much harder, in both tests
    both = {name: {"EPDMS": np.array([hard + q])} for name, q in zip(("none", "b", "c"), quality, strict=True)}
    same = rank_correlations(Setting("open", SCENES, {}, both, {}), Setting("closed", SCENES, {}, both, {}))[0]
    assert (same.low, same.high) == (1, 1), "the same scenes are drawn for both"


def test_invalid_studies_are_refused() -> None:
    for wrong in (
        {"seeds": 0},
        {"tries": 0},
        {"tries": 4},
        {"scenes": -1},
        {"first": -1},
        {"tests": ()},
        {"arms": ("shared",)},
        {"arms": ("none",)},
    ):
        with pytest.raises(ConfigError, match="a study needs"):
            StudyConfig(**wrong)
    few = StudyConfig(arms=("oracle", "none"))
    assert [arm.key for arm in few.done] == ["none", "oracle"]
    assert few.weights == ("present", "ii")


def test_a_study_of_scenes_that_nobody_has_looked_at(tmp_path: Path) -> None:
    town = Town(replace(recipes.tiny().town, hard_scenes=8, keyframes=9))
    everyone = town.scene_names("hard")
    assert StudyConfig(scenes=3, first=4).names(town, "hard") == everyone[4:7]
    assert StudyConfig(scenes=0, first=4).names(town, "hard") == everyone[4:]
    with pytest.raises(ConfigError, match="first scene is number 8, and hard has 8"):
        StudyConfig(first=8).names(town, "hard")

    def kept(names: tuple[str, ...], name: str = "none", fingerprint: str = "a", **other: int) -> Path:
        on = TestSet(Town(replace(town.config, **other)), "hard", Run(tmp_path), names)
        return kept_as(on, name, fingerprint)

    one, two = everyone[:2], everyone[2:3]
    asked = [kept(one), kept(two), kept(one, seed=1), kept(one, "held"), kept(one, "none", "b")]
    assert len(set(asked)) == len(asked), "results of other scenes, towns or planners are never read"
    assert kept(one, hard_scenes=9) == kept(one) == asked[0], "these scenes are the same in a larger split"


def test_the_learning_rate_is_that_of_the_cheapest_planner_on_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the rate has a larger L2 but fewer collision events. Which tries there are is decided by their number."""
    events = {1.0: 3, 0.5: 1, 2.0: 0}
    asked = []

    def trained(recipe: object, town: object, base: object, run: Run, weights: str, seed: int, rate: float) -> float:
        asked.append((weights, seed, rate))
        return rate

    monkeypatch.setattr(study, "trained", trained)
    monkeypatch.setattr(study, "load_agent", lambda rate: SimpleNamespace(rate=rate, manifest=SimpleNamespace(fingerprint=f"{rate}")))
    monkeypatch.setattr(study, "TestSet", lambda town, split, run: SimpleNamespace(run=run, cases=SimpleNamespace(token=range(100))))
    monkeypatch.setattr(study, "kept_as", lambda on, name, fingerprint: tmp_path / f"{name}-{fingerprint}.json")
    monkeypatch.setattr(study, "_plan", lambda loaded, arm, on: loaded)
    monkeypatch.setattr(study, "_clips", lambda loaded, on: None)

    def open_loop(loaded: SimpleNamespace, clips: None, on: object, kept: Path) -> dict[str, np.ndarray]:
        assert kept.name == f"shared-{loaded.rate}.json", "results are kept by planner"
        return {"L2": np.full(4, 0.7 if loaded.rate == 1 else 0.8), "events": np.array([events[loaded.rate], 0, 0, 0])}

    monkeypatch.setattr(study, "open_loop", open_loop)
    recipe, nothing = recipes.tiny(), SimpleNamespace()
    for tries, best in ((1, 1.0), (2, 0.5), (3, 2.0)):
        asked.clear()
        assert study.tuned(recipe, nothing, nothing, Run(tmp_path), "ii", tries) == best  # pyright: ignore[reportArgumentType]
        assert asked == [("ii", 0, rate) for rate in study.RATES[:tries]] * (tries > 1)


@pytest.mark.slow
def test_the_command_runs_every_arm_and_resumes(tmp_path: Path) -> None:
    options = [
        "--recipe",
        "tiny",
        "--seeds",
        "1",
        "--scenes",
        "2",
        "--tries",
        "1",
        "--out",
        str(tmp_path),
        "--json",
        str(tmp_path / "s.json"),
    ]
    town = [f"--recipe.town.{k}={v}" for k, v in {"train_scenes": 2, "val_scenes": 1, "test_scenes": 2, "keyframes": 9}.items()]
    arms = ["none", "shared", "per candidate", "shuffled", "oracle", "regressor"]
    options += ["--tests", '["open", "closed"]', "--arms", json.dumps(arms)]
    main(["study", "ii", *options, *town])
    found = json.loads((tmp_path / "s.json").read_text())
    assert list(found["settings"]) == ["open loop, test", "closed loop, test"]
    for setting_ in found["settings"].values():
        assert set(setting_["arms"]) == set(arms)
        assert setting_["scenes"] == 2
        assert "ego-mlp" in setting_["others"]
    assert all("town's driver" in setting_["others"] for setting_ in found["settings"].values())
    expert = found["settings"]["open loop, test"]["others"]["town's driver"]
    assert (expert["L2"], expert["EPDMS"] > 0) == (0, True)
    closed = found["settings"]["closed loop, test"]
    assert list(closed["drives"]) == [*arms, "town's driver", "still", "constant-velocity", "ctrv", "ego-mlp"]
    assert closed["drives"]["none"]["at_fault_collisions"] == 2 * closed["arms"]["none"]["at_fault"]["mean"]
    assert {one["metric"] for one in found["misleads"]} == {"events", "L2", "EPDMS"}
    page = (tmp_path / "index.html").read_text()
    assert "Does a world model help the planner?" in page
    assert "closed loop, test: parts of EPDMS" in page
    assert "closed loop, test: events per kilometre" in page
    assert {folder.name for folder in (tmp_path / "planners").iterdir()} == {
        *("present-0-x1", "ii-0-x1", "reacting-0-x1", "regressor-0-x1")
    }
    own = checkpoint.read_manifest(tmp_path / "planners/reacting-0-x1")
    assert own.parent("world").fingerprint == checkpoint.read_manifest(tmp_path / "reactions").fingerprint
    assert own.parent("world").fingerprint != checkpoint.read_manifest(tmp_path / "world").fingerprint
    drives = sorted(tmp_path.glob("closed-*/rollouts/*/*.npz"))
    before = {path: path.stat().st_mtime_ns for path in drives}
    main(["study", "ii", *options, *town])
    assert json.loads((tmp_path / "s.json").read_text()) == found
    assert {path: path.stat().st_mtime_ns for path in drives} == before

    alone = leaves(tmp_path / "s.json")
    for old in (*tmp_path.glob("closed-*/rollouts"), *tmp_path.glob("open-*")):
        shutil.rmtree(old)
    done = subprocess.run(
        [sys.executable, "-m", "iidrive", "study", "ii", *options, *town, "--devices", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Does planning by an imagined future help?") == 2, "one process prints, for each test"
    together = leaves(tmp_path / "s.json")  # with an ego-mlp that was trained again: its weights differ by rounding
    assert together.keys() == alone.keys()
    assert {k: v for k, v in together.items() if "ego-mlp" not in k} == {k: v for k, v in alone.items() if "ego-mlp" not in k}
    shared = [
        {k: round(v, 9) if isinstance(v, float) else v for k, v in one.items() if "/drives/ego-mlp/" not in k} for one in (together, alone)
    ]
    assert shared[0] == shared[1]
    assert together == pytest.approx(alone, abs=1e-4), "two processes drive and score the same planners alike"


def leaves(path: Path) -> dict[str, object]:
    """A JSON file's values, by where they are."""
    found: dict[str, object] = {}

    def walk(where: str, value: object) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, one in inner:
            walk(f"{where}/{key}", one)
        if not isinstance(value, dict | list):
            found[where] = value

    walk("", json.loads(path.read_text()))
    return found
