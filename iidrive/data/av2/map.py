"""Vector map of an Argoverse 2 log, from `map/log_map_archive_….json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float, Int

from iidrive.core.errors import DataError
from iidrive.core.scene import Junction, Lane, VectorMap
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.json_text import all_numbers, read_json
from iidrive.data.av2.tables import AGAIN, FARTHEST_M

Array = np.ndarray

LAYERS = ("drivable_area", "ped_crossing", "lane_divider", "road_divider", "centreline")
"""Layers that Argoverse 2 has. It has no walkways."""

_DRIVEN = ("VEHICLE", "BUS")
"""Types of lanes that cars may drive on. The only other type is BIKE."""
_TYPES = (*_DRIVEN, "BIKE")
_STYLES = ("SOLID", "DASHED", "DOUBLE_SOLID", "DOUBLE_DASH", "SOLID_DASH", "DASH_SOLID")
_MARKS = (*(f"{style}_{colour}" for style in _STYLES for colour in ("WHITE", "YELLOW")), "SOLID_BLUE", "NONE", "UNKNOWN")
"""Kinds of painted marks."""


def map_file(folder: Path) -> Path | None:
    """Path of a log's vector map; None if there is none.

    Raises:
        DataError: if there are several.
    """
    found = sorted((folder / "map").glob("log_map_archive_*.json"))
    if len(found) > 1:
        raise DataError(f"{printable_line(str(folder / 'map'))}: there are {len(found)} files log_map_archive_*.json; keep one.")
    return found[0] if found else None


def read_map(path: Path) -> VectorMap:
    """Read the map of a log, in the global frame. The file covers about 100 m around the path.

    Yellow lines, which separate directions, become `road_divider`; other marks become `lane_divider`. Centrelines are midway between a
    lane's boundaries. Bicycle lanes are left out. Intersection lanes that touch belong to the same junction.

    Raises:
        DataError: naming the file, if it is not a complete map.
    """
    where = printable_line(str(path))
    raw = read_json(path)
    try:
        areas = [_polygon(_points(area["area_boundary"])) for area in raw["drivable_areas"].values()]
        crossings = [_crossing(_points(c["edge1"]), _points(c["edge2"])) for c in raw["pedestrian_crossings"].values()]
        segments = [_checked(name, segment) for name, segment in raw["lane_segments"].items()]
        marks = _marks(segments)
        lanes, junctions = _lanes([segment for segment in segments if segment["lane_type"] in _DRIVEN])
    except KeyError as error:
        raise DataError(f"{where}: no table or field {printable(str(error))}; the map is incomplete. {AGAIN}") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, shapely.errors.GEOSException) as error:
        raise DataError(f"{where}: not a readable map ({printable(str(error), 120)}). {AGAIN}") from error
    layers: dict[str, shapely.Geometry] = {
        "drivable_area": shapely.union_all(areas),
        "ped_crossing": shapely.union_all(crossings),
        "lane_divider": shapely.MultiLineString([line for yellow, line in marks if not yellow]),
        "road_divider": shapely.MultiLineString([line for yellow, line in marks if yellow]),
        "centreline": shapely.MultiLineString([lane.centreline_m for lane in lanes]),
    }
    return VectorMap(layers, lanes, junctions)


def _checked(name: str, segment: Any) -> Any:
    """A lane. Raises ValueError for a type or a mark that Argoverse 2 does not have, an id that is not the lane's name, and odd successors."""
    marks = (segment["left_lane_mark_type"], segment["right_lane_mark_type"])
    number, after, inside = segment["id"], segment["successors"], segment["is_intersection"]
    if segment["lane_type"] not in _TYPES or not all(mark in _MARKS for mark in marks) or type(inside) is not bool:
        shown = {"lane_type": segment["lane_type"], "marks": marks, "is_intersection": inside}
        raise ValueError(
            f"a lane is a lane_type of {', '.join(_TYPES)}, marks by name, and is_intersection or not: {printable(shown, 100)}"
        )
    if type(number) is not int or str(number) != name or not isinstance(after, list) or not all(type(one) is int for one in after):
        raise ValueError(f"lane {printable(name)} has the id {printable(number)} and the successors {printable(after, 60)}")
    return segment


def _points(values: list[Mapping[str, float]]) -> Float[Array, "n 2"]:
    """Parse points (x, y). Raises ValueError for fewer than two, or if one is not a finite number."""
    places = [(point["x"], point["y"]) for point in values]
    points = np.array(places, np.float64)
    if not all_numbers(places) or points.ndim != 2 or len(points) < 2 or not (np.abs(points) <= FARTHEST_M).all():
        raise ValueError(f"a line or area needs two or more points with finite x and y: {printable(values, 60)}")
    return points


def _polygon(ring: Float[Array, "n 2"]) -> shapely.Geometry:
    """The area inside a ring. The ring may cross itself; a ring of fewer than three points gives an empty polygon."""
    return shapely.make_valid(shapely.Polygon(ring)) if len(ring) >= 3 else shapely.Polygon()


def _crossing(one: Float[Array, "n 2"], two: Float[Array, "m 2"]) -> shapely.Geometry:
    """The area between two edges, which may have the same direction or opposite directions."""
    ring = shapely.Polygon(np.concatenate([one, two[::-1]]))
    return ring if ring.is_valid else _polygon(np.concatenate([one, two]))


def _marks(segments: list[Any]) -> list[tuple[bool, Float[Array, "n 2"]]]:
    """Painted lane boundaries and whether each is yellow.

    A boundary shared by two lanes has the same points in both and is returned once. It is yellow if either lane calls it yellow.
    """
    found: dict[bytes, tuple[bool, Array]] = {}
    for segment in segments:
        for side in ("left", "right"):
            kind = segment[f"{side}_lane_mark_type"]
            if kind not in ("NONE", "UNKNOWN"):
                line = _points(segment[f"{side}_lane_boundary"])
                along = line if tuple(line[0]) <= tuple(line[-1]) else line[::-1]
                key = along.tobytes()
                found[key] = "YELLOW" in kind or (key in found and found[key][0]), line
    return list(found.values())


def _lanes(segments: list[Any]) -> tuple[tuple[Lane, ...], tuple[Junction, ...]]:
    """Lanes for cars, and the junctions formed by the lanes in intersections."""
    if not segments:
        return (), ()
    left, right = ([_points(segment[f"{side}_lane_boundary"]) for segment in segments] for side in ("left", "right"))
    rings = [np.concatenate([l, r[::-1]]) for l, r in zip(left, right, strict=True)]
    corners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    areas: Any = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=corners))
    crooked = ~shapely.is_valid(areas)
    areas[crooked] = [_largest(area) for area in shapely.make_valid(areas[crooked])]
    kept = np.flatnonzero(shapely.area(areas) > 0)
    count = np.maximum([len(l) for l in left], [len(r) for r in right])
    centrelines = (_resampled(left, count) + _resampled(right, count)) / 2
    centrelines = np.split(centrelines, np.cumsum(count)[:-1])
    ids = {str(segments[i]["id"]) for i in kept}
    crossing = kept[[bool(segments[i]["is_intersection"]) for i in kept]]
    joined = shapely.get_parts(shapely.union_all(areas[crossing]))
    nearest = shapely.STRtree(joined).query_nearest(shapely.point_on_surface(areas[crossing]), all_matches=False)[1] if len(joined) else []
    junction = {int(i): f"junction-{k}" for i, k in zip(crossing, nearest, strict=True)}
    lanes = tuple(
        Lane(
            id=str(segments[i]["id"]),
            polygon=areas[i],
            centreline_m=centrelines[i],
            successors=tuple(str(s) for s in segments[i]["successors"] if str(s) in ids),
            junction=junction.get(int(i), ""),
        )
        for i in kept
    )
    return lanes, tuple(Junction(f"junction-{k}", area) for k, area in enumerate(joined))


def _largest(area: shapely.Geometry) -> shapely.Geometry:
    """The largest polygon of a geometry; an empty polygon if it has none."""
    parts = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon"]
    return max(parts, key=shapely.area, default=shapely.Polygon())


def _resampled(lines: list[Float[Array, "_ 2"]], count: Int[Array, "n"]) -> Float[Array, "m 2"]:
    """Resample each line to `count` points at equal distances. The lines' points are concatenated."""
    owner = np.repeat(np.arange(len(lines)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    line: Any = shapely.linestrings(np.concatenate(lines), indices=np.repeat(np.arange(len(lines)), [len(one) for one in lines]))
    points = shapely.line_interpolate_point(line[owner], place / (count[owner] - 1), normalized=True)
    return shapely.get_coordinates(points)
