"""Lossless serialisation of a scene: a safetensors file with numbers, geometries as WKB, text as JSON, and a checksum. And of its raster."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import shapely
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.core.scene import MANOEUVRES, Boxes, Command, Conflict, Junction, Keyframe, Lane, Pose, Scene, VectorMap
from iidrive.data.town.config import VERSION, TownConfig
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.data.town.route import Gate, Route, Zebra
from iidrive.data.town.static import Raster, Surroundings
from iidrive.data.town.world import World

Array = np.ndarray

CHECKSUM = "sha256"


def cache_key(config: TownConfig) -> str:
    """Hash of everything that decides a config's scenes: its fields, `VERSION`, the generating code, and the versions of its libraries."""
    libraries = (np.__version__, shapely.__version__, shapely.geos_version_string, version("safetensors"))
    named = {"version": VERSION, "code": _code(), "libraries": libraries, "config": config.deciding()}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:24]


def _code() -> str:
    """Hash of the source files of this folder, and of the geometry and class modules that they use."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), Path(geometry.__file__), here.parents[1] / "core" / "classes.py"]
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def encode(world: World) -> bytes:
    """Serialise a scene."""
    frames = world.scene.keyframes
    tracks: dict[str, int] = {}
    first: list[tuple[Array, int]] = []
    for boxes in (k.boxes for k in frames):
        for i, track in enumerate(boxes.track):
            if track not in tracks:
                tracks[track] = len(tracks)
                first.append((boxes.size_m[i], int(boxes.label[i])))
    around, route, vector_map = world.surroundings(), world.route, world.scene.map
    shapes = _Shapes()
    words = {
        "name": world.scene.name,
        "draw": world.draw,
        "conflict": world.scene.conflict and asdict(world.scene.conflict),
        "tokens": [k.token for k in frames],
        "tracks": list(tracks),
        "layers": {name: shapes.add(shape) for name, shape in vector_map.layers.items()},
        "lanes": [(lane.id, shapes.add(lane.polygon), len(lane.centreline_m), lane.successors, lane.junction) for lane in vector_map.lanes],
        "junctions": [(junction.id, shapes.add(junction.polygon)) for junction in vector_map.junctions],
        "surfaces": [shapes.add(s) for s in (around.drivable, around.walkway, around.median)],
        "buildings": [(shapes.add(s), int(k)) for s, k in around.buildings],
        "strips": [(shapes.add(s), int(k)) for s, k in around.strips],
        "streets": [int(k) for k in around.streets],
        "lanes_of_route": [int(k) for k in route.lanes],
        "links_of_route": [int(k) for k in route.links],
        "gates": [asdict(g) for g in route.gates],
        "zebras": [asdict(z) for z in route.zebras],
        "turns": route.turns,
    }
    tensors = {
        "times_us": np.array([k.timestamp_us for k in frames], np.int64),
        "commands": np.array([k.command.index for k in frames], np.int8),
        "ego": world.ego,
        "kept": world.kept,
        "counts": np.array([len(k.boxes) for k in frames], np.int64),
        "track": np.array([tracks[t] for k in frames for t in k.boxes.track], np.int32),
        "track_size": np.array([size for size, _ in first], np.float64).reshape(-1, 3),
        "track_label": np.array([label for _, label in first], np.int64),
        "centre": np.concatenate([k.boxes.centre_m for k in frames]),
        "yaw": np.concatenate([k.boxes.yaw_rad for k in frames]),
        "points": np.concatenate([k.boxes.lidar_points for k in frames]),
        "route_points": route.points,
        "route_heading": route.heading,
        "route_speed": route.speed_mps,
        "lane_points": np.concatenate([np.zeros((0, 2)), *(lane.centreline_m for lane in vector_map.lanes)]),
        "trees": around.trees,
        "tree_radius": around.tree_radius_m,
        "tree_code": around.tree_code,
        "posts": around.posts,
        **shapes.tensors(),
    }
    if world.scene.intended is not None:
        tensors["intended"] = world.scene.intended
    text = json.dumps(words, default=_plain).encode()
    tensors["words"] = np.frombuffer(text, np.uint8)
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    return safetensors.save(tensors, {CHECKSUM: _checksum(safetensors.save(tensors))})


def decode(content: bytes) -> World:
    """Deserialise a scene. Its arrays are read-only.

    Raises:
        DataError: if the bytes are truncated or damaged.
    """
    try:
        given = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"][CHECKSUM]
        if given != _checksum(content):
            raise DataError("a stored scene is damaged: its checksum does not match.")
        tensors = safetensors.load(content)
        return _world(tensors, json.loads(tensors["words"].tobytes()))
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError, IndexError, shapely.errors.GEOSException) as error:
        raise DataError(f"a stored scene is damaged: {error}.") from error


def encode_raster(raster: Raster) -> bytes:
    """Serialise a raster, compressed. zlib keeps a checksum."""
    packed = np.frombuffer(zlib.compress(np.ascontiguousarray(raster.codes).tobytes(), 1), np.uint8)
    return safetensors.save({"packed": packed, "shape": np.array(raster.codes.shape, np.int64), "origin": raster.origin})


def decode_raster(content: bytes, cell_m: float) -> Raster:
    """Deserialise a raster with cells of `cell_m` metres. Raises DataError if the bytes are truncated or damaged."""
    try:
        tensors = safetensors.load(content)
        rows, columns = (int(n) for n in tensors["shape"])
        codes = np.frombuffer(zlib.decompress(tensors["packed"].tobytes()), np.uint8).reshape(rows, columns)
        return Raster(codes, tensors["origin"], cell_m)
    except (SafetensorError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"a stored raster is damaged: {error}.") from error


def _checksum(content: bytes) -> str:
    """SHA-256 of the arrays and their header, without the header's metadata."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    found.update(memoryview(content)[8 + length :])
    return found.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot store {value!r}")


class _Shapes:
    """Collects geometries in order, each object once."""

    def __init__(self) -> None:
        self.shapes: list[shapely.Geometry] = []
        self.place: dict[int, int] = {}

    def add(self, shape: shapely.Geometry) -> int:
        if id(shape) not in self.place:
            self.place[id(shape)] = len(self.shapes)
            self.shapes.append(shape)
        return self.place[id(shape)]

    def tensors(self) -> dict[str, Array]:
        parts: list[bytes] = [shapely.to_wkb(s) for s in self.shapes]
        return {"wkb": np.frombuffer(b"".join(parts), np.uint8), "wkb_lengths": np.array([len(p) for p in parts], np.int64)}


T = TypeVar("T")


class _Later(Sequence[T]):
    """A sequence that is made on first access, because most readers of scenes do not need the map."""

    def __init__(self, make: Callable[[], tuple[T, ...]]) -> None:
        self._make = make

    @functools.cached_property
    def items(self) -> tuple[T, ...]:
        return self._make()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.items[index]


class _Layers(Mapping[str, shapely.Geometry]):
    """Map layers by name. On first access, all geometries of the scene are decoded."""

    def __init__(self, places: Mapping[str, int], drawn: _Drawn) -> None:
        self._places, self._drawn = places, drawn

    def __getitem__(self, name: str) -> shapely.Geometry:
        return self._drawn.shapes[self._places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Drawn:
    """All geometries of a stored scene, decoded on first access."""

    def __init__(self, tensors: Mapping[str, Array], words: Mapping[str, Any]) -> None:
        self.tensors, self.words = tensors, words

    @functools.cached_property
    def shapes(self) -> list[Any]:
        content, lengths = self.tensors["wkb"].tobytes(), self.tensors["wkb_lengths"]
        return list(shapely.from_wkb([content[end - n : end] for end, n in zip(np.cumsum(lengths), lengths, strict=True)]))

    def lanes(self) -> tuple[Lane, ...]:
        """The map's lanes."""
        points, made, first = self.tensors["lane_points"], [], 0
        for name, k, n, after, junction in self.words["lanes"]:
            made.append(Lane(name, self.shapes[k], points[first : first + n], tuple(after), junction))
            first += n
        return tuple(made)

    def junctions(self) -> tuple[Junction, ...]:
        """The map's junctions."""
        return tuple(Junction(name, self.shapes[k]) for name, k in self.words["junctions"])

    def around(self) -> Surroundings:
        """The static surroundings of the route."""
        t, words = self.tensors, self.words
        drivable, walkway, median = (self.shapes[k] for k in words["surfaces"])
        buildings, strips = (tuple((self.shapes[k], code) for k, code in words[what]) for what in ("buildings", "strips"))
        return Surroundings(
            drivable, walkway, median, buildings, strips, t["trees"], t["tree_radius"], t["tree_code"], t["posts"], tuple(words["streets"])
        )


def _world(t: Mapping[str, Array], words: Mapping[str, Any]) -> World:
    drawn = _Drawn(t, words)
    vector_map = VectorMap(_Layers(words["layers"], drawn), _Later(drawn.lanes), _Later(drawn.junctions))
    route = Route(
        t["route_points"],
        t["route_heading"],
        t["route_speed"],
        tuple(words["lanes_of_route"]),
        tuple(words["links_of_route"]),
        tuple(Gate(**g) for g in words["gates"]),
        tuple(Zebra(**z) for z in words["zebras"]),
        tuple((begin, end, manoeuvre) for begin, end, manoeuvre in words["turns"]),
    )
    conflict = words["conflict"] and Conflict(**words["conflict"])
    scene = Scene(words["name"], _keyframes(t, words), vector_map, conflict, t.get("intended"))
    town, attempt = words["draw"]
    return World(scene, t["ego"], route, drawn.around, (town, attempt), t["kept"])


def _keyframes(t: Mapping[str, Array], words: Mapping[str, Any]) -> tuple[Keyframe, ...]:
    commands = [Command(m, "route") for m in MANOEUVRES]
    who = t["track"]
    if len(who) and not (who.min() >= 0 and who.max() < len(words["tracks"])):
        raise ValueError("a box of a track that is not listed")
    size, label = t["track_size"][who], t["track_label"][who]
    track: Sequence[str] = [words["tracks"][k] for k in who.tolist()]
    keyframes, first = [], 0
    columns = zip(words["tokens"], t["times_us"].tolist(), t["ego"].tolist(), t["commands"].tolist(), t["counts"].tolist(), strict=True)
    for token, time_us, (x, y, yaw), command, count in columns:
        part = slice(first, first + count)
        boxes = Boxes("global", t["centre"][part], size[part], t["yaw"][part], label[part], tuple(track[part]), t["points"][part])
        keyframes.append(Keyframe(token, time_us, Pose.from_xy_yaw(x, y, yaw), EGO_T_LIDAR, boxes, commands[command]))
        first += count
    return tuple(keyframes)
