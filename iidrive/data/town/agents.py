"""Road users of the town: vehicles with routes, pedestrians with paths on pavements and over crossings, and static boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.core import footprint
from iidrive.data.town.disturb import Lapse
from iidrive.data.town.roads import Roads, arclength, sample, tangents
from iidrive.data.town.route import Route, walk_route
from iidrive.data.town.static import Surroundings

Array = np.ndarray

EGO_SIZE_M = (*footprint.EGO_SIZE_M, 1.56)
EGO_AXLE_M = footprint.EGO_CENTRE_M

ROUTE_M = 320.0

Reserved = dict[int, list[tuple[float, float]]]

# category: frequency, length, width, height (metres), wheelbase / length, agility
KINDS: dict[str, tuple[float, float, float, float, float, float]] = {
    "vehicle.car": (0.66, 4.5, 1.85, 1.6, 0.62, 1.0),
    "vehicle.truck": (0.1, 6.8, 2.35, 2.8, 0.6, 0.85),
    "vehicle.bus.rigid": (0.08, 10.5, 2.6, 3.3, 0.55, 0.8),
    "vehicle.bicycle": (0.16, 1.75, 0.6, 1.6, 0.6, 0.55),
}

PARKED: dict[str, tuple[float, float, float, float]] = {
    "vehicle.car": (0.88, 4.5, 1.85, 1.6),
    "vehicle.truck": (0.12, 6.4, 2.1, 2.6),
}


@dataclass(frozen=True)
class Script:
    """Scripted behaviour of a staged vehicle. It shares the ego's route unless it `comes_first`.

    The script is triggered when the ego would reach the vehicle's rear within `near_s` seconds.

    Attributes:
        from_m: lateral offset from the route before the trigger, metres to the right.
        to_m: lateral offset after the trigger, metres to the right.
        over_m: length over which it changes to `to_m`, metres.
        near_s: time gap of the ego that triggers the script, seconds.
        stands_s: it stands until this long after the trigger, seconds; None if it does not stand.
        pace: factor on the route's speed.
        comes_first: it claims junctions from far away, as a vehicle with the right of way.
    """

    from_m: float = 0.0
    to_m: float = 0.0
    over_m: float = 10.0
    near_s: float = 0.0
    stands_s: float | None = None
    pace: float = 1.0
    comes_first: bool = False


@dataclass(frozen=True)
class Mover:
    """A vehicle or cyclist in traffic.

    Attributes:
        category: nuScenes category, or `ego`.
        size_m: length, width, height, metres.
        axle_m: distance from the rear axle to the box centre, metres.
        wheelbase_m: wheelbase, metres.
        route: its route.
        start_s: arc length on the route at the start, metres.
        start_mps: initial speed.
        right_m: lateral offset from the route, metres to the right.
        acceleration: maximum acceleration of the driver model, m/s².
        headway_s: time headway of the driver model, seconds.
        wander_phase: phase of the small lateral oscillation, radians.
        script: behaviour of a staged vehicle; None for normal traffic.
        swerve_m: (n,) disturbance of a disturbed ego: metres to the right at each route sample; None for none.
        lapses: periods in which a disturbed ego slows down for no reason.
    """

    category: str
    size_m: tuple[float, float, float]
    axle_m: float
    wheelbase_m: float
    route: Route
    start_s: float
    start_mps: float
    right_m: float
    acceleration: float
    headway_s: float
    wander_phase: float
    script: Script | None = None
    swerve_m: Float[Array, "n"] | None = None
    lapses: tuple[Lapse, ...] = ()


@dataclass(frozen=True)
class Walker:
    """A pedestrian.

    Attributes:
        points: (n,2) path, sampled every half metre, global frame.
        pace_mps: walking speed.
        crossing: index of the crossing that it uses; -1 for none.
        begin_s: arc length where the crossing begins, metres.
        end_s: arc length where it ends, metres.
        from_left: whether it crosses from the left kerb.
        steps_out_s: if above 0, it steps on the road without waiting when the ego is this many seconds away.
    """

    points: Float[Array, "n 2"]
    pace_mps: float
    crossing: int
    begin_s: float
    end_s: float
    from_left: bool
    steps_out_s: float = 0.0


@dataclass(frozen=True)
class Still:
    """A static box: category, position, heading, and size (length, width, height), metres."""

    category: str
    xy: Float[Array, "2"]
    yaw_rad: float
    size_m: tuple[float, float, float]


def spawn_ego(rng: np.random.Generator, roads: Roads) -> Mover:
    """Place the ego on a lane that leads into a junction near the centre of the town."""
    middle = roads.nodes.mean(0)
    distance = np.array([np.hypot(*(lane.points[-1] - middle)) for lane in roads.lanes])
    good = np.array([lane.length_m > 28 and bool(roads.degree[lane.end] > 2) for lane in roads.lanes])
    ranked = np.argsort(np.where(good, distance, np.inf))[:24]
    lane = int(rng.choice(ranked))
    route = walk_route(rng, roads, lane, ROUTE_M, 1.3, True, float(rng.uniform(0.85, 1.02)))
    length = roads.lanes[lane].length_m
    start = float(np.clip(length - rng.uniform(22, 85), 3.0, length - 14.0))
    speed = float(min(route.speed_mps[int(start * 2)], 6.0))
    return Mover(
        "ego", EGO_SIZE_M, EGO_AXLE_M, 2.6, route, start, speed, 0.0, float(rng.uniform(1.7, 2.5)), float(rng.uniform(1.1, 1.6)), 0.0
    )


def _mover(rng: np.random.Generator, roads: Roads, lane: int, start_s: float, category: str) -> Mover:
    _, length, width, height, base, agility = KINDS[category]
    scale = rng.uniform(0.92, 1.08)
    size = (length * scale, width * rng.uniform(0.96, 1.04), height * rng.uniform(0.93, 1.08))
    long = size[0] > 6
    route = walk_route(rng, roads, lane, ROUTE_M, 0.15 if long else 0.8, False, agility * float(rng.uniform(0.85, 1.05)))
    at = min(int(start_s * 2), len(route.speed_mps) - 1)
    right = float(rng.uniform(0.7, 1.0)) if category == "vehicle.bicycle" else 0.0
    return Mover(
        category, size, size[0] * 0.33, size[0] * base, route, start_s, float(min(route.speed_mps[at], 5.0)), right,
        float(rng.uniform(1.0, 1.5) if long else rng.uniform(1.6, 2.6)), float(rng.uniform(1.0, 1.6)), float(rng.uniform(0, 6.28)),
    )  # fmt: skip


def spawn_movers(
    rng: np.random.Generator, roads: Roads, ego: Mover, density: float, staged: tuple[Mover, ...] = (), reserved: Reserved | None = None
) -> list[Mover]:
    """All vehicles: the ego, then the `staged` ones, usually one ahead of the ego, then traffic on the lanes around its route.

    No vehicle is placed on `reserved` stretches: lane → (from, to) by arc length, metres. With `reserved`, no extra vehicle is placed ahead
    of the ego.
    """
    names, shares = list(KINDS), np.array([k[0] for k in KINDS.values()])
    taken: dict[int, list[tuple[float, float]]] = {ego.route.lanes[0]: [(ego.start_s - 4, ego.start_s + 6)]}
    for lane, stretches in (reserved or {}).items():
        taken.setdefault(lane, []).extend(stretches)
    movers = [ego, *staged]

    def put(lane: int, s: float, category: str) -> None:
        length = KINDS[category][1]
        low, high = s - length * 0.3 - 3, s + length + 4
        if s < 1 + length * 0.25 or high > roads.lanes[lane].length_m - 3:
            return
        if length > 8 and not roads.lanes[lane].large_vehicles:
            return
        if any(low < b and a < high for a, b in taken.get(lane, [])):
            return
        taken.setdefault(lane, []).append((low, high))
        movers.append(_mover(rng, roads, lane, s, category))

    if not reserved and rng.random() < min(0.8 * density, 0.95):
        ahead = ego.start_s + rng.uniform(11, 32)
        lane = 0
        while ahead > roads.lanes[ego.route.lanes[lane]].length_m - 14 and lane < 2:
            ahead = max(ahead - roads.lanes[ego.route.lanes[lane]].length_m - 15, 4.0)
            lane += 1
        put(ego.route.lanes[lane], ahead, str(rng.choice(names, p=shares / shares.sum())))
    around = ego.route.points[:340:10]
    far = np.array([((lane.points[:, None] - around) ** 2).sum(-1).min() for lane in roads.lanes])
    near = [int(k) for k in np.flatnonzero(far < 75.0**2)]
    gap = rng.uniform(30, 90) / max(density, 1e-3)
    for lane in rng.permutation(near):
        s = rng.exponential(gap) * 0.5 + 2
        while s < roads.lanes[lane].length_m:
            put(int(lane), float(s), str(rng.choice(names, p=shares / shares.sum())))
            s += 9 + rng.exponential(gap)
    return movers[: 1 + len(staged) + int(18 * max(density, 0.1))]


def _rings(drivable: shapely.Geometry, out_m: float) -> list[Array]:
    """Closed paths at a constant distance from the kerb, sampled every half metre."""
    rings = shapely.get_rings(shapely.get_parts(shapely.buffer(drivable, out_m, quad_segs=4)))
    ways = []
    for ring in rings:
        points = shapely.get_coordinates(ring)
        along = arclength(points)
        if along[-1] > 40:
            ways.append(sample(points, along, np.linspace(0, along[-1], int(along[-1] * 2), endpoint=False)))
    return ways


def _cut(ring: Array, start: int, steps: int, sign: int) -> Array:
    return ring[(start + sign * np.arange(steps)) % len(ring)]


def spawn_walkers(rng: np.random.Generator, roads: Roads, around: Surroundings, ego: Mover, density: float) -> list[Walker]:
    """Pedestrians on pavements and at crossings.

    On pavements the distance from the kerb sets the direction, so that they do not collide.
    """
    inner, outer = _rings(around.drivable, 1.2), _rings(around.drivable, 1.95)
    seen = ego.route.points[:300:10]
    walkers: list[Walker] = []
    for rings, sign, pace in ((inner, 1, 1.25), (outer, -1, 1.45)):
        for ring in rings:
            near = np.flatnonzero((((ring[:, None] - seen) ** 2).sum(-1).min(1)) < 45.0**2)
            if len(near) == 0:
                continue
            speed = pace * rng.uniform(0.85, 1.15)
            for start in rng.choice(near, min(rng.poisson(0.009 * density * len(near)), 10), replace=False):
                walkers.append(Walker(_cut(ring, int(start), 90, sign), speed, -1, 0.0, 0.0, True))
    starts = np.array([w.points[0] for w in walkers]).reshape(-1, 2)
    kept: list[Walker] = []
    for k, walker in enumerate(walkers):
        if all(np.hypot(*(starts[k] - w.points[0])) > 1.6 for w in kept):
            kept.append(walker)
    walkers = kept[:28]
    flat = np.concatenate(inner)
    owner = np.repeat(np.arange(len(inner)), [len(r) for r in inner])
    first = np.concatenate([[0], np.cumsum([len(r) for r in inner])])
    on_route = {z.crossing for z in ego.route.zebras if z.begin_s < 160}
    for k in sorted({c for street in around.streets for c in roads.marked_crossings(street)}):
        crossing = roads.crossings[k]
        middle = (crossing.left + crossing.right) / 2
        if ((seen - middle) ** 2).sum(-1).min() > 40.0**2:
            continue
        for _ in range(rng.poisson((1.0 if k in on_route else 0.4) * density)):
            walkers.append(_crosser(rng, crossing.left, crossing.right, k, inner, flat, owner, first))
    return walkers


def _crosser(
    rng: np.random.Generator, left: Array, right: Array, crossing: int, rings: list[Array], flat: Array, owner: Array, first: Array
) -> Walker:
    from_left = bool(rng.random() < 0.5)
    start, end = (left, right) if from_left else (right, left)
    axis = (end - start) / np.hypot(*(end - start))
    keep = rng.uniform(0.3, 1.1) * np.array([axis[1], -axis[0]])

    def nearest(p: Array) -> tuple[Array, int]:
        k = int(np.argmin(((flat - p) ** 2).sum(-1)))
        return rings[owner[k]], k - int(first[owner[k]])

    ring_a, at_a = nearest(start - 1.2 * axis + keep)
    ring_b, at_b = nearest(end + 1.2 * axis + keep)
    before = _cut(ring_a, at_a, int(rng.uniform(3, 70)), int(rng.choice([-1, 1])))[::-1]
    after = _cut(ring_b, at_b, 70, int(rng.choice([-1, 1])))
    raw = np.concatenate([before, after])
    along = arclength(raw)
    begin, finish = float(along[len(before) - 1]), float(along[len(before)])
    points = sample(raw, along, np.arange(0, along[-1], 0.5))
    return Walker(points, float(rng.uniform(1.15, 1.7)), crossing, begin + 0.8, finish - 0.8, from_left)


def spawn_still(rng: np.random.Generator, roads: Roads, around: Surroundings, density: float, people: float) -> list[Still]:
    """Static boxes: parked vehicles, barriers of road works, parked bicycles and standing people."""
    still: list[Still] = []
    names, shares = list(PARKED), np.array([k[0] for k in PARKED.values()])
    for number in around.streets:
        street = roads.streets[number]
        along = arclength(street.points)
        direction = tangents(street.points)
        ends = np.stack(
            [(roads.crossings[c].left + roads.crossings[c].right) / 2 for c in roads.marked_crossings(number)] or [np.full(2, 1e9)]
        )
        spots = along[np.argmin(((street.points[:, None] - ends) ** 2).sum(-1), axis=0)]

        def at(s: float, right_m: float, line: Array = street.points, a: Array = along, d: Array = direction) -> tuple[Array, float]:
            t = sample(d, a, np.array([s]))[0]
            t = t / np.hypot(*t)
            return sample(line, a, np.array([s]))[0] + right_m * np.array([t[1], -t[0]]), float(np.arctan2(t[1], t[0]))

        low, high = street.trim_m[0] + 7.0, along[-1] - street.trim_m[1] - 7.0
        for side, sign in ((0, -1.0), (1, 1.0)):
            turn = np.pi if side == 0 else 0.0
            kerb = street.half_m[side]
            works = rng.random() < 0.35
            if street.parking_m[side]:
                full = min(rng.uniform(0.25, 0.9) * density, 1.0)
                begin = rng.uniform(low, max(low + 1, high - 20)) if works else np.inf
                s = low + rng.uniform(0, 3)
                while s < high:
                    name = str(rng.choice(names, p=shares))
                    _, length, width, height = PARKED[name]
                    size = (length * rng.uniform(0.93, 1.07), width * rng.uniform(0.95, 1.03), height * rng.uniform(0.93, 1.08))
                    middle = s + size[0] / 2
                    blocked = (np.abs(spots - middle) < 5.5 + size[0] / 2).any() or begin - 4 < middle < begin + 18
                    if rng.random() < full and not blocked and middle + size[0] / 2 < high:
                        xy, yaw = at(middle, sign * (kerb - 0.15 - size[1] / 2))
                        still.append(Still(name, xy, yaw + turn + rng.normal(0, 0.015), size))
                    s += size[0] + rng.uniform(0.7, 1.6)
                for k in range(7 if works else 0):
                    s = begin + 2 * k
                    if s < high and (np.abs(spots - s) > 4).all():
                        xy, yaw = at(s, sign * (kerb - (1.0 if k in (0, 6) else 1.7)))
                        still.append(Still("movable_object.barrier", xy, yaw + np.pi / 2, (0.5, 1.7, 1.0)))
            walk = street.sidewalk_m[side]
            for _ in range(rng.poisson(0.022 * people * max(high - low, 0))):
                if walk > 3.6 or rng.random() < 0.3:
                    xy, yaw = at(rng.uniform(low, max(high, low + 1)), sign * (kerb + rng.uniform(2.65, max(2.7, walk - 0.5))))
                    kind = "human.pedestrian.adult" if rng.random() < 0.9 else "human.pedestrian.child"
                    tall = rng.uniform(1.6, 1.9) if kind.endswith("adult") else rng.uniform(1.0, 1.4)
                    still.append(Still(kind, xy, rng.uniform(-np.pi, np.pi), (0.65, 0.65, tall)))
            for _ in range(rng.poisson(0.03 * max(high - low, 0)) if walk > 3.8 else 0):
                xy, yaw = at(rng.uniform(low, max(high, low + 1)), sign * (kerb + walk - 0.45))
                still.append(Still("vehicle.bicycle", xy, yaw, (1.7, 0.55, 1.2)))
    return _apart(still, around)


def _apart(still: list[Still], around: Surroundings) -> list[Still]:
    """The boxes that touch no building, wall, hedge or earlier box."""
    kept: list[Still] = []
    solid = shapely.union_all([b for b, _ in around.buildings] + [s for s, _ in around.strips])
    shapely.prepare(solid)
    centres = np.array([s.xy for s in still]).reshape(-1, 2)
    inside = np.atleast_1d(shapely.dwithin(shapely.points(centres), solid, 0.5))
    for k, thing in enumerate(still):
        reach = [max(other.size_m[0], other.size_m[1]) / 2 + max(thing.size_m[0], thing.size_m[1]) / 2 + 0.2 for other in kept]
        gaps = np.hypot(*(np.array([o.xy for o in kept]).reshape(-1, 2) - thing.xy).T)
        if not inside[k] and (gaps > np.array(reach)).all():
            kept.append(thing)
    return kept
