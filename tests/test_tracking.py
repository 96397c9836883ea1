"""The controller: following a plan, and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from iidrive.core.geometry import wrap_angle
from iidrive.data.source import true_path
from iidrive.data.town.source import Town, TownConfig
from iidrive.scoring.driving.tracking import STEER_RATE_RADPS, WHEELBASE_M, CarState, bicycle_step, follow, reference

LEVER_M = 0.94
TIME = 0.5 * np.arange(1, 7)


def car(speed: float, xy: tuple[float, float] = (0.0, 0.0), yaw: float = 0.0) -> CarState:
    return CarState.rolling(np.array([xy]), np.array([yaw]), np.array([speed]))


def test_straight_ahead_at_constant_speed() -> None:
    plan = np.stack([np.zeros(6), 4.0 * TIME], -1)[None]
    wanted = reference(plan, LEVER_M)
    assert wanted.speed_mps == pytest.approx(4.0, abs=1e-6)
    assert wanted.curvature_pm == pytest.approx(0.0, abs=1e-9)
    states = follow(car(4.0), wanted, 30)
    assert [s.xy_m[0, 0] for s in states] == pytest.approx(0.4 * np.arange(1, 31), abs=1e-5)
    assert states[-1].xy_m[0, 1] == 0.0


def test_states_are_transformed_with_position_and_heading() -> None:
    plan = np.stack([np.zeros(6), 4.0 * TIME], -1)[None]
    last = follow(car(4.0, (10.0, -3.0), np.pi / 2), reference(plan, LEVER_M), 10)[-1]
    assert last.xy_m[0] == pytest.approx([10.0, 1.0], abs=1e-5)
    assert last.yaw_rad[0] == pytest.approx(np.pi / 2)


def test_a_left_hand_circle_is_driven_within_centimetres() -> None:
    radius, speed = 15.0, 5.0
    angle = speed * TIME / radius
    # LIDAR_TOP rides ahead of the rear axle, on a circle of its own; x is to the right in its frame
    x, y = radius * np.sin(angle) + LEVER_M * np.cos(angle) - LEVER_M, radius * (1 - np.cos(angle)) + LEVER_M * np.sin(angle)
    wanted = reference(np.stack([-y, x], -1)[None], LEVER_M)
    assert wanted.curvature_pm[0, 5:25] == pytest.approx(1 / radius, rel=0.05)
    start = CarState(np.zeros((1, 2)), np.zeros(1), np.array([speed]), np.zeros(1), np.array([np.arctan(WHEELBASE_M / radius)]))
    for k, state in enumerate(follow(start, wanted, 30), start=1):
        turned = speed * 0.1 * k / radius
        assert state.xy_m[0] == pytest.approx([radius * np.sin(turned), radius * (1 - np.cos(turned))], abs=0.04)
        assert state.yaw_rad[0] == pytest.approx(turned, abs=0.03)


def test_a_plan_that_stands_still_stops_the_car_without_reversing() -> None:
    states = follow(car(6.0), reference(np.zeros((1, 6, 2)), LEVER_M), 30)
    speed = np.array([6.0, *(s.speed_mps[0] for s in states)])
    assert (np.diff(speed) >= -0.7 - 1e-9).all()
    assert speed[10:] == pytest.approx(0.0)
    x = np.array([s.xy_m[0, 0] for s in states])
    assert (np.diff(x) >= 0).all()
    assert 2.5 < x[-1] < 3.5  # 6 m/s at 7 m/s² is 2.6 m


def test_a_standing_car_stays_where_it_is() -> None:
    creeping = np.stack([np.zeros(6), 0.005 * np.arange(1, 7)], -1)[None]
    states = follow(car(0.0), reference(creeping, LEVER_M), 30)
    assert all((s.xy_m == 0).all() and (s.yaw_rad == 0).all() for s in states)


def test_the_steering_rate_is_limited() -> None:
    first = bicycle_step(car(5.0), np.zeros(1), np.array([0.6]))
    assert first.steer_rad[0] == pytest.approx(0.1 * STEER_RATE_RADPS)
    assert bicycle_step(car(5.0), np.full(1, -9.0), np.zeros(1)).speed_mps[0] == pytest.approx(4.1)


def test_more_steps_than_a_plan_has_are_refused() -> None:
    with pytest.raises(ValueError, match="30 steps"):
        follow(car(1.0), reference(np.zeros((1, 6, 2)), LEVER_M), 31)


@pytest.mark.slow
def test_the_true_path_of_a_town_is_driven_within_a_tenth_of_a_metre() -> None:
    town = Town(TownConfig(train_scenes=1, val_scenes=1, test_scenes=1))
    scene, live = town.scene("town-train-00000"), town.live("town-train-00000")
    egos = [live.ego]
    for _ in range(5 * (len(scene) - 1)):
        live.step()
        egos.append(live.ego)
    xy, yaw, speed = (np.array([getattr(e, n) for e in egos]) for n in ("xy_m", "heading_rad", "speed_mps"))
    now = np.arange(1, len(scene) - 6)
    at = 5 * now
    turn, gone = wrap_angle(np.diff(yaw)), np.maximum(speed[:-1], 0.05) * 0.1
    steer = np.arctan(WHEELBASE_M * turn / gone)
    start = CarState(xy[at], yaw[at], speed[at], np.diff(speed)[at - 1] / 0.1, steer[at - 1])
    states = follow(start, reference(np.stack([true_path(scene, k).points_m for k in now]), LEVER_M), 30)
    off = np.stack([np.hypot(*(state.xy_m - xy[at + k]).T) for k, state in enumerate(states, start=1)])
    assert off.mean() < 0.04
    assert off.max() < 0.15


def test_a_plan_is_followed_from_its_middle_as_from_its_start() -> None:
    """Following the second half of a plan from its middle gives the same states."""
    plan = np.stack([0.1 * TIME**2, 4.0 * TIME + 0.3 * TIME**2], -1)[None]
    wanted, start = reference(plan, LEVER_M), car(4.0, (10.0, -3.0), 0.7)
    whole = follow(start, wanted, 20)
    rest = follow(whole[9], wanted, 10, start, 10)
    for one, other in zip(whole[10:], rest, strict=True):
        np.testing.assert_allclose(one.xy_m, other.xy_m, atol=1e-9)
        np.testing.assert_allclose(one.yaw_rad, other.yaw_rad, atol=1e-9)
    with pytest.raises(ValueError, match="requested 31"):
        follow(start, wanted, 21, start, 10)
