"""Traffic behaviour for scenes with a conflict: scripted vehicles and pedestrians, and passing of vehicles that block a lane.

Each function reads and changes the state of a `Traffic`. In scenes without a conflict they change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iidrive.data.town.agents import Still
from iidrive.data.town.roads import tangents
from iidrive.data.town.route import STEP_M, smooth

if TYPE_CHECKING:
    from iidrive.data.town.traffic import Traffic

Array = np.ndarray

PASSING_M = 0.5
"""Lateral gap that a driver leaves when passing a blocking vehicle, metres."""
SWERVE_M = 10.0
"""Distance over which a driver moves over before a blocking vehicle, and back after it, metres."""
ONCOMING_S = 6.0
"""Oncoming vehicles must be at least this long from the blocked stretch, seconds."""
FIRST_M = 70.0
"""A vehicle with the right of way claims a junction from this distance, metres."""


@dataclass(frozen=True)
class Narrow:
    """A stretch of a path on which a vehicle is outside its lane, by arc length of the rear axle, metres."""

    begin_s: float
    end_s: float


def set_path(traffic: Traffic, i: int, right_m: Array) -> None:
    """Set a mover's path to its route shifted by `right_m` (one value per sample, metres to the right)."""
    route = traffic.movers[i].route
    n = len(route.points)
    normal = np.stack([np.sin(route.heading), -np.cos(route.heading)], -1)
    traffic.path[i, :n] = route.points + right_m[:n, None] * normal
    traffic.path[i, n:] = traffic.path[i, n - 1]
    d = tangents(traffic.path[i, :n])
    traffic.path_heading[i, :n] = np.arctan2(d[:, 1], d[:, 0])
    traffic.path_cos[i], traffic.path_sin[i] = np.cos(traffic.path_heading[i]), np.sin(traffic.path_heading[i])


def begin(traffic: Traffic) -> None:
    """Initialise scripted vehicles: path, pace, and the junctions that are already behind them."""
    for i in traffic.scripted:
        mover = traffic.movers[i]
        script = mover.script
        assert script
        traffic.profile[i] *= script.pace
        if not script.comes_first:
            set_path(traffic, i, np.full(traffic.path.shape[1], script.from_m))
        traffic.gate[i] = sum(g.stop_s < mover.start_s + mover.axle_m for g in mover.route.gates)


def follow_scripts(traffic: Traffic) -> None:
    """Trigger the scripts of vehicles that are near enough to the ego, and advance triggered ones."""
    for i in traffic.scripted:
        script = traffic.movers[i].script
        assert script
        if traffic.since[i] >= 0:
            traffic.since[i] += traffic.dt_s
            continue
        gap = traffic.s[i] - traffic.back[i] - traffic.s[0] - traffic.front[0]
        if script.comes_first or gap > script.near_s * max(traffic.v[0], 1.0):
            continue
        traffic.since[i] = 0.0
        if script.to_m != script.from_m:
            along = np.arange(traffic.path.shape[1]) * STEP_M
            share = smooth((along - traffic.s[i]) / script.over_m)
            set_path(traffic, i, script.from_m + (script.to_m - script.from_m) * share)


def standing(traffic: Traffic) -> list[int]:
    """Indices of scripted vehicles that must still stand."""
    found = []
    for i in traffic.scripted:
        script = traffic.movers[i].script
        if script and script.stands_s is not None and not traffic.since[i] >= script.stands_s:
            found.append(i)
    return found


def steps_out(traffic: Traffic, walker: int) -> bool:
    """Whether a jaywalker steps on the road now: the ego is within its trigger time and could still stop."""
    zebras = traffic.movers[0].route.zebras
    front, v = float(traffic.s[0] + traffic.front[0]), float(traffic.v[0])
    for zebra in zebras:
        if zebra.crossing == traffic.crossing[walker]:
            d = zebra.begin_s - front
            return 0 < d < traffic.walkers[walker].steps_out_s * v and d - 1.2 > v * v / 10.0
    return False


def go_around(traffic: Traffic, blocks: Sequence[Still]) -> dict[int, list[Narrow]]:
    """Change the paths of vehicles whose lane is blocked by a standing vehicle, to pass it on its left.

    Returns the stretches on which each of them is outside its lane.
    """
    narrow: dict[int, list[Narrow]] = {}
    for i, mover in enumerate(traffic.movers):
        if mover.script and not mover.script.comes_first:
            continue
        points, heading = mover.route.points, mover.route.heading
        bend = np.zeros(traffic.path.shape[1])
        for block in blocks:
            to = block.xy - points
            at = int(np.argmin((to**2).sum(-1)))
            right = float(to[at, 0] * np.sin(heading[at]) - to[at, 1] * np.cos(heading[at]))
            need = traffic.half_width[i] + block.size_m[1] / 2 + PASSING_M
            same_way = np.cos(block.yaw_rad - heading[at]) > 0.7
            if not same_way or abs(right - mover.right_m) > need or np.hypot(*to[at]) > 4.0:
                continue
            shift = need - (right - mover.right_m)
            along, half = np.arange(len(bend)) * STEP_M, block.size_m[0] / 2
            first, last = at * STEP_M - half - traffic.front[i], at * STEP_M + half + traffic.back[i] + 1.0
            here = smooth((along - first + SWERVE_M) / SWERVE_M) * smooth((last + SWERVE_M - along) / SWERVE_M)
            bend = np.minimum(bend, -shift * here)
            narrow.setdefault(i, []).append(Narrow(first - SWERVE_M, last + SWERVE_M))
        if i in narrow:
            set_path(traffic, i, mover.right_m + bend)
    return narrow


def narrow_stop(traffic: Traffic, i: int) -> float:
    """Distance of a mover to where it must wait for oncoming traffic, metres; infinite if the stretch is free. It then proceeds."""
    zones = traffic.narrow.get(i, [])
    if traffic.passed[i] >= len(zones):
        return np.inf
    zone = zones[traffic.passed[i]]
    d, v = zone.begin_s - float(traffic.s[i]), float(traffic.v[i])
    if d > max(8.0, v * v / 3.0 + 4.0):
        return np.inf
    if d < -3.0 or _free(traffic, i, zone):
        traffic.passed[i] += 1
        return np.inf
    return d


def _free(traffic: Traffic, i: int, zone: Narrow) -> bool:
    """Whether there is no oncoming traffic near the stretch and no overtaking vehicle beside it."""
    at = min(int((zone.begin_s + zone.end_s) / 2 / STEP_M), traffic.path.shape[1] - 1)
    heading = traffic.path_heading[i, at]
    to = traffic.xy - traffic.path[i, at]
    ahead = to[:, 0] * np.cos(heading) + to[:, 1] * np.sin(heading)
    left = to[:, 1] * np.cos(heading) - to[:, 0] * np.sin(heading)
    facing = np.cos(traffic.psi - heading)
    half = (zone.end_s - zone.begin_s) / 2
    oncoming = (facing < -0.5) & (left > -2.5) & (left < 5.5) & (ahead > -half) & (ahead < half + 6 + ONCOMING_S * traffic.v)
    beside = (facing > 0.5) & (left > 0.5) & (left < 5.0) & (ahead < half) & (ahead > -half - 6 - 3.0 * traffic.v)
    blocked = oncoming | beside
    blocked[i] = False
    return not blocked.any()
