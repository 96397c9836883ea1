"""Routes through the town: a planned way along lanes and links, where it must give way, and what a navigator says on it.

A route knows nothing of traffic, so commands read from it can never tell the future.
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
"""A manoeuvre is announced this far before it begins."""

LATERAL_ACC = 2.6
BRAKE_ACC = 1.8


def smooth(x: Array) -> Array:
    """0 below 0, 1 above 1, without a bend in between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)


def lane_id(lane: int) -> str:
    """How the map calls a lane of a street."""
    return f"lane-{lane}"


def link_id(link: int) -> str:
    """How the map calls a way from one street's lane to another's."""
    return f"link-{link}"


@dataclass(frozen=True)
class Gate:
    """A junction on a route: where the front must stop when it is not free, where the junction begins and ends, and which way is taken."""

    stop_s: float
    enter_s: float
    exit_s: float
    node: int
    link: int
    stop_sign: bool


@dataclass(frozen=True)
class Zebra:
    """A crossing on a route, from `begin_s` to `end_s`; `across_m` is the lane's distance from the crossing's left kerb."""

    begin_s: float
    end_s: float
    crossing: int
    across_m: float


@dataclass(frozen=True)
class Route:
    """A planned way along lanes, sampled every STEP_M: points (n,2), heading (n,), the speed a careful driver would take (n,).

    It runs along `lanes` of the town's roads; `links[i]` leads from `lanes[i]` to `lanes[i + 1]`. `turns` are the junction manoeuvres
    (begin, end, which), by arc length.
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
        """Ids of the map's lanes that it takes, in order: lanes of streets and the ways between them."""
        ids = [lane_id(self.lanes[0])]
        for link, lane in zip(self.links, self.lanes[1:], strict=True):
            ids += [link_id(link), lane_id(lane)]
        return tuple(ids)

    def station(self, xy: Float[Array, "2"]) -> float:
        """Arc length of the route's point nearest to a position."""
        return float(np.argmin(((self.points - xy) ** 2).sum(-1))) * STEP_M

    def command(self, xy: Float[Array, "2"]) -> Command:
        """What a navigator says at a position: the manoeuvre that begins within COMMAND_M or is in progress, else straight.

        It reads nothing but the planned route and where the vehicle is.
        """
        s = self.station(xy)
        for begin, end, manoeuvre in self.turns:
            if begin - COMMAND_M <= s <= end:
                return Command(manoeuvre, "route")
        return Command("straight", "route")


def walk_route(
    rng: np.random.Generator, roads: Roads, lane: int, length_m: float, turning: float, fresh: bool, agility: float = 1.0
) -> Route:
    """A random route of at least `length_m` from the start of a lane; `turning` weighs turns against going straight.

    With `fresh` no junction is met twice, so that a position names one place on the route (as far as the grid allows).
    `agility` scales the speed that the driver takes.
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
        # Right turns are short, and of two lanes only the outer one allows them: without a bonus they would be rare.
        share = {"straight": 1.0, "left": turning, "right": 1.5 * turning}
        weight = np.array([share[roads.links[c].manoeuvre] for c in choices])
        pick = int(rng.choice(choices, p=weight / weight.sum()))
        links.append(pick)
        lanes.append(roads.links[pick].lane_out)
        length += float(arclength(roads.links[pick].points)[-1]) + roads.lanes[lanes[-1]].length_m
    return make_route(roads, lanes, links, agility)


def make_route(roads: Roads, lanes: list[int], links: list[int], agility: float = 1.0) -> Route:
    """The route along given lanes, `links[i]` joining `lanes[i]` to `lanes[i + 1]`."""
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
    # Slow enough everywhere to brake in time for what is ahead: v(k)^2 <= v(j)^2 + 2 b (s_j - s_k) for every j >= k.
    energy = speed**2 + 2 * BRAKE_ACC * at
    speed = np.sqrt(np.minimum.accumulate(energy[::-1])[::-1] - 2 * BRAKE_ACC * at)
    return Route(
        points, wrap_angle(heading), speed, tuple(lanes), tuple(links), tuple(gates), tuple(sorted(zebras, key=lambda z: z.begin_s)),
        tuple(turns),
    )  # fmt: skip
