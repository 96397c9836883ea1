"""Reader of Argoverse 2 tables (feather files). Errors name the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import read_bytes

Array = np.ndarray

AGAIN = "Download the log again."
QUATERNION = ("qw", "qx", "qy", "qz")
TRANSLATION = ("tx_m", "ty_m", "tz_m")
FARTHEST_M = 1e7
_LIMIT = 1 << 28


def require_pyarrow() -> None:
    """Raise ConfigError, with the install command, if pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise ConfigError(
            "Argoverse 2 tables are feather files, which need pyarrow, but it is not installed: pip install 'iidrive[av2]'."
        ) from error


_LONGEST = 200
"""Largest length of a name, characters."""


class Table:
    """The content of one feather file."""

    def __init__(self, path: Path) -> None:
        """Read a file.

        Raises:
            DataError: if it is missing, larger than 256 MiB, or not a complete feather file.
        """
        import pyarrow
        from pyarrow import feather

        self.path, self.where = path, printable_line(str(path))
        content = read_bytes(path, _LIMIT, "download the log again")
        try:
            self.columns: Any = feather.read_table(pyarrow.BufferReader(content))
            self.columns.validate(full=True)  # text is UTF-8, and offsets lie within it
            printable_line(str(self.columns.column_names))  # names are decoded when they are asked for
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{self.where}: not a complete feather file ({printable(str(error), 120)}). {AGAIN}") from error

    def __len__(self) -> int:
        return self.columns.num_rows

    def has(self, name: str) -> bool:
        """Whether the table has this column."""
        return name in self.columns.column_names

    def select(self, keep: Bool[Array, "n"]) -> Table:
        """The rows where `keep` is true."""
        import pyarrow

        part = object.__new__(Table)
        part.path, part.where, part.columns = self.path, self.where, self.columns.filter(pyarrow.array(keep))
        return part

    def _column(self, name: str) -> Any:
        if not self.has(name):
            raise DataError(
                f"{self.where}: there is no column '{name}'; it has {printable(', '.join(self.columns.column_names), 200)}. {AGAIN}"
            )
        column = self.columns[name]
        if column.null_count:
            raise DataError(f"{self.where}: column '{name}' is empty in {column.null_count} of {len(self)} rows. {AGAIN}")
        return column

    def texts(self, name: str) -> Array:
        """A column of names, as an (n,) array of str. Raises DataError if it is missing, or a value is no printable text of 1 to 200 characters."""
        values = self._column(name).to_pylist()
        bad = next((value for value in values if not (isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable())), None)
        if bad is not None:
            raise DataError(f"{self.where}: column '{name}' holds {printable(repr(bad), 60)}; expected a name. {AGAIN}")
        return np.array(values, dtype=object)

    def whole(self, name: str) -> Int[Array, "n"]:
        """A column of integers, as int64. Raises DataError if it is missing or holds anything else."""
        values = self._column(name).to_numpy()
        if len(values) and values.dtype.kind not in "iu":
            raise DataError(f"{self.where}: column '{name}' is of type {self.columns[name].type}; expected integers. {AGAIN}")
        return values.astype(np.int64)

    def numbers(self, names: Sequence[str], most: float = FARTHEST_M) -> Float[Array, "n c"]:
        """Columns of finite numbers, stacked as float64.

        Raises:
            DataError: naming the column and row, if a column is missing, or a value is not a number or exceeds `most` in size.
        """
        out = np.empty((len(self), len(names)))
        for c, name in enumerate(names):
            values = self._column(name).to_numpy()
            if len(values) and values.dtype.kind not in "iuf":
                raise DataError(f"{self.where}: column '{name}' is of type {self.columns[name].type}; expected numbers. {AGAIN}")
            out[:, c] = values
            bad = ~(np.abs(out[:, c]) <= most)
            if bad.any():
                row = int(np.argmax(bad))
                raise DataError(
                    f"{self.where}: column '{name}' holds {values[row]} in row {row} ({int(bad.sum())} such rows); expected finite numbers "
                    f"of at most {most:g}. {AGAIN}"
                )
        return out

    def rotations(self) -> Float[Array, "n 3 3"]:
        """Rotation matrices from the columns qw, qx, qy, qz. Raises DataError if a row is not a unit quaternion."""
        quaternion = self.numbers(QUATERNION)
        norm = np.linalg.norm(quaternion, axis=1)
        bad = np.abs(norm - 1) > 1e-3
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{self.where}: the quaternion in row {row} has norm {norm[row]:.4f} ({int(bad.sum())} such rows), not 1. {AGAIN}"
            )
        return geometry.quaternion_to_matrix(quaternion / norm[:, None])

    def transforms(self) -> Float[Array, "n 4 4"]:
        """Rigid transforms from the quaternion and translation columns (metres)."""
        return geometry.rigid(self.rotations(), self.numbers(TRANSLATION))
