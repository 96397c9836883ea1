"""Pickles read without running anything of theirs: an interpreter of the pickle language that knows a fixed list of names.

Python's own unpickler is not used: it makes room for any memo index that a file names, hashes tuples however deep, and calls what it is told
to. Here dicts, lists, tuples, text and numbers are made directly; a name on the list stands for a small function of `pickle_values`; NumPy arrays
are made from checked types, shapes and bytes; and tensors only when somebody asks for their values.

What a file may cost is counted while it is read (`pickle_values.Budget`), and what its values may stand for when they are turned into arrays
(`to_array`): lists that contain themselves, or the same list many times over, are short in a file and endless when written out.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import require_file, size
from iidrive.core.untrusted.pickle_codes import Interpreter
from iidrive.core.untrusted.pickle_values import RefusedError, Tensor, TooMuchError, one_line

Array = np.ndarray

LIMIT = 1 << 34
"""Bytes of a pickle: the results of a whole split, boxes and maps included, take a few GiB."""
__all__ = ["Tensor", "load", "load_torch", "to_array"]

MOST_LEVELS = 100
MOST_VALUES = 1 << 24
"""Values of one array that is written as nested lists."""


def load(path: str | Path) -> Any:
    """What the pickle holds: dicts, lists, tuples, text, numbers, and things that `to_array` turns into arrays.

    Raises:
        DataError: naming the file, if it is damaged or too large, asks for more memory than a file of its size can need, or names any
            other class or function (which is then not imported).
    """
    where = printable_line(str(path))
    if require_file(path) > LIMIT:
        raise DataError(f"{where}: larger than the {size(LIMIT)} that a pickle may have.")
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise DataError(f"{where}: not a readable pickle ({error}); write it again.") from error
    return _loaded(memoryview(content), where)


def load_torch(path: str | Path) -> Any:
    """What a file of torch.save (a zip archive with `data.pkl`) holds, as `load`. Tensors are read from the archive when they are wanted.

    Raises:
        DataError: as `load`, and for archives whose parts are missing or larger than the file says.
    """
    where = printable_line(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            inner = next(name for name in members if name.split("/")[-1] == "data.pkl")
            if members[inner].file_size > 1 << 30 or members[inner].compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{where}: a file of torch.save whose parts are packed or larger than {size(1 << 30)}; save it again.")
            raw = archive.read(inner)
    except StopIteration:
        raise DataError(f"{where}: a zip archive without data.pkl, so not a file of torch.save; write it again.") from None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError, OverflowError) as error:
        raise DataError(f"{where}: a file of torch.save that cannot be read ({printable(str(error), 80)}); save it again.") from error
    folder = inner.removesuffix("data.pkl")

    def part(key: str, most: int) -> bytes:
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size > most or member.compress_type != zipfile.ZIP_STORED:
            raise DataError("its values are not in the file, or not as many as it says")
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)

    return _loaded(memoryview(raw), where, part)


def _loaded(content: memoryview, where: str, part: Callable[[str, int], bytes] | None = None) -> Any:
    try:
        return Interpreter(content, part).run()
    except RefusedError as error:
        raise DataError(
            f"{where}: the pickle asks for {error}; only dicts, lists, tuples, text, numbers, NumPy arrays and PyTorch tensors are "
            "read, because anything else can run code: write the paths as JSON or npz, e.g. {token: path.tolist()}."
        ) from None
    except TooMuchError as error:
        raise DataError(f"{where}: not a readable pickle ({error}); write the paths as JSON or npz.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{where}: not a readable pickle ({one_line(error)}); it may be cut short: write it again.") from error


def to_array(value: Any) -> Array:
    """Numbers in lists, tuples, arrays and tensors as one array; what else NumPy makes of a value, as `np.asarray` does.

    Raises:
        DataError: for a tensor that is damaged, or lists nested too deep or standing for too many values.
        ValueError, TypeError, OverflowError: as `np.asarray`.
    """
    if isinstance(value, list | tuple):
        _count(value, {}, 0)
        value = [_inner(item) for item in value]
    return np.asarray(value)


def _inner(value: Any) -> Any:
    """Nested lists with arrays in them as NumPy wants them."""
    if isinstance(value, list | tuple):
        return [_inner(item) for item in value]
    return np.asarray(value) if hasattr(value, "__array__") else value


def _count(value: list[Any] | tuple[Any, ...], known: dict[int, int], depth: int) -> int:
    """How many values a list stands for. Raises DataError for too many, or too deep."""
    if depth > MOST_LEVELS:
        raise DataError(f"lists nested more than {MOST_LEVELS} levels deep, or one that contains itself")
    if id(value) in known:
        return known[id(value)]
    total = len(value)
    for item in value:
        if isinstance(item, list | tuple):
            total += _count(item, known, depth + 1)
    if total > MOST_VALUES:
        raise DataError(f"lists that stand for more than {MOST_VALUES} values")
    known[id(value)] = total
    return total
