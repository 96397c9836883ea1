"""Vector map of a nuScenes location, from `maps/expansion/<location>.json`, cropped to the surroundings of a scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.core.scene import VectorMap
from iidrive.core.text import printable
from iidrive.core.untrusted.json_text import all_numbers, read_json

Array = np.ndarray

SURFACES = ("drivable_area", "walkway", "ped_crossing")
LINES = ("lane_divider", "road_divider")
LAYERS = (*SURFACES, *LINES, "centreline")

_STEP_M = 1.0
_FARTHEST_M = 1e7
_LONGEST_M = 1e4
_TURN = {"L": 1.0, "S": 0.0, "R": -1.0}
_AGAIN = "Unpack the nuScenes map expansion again."


class LocationMap:
    """All features of one location, in the global frame: layer → array of shapely geometries. A layer without features is absent."""

    def __init__(self, path: Path) -> None:
        """Parse a map file.

        Raises:
            DataError: naming the file (and the record), if it is not complete JSON, lacks a table or field, or has a dangling token.
        """
        self.path = path
        try:
            raw = _read(path)
            tables = {name: raw[name] for name in ("node", "polygon", "line", *SURFACES, *LINES)}
            for name, records in tables.items():
                tokens = [record["token"] for record in records]
                if len(set(tokens)) < len(tokens):
                    twice = next(token for token, count in Counter(tokens).items() if count > 1)
                    raise DataError(f"{path}: {name} {printable(twice)} stands twice. {_AGAIN}")
            nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
            odd = not all_numbers(nodes.values())
            bad = next((token for token, (x, y) in nodes.items() if (odd and not all_numbers([(x, y)])) or not _near(x, y)), None)
            if bad is not None:
                raise DataError(f"{path}: node {printable(bad)} is at {printable(nodes[bad])}; expected finite x and y. {_AGAIN}")
            polygons = {p["token"]: p for p in tables["polygon"]}
            lines = {line["token"]: line["node_tokens"] for line in tables["line"]}
            self.features: dict[str, Array] = {}
            for layer in SURFACES:
                self._keep(layer, [_polygon(polygons[t], nodes) for record in tables[layer] for t in _polygon_tokens(record)])
            for layer in LINES:
                self._keep(layer, [_line([nodes[n] for n in lines[record["line_token"]]]) for record in tables[layer]])
            self._keep("centreline", _centrelines(raw.get("arcline_path_3", {})))
        except DataError as error:
            raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
        except KeyError as error:
            raise DataError(f"{path}: no table, field or token {printable(str(error))}. {_AGAIN}") from error
        except (OSError, ValueError, TypeError, AttributeError, IndexError, shapely.errors.GEOSException) as error:
            raise DataError(f"{path} is not a complete map file ({printable(str(error), 120)}). {_AGAIN}") from error
        if not np.isfinite(shapely.get_coordinates(list(self.features.get("centreline", [])))).all():
            raise DataError(f"{path}: arcline_path_3 holds NaN, infinite values or a radius of 0. {_AGAIN}")

    def _keep(self, layer: str, geometries: list[shapely.Geometry | None]) -> None:
        found = np.array([g for g in geometries if g is not None], dtype=object)
        if len(found):
            self.features[layer] = found

    def around(self, path_m: Float[Array, "n 2"], radius_m: float) -> VectorMap:
        """The map within the bounding rectangle of a path, enlarged by `radius_m` on every side. Features are clipped at its edge.

        A layer that the location has but that has no features here is an empty geometry.
        """
        x0, y0 = path_m.min(axis=0) - radius_m
        x1, y1 = path_m.max(axis=0) + radius_m
        return VectorMap({layer: _cut(geometries, layer in SURFACES, x0, y0, x1, y1) for layer, geometries in self.features.items()})


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except DataError as error:
        raise DataError(f"{path} is not a complete map file ({str(error).removeprefix(f'{path}: ')}) {_AGAIN}") from error


def _cut(geometries: Array, surface: bool, x0: float, y0: float, x1: float, y1: float) -> shapely.Geometry:
    left, bottom, right, top = shapely.bounds(geometries).T
    near = geometries[(left < x1) & (right > x0) & (bottom < y1) & (top > y0)]
    parts = shapely.get_parts(shapely.get_parts(shapely.clip_by_rect(near, x0, y0, x1, y1)))
    if not surface:
        return shapely.MultiLineString(list(parts[shapely.get_type_id(parts) == 1]))
    joined = shapely.MultiPolygon(list(parts[shapely.get_type_id(parts) == 3]))
    # Official polygons touch or overlap. Predicates such as `contains` are only defined on their union.
    return joined if shapely.is_valid(joined) else shapely.union_all(shapely.make_valid(shapely.get_parts(joined)))


def _near(x: float, y: float) -> bool:
    return abs(x) <= _FARTHEST_M and abs(y) <= _FARTHEST_M


def _polygon_tokens(record: Mapping[str, Any]) -> list[str]:
    """Tokens of a surface's polygons. A drivable area has several, every other surface has one."""
    return record["polygon_tokens"] if "polygon_tokens" in record else [record["polygon_token"]]


def _polygon(record: Mapping[str, Any], nodes: Mapping[str, tuple[float, float]]) -> shapely.Geometry | None:
    """A polygon with its holes; None if it has fewer than three corners (the official files contain empty rings)."""
    shell = [nodes[n] for n in record["exterior_node_tokens"]]
    holes = [[nodes[n] for n in hole["node_tokens"]] for hole in record["holes"]]
    return shapely.Polygon(shell, [hole for hole in holes if len(hole) >= 3]) if len(shell) >= 3 else None


def _line(points: list[tuple[float, float]]) -> shapely.Geometry | None:
    return shapely.LineString(points) if len(points) >= 2 else None


def _centrelines(paths: Mapping[str, Any]) -> list[shapely.Geometry | None]:
    """Lanes and lane connectors as polylines with a point every metre.

    A lane is a list of arc paths. Each has a start pose (x, y, heading) and three pieces, such as LSR (left arc, straight, right arc), of
    one radius.
    """
    arcs = [(lane, arc) for lane, path in enumerate(paths.values()) for arc in path]
    if not arcs:
        return []
    try:
        x, y, yaw = np.array([arc["start_pose"] for _, arc in arcs], dtype=np.float64).T
        lengths = np.array([arc["segment_length"] for _, arc in arcs], dtype=np.float64)
        radius = np.array([arc["radius"] for _, arc in arcs], dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"arcline_path_3 holds an integer that is too large for any length. {_AGAIN}") from error
    given = np.column_stack([x, y, yaw, lengths, radius])
    if not all_numbers([*arc["start_pose"], *arc["segment_length"], arc["radius"]] for _, arc in arcs):
        raise DataError(f"arcline_path_3 holds something else than numbers in start_pose, segment_length or radius. {_AGAIN}")
    bad = ~(np.abs(given) <= _FARTHEST_M).all(axis=1) | (lengths < 0).any(axis=1) | (lengths > _LONGEST_M).any(axis=1) | (radius == 0)
    if bad.any():
        lane = list(paths)[arcs[int(np.argmax(bad))][0]]
        raise DataError(
            f"arcline_path_3 of lane {printable(lane)} holds NaN, infinite values, a radius of 0, or a piece longer than {_LONGEST_M:g} m "
            f"({int(bad.sum())} such pieces). {_AGAIN}"
        )
    if lengths.sum() > _LONGEST_M * 1000:
        raise DataError(f"arcline_path_3 describes {lengths.sum() / 1000:.0f} km of lanes, more than any location has. {_AGAIN}")
    bend = np.array([[_TURN[piece] for piece in arc["shape"]] for _, arc in arcs])
    bend = bend / radius[:, None]
    found: list[tuple[Array, Array]] = []  # (sort key, points): the key is the number of the arc and of its piece
    for piece in range(3):
        steps = np.maximum(np.ceil(lengths[:, piece] / _STEP_M), 1).astype(np.int64) + 1
        arc = np.repeat(np.arange(len(arcs)), steps)
        nth = np.arange(len(arc)) - np.repeat(np.cumsum(steps) - steps, steps)
        px, py, _ = _along(x[arc], y[arc], yaw[arc], bend[arc, piece], lengths[arc, piece] * nth / (steps[arc] - 1))
        found.append((arc * 3 + piece, np.stack([px, py], -1)))
        x, y, yaw = _along(x, y, yaw, bend[:, piece], lengths[:, piece])
    key = np.concatenate([k for k, _ in found])
    order = np.argsort(key, kind="stable")
    points = np.concatenate([p for _, p in found])[order]
    lane = np.array([lane for lane, _ in arcs])[key[order] // 3]
    fresh = (np.diff(lane, prepend=-1) != 0) | (np.linalg.norm(np.diff(points, axis=0, prepend=points[:1] - 1), axis=1) > 1e-6)
    points, lane = points[fresh], lane[fresh]
    lines = np.split(points, np.flatnonzero(np.diff(lane)) + 1)
    return [shapely.LineString(line) for line in lines if len(line) >= 2]


def _along(x: Array, y: Array, yaw: Array, bend: Array, length: Array) -> tuple[Array, Array, Array]:
    """The pose after `length` metres on an arc of curvature `bend` (1/m, positive to the left)."""
    half = bend * length / 2
    chord = length * np.sinc(half / np.pi)  # sinc handles straight pieces
    return x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half
