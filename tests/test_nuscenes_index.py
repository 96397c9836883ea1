"""The index of nuScenes' tables: damaged and edited tables, and the cache file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes

from iidrive.core.errors import DataError
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_nuscenes.make(tmp_path / "nuscenes")


def opened(root: Path, **options) -> NuScenes:
    return NuScenes(NuScenesConfig(str(root), cache=str(root.parent / "cache"), **options))


# --- tables that are not whole


def put(name, value):
    """A change that sets one field of the fourth record."""

    def change(records):
        records[3][name] = value

    return change


def drop(name):
    def change(records):
        del records[3][name]

    return change


BROKEN = {
    "dangling scene_token": ("sample", put("scene_token", "gone"), r"sample\.json.*scene-0103-sample-03.*scene_token 'gone'"),
    "dangling next": ("sample", put("next", "gone"), r"sample\.json.*next 'gone'"),
    "chain that loops": ("sample", put("next", "scene-0103-sample-01"), r"sample\.json.*not later"),
    "chain that ends early": ("sample", put("next", ""), r"scene-0103 should have 8 samples.*4"),
    "times that fall": ("sample", put("timestamp", 5), r"sample\.json.*scene-0103-sample-03.*not later"),
    "timestamp as text": ("sample", put("timestamp", "soon"), r"sample\.json.*scene-0103-sample-03"),
    "token twice": ("sample", lambda r: r.append(r[0]), r"sample\.json.*scene-0103-sample-00 appears twice"),
    "no scenes": ("scene", list.clear, r"scene\.json holds no scenes"),
    "scene name null": ("scene", lambda r: r[0].update(name=None), r"scene\.json.*scene-0103-token has name None"),
    "two scenes of one name": ("scene", lambda r: r[1].update(name="scene-0103"), r"scene\.json.*scene-0103 appears twice"),
    "dangling log": ("scene", lambda r: r[0].update(log_token="gone"), r"scene\.json.*log_token 'gone'"),
    "no first sample": ("scene", lambda r: r[0].update(first_sample_token=None), r"scene\.json.*first_sample_token 'None'"),
    "no lidar keyframe": ("sample_data", lambda r: r.pop(5), r"sample_data\.json.*scene-0103-sample-01 has no LIDAR_TOP"),
    "two lidar keyframes": ("sample_data", lambda r: r.append({**r[5], "token": "twin"}), r"sample_data\.json.*two LIDAR_TOP.*twin"),
    "dangling ego pose": (
        "sample_data",
        lambda r: r[5].update(ego_pose_token="gone"),
        r"sample_data\.json.*ego_pose_token 'gone'.*ego_pose\.json",
    ),
    "ego pose token as list": ("sample_data", lambda r: r[5].update(ego_pose_token=[]), r"sample_data\.json.*ego_pose_token \[\]"),
    "dangling calibration": ("sample_data", lambda r: r[5].update(calibrated_sensor_token="gone"), r"sample_data\.json.*'gone'"),
    "missing field": ("sample_data", drop("is_key_frame"), r"sample_data\.json.*has no field 'is_key_frame'"),
    "NaN pose": (
        "ego_pose",
        lambda r: r[5].update(translation=[float("nan"), 0, 0]),
        r"ego_pose\.json.*scene-0103-sample-01-lidar.*translation",
    ),
    "short pose": ("ego_pose", lambda r: r[5].update(translation=[1.0, 0.0]), r"ego_pose\.json.*scene-0103-sample-01-lidar.*3 finite"),
    "null in pose": ("ego_pose", lambda r: r[5].update(rotation=[1, None, 0, 0]), r"ego_pose\.json.*scene-0103-sample-01-lidar.*rotation"),
    "quaternion of no rotation": ("ego_pose", lambda r: r[5].update(rotation=[2, 0, 0, 0]), r"ego_pose\.json.*norm 2\.0000"),
    "dangling sensor": ("calibrated_sensor", lambda r: r[0].update(sensor_token="gone"), r"calibrated_sensor\.json.*'gone'"),
    "no size": ("sample_annotation", put("size", [0.0, 0.0, 0.0]), r"sample_annotation\.json.*sample-01-human.*each must be larger than 0"),
    "negative size": (
        "sample_annotation",
        put("size", [1.0, -2.0, 1.0]),
        r"sample_annotation\.json.*sample-01-human.*each must be larger than 0",
    ),
    "infinite box": (
        "sample_annotation",
        put("translation", [1.0, float("inf"), 1.0]),
        r"sample_annotation\.json.*sample-01-human.*translation",
    ),
    "box of text": ("sample_annotation", put("size", "large"), r"sample_annotation\.json.*sample-01-human.*size large"),
    "dangling instance": ("sample_annotation", put("instance_token", "gone"), r"sample_annotation\.json.*instance_token 'gone'"),
    "dangling sample": ("sample_annotation", put("sample_token", "gone"), r"sample_annotation\.json.*sample_token 'gone'"),
    "half a lidar point": ("sample_annotation", put("num_lidar_pts", 1.5), r"sample_annotation\.json.*num_lidar_pts 1\.5"),
    "dangling category": ("instance", put("category_token", "gone"), r"instance\.json.*category_token 'gone'"),
    "unknown category": ("category", lambda r: r[0].update(name="vehicle.cat"), r"category\.json.*Did you mean 'vehicle\.car'"),
    "records that are none": ("log", lambda r: r.append(7), r"log\.json.*record 1 is int"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_table_is_named(tiny, case):
    table, change, message = BROKEN[case]
    tiny_nuscenes.edit(tiny, table, change)
    with pytest.raises(DataError, match=message) as caught:
        opened(tiny)
    assert "\n" not in str(caught.value)
    assert not list(tiny.parent.glob("cache/*")), "nothing of a broken root may be cached"


@pytest.mark.parametrize("table", ["scene", "ego_pose", "sample_annotation", "category"])
def test_a_missing_table_is_named(tiny, table):
    (tiny / "v1.0-mini" / f"{table}.json").unlink()
    with pytest.raises(DataError, match=rf"{table}\.json is missing"):
        opened(tiny)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_table_is_named(tiny, keep):
    path = tiny / "v1.0-mini" / "sample_annotation.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"sample_annotation\.json"):
        opened(tiny)


@pytest.mark.parametrize("content", [b"{}", b"\x00\x01\xff", b"[1, 2", b'[{"token": "a"'])
def test_a_file_that_is_not_a_table_is_named(tiny, content):
    (tiny / "v1.0-mini" / "log.json").write_bytes(content)
    with pytest.raises(DataError, match=r"log\.json"):
        opened(tiny)


def test_tables_longer_than_a_chunk_are_read_completely(tiny, monkeypatch):
    expected = opened(tiny).scene("scene-0916").keyframes[5]
    monkeypatch.setattr("iidrive.data.nuscenes.tables._CHUNK", 37)
    got = NuScenes(NuScenesConfig(str(tiny), cache=str(tiny.parent / "other"))).scene("scene-0916").keyframes[5]
    assert got.token == expected.token
    np.testing.assert_array_equal(got.boxes.centre_m, expected.boxes.centre_m)


# --- the cache file


def cache_file(root: Path) -> Path:
    (found,) = (root.parent / "cache").glob("*")
    return found


def test_with_the_cache_the_tables_are_not_read(tiny, monkeypatch):
    first = opened(tiny)
    monkeypatch.setattr("iidrive.data.nuscenes.index.build", lambda folder: pytest.fail("the tables were read again"))
    second = opened(tiny)
    for name in first.scene_names("all"):
        for a, b in zip(first.scene(name).keyframes, second.scene(name).keyframes, strict=True):
            assert (a.token, a.boxes.track, a.command) == (b.token, b.boxes.track, b.command)
            np.testing.assert_array_equal(a.boxes.centre_m, b.boxes.centre_m)


def test_a_changed_table_is_read_again(tiny):
    opened(tiny)
    tiny_nuscenes.edit(tiny, "sample_annotation", lambda r: r[0].update(translation=[1.25, 2.5, 3.0]))
    np.testing.assert_array_equal(opened(tiny).scene("scene-0103").keyframes[0].boxes.centre_m[0], [1.25, 2.5, 3.0])
    table = tiny / "v1.0-mini" / "sample_annotation.json"
    table.write_text(table.read_text().replace("1.25", "1.75"))  # same size
    os.utime(table, ns=(1, 1))
    np.testing.assert_array_equal(opened(tiny).scene("scene-0103").keyframes[0].boxes.centre_m[0], [1.75, 2.5, 3.0])
    assert cache_file(tiny).is_file(), "an outdated cache file must be replaced, not kept beside the new one"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_cache_is_rebuilt_with_a_note(tiny, damage):
    opened(tiny)
    path = cache_file(tiny)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:middle],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "empty": b"",
            "foreign": b"PK\x03\x04 something else",
        }[damage]
    )
    source = opened(tiny)
    assert len(source.scene("scene-0103")) == 8
    assert "was damaged" in " ".join(source.missing())
    assert path.read_bytes() == whole
    assert "was damaged" not in " ".join(opened(tiny).missing())


def test_an_unwritable_cache_is_not_an_error(tiny, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    source = NuScenes(NuScenesConfig(str(tiny), cache=str(blocked)))
    assert len(source.scene("scene-0103")) == 8
    assert "could not be written" in " ".join(source.missing())
