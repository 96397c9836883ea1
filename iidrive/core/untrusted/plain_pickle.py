"""Reader of untrusted pickles. It interprets the opcodes itself and runs no code of the file.

Python's unpickler is not used: it allocates any memo index that a file names, hashes tuples of any depth, and calls any function. Here,
dicts, lists, tuples, text and numbers are made directly. A fixed list of global names is allowed, each replaced by a function of
`pickle_values`. NumPy arrays are made from validated dtypes, shapes and bytes. Tensors are read only when their values are used.

Memory is counted while a file is read (`pickle_values.Budget`). The number of values is counted again when lists are converted to arrays
(`to_array`): a list that contains itself, or the same list many times, is short in a file but huge when expanded.
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
"""Maximum size of a pickle, bytes. Results of a whole split with boxes and maps take a few GiB."""
__all__ = ["Tensor", "load", "load_torch", "to_array"]

MOST_LEVELS = 100
MOST_VALUES = 1 << 24
"""Maximum number of values of an array written as nested lists."""


def load(path: str | Path) -> Any:
    """Read a pickle: dicts, lists, tuples, text, numbers, and objects that `to_array` converts to arrays.

    Raises:
        DataError: naming the file, if it is damaged or too large, holds more than one pickle, asks for more memory than a file of its size
            can need, or names any other class or function. That class or function is not imported.
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
    """Read a torch.save file (a zip archive with `data.pkl`), as `load` does. Tensors are read from the archive when they are used.

    Raises:
        DataError: as `load`, and if members of the archive are missing or larger than the pickle says.
    """
    where = printable_line(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            inner = next(name for name in members if name.split("/")[-1] == "data.pkl")
            if members[inner].file_size > 1 << 30 or members[inner].compress_type != zipfile.ZIP_STORED:
                raise DataError(f"{where}: a torch.save file whose data.pkl is compressed or larger than {size(1 << 30)}; save it again.")
            raw = archive.read(inner)
    except StopIteration:
        raise DataError(f"{where}: a zip archive without data.pkl, so not a torch.save file; write it again.") from None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError, OverflowError) as error:
        raise DataError(f"{where}: not a readable torch.save file ({printable(str(error), 80)}); save it again.") from error
    folder = inner.removesuffix("data.pkl")

    def part(key: str, most: int) -> bytes:
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size > most or member.compress_type != zipfile.ZIP_STORED:
            raise DataError("its values are missing from the file, or there are too few or too many")
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)

    return _loaded(memoryview(raw), where, part)


def _loaded(content: memoryview, where: str, part: Callable[[str, int], bytes] | None = None) -> Any:
    interpreter = Interpreter(content, part)
    try:
        value = interpreter.run()
    except RefusedError as error:
        raise DataError(
            f"{where}: the pickle asks for {error}; only dicts, lists, tuples, text, numbers, NumPy arrays and PyTorch tensors are "
            "read, because anything else can run code. Write the paths as JSON or npz, e.g. {token: path.tolist()}."
        ) from None
    except TooMuchError as error:
        raise DataError(f"{where}: not a readable pickle ({error}); write the paths as JSON or npz.") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise DataError(f"{where}: not a readable pickle ({one_line(error)}); it may be truncated: write it again.") from error
    if interpreter.at < len(content):
        raise DataError(
            f"{where}: there is more after the first pickle, which ends at byte {interpreter.at} of {len(content)}; was the file appended to? "
            "Write everything in one pickle."
        )
    return value


def to_array(value: Any) -> Array:
    """Convert nested lists, tuples, arrays and tensors to one array, as `np.asarray` does.

    Raises:
        DataError: for a damaged tensor, or lists that are nested too deeply or hold too many values.
        ValueError, TypeError, OverflowError: as `np.asarray`.
    """
    if isinstance(value, list | tuple):
        _count(value, {}, 0)
        value = [_inner(item) for item in value]
    return np.asarray(value)


def _inner(value: Any) -> Any:
    """Convert array-like objects inside nested lists to arrays."""
    if isinstance(value, list | tuple):
        return [_inner(item) for item in value]
    return np.asarray(value) if hasattr(value, "__array__") else value


def _count(value: list[Any] | tuple[Any, ...], known: dict[int, int], depth: int) -> int:
    """Number of values in nested lists, counting shared lists once per use. Raises DataError for too many values or levels."""
    if depth > MOST_LEVELS:
        raise DataError(f"lists nested more than {MOST_LEVELS} levels deep, or one that contains itself")
    if id(value) in known:
        return known[id(value)]
    total = len(value)
    for item in value:
        if isinstance(item, list | tuple):
            total += _count(item, known, depth + 1)
    if total > MOST_VALUES:
        raise DataError(f"lists that hold more than {MOST_VALUES} values in total")
    known[id(value)] = total
    return total
