"""Makes a tiny valid nuScenes root in the official layout. Tests then damage it in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Records = list[dict[str, Any]]

LIDAR_TRANSLATION = [0.9, 0.0, 1.8]
LIDAR_ROTATION = [float(np.sqrt(0.5)), 0.0, 0.0, -float(np.sqrt(0.5))]  # lidar x = ego right
CATEGORIES = {"vehicle.car": [1.9, 4.6, 1.7], "human.pedestrian.adult": [0.6, 0.7, 1.8]}


def yaw_quaternion(yaw: float) -> list[float]:
    """(w, x, y, z) of a turn about +z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def make(
    root: Path,
    scenes: tuple[str, ...] = ("scene-0103", "scene-0916"),
    keyframes: int = 8,
    version: str = "v1.0-mini",
    location: str = "tinytown",
    yaw_rate: float = 0.1,
) -> Path:
    """Write `<root>/<version>/*.json` and `<root>/maps/expansion/<location>.json`, and return the root.

    Each scene drives at 5 m/s from (100 * scene, 50), turning left by `yaw_rate` rad a keyframe; a car stands 10 m ahead of the start and
    3 m to its right, a pedestrian walks. The default scenes are the whole split mini_val. Besides the LIDAR_TOP keyframes, sample_data
    holds a sweep and a camera keyframe of each sample, which no reader should take. num_lidar_pts of pedestrians is null.
    """
    tables: dict[str, Records] = {
        name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance", "attribute", "visibility")
    }
    tables["sensor"] = [
        {"token": "sensor-lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
        {"token": "sensor-camera", "channel": "CAM_FRONT", "modality": "camera"},
    ]
    tables["calibrated_sensor"] = [
        {"token": f"cal-{s}", "sensor_token": f"sensor-{s}", "translation": LIDAR_TRANSLATION, "rotation": LIDAR_ROTATION}
        for s in ("lidar", "camera")
    ]
    tables["category"] = [{"token": f"cat-{name}", "name": name, "description": ""} for name in CATEGORIES]
    tables["log"] = [{"token": "log", "logfile": "tiny", "vehicle": "t001", "date_captured": "2020-01-01", "location": location}]
    tables["map"] = []
    for s, name in enumerate(scenes):
        tokens = [f"{name}-sample-{k:02d}" for k in range(keyframes)]
        tables["scene"].append(
            {
                "token": f"{name}-token",
                "name": name,
                "log_token": "log",
                "nbr_samples": keyframes,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "description": "",
            }
        )
        start, position, yaw = np.array([100.0 * s, 50.0]), np.array([100.0 * s, 50.0]), 0.0
        for k, token in enumerate(tokens):
            time = 1_500_000_000_000_000 + s * 100_000_000 + k * 500_000
            links = {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < keyframes else ""}
            tables["sample"].append({"token": token, "timestamp": time, **links, "scene_token": f"{name}-token"})
            for kind, calibration, is_key in (("sweep", "cal-lidar", False), ("camera", "cal-camera", True), ("lidar", "cal-lidar", True)):
                own = f"{token}-{kind}"
                shift = 0.0 if kind == "lidar" else 7.0
                tables["ego_pose"].append(
                    {
                        "token": f"pose-{own}",
                        "timestamp": time,
                        "rotation": yaw_quaternion(yaw),
                        "translation": [position[0] + shift, position[1], 0.0],
                    }
                )
                tables["sample_data"].append(
                    {
                        "token": own,
                        "sample_token": token,
                        "ego_pose_token": f"pose-{own}",
                        "calibrated_sensor_token": calibration,
                        "timestamp": time,
                        "is_key_frame": is_key,
                        "filename": f"samples/{own}",
                    }
                )
            places = {"vehicle.car": [start[0] + 10, start[1] - 3, 0.85], "human.pedestrian.adult": [start[0] + 5 + k, start[1] + 4, 0.9]}
            for category, size in CATEGORIES.items():
                tables["sample_annotation"].append(
                    {
                        "token": f"{token}-{category}",
                        "sample_token": token,
                        "instance_token": f"{name}-{category}",
                        "visibility_token": "",
                        "attribute_tokens": [],
                        "translation": [float(v) for v in places[category]],
                        "size": size,
                        "rotation": yaw_quaternion(0.3),
                        "num_lidar_pts": 12 if category == "vehicle.car" else None,
                        "num_radar_pts": 0,
                    }
                )
            position = position + 2.5 * np.array([np.cos(yaw), np.sin(yaw)])
            yaw += yaw_rate
        for category in CATEGORIES:
            tables["instance"].append({"token": f"{name}-{category}", "category_token": f"cat-{category}", "nbr_annotations": keyframes})
    folder = root / version
    folder.mkdir(parents=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=0))
    expansion = root / "maps" / "expansion"
    expansion.mkdir(parents=True, exist_ok=True)
    (expansion / f"{location}.json").write_text(json.dumps(tiny_map()))
    return root


def tiny_map() -> dict[str, Any]:
    """A road 8 m wide along x at y = 50 with a hole of 4 x 2 m, in two overlapping pieces, a walkway beside it, and one lane."""
    nodes: Records = []
    polygons: Records = []

    def ring(x0: float, y0: float, x1: float, y1: float) -> list[str]:
        first = len(nodes)
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        nodes.extend({"token": f"n{first + i}", "x": x, "y": y} for i, (x, y) in enumerate(corners))
        return [f"n{first + i}" for i in range(4)]

    def polygon(shell: list[str], *holes: list[str]) -> str:
        token = f"p{len(polygons)}"
        polygons.append({"token": token, "exterior_node_tokens": shell, "holes": [{"node_tokens": h} for h in holes]})
        return token

    roads = [polygon(ring(-500, 46, 20, 54), ring(4, 49, 8, 51), []), polygon(ring(10, 46, 500, 54))]
    walkway, far = polygon(ring(-500, 54, 500, 57)), polygon(ring(5000, 0, 5010, 10))
    line = ring(-500, 50, 500, 50)[:2]
    arc = {
        "start_pose": [0.0, 50.0, 0.0],
        "end_pose": [10.0, 50.0, 0.0],
        "shape": "LSR",
        "radius": 10.0,
        "segment_length": [0.0, 10.0, 0.0],
    }
    return {
        "version": "1.3",
        "node": nodes,
        "polygon": polygons,
        "line": [{"token": "l0", "node_tokens": line}],
        "drivable_area": [{"token": "d0", "polygon_tokens": roads}],
        "walkway": [{"token": "w0", "polygon_token": walkway}],
        "ped_crossing": [{"token": "c0", "polygon_token": far}],
        "lane_divider": [{"token": "ld0", "line_token": "l0"}],
        "road_divider": [],
        "arcline_path_3": {"lane-0": [arc]},
    }


def edit(root: Path, table: str, change: Callable[[Records], object], version: str = "v1.0-mini") -> None:
    """Let `change` alter the records of one table in place, and write it back."""
    path = root / version / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records, indent=0))


def lay_sweeps(root: Path, points: np.ndarray, keyframes: int = 8) -> None:
    """Write every LIDAR_TOP file that the tiny tables name, with the same points in the lidar's frame."""
    (root / "samples" / "LIDAR_TOP").mkdir(parents=True)
    columns = np.concatenate([points, np.zeros((len(points), 2))], 1).astype(np.float32)
    for token in ("scene-0103", "scene-0916"):
        for k in range(keyframes):
            for kind in ("lidar", "sweep"):
                columns.tofile(root / "samples" / f"{token}-sample-{k:02d}-{kind}")
