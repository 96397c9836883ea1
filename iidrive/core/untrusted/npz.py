"""Reader of untrusted npz and npy files. Headers and sizes are checked before any array is unpacked; nothing is unpickled."""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import require_file, size

Array = np.ndarray

LIMIT = 1 << 30
"""Maximum total size of the arrays that are read from one file, bytes."""
MOST_MEMBERS = 1 << 20
_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Header:
    """Header of a stored array. `start` is the offset of the values, bytes; `by_columns` means Fortran order."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    start: int

    @property
    def bytes(self) -> int:
        """Size of the values, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(
    path: str | Path, keys: Collection[str] | None, limit: int = LIMIT, missing: str = "give the path of an npz file"
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Read arrays of an npz file.

    Args:
        path: the file.
        keys: names of the arrays to read; None for all.
        limit: maximum total size of the arrays that are read, bytes.
        missing: what to do if the file is missing, for the error message.

    Returns:
        The arrays of `keys` that the file holds, and the names of all other arrays.

    Raises:
        DataError: if the file is missing, unreadable, truncated or not npz, repeats a name, holds pickled Python objects under one of
            `keys`, or if the arrays of `keys` take more than `limit` bytes.
    """
    where = printable_line(str(path))
    require_file(path, missing)
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                raise DataError(f"{where}: this is a single npy array; expected an npz archive.")
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, keys, limit, where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except (zipfile.BadZipFile, EOFError, ValueError, MemoryError, RuntimeError, NotImplementedError, zlib.error, OverflowError) as error:
        said = printable(" ".join(str(error).split()), 120)
        raise DataError(
            f"{where}: not a readable npz archive ({said}); it may be truncated or in another format: write it again."
        ) from error


def member_names(path: str | Path) -> tuple[str, ...] | None:
    """Names of a zip archive's members; None if the file is not a readable zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError, OverflowError, EOFError):
        return None


def _arrays(archive: zipfile.ZipFile, keys: Collection[str] | None, limit: int, where: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{where}: {len(members)} arrays, more than {MOST_MEMBERS}.")
    names = [member.filename.removesuffix(".npy") for member in members]
    again = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if again:
        shown = ", ".join(printable(name) for name in again[:3])
        raise DataError(
            f"{where}: array names must be unique; repeated: {len(again)} name{'s' * (len(again) > 1)} ({shown}); write the file again."
        )
    wanted = [(name, member) for name, member in zip(names, members, strict=True) if keys is None or name in keys]
    for name, member in zip(names, members, strict=True):
        if keys is not None and name not in keys:  # perhaps a needed array whose name is damaged
            archive.open(member).close()  # compares both copies of the name, and reads nothing else
    total = 0
    headers: dict[str, Header] = {}
    for name, member in wanted:
        with archive.open(member) as file:
            headers[name] = header = _header(file, f"'{printable(name)}'", where)
        total += header.bytes
        if total > limit:
            raise DataError(
                f"{where}: the header of '{printable(name)}' says {header.dtype} of shape {header.shape}; "
                f"the arrays of such a file may take {size(limit)}. It was not unpacked."
            )
        if member.file_size != header.start + header.bytes:
            raise DataError(
                f"{where}: '{printable(name)}' is damaged (not a readable npz archive: {member.file_size - header.start} bytes for "
                f"{header.dtype} of shape {header.shape}); it may be truncated: write the file again."
            )
    found: dict[str, Array] = {}
    for name, member in wanted:
        with archive.open(member) as file:
            found[name] = _values(file, headers[name], f"'{printable(name)}'", where)
    return found, tuple(sorted(set(names) - set(headers)))


def read_npy(path: str | Path, limit: int = LIMIT) -> Array:
    """Read the array of an npy file. Raises DataError as `read_npz` does."""
    where = printable_line(str(path))
    require_file(path, "give the path of an npy file")
    try:
        with open(path, "rb") as file:
            header = _header(file, _ALONE, where)
            if header.bytes > limit:
                raise DataError(
                    f"{where}: its header says {header.dtype} of shape {header.shape}; such a file may hold {size(limit)}. It was not read."
                )
            if os.fstat(file.fileno()).st_size != header.start + header.bytes:
                raise DataError(
                    f"{where}: not a readable npy file (its length does not match its header); it may be truncated: write it again."
                )
            file.seek(0)
            return _values(file, header, _ALONE, where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, MemoryError, OverflowError) as error:
        raise DataError(f"{where}: not a readable npy file ({printable(str(error), 80)}); write it again.") from error


def _header(file: IO[bytes], what: str, where: str) -> Header:
    """Read the header of an array. Raises DataError if it is damaged or if the array holds Python objects."""
    try:
        start = file.read(12)
        version = npy.read_magic(io.BytesIO(start))
        length = 10 if version == (1, 0) else 12
        rest = int.from_bytes(start[8:length], "little")
        if rest > _LONGEST_HEADER:
            raise ValueError(f"a header of {rest} bytes")
        whole = io.BytesIO(start + file.read(rest + length - 12))
        whole.seek(8)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, by_columns, dtype = read(whole, max_header_size=_LONGEST_HEADER)
        if dtype.hasobject:
            held = "pickled objects" if what == _ALONE else "pickled Python objects"
            raise DataError(
                f"{where}: {what} holds {held}, which are never loaded because they can run code; "
                "save it as a plain array (text as a unicode array)."
            )
        if any(n < 0 for n in shape) or len(shape) > 32:
            raise ValueError(f"the shape {shape}")
        return Header(shape, by_columns, dtype, length + rest)
    except DataError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError):
        raise
    except Exception as error:  # NumPy evaluates the header as a Python literal, which can fail in any way
        said = printable(" ".join(str(error).split()), 80)
        kind = "npy file" if what == _ALONE else "npz archive"
        raise DataError(f"{where}: not a readable {kind} ({what} is damaged: {said}); write the file again.") from error


_LONGEST_HEADER = 10_000
_ALONE = "the array"


def _values(file: IO[bytes], header: Header, what: str, where: str) -> Array:
    file.read(header.start)
    raw = bytearray(header.bytes)
    view, at = memoryview(raw), 0
    while at < len(raw):
        piece = file.read(min(len(raw) - at, 1 << 24))
        if not piece:
            raise DataError(f"{where}: {what} is damaged (not a readable npz archive: it is truncated); write the file again.")
        view[at : at + len(piece)] = piece
        at += len(piece)
    file.read(1)  # zipfile verifies the checksum at the end of a member
    if not raw:
        return np.zeros(header.shape, header.dtype)
    found = np.frombuffer(raw, header.dtype).reshape(header.shape, order="F" if header.by_columns else "C")
    return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))
