"""The controller: follows a plan of six waypoints with a kinematic bicycle model in steps of 0.1 s.

A plan is a path of LIDAR_TOP. The rear axle follows LIDAR_TOP as a trailer follows its hitch, which determines the heading. Speeds of this
reference are smoothed by least squares.

At every step the car starts from its own speed, acceleration and steering angle. It changes acceleration and curvature as little as is needed to be
close to the plan's waypoints (ridge regression), and applies the first of these changes. A waypoint is a place at a time. So a car that is behind its
plan catches up smoothly, even if it gets a new plan every 0.5 s that begins where the car is.

Shapes: N cars, K = 30 steps of 0.1 s. Frames: plans are in the lidar frame of the time they were made, states in any fixed frame; metres, radians.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline

from iidrive.core.geometry import wrap_angle
from iidrive.core.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray

DT_S = 0.1
"""Time step of the controller and of the simulation, seconds."""

STEPS = round(FUTURE_STEPS * STEP_S / DT_S)
"""Number of controller steps per plan."""

WHEELBASE_M = 2.6
STEER_RAD, STEER_RATE_RADPS = 0.65, 0.9
"""Largest steering angle and steering rate."""

BRAKE_MPS2, ACCELERATE_MPS2 = -7.0, 4.0
"""Acceleration limits."""

STEPS_PER_WAYPOINT = round(STEP_S / DT_S)
"""Number of controller steps between two waypoints, and between two plans."""

_ACCELERATION_COST, _CURVATURE_COST = 0.005, 10.0
"""Squared distance from a waypoint (m²) that is worth a squared change of acceleration (m²/s⁴) or of curvature (1/m²) in one step."""

_FIRST = 0.01
"""The first change costs this share. If it costs as much as later ones, a car overshoots its plan, and a slow one swerves."""

_FINER = 5
"""Substeps per step of the trailer model. Its heading lags by half a substep."""

_STANDS_MPS = 0.03
"""A car that is slower than this, and whose reference is slower than this, is stopped."""

_JERK = 1e-4
"""Least-squares weight of changes of acceleration, relative to the squared errors of the path."""


@dataclass(frozen=True)
class CarState:
    """States of N cars: rear axles `xy_m` (N,2), headings, forward speeds, longitudinal accelerations, steering angles (N,)."""

    xy_m: Float[Array, "n 2"]
    yaw_rad: Float[Array, "n"]
    speed_mps: Float[Array, "n"]
    acceleration_mps2: Float[Array, "n"]
    steer_rad: Float[Array, "n"]

    @staticmethod
    def rolling(xy_m: Float[Array, "n 2"], yaw_rad: Float[Array, "n"], speed_mps: Float[Array, "n"]) -> CarState:
        """Cars that drive straight ahead at constant speed."""
        zero = np.zeros(len(xy_m))
        return CarState(xy_m, yaw_rad, speed_mps, zero, zero)

    def select(self, rows: Array) -> CarState:
        """The states of some cars."""
        return CarState(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Reference:
    """Reference trajectories of N cars over K steps, in the ego frame at their start.

    Rear axles `xy_m` (N,K+1,2), headings `yaw_rad` (N,K+1) and distances driven forward `station_m` (N,K+1) begin with the start; speeds (N,K) are
    those of each step. Every fifth step is at a waypoint. Before the first one the path leads there from the car, wherever the car is.
    """

    xy_m: Float[Array, "n k1 2"]
    yaw_rad: Float[Array, "n k1"]
    speed_mps: Float[Array, "n k"]
    station_m: Float[Array, "n k1"]

    def select(self, rows: Array) -> Reference:
        """The references of some cars."""
        return Reference(*(getattr(self, f.name)[rows] for f in fields(self)))


def reference(plans_m: Float[Array, "n 6 2"], lever_m: float) -> Reference:
    """References of plans. Plans are LIDAR_TOP paths in the lidar frame (x right, y forward); references are in the ego frame at the same time.

    `lever_m` is the distance from the rear axle forward to LIDAR_TOP.
    """
    start = np.zeros((len(plans_m), 1, 2))
    ahead = np.concatenate([start, np.asarray(plans_m, np.float64)], 1)
    lidar = np.stack([ahead[..., 1] + lever_m, -ahead[..., 0]], -1)
    time = np.arange(FUTURE_STEPS + 1) * STEP_S
    dense = CubicSpline(time, lidar, axis=1)(np.arange(STEPS * _FINER + 1) * (DT_S / _FINER))
    xy, yaw = [np.zeros((len(plans_m), 2))], [np.zeros(len(plans_m))]
    for k in range(1, STEPS * _FINER + 1):
        rod = dense[:, k] - xy[-1]
        angle = np.arctan2(rod[:, 1], rod[:, 0])
        yaw.append(yaw[-1] + wrap_angle(angle - yaw[-1]))
        xy.append(dense[:, k] - lever_m * np.stack([np.cos(angle), np.sin(angle)], -1))
    path, heading = np.stack(xy[::_FINER], 1), np.stack(yaw[::_FINER], 1)
    hop, turn = np.diff(path, axis=1), np.diff(heading, axis=1)
    middle = heading[:, :-1] + turn / 2
    gone = hop[..., 0] * np.cos(middle) + hop[..., 1] * np.sin(middle)
    return Reference(path, heading, _smooth_speeds(gone), np.pad(np.cumsum(gone, axis=1), ((0, 0), (1, 0))))


def _smooth_speeds(gone_m: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Speeds (m/s) whose steps are close to `gone_m` (metres per step), with small jerk."""
    k = gone_m.shape[1]
    jerk = np.diff(np.eye(k), n=2, axis=0) / DT_S**2
    normal = DT_S**2 * np.eye(k) + _JERK * DT_S**2 * jerk.T @ jerk
    return np.maximum(np.linalg.solve(normal, DT_S * gone_m.T).T, 0.0)


def follow(state: CarState, plan: Reference, steps: int, made_at: CarState | None = None, first: int = 0) -> list[CarState]:
    """The next `steps` states of cars that follow plans, starting at step `first` of the plans.

    A plan is in the ego frame of its car at `made_at` (None: at `state`).

    Raises:
        ValueError: if the plans have fewer steps.
    """
    if first + steps > STEPS:
        raise ValueError(f"a plan has {STEPS} steps; requested {first + steps}.")
    origin = made_at or state
    own, found = seen_from(state, origin), []
    for k in range(first, first + steps):
        own = bicycle_step(own, *_commands(own, plan, k))
        found.append(placed_by(own, origin))
    return found


def seen_from(state: CarState, at: CarState) -> CarState:
    """`state` transformed to the ego frames of the cars `at`. Both are given in the same frame."""
    cos, sin = np.cos(at.yaw_rad), np.sin(at.yaw_rad)
    x, y = (state.xy_m - at.xy_m).T
    xy = np.stack([cos * x + sin * y, cos * y - sin * x], -1)
    return CarState(xy, wrap_angle(state.yaw_rad - at.yaw_rad), state.speed_mps, state.acceleration_mps2, state.steer_rad)


def placed_by(own: CarState, at: CarState) -> CarState:
    """`own`, given in the ego frames of the cars `at`, transformed to the frame of `at`."""
    cos, sin = np.cos(at.yaw_rad), np.sin(at.yaw_rad)
    x, y = own.xy_m[:, 0], own.xy_m[:, 1]
    xy = at.xy_m + np.stack([cos * x - sin * y, sin * x + cos * y], -1)
    return CarState(xy, wrap_angle(at.yaw_rad + own.yaw_rad), own.speed_mps, own.acceleration_mps2, own.steer_rad)


def _commands(own: CarState, plan: Reference, k: int) -> tuple[Array, Array]:
    """Acceleration and steering angle of step `k`. They depend on the car's state and on the waypoints after `k`."""
    off = own.xy_m - plan.xy_m[:, k]
    along = off[:, 0] * np.cos(plan.yaw_rad[:, k]) + off[:, 1] * np.sin(plan.yaw_rad[:, k])
    way = plan.station_m[:, k:] - (plan.station_m[:, k] + along)[:, None]
    waypoints = np.arange(STEPS_PER_WAYPOINT - k % STEPS_PER_WAYPOINT, STEPS - k + 1, STEPS_PER_WAYPOINT)  # steps from `k`
    acceleration = own.acceleration_mps2 + _acceleration_change(own, way[:, waypoints], waypoints * DT_S, STEPS - k)
    curvature = np.tan(own.steer_rad) / WHEELBASE_M + _curvature_change(own, way, waypoints, plan.xy_m[:, k:])
    then = plan.speed_mps[:, k : k + 2].mean(1)  # the speeds are those at the middle of each step; this one is at the end of step `k`
    stands = (own.speed_mps < _STANDS_MPS) & (then < _STANDS_MPS)
    acceleration = np.where(stands, -own.speed_mps / DT_S, np.clip(acceleration, BRAKE_MPS2, ACCELERATE_MPS2))
    return acceleration, np.where(stands, own.steer_rad, np.arctan(WHEELBASE_M * curvature))


def _acceleration_change(own: CarState, way_m: Float[Array, "n j"], time_s: Float[Array, "j"], steps: int) -> Float[Array, "n"]:
    """Change of acceleration in the next of `steps` steps (m/s²) of cars whose waypoints are `way_m` ahead in `time_s`."""
    unchanged = own.speed_mps[:, None] * time_s + own.acceleration_mps2[:, None] * time_s**2 / 2
    effect = np.maximum(time_s[:, None] - np.arange(steps) * DT_S, 0.0) ** 2 / 2
    return _first_change(effect, way_m - unchanged, _ACCELERATION_COST)


def _curvature_change(own: CarState, way_m: Float[Array, "n k1"], waypoints: Array, path_m: Float[Array, "n k1 2"]) -> Float[Array, "n"]:
    """Change of curvature in the next step (1/m) of cars whose reference is at `path_m`, `way_m` ahead, after each step. `waypoints` are steps."""
    far = np.maximum(way_m, 0.0)
    far[:, 0] = 0.0  # the next step begins at the car
    turn = far[:, waypoints] * np.tan(own.steer_rad)[:, None] / WHEELBASE_M
    chord, heading = far[:, waypoints] * np.sinc(turn / (2 * np.pi)), own.yaw_rad[:, None] + turn / 2
    off = path_m[:, waypoints] - own.xy_m[:, None] - chord[..., None] * np.stack([np.cos(heading), np.sin(heading)], -1)
    heading = heading + turn / 2
    beside = off[..., 1] * np.cos(heading) - off[..., 0] * np.sin(heading)
    effect = np.maximum(far[:, waypoints, None] - far[:, None, :-1], 0.0) ** 2 / 2
    return _first_change(effect, beside, _CURVATURE_COST)


def _first_change(effect: Float[Array, "*n j m"], missing: Float[Array, "n j"], cost: float) -> Float[Array, "n"]:
    """The first of the M changes c that minimise |effect c - missing|² + cost (_FIRST c₀² + c₁² + c₂² + ...)."""
    cheap = effect / cost
    cheap[..., 0] /= _FIRST
    solved = np.linalg.solve(effect @ np.swapaxes(cheap, -1, -2) + np.eye(effect.shape[-2]), missing[..., None])[..., 0]
    return (cheap[..., 0] * solved).sum(-1)


def bicycle_step(car: CarState, acceleration_mps2: Float[Array, "n"], steer_rad: Float[Array, "n"]) -> CarState:
    """One step of 0.1 s of a kinematic bicycle model that cannot reverse, with limited steering angle and steering rate."""
    speed = np.maximum(car.speed_mps + acceleration_mps2 * DT_S, 0.0)
    reach = STEER_RATE_RADPS * DT_S
    steer = np.clip(car.steer_rad + np.clip(steer_rad - car.steer_rad, -reach, reach), -STEER_RAD, STEER_RAD)
    step = (car.speed_mps + speed) / 2 * DT_S
    turn = step * np.tan(steer) / WHEELBASE_M
    middle = car.yaw_rad + turn / 2
    xy = car.xy_m + step[:, None] * np.stack([np.cos(middle), np.sin(middle)], -1)
    return CarState(xy, wrap_angle(car.yaw_rad + turn), speed, (speed - car.speed_mps) / DT_S, steer)
