"""Routes: planned paths along lanes and links, their junctions and crossings, and the driving commands along them.

A route does not depend on traffic, so its commands cannot leak the future.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from iidrive.core.geometry import wrap_angle
from iidrive.core.scene import Command, Manoeuvre
from iidrive.data.town.roads import CROSSING_M, Roads, arclength, sample, tangents

Array = np.ndarray

STEP_M = 0.5
"""Spacing of the samples of a route, metres."""

COMMAND_M = 28.0
"""Distance before a manoeuvre at which its command begins, metres."""

LATERAL_ACC = 2.6
BRAKE_ACC = 1.8


def smooth(x: Array) -> Array:
    """Smoothstep: 0 below 0, 1 above 1, with a continuous derivative."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def lane_id(lane: int) -> str:
    """Map id of a street's lane."""
    return f"lane-{lane}"


def link_id(link: int) -> str:
    """Map id of a link between lanes of two streets."""
    return f"link-{link}"


@dataclass(frozen=True)
class Gate:
    """A junction on a route.

    Attributes:
        stop_s: arc length where the vehicle's front stops if the junction is not free, metres.
        enter_s: arc length where the junction begins, metres.
        exit_s: arc length where it ends, metres.
        node: index of the junction.
        link: index of the link that is taken.
        stop_sign: whether there is a stop sign.
    """

    stop_s: float
    enter_s: float
    exit_s: float
    node: int
    link: int
    stop_sign: bool


@dataclass(frozen=True)
class Zebra:
    """A pedestrian crossing on a route, from arc length `begin_s` to `end_s`.

    `across_m` is the lane's distance from its left kerb, metres.
    """

    begin_s: float
    end_s: float
    crossing: int
    across_m: float


@dataclass(frozen=True)
class Route:
    """A planned path along lanes, sampled every `STEP_M`.

    Attributes:
        points: (n,2) points, global frame, metres.
        heading: (n,) headings, radians.
        speed_mps: (n,) speed of a careful driver.
        lanes: indices of the lanes.
        links: indices of the links; `links[i]` leads from `lanes[i]` to `lanes[i + 1]`.
        gates: junctions.
        zebras: pedestrian crossings.
        turns: manoeuvres at junctions: (begin, end, manoeuvre), by arc length, metres.
    """

    points: Float[Array, "n 2"]
    heading: Float[Array, "n"]
    speed_mps: Float[Array, "n"]
    lanes: tuple[int, ...]
    links: tuple[int, ...]
    gates: tuple[Gate, ...]
    zebras: tuple[Zebra, ...]
    turns: tuple[tuple[float, float, Manoeuvre], ...]

    @property
    def lane_ids(self) -> tuple[str, ...]:
        """Map ids of the lanes and links of the route, in order."""
        ids = [lane_id(self.lanes[0])]
        for link, lane in zip(self.links, self.lanes[1:], strict=True):
            ids += [link_id(link), lane_id(lane)]
        return tuple(ids)

    def station(self, xy: Float[Array, "2"]) -> float:
        """Arc length of the sample nearest to a position, metres."""
        return float(np.argmin(((self.points - xy) ** 2).sum(-1))) * STEP_M

    def command(self, xy: Float[Array, "2"]) -> Command:
        """Driving command at a position: the manoeuvre that begins within `COMMAND_M` or is in progress, else straight.

        It depends only on the route and the position.
        """
        s = self.station(xy)
        for begin, end, manoeuvre in self.turns:
            if begin - COMMAND_M <= s <= end:
                return Command(manoeuvre, "route")
        return Command("straight", "route")


def walk_route(
    rng: np.random.Generator, roads: Roads, lane: int, length_m: float, turning: float, fresh: bool, agility: float = 1.0
) -> Route:
    """A random route of at least `length_m` metres from the start of a lane.

    Args:
        rng: random generator.
        roads: the roads.
        lane: index of the first lane.
        length_m: minimum length, metres.
        turning: weight of left turns relative to going straight.
        fresh: avoid passing a junction twice where possible, so that a position is unique on the route.
        agility: factor on the driver's speed.
    """
    lanes, links, length = [lane], [], roads.lanes[lane].length_m
    seen = {roads.lanes[lane].start}
    while length < length_m:
        here = roads.lanes[lanes[-1]]
        choices = list(roads.links_of[lanes[-1]])
        seen.add(here.end)
        unseen = [c for c in choices if roads.lanes[roads.links[c].lane_out].end not in seen]
        if fresh and unseen:
            choices = unseen
        # Right turns are short, and of two lanes only the outer one allows them, so without a larger weight they would be rare.
        share = {"straight": 1.0, "left": turning, "right": 1.5 * turning}
        weight = np.array([share[roads.links[c].manoeuvre] for c in choices])
        pick = int(rng.choice(choices, p=weight / weight.sum()))
        links.append(pick)
        lanes.append(roads.links[pick].lane_out)
        length += float(arclength(roads.links[pick].points)[-1]) + roads.lanes[lanes[-1]].length_m
    return make_route(roads, lanes, links, agility)


def make_route(roads: Roads, lanes: list[int], links: list[int], agility: float = 1.0) -> Route:
    """The route along given lanes. `links[i]` leads from `lanes[i]` to `lanes[i + 1]`."""
    pieces, limits, gates, zebras, turns, s = [], [], [], [], [], 0.0
    for i, number in enumerate(lanes):
        lane = roads.lanes[number]
        along = arclength(lane.points)
        pieces.append(lane.points if i == 0 else lane.points[1:])
        limits.append(np.full(len(pieces[-1]), lane.limit_mps))
        stop_s = s + lane.length_m - 1.0
        for k in roads.crossings_of[lane.street]:
            crossing = roads.crossings[k]
            axis = crossing.right - crossing.left
            width = float(np.hypot(*axis))
            offset = (lane.points - crossing.left) @ np.array([-axis[1], axis[0]]) / width
            nearest = int(np.argmin(np.abs(offset)))
            across = float((lane.points[nearest] - crossing.left) @ axis / width)
            middle = s + along[nearest] + abs(float(offset[nearest])) * (1 if nearest < len(along) - 1 else 0)
            zebras.append(Zebra(middle - CROSSING_M / 2, middle + CROSSING_M / 2, k, across))
            if s + lane.length_m - middle < 6.0:
                stop_s = middle - CROSSING_M / 2 - 1.0
        s += lane.length_m
        if i == len(links):
            break
        link = roads.links[links[i]]
        span = float(arclength(link.points)[-1])
        pieces.append(link.points[1:])
        limits.append(np.full(len(link.points) - 1, lane.limit_mps))
        if roads.degree[lane.end] > 2:
            gates.append(Gate(stop_s, s, s + span, lane.end, links[i], roads.stop_sign[(lane.end, lane.to_arm)]))
            if link.manoeuvre != "straight":
                turns.append((s, s + span, link.manoeuvre))
        s += span
    raw = np.concatenate(pieces)
    along = arclength(raw)
    at = np.arange(0.0, along[-1], STEP_M)
    points = sample(raw, along, at)
    heading = np.unwrap(np.arctan2(*tangents(points).T[::-1]))
    curvature = np.abs(np.convolve(np.gradient(heading, STEP_M), np.ones(7) / 7, mode="same"))
    speed = np.minimum(np.interp(at, along, np.concatenate(limits)), np.sqrt(LATERAL_ACC / np.maximum(curvature, 1e-4))) * agility
    # Limit the speed so that braking for slower parts ahead is possible: v(k)^2 <= v(j)^2 + 2 b (s_j - s_k) for every j >= k.
    energy = speed**2 + 2 * BRAKE_ACC * at
    speed = np.sqrt(np.minimum.accumulate(energy[::-1])[::-1] - 2 * BRAKE_ACC * at)
    return Route(
        points, wrap_angle(heading), speed, tuple(lanes), tuple(links), tuple(gates), tuple(sorted(zebras, key=lambda z: z.begin_s)),
        tuple(turns),
    )  # fmt: skip
