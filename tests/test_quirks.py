"""Each quirk of the published rollout separately: its effect, and no other."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from iidrive.core.errors import ConfigError
from iidrive.models.iiworld.quirks import QUIRKS, Quirk
from iidrive.models.iiworld.rollout import Drive, RollOut, StreamState, begin, heading_rad, losses, quaternion_product, roll_out
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes

TINY = recipes.tiny()
CONFIG = replace(TINY.world, motion="map", align="none", residual="none", norm="batch", start="xavier", voxel_weight=0.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def drive() -> Drive:
    size = TINY.tokenizer.latent_size
    rotation = torch.nn.functional.normalize(torch.tensor([1.0, 0, 0, 0]) + 0.2 * random(2, 7, 4), dim=-1).double()
    return Drive(
        random(2, 7, CONFIG.width, *size, seed=1),
        rotation,
        1000 + random(2, 7, 3, seed=2).double().cumsum(1),
        random(2, 6, 3, seed=3).double(),
        torch.tensor([[2, 0, 1, 2, 0, 1]] * 2),
        torch.ones(2, 6, dtype=torch.bool),
        torch.tensor([True, False]),
        random(2, 4, CONFIG.width, *size, seed=4),
    )


def run(drive: Drive, *quirks: Quirk, state: StreamState | None = None) -> RollOut:
    torch.manual_seed(0)
    world = WorldModel(replace(CONFIG, quirks=quirks), TINY.tokenizer.cells(), TINY.tokenizer.grid).eval()
    with torch.no_grad():
        return roll_out(world, drive, state)[0]


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-6)


def test_every_quirk_has_a_description() -> None:
    assert tuple(QUIRKS) == get_args(Quirk)
    assert set(recipes.published().world.quirks) == set(QUIRKS)


def test_true_motion(drive: Drive) -> None:
    later = replace(drive, position=drive.position + torch.arange(7.0)[:, None])
    assert not same(run(drive, "true-motion").latents[:, 0], run(later, "true-motion").latents[:, 0])
    assert same(run(drive).latents, run(later).latents)


@pytest.mark.slow
def test_future_commands(drive: Drive) -> None:
    other = replace(drive, command=torch.tensor([[2, 1, 1, 2, 0, 0]] * 2))
    assert same(run(drive).translations, run(other).translations)
    a, b = run(drive, "future-commands").translations, run(other, "future-commands").translations
    assert same(a[:, :2], b[:, :2]), "steps 0 and 1 both follow the command of now"
    assert not same(a[:, 2], b[:, 2])
    assert same(run(drive, "future-commands").translations[:, 1], run(drive).translations[:, 1])


def test_copied_memory(drive: Drive) -> None:
    forgetful = replace(drive, before=None)
    assert same(run(drive, "copied-memory").latents, run(forgetful, "copied-memory").latents)
    assert not same(run(drive).latents[:, 0], run(drive, "copied-memory").latents[:, 0])
    with pytest.raises(ConfigError, match="latents before now"):
        run(forgetful)


def test_ones_rotation(drive: Drive) -> None:
    for quirks, rest in (((), [1, 0, 0, 0]), (("ones-rotation",), [1, 1, 1, 1])):
        motions = begin(drive, None, quirks, 5).motions
        assert motions[0, 0].tolist() == [0, 0, *rest, 0, 0, 0]


def test_swapped_rotation(drive: Drive) -> None:
    for quirks in ((), ("swapped-rotation",)):
        made = run(drive, *quirks)
        pair = (drive.rotation[:, 0], made.turns[:, 0].double())
        assert same(made.rotation[:, 0], quaternion_product(*(reversed(pair) if quirks else pair)))


def test_roll_for_yaw(drive: Drive) -> None:
    yaw, roll = torch.tensor([0.3, -0.2]).double()
    turned = quaternion_product(
        *(torch.stack([a.cos(), *(a.sin() * axis)]) for a, axis in zip((yaw / 2, roll / 2), torch.eye(3)[[2, 0]], strict=True))
    )
    assert heading_rad(turned, roll=False) == pytest.approx(0.3)
    assert heading_rad(turned, roll=True) == pytest.approx(-0.2)
    straight, rolled = run(drive), run(drive, "roll-for-yaw")
    assert straight.velocity[..., 0].abs().max() < 1e-9, "straight ahead is the second number"
    angle = heading_rad(rolled.rotation[:, 0], roll=True)
    speed = rolled.velocity[:, 0, :2].norm(dim=-1)
    assert same(rolled.velocity[:, 0, 0], -speed * angle.sin())
    start = heading_rad(drive.rotation[:, 0], roll=True)
    assert same(rolled.velocity[:, 0, 2], (angle - start) / 0.5)


def test_batch_speed(drive: Drive) -> None:
    made, own = run(drive, "batch-speed"), run(drive)
    moved = made.position[:, 0] - drive.position[:, 0]
    assert same(made.velocity[:, 0, 1], (moved.norm() / 0.5).expand(2))
    assert same(own.velocity[:, 0, 1], moved[:, :2].norm(dim=-1) / 0.5)


def test_rate_first(drive: Drive) -> None:
    assert same(run(drive, "rate-first").velocity[:, 0], run(drive).velocity[:, 0][:, [2, 0, 1]])


def test_stale_pose(drive: Drive) -> None:
    """Only the sample that does not start a sequence changes."""
    still = begin(drive, None, (), 5)
    far = StreamState(still.motions, still.heading_rad + 1, still.position_m + 100)
    fresh, stale = run(drive, state=far), run(drive, "stale-pose", state=far)
    assert same(fresh.velocity[:, 0], run(drive).velocity[:, 0])
    assert same(stale.velocity[0, 0], fresh.velocity[0, 0])
    assert stale.velocity[1, 0, 1] > 100 > fresh.velocity[1, 0, 1]


def test_trajectory_mean_twice(drive: Drive) -> None:
    made = run(drive)
    once, twice = (losses(replace(CONFIG, quirks=q), made, drive) for q in ((), ("trajectory-mean-twice",)))
    assert once["trajectory"] == pytest.approx(2 * float(twice["trajectory"]))
    assert once["rotation"] == twice["rotation"]


def test_rotation_everywhere(drive: Drive) -> None:
    made, ended = run(drive), replace(drive, valid=drive.valid & (torch.arange(6) < 4))
    true, counted = (losses(replace(CONFIG, quirks=q), made, ended)["rotation"] for q in ((), ("rotation-everywhere",)))
    every = 1 - (made.turns * drive.turns).sum(-1).abs()
    assert true == pytest.approx(CONFIG.rotation_weight * float(every[:, :4].sum(1).mean()))
    assert counted == pytest.approx(CONFIG.rotation_weight * float(every.sum(1).mean()))


def test_gradients_flow_through_the_current_state_only(drive: Drive) -> None:
    """Gradients reach earlier steps through the current latent and pose, not through memory; a teacher-forced step stops them."""
    torch.manual_seed(0)
    world = WorldModel(replace(CONFIG, quirks=("copied-memory",)), TINY.tokenizer.cells(), TINY.tokenizer.grid)
    start = replace(drive, latents=drive.latents.clone().requires_grad_())
    for taught in (True, False):
        made, _ = roll_out(world, start, None, torch.full((2, 6), taught))
        (path,) = torch.autograd.grad(made.latents[:, 5].square().sum(), start.latents)
        assert bool(path[:, 0].any()) is not taught


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="motion=map"):
        replace(TINY.world, quirks=("stale-pose",))
    with pytest.raises(ConfigError, match="motion=map needs align=none"):
        replace(CONFIG, align="warp")
