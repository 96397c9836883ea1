"""Roads of the town: a bent grid of streets, their lanes, the links through junctions, and pedestrian crossings.

Everything is planar and in the global frame, metres. Traffic keeps right. `arm` k of a junction points along the junction's own
rotation plus k quarter turns, so that opposite streets meet head-on and streets between junctions become curves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.core.scene import Manoeuvre

Array = np.ndarray
SideKind = Literal["urban", "suburb", "park"]

GRID = 6
CROSSING_M = 3.0
FILLET_M = 5.0


@dataclass(frozen=True)
class Street:
    """One street between two junctions: centreline (n,2) from junction `a` to `b`, and what stands along it.

    `trim_m` is how far from either junction's centre the lanes end; pairs are (left, right) of the direction a to b.
    """

    a: int
    b: int
    arm_a: int
    arm_b: int
    points: Float[Array, "n 2"]
    lanes: int
    lane_m: float
    median_m: float
    parking_m: tuple[float, float]
    sidewalk_m: tuple[float, float]
    kind: tuple[SideKind, SideKind]
    limit_mps: float
    trim_m: tuple[float, float]

    @property
    def half_m(self) -> tuple[float, float]:
        """Distance from the centreline to the (left, right) kerb."""
        base = self.median_m / 2 + self.lanes * self.lane_m + 0.3
        return (base + self.parking_m[0], base + self.parking_m[1])

    def offset(self, right_m: float) -> Float[Array, "n 2"]:
        """The centreline shifted to its right, metres."""
        return offset_line(self.points, right_m)

    def strip(self, from_m: float, to_m: float) -> shapely.Polygon:
        """The band between two offsets to the right (negative: left) of the centreline."""
        return shapely.Polygon(np.concatenate([self.offset(from_m), self.offset(to_m)[::-1]]))

    def driven(self) -> Float[Array, "n 2"]:
        """The part of the centreline between the junctions, along which the lanes run."""
        along = arclength(self.points)
        at = np.linspace(self.trim_m[0], along[-1] - self.trim_m[1], max(3, int(along[-1] / 2)))
        return sample(self.points, along, at)

    def part(self, start_m: float, end_m: float) -> Street | None:
        """The street cut to an interval of arc length, metres; None if less than 2 m is left."""
        along = arclength(self.points)
        start_m, end_m = max(start_m, 0.0), min(end_m, along[-1])
        if end_m - start_m < 2.0:
            return None
        at = np.linspace(start_m, end_m, max(2, int((end_m - start_m) / 2) + 1))
        return Street(**{**self.__dict__, "points": sample(self.points, along, at)})


@dataclass(frozen=True)
class Lane:
    """One lane of a street in its driving direction; `index` 0 is the innermost. `to_arm` is the arm at which it enters junction `end`."""

    street: int
    index: int
    start: int
    end: int
    from_arm: int
    to_arm: int
    points: Float[Array, "n 2"]
    limit_mps: float
    large_vehicles: bool
    length_m: float


@dataclass(frozen=True)
class Link:
    """A path through a junction, from the end of one lane to the start of another."""

    lane_in: int
    lane_out: int
    manoeuvre: Manoeuvre
    points: Float[Array, "n 2"]


@dataclass(frozen=True)
class Crossing:
    """A pedestrian crossing: kerb points left and right of its street. If it is not `marked`, pedestrians cross without a painted crossing."""

    street: int
    left: Float[Array, "2"]
    right: Float[Array, "2"]
    marked: bool = True

    @property
    def polygon(self) -> shapely.Polygon:
        """The painted area."""
        axis = (self.right - self.left) / np.linalg.norm(self.right - self.left)
        side = np.array([-axis[1], axis[0]]) * CROSSING_M / 2
        return shapely.Polygon(np.stack([self.left + side, self.left - side, self.right - side, self.right + side]))


@dataclass
class Roads:
    """The road network; `links_of[lane]` lists the links that leave a lane."""

    nodes: Float[Array, "n 2"]
    degree: Array
    streets: tuple[Street, ...]
    lanes: tuple[Lane, ...]
    links: tuple[Link, ...]
    links_of: tuple[tuple[int, ...], ...]
    crossings: tuple[Crossing, ...]
    crossings_of: dict[int, list[int]]
    stop_sign: dict[tuple[int, int], bool]
    _conflict: dict[tuple[int, int], float] = field(default_factory=dict)

    def marked_crossings(self, street: int) -> list[int]:
        """The painted crossings of a street."""
        return [k for k in self.crossings_of[street] if self.crossings[k].marked]

    def with_crossing(self, crossing: Crossing) -> Roads:
        """A copy of the roads with `crossing` appended."""
        of = {**self.crossings_of, crossing.street: [*self.crossings_of[crossing.street], len(self.crossings)]}
        return replace(self, crossings=(*self.crossings, crossing), crossings_of=of)

    def clear_after(self, first: int, second: int) -> float:
        """How far along link `first` a vehicle's rear must be before link `second` is free of it; 0 if they never meet.

        Links from one lane follow each other and do not count as meeting.
        """
        key = (first, second)
        if key not in self._conflict:
            one, two = self.links[first], self.links[second]
            gap = ((one.points[:, None] - two.points[None]) ** 2).sum(-1).min(1)
            close = np.flatnonzero(gap < 2.8**2)
            meet = one.lane_in != two.lane_in and len(close) > 0
            self._conflict[key] = float(arclength(one.points)[close[-1]]) + 0.5 if meet else 0.0
        return self._conflict[key]


def arclength(points: Float[Array, "n 2"]) -> Float[Array, "n"]:
    """Arc length at each point of a polyline."""
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def sample(points: Float[Array, "n 2"], along: Float[Array, "n"], at: Float[Array, "m"]) -> Float[Array, "m 2"]:
    """Points of a polyline at given arc lengths."""
    return np.stack([np.interp(at, along, points[:, 0]), np.interp(at, along, points[:, 1])], -1)


def tangents(points: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """Unit direction at each point of a polyline."""
    d = np.gradient(points, axis=0)
    return d / np.maximum(np.hypot(d[:, 0], d[:, 1]), 1e-9)[:, None]


def offset_line(points: Float[Array, "n 2"], right_m: float) -> Float[Array, "n 2"]:
    """A polyline shifted to its right, metres."""
    t = tangents(points)
    return points + right_m * np.stack([t[:, 1], -t[:, 0]], -1)


def _curve(start: Array, start_dir: Array, end: Array, end_dir: Array, handle: float, n: int) -> Array:
    """Cubic Bezier with given end directions; `handle` is the length of its handles, metres."""
    t = np.linspace(0, 1, n)[:, None]
    one, two = start + handle * start_dir, end - handle * end_dir
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * one + 3 * (1 - t) * t**2 * two + t**3 * end


def _unit(angle: float) -> Array:
    return np.array([np.cos(angle), np.sin(angle)])


def _kind(rng: np.random.Generator, park: float) -> SideKind:
    return "park" if rng.random() < park else ("urban" if rng.random() < 0.55 else "suburb")


def _topology(rng: np.random.Generator) -> tuple[list[tuple[int, int, int]], Array]:
    """Streets (from, to, grid line) that remain after random removals, and the number of arms of each junction."""
    pairs = [(i * GRID + j, (i + 1) * GRID + j, j) for i in range(GRID - 1) for j in range(GRID)]
    pairs += [(i * GRID + j, i * GRID + j + 1, GRID + i) for i in range(GRID) for j in range(GRID - 1)]
    degree = np.bincount(np.array([p[:2] for p in pairs]).ravel(), minlength=GRID * GRID)
    kept = []
    for k in rng.permutation(len(pairs)):
        a, b, _ = pairs[k]
        if rng.random() < 0.22 and degree[a] > 2 and degree[b] > 2:
            degree[[a, b]] -= 1
        else:
            kept.append(pairs[k])
    return sorted(kept), degree


def build_roads(rng: np.random.Generator) -> Roads:
    """A town's road network."""
    gaps = rng.uniform(64, 112, (2, GRID - 1))
    xs, ys = (np.concatenate([[0.0], np.cumsum(g)]) for g in gaps)
    grid = np.stack(np.meshgrid(xs - xs.mean(), ys - ys.mean(), indexing="ij"), -1).reshape(-1, 2)
    grid = grid + rng.uniform(-11, 11, grid.shape)
    turn = rng.uniform(-np.pi, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    nodes = grid @ rotation.T + rng.uniform(400, 1600, 2)
    bend = rng.uniform(0.05, 0.32)
    facing = turn + rng.uniform(-bend, bend, len(nodes))
    pairs, degree = _topology(rng)

    # One character per grid line, so that a street keeps its width across junctions.
    lines = 2 * GRID
    lanes_of = 1 + (rng.random(lines) < 0.35).astype(int)
    lane_m = rng.uniform(3.2, 3.7, lines)
    median = np.where((lanes_of == 2) & (rng.random(lines) < 0.6), rng.uniform(1.2, 3.0, lines), 0.0)
    parking = np.where(rng.random((lines, 2)) < 0.5, 2.3, 0.0)
    limit = np.where(lanes_of == 2, rng.uniform(11.0, 13.0, lines), rng.uniform(9.5, 12.0, lines))
    base = median / 2 + lanes_of * lane_m + 0.3 + parking.max(1)
    park = rng.uniform(0.05, 0.35)

    at: dict[int, dict[int, int]] = {n: {} for n in range(len(nodes))}
    for a, b, line in pairs:
        arm = 0 if line < GRID else 1
        at[a][arm], at[b][arm + 2] = line, line

    def trim(node: int, arm: int) -> float:
        side = [base[line] for k, line in at[node].items() if (k - arm) % 2 == 1]
        extra = FILLET_M + (4.0 if degree[node] == 2 else 0.0)
        return (max(side) + extra) if side else 2.0

    streets = []
    for a, b, line in pairs:
        arm = 0 if line < GRID else 1
        length = float(np.hypot(*(nodes[b] - nodes[a])))
        count = max(8, int(length / 2))
        direction = arm * np.pi / 2
        points = _curve(nodes[a], _unit(facing[a] + direction), nodes[b], _unit(facing[b] + direction), length * 0.34, count)
        kinds = (_kind(rng, park), _kind(rng, park))
        walk = tuple(3.0 + (rng.uniform(0.0, 2.5) if k == "urban" else 0.0) for k in kinds)
        streets.append(
            Street(a, b, arm, arm + 2, points, int(lanes_of[line]), float(lane_m[line]), float(median[line]),
                   (float(parking[line, 0]), float(parking[line, 1])), (walk[0], walk[1]), kinds, float(limit[line]),
                   (trim(a, arm), trim(b, arm + 2)))
        )  # fmt: skip
    lanes = _lanes(streets)
    links = _links(lanes, facing, degree)
    links_of = tuple(tuple(k for k, link in enumerate(links) if link.lane_in == i) for i in range(len(lanes)))
    crossings, crossings_of = _crossings(rng, streets, degree)
    all_way = rng.random(len(nodes)) < 0.22
    stop_sign = {}
    for lane in lanes:
        cross = [lanes_of[line] for k, line in at[lane.end].items() if (k - lane.to_arm) % 2 == 1]
        minor = bool(cross) and max(cross) > streets[lane.street].lanes
        stop_sign[(lane.end, lane.to_arm)] = bool(degree[lane.end] > 2 and (minor or all_way[lane.end]))
    return Roads(nodes, degree, tuple(streets), lanes, links, links_of, crossings, crossings_of, stop_sign)


def _lanes(streets: list[Street]) -> tuple[Lane, ...]:
    lanes = []
    for number, street in enumerate(streets):
        middle = street.driven()
        for index in range(street.lanes):
            right = street.median_m / 2 + (index + 0.5) * street.lane_m
            for ahead in (True, False):
                points = offset_line(middle, right) if ahead else offset_line(middle, -right)[::-1]
                ends = (street.a, street.b, street.arm_a, street.arm_b)
                start, end, from_arm, to_arm = ends if ahead else (ends[1], ends[0], ends[3], ends[2])
                length = float(arclength(points)[-1])
                lanes.append(Lane(number, index, start, end, from_arm, to_arm, points, street.limit_mps, street.lanes == 2, length))
    return tuple(lanes)


def _links(lanes: tuple[Lane, ...], facing: Array, degree: Array) -> tuple[Link, ...]:
    leaving: dict[int, list[int]] = {}
    for k, lane in enumerate(lanes):
        leaving.setdefault(lane.start, []).append(k)
    links = []
    for k, lane in enumerate(lanes):
        arms: dict[int, list[int]] = {}
        for other in leaving[lane.end]:
            if lanes[other].from_arm != lane.to_arm:
                arms.setdefault((lanes[other].from_arm - lane.to_arm - 2) % 4, []).append(other)
        count = 1 + max(other.index for other in lanes if other.street == lane.street)
        found: list[tuple[Manoeuvre, int]] = []
        for quarter, outs in arms.items():
            outs = sorted(outs, key=lambda o: lanes[o].index)
            same = outs[min(lane.index, len(outs) - 1)]
            if degree[lane.end] == 2 or quarter == 0:
                found.append(("straight", same))
            elif quarter == 1 and lane.index == 0:
                found.append(("left", outs[0]))
            elif quarter == 3 and lane.index == count - 1:
                found.append(("right", outs[-1]))
        if not found:
            for quarter, outs in arms.items():
                which: Manoeuvre = "left" if quarter == 1 else "right"
                found.append((which, sorted(outs, key=lambda o: lanes[o].index)[min(lane.index, len(outs) - 1)]))
        for manoeuvre, out in found:
            start, end = lane.points[-1], lanes[out].points[0]
            before, after = tangents(lane.points)[-1], tangents(lanes[out].points)[0]
            distance = float(np.hypot(*(end - start)))
            bent = abs(before[0] * after[1] - before[1] * after[0])
            points = _curve(start, before, end, after, distance * (0.34 + 0.05 * bent), max(6, int(distance)))
            links.append(Link(k, out, manoeuvre, points))
    return tuple(links)


def _crossings(rng: np.random.Generator, streets: list[Street], degree: Array) -> tuple[tuple[Crossing, ...], dict[int, list[int]]]:
    crossings, of = [], {}
    for number, street in enumerate(streets):
        along = arclength(street.points)
        spots = []
        if degree[street.a] > 2 and rng.random() < 0.6:
            spots.append(street.trim_m[0] + 1.0 + CROSSING_M / 2)
        if degree[street.b] > 2 and rng.random() < 0.6:
            spots.append(along[-1] - street.trim_m[1] - 1.0 - CROSSING_M / 2)
        if along[-1] - sum(street.trim_m) > 40 and rng.random() < 0.3:
            spots.append(street.trim_m[0] + (along[-1] - sum(street.trim_m)) * rng.uniform(0.42, 0.58))
        left_m, right_m = street.half_m
        of[number] = []
        for spot in spots:
            left = sample(street.offset(-left_m), along, np.array([spot]))[0]
            right = sample(street.offset(right_m), along, np.array([spot]))[0]
            of[number].append(len(crossings))
            crossings.append(Crossing(number, left, right))
    return tuple(crossings), of
