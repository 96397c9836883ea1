"""Limits of a comfortable drive, those of the public scorers (nuPlan, NAVSIM)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Comfort limits, in units of metres, seconds and radians."""

    jerk: float = 8.37
    lateral_acceleration: float = 4.89
    brake: float = -4.05
    accelerate: float = 2.40
    yaw_acceleration: float = 1.93
    longitudinal_jerk: float = 4.13
    yaw_rate: float = 0.95
