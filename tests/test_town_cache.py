"""Disk cache of the town: cached scenes equal generated ones, and damaged files never change a scene."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from iidrive.cli.cache import cache as show
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import GridSpec, Scene
from iidrive.data.source import scenes
from iidrive.data.town import source as town_source
from iidrive.data.town import workers
from iidrive.data.town.cache import SceneCache, cache_folder, cache_limit
from iidrive.data.town.source import Town, TownConfig
from iidrive.data.town.stored import cache_key, decode, encode
from iidrive.data.town.world import World, make_world

CONFIG = TownConfig(train_scenes=4, val_scenes=1, test_scenes=1, keyframes=4, traffic=0.4)
NAME = "town-train-00001"
SPEC = GridSpec((40, 40, 8), (-16.0, -16.0, -1.0), 0.8)
MB = 1_000_000

MAKE = """
import sys
from pathlib import Path
from iidrive.data.town.cache import SceneCache
from iidrive.data.town.source import Town, TownConfig
town = Town(TownConfig(train_scenes=4, val_scenes=1, test_scenes=1, keyframes=4, traffic=0.4), SceneCache(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def made() -> dict[str, World]:
    return {name: make_world(CONFIG, name) for name in Town(CONFIG).scene_names("train")}


@pytest.fixture
def cache(tmp_path: Path) -> SceneCache:
    return SceneCache(tmp_path / "towns", 50 * MB)


def shown(world: World) -> Scene:
    """The scene that `Town.scene` gives: with its planned route."""
    return replace(world.scene, route_m=world.route.points)


def bits(value: Any) -> Any:
    """Convert a value to a form that is equal exactly if all bits are."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, shapely.Geometry):
        return shapely.to_wkb(value)
    if callable(value):
        return bits(value())
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return [bits(v) for v in value]
    if isinstance(value, Mapping):
        return {k: bits(v) for k, v in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: bits(getattr(value, name)) for name in value.__dataclass_fields__}
    return float(value).hex() if isinstance(value, (float, np.floating)) else value


def run(script: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", MAKE + script, str(folder)])


def never(*arguments: Any) -> Any:
    raise AssertionError("a scene was made although it was there")


@pytest.mark.slow
def test_cached_scenes_equal_generated_ones(made: dict[str, World], cache: SceneCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = Town(CONFIG, cache)
    first = cold.scene(NAME)
    monkeypatch.setattr(town_source, "make_world", never)
    warm = Town(CONFIG, cache)
    again = warm.scene(NAME)
    assert bits(first) == bits(again) == bits(shown(made[NAME]))
    assert bits(decode(encode(made[NAME]))) == bits(made[NAME])
    assert bits(cold.route(NAME)) == bits(warm.route(NAME))
    assert cold.occupancy(first, 2, SPEC).semantics.tobytes() == warm.occupancy(again, 2, SPEC).semantics.tobytes()
    with pytest.raises(AssertionError, match="was made"):
        Town(replace(CONFIG, disk_cache=False), cache).scene(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "empty", "number", "header", "garbage", "another scene"])
def test_a_damaged_file_is_regenerated_and_replaced(made: dict[str, World], cache: SceneCache, harm: str) -> None:
    Town(CONFIG, cache).scene(NAME)
    path = cache.path(cache_key(CONFIG), NAME)
    good = path.read_bytes()
    header = good.index(b'"ego"')
    bad = {
        "cut": good[:-1],
        "empty": b"",
        "number": good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],
        "header": good[:header] + b'"egg"' + good[header + 5 :],
        "garbage": b"\xff" * 400,
        "another scene": encode(made["town-train-00002"]),
    }[harm]
    path.write_bytes(bad)
    assert bits(Town(CONFIG, cache).scene(NAME)) == bits(shown(made[NAME]))
    assert path.read_bytes() == good


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["", "cut", "bytes"])
def test_a_cached_raster_equals_a_made_one(made: dict[str, World], cache: SceneCache, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    town = Town(CONFIG, cache)
    scene = town.scene(NAME)
    first = town.occupancy(scene, 1, SPEC).semantics
    path = cache.path(cache_key(CONFIG), f"{NAME}@0.25")
    content = path.read_bytes()
    if harm:
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else content[:-40] + bytes(40))
    else:
        monkeypatch.setattr(town_source, "rasterise", None)  # nothing is made again
    np.testing.assert_array_equal(Town(CONFIG, cache).occupancy(scene, 1, SPEC).semantics, first)
    assert path.read_bytes() == content, "a damaged file is replaced"
    assert cache.size().scenes == 1
    monkeypatch.undo()
    coarse = Town(replace(CONFIG, raster_m=0.5), cache).occupancy(scene, 1, SPEC).semantics
    assert (coarse != first).any()


def test_scenes_do_not_depend_on_the_number_of_processes(
    made: dict[str, World], cache: SceneCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, int]] = []
    names = tuple(made)
    town = Town(CONFIG, cache)
    monkeypatch.setattr(workers, "make_world", never)
    town.prepare(names, processes=2, report=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [bits(s) for s in scenes(town, "train")] == [bits(shown(w)) for w in made.values()]
    heard.clear()
    Town(CONFIG, cache).prepare(names, processes=2, report=lambda done, of: heard.append((done, of)))
    assert heard == []


@pytest.mark.slow
def test_scenes_of_a_dead_worker_are_made_all_the_same(made: dict[str, World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "START", "import os; os._exit(3)")
    found = dict(workers.make(CONFIG, list(made)[:2], 2, lambda name: False))
    assert {name: bits(decode(content or b"")) for name, content in found.items()} == {n: bits(made[n]) for n in list(made)[:2]}


def test_names_are_checked_before_anything_is_made() -> None:
    with pytest.raises(DataError, match="no scene"):
        Town(CONFIG).prepare(["town-train-00004"])


@pytest.mark.slow
def test_two_processes_write_the_same_scenes_at_once(made: dict[str, World], cache: SceneCache) -> None:
    script = "for name in town.scene_names('train'): town.scene(name)"
    both = [run(script, cache.folder) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    files = sorted(cache.folder.rglob("*.*"))
    assert [f.name for f in files] == [f"{name}.safetensors" for name in made]
    for path, world in zip(files, made.values(), strict=True):
        assert path.read_bytes() == encode(world)


@pytest.mark.slow
def test_a_kill_while_writing_leaves_no_readable_file(made: dict[str, World], cache: SceneCache) -> None:
    script = "import os, signal; os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL); town.scene('town-train-00001')"
    assert run(script, cache.folder).wait(300) == -9
    left = list(cache.folder.rglob("*.tmp"))
    assert len(left) == 1
    assert cache.size().scenes == 0
    assert bits(Town(CONFIG, cache).scene(NAME)) == bits(shown(made[NAME]))
    assert cache.size().scenes == 1
    os.utime(left[0], (0, 0))
    SceneCache(cache.folder, cache.limit).write("key", "other", b"x")
    assert not left[0].exists()


def test_least_recently_used_files_are_removed_first(tmp_path: Path) -> None:
    cache = SceneCache(tmp_path, 1000)
    for age, name in enumerate("abcd"):
        cache.write("key", name, bytes(240))
        os.utime(cache.path("key", name), (age, age))
    reader = cache.path("key", "b").open("rb")
    assert cache.read("key", "a") == bytes(240)  # used now
    cache.write("key", "e", bytes(240))  # 1,200 bytes: down to 900 at most
    assert [name for name in "abcde" if cache.holds("key", name)] == ["a", "d", "e"]
    assert reader.read() == bytes(240)
    reader.close()
    assert cache.read("key", "b") is None
    cache.write("key", "f", bytes(1001))
    assert not cache.holds("key", "f")
    assert (cache.size().scenes, cache.size().bytes) == (3, 720)
    assert cache.clear().scenes == 3
    assert cache.size().scenes == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_unwritable_folder_gives_one_warning(made: dict[str, World], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    town = Town(CONFIG, SceneCache(tmp_path / "file" / "towns"))
    with pytest.warns(UserWarning, match="IIDRIVE_CACHE") as heard:
        found = [town.scene(name) for name in list(made)[:2]]
    assert len(heard) == 1
    assert [bits(s) for s in found] == [bits(shown(made[n])) for n in list(made)[:2]]


def test_the_key_depends_on_exactly_what_decides_a_scene() -> None:
    assert cache_key(CONFIG) == cache_key(replace(CONFIG, train_scenes=9, cached_scenes=2, raster_m=0.5))
    others = [replace(CONFIG, **{name: value}) for name, value in (("seed", 1), ("keyframes", 5), ("traffic", 0.5), ("parked", 0.5))]
    assert len({cache_key(c) for c in (CONFIG, *others)}) == 5


def test_cache_folder_and_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IIDRIVE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("IIDRIVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "iidrive"
    monkeypatch.setenv("IIDRIVE_CACHE_BYTES", "12")
    assert cache_limit() == 12
    monkeypatch.setenv("IIDRIVE_CACHE_BYTES", "2GB")
    with pytest.raises(ConfigError, match="2GB"):
        cache_limit()


def test_the_command_shows_and_clears(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("IIDRIVE_CACHE", str(tmp_path))
    SceneCache().write("key", "town-train-00000", bytes(1_200_000))
    show()
    said = capsys.readouterr().out
    assert str(tmp_path / "towns") in said
    assert "1 in 1.2 MB" in said
    assert "removed" not in said
    show(clear="on")
    assert "removed 1 in 1.2 MB" in capsys.readouterr().out
    show()
    assert "0 in 0.0 MB" in capsys.readouterr().out


def test_no_workers_are_started_in_a_job_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert (workers.usual_processes(1), workers.usual_processes(40), workers.usual_processes(400)) == (1, 5, 8)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers.usual_processes(400) == 1
    names = [str(k) for k in range(9)]
    assert sorted(workers.from_somewhere(names)) == names
