"""Leaks in subsets of the samples are found, and planners that are good on some samples are not."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iidrive.analysis.doctor.repair import diagnose_predictions
from iidrive.analysis.leakage.parts import Rules, known_parts, nearest_steady
from iidrive.analysis.leakage.plausible import plausible
from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.nuscenes.source import NuScenes
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import infer
from iidrive.scoring.cases import Cases, write_cases
from iidrive.scoring.predictions import Predictions, align, read_predictions

PER_SCENE = 34


def drives(rng: np.random.Generator, scenes: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Errors of a clean planner at 3 s, those of the nearest constant-motion drive, and scenes, as in towns.

    Errors of neighbouring samples are alike; some scenes are easier than others; the planner is worth 0.35 to 1 of a steady drive.
    """
    n = scenes * PER_SCENE
    number = np.repeat(np.arange(scenes), PER_SCENE)
    steady = rng.gamma(1.5, 2.0, n)
    walk = np.zeros((n, 2))
    alike = rng.uniform(0.5, 0.9)
    for k in range(n):
        fresh = rng.normal(size=2)
        walk[k] = fresh if k == 0 or number[k] != number[k - 1] else alike * walk[k - 1] + np.sqrt(1 - alike**2) * fresh
    easier = np.exp(rng.choice([0.1, 0.3]) * rng.normal(size=scenes))[number]
    error = np.linalg.norm(walk * np.array([rng.choice([0.3, 1.0]), 1.0]), axis=1) * (0.15 + rng.uniform(0.35, 1.0) * steady) * easier
    return error, steady, [f"scene-{k}" for k in number]


def leaked(rng: np.random.Generator, n: int) -> np.ndarray:
    """Errors of plans that read the true path with some noise: 0.3 m at 3 s."""
    return np.linalg.norm(rng.normal(0, 0.25, (n, 2)), axis=1)


@pytest.mark.slow
def test_clean_planners_have_no_leaking_parts() -> None:
    rng = np.random.default_rng(20)
    accused = [known_parts(*drives(rng, int(rng.integers(2, 60)))) for _ in range(400)]
    assert sum(map(bool, accused)) == 0


@pytest.mark.parametrize("scenes", [2, 10, 50])
def test_one_scene_of_some_is_found_and_named(scenes: int) -> None:
    rng, found = np.random.default_rng(scenes), 0
    for _ in range(40):
        error, steady, scene = drives(rng, scenes)
        one = np.array(scene) == "scene-1"
        error[one] = leaked(rng, int(one.sum()))
        parts = known_parts(error, steady, scene)
        found += [part.name for part in parts] == ["scene scene-1"]
    assert found >= 31, found


@pytest.mark.parametrize("scenes", [4, 10])
def test_half_of_the_scenes_are_found(scenes: int) -> None:
    """None of them stands out from the others alone. Never is another scene named."""
    rng, found = np.random.default_rng(scenes), 0
    known = {f"scene-{k}" for k in range(scenes // 2)}
    for _ in range(40):
        error, steady, scene = drives(rng, scenes)
        among = np.isin(scene, list(known))
        error[among] = leaked(rng, int(among.sum()))
        named = {part.name.removeprefix("scene ") for part in known_parts(error, steady, scene)}
        assert named <= known
        found += bool(named)
    assert found >= 26, found


def test_every_other_sample_is_found_with_scenes_and_without() -> None:
    rng, found, without = np.random.default_rng(3), 0, 0
    for _ in range(40):
        error, steady, scene = drives(rng, int(rng.integers(2, 40)))
        other = np.arange(len(error)) % 2 == 1
        error[other] = leaked(rng, int(other.sum()))
        found += [part.name for part in known_parts(error, steady, scene)] == ["every other keyframe of each scene"]
        without += [part.name for part in known_parts(error, steady)] == ["every other sample"]
    assert found >= 38, found
    assert without >= 38, without


def test_the_first_keyframes_alone_are_found() -> None:
    rng = np.random.default_rng(4)
    error, steady, scene = drives(rng, 20)
    first = np.arange(len(error)) % PER_SCENE < 4
    error[first] = leaked(rng, int(first.sum()))
    assert [part.name for part in known_parts(error, steady, scene)] == ["the first four keyframes of scenes"]


def test_steady_and_missing_samples_are_not_evidence() -> None:
    rng = np.random.default_rng(6)
    error, steady, scene = drives(rng, 6)
    one = np.array(scene) == "scene-1"
    error[one] = leaked(rng, int(one.sum()))
    assert known_parts(error, steady, scene)
    assert not known_parts(error, np.where(one, np.minimum(steady, 1.0), steady), scene), "steady driving is easy to foresee"
    assert not known_parts(np.where(one, np.nan, error), steady, scene)
    assert not known_parts(error, steady, scene, Rules(fewest=int(one.sum()) + 1))


@pytest.fixture(scope="module")
def town() -> tuple[Cases, dict[str, np.ndarray]]:
    source = Town(TownConfig(train_scenes=0, val_scenes=10, test_scenes=0))
    tracks = read_tracks(source, "val")
    cases, clips = infer.truth(source, tracks), scored_clips(tracks)
    plans = {}
    for name, plan in KINEMATIC.items():
        tokens, paths = infer.plans(plan, clips)
        plans[name] = align(cases, Predictions(paths, tokens, {}, name))
    return cases, plans


@pytest.mark.slow
def test_kinematic_planners_on_towns_are_clean_and_a_scene_read_from_the_truth_is_not(town: tuple[Cases, dict[str, np.ndarray]]) -> None:
    cases, plans = town
    rng = np.random.default_rng(6)
    assert cases.scene is not None
    true = cases.true_path()
    unsteady = {name: 0 for name in cases.scene}
    for name, metres in zip(np.array(cases.scene)[cases.full], nearest_steady(true[cases.full].astype(float)), strict=True):
        unsteady[name] += metres > 1
    busiest = max(unsteady, key=lambda name: unsteady[name])
    one = np.array(cases.scene) == busiest
    for name, plan in plans.items():
        assert not plausible(cases, plan).reasons, name
        known = np.where(one[:, None, None], true + rng.normal(0, 0.04, (len(cases), 1, 2)) * np.arange(1, 7)[:, None], plan)
        (reason,) = plausible(cases, known.astype(np.float32)).reasons
        assert reason.startswith(f"known in part: scene {busiest}: "), name
        kept = np.flatnonzero(cases.full)
        report = diagnose_predictions(cases, Predictions(known[kept].astype(np.float32), tuple(cases.token[k] for k in kept)))
        assert [f.kind for f in report.tables[0].findings if f.kind == "leak in part"] == ["leak in part"]


@pytest.mark.slow
def test_planted_leaks_in_collected_files_are_found(
    shared: Path, nuscenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scene of two, the other one, every other sample."""
    source = NuScenes(nuscenes_root)
    tracks = read_tracks(source, "mini_val")
    cases = infer.truth(source, tracks)
    write_cases(tmp_path / "cases.npz", cases)
    tokens, paths = infer.plans(KINEMATIC["ctrv"], scored_clips(tracks))
    plan = align(cases, Predictions(paths, tokens, {}, "ctrv"))
    np.savez(tmp_path / "ctrv.npz", token=np.array(cases.token), trajectory=plan)
    make = shared / "fixtures" / "field" / "audit" / "make.py"
    monkeypatch.setattr(sys, "argv", [str(make), str(tmp_path / "cases.npz"), str(tmp_path / "ctrv.npz"), str(tmp_path / "out")])
    runpy.run_path(str(make))
    said = {}
    for path in sorted((tmp_path / "out").glob("*.npz")):
        said[path.stem] = [reason.split(": ")[1] for reason in plausible(cases, align(cases, read_predictions(path))).reasons]
    assert said == {
        "every_other": ["every other keyframe of each scene"],
        "one_scene": ["scene scene-0103"],
        "other_scene": ["scene scene-0916"],
    }
    assert not plausible(cases, plan).reasons
    assert not plausible(replace(cases, scene=None), plan).reasons
