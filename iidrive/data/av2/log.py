"""Reader of one Argoverse 2 log as a scene: ego poses, cuboids in the global frame, and the lidar's pose.

Frames of the files: `city` is the map frame (here `global`). `egovehicle` has its origin at the centre of the rear axle: x forward, y left,
z up. Cuboids are in the egovehicle frame of their own timestamp. Shape letters: m timestamps, k keyframes, n cuboids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from iidrive.core import geometry
from iidrive.core.classes import CATEGORY_INDEX
from iidrive.core.errors import DataError, unknown
from iidrive.core.scene import MANOEUVRES, STEP_S, Boxes, Command, Keyframe, Pose, Scene, VectorMap
from iidrive.core.text import printable
from iidrive.data.av2.categories import CATEGORY, EGO, WITHOUT_COUNTERPART
from iidrive.data.av2.map import map_file, read_map
from iidrive.data.av2.tables import AGAIN, Table
from iidrive.data.commands import oracle_commands

Array = np.ndarray

AXLE_HEIGHT_M = 0.31
"""Height of the egovehicle origin above the ground, metres. The ground height rasters of three logs give medians of 0.30 to 0.32."""

EGO_T_UP_LIDAR_M = (1.35, 0.0, 1.64)
"""Position of the upper lidar in the egovehicle frame, metres, for logs without calibration. Its axes are those of the vehicle."""

ANNOTATIONS, POSES, CALIBRATION = "annotations.feather", "city_SE3_egovehicle.feather", "calibration/egovehicle_SE3_sensor.feather"

_STEP_NS = round(STEP_S * 1e9)
_GAP_NS = 105_000_000
"""Maximum distance of a keyframe from its nominal time, nanoseconds: one timestamp of a 10 Hz log may be missing."""
_END_NS = 50_000_000
_FASTEST_MPS = 150.0
_LARGEST_M = 1e3
_UP_LIDAR_T_LIDAR = Pose.from_xy_yaw(0.0, 0.0, -np.pi / 2).matrix
"""The lidar frame of the files has x forward; LIDAR_TOP has x right, y forward."""


@dataclass(frozen=True)
class About:
    """What a log has and lacks.

    Attributes:
        mapped: whether it has a map.
        calibrated: whether it has the lidar's calibration.
        ego_rows: number of cuboids of the ego vehicle, which are left out.
        without_counterpart: number of cuboids, by category, that are left out because nuScenes has no such category.
    """

    mapped: bool
    calibrated: bool
    ego_rows: int
    without_counterpart: Counter[str]


def read_log(folder: Path) -> tuple[Scene, About]:
    """Read one log as a scene. Its name is that of the folder; its sample tokens are `<log>_<timestamp in nanoseconds>`.

    Raises:
        DataError: naming the file, if a table is missing or damaged, a cuboid or pose is invalid, a gap in the annotations is too long, a
            keyframe has no pose, or the map is damaged.
    """
    table = Table(folder / ANNOTATIONS)
    if not len(table):
        raise DataError(f"{table.where}: it has no cuboids; expected those of about 150 timestamps. {AGAIN}")
    moment_ns = table.whole("timestamp_ns")
    at_ns = keyframe_moments(np.unique(moment_ns), table.where)
    table = table.select(np.isin(moment_ns, at_ns))
    category = table.texts("category")
    dropped = np.isin(category, [EGO, *WITHOUT_COUNTERPART])
    left_out = Counter(category[dropped].tolist())
    ego_rows = left_out.pop(EGO, 0)

    global_T_axle = poses(folder / POSES, at_ns)
    ego_T_lidar, calibrated = _lidar(folder / CALIBRATION)
    global_T_ego = global_T_axle @ _shift(-AXLE_HEIGHT_M)
    command = oracle_commands(global_T_ego @ ego_T_lidar, np.array([0, len(at_ns)]))
    boxes = _boxes(table.select(~dropped), at_ns, global_T_axle)
    keyframes = tuple(
        Keyframe(
            token=f"{folder.name}_{at_ns[k]}",
            timestamp_us=int(at_ns[k] // 1000),
            global_T_ego=Pose.from_matrix(global_T_ego[k]),
            ego_T_lidar=Pose.from_matrix(ego_T_lidar),
            boxes=boxes[k],
            command=Command(MANOEUVRES[command[k]], "oracle"),
        )
        for k in range(len(at_ns))
    )
    path = map_file(folder)
    scene = Scene(folder.name, keyframes, read_map(path) if path else VectorMap())
    return scene, About(path is not None, calibrated, ego_rows, left_out)


def keyframe_moments(moment_ns: Int[Array, "m"], where: str) -> Int[Array, "k"]:
    """Timestamps of keyframes, about every fifth one of a 10 Hz log: each is the one nearest to 0.5 s after the last keyframe.

    Raises:
        DataError: naming `where`, if no timestamp is within 0.105 s of a keyframe's nominal time.
    """
    chosen = [int(moment_ns[0])]
    while (next_ns := chosen[-1] + _STEP_NS) <= moment_ns[-1] + _END_NS:
        nearest = int(moment_ns[np.argmin(np.abs(moment_ns - next_ns))])
        if abs(nearest - next_ns) > _GAP_NS:
            before, after = (int(moment_ns[np.searchsorted(moment_ns, next_ns) + k]) for k in (-1, 0))
            raise DataError(
                f"{where}: keyframes are 0.5 s apart, but there are no annotations from {before} to {after} ns "
                f"({(after - before) * 1e-9:.2f} s). {AGAIN}"
            )
        chosen.append(nearest)
    return np.array(chosen, np.int64)


def poses(path: Path, at_ns: Int[Array, "k"]) -> Float[Array, "k 4 4"]:
    """Poses of the egovehicle in the city frame, at times in ascending order. Raises DataError for a missing or damaged pose."""
    table = Table(path)
    time_ns = table.whole("timestamp_ns")
    order = np.argsort(time_ns, kind="stable")
    place = np.searchsorted(time_ns[order], at_ns)
    absent = [int(at) for at, p in zip(at_ns, place, strict=True) if p == len(order) or time_ns[order[p]] != at]
    if absent:
        raise DataError(
            f"{table.where}: no pose at {absent[0]} ns, where there are cuboids ({len(absent)} of {len(at_ns)} keyframes). {AGAIN}"
        )
    rows = np.isin(time_ns, at_ns)
    table, time_ns = table.select(rows), time_ns[rows]
    global_T_axle = table.transforms()[np.searchsorted(time_ns, at_ns, sorter=np.argsort(time_ns, kind="stable"))]
    metres, seconds = np.linalg.norm(np.diff(global_T_axle[:, :3, 3], axis=0), axis=1), np.diff(at_ns) * 1e-9
    fast = metres > _FASTEST_MPS * seconds + 1.0
    if fast.any():
        k = int(np.argmax(fast))
        raise DataError(
            f"{table.where}: from {at_ns[k]} to {at_ns[k + 1]} ns the car moves {metres[k]:.0f} m in {seconds[k]:.2f} s; a pose is damaged. {AGAIN}"
        )
    return global_T_axle


def _lidar(path: Path) -> tuple[Float[Array, "4 4"], bool]:
    """Pose of LIDAR_TOP in the ego frame (origin on the ground), and whether it is from the log's calibration."""
    if not path.exists():
        return _shift(AXLE_HEIGHT_M) @ geometry.rigid(np.eye(3), np.array(EGO_T_UP_LIDAR_M)) @ _UP_LIDAR_T_LIDAR, False
    table = Table(path)
    names = table.texts("sensor_name")
    rows = np.flatnonzero(names == "up_lidar")
    if len(rows) != 1:
        found = printable(", ".join(map(str, names)), 200) or "nothing"
        raise DataError(f"{table.where}: expected one row for the sensor up_lidar; found {found}. {AGAIN}")
    return _shift(AXLE_HEIGHT_M) @ table.transforms()[rows[0]] @ _UP_LIDAR_T_LIDAR, True


def _boxes(table: Table, at_ns: Int[Array, "k"], global_T_axle: Float[Array, "k 4 4"]) -> list[Boxes]:
    """Cuboids of every keyframe in the global frame, in the order of the table."""
    where = table.where
    keyframe = np.searchsorted(at_ns, table.whole("timestamp_ns"))
    category, track = table.texts("category"), table.texts("track_uuid")
    names = list(dict.fromkeys(category.tolist()))
    for name in names:
        if name not in CATEGORY:
            raise DataError(f"{where}: {unknown('category', name, (*CATEGORY, *WITHOUT_COUNTERPART))}")
    label_of = {name: CATEGORY_INDEX[CATEGORY[name]] for name in names}
    size = table.numbers(("length_m", "width_m", "height_m"), _LARGEST_M)
    if (size <= 0).any():
        row = int(np.argmax((size <= 0).any(axis=1)))
        raise DataError(
            f"{where}: the cuboid of track {printable(track[row])} has the size {size[row].tolist()} m; expected more than 0. {AGAIN}"
        )
    twice = [pair for pair, count in Counter(zip(keyframe.tolist(), track.tolist(), strict=True)).items() if count > 1]
    if twice:
        k, name = twice[0]
        raise DataError(f"{where}: track {printable(name)} appears twice at {at_ns[k]} ns ({len(twice)} such cuboids). {AGAIN}")
    moved = global_T_axle[keyframe] @ table.transforms()
    columns = moved[:, :3, 3], size, geometry.heading(moved), np.array([label_of[c] for c in category.tolist()], np.int64)
    points = table.whole("num_interior_pts") if table.has("num_interior_pts") else np.full(len(keyframe), -1)
    out = []
    for k in range(len(at_ns)):
        rows = np.flatnonzero(keyframe == k)
        centre, size_m, yaw, label = (column[rows] for column in columns)
        out.append(Boxes("global", centre, size_m, yaw, label, tuple(track[rows].tolist()), points[rows]))
    return out


def _shift(up_m: float) -> Float[Array, "4 4"]:
    return geometry.rigid(np.eye(3), np.array([0.0, 0.0, up_m]))
