"""nuScenes as a data source, read from the official tables without the devkit."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

import numpy as np

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.paths import expanded
from iidrive.core.scene import MANOEUVRES, Boxes, Command, CommandSource, GridSpec, Keyframe, OccGrid, OccSource, Pose, Scene, VectorMap
from iidrive.core.text import printable
from iidrive.core.untrusted.json_text import read_json
from iidrive.data.derive.files import NAME as DERIVED
from iidrive.data.derive.files import is_derived
from iidrive.data.derive.sweeps import Ground, Sweep
from iidrive.data.nuscenes import index, labels, sweeps
from iidrive.data.nuscenes.map import LAYERS, LocationMap
from iidrive.data.nuscenes.splits import SPLITS, is_list, splits_beside
from iidrive.data.nuscenes.tables import TABLES, table_file
from iidrive.data.scene_lists import read_list
from iidrive.data.voxelise import voxelise

MAP_RADIUS_M = 120.0
"""A scene's map extends this far beyond the bounding rectangle of its path, metres."""

OccupancyChoice = Literal["auto", "labels", "derived", "predicted"]


@dataclass(frozen=True)
class NuScenesConfig:
    """Location of nuScenes and choice of occupancy.

    Attributes:
        root: folder that holds `v1.0-…/` and `maps/`.
        version: name of the version folder; empty for the only one.
        occupancy: `labels`, `predicted` or `derived` for one kind only; `auto` for the first of these that a keyframe has.
        gts: folder of Occ3D labels, `<scene>/<sample token>/labels.npz`; empty for `<root>/gts` if it exists.
        predicted: folder in the same layout with another model's occupancy, such as STCOcc's.
        cache: folder for the index of the tables; empty for `iidrive` in XDG_CACHE_HOME or ~/.cache.
    """

    root: str
    version: str = ""
    occupancy: OccupancyChoice = "auto"
    gts: str = ""
    predicted: str = ""
    cache: str = ""


class NuScenes:
    """A `Source` of one version of nuScenes. Commands are derived from the true future; occupancy is labels, predicted or derived.

    `config` may also be the path of the root, with all other options at their defaults.

    Raises:
        ConfigError: for an unknown occupancy choice, or one whose folder was not given.
        DataError: naming the file or folder, if the root is not nuScenes or a table is damaged.
    """

    name = "nuscenes"

    def __init__(self, config: NuScenesConfig | str | Path) -> None:
        if not isinstance(config, NuScenesConfig):
            config = NuScenesConfig(str(config))
        if config.occupancy not in get_args(OccupancyChoice):
            raise ConfigError(unknown("occupancy", config.occupancy, get_args(OccupancyChoice)))
        if not config.root:
            raise ConfigError("nuScenes needs --root (`root`), the folder that holds v1.0-…/ and maps/.")
        self.config = config
        given = expanded(config.root)
        self.folder = _version_folder(given, config.version)
        self.root = self.folder.parent
        beside = next((folder / "gts" for folder in (self.root, given) if (folder / "gts").is_dir()), "")
        self._gts = _label_folder("gts", config.gts or str(beside))
        self._gts_kind: OccSource = "derived" if self._gts is not None and is_derived(self._gts) else "labels"
        self._predicted = _label_folder("predicted", config.predicted)
        if config.occupancy == "labels" and self._gts_kind == "derived":
            raise ConfigError(
                f"occupancy='labels', but {self._gts} holds derived occupancy (derived.json says so): choose occupancy='derived'."
            )
        for choice, folder in (("labels", self._gts), ("predicted", self._predicted)):
            if config.occupancy == choice and folder is None:
                option = "gts" if choice == "labels" else choice
                raise ConfigError(f"occupancy='{choice}' needs a folder of {choice}: give `{option}`, or choose occupancy='auto'.")
        cache = expanded(config.cache) if config.cache else _default_cache()
        self._index, self._cache_notes = index.load(self.folder, cache)
        self._scene_number = {str(name): s for s, name in enumerate(self._index.scene_name)}
        self._map_folders = tuple(dict.fromkeys(base / "maps" / sub for base in (self.root, given) for sub in ("expansion", "")))
        beside_tables = splits_beside(self.folder)
        self._renamed = [split for split, names in beside_tables.items() if split in SPLITS and set(names) != set(SPLITS[split])]
        self._splits = {**beside_tables, **SPLITS}
        self._maps: dict[str, LocationMap | None] = {}
        self._listed: dict[tuple[Path, str], frozenset[str]] = {}
        self._sweeps: tuple[sweeps.SweepFiles | None] | None = None
        for option, wanted, folder in (("gts", config.gts, self._gts), ("predicted", config.predicted, self._predicted)):
            if wanted and folder is not None and not self._holds_any(folder):
                self._refuse(option, folder)

    @property
    def command_source(self) -> CommandSource:
        """Always `oracle`: nuScenes has no routes, so commands are derived from the true future."""
        return "oracle"

    @property
    def occupancy_source(self) -> OccSource:
        """The least reliable kind of occupancy that any keyframe uses, in the order labels, derived, predicted."""
        used = self._occupancy_counts()
        weakest_first: tuple[OccSource, ...] = ("predicted", "derived", "labels")
        for source in weakest_first:
            if used[source]:
                return source
        return "derived"

    def identity(self) -> dict[str, object]:
        """Version, size of every table, SHA-256 of scene.json, and number of keyframes by kind of occupancy."""
        return {
            "name": self.name,
            "version": self.folder.name,
            "scenes": len(self._index.scene_name),
            "keyframes": len(self._index.token),
            "boxes": len(self._index.box_label),
            "table_bytes": {table: table_file(self.folder, table).stat().st_size for table in TABLES},
            "scene_sha256": hashlib.sha256(table_file(self.folder, "scene").read_bytes()).hexdigest(),
            "occupancy": self.config.occupancy,
            "occupancy_keyframes": dict(self._occupancy_counts()),
            **({"derived": read_json(self._gts / DERIVED)} if self._gts is not None and self._gts_kind == "derived" else {}),
        }

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """train and val, or mini_train and mini_val in the mini version. Validation and testing both use val, as test has no labels."""
        split = {"train": "train", "val": "val", "test": "val"}[part]
        return f"mini_{split}" if "mini" in self.folder.name else split

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split, in its order.

        Args:
            split: an official split (train, val, test, mini_train, mini_val), one from the version's splits.json, `all`, or the path of a
                file of scene names.

        Raises:
            ConfigError: for an unknown split, or if this version has none of its scenes.
            DataError: if this version has only some of its scenes. Scores on them could be mistaken for scores on the whole split.
        """
        have = self._scene_number
        if split == "all":
            return tuple(have)
        known = {**self._splits, split: read_list(split)} if is_list(split) and split not in self._splits else self._splits
        if split not in known:
            raise ConfigError(f"{unknown('split', split, (*known, 'all'))} A file with one scene name per line may be given too.")
        wanted = known[split]
        absent = [name for name in wanted if name not in have]
        if not absent:
            return wanted
        whole = ", ".join([*(s for s, names in self._splits.items() if all(n in have for n in names)), "all"])
        if len(absent) == len(wanted):
            names = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
            raise ConfigError(
                f"{self.folder} has none of the {len(wanted)} scenes of split '{split}' ({names}); its scenes are named like {next(iter(have))}. "
                f"Splits that it has: {whole}."
            )
        listed = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        raise DataError(
            f"{self.folder}: split '{split}' has {len(wanted)} scenes, but scene.json lacks {len(absent)} of them ({listed}). "
            f"Complete the tables, or use a complete split: {whole}."
        )

    def prepare(self, names: Sequence[str]) -> None:
        """Do nothing: scenes are only read."""

    def scene(self, name: str) -> Scene:
        """One scene with its keyframes, boxes in the global frame, and the map around its path.

        Raises:
            DataError: naming the file, if this version does not have the scene or its map is damaged.
        """
        if name not in self._scene_number:
            raise DataError(f"{self.folder}: {unknown('scene', name, self._scene_number)}")
        number, index = self._scene_number[name], self._index
        first, last = index.keyframe_start[number : number + 2]
        surroundings = self._location(str(index.location[number]))
        path = index.ego_translation[first:last, :2]
        vector_map = surroundings.around(path, MAP_RADIUS_M) if surroundings else VectorMap()
        return Scene(name, tuple(self._keyframe(k) for k in range(first, last)), vector_map)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Occupancy of one keyframe on a grid in its ego frame. `OccGrid.source` is its kind.

        Raises:
            DataError: naming the file, if it is damaged, or missing and the configured kind needs it.
            ConfigError: if labels or predictions cannot be converted to `spec` exactly.
        """
        keyframe = scene.keyframes[index]
        source = self._source_of(scene.name, keyframe.token)
        if source == "derived" and not (self._gts_kind == "derived" and self._has(self._gts, scene.name, keyframe.token)):
            boxes = keyframe.boxes.moved(geometry.invert(keyframe.global_T_ego.matrix), "ego")
            return voxelise(boxes, scene.map, keyframe.global_T_ego, spec)
        folder = self._predicted if source == "predicted" else self._gts
        assert folder is not None  # _source_of returns only kinds whose folder is configured
        return labels.read(labels.place(folder, scene.name, keyframe.token), spec, source)

    def sweeps(self, scene: Scene, every: int) -> Iterator[Sweep]:
        """Every n-th sweep of LIDAR_TOP of a scene, as `derive.sweeps.HasSweeps` says. The tables are read for it the first time."""
        if self._sweeps is None:
            self._sweeps = (sweeps.find(self.folder, self.root),)
        (found,) = self._sweeps
        return iter(()) if found is None else found.read(scene.name, every)

    def ground(self, scene: Scene) -> Ground | None:
        """None: nuScenes has no heights."""
        return None

    def missing(self) -> tuple[str, ...]:
        """One sentence for each thing that this copy of nuScenes lacks, and what is used instead. Parses the maps of all locations."""
        index, out = self._index, list(self._cache_notes)
        out += [
            f"{self.folder / 'splits.json'} has a {split} of its own: the official {split} is used, as in the devkit; name yours otherwise"
            for split in self._renamed
        ]
        if not len(index.box_label):
            out.append("sample_annotation.json is empty, as in v1.0-test: there are no boxes, so collisions cannot be scored")
        unknown_points = int((index.box_lidar_points < 0).sum())
        if unknown_points:
            out.append(f"num_lidar_pts is unknown for {unknown_points} of {len(index.box_label)} boxes: they are kept")
        for location, scenes in sorted(Counter(index.location.tolist()).items()):
            surroundings = self._location(location)
            if surroundings is None:
                out.append(f"maps/expansion lacks {location}.json: {scenes} of the scenes have no map")
            elif lacking := [layer for layer in LAYERS if layer not in surroundings.features]:
                out.append(f"maps/expansion/{location}.json has no {', '.join(lacking)}: absent from the map of {scenes} of the scenes")
        used, total = self._occupancy_counts(), len(index.token)
        if self._gts_kind == "derived":
            out.append(
                f"{self._gts} holds derived occupancy for {self._count(self._gts)} of {total} keyframes, in which what nobody saw is unknown"
            )
        elif used["labels"] < total and self.config.occupancy in ("auto", "labels"):
            others = " and ".join(s for s in ("predicted", "derived") if used[s]) or "missing"
            out.append(f"occupancy labels exist for {self._count(self._gts)} of {total} keyframes; the others are {others}")
        if self._predicted is not None and self._count(self._predicted) < total:
            out.append(f"predicted occupancy exists for {self._count(self._predicted)} of {total} keyframes")
        return tuple(out)

    def _keyframe(self, k: int) -> Keyframe:
        index = self._index
        box = slice(*index.box_start[k : k + 2])  # copied below, so that writing to a Scene cannot change the index
        boxes = Boxes(
            frame="global",
            centre_m=index.box_centre[box].copy(),
            size_m=index.box_size[box].copy(),
            yaw_rad=index.box_yaw[box].copy(),
            label=index.box_label[box].astype(np.int64),
            track=tuple(index.instance[index.box_instance[box]].tolist()),
            lidar_points=index.box_lidar_points[box].astype(np.int64),
        )
        return Keyframe(
            token=str(index.token[k]),
            timestamp_us=int(index.timestamp_us[k]),
            global_T_ego=Pose(index.ego_rotation[k], index.ego_translation[k].copy()),
            ego_T_lidar=Pose(index.lidar_rotation[k], index.lidar_translation[k].copy()),
            boxes=boxes,
            command=Command(MANOEUVRES[index.command[k]], "oracle"),
        )

    def _location(self, location: str) -> LocationMap | None:
        """The map of a location; None if there is no file. Parsed once and cached."""
        if location not in self._maps:
            paths = [folder / f"{location}.json" for folder in self._map_folders]
            path = next((path for path in paths if path.is_file()), None)
            self._maps[location] = LocationMap(path) if path else None
        return self._maps[location]

    def _source_of(self, scene: str, token: str) -> OccSource:
        """Kind of occupancy of a keyframe. A configured kind is returned even if the file is missing; reading it then raises the error."""
        if self.config.occupancy != "auto":
            return self.config.occupancy
        if self._has(self._gts, scene, token):
            return self._gts_kind
        return "predicted" if self._has(self._predicted, scene, token) else "derived"

    def _has(self, folder: Path | None, scene: str, token: str) -> bool:
        """Whether a folder has occupancy for a keyframe, in the scene's subfolder or directly. Each folder is listed once."""
        if folder is None:
            return False
        for below in (scene, ""):
            if (folder, below) not in self._listed:
                self._listed[folder, below] = labels.tokens_in(folder / below, files_alone=not below)
        return token in self._listed[folder, scene] or token in self._listed[folder, ""]

    def _holds_any(self, folder: Path) -> bool:
        """Whether a folder has occupancy for at least one keyframe."""
        return any(self._has(folder, scene, token) for scene, token in self._keyframes())

    def _refuse(self, option: str, folder: Path) -> NoReturn:
        """Raise DataError for a configured folder that has no occupancy of this version."""
        scene, token = self._keyframes()[0]
        inside = printable(", ".join(sorted(path.name for path in folder.iterdir())[:6]), 200) or "nothing"
        below = next((path for path in sorted(folder.iterdir()) if path.is_dir() and self._holds_any(path)), None)
        hint = f" Did you mean {below}?" if below else ""
        raise DataError(
            f"{folder}: `{option}` holds no occupancy of {self.folder}: expected files such as {folder / scene / token / 'labels.npz'}; "
            f"found {inside}.{hint}"
        )

    def _count(self, folder: Path | None) -> int:
        """Number of keyframes for which a folder has occupancy."""
        return sum(self._has(folder, scene, token) for scene, token in self._keyframes())

    def _occupancy_counts(self) -> Counter[OccSource]:
        return Counter(self._source_of(scene, token) for scene, token in self._keyframes())

    def _keyframes(self) -> list[tuple[str, str]]:
        """(scene name, sample token) of every keyframe."""
        names = np.repeat(self._index.scene_name, np.diff(self._index.keyframe_start))
        return list(zip(names.tolist(), self._index.token.tolist(), strict=True))


def _version_folder(root: Path, version: str) -> Path:
    """Folder of the tables: `version`, or the only version if that is empty. It may be one folder deeper, as some archives unpack.

    Raises:
        DataError: if the root is not a folder, is itself a version folder, has no version, or not this one.
        ConfigError: if the root has several versions and `version` is empty.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; `root` must be the nuScenes folder that holds v1.0-…/ and maps/.")
    if (root / "scene.json").is_file():
        raise DataError(f"{root} is itself a version folder; `root` must be its parent, {root.resolve().parent}.")
    found: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if (folder / "scene.json").is_file() or (folder.name.startswith("v1.0-") and not _inner(folder)):
            found[folder.name] = folder
        else:
            found |= {inner.name: inner for inner in _inner(folder) if inner.name not in found}
    if version:
        if version not in found:
            raise DataError(f"{root}: {unknown('version', version, found)} Expected the tables at {root / version / 'scene.json'}.")
        return found[version]
    if not found:
        inside = printable(", ".join(sorted(p.name for p in root.iterdir())[:6]), 200) or "nothing"
        raise DataError(
            f"{root} holds no v1.0-* folder (found {inside}); `root` must be the nuScenes folder with v1.0-mini/, v1.0-trainval/ or such."
        )
    if len(found) > 1:
        raise ConfigError(f"{root} holds several versions: {', '.join(found)}. Choose one with `version`.")
    return next(iter(found.values()))


def _inner(folder: Path) -> list[Path]:
    """Version folders directly inside a folder."""
    try:
        return sorted(path for path in folder.iterdir() if (path / "scene.json").is_file())
    except OSError:  # a folder without read permission
        return []


def _label_folder(option: str, path: str) -> Path | None:
    """A folder of occupancy, or None if none was given."""
    folder = expanded(path) if path else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder} is not a folder; `{option}` must hold <scene>/<sample token>/labels.npz.")
    return folder


def _default_cache() -> Path:
    """`iidrive` in the user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iidrive"
