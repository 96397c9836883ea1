"""Vector map of a town: surfaces, lines, directed lanes, and junctions."""

from __future__ import annotations

import numpy as np
import shapely

from iidrive.core.scene import Junction, Lane, VectorMap
from iidrive.data.town.roads import Link, Roads, arclength, offset_line, tangents
from iidrive.data.town.route import lane_id, link_id
from iidrive.data.town.static import HIGH_HEDGE, LOW_HEDGE, Surroundings

Array = np.ndarray
Edges = tuple[Array, Array]
"""Left and right edge of a lane, in driving direction."""


def vector_map(roads: Roads, around: Surroundings) -> VectorMap:
    """The vector map near the route, global frame."""
    near = set(around.streets)
    lanes = [lane for lane in roads.lanes if lane.street in near]
    nodes = {lane.start for lane in lanes} & {lane.end for lane in lanes}
    centre = [lane.points for lane in lanes] + [link.points for link in roads.links if roads.lanes[link.lane_in].end in nodes]
    dividers, middle = [], []
    for k in sorted(near):
        street = roads.streets[k]
        part = street.part(street.trim_m[0], float(arclength(street.points)[-1]) - street.trim_m[1])
        if part is not None:
            middle.append(part.points)
            if street.lanes == 2:
                off = street.median_m / 2 + street.lane_m
                dividers += [offset_line(part.points, off), offset_line(part.points, -off)]
    hedges = [s for s, code in around.strips if code in (LOW_HEDGE, HIGH_HEDGE)]
    crowns = list(shapely.buffer(shapely.points(around.trees), around.tree_radius_m, quad_segs=3)) if len(around.trees) else []
    return VectorMap(
        {
            "drivable_area": around.drivable,
            "walkway": around.walkway,
            "ped_crossing": shapely.MultiPolygon([roads.crossings[c].polygon for k in sorted(near) for c in roads.marked_crossings(k)]),
            "lane_divider": shapely.MultiLineString(dividers),
            "road_divider": shapely.MultiLineString(middle),
            "centreline": shapely.MultiLineString(centre),
            "building": shapely.GeometryCollection([b for b, _ in around.buildings]),
            "vegetation": shapely.GeometryCollection(hedges + crowns),
        },
        map_lanes(roads, around.streets),
        map_junctions(roads, around),
    )


def map_lanes(roads: Roads, streets: tuple[int, ...]) -> tuple[Lane, ...]:
    """Lanes of some streets and the links between them. Links through a junction of three or four streets have its id.

    Neighbouring lanes share an edge, and a lane ends where its successors begin.
    """
    near = [k for k, lane in enumerate(roads.lanes) if lane.street in set(streets)]
    edges = {k: _edges(roads, k) for k in near}
    links = [k for k, link in enumerate(roads.links) if link.lane_in in edges and link.lane_out in edges]
    after: dict[int, list[str]] = {}
    for k in links:
        after.setdefault(roads.links[k].lane_in, []).append(link_id(k))
    lanes = [Lane(lane_id(k), _polygon(edges[k]), roads.lanes[k].points, tuple(after.get(k, []))) for k in near]
    for k in links:
        link = roads.links[k]
        node = roads.lanes[link.lane_in].end
        polygon = _polygon(_link_edges(link, edges[link.lane_in], edges[link.lane_out]))
        lanes.append(
            Lane(link_id(k), polygon, link.points, (lane_id(link.lane_out),), _junction_id(node) if roads.degree[node] > 2 else "")
        )
    return tuple(lanes)


def map_junctions(roads: Roads, around: Surroundings) -> tuple[Junction, ...]:
    """Junctions of three or four streets: the drivable area between the cross-sections at which their lanes end."""
    nodes = sorted({n for k in around.streets for n in (roads.streets[k].a, roads.streets[k].b) if roads.degree[n] > 2})
    found = []
    for node in nodes:
        corners = []
        for street in roads.streets:
            if node not in (street.a, street.b):
                continue
            middle, (left_m, right_m) = street.driven(), street.half_m
            corners += [offset_line(middle, across)[0 if node == street.a else -1] for across in (-left_m, right_m)]
        between = shapely.intersection(shapely.MultiPoint(corners).convex_hull, around.drivable)
        found.append(Junction(_junction_id(node), between))
    return tuple(found)


def _junction_id(node: int) -> str:
    return f"junction-{node}"


def _edges(roads: Roads, number: int) -> Edges:
    """Edges of a street's lane, computed from the street's centreline so that neighbouring lanes share them."""
    lane = roads.lanes[number]
    street = roads.streets[lane.street]
    near = street.median_m / 2 + lane.index * street.lane_m
    middle = street.driven()
    if lane.start == street.a:
        return offset_line(middle, near), offset_line(middle, near + street.lane_m)
    return offset_line(middle, -near)[::-1], offset_line(middle, -near - street.lane_m)[::-1]


def _link_edges(link: Link, before: Edges, after: Edges) -> Edges:
    """Edges of a link between two lanes, from the end of one to the start of the other, with linearly changing width."""
    along = arclength(link.points)
    width = np.interp(along, along[[0, -1]], [np.hypot(*(e[0][k] - e[1][k])) for e, k in ((before, -1), (after, 0))])
    t = tangents(link.points)
    side = np.stack([-t[:, 1], t[:, 0]], -1) * width[:, None] / 2
    left = np.concatenate([before[0][-1:], (link.points + side)[1:-1], after[0][:1]])
    right = np.concatenate([before[1][-1:], (link.points - side)[1:-1], after[1][:1]])
    return left, right


def _polygon(edges: Edges) -> shapely.Polygon:
    """The area between two edges. If a tight bend folds the inner edge, the area enclosed by the fold is included."""
    polygon = shapely.Polygon(np.concatenate([edges[0], edges[1][::-1]]))
    if polygon.is_valid:
        return polygon
    quads = [
        shapely.Polygon(np.stack([a, b, c, d])).convex_hull
        for a, b, c, d in zip(edges[0], edges[0][1:], edges[1][1:], edges[1], strict=False)
    ]
    joined = shapely.union_all(quads)
    return joined if isinstance(joined, shapely.Polygon) else joined.convex_hull  # pyright: ignore[reportReturnType]
