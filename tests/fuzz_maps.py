"""Independent readings of maps for `fuzz_kinds`: whether the layers and lanes of scenes are what a file of nuScenes or Argoverse 2 says.

They are short and slow, and handle only what the small maps of the tests hold. A file that has lost a lane is a valid file without that
lane, so a comparison with the unchanged map cannot judge it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from shapely import Geometry, LineString, MultiLineString, Polygon

from iidrive.core.scene import Scene

TOLERANCE_M = 0.05


def plain(scene: Scene) -> list[Any]:
    """The map of a scene as values that can be compared: layers, and lanes by id."""
    lanes = [[lane.id, lane.successors, bool(lane.junction), np.asarray(lane.centreline_m)] for lane in scene.map.lanes]
    return [{layer: shape.normalize().wkt for layer, shape in scene.map.layers.items()}, sorted(lanes, key=lambda lane: lane[0])]


def nuscenes_says(raw: bytes, scenes: Sequence[Any]) -> bool:
    """Whether the layers near each scene's path are those of a nuScenes map."""
    tree = json.loads(raw)
    node = {record["token"]: (_number(record["x"]), _number(record["y"])) for record in tree["node"]}
    rings = {record["token"]: _area(record, node) for record in tree["polygon"]}
    lines = {record["token"]: _line([node[token] for token in record["node_tokens"]]) for record in tree["line"]}
    want: dict[str, Geometry] = {
        layer: shapely.union_all(
            [rings[token] for r in tree[layer] for token in (r["polygon_tokens"] if layer == "drivable_area" else [r["polygon_token"]])]
        )
        for layer in ("drivable_area", "walkway", "ped_crossing")
    }
    want |= {
        layer: shapely.union_all([lines[record["line_token"]] for record in tree[layer]]) for layer in ("lane_divider", "road_divider")
    }
    want["centreline"] = shapely.union_all([_arcs(path) for path in tree.get("arcline_path_3", {}).values()])
    for _, frames, (layers, _) in scenes:
        path = np.array([frame[2][:2, 3] for frame in frames])
        near = shapely.box(*(path.min(0) - 60), *(path.max(0) + 60))
        if not _match(
            {name: shape & near for name, shape in want.items()}, {n: shapely.from_wkt(text) & near for n, text in layers.items()}
        ):
            return False
    return True


def av2_says(raw: bytes, scenes: Sequence[Any]) -> bool:
    """Whether the layers and lanes of the only scene are those of an Argoverse 2 map."""
    tree = json.loads(raw)
    ((_, _, (layers, lanes)),) = scenes
    segments = list(tree["lane_segments"].values())
    driven = {}
    for segment in segments:
        left, right = _points(segment["left_lane_boundary"]), _points(segment["right_lane_boundary"])
        if segment["lane_type"] in ("VEHICLE", "BUS") and _valid([*left, *right[::-1]]).area > 0:
            driven[str(_whole(segment["id"]))] = (segment, left, right)
    marked: dict[bool, list[Any]] = {False: [], True: []}
    for segment in segments:
        for side in ("left", "right"):
            mark = segment[f"{side}_lane_mark_type"]
            if mark not in ("NONE", "UNKNOWN"):
                marked["YELLOW" in mark].append(_line(_points(segment[f"{side}_lane_boundary"])))
    yellow, white = shapely.union_all(marked[True]), shapely.union_all(marked[False])
    want: dict[str, Geometry] = {
        "drivable_area": shapely.union_all([_valid(_points(area["area_boundary"])) for area in tree["drivable_areas"].values()]),
        "ped_crossing": shapely.union_all(
            [_crossing(_points(c["edge1"]), _points(c["edge2"])) for c in tree["pedestrian_crossings"].values()]
        ),
        "road_divider": yellow,
        "lane_divider": white - yellow,
        "centreline": MultiLineString([lane[3] for lane in lanes]),
    }
    if not _match(want, {name: shapely.from_wkt(text) for name, text in layers.items()}) or [lane[0] for lane in lanes] != sorted(driven):
        return False
    for name, successors, in_junction, centreline in lanes:
        segment, left, right = driven[name]
        ends = np.array([[left[0], left[-1]], [right[0], right[-1]]]).mean(0)
        if not np.allclose(ends, centreline[[0, -1]]) or in_junction is not segment["is_intersection"]:
            return False
        if list(successors) != [str(other) for other in map(_whole, segment["successors"]) if str(other) in driven]:
            return False
    return True


def _match(want: Mapping[str, Geometry], found: Mapping[str, Geometry]) -> bool:
    """Whether the layers are the same but for `TOLERANCE_M`. A layer may be absent if it should be empty."""
    return set(found) <= set(want) and all(
        shape.difference(other.buffer(TOLERANCE_M)).is_empty and other.difference(shape.buffer(TOLERANCE_M)).is_empty
        for name, shape in want.items()
        for other in [found.get(name, Polygon())]
    )


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e7:
        raise ValueError(f"{value} is no coordinate")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value} is no id")
    return value


def _points(values: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(_number(point["x"]), _number(point["y"])) for point in values]


def _line(points: Sequence[tuple[float, float]]) -> Geometry:
    return LineString(points) if len(points) >= 2 else LineString()


def _valid(points: Sequence[tuple[float, float]]) -> Geometry:
    return shapely.make_valid(Polygon(points)) if len(points) >= 3 else Polygon()


def _area(record: Mapping[str, Any], node: Mapping[str, tuple[float, float]]) -> Geometry:
    shell, *holes = [
        _valid([node[token] for token in tokens])
        for tokens in (record["exterior_node_tokens"], *(h["node_tokens"] for h in record["holes"]))
    ]
    return shell - shapely.union_all(holes)


def _crossing(one: list[tuple[float, float]], two: list[tuple[float, float]]) -> Geometry:
    ring = Polygon(one + two[::-1])
    return ring if ring.is_valid else _valid(one + two)


def _arcs(path: Iterable[Mapping[str, Any]]) -> Geometry:
    """A lane of nuScenes in steps of a centimetre."""
    points = []
    for arc in path:
        x, y, yaw = map(_number, arc["start_pose"])
        points.append((x, y))
        for turn, length in zip(arc["shape"], arc["segment_length"], strict=True):
            steps = max(1, int(_number(length) * 100))
            for _ in range(steps):
                bend = {"L": 1, "S": 0, "R": -1}[turn] / _number(arc["radius"]) * length / steps
                x, y, yaw = x + length / steps * np.cos(yaw + bend / 2), y + length / steps * np.sin(yaw + bend / 2), yaw + bend
                points.append((x, y))
    return _line(points)
