"""Every source in SOURCES does what `data/source.py` promises. A new one is added to `opened`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tiny_av2 import make as make_av2
from tiny_nuscenes import make

from iidrive.core.classes import FREE, IGNORE
from iidrive.core.errors import ConfigError
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.data import SOURCES, Data, DataName
from iidrive.data.source import Source, window
from iidrive.data.town.source import TownConfig
from iidrive.scoring.cases_from_samples import cases_from_samples

SPEC = GridSpec((32, 32, 4), (-25.6, -25.6, -1.6), 1.6)
TOWN = TownConfig(train_scenes=2, test_scenes=1, keyframes=10)


def options(name: str, folder: Path) -> Data:
    """How each source is opened here."""
    return {
        "town": lambda: Data(),
        "nuscenes": lambda: Data("nuscenes", str(make(folder, scenes=("scene-0103", "scene-0916", "scene-0061"), keyframes=10))),
        "av2": lambda: Data("av2", str(make_av2(folder))),
    }[name]()


@pytest.fixture(params=sorted(SOURCES))
def source(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    if request.param == "av2":
        pytest.importorskip("pyarrow")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return options(request.param, tmp_path / "root").open(TOWN)


def test_every_source_has_its_name_on_the_command_line() -> None:
    assert set(SOURCES) == set(get_args(DataName))


def test_it_says_what_it_is(source: Source) -> None:
    assert source.name in SOURCES
    assert source.command_source in ("route", "oracle")
    assert source.occupancy_source in ("labels", "derived", "predicted")
    assert json.loads(json.dumps(source.identity())) == source.identity()
    assert all(len(sentence.split()) > 3 for sentence in source.missing())


def test_splits_are_named_ordered_and_an_unknown_one_is_refused(source: Source) -> None:
    test = source.scene_names(source.usual_split("test"))
    assert test == source.scene_names(source.usual_split("test"))
    assert len(set(test)) == len(test) > 0
    assert source.usual_split("train") != source.usual_split("test")
    with pytest.raises(ConfigError, match="unknown split"):
        source.scene_names("nowhere")


@pytest.mark.slow
def test_a_name_always_gives_the_same_scene(source: Source) -> None:
    name = source.scene_names(source.usual_split("test"))[0]
    one, two = source.scene(name), source.scene(name)
    assert one.name == name
    assert [k.token for k in one.keyframes] == [k.token for k in two.keyframes]
    assert len({k.token for k in one.keyframes}) == len(one)
    for a, b in zip(one.keyframes, two.keyframes, strict=True):
        np.testing.assert_array_equal(a.boxes.centre_m, b.boxes.centre_m)
        np.testing.assert_array_equal(a.global_T_ego.matrix, b.global_T_ego.matrix)


def test_occupancy_is_on_the_grid_that_was_asked_for(source: Source) -> None:
    scene = source.scene(source.scene_names(source.usual_split("test"))[0])
    grid = source.occupancy(scene, 3, SPEC)
    assert grid.spec == SPEC
    assert grid.semantics.shape == SPEC.shape
    assert np.isin(grid.semantics, [*range(FREE + 1), IGNORE]).all()
    assert (grid.semantics == source.occupancy(scene, 3, SPEC).semantics).all()


def test_windows_and_cases_can_be_cut(source: Source) -> None:
    scene = source.scene(source.scene_names(source.usual_split("test"))[0])
    observation, target = window(source, scene, 3, past=2, spec=SPEC)
    assert [k.token for k in observation.keyframes] == [k.token for k in scene.keyframes[1:4]]
    assert target.trajectory.points_m.shape == (FUTURE_STEPS, 2)
    assert {k.command.source for k in scene.keyframes} == {source.command_source}
    cases = cases_from_samples(window(source, scene, i, past=0) for i in range(len(scene)))
    assert list(cases.token) == [k.token for k in scene.keyframes]
