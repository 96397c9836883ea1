"""How closely the controller follows recorded paths when they are its plans.

Shapes: N cars, T time steps of 0.1 s after the start. Everything is in the global frame, in metres, radians and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from iidrive.scoring.driving.rollout import Ego
from iidrive.scoring.driving.tracking import STEPS, STEPS_PER_WAYPOINT, CarState, follow, reference

Array = np.ndarray


@dataclass(frozen=True)
class TrackingError:
    """Distance between the rear axles of the driven and the recorded car: its mean over all time steps that a plan reaches, and its largest value."""

    mean_m: float
    worst_m: float

    def to_json(self) -> dict[str, float]:
        """Plain values, metres."""
        return {"mean": self.mean_m, "worst": self.worst_m}


def tracking_error(recorded: Sequence[Ego], lever_m: float) -> TrackingError | None:
    """Follow recorded paths with the controller, and compare. None if no path is 3 s long.

    A car starts at the recorded pose and speed, with straight wheels, as every drive of the closed loop does. Every 0.5 s its plan is the
    recorded path of LIDAR_TOP over the next 3 s, seen from where the car is, as in the closed loop. So errors carry over from plan to plan.
    The last plan is followed to its end. There are no other road users. `lever_m` is the distance from the rear axle forward to LIDAR_TOP.
    """
    lengths = {len(ego.yaw_rad) for ego in recorded if len(ego.yaw_rad) > STEPS}
    alike = [[ego for ego in recorded if len(ego.yaw_rad) == length] for length in sorted(lengths)]
    if not alike:
        return None
    off = np.concatenate([_distances(egos, lever_m).ravel() for egos in alike])
    return TrackingError(float(off.mean()), float(off.max()))


def _distances(recorded: Sequence[Ego], lever_m: float) -> Float[Array, "n t"]:
    """Distances from recorded paths of the same length, at every time step after the start that a plan reaches."""
    xy, yaw, speed, ahead = (np.stack([getattr(ego, name) for ego in recorded]) for name in ("xy_m", "yaw_rad", "speed_mps", "ahead"))
    lidar = xy + lever_m * ahead
    car = CarState.rolling(xy[:, 0], yaw[:, 0], speed[:, 0])
    off: list[Array] = []
    plans = range(0, xy.shape[1] - STEPS, STEPS_PER_WAYPOINT)
    for now in plans:
        points = lidar[:, now + STEPS_PER_WAYPOINT : now + STEPS + 1 : STEPS_PER_WAYPOINT]
        plan = reference(_seen(points, car, lever_m), lever_m)
        states = follow(car, plan, STEPS if now == plans[-1] else STEPS_PER_WAYPOINT)
        off += [np.hypot(*(state.xy_m - xy[:, now + k]).T) for k, state in enumerate(states, start=1)]
        car = states[-1]
    return np.stack(off, 1)


def _seen(points_m: Float[Array, "n 6 2"], car: CarState, lever_m: float) -> Float[Array, "n 6 2"]:
    """Points in the lidar frames of cars (x right, y forward)."""
    cos, sin = np.cos(car.yaw_rad)[:, None], np.sin(car.yaw_rad)[:, None]
    x, y = np.moveaxis(points_m - car.xy_m[:, None], -1, 0)
    return np.stack([sin * x - cos * y, cos * x + sin * y - lever_m], -1)
