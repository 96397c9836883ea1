"""Makes small valid Argoverse 2 sensor logs in the official layout. Tests then damage them in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, list[Any]]

FIRST_NS = 315_970_000_000_000_000
STEP_NS = 100_000_000
SPEED_MPS = 5.0
UP_LIDAR = (1.3, 0.0, 1.6)
LOGS = {"train": ("log-a",), "val": ("log-b", "log-c")}


def write(path: Path, columns: Columns) -> None:
    """Write a feather file."""
    import pyarrow
    from pyarrow import feather

    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pyarrow.table(columns), str(path))


def read(path: Path) -> Columns:
    """The columns of a feather file."""
    from pyarrow import feather

    return feather.read_table(str(path), memory_map=False).to_pydict()


def edit(path: Path, change: Callable[[Columns], object]) -> None:
    """Let `change` alter the columns of a feather file in place, and write it back."""
    columns = read(path)
    change(columns)
    write(path, columns)


def pose(x: float, y: float, z: float, yaw: float) -> dict[str, float]:
    """One row of a pose's columns: a position and a rotation about +z."""
    return {"qw": float(np.cos(yaw / 2)), "qx": 0.0, "qy": 0.0, "qz": float(np.sin(yaw / 2)), "tx_m": x, "ty_m": y, "tz_m": z}


def rows(values: Sequence[dict[str, Any]]) -> Columns:
    """Columns of rows that all have the same names."""
    return {name: [value[name] for value in values] for name in values[0]}


def log(folder: Path, moments: int = 56, start_x: float = 0.0) -> Path:
    """Write one log that drives along +x at 5 m/s from (start_x, 0), its axle 0.31 m above z = 0, and return its folder.

    A regular vehicle (4.6 x 1.9 x 1.7 m) stands at (start_x + 60, 3, 0.85), heading along -x; a pedestrian walks along +y at 1 m/s from
    (start_x + 20, -8). A stop sign stands somewhere. Poses exist at every moment and halfway between, as those of other sensors do. Every
    sensor but the upper lidar is left out. The road is 20 m wide, with two lanes that lead through an intersection from x = start_x + 40.
    """
    cuboids, poses = [], []
    for k in range(2 * moments):
        poses.append({"timestamp_ns": FIRST_NS + k * STEP_NS // 2} | pose(start_x + SPEED_MPS * 0.05 * k, 0.0, 0.31, 0.0))
    for k in range(moments):
        here = start_x + SPEED_MPS * 0.1 * k
        for track, category, size, x, y, z, yaw in (
            ("car-1", "REGULAR_VEHICLE", (4.6, 1.9, 1.7), start_x + 60.0, 3.0, 0.85, np.pi),
            ("walker-1", "PEDESTRIAN", (0.7, 0.6, 1.8), start_x + 20.0, -8.0 + 0.1 * k, 0.9, np.pi / 2),
            ("sign-1", "STOP_SIGN", (0.1, 0.6, 0.6), start_x + 50.0, 9.0, 2.0, 0.0),
        ):
            cuboids.append(
                {"timestamp_ns": FIRST_NS + k * STEP_NS, "track_uuid": f"{folder.name}-{track}", "category": category}
                | dict(zip(("length_m", "width_m", "height_m"), size, strict=True))
                | pose(x - here, y, z - 0.31, yaw)
                | {"num_interior_pts": 10}
            )
    write(folder / "annotations.feather", rows(cuboids))
    write(folder / "city_SE3_egovehicle.feather", rows(poses))
    write(folder / "calibration" / "egovehicle_SE3_sensor.feather", rows([{"sensor_name": "up_lidar"} | pose(*UP_LIDAR, 0.0)]))
    path = folder / "map" / f"log_map_archive_{folder.name}____MIA_city_1.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(town_map(start_x)))
    return folder


def make(root: Path, logs: dict[str, Sequence[str]] | None = None, moments: int = 56, inner: str = "sensor") -> Path:
    """Write logs (split → log ids) below `<root>/<inner>` and return the root; every log drives somewhere else."""
    number = 0
    for split, names in (LOGS if logs is None else logs).items():
        for name in names:
            log(root / inner / split / name, moments, 500.0 * number)
            number += 1
    return root


def points(*values: tuple[float, float]) -> list[dict[str, float]]:
    """Points of a map."""
    return [{"x": x, "y": y, "z": 0.0} for x, y in values]


def town_map(x: float) -> dict[str, Any]:
    """A straight road from x - 50 to x + 150, y in [-10, 10], with one lane each way and a crossing at x + 30."""

    def lane(number: int, low: float, high: float, one: float, two: float, **more: Any) -> dict[str, Any]:
        forward = number < 10
        left, right = (high, low) if forward else (low, high)
        ends = (one, two) if forward else (two, one)
        return {
            "id": number,
            "is_intersection": False,
            "lane_type": "VEHICLE",
            "left_lane_boundary": points(*((x + end, left) for end in ends)),
            "left_lane_mark_type": "DOUBLE_SOLID_YELLOW",
            "right_lane_boundary": points(*((x + end, right) for end in ends)),
            "right_lane_mark_type": "SOLID_WHITE",
            "successors": [],
            "predecessors": [],
            "left_neighbor_id": None,
            "right_neighbor_id": None,
        } | more

    crossing = {"is_intersection": True, "left_lane_mark_type": "NONE", "right_lane_mark_type": "NONE"}
    lanes = [
        lane(1, 0, 4, -50, 40, successors=[2, 99]),
        lane(2, 0, 4, 40, 150, **crossing),
        lane(11, 4, 8, -50, 40),
        lane(12, 4, 8, 40, 150, successors=[11], **crossing),
        lane(3, -8, -6, -50, 150, lane_type="BIKE", left_lane_mark_type="NONE"),
    ]
    ring = points((x - 50, -10), (x + 150, -10), (x + 150, 10), (x - 50, 10))
    return {
        "drivable_areas": {"1": {"id": 1, "area_boundary": ring}},
        "pedestrian_crossings": {
            "2": {"id": 2, "edge1": points((x + 30, -10), (x + 30, 10)), "edge2": points((x + 33, 10), (x + 33, -10))}
        },
        "lane_segments": {str(one["id"]): one for one in lanes},
    }
