"""Class numberings of occupancy labels, and their conversion to Occ3D's. Classes are matched by name.

| table | numbers | voxels |
|---|---|---|
| occ3d | 0 others, 1 barrier … 16 vegetation, 17 free | Occ3D's |
| openocc | 0 car … 15 vegetation, 16 free (OpenOcc v2) | Occ3D's |
| surroundocc | 0 free, 1 barrier … 16 vegetation; in sparse rows 0 is unknown | 0.5 m, lidar frame |
| uniocc | 0 undefined, 1 car … 9 building, 10 free; several classes of Occ3D are merged | Occ3D's |
| a file | one class name per line, numbered from 0, or `NUMBER NAME` | Occ3D's |

The numbers, SurroundOcc's range and UniOcc's classes are those of their authors' code: github.com/weiyithu/SurroundOcc, github.com/tasl-lab/UniOcc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer, UInt8

from iidrive.core.classes import FREE, IGNORE, OCC, OCC_CLASSES
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import OCC3D_GRID, GridSpec
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import decode, read_bytes

Array = np.ndarray

NO_CLASS = 254
"""Lookup result for a number that a table does not define. No class has this number."""
_LONGEST = 1 << 16


@dataclass(frozen=True)
class Voxels:
    """The voxels that labels lie on: a box of them, along the axes of the ego (x ahead, y to the left) or of nuScenes' lidar (x to the right,
    y ahead)."""

    spec: GridSpec
    frame: Literal["ego", "lidar"]

    def __str__(self) -> str:
        corners = [f"({', '.join(f'{round(v, 6):g}' for v in corner)})" for corner in (self.spec.lower_m, self.spec.upper_m)]
        return (
            f"{' x '.join(map(str, self.spec.shape))} voxels of {self.spec.voxel_m:g} m, {corners[0]} to {corners[1]} m, {self.frame} frame"
        )


OCC3D_VOXELS = Voxels(OCC3D_GRID, "ego")
SURROUNDOCC_VOXELS = Voxels(GridSpec((200, 200, 16), (-50.0, -50.0, -5.0), 0.5), "lidar")


@dataclass(frozen=True)
class ClassTable:
    """A class numbering and its conversion to Occ3D's.

    Attributes:
        name: name of the table in `--classes`, or of its file.
        numbers: class number → Occ3D class, or IGNORE.
        noise: numbers that mean unknown in sparse rows.
        voxels: voxel grid of labels in this numbering.
        joined: which classes of Occ3D this table merges; empty for none. Its labels are compared only with labels of the same table.
        assumed: true if the user did not name a table and Occ3D's is assumed.
        others_stay: numbers that the table lacks are left unchanged, for the caller to refuse.
    """

    name: str
    numbers: Mapping[int, int]
    noise: tuple[int, ...] = ()
    voxels: Voxels = OCC3D_VOXELS
    joined: str = ""
    assumed: bool = False
    others_stay: bool = False
    _lookup: UInt8[Array, "256"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lookup = np.arange(256, dtype=np.uint8) if self.others_stay else np.full(256, NO_CLASS, np.uint8)
        for number, label in self.numbers.items():
            lookup[number] = label
        lookup[IGNORE] = self.numbers.get(IGNORE, IGNORE)
        object.__setattr__(self, "_lookup", lookup)

    @property
    def lacks(self) -> tuple[str, ...]:
        """Occ3D classes that the table does not have."""
        return tuple(name for name, label in OCC.items() if label not in self.numbers.values())

    def translate(self, labels: Integer[Array, "*n"], where: str, rows: bool = False) -> UInt8[Array, "*n"]:
        """Convert labels of this table, 0..255, to Occ3D's classes.

        Args:
            labels: class numbers of this table.
            where: file name for the error message.
            rows: whether the labels come from sparse rows, where `noise` numbers mean unknown.

        Raises:
            DataError: naming `where`, for a number that the table does not have.
        """
        small = labels.astype(np.uint8)
        lookup = self._lookup
        if rows and self.noise:
            lookup = lookup.copy()
            lookup[list(self.noise)] = IGNORE
        found = lookup[small]
        if not self.others_stay and (odd := np.unique(small[found == NO_CLASS])).size:
            raise DataError(
                f"{where}: holds class {', '.join(map(str, odd[:4].tolist()))}, but the classes of {self.name} are "
                f"{min(self.numbers)} to {max(self.numbers)}. Name another table with --classes."
            )
        return found


def _numbered(*names: str, first: int = 0) -> dict[int, int]:
    return {k + first: OCC[name] for k, name in enumerate(names)}


OCC3D = ClassTable("occ3d", _numbered(*OCC_CLASSES), others_stay=True)
OPENOCC = ClassTable(
    "openocc",
    _numbered(
        *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone", "barrier"),
        *("driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free"),
    ),
)
SURROUNDOCC = ClassTable("surroundocc", _numbered("free", *OCC_CLASSES[1:FREE]), noise=(0,), voxels=SURROUNDOCC_VOXELS)
UNIOCC = ClassTable(
    "uniocc",
    _numbered(
        *("others", "car", "bicycle", "motorcycle", "pedestrian", "traffic_cone", "vegetation"),
        *("driveable_surface", "terrain", "manmade", "free"),
    ),
    joined="car stands for every large vehicle, driveable_surface for its road, manmade for its building, others for its undefined",
)
TABLES = {table.name: table for table in (OCC3D, OPENOCC, SURROUNDOCC, UNIOCC)}
ASSUMED = replace(OCC3D, assumed=True)
"""Occ3D's classes, assumed because the user named no table."""

_SAME = {
    "drivablesurface": "driveable_surface",
    "other": "others",
    "empty": "free",
    "person": "pedestrian",
    "constructionvehicles": "construction_vehicle",
}
_UNKNOWN = ("unknown", "noise", "ignore", "void", "unlabeled")
_PLAIN = {name.replace("_", ""): name for name in OCC_CLASSES}


def named(text: str) -> ClassTable:
    """The class table with this name, or from this file. Empty text gives `ASSUMED`.

    Raises:
        ConfigError: for an unknown name.
        DataError: for a file that holds anything but class names.
    """
    if not text:
        return ASSUMED
    if text.lower() in TABLES:
        return TABLES[text.lower()]
    if Path(text).is_file():
        return read_table(text)
    raise ConfigError(f"--classes: {unknown('class table', text, TABLES)} Or give a file with one class name per line.")


def read_table(path: str) -> ClassTable:
    """Read a class table: one class name per line, in the order of their numbers, or `NUMBER NAME`. `unknown` labels are not counted.

    Raises:
        DataError: naming the file, for a name that Occ3D does not have, a repeated number, or no class `free`.
    """
    where = printable_line(path)
    numbers: dict[int, int] = {}
    lines = [line.split("#")[0].strip() for line in decode(read_bytes(path, _LONGEST), where).splitlines()]
    for line in filter(None, lines):
        first, _, rest = line.replace(":", " ").partition(" ")
        number, name = (int(first), rest.strip()) if first.isdecimal() and len(first) < 4 and rest else (len(numbers), line)
        plain = "".join(c for c in name.lower() if c.isalnum())
        if plain not in _UNKNOWN and _SAME.get(plain, _PLAIN.get(plain)) is None:
            raise DataError(f"{where}: {unknown('class', name, (*OCC_CLASSES, 'unknown'))}")
        if number in numbers or number > IGNORE:
            problem = "is given twice; give each class its own number" if number in numbers else "is above 255; class numbers are 0 to 255"
            raise DataError(f"{where}: number {number} {problem}.")
        numbers[number] = IGNORE if plain in _UNKNOWN else OCC[_SAME.get(plain) or _PLAIN[plain]]
    if FREE not in numbers.values():
        raise DataError(f"{where}: it has no class `free`; name the class of empty voxels `free`.")
    return ClassTable(printable(Path(path).name, 40), numbers)


def require_free(labels: UInt8[Array, "*n"], where: str, option: str, truth: bool = False) -> None:
    """Refuse labels that are only assumed to be Occ3D's if a class other than 17 (free) fills most of the grid.

    Args:
        labels: class numbers as read.
        where: file name for the error message.
        option: command-line option that names the class table; empty if there is none.
        truth: whether these are ground-truth labels. Their unknown voxels (255) are not counted.

    Raises:
        DataError: naming the tables in which that number means free.
    """
    counts = np.bincount(labels.reshape(-1), minlength=256).astype(np.int64)
    if truth:
        counts[IGNORE] = 0
    total, most = int(counts.sum()), int(counts.argmax())
    if not total or most == FREE or counts[most] < 0.6 * total or counts[FREE] > 0.25 * total:
        return
    if set(np.flatnonzero(counts).tolist()) <= {0, 1}:
        raise DataError(f"{where}: holds only 0 and 1, so it says which voxels are occupied but not by which class; write class labels.")
    likely = next((table.name for table in TABLES.values() if table.numbers.get(most) == FREE), "")
    raise DataError(
        f"{where}: class {most} fills {100 * counts[most] / total:.0f} % of the grid, and 17, which is free in Occ3D, "
        f"{100 * counts[FREE] / total:.0f} %. {_advice(likely, most, option)}"
    )


def _advice(likely: str, most: int, option: str) -> str:
    whose = f"In {likely} {most} is free" if likely else f"{most} may mean free in another table"
    if not option:
        return f"{whose}, but Occ3D's numbers are expected here: write the files with Occ3D's numbers."
    named = f"use {option} {likely} if the labels follow that table, " if likely else "use "
    return (
        f"{whose}: {named}{option} FILE (one class per line, as in `{most} free`) if they follow another, "
        f"or {option} occ3d if they are Occ3D's."
    )
