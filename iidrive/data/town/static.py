"""Static objects of the town: surfaces, buildings, walls, trees, hedges and lamp posts, and their raster of columns.

The raster is fixed in the global frame. Each cell holds a column code (a ground surface and an object on it), so the occupancy of any grid
at any pose is one table look-up per column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float, UInt8
from shapely.geometry.base import BaseGeometry

from iidrive.core.classes import FREE, OCC
from iidrive.core.footprint import ranges
from iidrive.data.town.roads import Roads, Street, arclength, sample, tangents

Array = np.ndarray

WALK_M = 3.0
"""Minimum width of the pavement on either side of a road, metres."""

GROUND = ("terrain", "driveable_surface", "sidewalk", "other_flat")

Layer = tuple[float, float, str]
STANDING: tuple[tuple[Layer, ...], ...] = (
    (),
    *(((0.0, 3.0 + h, "manmade"),) for h in range(10)),
    ((0.0, 0.9, "manmade"),),
    ((0.0, 1.8, "manmade"),),
    ((0.0, 6.0, "manmade"),),
    ((0.0, 0.8, "vegetation"),),
    ((0.0, 1.6, "vegetation"),),
    *(((2.2, 4.0 + h, "vegetation"),) for h in range(4)),
    *(((0.0, 4.0 + h, "vegetation"),) for h in range(4)),
)
"""Objects that a cell may hold, as (bottom, top, class), metres above ground: 0 nothing; 1-10 buildings; 11-12 walls; 13 lamp post;
14-15 hedges; 16-19 tree crowns; 20-23 trunks."""

LOW_WALL, HIGH_WALL, POST, LOW_HEDGE, HIGH_HEDGE, CROWN, TRUNK = 11, 12, 13, 14, 15, 16, 20


@dataclass(frozen=True)
class Raster:
    """Column codes (x, y) of cells of `cell_m` metres. `origin` is the lower corner, global frame, metres."""

    codes: UInt8[Array, "x y"]
    origin: Float[Array, "2"]
    cell_m: float

    def look_up(self, xy: Float[Array, "*n 2"]) -> UInt8[Array, "*n"]:
        """Codes of the cells that contain these global points; 0 (open terrain) outside the raster."""
        at = np.floor((xy - self.origin) / self.cell_m).astype(np.int32)
        inside = np.all((at >= 0) & (at < np.array(self.codes.shape)), axis=-1)
        at = np.where(np.expand_dims(inside, -1), at, 0)
        return np.where(inside, self.codes[at[..., 0], at[..., 1]], 0).astype(np.uint8)


@dataclass(frozen=True)
class Surroundings:
    """Static geometry near the ego's route, global frame: surfaces, and objects with their codes in `STANDING`."""

    drivable: BaseGeometry
    walkway: BaseGeometry
    median: BaseGeometry
    buildings: tuple[tuple[shapely.Polygon, int], ...]
    strips: tuple[tuple[shapely.Polygon, int], ...]
    trees: Float[Array, "t 2"]
    tree_radius_m: Float[Array, "t"]
    tree_code: Array
    posts: Float[Array, "p 2"]
    streets: tuple[int, ...]


def column_table(bottom_m: float, layers: int, voxel_m: float) -> UInt8[Array, "codes layers"]:
    """Semantics of every column code on a grid's z axis.

    The layer that contains z = -0.01 has the ground class, and layers below are free. A voxel above has the class of the object at its
    centre.
    """
    centre = bottom_m + (np.arange(layers) + 0.5) * voxel_m
    ground = int(np.floor((-0.01 - bottom_m) / voxel_m))
    table = np.full((len(GROUND) * len(STANDING), layers), FREE, np.uint8)
    for g, surface in enumerate(GROUND):
        for k, things in enumerate(STANDING):
            row = table[g * len(STANDING) + k]
            for low, high, name in things:
                row[(centre >= low) & (centre < high) & (np.arange(layers) > ground)] = OCC[name]
            if 0 <= ground < layers:
                row[ground] = OCC[surface]
    return table


def fill(geometry: BaseGeometry, origin: Array, cell_m: float, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Bool[Array, "x y"]]:
    """Cells with their centre inside a polygon, by even-odd scan lines. Returns the window of cells around it, and the mask within.

    `voxelise.polygon_mask` uses winding numbers, for maps with overlapping polygons, and rounds differently; using it would change
    generated towns.
    """
    rings = shapely.get_rings(shapely.get_parts(geometry))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1] if len(ring) else np.zeros(0, bool)
    grid = (points - origin) / cell_m - 0.5
    low = np.clip(np.floor(grid.min(0)).astype(int), 0, shape) if len(grid) else np.zeros(2, int)
    high = np.clip(np.ceil(grid.max(0)).astype(int) + 1, 0, shape) if len(grid) else np.zeros(2, int)
    window = (slice(low[0], max(high[0], low[0])), slice(low[1], max(high[1], low[1])))
    rows, columns = window[0].stop - low[0], window[1].stop - low[1]
    if rows == 0 or columns == 0:
        return window, np.zeros((rows, columns), bool)
    a, b = (grid[:-1] - low)[joined], (grid[1:] - low)[joined]
    first = np.clip(np.ceil(np.minimum(a[:, 0], b[:, 0])), 0, rows).astype(int)
    last = np.clip(np.ceil(np.maximum(a[:, 0], b[:, 0])), 0, rows).astype(int)
    count = last - first
    edge = np.repeat(np.arange(len(a)), count)
    row = ranges(first, count)
    slope = (b[edge, 1] - a[edge, 1]) / (b[edge, 0] - a[edge, 0])
    column = np.clip(np.ceil(a[edge, 1] + (row - a[edge, 0]) * slope), 0, columns).astype(int)
    toggles = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    return window, (np.cumsum(toggles.astype(np.uint8), axis=1, dtype=np.uint8)[:, :-1] & 1).astype(bool)


def _nearby(streets: tuple[Street, ...], around: Array, reach_m: float) -> list[int]:
    return [k for k, s in enumerate(streets) if ((s.points[:, None] - around[None]) ** 2).sum(-1).min() < reach_m**2]


def build_surroundings(rng: np.random.Generator, roads: Roads, around: Float[Array, "n 2"], reach_m: float = 95.0) -> Surroundings:
    """Surfaces and objects along the streets that come within `reach_m` metres of the points `around`."""
    near = _nearby(roads.streets, around, reach_m)
    streets = [roads.streets[k] for k in near]
    nodes = sorted({n for s in streets for n in (s.a, s.b)})
    bands = [b for s in streets if (b := _to_corner(s, roads)) is not None]
    hubs: list[BaseGeometry] = []
    for n in nodes:
        links = [link for link in roads.links if roads.lanes[link.lane_in].end == n]
        if roads.degree[n] == 2:
            width = max(s.lane_m for s in streets if n in (s.a, s.b)) / 2 + 0.3
            hubs += list(shapely.buffer([shapely.LineString(link.points) for link in links], width, quad_segs=3))
        else:
            hubs.append(shapely.Point(roads.nodes[n]).buffer(max(min(s.half_m) for s in streets if n in (s.a, s.b)), 4))
    union = shapely.union_all([shapely.make_valid(b.strip(-b.half_m[0], b.half_m[1])) for b in bands] + hubs)
    drivable = union.buffer(3.5, 3).buffer(-3.5, 3)
    pavement = [b.strip(-b.half_m[0] - b.sidewalk_m[0], b.half_m[1] + b.sidewalk_m[1]) for b in bands]
    walkway = shapely.union_all([drivable.buffer(WALK_M, 3)] + [shapely.make_valid(p) for p in pavement])
    shapely.prepare(walkway)
    shapely.prepare(drivable)
    medians = [m.strip(-s.median_m / 2, s.median_m / 2) for s in streets if s.median_m and (m := s.part(*_median_ends(s, roads)))]
    crossings = shapely.union_all([roads.crossings[c].polygon for k in near for c in roads.marked_crossings(k)])
    median = shapely.difference(shapely.union_all(medians), crossings.buffer(0.5)) if medians else shapely.MultiPolygon()

    buildings: list[tuple[shapely.Polygon, int]] = []
    strips: list[tuple[shapely.Polygon, int]] = []
    trees: list[Array] = []
    posts: list[Array] = []
    for street in streets:
        for side in (0, 1):
            _side(rng, street, side, buildings, strips, trees, posts)
    clear = shapely.intersects(walkway, [b for b, _ in buildings]) if buildings else np.zeros(0, bool)
    buildings = [b for b, bad in zip(buildings, clear, strict=True) if not bad]
    solid = shapely.union_all([b for b, _ in buildings])
    tree, post = np.array(trees).reshape(-1, 2), np.array(posts).reshape(-1, 2)
    free = ~shapely.intersects_xy(drivable.buffer(0.3, 2), tree) & ~shapely.intersects_xy(solid.buffer(0.4, 2), tree)
    for k in near:
        for c in roads.marked_crossings(k):
            ends = np.stack([roads.crossings[c].left, roads.crossings[c].right])
            free &= (((tree[:, None] - ends) ** 2).sum(-1) > 3.2**2).all(1)
            post = post[(((post[:, None] - ends) ** 2).sum(-1) > 3.0**2).all(1)]
    tree = tree[free]
    post = post[~shapely.intersects_xy(drivable.buffer(0.2, 2), post)]
    size = rng.integers(0, 4, len(tree))
    return Surroundings(
        drivable, shapely.difference(walkway, drivable), median, tuple(buildings),
        tuple((s, k) for s, k in strips if not walkway.intersects(s)), tree, 1.0 + 0.4 * size + rng.uniform(0, 0.5, len(tree)), size,
        post, tuple(near),
    )  # fmt: skip


def _to_corner(street: Street, roads: Roads) -> Street | None:
    """The street without its ends at bends (junctions of two streets), where the road follows the links."""
    length = float(arclength(street.points)[-1])
    cut = [trim if roads.degree[n] == 2 else 0.0 for n, trim in zip((street.a, street.b), street.trim_m, strict=True)]
    return street.part(cut[0] - 0.5, length - cut[1] + 0.5)


def _median_ends(street: Street, roads: Roads) -> tuple[float, float]:
    length = float(arclength(street.points)[-1])
    return street.trim_m[0] + 0.5, length - street.trim_m[1] - 0.5


def _side(
    rng: np.random.Generator, street: Street, side: int, buildings: list, strips: list, trees: list[Array], posts: list[Array]
) -> None:
    """Place buildings, hedges, walls, trees and lamp posts along one side of a street."""
    sign = -1.0 if side == 0 else 1.0
    kind, kerb = street.kind[side], street.half_m[side]
    walk = kerb + street.sidewalk_m[side]
    along = arclength(street.points)
    direction = tangents(street.points)
    right = np.stack([direction[:, 1], -direction[:, 0]], -1)

    def place(s: float, out: float) -> Array:
        at = np.array([s])
        return sample(street.points, along, at)[0] + sign * out * sample(right, along, at)[0]

    if rng.random() < 0.75:
        spacing, start = rng.uniform(8, 18), rng.uniform(0, 8)
        trees += [place(s, kerb + 0.5) for s in np.arange(start, along[-1], spacing) if rng.random() < 0.85]
    posts += [place(s, kerb + 0.5) for s in np.arange(rng.uniform(3, 20), along[-1], rng.uniform(22, 34))]
    if kind == "park":
        for _ in range(int(along[-1] * 0.35)):
            trees.append(place(rng.uniform(0, along[-1]), walk + 1 + 24 * rng.random()))
        if rng.random() < 0.5:
            _fence(rng, street, sign * (walk + 0.5), 0.7, LOW_HEDGE, strips)
        return
    setback = rng.uniform(0.3, 2.0) if kind == "urban" else rng.uniform(4.0, 9.0)
    height = rng.integers(3, 8) if kind == "urban" else rng.integers(0, 4)
    gap = (0.0, 3.0) if kind == "urban" else (3.0, 10.0)
    s = rng.uniform(-2, 6)
    while s < along[-1]:
        front, depth = rng.uniform(8, 20), rng.uniform(8, 14)
        out = walk + setback + (rng.uniform(0, 1.5) if kind == "suburb" else 0.0)
        middle = min(s + front / 2, along[-1])
        d = sample(direction, along, np.array([middle]))[0]
        d = d / np.hypot(*d)
        outward = sign * np.array([d[1], -d[0]])
        # On the inside of a bend a building's front may cut the kerb line; such buildings are removed later.
        corner = place(middle, out)
        ring = [
            corner - d * front / 2,
            corner + d * front / 2,
            corner + d * front / 2 + outward * depth,
            corner - d * front / 2 + outward * depth,
        ]
        buildings.append((shapely.Polygon(ring), int(np.clip(height + rng.integers(-1, 3), 0, 9)) + 1))
        s += front + rng.uniform(*gap)
    if kind == "suburb":
        fence = rng.random()
        if fence < 0.75:
            code = LOW_HEDGE if fence < 0.25 else HIGH_HEDGE if fence < 0.5 else LOW_WALL if fence < 0.65 else HIGH_WALL
            _fence(rng, street, sign * (walk + 0.5), 0.6 if code in (LOW_WALL, HIGH_WALL) else 0.9, code, strips)
        trees += [place(rng.uniform(0, along[-1]), walk + rng.uniform(1.5, setback + 18)) for _ in range(int(along[-1] * 0.12))]


def _fence(rng: np.random.Generator, street: Street, right_m: float, width_m: float, code: int, strips: list) -> None:
    """Add a hedge or wall along a street, in pieces with gaps between."""
    length = float(arclength(street.points)[-1])
    s = street.trim_m[0] + 2.0
    while s < length - street.trim_m[1] - 2.0:
        span = rng.uniform(6, 22)
        piece = street.part(s, min(s + span, length - street.trim_m[1] - 2.0))
        if piece is not None:
            far = right_m + np.sign(right_m) * width_m
            strips.append((piece.strip(min(right_m, far), max(right_m, far)), code))
        s += span + rng.uniform(2, 4)


def rasterise(around: Surroundings, low: Float[Array, "2"], high: Float[Array, "2"], cell_m: float) -> Raster:
    """Column raster of a rectangle of the global frame. The origin is rounded to whole cells, so that different rasters are aligned."""
    origin = np.floor(low / cell_m) * cell_m
    rows, columns = (int(n) for n in np.ceil((high - origin) / cell_m))
    shape = (rows, columns)
    ground, standing = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)

    def paint(target: Array, geometry: BaseGeometry, code: int) -> None:
        window, mask = fill(geometry, origin, cell_m, shape)
        target[window][mask] = code

    paint(ground, around.walkway, 2)
    paint(ground, around.drivable, 1)
    paint(ground, around.median, 3)
    for points, radius, code in (
        (around.trees, around.tree_radius_m, CROWN + around.tree_code),
        (around.trees, np.full(len(around.trees), max(0.25, 0.75 * cell_m)), TRUNK + around.tree_code),
        (around.posts, np.full(len(around.posts), max(0.2, 0.75 * cell_m)), np.full(len(around.posts), POST)),
    ):
        _discs(standing, (points - origin) / cell_m - 0.5, radius / cell_m, code)
    for polygon, code in (*around.strips, *around.buildings):
        paint(standing, polygon, code)
    return Raster(ground * np.uint8(len(STANDING)) + standing, origin, cell_m)


def _discs(target: Array, centre: Array, radius: Array, code: Array) -> None:
    """Paint discs. Centres and radii are in cells."""
    for (x, y), r, k in zip(centre, radius, code, strict=True):
        x0, x1, y0, y1 = (int(v) for v in (max(x - r, 0), min(x + r + 2, target.shape[0]), max(y - r, 0), min(y + r + 2, target.shape[1])))
        if x1 > x0 and y1 > y0:
            inside = (np.arange(x0, x1)[:, None] - x) ** 2 + (np.arange(y0, y1)[None] - y) ** 2 <= r * r
            target[x0:x1, y0:y1][inside] = k


def static_columns(raster: Raster, xy: Float[Array, "x y 2"], table: UInt8[Array, "codes z"]) -> UInt8[Array, "x y z"]:
    """Semantics of static objects in a grid. `xy` are the global centres of its columns, `table` is its `column_table`."""
    return table[raster.look_up(xy)]
