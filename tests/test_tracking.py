"""The controller: following a plan, and its limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from driven import straight
from scipy.integrate import solve_ivp

from iidrive.core.geometry import wrap_angle
from iidrive.data.source import true_path
from iidrive.data.town.source import Town, TownConfig
from iidrive.scoring.driving.rollout import Ego
from iidrive.scoring.driving.tracking import STEER_RATE_RADPS, WHEELBASE_M, CarState, bicycle_step, follow, reference
from iidrive.scoring.driving.tracking_error import tracking_error

LEVER_M = 0.94
TIME = 0.5 * np.arange(1, 7)


def car(speed: float, xy: tuple[float, float] = (0.0, 0.0), yaw: float = 0.0) -> CarState:
    return CarState.rolling(np.array([xy]), np.array([yaw]), np.array([speed]))


def test_straight_ahead_at_constant_speed() -> None:
    plan = np.stack([np.zeros(6), 4.0 * TIME], -1)[None]
    wanted = reference(plan, LEVER_M)
    assert wanted.speed_mps == pytest.approx(4.0, abs=1e-6)
    assert wanted.station_m[0] == pytest.approx(0.4 * np.arange(31), abs=1e-9)
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
    assert wanted.station_m[0] == pytest.approx(speed * 0.1 * np.arange(31), abs=0.05)
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


def test_steps_equal_an_integrated_bicycle() -> None:
    """The kinematic bicycle's differential equations, with a wheelbase of 2.6 m and the inputs of every 0.1 s, solved by SciPy."""
    time = 0.1 * np.arange(40)
    acceleration, steer = 1.5 * np.cos(1.3 * time), 0.25 * np.sin(0.9 * time)
    state, wanted = car(6.0, (3.0, -2.0), 2.9), np.array([3.0, -2.0, 2.9, 6.0])
    for a, delta in zip(acceleration, steer, strict=True):

        def slope(_: float, s: np.ndarray, a: float = a, delta: float = delta) -> list[float]:
            return [s[3] * np.cos(s[2]), s[3] * np.sin(s[2]), s[3] * np.tan(delta) / 2.6, a]

        wanted = solve_ivp(slope, (0.0, 0.1), wanted, rtol=1e-10, atol=1e-12).y[:, -1]
        state = bicycle_step(state, np.array([a]), np.array([delta]))
        assert state.steer_rad[0] == pytest.approx(delta, abs=1e-12), "within the limits"
        assert state.speed_mps[0] == pytest.approx(wanted[3])
        assert state.yaw_rad[0] == pytest.approx(wrap_angle(wanted[2]))
        assert state.xy_m[0] == pytest.approx(wanted[:2], abs=2e-3)
    assert np.hypot(*(wanted[:2] - [3.0, -2.0])) > 15, "it has gone some way"


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


def test_the_tracking_error_is_the_distance_from_the_recorded_path() -> None:
    found = tracking_error([straight(seconds=8.0), straight(seconds=5.0, speed=2.0), straight(seconds=1.0)], LEVER_M)
    assert found is not None
    assert found.worst_m < 1e-4
    assert tracking_error([straight(seconds=2.9)], LEVER_M) is None
    # a path that jumps by 1 m to the left at 4 s: the car cannot jump, and is near it again later
    jumps = straight(seconds=8.0, y=np.where(np.arange(81) < 40, 0.0, 1.0))
    away = tracking_error([jumps], LEVER_M)
    assert away is not None
    assert 0.3 < away.worst_m < 1.3
    assert 0.02 < away.mean_m < 0.3
    both = tracking_error([jumps, straight(seconds=8.0)], LEVER_M)
    assert both is not None
    assert both.mean_m == pytest.approx(away.mean_m / 2, abs=1e-4)
    assert both.worst_m == pytest.approx(away.worst_m)
    # the frame does not matter
    turn = np.array([[np.cos(2.0), -np.sin(2.0)], [np.sin(2.0), np.cos(2.0)]])
    turned = tracking_error([Ego(jumps.xy_m @ turn.T + [100.0, -50.0], jumps.yaw_rad + 2.0, jumps.speed_mps)], LEVER_M)
    assert turned is not None
    assert (turned.mean_m, turned.worst_m) == pytest.approx((away.mean_m, away.worst_m))


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


Place = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Rear axle positions (T,2) and headings (T,) at times (T,)."""


def circle(radius: float, speed: float = 8.0) -> Place:
    def place(time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned = speed * time / radius
        return radius * np.stack([np.sin(turned), 1 - np.cos(turned)], -1), turned

    return place


def line(gone: Callable[[np.ndarray], np.ndarray]) -> Place:
    return lambda time: (np.stack([gone(time), 0 * time], -1), 0 * time)


def errors(place: Place, start: CarState, seconds: float, late: int = 0) -> np.ndarray:
    """Distances from timed points that are planned every 0.5 s, seen from the car; `late` steps of 0.1 s pass until a plan is followed."""
    off, state, before = [], start, None
    for now in 0.5 * np.arange(round(2 * seconds)):
        xy, yaw = place(now + TIME)
        away = xy + LEVER_M * np.stack([np.cos(yaw), np.sin(yaw)], -1) - state.xy_m
        cos, sin = np.cos(state.yaw_rad), np.sin(state.yaw_rad)
        seen = np.stack([sin * away[:, 0] - cos * away[:, 1], cos * away[:, 0] + sin * away[:, 1] - LEVER_M], -1)
        plan = reference(seen[None], LEVER_M)
        states = follow(state, before[0], late, before[1], 5) if before and late else []
        begun = len(states)
        states += follow(states[-1] if begun else state, plan, 5 - begun, state, begun)
        off += [np.hypot(*(s.xy_m[0] - place(np.array([now + 0.1 * k]))[0][0])) for k, s in enumerate(states, start=1)]
        before, state = (plan, state), states[-1]
    return np.array(off)


@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("place", [line(lambda time: 8 * time), circle(25.0)], ids=["straight", "curve"])
@pytest.mark.parametrize(
    ("along", "beside", "faster"),
    [(0, 0, 0), (-0.2, 0, 0), (0.2, 0, 0), (-1, 0, 0), (1, 0, 0), (0, 0.25, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)],
)
def test_errors_decay_when_plans_begin_at_the_car(place: Place, along: float, beside: float, faster: float, late: int) -> None:
    off = errors(place, car(8.0 + faster, (along, beside)), 14.0, late)
    assert off.max() < max(abs(along), abs(beside), 0.35 * abs(faster), 0.1) + 0.01
    assert off[30:].max() < 0.05
    assert off[-20:].max() < 0.02


def test_errors_decay_at_a_start_and_at_a_stop() -> None:
    start = line(lambda time: 0.75 * np.clip(time - 1, 0, 5) ** 2 + 7.5 * np.clip(time - 6, 0, None))
    stop = line(lambda time: 8 * time - np.clip(time - 3, 0, 4) ** 2 - 8 * np.clip(time - 7, 0, None))
    for place, speed in ((start, 0.0), (stop, 8.0)):
        for along, beside in ((0.0, 0.0), (-0.2, 0.0), (-1.0, 0.0), (0.0, 0.25), (0.0, 1.0)):
            off = errors(place, car(speed, (along, beside)), 12.0)
            assert off.max() < max(abs(along), 1.2 * beside, 0.1)
            assert off[60:].max() < 0.06


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0, 4.0, 15.0])
def test_lateral_errors_decay_at_any_speed(speed: float) -> None:
    for place in (line(lambda time: speed * time), circle(max(12.0, speed**2 / 4), speed)):
        off = errors(place, car(speed, (0.0, 0.25), 0.1), 20.0)
        assert off.max() < 0.4
        assert off[-50:].max() < 0.02
