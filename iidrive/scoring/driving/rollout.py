"""A driven scene: the ego and all other objects every 0.1 s, and the road.

Shapes: T time steps, H time steps before the first, n other objects, P plans, K steps per plan. Everything is in the global frame, in metres,
radians and seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int

from iidrive.core import geometry
from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M
from iidrive.core.scene import VectorMap
from iidrive.scoring.driving.tracking import DT_S

Array = np.ndarray

End = Literal["", "collision", "off road"]
"""Why a drive ended early: an at-fault collision, or the ego left the road. Empty if it did not."""


@dataclass(frozen=True)
class Others:
    """The boxes of other objects.

    `centre_m` (T,n,2), `yaw_rad` (T,n), `size_m` (n,2) length and width. `present` (T,n): whether the object exists at a time step. `agent` (n,):
    true for vehicles, pedestrians and cyclists. `track`: track ids.
    """

    centre_m: Float[Array, "t n 2"]
    yaw_rad: Float[Array, "t n"]
    size_m: Float[Array, "n 2"]
    present: Bool[Array, "t n"]
    agent: Bool[Array, "n"]
    track: tuple[str, ...]

    @cached_property
    def speed_mps(self) -> Float[Array, "t n"]:
        """Speed since the previous time step (at the first: until the next); 0 if the object is missing at one of the two."""
        if len(self.centre_m) < 2:
            return np.zeros(self.yaw_rad.shape)
        hop = np.hypot(*np.moveaxis(np.diff(self.centre_m, axis=0), -1, 0)) / DT_S
        hop = np.where(self.present[:-1] & self.present[1:], hop, 0.0)
        return np.concatenate([hop[:1], hop])

    def until(self, moments: int) -> Others:
        """Only the first `moments` time steps."""
        return replace(self, centre_m=self.centre_m[:moments], yaw_rad=self.yaw_rad[:moments], present=self.present[:moments])

    def polygons(self, t: Int[Array, "m"], i: Int[Array, "m"]) -> Array:
        """Polygons of objects `i` at time steps `t`."""
        return _polygons(self.centre_m[t, i], self.size_m[i], self.yaw_rad[t, i])


@dataclass(frozen=True)
class Ego:
    """The ego: rear axle positions (T,2), headings and speeds (T,)."""

    xy_m: Float[Array, "t 2"]
    yaw_rad: Float[Array, "t"]
    speed_mps: Float[Array, "t"]

    @staticmethod
    def joined(first: Ego, then: Ego) -> Ego:
        """The states of `first`, followed by those of `then`."""
        return Ego(*(np.concatenate([getattr(ego, f.name) for ego in (first, then)]) for f in fields(Ego)))

    @cached_property
    def ahead(self) -> Float[Array, "t 2"]:
        """Unit vectors of the headings."""
        return np.stack([np.cos(self.yaw_rad), np.sin(self.yaw_rad)], -1)

    @cached_property
    def centre_m(self) -> Float[Array, "t 2"]:
        """Centre of the ego's box."""
        return self.xy_m + EGO_CENTRE_M * self.ahead

    @cached_property
    def corners_m(self) -> Float[Array, "t 4 2"]:
        """Corners of the ego's box, counter-clockwise from front left."""
        length, width = (np.full(len(self.yaw_rad), side) for side in EGO_SIZE_M)
        return geometry.box_corners_bev(self.centre_m, length, width, self.yaw_rad)

    @cached_property
    def polygons(self) -> Array:
        """Polygon of the ego's box at every time step."""
        return np.asarray(shapely.polygons(self.corners_m))

    def pushed(self, seconds: float) -> Array:
        """Polygon of the ego's box at every time step, moved straight ahead at its speed for some seconds."""
        gone = (seconds * self.speed_mps)[:, None] * self.ahead
        return np.asarray(shapely.polygons(self.corners_m + gone[:, None]))


PAST_STEPS = 15
"""Largest number of states before the start of a drive: 1.5 s, as in the public scorers."""

NO_PAST = Ego(np.zeros((0, 2)), np.zeros(0), np.zeros(0))
"""The past of a drive of which nothing before its start is known."""


@dataclass(frozen=True)
class Rollout:
    """One driven scene: `ego` and `others` every 0.1 s. Time step 0 is the start.

    `plan_speed_mps` (P,K) and `plan_yaw_rad` (P,K+1): references of the followed plans, one every `plan_every` time steps; headings are in the ego
    frame of the plan. Empty for an agent without plans. `planned_moments`: planned length of the drive in time steps. `ended`: why it ended early.
    `past`: the ego at the H time steps before the start, the last one 0.1 s before it. Only comfort uses it.
    """

    name: str
    ego: Ego
    others: Others
    plan_speed_mps: Float[Array, "p k"]
    plan_yaw_rad: Float[Array, "p k1"]
    planned_moments: int
    ended: End = ""
    plan_every: int = 5
    past: Ego = NO_PAST

    @property
    def kilometres(self) -> float:
        """Distance driven by the rear axle, kilometres."""
        return float(np.hypot(*np.diff(self.ego.xy_m, axis=0).T).sum()) / 1000

    @property
    def seconds(self) -> float:
        """Duration of the drive, seconds."""
        return (len(self.ego.yaw_rad) - 1) * DT_S


@dataclass(frozen=True)
class Road:
    """The map data that a drive is scored with: drivable area, lanes, junctions, and the area and centreline of the route.

    `way_m` is the path of a recorded ego; progress is measured along it if there is no centreline. Fields that a source does not have are None, and
    the parts of the score that need them are left out with a reason.
    """

    drivable: shapely.Geometry
    lanes: tuple[shapely.Polygon, ...] = ()
    junctions: shapely.Geometry | None = None
    route: shapely.Geometry | None = None
    centreline_m: Float[Array, "n 2"] | None = None
    way_m: Float[Array, "n 2"] | None = None

    @staticmethod
    def of(
        layers: VectorMap,
        route_lanes: Sequence[str] = (),
        centreline_m: Float[Array, "n 2"] | None = None,
        way_m: Float[Array, "n 2"] | None = None,
    ) -> Road | None:
        """The road of a map; None if the map has no drivable area.

        Lanes beside the route's lanes that run in the same direction count as part of the route.
        """
        drivable = layers.layers.get("drivable_area")
        if drivable is None:
            return None
        junctions = shapely.union_all([j.polygon for j in layers.junctions]) if layers.junctions else None
        streets = tuple(lane.polygon for lane in layers.lanes if not lane.junction)
        route = _beside(layers, route_lanes) if route_lanes else None
        for geometry_ in (drivable, junctions, route):
            if geometry_ is not None:
                shapely.prepare(geometry_)
        return Road(drivable, streets, junctions, route, centreline_m, way_m)

    def off(self, corners_m: Float[Array, "*t 4 2"]) -> Bool[Array, "*t"]:
        """Whether at least one corner lies outside the drivable area."""
        outside: Array = np.asarray(~self.drives_on(corners_m).all(-1))
        return outside

    def drives_on(self, points_m: Float[Array, "*t 2"]) -> Bool[Array, "*t"]:
        """Whether points lie in the drivable area."""
        inside: Array = np.asarray(shapely.intersects_xy(self.drivable, points_m[..., 0], points_m[..., 1]))
        return inside

    def in_junction(self, points_m: Float[Array, "*t 2"]) -> Bool[Array, "*t"]:
        """Whether points lie in a junction."""
        if self.junctions is None:
            return np.zeros(points_m.shape[:-1], bool)
        return np.asarray(shapely.intersects_xy(self.junctions, points_m[..., 0], points_m[..., 1]))

    def on_route(self, points_m: Float[Array, "*t 2"]) -> Bool[Array, "*t"]:
        """Whether points lie in a lane of the route."""
        assert self.route is not None
        return np.asarray(shapely.intersects_xy(self.route, points_m[..., 0], points_m[..., 1]))

    def between_lanes(self, corners_m: Float[Array, "4 2"]) -> bool:
        """Whether the corners lie in more than one street lane and no lane contains all four."""
        points = shapely.points(corners_m)
        held = [count for lane in self.lanes if (count := int(shapely.intersects(lane, points).sum()))]
        return len(held) > 1 and max(held) < 4


_BESIDE_M = 0.3
_SAME_WAY = np.cos(np.deg2rad(60))


def _beside(layers: VectorMap, ids: Sequence[str]) -> shapely.Geometry:
    """The area of the lanes with these ids and of adjacent street lanes that run in the same direction."""
    wanted = set(ids)
    own = [lane for lane in layers.lanes if lane.id in wanted]
    found = [lane.polygon for lane in own]
    for lane in layers.lanes:
        if lane.id in wanted or lane.junction:
            continue
        for mine in own:
            if mine.junction or shapely.distance(mine.polygon, lane.polygon) > _BESIDE_M:
                continue
            shared = shapely.intersection(shapely.buffer(mine.polygon, _BESIDE_M), lane.polygon)
            if shared.length > 5.0 and _direction(mine.centreline_m) @ _direction(lane.centreline_m) > _SAME_WAY:
                found.append(lane.polygon)
                break
    return shapely.union_all(found)


def _direction(line_m: Float[Array, "n 2"]) -> Float[Array, "2"]:
    way = line_m[-1] - line_m[0]
    return way / max(float(np.hypot(*way)), 1e-9)


def _polygons(centre_m: Array, size_m: Array, yaw_rad: Array) -> Array:
    return np.asarray(shapely.polygons(geometry.box_corners_bev(centre_m, size_m[..., 0], size_m[..., 1], yaw_rad)))


def near(ego: Ego, others: Others, reach_m: float = 0.0) -> tuple[Int[Array, "m"], Int[Array, "m"]]:
    """Indices (time step, object) of pairs so close that the object's box may touch the ego's box, enlarged by `reach_m`."""
    radius = np.hypot(*EGO_SIZE_M) / 2 + np.hypot(others.size_m[:, 0], others.size_m[:, 1]) / 2 + reach_m
    close = ((others.centre_m - ego.centre_m[:, None]) ** 2).sum(-1) < radius**2
    t, i = np.nonzero(close & others.present)
    return t, i
