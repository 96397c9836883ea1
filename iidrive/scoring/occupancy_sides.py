"""The two occupancy folders that are compared: their class tables, and which samples belong to the scored scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iidrive.core.class_tables import ASSUMED, ClassTable
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.data.nuscenes.source import NuScenes
from iidrive.data.nuscenes.splits import SPLITS, is_list
from iidrive.data.occupancy_files import OccFile, scenes_of
from iidrive.data.scene_lists import read_list


@dataclass(frozen=True)
class Written:
    """The class tables of the predictions and of the ground truth."""

    predicted: ClassTable = ASSUMED
    truth: ClassTable = ASSUMED

    def notes(self) -> list[str]:
        """Effects of the class tables on the scores, as sentences. Raises ConfigError for two tables that cannot be compared."""
        sides = (("predictions", self.predicted), ("truth", self.truth))
        if self.predicted.voxels != self.truth.voxels:
            grids = " and ".join(f"the {what} on {table.name}'s grid ({table.voxels})" for what, table in sides)
            raise ConfigError(
                f"{grids} cannot be compared: voxels of one grid are not made of whole voxels of the other. Give the truth of the same data set, "
                "or predict on the grid of this truth; --classes and --truth-classes say whose both are."
            )
        if self.predicted.joined != self.truth.joined:
            name, joined = next((table.name, table.joined) for _, table in sides if table.joined)
            whose = " and ".join(f"the {what} in {table.name}'s classes" for what, table in sides)
            raise ConfigError(
                f"{whose} cannot be compared: {name} joins classes ({joined}). "
                f"Give both in {name}'s classes: --classes {name} --truth-classes {name}."
            )
        out = []
        for what, table in sides:
            if table.joined:
                out.append(
                    f"the {what} are in {table.name}'s classes: {table.joined}; {', '.join(table.lacks)} have no class of their own."
                )
            elif table.lacks and table.lacks != ("free",):
                out.append(
                    f"the {what} use {table.name}'s classes, which lack {', '.join(table.lacks)}; the other classes were mapped by name."
                )
        return out


def scene_names(tables: NuScenes | None, split: str) -> Sequence[str] | None:
    """Names of the scenes to score; None for all scenes of the truth folder."""
    if tables is not None:
        return tables.scene_names(split or "all")
    if not split or split == "all":
        return None
    if is_list(split):
        return read_list(split)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, (*SPLITS, "all")))
    return SPLITS[split]


def of_scenes(files: Mapping[str, OccFile], scenes: Sequence[str] | None, tables: NuScenes | None, truth: str | Path) -> dict[str, OccFile]:
    """Truth files of the given scenes (None: of all), each with its scene name if the folder layout or the nuScenes tables give one.

    Raises:
        ConfigError: if the scenes of the files are unknown.
        DataError: if no file belongs to the given scenes.
    """
    if tables is not None and any(not file.scene for file in files.values()):
        of = {keyframe.token: name for name in scenes or () for keyframe in tables.scene(name).keyframes}
        files = {token: file if file.scene else replace(file, scene=of.get(token, "")) for token, file in files.items()}
    if scenes is None:
        return dict(files)
    if tables is None and any(not file.scene for file in files.values()):
        raise ConfigError(f"{truth}: its layout has no scene names, so a split cannot be selected: add --root, or leave out --split.")
    found = {token: file for token, file in files.items() if file.scene in scenes or not file.scene}
    if not found:
        raise DataError(
            f"{truth}: expected <scene>/<sample token>/labels.npz of the split's {len(scenes)} scenes; "
            f"found {', '.join(scenes_of(files)[:6])}; choose another split with --split."
        )
    return found


def advice(tokens: Sequence[str]) -> str:
    """A hint for file names that are not sample tokens; empty if they look like none of the known cases."""
    if all("LIDAR_TOP" in token for token in tokens):
        return " These files are named after lidar sweeps: name each after its sample token."
    if all("/" in token for token in tokens):
        return " These files are numbered by time step: name each after its sample token."
    return ""


def common_folder(files: Mapping[str, OccFile]) -> Path:
    """The folder that contains all files."""
    first = next(iter(files.values()))
    return first.path.parents[2] if first.scene and first.path.stem != first.token else first.path.parent
