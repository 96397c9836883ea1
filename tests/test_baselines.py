"""Kinematic planners are exact on the motions they assume; copy forecasts are exact on the worlds they assume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_scene import circle_scene, straight_scene

from iidrive.core.batch import Inputs
from iidrive.core.scene import GridSpec, Scene
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.models.baselines import KINEMATIC, EgoMLP, EgoMLPConfig, copy_last, copy_warped, ctrv
from iidrive.models.ego_motion import constant_turn


def clips(scene: Scene) -> ClipDataset:
    return ClipDataset([EgoTrack.of(scene)], ClipSpec(past=5))


@pytest.mark.parametrize("name", ["constant-velocity", "ctrv"])
def test_exact_on_a_straight_road(name: str) -> None:
    scene = clips(straight_scene())
    batch = scene.batch([1, 3])
    torch.testing.assert_close(KINEMATIC[name](batch.inputs), batch.targets.path, atol=2e-5, rtol=0)


def test_only_turning_is_exact_on_a_circle() -> None:
    batch = clips(circle_scene()).batch([2])
    torch.testing.assert_close(ctrv(batch.inputs), batch.targets.path, atol=1e-4, rtol=0)
    off = (KINEMATIC["constant-velocity"](batch.inputs) - batch.targets.path).norm(dim=-1)
    assert off[0, -1] > 2.0
    torch.testing.assert_close(constant_turn(batch.inputs), batch.targets.now_T_frame, atol=1e-4, rtol=0)


def test_the_first_keyframe_stands_still() -> None:
    batch = clips(circle_scene()).batch([0])
    for plan in KINEMATIC.values():
        assert plan(batch.inputs).abs().max() < 1e-6
    assert KINEMATIC["still"](batch.inputs).shape == (1, 6, 2)


def test_velocity_uses_the_real_time_between_keyframes() -> None:
    batch = clips(straight_scene()).batch([3])
    inputs = batch.inputs
    slow = Inputs(**{**vars(inputs), "age_s": inputs.age_s * 2})
    torch.testing.assert_close(KINEMATIC["constant-velocity"](slow) * 2, KINEMATIC["constant-velocity"](inputs))


@pytest.mark.slow
def test_ego_mlp_learns_from_its_loss() -> None:
    torch.manual_seed(0)
    batch = clips(circle_scene()).batch([0, 1, 2, 3])
    model = EgoMLP(EgoMLPConfig(hidden=16))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = model.loss(batch)[0].item()
    for _ in range(300):
        optimiser.zero_grad()
        model.loss(batch)[0].backward()
        optimiser.step()
    assert model.loss(batch)[0].item() < first / 3


def test_copies() -> None:
    spec = GridSpec((8, 8, 2), (-4.0, -4.0, -1.0), 1.0)
    world = torch.full((1, 8, 8, 2), 17, dtype=torch.uint8)
    world[0, 6, 4, 1] = 4
    targets = torch.eye(4).repeat(1, 2, 1, 1)
    targets[0, 1, 0, 3] = 2.0
    assert (copy_last(world, 2) == world[:, None]).all()
    warped = copy_warped(world, targets, spec)
    assert (warped[:, 0] == world).all()
    assert np.argwhere(warped[0, 1].numpy() == 4).tolist() == [[4, 4, 1]]
    assert (warped[0, 1, 6:] == 17).all()
