"""Index of a nuScenes version: the data of all scenes as flat arrays, built once from the tables and cached in one file."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from iidrive.core import geometry
from iidrive.core.classes import category_index
from iidrive.core.errors import DataError
from iidrive.core.scene import STEP_S
from iidrive.core.text import printable
from iidrive.data.commands import oracle_commands
from iidrive.data.nuscenes.tables import TABLES, by_token, field, file_name, follow, numbers, quaternions, records, table_file, text, whole
from iidrive.runtime import atomic

Array = np.ndarray

FORMAT = 4
"""Version of the cache format. Increase it when the arrays or the checks below change, so that old cache files are rebuilt."""


_LAST_US = (1 << 62) - 1
_MOST_POINTS = (1 << 31) - 1
_LARGEST_M = 1e3
_FASTEST_MPS = 150.0
_JITTER_S = 0.1
"""How far the median spacing of a scene's keyframes may be off; single ones are 0.40 to 0.60 s in the official sets."""


@dataclass(frozen=True)
class Index:
    """Flat arrays: s scenes sorted by name, k keyframes in order of scenes, n boxes in order of keyframes, and all instances.

    Units are metres and radians. Ego poses and boxes are in the global frame, LIDAR_TOP poses in the ego frame. Keyframes of scene i are
    `keyframe_start[i]:keyframe_start[i+1]`, boxes of keyframe j are `box_start[j]:box_start[j+1]`. Rotations are unit quaternions
    (w, x, y, z). Sizes are length, width, height. `box_lidar_points` is -1 where the table holds null. `command` indexes `MANOEUVRES`.
    """

    scene_name: Array
    location: Array
    keyframe_start: Int[Array, "s+1"]
    token: Array
    timestamp_us: Int[Array, "k"]
    ego_rotation: Float[Array, "k 4"]
    ego_translation: Float[Array, "k 3"]
    lidar_rotation: Float[Array, "k 4"]
    lidar_translation: Float[Array, "k 3"]
    command: Int[Array, "k"]
    box_start: Int[Array, "k+1"]
    box_centre: Float[Array, "n 3"]
    box_size: Float[Array, "n 3"]
    box_yaw: Float[Array, "n"]
    box_label: Int[Array, "n"]
    box_instance: Int[Array, "n"]
    box_lidar_points: Int[Array, "n"]
    instance: Array


def load(folder: Path, cache: Path) -> tuple[Index, tuple[str, ...]]:
    """The index of a version folder: from the cache if it is undamaged and the tables have not changed, else built from the tables.

    Args:
        folder: `<root>/v1.0-…`.
        cache: folder for the cache file. It need not exist and may be read-only.

    Returns:
        The index, and a sentence for each problem with the cache.

    Raises:
        DataError: as `build`.
    """
    key = _key(folder)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    path = cache / f"nuscenes-{folder.name}-{name}.index"
    notes: list[str] = []
    found, reason = _read(path, key)
    if found is not None:
        return found, ()
    if reason:
        notes.append(f"the index cache {path} was damaged ({reason}): rebuilt from the tables")
    index = build(folder)
    problem = _write(path, key, index)
    if problem:
        notes.append(f"the index cache {path} could not be written ({problem}): the tables will be read again next time")
    return index, tuple(notes)


def build(folder: Path) -> Index:
    """Read and check the tables of a version folder.

    Raises:
        DataError: naming the file and the record, for a missing or damaged table, a missing field, a dangling token, a pose or box that
            is not finite, a size of 0 or less, an unknown category, a sample without its LIDAR_TOP keyframe.
    """
    paths = {table: table_file(folder, table) for table in TABLES}
    keyframes, scenes = _samples(paths)
    order = {token: k for k, (token, _) in enumerate(keyframes)}
    lidar = _lidar(paths, order)
    poses = _poses(paths, keyframes, lidar)
    starts = np.cumsum([0, *(n for _, _, n in scenes)])
    _check_jumps(paths["ego_pose"], keyframes, poses["ego_translation"], starts)
    return Index(
        scene_name=np.array([name for name, _, _ in scenes]),
        location=np.array([location for _, location, _ in scenes]),
        keyframe_start=starts,
        token=np.array([token for token, _ in keyframes]),
        timestamp_us=np.array([time for _, time in keyframes], dtype=np.int64),
        command=_commands(poses, starts),
        **poses,
        **_boxes(paths, order),
    )


def _samples(paths: dict[str, Path]) -> tuple[list[tuple[str, int]], list[tuple[str, str, int]]]:
    """(token, timestamp) of all keyframes in scene order, and (name, location, number of keyframes) of all scenes."""
    logs = by_token(paths["log"], "location")
    scenes = by_token(paths["scene"], "name", "log_token", "first_sample_token", "nbr_samples")
    samples = by_token(paths["sample"], "timestamp", "next", "scene_token")
    if not scenes:
        raise DataError(f"{paths['scene']} holds no scenes; unpack the table again.")
    for token, (_, _, scene_token) in samples.items():
        file_name(paths["sample"], {"token": token}, "token")
        follow(paths["sample"], token, "scene_token", scene_token, scenes)
    keyframes: list[tuple[str, int]] = []
    out: list[tuple[str, str, int]] = []
    for token, (name, log_token, first, expected) in sorted(scenes.items(), key=lambda item: str(item[1][0])):
        if out and out[-1][0] == name:
            raise DataError(f"{paths['scene']}: the name {name} appears twice. Unpack the table again.")
        (location,) = follow(paths["scene"], token, "log_token", log_token, logs)
        file_name(paths["scene"], {"token": token, "name": name}, "name")
        text(paths["log"], {"token": log_token, "location": location}, "location")
        follow(paths["scene"], token, "first_sample_token", first, samples)
        chain: list[tuple[str, int]] = []
        here = first
        while here:
            time, ahead, owner = samples[here]
            if owner != token or type(time) is not int or not 0 <= time <= _LAST_US or len(chain) >= len(samples):
                raise DataError(f"{paths['sample']}: record {here} is not a keyframe of {name} with an integer timestamp; unpack it again.")
            if chain and time <= chain[-1][1]:
                raise DataError(f"{paths['sample']}: record {here} of {name} is not later than the one before it ({time} us).")
            chain.append((here, time))
            if ahead:
                follow(paths["sample"], here, "next", ahead, samples)
            here = ahead
        if len(chain) != expected:
            raise DataError(
                f"{paths['scene']}: {name} should have {expected} samples, but sample.json links {len(chain)}. Unpack the tables again."
            )
        _check_spacing(paths["sample"], name, [time for _, time in chain])
        keyframes += chain
        out.append((name, location, len(chain)))
    if len(keyframes) != len(samples):
        raise DataError(f"{paths['sample']}: {len(samples) - len(keyframes)} samples are not linked to any scene; unpack the tables again.")
    return keyframes, out


def _check_spacing(path: Path, name: str, times_us: list[int]) -> None:
    """Raise DataError unless half of a scene's keyframes follow the one before them by about 0.5 s, which every protocol takes for granted."""
    if len(times_us) < 2:
        return
    median_s = float(np.median(np.diff(times_us))) * 1e-6
    if abs(median_s - STEP_S) > _JITTER_S:
        raise DataError(
            f"{path}: keyframes of {name} are {median_s:.3g} s apart (median), where plans and scores have a step of {STEP_S:g} s. "
            f"Keep one keyframe each {STEP_S:g} s; sets of 12 Hz are read from their 2 Hz tables."
        )


def _check_counts(path: Path, owners: Sequence[str], announced: Mapping[str, object]) -> None:
    """Raise DataError if instances announce other numbers of annotations than there are. Instances without any are allowed beside others."""
    found = Counter(owners)
    known = {token: count for token, count in announced.items() if type(count) is int}
    wrong = [token for token, count in known.items() if count != found[token] and (found[token] or not owners)]
    if wrong:
        raise DataError(
            f"{path}: instance {printable(wrong[0])} announces {known[wrong[0]]} annotations (nbr_annotations), and {found[wrong[0]]} are there "
            f"({len(wrong)} such instances). Unpack the table again."
        )


def _lidar(paths: dict[str, Path], order: dict[str, int]) -> dict[str, tuple[str, str, str]]:
    """Sample token → (sample_data token, ego_pose token, calibrated_sensor token) of its LIDAR_TOP keyframe."""
    path = paths["sample_data"]
    channel = {token: name for token, (name,) in by_token(paths["sensor"], "channel").items()}
    calibrated = by_token(paths["calibrated_sensor"], "sensor_token")
    is_top = {
        token: follow(paths["calibrated_sensor"], token, "sensor_token", sensor, channel) == "LIDAR_TOP"
        for token, (sensor,) in calibrated.items()
    }
    out: dict[str, tuple[str, str, str]] = {}
    for record in records(path):
        if not field(path, record, "is_key_frame"):
            continue
        token, calibration = field(path, record, "token"), field(path, record, "calibrated_sensor_token")
        if not follow(path, token, "calibrated_sensor_token", calibration, is_top):
            continue
        sample = field(path, record, "sample_token")
        follow(path, token, "sample_token", sample, order)
        if sample in out:
            raise DataError(f"{path}: sample {sample} has two LIDAR_TOP keyframes, {out[sample][0]} and {token}; keep one.")
        out[sample] = (token, text(path, record, "ego_pose_token"), calibration)
    for sample in order:
        if sample not in out:
            raise DataError(f"{path}: sample {sample} has no LIDAR_TOP record with is_key_frame true; its pose is unknown.")
    return out


def _poses(paths: dict[str, Path], keyframes: list[tuple[str, int]], lidar: dict[str, tuple[str, str, str]]) -> dict[str, Any]:
    """Ego and LIDAR_TOP poses of all keyframes, as fields of Index."""
    out: dict[str, Any] = {}
    for prefix, table, which in (("ego", "ego_pose", 1), ("lidar", "calibrated_sensor", 2)):
        path = paths[table]
        wanted = {entry[which] for entry in lidar.values()}
        kept: dict[str, tuple[Any, Any]] = {}
        for record in records(path):  # ego_pose has one record per sweep of every sensor; keep only those of keyframes
            if (token := text(path, record, "token")) in wanted:
                if token in kept:
                    raise DataError(f"{path}: token {printable(token)} appears twice. Unpack the table again.")
                kept[token] = (field(path, record, "rotation"), field(path, record, "translation"))
        names = [lidar[token][which] for token, _ in keyframes]
        if prefix == "ego" and len(wanted) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            both = [printable(token) for (token, _), name in zip(keyframes, names, strict=True) if name == twice][:2]
            raise DataError(f"{paths['sample_data']}: samples {both[0]} and {both[1]} share the ego pose {printable(twice)}.")
        for (sample, _), name in zip(keyframes, names, strict=True):
            follow(paths["sample_data"], lidar[sample][0], f"{table}_token", name, kept)
        out[f"{prefix}_rotation"] = quaternions(path, names, [kept[name][0] for name in names])
        out[f"{prefix}_translation"] = numbers(path, names, "translation", [kept[name][1] for name in names], 3)
    return out


def _check_jumps(path: Path, keyframes: list[tuple[str, int]], position: Float[Array, "k 3"], starts: Int[Array, "s+1"]) -> None:
    """Raise DataError if the ego moves faster than 150 m/s between two keyframes of a scene."""
    metres = np.linalg.norm(np.diff(position, axis=0), axis=1)
    seconds = np.diff(np.array([time for _, time in keyframes], np.float64)) * 1e-6
    bad = metres > _FASTEST_MPS * seconds + 1.0
    bad[starts[1:-1] - 1] = False  # steps from one scene to the next
    if bad.any():
        k = int(np.argmax(bad))
        raise DataError(
            f"{path}: from sample {printable(keyframes[k][0])} to {printable(keyframes[k + 1][0])} the car moves {metres[k]:.0f} m in "
            f"{seconds[k]:.2f} s ({int(bad.sum())} such steps); a pose is damaged. Unpack the table again."
        )


def _boxes(paths: dict[str, Path], order: dict[str, int]) -> dict[str, Any]:
    """All boxes as fields of Index, in order of keyframes and, within a keyframe, of the table."""
    path = paths["sample_annotation"]
    category_name = {token: name for token, (name,) in by_token(paths["category"], "name").items()}
    instances = by_token(paths["instance"], "category_token")
    number_of = {token: i for i, token in enumerate(instances)}
    names = ("token", "sample_token", "instance_token", "translation", "size", "rotation", "num_lidar_pts")
    columns: tuple[list[Any], ...] = tuple([] for _ in names)
    for record in records(path):
        for column, name in zip(columns, names, strict=True):
            column.append(field(path, record, name))
    tokens, samples, owners, translation, size, rotation, points = columns
    keyframe = np.array([follow(path, t, "sample_token", s, order) for t, s in zip(tokens, samples, strict=True)], dtype=np.int64)
    instance = np.array([follow(path, t, "instance_token", o, number_of) for t, o in zip(tokens, owners, strict=True)], dtype=np.int32)
    announced = {token: record.get("nbr_annotations") for token, record in zip(instances, records(paths["instance"]), strict=True)}
    again = len(tokens) - len(set(map(str, tokens)))
    if again:
        seen: set[str] = set()
        twice = next(str(t) for t in tokens if str(t) in seen or seen.add(str(t)))
        raise DataError(f"{path}: token {printable(twice)} appears twice ({again} records are copies). Unpack the table again.")
    for token, count in zip(tokens, points, strict=True):
        if count is not None:
            whole(path, token, "num_lidar_pts", count, _MOST_POINTS)
    # Check only categories that annotations use: lidarseg and panoptic add others, and instances without boxes are ignored.
    label_of: dict[str, int] = {}
    for owner in dict.fromkeys(owners):
        category = follow(paths["instance"], owner, "category_token", instances[owner][0], category_name)
        name = text(paths["category"], {"token": instances[owner][0], "name": category}, "name")
        label_of[owner] = category_index(name, f"{paths['category']}, record {printable(instances[owner][0])}")
    width_length_height = numbers(path, tokens, "size", size, 3, _LARGEST_M)
    empty = (width_length_height <= 0).any(axis=1)
    if empty.any():
        i = int(np.argmax(empty))
        raise DataError(
            f"{path}: record {tokens[i]} has the size {width_length_height[i].tolist()} (width, length, height), and each must be larger than 0; "
            "repair or drop the record."
        )
    turn = geometry.quaternion_to_matrix(quaternions(path, tokens, rotation))
    by_keyframe = np.argsort(keyframe, kind="stable")
    pair = keyframe * max(len(instances), 1) + instance
    order_of_pair = np.argsort(pair, kind="stable")
    doubled = np.flatnonzero(pair[order_of_pair][1:] == pair[order_of_pair][:-1])
    if len(doubled):
        i = int(order_of_pair[doubled[0] + 1])
        raise DataError(
            f"{path}: instance {printable(owners[i])} appears twice in sample {printable(samples[i])}, again as {printable(tokens[i])} "
            f"({len(doubled)} such records). Unpack the table again."
        )
    _check_counts(path, owners, announced)
    label = np.array([label_of[owner] for owner in owners], dtype=np.int16)
    return {
        "box_start": np.searchsorted(keyframe[by_keyframe], np.arange(len(order) + 1)),
        "box_centre": numbers(path, tokens, "translation", translation, 3)[by_keyframe],
        "box_size": width_length_height[by_keyframe][:, [1, 0, 2]],
        "box_yaw": np.arctan2(turn[:, 1, 0], turn[:, 0, 0])[by_keyframe],
        "box_label": label[by_keyframe],
        "box_instance": instance[by_keyframe],
        "box_lidar_points": np.array([-1 if p is None else p for p in points], dtype=np.int32)[by_keyframe],
        "instance": np.array(list(instances) or [""]),
    }


def _commands(poses: dict[str, Any], starts: Int[Array, "s+1"]) -> Int[Array, "k"]:
    """Oracle commands of all keyframes."""
    ego = geometry.rigid(geometry.quaternion_to_matrix(poses["ego_rotation"]), poses["ego_translation"])
    lidar = geometry.rigid(geometry.quaternion_to_matrix(poses["lidar_rotation"]), poses["lidar_translation"])
    return oracle_commands(ego @ lidar, starts)


def _key(folder: Path) -> str:
    """Cache key: the format, and size and modification time of every table."""
    stats = {table: table_file(folder, table).stat() for table in TABLES}
    return json.dumps({"format": FORMAT, **{t: [s.st_size, s.st_mtime_ns] for t, s in stats.items()}})


def _read(path: Path, key: str) -> tuple[Index | None, str]:
    """The cached index, or None and the reason ('' if there is none yet or the tables have changed)."""
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
        if hashlib.sha256(payload).hexdigest().encode() != digest:
            return None, "its checksum does not match"
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None, ""
            return Index(**{f.name: arrays[f.name] for f in fields(Index)}), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except Exception as error:  # a damaged cache can fail in any way; the index is rebuilt from the tables
        return None, f"{type(error).__name__}: {error}"


def _write(path: Path, key: str, index: Index) -> str:
    """Write the cache file atomically. Returns '' or the error."""
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), **{f.name: getattr(index, f.name) for f in fields(Index)})
    payload = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    except OSError as error:
        return str(error)
    return ""
