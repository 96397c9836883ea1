"""Class numberings of occupancy labels, and their conversion to Occ3D's. Classes are matched by name.

| table | numbers | grid |
|---|---|---|
| occ3d | 0 others, 1 barrier … 16 vegetation, 17 free | 0.4 m, ego frame |
| openocc | 0 car … 15 vegetation, 16 free (OpenOcc v2) | Occ3D's |
| surroundocc | 0 free, 1 barrier … 16 vegetation; in sparse rows 0 is unknown | 0.5 m, lidar frame |
| a file | one class name per line, numbered from 0, or `NUMBER NAME` | Occ3D's |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from iidrive.core.classes import FREE, IGNORE, OCC, OCC_CLASSES
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import decode, read_bytes

Array = np.ndarray

NO_CLASS = 254
"""Lookup result for a number that a table does not define. No class has this number."""
_LONGEST = 1 << 16


@dataclass(frozen=True)
class ClassTable:
    """A class numbering and its conversion to Occ3D's.

    Attributes:
        name: name of the table, or of its file.
        numbers: class number → Occ3D class.
        noise: numbers that mean unknown in sparse rows.
        grid: voxel grid of labels in this numbering, `occ3d` or `surroundocc`.
        assumed: true if the user did not name a table and Occ3D's is assumed.
    """

    name: str
    numbers: Mapping[int, int]
    noise: tuple[int, ...] = ()
    grid: str = "occ3d"
    assumed: bool = False
    _lookup: UInt8[Array, "256"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lookup = np.arange(256, dtype=np.uint8) if self.name == "occ3d" else np.full(256, NO_CLASS, np.uint8)
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
        if self.name != "occ3d" and (odd := np.unique(small[found == NO_CLASS])).size:
            raise DataError(
                f"{where}: holds class {', '.join(map(str, odd[:4].tolist()))}, but the classes of {self.name} are "
                f"{min(self.numbers)} to {max(self.numbers)}. Name another table with --classes."
            )
        return found


def _numbered(*names: str, first: int = 0) -> dict[int, int]:
    return {k + first: OCC[name] for k, name in enumerate(names)}


OCC3D = ClassTable("occ3d", _numbered(*OCC_CLASSES))
OPENOCC = ClassTable(
    "openocc",
    _numbered(
        *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone", "barrier"),
        *("driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free"),
    ),
)
SURROUNDOCC = ClassTable("surroundocc", _numbered("free", *OCC_CLASSES[1:FREE]), noise=(0,), grid="surroundocc")
TABLES = {table.name: table for table in (OCC3D, OPENOCC, SURROUNDOCC)}
ASSUMED = ClassTable("occ3d", OCC3D.numbers, assumed=True)
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
        ConfigError: for an unknown name, or a table whose classes cannot be matched by name.
        DataError: for a file that holds anything but class names.
    """
    if not text:
        return ASSUMED
    if text.lower() in TABLES:
        return TABLES[text.lower()]
    if Path(text).is_file():
        return read_table(text)
    if text.lower() == "uniocc":
        raise ConfigError(
            "--classes uniocc: UniOcc merges several Occ3D classes (all vehicles, for example), so its labels cannot be matched by name. "
            "Write the labels as they were before merging, or name their classes in a file: --classes FILE."
        )
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
    likely = [table.name for table in TABLES.values() if table.numbers.get(most) == FREE]
    hint = {0: "", 10: " In UniOcc 10 is free, and its classes cannot be matched by name."}.get(most, "")
    raise DataError(
        f"{where}: class {most} fills {100 * counts[most] / total:.0f} % of the grid, and 17, which is free in Occ3D, "
        f"{100 * counts[FREE] / total:.0f} %. {_say(likely, most, option)}{hint}"
    )


def _say(likely: list[str], most: int, option: str) -> str:
    whose = f"In {likely[0]} {most} is free" if likely else f"{most} may mean free in another table"
    if not option:
        return f"{whose}, but Occ3D's numbers are expected here: write the files with Occ3D's numbers."
    named = f"use {option} {likely[0]} if the labels follow that table, " if likely else "use "
    return (
        f"{whose}: {named}{option} FILE (one class per line, as in `{most} free`) if they follow another, "
        f"or {option} occ3d if they are Occ3D's."
    )
