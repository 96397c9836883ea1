"""Disturbed egos in training scenes, and the intended paths of their driver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from iidrive.core.errors import ConfigError
from iidrive.data.clips import ClipDataset, ClipSpec, read_tracks, scored_clips
from iidrive.data.source import intended_path, true_path
from iidrive.data.town.config import TownConfig
from iidrive.data.town.disturb import BACK_M, Lapse, lapsing, way_back
from iidrive.data.town.live import LiveScene
from iidrive.data.town.route import STEP_M
from iidrive.data.town.source import Town
from iidrive.data.town.stored import decode, encode
from iidrive.data.town.world import World, make_world

CONFIG = TownConfig(train_scenes=8, val_scenes=1, test_scenes=1, swerves=1.0, lapses=1.0, disk_cache=False)
NAME = "town-train-00000"


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(CONFIG, NAME)


@pytest.mark.slow
def test_only_training_scenes_are_disturbed() -> None:
    for name in ("town-val-00000", "town-test-00000"):
        disturbed, plain = make_world(CONFIG, name), make_world(TownConfig(train_scenes=8, val_scenes=1, test_scenes=1), name)
        assert disturbed.scene.intended is None
        np.testing.assert_array_equal(disturbed.ego, plain.ego)


@pytest.mark.slow
def test_without_disturbance_the_intended_path_is_the_true_one() -> None:
    world = make_world(TownConfig(train_scenes=8, val_scenes=1, test_scenes=1, lapses=1.0), NAME)
    away = [np.abs(intended_path(world.scene, i).points_m - true_path(world.scene, i).points_m).max() for i in range(len(world.scene) - 6)]
    assert min(away) < 1e-4
    assert max(away) > 5.0


@pytest.mark.slow
def test_in_a_lapse_the_intended_path_drives_on(world: World) -> None:
    gone = [(np.hypot(*true_path(world.scene, i).points_m[5]), np.hypot(*intended_path(world.scene, i).points_m[5])) for i in range(35)]
    slowed = [(true, meant) for true, meant in gone if true < meant - 3.0]
    assert len(slowed) > 3
    assert all(meant > 5.0 for _, meant in slowed)


@pytest.mark.slow
def test_a_swerving_ego_is_brought_back() -> None:
    world = make_world(TownConfig(train_scenes=8, val_scenes=1, test_scenes=1, swerves=1.0), NAME)
    points, heading = world.route.points, world.route.heading

    def aside(xy: np.ndarray) -> float:
        k = int(((points - xy) ** 2).sum(1).argmin())
        return float((xy - points[k]) @ np.array([np.sin(heading[k]), -np.cos(heading[k])]))

    intended = world.scene.intended
    assert intended is not None
    gone = np.hypot(*(intended[:, -1, :2] - world.ego[:, :2]).T)
    far = [i for i in range(len(world.ego)) if abs(aside(world.ego[i, :2])) > 0.6 and gone[i] > BACK_M]
    assert far
    for i in far:
        assert abs(aside(intended[i, -1, :2])) < 0.35


@pytest.mark.slow
def test_a_disturbed_scene_can_be_stored_and_simulated_again(world: World) -> None:
    again = decode(encode(world)).scene.intended
    assert again is not None
    assert world.scene.intended is not None
    np.testing.assert_array_equal(again, world.scene.intended)
    live = LiveScene(CONFIG, world, 10)
    np.testing.assert_array_equal(live.ego.xy_m, world.ego[10, :2])


@pytest.mark.slow
def test_planners_are_trained_on_intended_paths_and_scored_on_true_ones() -> None:
    tracks = read_tracks(Town(CONFIG), [NAME])
    taught, scored = ClipDataset(tracks, ClipSpec(intended=True)), scored_clips(tracks)
    np.testing.assert_array_equal(scored.targets["path"], tracks[0].path[: len(scored)].astype(np.float32))
    np.testing.assert_array_equal(taught.targets["path"], tracks[0].intended[: len(taught)].astype(np.float32))
    np.testing.assert_array_equal(taught.targets["now_T_frame"], scored.targets["now_T_frame"])
    assert np.abs(taught.targets["path"] - scored.targets["path"]).max() > 5.0


def test_a_lapse_brakes_to_its_speed_and_ends() -> None:
    lapse = Lapse(begin_s=2.0, end_s=5.0, speed_mps=1.0, brake_mps2=3.0)
    assert lapse.limit_mps2(1.9, 8.0) == np.inf
    assert lapse.limit_mps2(2.0, 8.0) == -3.0
    assert lapse.limit_mps2(4.0, 1.0) == 0.0
    assert lapse.limit_mps2(5.0, 1.0) == np.inf
    made = lapsing(np.random.default_rng(0), 25.0)
    assert len(made) >= 1
    assert all(first.end_s < second.begin_s for first, second in itertools.pairwise(made))


def test_the_recovery_path_is_smooth_and_ends_on_the_route() -> None:
    right = np.linspace(0, 2, 200)
    back = way_back(right, 50)
    np.testing.assert_array_equal(back[:51], right[:51])
    assert (np.diff(back[50:]) <= 0).all()
    assert (back[50 + int(BACK_M / STEP_M) :] == 0).all()


def test_fractions_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"TownConfig\.lapses"):
        TownConfig(lapses=1.5)
