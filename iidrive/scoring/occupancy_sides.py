"""The two sides of occupancy folders: how each is written, and which of their samples belong to the scenes that are scored."""

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
    """How both sides are written: the class tables of the predictions and of the truth."""

    predicted: ClassTable = ASSUMED
    truth: ClassTable = ASSUMED

    def notes(self) -> list[str]:
        """What the tables mean for the scores. Raises ConfigError for two that cannot be compared."""
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
                    f"the {what} are in {table.name}'s classes, which lack {', '.join(table.lacks)}; the others were mapped by name."
                )
        return out


def scene_names(tables: NuScenes | None, split: str) -> Sequence[str] | None:
    """Names of the scenes to score; None: all that the truth folder has."""
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
    """Truth files of some scenes, or all, each with its scene's name where the layout or the tables give one.

    Raises:
        ConfigError: if nothing tells the scenes of files. DataError: if none is of the scenes.
    """
    if tables is not None and any(not file.scene for file in files.values()):
        of = {keyframe.token: name for name in scenes or () for keyframe in tables.scene(name).keyframes}
        files = {token: file if file.scene else replace(file, scene=of.get(token, "")) for token, file in files.items()}
    if scenes is None:
        return dict(files)
    if tables is None and any(not file.scene for file in files.values()):
        raise ConfigError(f"{truth}: its layout names no scenes, so a split cannot be taken from it: add --root, or leave --split out.")
    found = {token: file for token, file in files.items() if file.scene in scenes or not file.scene}
    if not found:
        raise DataError(
            f"{truth}: no <scene>/<sample token>/labels.npz of the split's {len(scenes)} scenes (--split names another) in it; "
            f"found {', '.join(scenes_of(files)[:6])}."
        )
    return found


def advice(tokens: Sequence[str]) -> str:
    """What names that are no sample tokens look like."""
    if all("LIDAR_TOP" in token for token in tokens):
        return " These files are named by lidar sweeps: name each by its sample token."
    if all("/" in token for token in tokens):
        return " These files count time steps: name each by its sample token."
    return ""


def common_folder(files: Mapping[str, OccFile]) -> Path:
    """Where the files lie together."""
    first = next(iter(files.values()))
    return first.path.parents[2] if first.scene and first.path.stem != first.token else first.path.parent
