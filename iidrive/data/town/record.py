"""Conversion of a finished simulation to a Scene: boxes, keyframes, collision check, and painting of boxes into occupancy grids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int, UInt8

from iidrive.core import geometry
from iidrive.core.classes import CATEGORY_INDEX, OCC_OF_CATEGORY
from iidrive.core.scene import Boxes, GridSpec, Keyframe, Pose, Scene, VectorMap
from iidrive.data.town.agents import EGO_AXLE_M, EGO_SIZE_M, Mover, Still, Walker
from iidrive.data.town.route import Route
from iidrive.data.town.traffic import Tracks

Array = np.ndarray

_LIDAR_AHEAD_M = 0.94
EGO_T_LIDAR = Pose(geometry.yaw_quaternion(-np.pi / 2), np.array([_LIDAR_AHEAD_M, 0.0, 1.84]))
LISTED_M = 80.0
SEEN_M = 55.0
CLEARANCE_M = 0.2
"""The ego's box, enlarged by this on every side, must not touch anything at any keyframe, metres."""

GROUND_SKIN_M = 0.05
"""Voxels with centres below this height stay ground when boxes are painted, metres."""


@dataclass(frozen=True)
class Cast:
    """All road users except the ego, over t frames.

    Attributes:
        centre: (t,n,2) centres, global frame, metres.
        yaw: (t,n) headings, radians.
        size: (n,3) length, width, height, metres.
        label: (n,) index into `CATEGORIES`.
        kind: (n,) 0 for vehicles and cyclists in traffic, 1 for walking pedestrians, 2 for static boxes.
        crosses: (n,) true for pedestrians who use a crossing, where vehicles stop for them.
    """

    centre: Float[Array, "t n 2"]
    yaw: Float[Array, "t n"]
    size: Float[Array, "n 3"]
    label: Int[Array, "n"]
    kind: Int[Array, "n"]
    crosses: Bool[Array, "n"]

    def select(self, keep: Bool[Array, "n"]) -> Cast:
        """The road users where `keep` is true."""
        return Cast(self.centre[:, keep], self.yaw[:, keep], self.size[keep], self.label[keep], self.kind[keep], self.crosses[keep])


def token(*parts: object) -> str:
    """A token of 32 hexadecimal digits, the same on every machine."""
    return hashlib.sha256("/".join(str(p) for p in parts).encode()).hexdigest()[:32]


def assemble(movers: list[Mover], walkers: list[Walker], heights_m: Float[Array, "w"], still: list[Still], tracks: Tracks) -> Cast:
    """Combine movers (without the ego), walkers with these heights, and static boxes in one cast."""
    frames = len(tracks.axle)
    axle = np.array([m.axle_m for m in movers[1:]])
    ahead = np.stack([np.cos(tracks.heading[:, 1:]), np.sin(tracks.heading[:, 1:])], -1)
    rest = np.array([s.xy for s in still]).reshape(-1, 2)
    rest_yaw = np.array([s.yaw_rad for s in still])
    people = np.stack([np.full(len(walkers), 0.6), np.full(len(walkers), 0.6), heights_m], -1)
    names = [m.category for m in movers[1:]] + ["human.pedestrian.adult"] * len(walkers) + [s.category for s in still]
    sizes = [np.array([m.size_m for m in movers[1:]]).reshape(-1, 3), people, np.array([s.size_m for s in still]).reshape(-1, 3)]
    crosses = [False] * (len(movers) - 1) + [w.crossing >= 0 for w in walkers] + [False] * len(still)
    return Cast(
        np.concatenate([tracks.axle[:, 1:] + axle[:, None] * ahead, tracks.walker, np.broadcast_to(rest, (frames, *rest.shape))], 1),
        np.concatenate([tracks.heading[:, 1:], tracks.walker_heading, np.broadcast_to(rest_yaw, (frames, len(still)))], 1),
        np.concatenate(sizes),
        np.array([CATEGORY_INDEX[n] for n in names], dtype=np.int64),
        np.repeat([0, 1, 2], [len(movers) - 1, len(walkers), len(still)]),
        np.array(crosses, dtype=bool),
    )  # fmt: skip


def settle(cast: Cast, tracks: Tracks) -> Bool[Array, "n"] | None:
    """Mask of the cast to keep: pedestrians on pavements who touch something are removed.

    None if a vehicle, a pedestrian on a crossing, or the ego touches something: the simulation is then rejected.
    """
    touching = _touching(cast)
    vehicle = cast.kind == 0
    # Vehicles ignore pedestrians on pavements, so those can be removed. Road users that traffic reacted to must stay.
    lesser = (cast.kind == 1) & ~cast.crosses
    drop = np.zeros(len(cast.kind), bool)
    for i, j in sorted(touching):
        if drop[i] or drop[j]:
            continue
        if lesser[i] or lesser[j]:
            drop[j if lesser[j] else i] = True
        elif (cast.kind[i] == 2) != (cast.kind[j] == 2) and not vehicle[i] and not vehicle[j]:
            drop[j if cast.kind[j] == 2 else i] = True
        else:
            return None
    return None if _ego_touches(cast.select(~drop), tracks) else ~drop


def _polygons(centre: Array, size: Array, yaw: Array) -> Array:
    return np.asarray(shapely.polygons(geometry.box_corners_bev(centre, size[..., 0], size[..., 1], yaw)))


def _touching(cast: Cast) -> set[tuple[int, int]]:
    """Pairs (i < j) of road users that overlap at a keyframe. Pairs of static boxes are not checked."""
    radius = np.hypot(cast.size[:, 0], cast.size[:, 1]) / 2
    found: set[tuple[int, int]] = set()
    moves = np.flatnonzero(cast.kind < 2)
    gap = cast.centre[:, moves, None] - cast.centre[:, None]
    close = (gap**2).sum(-1) < (radius[moves][:, None] + radius[None]) ** 2
    t, a, j = np.nonzero(close)
    i = moves[a]
    once = i < j
    t, i, j = t[once], i[once], j[once]
    first = _polygons(cast.centre[t, i], cast.size[i], cast.yaw[t, i])
    second = _polygons(cast.centre[t, j], cast.size[j], cast.yaw[t, j])
    for k in np.flatnonzero(shapely.intersects(first, second)):
        found.add((int(i[k]), int(j[k])))
    return found


def ego_headings(path: Float[Array, "t 2"], yaw: Float[Array, "t"]) -> Float[Array, "4 t"]:
    """Headings that different protocols may use for the ego: its true one, and those of central, backward and forward differences."""
    steps = np.diff(path, axis=0)
    forward, backward = np.concatenate([steps, steps[-1:]]), np.concatenate([steps[:1], steps])
    out = [yaw]
    for d in (forward + backward, backward, forward):
        moved = np.hypot(d[:, 0], d[:, 1]) > 1e-3
        out.append(np.where(moved, np.arctan2(d[:, 1], d[:, 0]), yaw))
    return np.stack(out)


def _ego_touches(cast: Cast, tracks: Tracks) -> bool:
    yaw = tracks.heading[:, 0]
    lidar = tracks.axle[:, 0] + _LIDAR_AHEAD_M * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    headings = ego_headings(lidar, yaw)
    centre = lidar + (EGO_AXLE_M - _LIDAR_AHEAD_M) * np.stack([np.cos(headings), np.sin(headings)], -1)
    grown = np.array(EGO_SIZE_M) + 2 * CLEARANCE_M
    bodies = _polygons(centre, np.broadcast_to(grown, (*centre.shape[:2], 3)), headings)
    near = ((cast.centre - lidar[:, None]) ** 2).sum(-1) < (5.0 + np.hypot(cast.size[:, 0], cast.size[:, 1]) / 2) ** 2
    t, i = np.nonzero(near)
    others = _polygons(cast.centre[t, i], cast.size[i], cast.yaw[t, i])
    return bool(shapely.intersects(bodies[:, t], others[None]).any())


def track_names(name: str, count: int) -> tuple[str, ...]:
    """Track tokens of the `count` road users of a scene."""
    return tuple(token(name, "track", k) for k in range(count))


def boxes_at(cast: Cast, t: int, axle: Float[Array, "2"], names: tuple[str, ...]) -> Boxes:
    """Boxes of frame `t` of a cast within 80 m of the ego's rear axle, in the global frame."""
    share = np.array([0.6 + int(n[:4], 16) / 65536 * 0.8 for n in names])
    distance = np.hypot(*(cast.centre[t] - axle).T)
    keep = distance < LISTED_M
    area = (cast.size[:, 0] + cast.size[:, 1]) / 2 * cast.size[:, 2]
    # A 32-beam LIDAR has about 300 points on a car 10 m away; the number falls with the squared distance.
    points = np.maximum(np.minimum(6000 * share * area / np.maximum(distance, 3.0) ** 2, 3000), 1).astype(np.int64)
    points[distance > SEEN_M] = 0
    centre = np.concatenate([cast.centre[t][keep], cast.size[keep, 2:] / 2], -1)
    tracks_here = tuple(name for name, k in zip(names, keep, strict=True) if k)
    return Boxes("global", centre, cast.size[keep], cast.yaw[t][keep], cast.label[keep], tracks_here, points[keep])


def record(name: str, cast: Cast, tracks: Tracks, route: Route, layers: VectorMap) -> Scene:
    """Make the scene: keyframes 500 ms apart, boxes within 80 m of the ego, commands from the route."""
    names = track_names(name, len(cast.kind))
    start_us = 1_500_000_000_000_000 + int(token(name)[:9], 16)
    keyframes = []
    for t, (axle, yaw) in enumerate(zip(tracks.axle[:, 0], tracks.heading[:, 0], strict=True)):
        pose = Pose.from_xy_yaw(float(axle[0]), float(axle[1]), float(yaw))
        boxes = boxes_at(cast, t, axle, names)
        keyframes.append(Keyframe(token(name, t), start_us + 500_000 * t, pose, EGO_T_LIDAR, boxes, route.command(axle)))
    return Scene(name, tuple(keyframes), layers)


def paint_boxes(semantics: UInt8[Array, "x y z"], boxes: Boxes, spec: GridSpec) -> None:
    """Paint boxes (ego frame) into a grid, in place: voxels with their centre inside a box, and at least the column at the box's centre.

    Large boxes are painted first, so that a person close to a vehicle stays visible. `voxelise` has another rule for heights; using it here
    would change generated towns.
    """
    lower, size, v = np.array(spec.lower_m), boxes.size_m, spec.voxel_m
    reach = np.hypot(size[:, 0], size[:, 1]) / 2
    inside = ((boxes.centre_m[:, :2] + reach[:, None] > lower[:2]) & (boxes.centre_m[:, :2] - reach[:, None] < spec.upper_m[:2])).all(1)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-size[order].prod(1), kind="stable")]
    cx, cy, cz = (spec.centres(k) for k in range(3))
    for k in order:
        (x, y, z), (length, width, height) = boxes.centre_m[k], size[k]
        i0, i1 = (int(np.clip((x + s * reach[k] - lower[0]) / v + s, 0, spec.shape[0])) for s in (-1, 1))
        j0, j1 = (int(np.clip((y + s * reach[k] - lower[1]) / v + s, 0, spec.shape[1])) for s in (-1, 1))
        layers = np.flatnonzero((cz >= max(z - height / 2, GROUND_SKIN_M)) & (cz <= z + height / 2))
        if len(layers) == 0:
            layers = np.array([int(np.clip((z - lower[2]) / v, 0, spec.shape[2] - 1))])
        dx, dy = (cx[i0:i1] - x)[:, None], (cy[j0:j1] - y)[None]
        cos, sin = np.cos(boxes.yaw_rad[k]), np.sin(boxes.yaw_rad[k])
        mask = (np.abs(dx * cos + dy * sin) <= length / 2) & (np.abs(dy * cos - dx * sin) <= width / 2)
        i, j = int(np.floor((x - lower[0]) / v)), int(np.floor((y - lower[1]) / v))
        if i0 <= i < i1 and j0 <= j < j1:
            mask[i - i0, j - j0] = True
        occupied = OCC_OF_CATEGORY[boxes.label[k]]
        semantics[i0:i1, j0:j1, layers[0] : layers[-1] + 1][mask] = occupied
