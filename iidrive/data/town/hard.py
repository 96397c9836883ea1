"""Hard scenes: one road user is staged such that the ego would collide with it if it kept its route and speed. Includes the check of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.core import geometry
from iidrive.core.scene import STEP_S
from iidrive.data.town.agents import EGO_AXLE_M, EGO_SIZE_M, KINDS, ROUTE_M, Mover, Reserved, Script, Still, Walker
from iidrive.data.town.roads import Crossing, Roads, Street, arclength, sample
from iidrive.data.town.route import STEP_M, Route, make_route, walk_route

Array = np.ndarray

HardKind = Literal["cut_in", "jaywalker", "double_parking", "cyclist_beside", "stopped_leader", "left_turn"]
HARD_KINDS: tuple[HardKind, ...] = get_args(HardKind)

AHEAD_S = 4.0
"""The ego, keeping its route and speed, must collide with the staged road user within this time, seconds."""
FINE_S = 0.1
LEAST_MPS = 2.0
"""Keyframes at which the ego is slower than this are not tested, m/s."""
LEAST_DRIVEN_M = 20.0
"""A scene in which the ego drives less than this is stuck rather than hard, metres per 20 s."""

EARLIEST_S, LATEST_S = 2.5, 11.0
"""Range of the time at which the ego reaches the place of the conflict, seconds after the first keyframe."""


@dataclass(frozen=True)
class Stage:
    """A town's roads and ego, with one staged road user: the first of `movers`, `walkers` or `still`.

    `blocks` are those of `still` that stand in a lane, `reserved` the parts of lanes without other traffic, `clear` the area without other objects.
    """

    roads: Roads
    ego: Mover
    movers: tuple[Mover, ...] = ()
    walkers: tuple[Walker, ...] = ()
    still: tuple[Still, ...] = ()
    blocks: tuple[Still, ...] = ()
    reserved: Reserved = field(default_factory=dict)
    clear: shapely.Geometry = field(default_factory=shapely.Polygon)

    def room(self, still: list[Still]) -> list[Still]:
        """The objects that are neither in the cleared area nor overlap a staged object."""
        own = [_outline(thing, 0.3) for thing in self.still]
        area = shapely.union_all([self.clear, *own])
        return [thing for thing in still if not shapely.intersects(area, _outline(thing, 0.0))]

    def named(self, movers: int, walkers: int) -> int:
        """Index of the staged road user in a cast with `movers` vehicles (without the ego) and `walkers` pedestrians."""
        if self.movers:
            return 0
        return movers if self.walkers else movers + walkers


@dataclass(frozen=True)
class _Stretch:
    """A lane of the ego's route, as an interval of arc length, and the expected time of the ego at the route's samples, seconds after the first
    keyframe."""

    begin_s: float
    end_s: float
    lane: int
    street: Street
    outer: bool
    parking_m: float
    time_s: Float[Array, "n"]

    def spots(self, before_m: float, after_m: float) -> Array:
        """Arc lengths at least `before_m` and `after_m` from the ends of the stretch that the ego reaches between EARLIEST_S and LATEST_S."""
        at = np.arange(len(self.time_s)) * STEP_M
        good = (at > self.begin_s + before_m) & (at < self.end_s - after_m) & (self.time_s > EARLIEST_S) & (self.time_s < LATEST_S)
        return at[good]


def stage(kind: HardKind, rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """Stage one road user in the ego's way. Returns None if this town and route have no place for it."""
    make = {
        "cut_in": _cut_in,
        "jaywalker": _jaywalker,
        "double_parking": _double_parking,
        "cyclist_beside": _cyclist,
        "stopped_leader": _stopped_leader,
        "left_turn": _left_turn,
    }[kind]
    return make(rng, roads, ego, warm_s)


def evidence(
    route: Route, ego_m: Float[Array, "n 2"], speed_mps: Float[Array, "n"], centre: Float[Array, "n 2"], yaw: Float[Array, "n"], size: Array
) -> tuple[int, float] | None:
    """The first keyframe at which the ego, keeping its route and speed, would collide within AHEAD_S, and the seconds until then; None if never.

    All states are FINE_S apart and start at the first keyframe: rear axle and speed of the ego, centre and heading of the other road user.
    """
    every, most = round(STEP_S / FINE_S), round(AHEAD_S / FINE_S)
    along = np.arange(len(route.points)) * STEP_M
    turned = np.unwrap(route.heading)
    for k in range(0, len(ego_m), every):
        steps = np.arange(1, min(most, len(ego_m) - 1 - k) + 1)
        if speed_mps[k] < LEAST_MPS or not len(steps):
            continue
        at = int(np.argmin(((route.points - ego_m[k]) ** 2).sum(-1)))
        d = ego_m[k] - route.points[at]
        s = at * STEP_M + d[0] * np.cos(route.heading[at]) + d[1] * np.sin(route.heading[at])
        s = np.minimum(s + speed_mps[k] * steps * FINE_S, along[-1])
        heading = np.interp(s, along, turned)
        middle = sample(route.points, along, s) + EGO_AXLE_M * np.stack([np.cos(heading), np.sin(heading)], -1)
        n = len(steps)
        body = geometry.box_corners_bev(middle, np.full(n, EGO_SIZE_M[0]), np.full(n, EGO_SIZE_M[1]), heading)
        other = geometry.box_corners_bev(centre[k + steps], np.full(n, size[0]), np.full(n, size[1]), yaw[k + steps])
        touch = np.flatnonzero(shapely.intersects(shapely.polygons(body), shapely.polygons(other)))
        if len(touch):
            return k // every, round(float(steps[touch[0]] * FINE_S), 3)
    return None


def _outline(thing: Still, grow_m: float) -> shapely.Polygon:
    size = np.array(thing.size_m) + 2 * grow_m
    return shapely.Polygon(geometry.box_corners_bev(thing.xy, size[0], size[1], np.asarray(thing.yaw_rad)))


def _time(route: Route, start_s: float, start_mps: float, warm_s: float) -> Array:
    """Time at which an unobstructed vehicle reaches each sample of its route, seconds after the first keyframe."""
    along = np.arange(len(route.points)) * STEP_M
    speed = np.minimum(route.speed_mps, np.sqrt(start_mps**2 + 2 * 1.5 * np.maximum(along - start_s, 0.0)))
    time = np.concatenate([[0.0], np.cumsum(STEP_M / np.maximum(speed[:-1], 0.5))])
    return time - np.interp(start_s, along, time) - warm_s


def _stretches(roads: Roads, ego: Mover, warm_s: float) -> Iterator[_Stretch]:
    time, s = _time(ego.route, ego.start_s, ego.start_mps, warm_s), 0.0
    for number, link in zip(ego.route.lanes, (*ego.route.links, -1), strict=True):
        lane = roads.lanes[number]
        street = roads.streets[lane.street]
        yield _Stretch(
            s, s + lane.length_m, number, street, lane.index == street.lanes - 1, street.parking_m[1 if lane.start == street.a else 0], time
        )
        s += lane.length_m + (float(arclength(roads.links[link].points)[-1]) if link >= 0 else 0.0)


def _choose(rng: np.random.Generator, options: list[tuple[_Stretch, float]]) -> tuple[_Stretch, float] | None:
    return options[int(rng.integers(len(options)))] if options else None


def _vehicle(rng: np.random.Generator, category: str, route: Route, start_s: float, start_mps: float, script: Script) -> Mover:
    _, length, width, height, base, _ = KINDS[category]
    size = (length * float(rng.uniform(0.94, 1.06)), width, height)
    return Mover(
        category, size, size[0] * 0.33, size[0] * base, route, start_s, start_mps, script.from_m, float(rng.uniform(1.6, 2.4)),
        float(rng.uniform(1.0, 1.5)), float(rng.uniform(0, 6.28)), script,
    )  # fmt: skip


def _beside(route: Route, from_s: float, to_s: float, from_m: float, to_m: float) -> shapely.Polygon:
    """Polygon along a route between two offsets to its right, metres."""
    part = slice(int(from_s / STEP_M), int(to_s / STEP_M) + 1)
    points, heading = route.points[part], route.heading[part]
    right = np.stack([np.sin(heading), -np.cos(heading)], -1)
    return shapely.Polygon(np.concatenate([points + from_m * right, (points + to_m * right)[::-1]]))


def _far_from_zebras(route: Route, spots: Array, before_m: float, after_m: float) -> Array:
    near = [(spots > z.begin_s - before_m) & (spots < z.end_s + after_m) for z in route.zebras]
    return spots[~np.any(near, axis=0)] if near else spots


def _stopped_leader(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """A vehicle stands in the lane after a bend, and drives on after the ego has waited some seconds."""
    heading = np.unwrap(ego.route.heading)
    options = []
    for stretch in _stretches(roads, ego, warm_s):
        for s in stretch.spots(9.0, 8.0):
            k = int(s / STEP_M)
            bend = np.abs(heading[max(k - 16, 0)] - heading[max(k - 70, 0)])
            if bend > 0.5 and s > ego.start_s + 30:
                options.append((stretch, float(s)))
    found = _choose(rng, options)
    if found is None:
        return None
    stretch, s = found
    category = str(rng.choice(["vehicle.car", "vehicle.car", "vehicle.truck"]))
    script = Script(near_s=1.0, stands_s=float(rng.uniform(3.0, 7.0)))
    leader = _vehicle(rng, category, ego.route, s, 0.0, script)
    return Stage(roads, ego, (leader,), reserved={stretch.lane: [(s - stretch.begin_s - 6, s - stretch.begin_s + 10)]})


def _cut_in(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """A slower vehicle changes into the ego's lane just ahead of it, or a parked one pulls out from the kerb."""
    route = ego.route
    options: list[tuple[_Stretch, float, bool]] = []
    for stretch in _stretches(roads, ego, warm_s):
        if stretch.outer and stretch.parking_m:
            options += [(stretch, float(s), False) for s in _far_from_zebras(route, stretch.spots(8.0, 20.0), 14.0, 9.0)]
        if stretch.street.lanes == 2:
            options += [(stretch, float(s), True) for s in stretch.spots(25.0, 15.0)]
    if not options:
        return None
    stretch, s, changes = options[int(rng.integers(len(options)))]
    if changes:
        pace = float(rng.uniform(0.45, 0.65))
        k = int(s / STEP_M)
        speed = pace * float(route.speed_mps[k])
        start = s + 9.0 - speed * (float(stretch.time_s[k]) + warm_s)
        if start < stretch.begin_s + 3:
            return None
        side = 1.0 if not stretch.outer else -1.0
        script = Script(side * stretch.street.lane_m, 0.0, float(rng.uniform(9, 14)), float(rng.uniform(0.8, 1.5)), pace=pace)
        lanes = [i for i, lane in enumerate(roads.lanes) if lane.street == roads.lanes[stretch.lane].street]
        beside = next(i for i in lanes if roads.lanes[i].start == roads.lanes[stretch.lane].start and i != stretch.lane)
        place = start - stretch.begin_s
        car = _vehicle(rng, "vehicle.car", route, start, speed, script)
        return Stage(roads, ego, (car,), reserved={beside: [(place - 10, place + 25)], stretch.lane: [(place - 8, place + 40)]})
    width = KINDS["vehicle.car"][2]
    aside = stretch.street.lane_m / 2 + 0.3 + stretch.parking_m - 0.15 - width / 2
    script = Script(aside, 0.0, float(rng.uniform(8, 11)), float(rng.uniform(1.6, 2.5)), stands_s=0.0)
    car = _vehicle(rng, "vehicle.car", route, s, 0.0, script)
    clear = _beside(route, s - 3.0, s + 16.0, stretch.street.lane_m / 2, aside + width / 2 + 0.3)
    return Stage(roads, ego, (car,), reserved={stretch.lane: [(s - stretch.begin_s - 8, s - stretch.begin_s + 20)]}, clear=clear)


def _cyclist(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """A cyclist at the edge of the lane swerves into the ego's path as the ego approaches."""
    route = ego.route
    options = [(x, float(s)) for x in _stretches(roads, ego, warm_s) if x.outer for s in x.spots(20.0, 12.0)]
    found = _choose(rng, options)
    if found is None:
        return None
    stretch, s = found
    k = int(s / STEP_M)
    speed = float(rng.uniform(2.4, 4.2))
    start = s + 6.0 - speed * (float(stretch.time_s[k]) + warm_s)
    if start < stretch.begin_s + 2 or route.speed_mps[k] < speed + 1.5:
        return None
    pace = speed / float(route.speed_mps[k])
    script = Script(stretch.street.lane_m / 2 - 0.05, float(rng.uniform(0.1, 0.6)), 4.0, float(rng.uniform(0.7, 1.3)), pace=pace)
    rider = _vehicle(rng, "vehicle.bicycle", route, start, speed, script)
    place = start - stretch.begin_s
    clear = _beside(route, start - 3, s + 12, stretch.street.lane_m / 2 - 0.5, stretch.street.lane_m / 2 + 0.4)
    return Stage(roads, ego, (rider,), reserved={stretch.lane: [(place - 8, place + 40)]}, clear=clear)


def _double_parking(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """A vehicle stands in the right part of the ego's lane. The ego passes it when there is no oncoming traffic."""
    route = ego.route
    options = []
    for stretch in _stretches(roads, ego, warm_s):
        if stretch.outer and not stretch.street.median_m:
            options += [(stretch, float(s)) for s in _far_from_zebras(route, stretch.spots(24.0, 17.0), 16.0, 12.0)]
    found = _choose(rng, options)
    if found is None or found[1] < ego.start_s + 25:
        return None
    stretch, s = found
    category = str(rng.choice(["vehicle.car", "vehicle.truck"]))
    _, length, width, height, _, _ = KINDS[category]
    size = (length * float(rng.uniform(0.95, 1.0)), width, height)
    aside = stretch.street.lane_m / 2 + 0.1 - width / 2 + float(rng.uniform(-0.2, 0.1))
    k = int(s / STEP_M)
    right = np.array([np.sin(route.heading[k]), -np.cos(route.heading[k])])
    block = Still(category, route.points[k] + aside * right, float(route.heading[k]), size)
    return Stage(
        roads, ego, still=(block,), blocks=(block,), reserved={stretch.lane: [(s - stretch.begin_s - 16, s - stretch.begin_s + 16)]}
    )


def _jaywalker(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """A pedestrian steps onto the road where there is no crossing, often between parked vehicles, when the ego is near."""
    route = ego.route
    options = [
        (x, float(s))
        for x in _stretches(roads, ego, warm_s)
        if x.outer and x.street.lanes == 1
        for s in _far_from_zebras(route, x.spots(14.0, 9.0), 9.0, 9.0)
    ]
    found = _choose(rng, options)
    if found is None:
        return None
    stretch, s = found
    street, k = stretch.street, int(s / STEP_M)
    ahead = np.array([np.cos(route.heading[k]), np.sin(route.heading[k])])
    right = np.array([ahead[1], -ahead[0]])
    near = route.points[k] + (street.lane_m / 2 + 0.3 + min(0.3, stretch.parking_m)) * right
    forward = roads.lanes[stretch.lane].start == street.a
    far_side = street.parking_m[0 if forward else 1]
    far = route.points[k] - (1.5 * street.lane_m + street.median_m + 0.3 + far_side) * right
    crossing = Crossing(roads.lanes[stretch.lane].street, *((far, near) if forward else (near, far)), marked=False)
    width = float(np.hypot(*(far - near)))
    raw = np.stack([near + 0.3 * right, far - 1.4 * right, far - 1.4 * right + 12.0 * ahead * rng.choice([-1.0, 1.0])])
    along = arclength(raw)
    pace = float(rng.uniform(1.2, 1.8))
    reach_s = (0.3 + float(np.hypot(*(near - route.points[k]))) - EGO_SIZE_M[1] / 2 - 0.3) / pace
    steps_out = max(reach_s + float(rng.uniform(-0.1, 0.7)), 1.15)
    points = sample(raw, along, np.arange(0, along[-1], STEP_M))
    walker = Walker(points, pace, len(roads.crossings), 0.1, width + 0.5, not forward, steps_out)
    roads = roads.with_crossing(crossing)
    # Only the route's crossings change: they say where the ego gives way.
    zebras = make_route(roads, list(route.lanes), list(route.links)).zebras
    still: tuple[Still, ...] = ()
    clear = _beside(route, s - 2.0, s + 2.0, street.lane_m / 2, street.lane_m / 2 + 0.3 + stretch.parking_m)
    if stretch.parking_m and rng.random() < 0.75:
        size = (float(rng.uniform(5.2, 6.4)), 2.05, float(rng.uniform(2.3, 2.8)))
        j = max(k - int((size[0] / 2 + 1.6) / STEP_M), 0)
        out = np.array([np.sin(route.heading[j]), -np.cos(route.heading[j])])
        xy = route.points[j] + (street.lane_m / 2 + 0.3 + stretch.parking_m - 0.12 - size[1] / 2) * out
        still = (Still("vehicle.truck", xy, float(route.heading[j]), size),)
    ego = replace(ego, route=replace(route, zebras=zebras))
    return Stage(
        roads,
        ego,
        walkers=(walker,),
        still=still,
        reserved={stretch.lane: [(s - stretch.begin_s - 8, s - stretch.begin_s + 8)]},
        clear=clear,
    )


def _left_turn(rng: np.random.Generator, roads: Roads, ego: Mover, warm_s: float) -> Stage | None:
    """An oncoming vehicle with the right of way drives straight on when the ego turns left at its first junction."""
    pairs = [(k, other) for k, link in enumerate(roads.links) if link.manoeuvre == "left" for other in _opposite(roads, k)]
    pairs = [(k, other) for k, other in pairs if roads.lanes[roads.links[k].lane_in].length_m > 46.0]
    if not pairs:
        return None
    middle = roads.nodes.mean(0)
    away = [np.hypot(*(roads.links[k].points[0] - middle)) for k, _ in pairs]
    left, straight = pairs[int(rng.choice(np.argsort(away, kind="stable")[:24]))]
    first = roads.links[left].lane_in
    room = roads.lanes[first].length_m - 42.0
    # The ego turns left at its first junction. It must reach it late enough to have a history.
    after = walk_route(rng, roads, roads.links[left].lane_out, ROUTE_M, 1.3, True)
    route = make_route(roads, [first, *after.lanes], [left, *after.links], float(rng.uniform(0.9, 1.02)))
    start = float(rng.uniform(max(3.0, room - 45.0), room))
    ego = replace(ego, route=route, start_s=start, start_mps=float(min(route.speed_mps[int(start / STEP_M)], 6.0)))
    time, gate = _time(route, start, ego.start_mps, warm_s), route.gates[0]
    if time[int(gate.enter_s / STEP_M)] < EARLIEST_S:
        return None
    lanes, links = [roads.links[straight].lane_in, roads.links[straight].lane_out], [straight]
    behind = [k for k, link in enumerate(roads.links) if link.lane_out == lanes[0] and link.manoeuvre == "straight"]
    if behind:
        first_link = int(rng.choice(behind))
        lanes, links = [roads.links[first_link].lane_in, *lanes], [first_link, *links]
    while len(lanes) < 6:
        onward = [k for k in roads.links_of[lanes[-1]] if roads.links[k].manoeuvre == "straight"] or list(roads.links_of[lanes[-1]])
        links.append(int(rng.choice(onward)))
        lanes.append(roads.links[links[-1]].lane_out)
    other = make_route(roads, lanes, links, float(rng.uniform(0.9, 1.05)))
    enter = next(g.enter_s for g in other.gates if g.link == straight)
    meet = float(time[int(gate.enter_s / STEP_M)]) + warm_s + float(rng.uniform(-0.6, 0.8))
    own = np.cumsum(STEP_M / np.maximum(other.speed_mps, 0.5))
    begin = float(np.interp(own[int(enter / STEP_M)] - meet, own, np.arange(len(own)) * STEP_M))
    if own[int(enter / STEP_M)] - meet < own[4]:
        return None
    car = _vehicle(rng, "vehicle.car", other, begin, float(other.speed_mps[int(begin / STEP_M)]), Script(comes_first=True))
    held, s = {}, 0.0
    for lane, link in zip(lanes, links, strict=False):
        if s <= begin < s + roads.lanes[lane].length_m:
            held[lane] = [(begin - s - 10, begin - s + 20)]
        s += roads.lanes[lane].length_m + float(arclength(roads.links[link].points)[-1])
    return Stage(roads, ego, (car,), reserved=held or {ego.route.lanes[0]: []})


def _opposite(roads: Roads, left: int) -> list[int]:
    """Links straight on from the opposite arm to which a left turn must give way, at junctions without stop signs."""
    lane, link = roads.lanes[roads.links[left].lane_in], roads.links[left]
    if roads.degree[lane.end] < 3 or roads.stop_sign[(lane.end, lane.to_arm)]:
        return []
    found = []
    for k, other in enumerate(roads.links):
        comes = roads.lanes[other.lane_in]
        facing = comes.end == lane.end and (comes.to_arm - lane.to_arm) % 4 == 2 and other.manoeuvre == "straight"
        if facing and link.lane_in != other.lane_in and not roads.stop_sign[(comes.end, comes.to_arm)] and roads.clear_after(k, left):
            found.append(k)
    return found
