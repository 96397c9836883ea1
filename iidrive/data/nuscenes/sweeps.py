"""Lidar sweeps of nuScenes: the files of each scene, and their points in the global frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.core.untrusted.files import read_bytes
from iidrive.data.derive.sweeps import Sweep, hits_ego
from iidrive.data.nuscenes.tables import by_token, field, follow, numbers, quaternions, records, table_file, text, whole

Array = np.ndarray

FOLDERS = ("samples", "sweeps")
"""Folders of sweep files, below the root."""
_COLUMNS = 5
"""x, y, z, intensity and ring, float32."""
_FARTHEST_M = 1e4
_LIMIT = 1 << 28
"""Maximum size of a sweep's file, bytes."""
_LATEST_US = 1 << 62


@dataclass(frozen=True)
class SweepFiles:
    """The LIDAR_TOP records of every scene of a version, in order of time: times, files below the root, ego poses and lidar poses (n,4,4)."""

    root: Path
    time_us: dict[str, Array]
    path: dict[str, tuple[str, ...]]
    global_T_ego: dict[str, Float[Array, "n 4 4"]]
    ego_T_lidar: dict[str, Float[Array, "n 4 4"]]

    def read(self, scene: str, every: int) -> Iterator[Sweep]:
        """Every n-th sweep of a scene.

        Raises:
            DataError: naming the file, if it is missing or incomplete.
        """
        for k in range(0, len(self.path.get(scene, ())), every):
            lidar_m = read_points(self.root / self.path[scene][k])
            ego_m = geometry.apply(self.ego_T_lidar[scene][k], lidar_m)
            pose = self.global_T_ego[scene][k]
            origin = geometry.apply(pose, self.ego_T_lidar[scene][k][:3, 3])
            yield Sweep(int(self.time_us[scene][k]), geometry.apply(pose, ego_m[~hits_ego(ego_m)]), origin)


def read_points(path: Path) -> Float[Array, "n 3"]:
    """The points of a `.pcd.bin` file in the lidar frame. Non-finite points are left out.

    Raises:
        DataError: naming the file, if it is missing or incomplete, or has a point farther away than 10 km.
    """
    raw = read_bytes(path, _LIMIT, "unpack the sweep again, or read none with --sweeps 0")
    if not raw or len(raw) % (4 * _COLUMNS):
        raise DataError(f"{path}: {len(raw)} bytes are no whole points of {_COLUMNS} numbers. Unpack the sweep again.")
    points = np.frombuffer(raw, "<f4").reshape(-1, _COLUMNS)[:, :3].astype(np.float64)
    points = points[np.isfinite(points).all(1)]
    far = int((np.abs(points) > _FARTHEST_M).any(1).sum())
    if far:
        raise DataError(f"{path}: {far} of {len(points)} points are farther away than {_FARTHEST_M:g} m. Unpack the sweep again.")
    return points


def find(folder: Path, root: Path) -> SweepFiles | None:
    """The sweeps of a version according to its tables; None without LIDAR_TOP folders below the root. Reads sample_data and ego_pose once.

    Raises:
        DataError: naming the table and the record, as the index does.
    """
    if not any((root / name / "LIDAR_TOP").is_dir() for name in FOLDERS):
        return None
    paths = {name: table_file(folder, name) for name in ("sensor", "calibrated_sensor", "sample", "scene", "sample_data", "ego_pose")}
    channel = {token: name for token, (name,) in by_token(paths["sensor"], "channel").items()}
    calibrated = by_token(paths["calibrated_sensor"], "sensor_token", "translation", "rotation")
    scene_of = {token: scene for token, (scene,) in by_token(paths["sample"], "scene_token").items()}
    name_of = {token: name for token, (name,) in by_token(paths["scene"], "name").items()}
    found: dict[str, list[tuple[int, str, str, str]]] = {}
    table = paths["sample_data"]
    for record in records(table):
        token, calibration = text(table, record, "token"), field(table, record, "calibrated_sensor_token")
        sensor = follow(table, token, "calibrated_sensor_token", calibration, calibrated)[0]
        if channel.get(sensor) == "LIDAR_TOP":
            scene = follow(table, token, "sample_token", field(table, record, "sample_token"), scene_of)
            time_us = whole(table, token, "timestamp", field(table, record, "timestamp"), _LATEST_US)
            row = (time_us, text(table, record, "filename"), text(table, record, "ego_pose_token"), calibration)
            found.setdefault(str(name_of[scene]), []).append(row)
    poses = _poses(paths["ego_pose"], {row[2] for rows in found.values() for row in rows})
    lidars = _transforms(paths["calibrated_sensor"], {token: (entry[1], entry[2]) for token, entry in calibrated.items()})
    times: dict[str, Array] = {}
    files: dict[str, tuple[str, ...]] = {}
    global_T_ego: dict[str, Array] = {}
    ego_T_lidar: dict[str, Array] = {}
    for scene, rows in found.items():
        rows.sort()
        twice = next((name for name, count in Counter(row[1] for row in rows).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{table}: the sweep {printable(twice)} of {printable(scene)} appears twice. Unpack the table again.")
        times[scene] = np.array([row[0] for row in rows], np.int64)
        files[scene] = tuple(row[1] for row in rows)
        global_T_ego[scene] = np.stack([follow(table, row[1], "ego_pose_token", row[2], poses) for row in rows])
        ego_T_lidar[scene] = np.stack([lidars[row[3]] for row in rows])
    return SweepFiles(root, times, files, global_T_ego, ego_T_lidar)


def _poses(path: Path, wanted: set[str]) -> dict[str, Array]:
    kept: dict[str, tuple[Any, Any]] = {}
    for record in records(path):
        if (token := text(path, record, "token")) in wanted:
            if token in kept:
                raise DataError(f"{path}: token {printable(token)} appears twice. Unpack the table again.")
            kept[token] = field(path, record, "translation"), field(path, record, "rotation")
    return _transforms(path, kept)


def _transforms(path: Path, held: dict[str, tuple[Any, Any]]) -> dict[str, Array]:
    """Rigid transforms of records (translation, rotation), by token."""
    tokens = list(held)
    translation = numbers(path, tokens, "translation", [held[token][0] for token in tokens], 3)
    rotation = quaternions(path, tokens, [held[token][1] for token in tokens])
    return dict(zip(tokens, geometry.rigid(geometry.quaternion_to_matrix(rotation), translation), strict=True))
