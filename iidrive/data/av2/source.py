"""Argoverse 2 sensor logs as a data source, read from the official files with pyarrow. The av2 package is not needed."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.paths import expanded
from iidrive.core.scene import STEP_S, CommandSource, GridSpec, OccGrid, OccSource, Scene
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.json_text import read_json
from iidrive.data.av2.known import KnownLogs, log_files
from iidrive.data.av2.log import ANNOTATIONS, AXLE_HEIGHT_M, CALIBRATION, About, read_log
from iidrive.data.av2.sweeps import read_ground, read_sweeps
from iidrive.data.av2.tables import require_pyarrow
from iidrive.data.derive.files import NAME as DERIVED
from iidrive.data.derive.files import is_derived
from iidrive.data.derive.sweeps import Ground, Sweep
from iidrive.data.nuscenes import labels
from iidrive.data.scene_lists import is_list, read_list
from iidrive.data.town.cache import cache_folder
from iidrive.data.voxelise import voxelise

SPLITS = ("train", "val", "test")
"""Folders of the official layout. Each holds one folder per log."""

OFFICIAL_LOGS = {"train": 700, "val": 150, "test": 150}

FORMAT = 1
"""Version of the conversion to scenes. Increase it when the same files give different scenes, so that old token caches are not reused."""

_KEPT_SCENES = 64
_NAMED = 5


@dataclass(frozen=True)
class AV2Config:
    """Location of Argoverse 2.

    Attributes:
        root: folder that holds `train/`, `val/` and `test/`, or `sensor/` with these.
        cache: folder for the cache of log summaries; empty for the default (see `iidrive cache`).
        gts: folder of derived occupancy that `iidrive occupancy` wrote; empty to derive occupancy from cuboids and the map when it is needed.
    """

    root: str
    cache: str = ""
    gts: str = ""


class AV2:
    """A `Source` of sensor logs. Commands are derived from the true future; occupancy is derived from cuboids and the map.

    Each log is one scene, with about every fifth timestamp as a keyframe. Logs that cannot be read are left out of their split and reported
    by `missing`. `config` may also be the path of the root.

    Raises:
        ConfigError: if pyarrow is not installed, or no root is given.
        DataError: naming the folder, if the root holds no logs, or a log is in two splits.
    """

    name = "av2"

    def __init__(self, config: AV2Config | str | Path) -> None:
        if not isinstance(config, AV2Config):
            config = AV2Config(str(config))
        if not config.root:
            raise ConfigError(
                "Argoverse 2 needs --root (`root`), the folder that holds train/, val/ and test/, or sensor/ with these in it."
            )
        require_pyarrow()
        self.config = config
        self.root = _split_root(expanded(config.root))
        self._splits = {split: _logs(self.root / split) for split in SPLITS if (self.root / split).is_dir()}
        self._folders: dict[str, Path] = {}
        for split, folders in self._splits.items():
            for folder in folders:
                if folder.name in self._folders:
                    raise DataError(
                        f"{self.root}: log {printable(folder.name)} is in {self._folders[folder.name].parent.name}/ and in {split}/; "
                        "remove one, so that no scene is both trained and tested on."
                    )
                self._folders[folder.name] = folder
        if not self._folders:
            raise DataError(
                f"{self.root}: {', '.join(f'{split}/' for split in self._splits)} hold no logs; each log must be a folder in there."
            )
        self._known = KnownLogs(self.root, FORMAT, expanded(config.cache) if config.cache else cache_folder())
        self._gts = expanded(config.gts) if config.gts else None
        if self._gts is not None and not is_derived(self._gts):
            raise DataError(f"{self._gts}: `gts` must be a folder that `iidrive occupancy` wrote, with a file derived.json in it.")
        self._about: dict[str, About | DataError] = {}
        self._scenes: OrderedDict[str, Scene] = OrderedDict()

    @property
    def command_source(self) -> CommandSource:
        """Always `oracle`: sensor logs have no routes, so commands are derived from the true future."""
        return "oracle"

    @property
    def occupancy_source(self) -> OccSource:
        """Always `derived`: Argoverse 2 has no occupancy labels."""
        return "derived"

    def identity(self) -> dict[str, object]:
        """Number of logs in each split, a hash of the names and sizes of their files, and the settings that scenes depend on."""
        listing = hashlib.sha256()
        for name, folder in sorted(self._folders.items()):
            sizes = ((path.name, path.stat().st_size) for path in log_files(folder))
            listing.update(repr((folder.parent.name, name, *sizes)).encode())
        return {
            "name": self.name,
            "format": FORMAT,
            "logs": {split: len(folders) for split, folders in self._splits.items()},
            "files_sha256": listing.hexdigest(),
            "keyframe_s": STEP_S,
            "axle_height_m": AXLE_HEIGHT_M,
            "occupancy": self.occupancy_source,
            **({} if self._gts is None else {"derived": read_json(self._gts / DERIVED)}),
        }

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """train, or val for validation and testing, because the cuboids of test are not public."""
        return "train" if part == "train" else "val"

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Log ids of a split.

        Args:
            split: a split folder or `all`, for its readable logs in ascending order; or the path of a file of log ids, for these in their
                order.

        Raises:
            ConfigError: for an unknown split, or one that the root does not have.
            DataError: if no log of a split is readable, or a log named in a file is missing or unreadable.
        """
        if split in self._splits:
            return self._readable(split, self._splits[split])
        if split == "all":
            return self._readable(split, list(self._folders.values()))
        if split in SPLITS:
            raise ConfigError(f"{self.root} has no split '{split}'; splits that it has: {', '.join((*self._splits, 'all'))}.")
        if not is_list(split):
            raise ConfigError(f"{unknown('split', split, (*self._splits, 'all'))} A file with one log id per line may be given too.")
        wanted = read_list(split)
        absent = [name for name in wanted if name not in self._folders]
        if absent:
            raise DataError(
                f"{printable_line(split)}: {len(absent)} of {len(wanted)} logs are not in {self.root} ({_few(absent)}). "
                "Download the missing logs, or remove them from the list."
            )
        for name in wanted:
            if isinstance(problem := self._look(name), DataError):
                raise DataError(f"{printable_line(split)}: log {name} cannot be read: {problem}") from problem
        return wanted

    def prepare(self, names: Sequence[str]) -> None:
        """Do nothing: scenes are only read."""

    def scene(self, name: str) -> Scene:
        """One log with its keyframes, cuboids in the global frame, and its map.

        Raises:
            DataError: naming the file, if the log is missing or unreadable.
        """
        if name not in self._folders:
            raise DataError(f"{self.root}: {unknown('log', name, list(self._folders)[:_NAMED])}")
        if name not in self._scenes and isinstance(problem := self._read(name), DataError):
            raise problem
        self._scenes.move_to_end(name)
        return self._scenes[name]

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Occupancy of one keyframe on a grid in its ego frame: the file of `gts`, where that is given, or derived from its cuboids and the map.

        Raises:
            DataError: naming the file of `gts`, if it is missing or damaged.
        """
        keyframe = scene.keyframes[index]
        if self._gts is not None:
            path = labels.place(self._gts, scene.name, keyframe.token)
            if not path.is_file():
                raise DataError(
                    f"{path} is missing: write it with `iidrive occupancy --data av2` and the split of its log, or leave --gts out."
                )
            return labels.read(path, spec, "derived")
        boxes = keyframe.boxes.moved(geometry.invert(keyframe.global_T_ego.matrix), "ego")
        return voxelise(boxes, scene.map, keyframe.global_T_ego, spec)

    def sweeps(self, scene: Scene, every: int) -> Iterator[Sweep]:
        """Every n-th lidar sweep of a log, as `derive.sweeps.HasSweeps` says."""
        ego_T_axle = geometry.rigid(np.eye(3), np.array([0.0, 0.0, AXLE_HEIGHT_M]))
        axle_T_lidar = geometry.invert(ego_T_axle) @ scene.keyframes[0].ego_T_lidar.matrix
        return read_sweeps(self._folders[scene.name], every, axle_T_lidar, ego_T_axle)

    def ground(self, scene: Scene) -> Ground | None:
        """The heights of the log's map."""
        return read_ground(self._folders[scene.name])

    def missing(self) -> tuple[str, ...]:
        """One sentence for each thing that this copy of Argoverse 2 lacks, and what is used instead. Reads every log that is not cached."""
        out: list[str] = []
        for split, folders in self._splits.items():
            if split != "test" and len(folders) < OFFICIAL_LOGS[split]:
                out.append(f"{split} holds {len(folders)} of the {OFFICIAL_LOGS[split]} official logs: scores are of these")
        closed = [folder for folder in self._splits.get("test", []) if not (folder / ANNOTATIONS).exists()]
        if closed:
            out.append(
                f"{closed[0] / ANNOTATIONS} is missing, as the cuboids of test are not public: {len(closed)} logs of test are left out"
            )
        about = {name: self._look(name) for name, folder in self._folders.items() if folder not in closed}
        broken = [f"log {printable(name)} is left out: {found}" for name, found in about.items() if isinstance(found, DataError)]
        out += [*broken[:_NAMED], *([f"and {len(broken) - _NAMED} more logs are left out"] if len(broken) > _NAMED else [])]
        read = {name: found for name, found in about.items() if isinstance(found, About)}
        self._known.save()
        stand_ins: tuple[tuple[str, str, Callable[[About], bool]], ...] = (
            ("map/log_map_archive_….json", "{} have no map", lambda found: found.mapped),
            (CALIBRATION, "in {} the lidar stands where it usually does", lambda found: found.calibrated),
        )
        for file, then, has in stand_ins:
            lacking = [name for name, found in read.items() if not has(found)]
            if lacking:
                out.append(f"{self._folders[lacking[0]] / file} is missing: {then.format(f'{len(lacking)} of {len(read)} logs')}")
        ego = [name for name, found in read.items() if found.ego_rows]
        if ego:
            out.append(f"{self._folders[ego[0]] / ANNOTATIONS} has cuboids of the car itself: left out of {len(ego)} logs")
        lost = sum((found.without_counterpart for found in read.values()), Counter[str]())
        if lost:
            counts = ", ".join(f"{count} {category}" for category, count in sorted(lost.items()))
            out.append(f"nuScenes has no category for {counts}: these cuboids are left out of the keyframes")
        return tuple(out)

    def _readable(self, split: str, folders: list[Path]) -> tuple[str, ...]:
        """Names of the readable logs. Raises DataError if no log can be read."""
        problems = {folder.name: self._look(folder.name) for folder in folders}
        self._known.save()
        names = tuple(sorted(name for name, found in problems.items() if isinstance(found, About)))
        if names:
            return names
        if not problems:
            raise DataError(f"{self.root / split} holds no logs; each log must be a folder in there.")
        raise DataError(f"none of the {len(folders)} logs of split '{split}' can be read: {next(iter(problems.values()))}")

    def _look(self, name: str) -> About | DataError:
        """The summary of a log, or the error if it cannot be read. The log is read on first use."""
        if name not in self._about and (known := self._known.get(self._folders[name])) is not None:
            self._about[name] = known
        return self._about[name] if name in self._about else self._read(name)

    def _read(self, name: str) -> About | DataError:
        folder = self._folders[name]
        try:
            if folder.parent.name == "test" and not (folder / ANNOTATIONS).exists():
                raise DataError(
                    f"{folder / ANNOTATIONS} is missing: the cuboids of Argoverse 2's test split are not public, so it cannot be used for training "
                    "or scoring. Use val or train."
                )
            self._scenes[name], about = read_log(folder)
            if self._about.get(name) != about:
                self._about[name] = about
                self._known.add(folder, about)
            while len(self._scenes) > _KEPT_SCENES:
                self._scenes.popitem(last=False)
        except DataError as error:
            self._about[name] = error
        return self._about[name]


def _split_root(root: Path) -> Path:
    """The folder that holds the splits: the root, or its subfolder `sensor/`.

    Raises:
        DataError: if the root is not a folder, or holds no split.
    """
    if not root.is_dir():
        raise DataError(
            f"{printable_line(str(root))} is not a folder; `root` must hold train/, val/ and test/, or sensor/ with these in it."
        )
    for folder in (root, root / "sensor"):
        if any((folder / split).is_dir() for split in SPLITS):
            return folder
    levels = 1 if (root / ANNOTATIONS).exists() else 0
    if levels or any((path / ANNOTATIONS).exists() for path in root.iterdir()):
        raise DataError(f"{root} is itself a {'log' if levels else 'split'}; `root` must be {root.resolve().parents[levels]}.")
    inside = printable(", ".join(sorted(path.name for path in root.iterdir())[:6]), 200) or "nothing"
    raise DataError(f"{root} holds no train/, val/ or test/, and no sensor/ with these in it (found {inside}).")


def _logs(split: Path) -> list[Path]:
    """Folders of a split's logs, in ascending order."""
    return sorted(path for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))


def _few(names: Sequence[str]) -> str:
    return printable(", ".join(names[:_NAMED]), 240) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
