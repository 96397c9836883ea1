"""Comfort of a drive: accelerations, jerks and yaw rates compared with the limits of the public scorers.

Shapes: T time steps of 0.1 s from the start on, H time steps before it, P plans, K steps per plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import savgol_filter

from iidrive.core.comfort import Limits
from iidrive.scoring.driving.rollout import Ego, Rollout
from iidrive.scoring.driving.tracking import DT_S

Array = np.ndarray

_ORDER, _SMOOTH, _SLOPE = 2, 8, 15
"""Savitzky-Golay filter: polynomial order, window length for values, window length for derivatives (time steps)."""


def comfortable(rollout: Rollout, limits: Limits | None = None) -> Bool[Array, "t"]:
    """Whether all limits hold at each time step of a drive.

    The driven past and the drive are one series, so a jerk across the start is noticed. Time step 0 also stands for the past: it is false if a
    limit is exceeded at any of the past's steps. A past and drive that together are shorter than 1.5 s have no derivatives and count as comfortable.
    """
    past = len(rollout.past.yaw_rad)
    good = _within(Ego.joined(rollout.past, rollout.ego), limits or Limits())
    return np.concatenate([good[: past + 1].all(keepdims=True), good[past + 1 :]])


def _within(ego: Ego, limits: Limits) -> Bool[Array, "t"]:
    """Whether all limits hold at each state."""
    if len(ego.yaw_rad) < _SLOPE:
        return np.ones(len(ego.yaw_rad), bool)
    yaw = np.unwrap(ego.yaw_rad)
    raw = np.diff(ego.speed_mps, append=ego.speed_mps[-1:]) / DT_S
    sideways = ego.speed_mps * np.gradient(yaw, DT_S)
    along, across = _smooth(raw, _SMOOTH), _smooth(sideways, _SMOOTH)
    return (
        (np.abs(_smooth(np.hypot(raw, sideways), _SLOPE, 1)) <= limits.jerk)
        & (np.abs(across) <= limits.lateral_acceleration)
        & (along >= limits.brake)
        & (along <= limits.accelerate)
        & (np.abs(_smooth(yaw, _SLOPE, 2)) <= limits.yaw_acceleration)
        & (np.abs(_smooth(raw, _SLOPE, 1)) <= limits.longitudinal_jerk)
        & (np.abs(_smooth(yaw, _SLOPE, 1)) <= limits.yaw_rate)
    )


def _smooth(values: Float[Array, "*p t"], window: int, derivative: int = 0) -> Float[Array, "*p t"]:
    """Savitzky-Golay smoothed values, or their derivative per second, along the last axis."""
    return np.asarray(savgol_filter(values, window, _ORDER, deriv=derivative, delta=DT_S))


@dataclass(frozen=True)
class Agreement:
    """Largest root-mean-square differences between two consecutive plans, in units of metres, seconds and radians."""

    acceleration: float = 0.7
    jerk: float = 0.5
    yaw_rate: float = 0.1
    yaw_acceleration: float = 0.1


def consistent(rollout: Rollout, limits: Agreement | None = None) -> Bool[Array, "q"]:
    """Whether each plan but the first agrees with the plan before it (extended comfort)."""
    limits, later = limits or Agreement(), rollout.plan_every
    plans = len(rollout.plan_speed_mps)
    if plans < 2:
        return np.zeros(0, bool)
    speed, rate = rollout.plan_speed_mps, np.diff(rollout.plan_yaw_rad, axis=1) / DT_S
    before, after = slice(later, None), slice(None, speed.shape[1] - later)
    good = np.ones(plans - 1, bool)
    for values, derivative, limit in (
        (speed, 1, limits.acceleration),
        (speed, 2, limits.jerk),
        (rate, 0, limits.yaw_rate),
        (rate, 1, limits.yaw_acceleration),
    ):
        change = _smooth(values, _SLOPE, derivative)
        gap = change[1:, after] - change[:-1, before]
        good &= np.sqrt((gap**2).mean(1)) <= limit
    return good
