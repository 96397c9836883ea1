"""The controller: follows a plan of six waypoints with a kinematic bicycle model in steps of 0.1 s.

A plan is a path of LIDAR_TOP. The rear axle follows LIDAR_TOP as a trailer follows its hitch, which determines the heading. Speed and curvature of
this reference are smoothed by least squares. The car applies the reference's acceleration and steering plus feedback on its longitudinal and lateral
errors.

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

_FADES_M = 3.0
"""Decay length of the lateral error. The feedback is critically damped, so the error does not overshoot."""

_FADES_S = 1.0
"""Decay time of the longitudinal error, critically damped."""

_FINER = 5
"""Substeps per step of the trailer model. Its heading lags by half a substep."""

_STANDS_MPS = 0.03
"""A car that is slower than this, and whose reference is slower than this, is stopped."""

_JERK, _BEND = 1e-4, 1e-2
"""Least-squares weights of changes of acceleration and of curvature, relative to the squared errors of the path."""


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

    Rear axles `xy_m` (N,K+1,2) and headings `yaw_rad` (N,K+1) begin with the start; speeds and curvatures (N,K) are those of each step.
    """

    xy_m: Float[Array, "n k1 2"]
    yaw_rad: Float[Array, "n k1"]
    speed_mps: Float[Array, "n k"]
    curvature_pm: Float[Array, "n k"]

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
    speed = _smooth_speeds(gone)
    return Reference(path, heading, speed, _smooth_curvatures(turn, speed))


def _smooth_speeds(gone_m: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Speeds (m/s) whose steps are close to `gone_m` (metres per step), with small jerk."""
    k = gone_m.shape[1]
    jerk = np.diff(np.eye(k), n=2, axis=0) / DT_S**2
    normal = DT_S**2 * np.eye(k) + _JERK * DT_S**2 * jerk.T @ jerk
    return np.maximum(np.linalg.solve(normal, DT_S * gone_m.T).T, 0.0)


def _smooth_curvatures(turn_rad: Float[Array, "n k"], speed_mps: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Curvatures (1/m) whose turns are close to `turn_rad`, with small changes. Where the car stands, they follow the neighbouring steps."""
    n, k = turn_rad.shape
    change = np.diff(np.eye(k), axis=0) / DT_S
    step = np.maximum(speed_mps, 1e-3) * DT_S
    normal = step[:, :, None] ** 2 * np.eye(k) + _BEND * DT_S**2 * change.T @ change
    return np.linalg.solve(normal, (step * turn_rad)[..., None])[..., 0].reshape(n, k)


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
    """Acceleration and steering angle of step `k`: the reference's values plus feedback on the errors."""
    last = plan.speed_mps.shape[1] - 1
    cos, sin = np.cos(plan.yaw_rad[:, k]), np.sin(plan.yaw_rad[:, k])
    off = own.xy_m - plan.xy_m[:, k]
    along, beside = off[:, 0] * cos + off[:, 1] * sin, off[:, 1] * cos - off[:, 0] * sin
    turned = wrap_angle(own.yaw_rad - plan.yaw_rad[:, k])
    # The reference's speeds are those at the middle of each step. At the ends of a step, average with the neighbouring step.
    before, here, after = (plan.speed_mps[:, j] for j in (max(k - 1, 0), k, min(k + 1, last)))
    wish, then = (before + here) / 2, (here + after) / 2
    acceleration = (then - wish) / DT_S + 2 / _FADES_S * (wish - own.speed_mps) - along / _FADES_S**2
    bend = plan.curvature_pm[:, k] - beside / _FADES_M**2 - 2 / _FADES_M * np.sin(turned)
    stands = (own.speed_mps < _STANDS_MPS) & (then < _STANDS_MPS)
    acceleration = np.where(stands, -own.speed_mps / DT_S, np.clip(acceleration, BRAKE_MPS2, ACCELERATE_MPS2))
    return acceleration, np.where(stands, own.steer_rad, np.arctan(WHEELBASE_M * bend))


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
