"""Contacts of the ego with others, and whether the ego is at fault, by the rules of the public closed-loop scorers.

Source: NAVSIM's and nuPlan's scorers; docs/closed-loop.md describes the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.scoring.driving.rollout import Ego, Others, Road, near

Array = np.ndarray

STANDS_MPS = 0.05
AHEAD_RAD, BEHIND_RAD = np.deg2rad(30), np.deg2rad(150)


@dataclass(frozen=True)
class Contact:
    """The first contact of the ego with one other object.

    `moment`: time step of the contact. `other`, `track`: index and track id of the object. `agent`: whether it is a vehicle, pedestrian or
    cyclist. `kind`: "at the start", "ego stands", "other stands", "from behind", "front" or "side". `at_fault`: whether the ego is at fault.
    """

    moment: int
    other: int
    track: str
    agent: bool
    kind: str
    at_fault: bool


def contacts(ego: Ego, others: Others, road: Road | None) -> list[Contact]:
    """The first contact with each object, in order of time. A contact at the first time step is not at fault."""
    t, i = near(ego, others)
    touching = shapely.intersects(ego.polygons[t], others.polygons(t, i))
    t, i = t[touching], i[touching]
    found, seen = [], set()
    for moment, other in zip(t.tolist(), i.tolist(), strict=True):
        if other in seen:
            continue
        seen.add(other)
        kind, fault = _judged(ego, others, road, moment, other) if moment else ("at the start", False)
        found.append(Contact(moment, other, others.track[other], bool(others.agent[other]), kind, fault))
    return found


def _judged(ego: Ego, others: Others, road: Road | None, t: int, i: int) -> tuple[str, bool]:
    if ego.speed_mps[t] <= STANDS_MPS:
        return "ego stands", False
    if others.speed_mps[t, i] <= STANDS_MPS:
        return "other stands", True
    if bearing(ego, others.centre_m[t, i], t) > BEHIND_RAD:
        return "from behind", False
    front = shapely.LineString(ego.corners_m[t, [0, 3]])
    if shapely.intersects(front, others.polygons(np.array([t]), np.array([i]))[0]):
        return "front", True
    return "side", road is not None and (bool(road.off(ego.corners_m[t])) or road.between_lanes(ego.corners_m[t]))


def bearing(ego: Ego, point_m: Float[Array, "2"], t: int) -> float:
    """Angle between the ego's heading at time step `t` and the direction from its rear axle to a point (global frame, metres), 0..pi."""
    way = point_m - ego.xy_m[t]
    return float(np.arccos(np.clip(way @ ego.ahead[t] / max(float(np.hypot(*way)), 1e-9), -1, 1)))
