"""The vector map of one log of Argoverse 2, from `map/log_map_archive_….json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.core.scene import Junction, Lane, VectorMap
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.json_text import read_json
from iidrive.data.av2.tables import AGAIN, FARTHEST_M

Array = np.ndarray

LAYERS = ("drivable_area", "ped_crossing", "lane_divider", "road_divider", "centreline")
"""Argoverse 2 has no walkways."""

_DRIVEN = ("VEHICLE", "BUS")
"""Types of lanes that cars may drive on; the third one is BIKE."""


def map_file(folder: Path) -> Path | None:
    """The vector map of a log's folder; None where there is none.

    Raises:
        DataError: if there are several.
    """
    found = sorted((folder / "map").glob("log_map_archive_*.json"))
    if len(found) > 1:
        raise DataError(f"{printable_line(str(folder / 'map'))}: there are {len(found)} files log_map_archive_*.json; keep one.")
    return found[0] if found else None


def read_map(path: Path) -> VectorMap:
    """The map of one log in the global frame, seen from above: all that the file holds, some 100 m around the path.

    Lines that separate directions (yellow) are `road_divider`, other marks `lane_divider`. Centrelines lie in the middle between a lane's
    boundaries. Lanes for bicycles are left out. Lanes of an intersection share a junction with those that they touch.

    Raises:
        DataError: naming the file, if it is not a whole map.
    """
    where = printable_line(str(path))
    raw = read_json(path)
    try:
        areas = [_polygon(_points(area["area_boundary"])) for area in raw["drivable_areas"].values()]
        crossings = [_crossing(_points(c["edge1"]), _points(c["edge2"])) for c in raw["pedestrian_crossings"].values()]
        segments = list(raw["lane_segments"].values())
        marks = _marks(segments)
        lanes, junctions = _lanes([segment for segment in segments if segment["lane_type"] in _DRIVEN])
    except KeyError as error:
        raise DataError(f"{where}: no table or field {printable(str(error))}; this is not a whole map. {AGAIN}") from error
    except (ValueError, TypeError, AttributeError, IndexError, shapely.errors.GEOSException) as error:
        raise DataError(f"{where}: this is not a whole map ({printable(str(error), 120)}). {AGAIN}") from error
    layers: dict[str, shapely.Geometry] = {
        "drivable_area": shapely.union_all(areas),
        "ped_crossing": shapely.union_all(crossings),
        "lane_divider": shapely.MultiLineString([line for yellow, line in marks if not yellow]),
        "road_divider": shapely.MultiLineString([line for yellow, line in marks if yellow]),
        "centreline": shapely.MultiLineString([lane.centreline_m for lane in lanes]),
    }
    return VectorMap(layers, lanes, junctions)


def _points(values: list[Mapping[str, float]]) -> Float[Array, "n 2"]:
    """Points (x, y). Raises ValueError for what is not finite."""
    points = np.array([(point["x"], point["y"]) for point in values], np.float64)
    if points.ndim != 2 or len(points) < 2 or not (np.abs(points) <= FARTHEST_M).all():
        raise ValueError(f"a line or an area is not two or more points with finite x and y: {printable(values, 60)}")
    return points


def _polygon(ring: Float[Array, "n 2"]) -> shapely.Geometry:
    """The area inside a ring, which may cross itself; empty for a ring without area."""
    return shapely.make_valid(shapely.Polygon(ring)) if len(ring) >= 3 else shapely.Polygon()


def _crossing(one: Float[Array, "n 2"], two: Float[Array, "m 2"]) -> shapely.Geometry:
    """The area between two edges, which may run the same way or against each other."""
    ring = shapely.Polygon(np.concatenate([one, two[::-1]]))
    return ring if ring.is_valid else _polygon(np.concatenate([one, two]))


def _marks(segments: list[Any]) -> list[tuple[bool, Float[Array, "n 2"]]]:
    """Painted boundaries of lanes, each once, and whether they are yellow. Two lanes that share one hold the same points."""
    found: dict[bytes, tuple[bool, Array]] = {}
    for segment in segments:
        for side in ("left", "right"):
            kind = segment[f"{side}_lane_mark_type"]
            if kind not in ("NONE", "UNKNOWN"):
                line = _points(segment[f"{side}_lane_boundary"])
                along = line if tuple(line[0]) <= tuple(line[-1]) else line[::-1]
                found[along.tobytes()] = "YELLOW" in kind, line
    return list(found.values())


def _lanes(segments: list[Any]) -> tuple[tuple[Lane, ...], tuple[Junction, ...]]:
    """Lanes that cars drive on, and the junctions of those in intersections."""
    polygons, centrelines = [], []
    for segment in segments:
        left, right = _points(segment["left_lane_boundary"]), _points(segment["right_lane_boundary"])
        parts = shapely.get_parts(_polygon(np.concatenate([left, right[::-1]])))
        polygons.append(max((p for p in parts if p.geom_type == "Polygon"), key=lambda p: p.area, default=None))
        count = max(len(left), len(right))
        centrelines.append((_resampled(left, count) + _resampled(right, count)) / 2)
    kept = [i for i, polygon in enumerate(polygons) if polygon is not None]
    ids = {str(segments[i]["id"]) for i in kept}
    crossing = [i for i in kept if segments[i]["is_intersection"]]
    areas = shapely.get_parts(shapely.union_all([polygons[i] for i in crossing]))
    tree = shapely.STRtree(areas)
    junction = {i: f"junction-{int(tree.nearest(polygons[i].representative_point()))}" for i in crossing}
    lanes = tuple(
        Lane(
            id=str(segments[i]["id"]),
            polygon=polygons[i],
            centreline_m=centrelines[i],
            successors=tuple(str(s) for s in segments[i]["successors"] if str(s) in ids),
            junction=junction.get(i, ""),
        )
        for i in kept
    )
    return lanes, tuple(Junction(f"junction-{k}", area) for k, area in enumerate(areas))


def _resampled(line: Float[Array, "n 2"], count: int) -> Float[Array, "count 2"]:
    """A line with `count` points at equal parts of its length."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    at = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(at, along, line[:, c]) for c in (0, 1)], -1)
