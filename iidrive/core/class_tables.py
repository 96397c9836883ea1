"""Class numbers that occupancy is written in, each as a map to Occ3D's by the names of the classes.

| table | numbers | voxels |
|---|---|---|
| occ3d | 0 others, 1 barrier … 16 vegetation, 17 free | Occ3D's |
| openocc | 0 car … 15 vegetation, 16 free (OpenOcc v2) | Occ3D's |
| surroundocc | 0 free, 1 barrier … 16 vegetation; in sparse rows 0 is unknown | its own |
| uniocc | 0 undefined, 1 car … 9 building, 10 free; classes of Occ3D are joined | Occ3D's |
| a file | a name a line, counted from 0, or `NUMBER NAME` | Occ3D's |

The numbers, SurroundOcc's range and UniOcc's are those of their authors' code: github.com/weiyithu/SurroundOcc, github.com/tasl-lab/UniOcc.
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
"""What a number that a table lacks is looked up as; no class has it."""
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
    """A table: what each number is in Occ3D's classes, in grids and in sparse rows.

    Attributes:
        name: what `--classes` calls it.
        numbers: number → Occ3D's class, or IGNORE.
        noise: numbers that mean unknown in sparse rows.
        voxels: what the labels of this kind lie on.
        joined: empty, or which classes of Occ3D this table has as one. Its labels are compared with labels of the same table only.
        assumed: nobody said that the labels are of this table.
        others_stay: numbers that the table lacks are left as they are, for the caller to refuse.
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
        """Occ3D's classes that are missing from the table."""
        return tuple(name for name, label in OCC.items() if label not in self.numbers.values())

    def translate(self, labels: Integer[Array, "*n"], where: str, rows: bool = False) -> UInt8[Array, "*n"]:
        """Labels of this table, 0..255, in Occ3D's classes; `rows` says that they are those of sparse rows.

        Raises:
            DataError: naming `where`, for numbers that the table does not have.
        """
        small = labels.astype(np.uint8)
        lookup = self._lookup
        if rows and self.noise:
            lookup = lookup.copy()
            lookup[list(self.noise)] = IGNORE
        found = lookup[small]
        if not self.others_stay and (odd := np.unique(small[found == NO_CLASS])).size:
            raise DataError(
                f"{where}: holds class {', '.join(map(str, odd[:4].tolist()))}, and {self.name} has "
                f"{min(self.numbers)} to {max(self.numbers)}. Name another table."
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
"""Occ3D's classes, where nobody said which."""

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
    """The table of a name or of a file; Occ3D's, as an assumption, for nothing.

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
    raise ConfigError(f"--classes: {unknown('class table', text, TABLES)} Or give a file with a class name a line.")


def read_table(path: str) -> ClassTable:
    """A file of class names, in the order of their numbers or as `NUMBER NAME`; `unknown` stands for what is not counted.

    Raises:
        DataError: naming the file, for names that Occ3D does not have, a number twice, or none that means free.
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
            raise DataError(f"{where}: number {number} {'stands twice' if number in numbers else 'is above 255'}; give each class one.")
        numbers[number] = IGNORE if plain in _UNKNOWN else OCC[_SAME.get(plain) or _PLAIN[plain]]
    if FREE not in numbers.values():
        raise DataError(f"{where}: no class of it is called free; name the number that stands for empty voxels `free`.")
    return ClassTable(printable(Path(path).name, 40), numbers)


def require_free(labels: UInt8[Array, "*n"], where: str, option: str, truth: bool = False) -> None:
    """Refuse labels, taken for Occ3D's without anybody's word, in which another number than 17 fills the space.

    Args:
        labels: class numbers as they were found.
        where: their file.
        option: the option that says whose they are; empty where there is none.
        truth: whether they are the truth, in which unknown voxels may fill most.

    Raises:
        DataError: with the tables in which that number is free.
    """
    counts = np.bincount(labels.reshape(-1), minlength=256).astype(np.int64)
    if truth:
        counts[IGNORE] = 0
    total, most = int(counts.sum()), int(counts.argmax())
    if not total or most == FREE or counts[most] < 0.6 * total or counts[FREE] > 0.25 * total:
        return
    if set(np.flatnonzero(counts).tolist()) <= {0, 1}:
        raise DataError(f"{where}: holds 0 and 1 alone, which say what is occupied and not by which class; write the classes.")
    likely = next((table.name for table in TABLES.values() if table.numbers.get(most) == FREE), "")
    raise DataError(
        f"{where}: class {most} fills {100 * counts[most] / total:.0f} % of the grid, and 17, which is free in Occ3D, "
        f"{100 * counts[FREE] / total:.0f} %. {_advice(likely, most, option)}"
    )


def _advice(likely: str, most: int, option: str) -> str:
    whose = f"In {likely} {most} is free" if likely else f"{most} may mean free in another table"
    if not option:
        return f"{whose}, but Occ3D's numbers are read here: write the files anew in Occ3D's."
    named = f"say {option} {likely} if they are of that table, " if likely else ""
    return f"{whose}: {named}{option} FILE, with a class a line (`{most} free`), if they are of another, or {option} occ3d if they are Occ3D's."
