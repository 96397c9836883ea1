"""Objects that a pickle may create: types, arrays and tensors, made from validated parts within a memory budget."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.text import printable

Array = np.ndarray

OBJECTS_PER_BYTE = 16
OBJECTS_LIMIT = 1 << 26
"""Memory for the objects of one file, bytes: this many, plus `OBJECTS_PER_BYTE` per byte of the file."""

_PLAIN_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|U\d{1,4})")


class RefusedError(Exception):
    """The pickle uses something that is not allowed."""


class TooMuchError(Exception):
    """The pickle asks for more memory than a file of its size can need."""


class Budget:
    """Memory left for the objects of a file, bytes. It is spent before an object is made."""

    def __init__(self, length: int) -> None:
        self.left = OBJECTS_LIMIT + OBJECTS_PER_BYTE * length

    def spend(self, count: int) -> None:
        """Take `count` bytes from the budget. Raises TooMuchError if it is used up."""
        self.left -= count
        if self.left < 0:
            raise TooMuchError("it asks for far more memory than a file of its size can need")


class Named:
    """A function of this module that replaces a global name of the pickle."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


class NumPyType:
    """A NumPy dtype: boolean, integer, float or text."""

    __slots__ = ("value",)

    def __init__(self, budget: Budget, code: str, *_: object) -> None:
        if not (isinstance(code, str) and _PLAIN_TYPE.fullmatch(code)):
            raise RefusedError(f"NumPy values of type {printable(code)!r}")
        self.value = np.dtype(code)

    def set(self, budget: Budget, state: Any) -> None:
        """Set the byte order."""
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class NumPyArray:
    """A NumPy array that a later opcode fills."""

    __slots__ = ("value",)

    def __init__(self, budget: Budget, *_: object) -> None:
        budget.spend(200)
        self.value = np.zeros(0)

    def set(self, budget: Budget, state: Any) -> None:
        """Set shape, dtype and values."""
        _, shape, of, by_columns, raw = state
        self.value = _array(budget, raw, of, shape, "F" if by_columns else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.value if dtype is None else self.value.astype(dtype)


STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class Storage:
    """Storage of a tensor: a member of the torch.save archive, or an embedded torch.save file."""

    __slots__ = ("code", "count", "read")

    def __init__(self, read: Callable[[], bytes], code: str, count: int) -> None:
        self.read, self.code, self.count = read, code, count

    def values(self) -> tuple[Array, bool]:
        """All values, and whether they are bfloat16."""
        if self.code:
            wanted = self.count * np.dtype(STORAGES[self.code]).itemsize
            raw = self.read()
            if len(raw) != wanted:
                raise DataError("its values are missing from the file, or there are too few or too many")
            return np.frombuffer(raw, STORAGES[self.code]), self.code == "BFloat16Storage"
        import torch

        stored = torch.load(io.BytesIO(self.read()), map_location="cpu", weights_only=True)
        flat = torch.empty(0, dtype=stored.dtype).set_(stored._untyped_storage)
        return (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy(), False


class Tensor:
    """A tensor. Its values are read on conversion with `np.asarray`."""

    __slots__ = ("place", "storage")

    def __init__(self, budget: Budget, storage: object, offset: object, shape: object, stride: object, *_: object) -> None:
        budget.spend(300)
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without values")
        self.storage, self.place = storage, (_whole(shape), _whole(stride), _whole((offset,))[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape. The values are not read."""
        return self.place[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        shape, stride, offset = self.place
        try:
            flat, brain = self.storage.values()
            last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
            if last >= max(len(flat), 1) or math.prod(shape) > max(len(flat), 1 << 16):
                raise DataError(f"shape {printable(shape)} over {len(flat)} stored values")
            steps = tuple(step * flat.itemsize for step in stride)
            found = np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).copy()
            found = (found.astype(np.uint32) << 16).view(np.float32) if brain else found
        except Exception as error:  # PyTorch raises many types of exception for damaged bytes
            raise DataError(f"a tensor is damaged ({one_line(error)})") from error
        return found if dtype is None else found.astype(dtype)


def _whole(values: object) -> tuple[int, ...]:
    found = tuple(values) if isinstance(values, tuple | list) else ()
    if len(found) > 32 or not all(type(n) is int and 0 <= n < 1 << 40 for n in found) or not isinstance(values, tuple | list):
        raise TypeError("a tensor's shape, strides and offset must be whole numbers, 0 or more")
    return found


def _array(budget: Budget, raw: Any, of: Any, shape: Any, order: Any = "C") -> Array:
    if not isinstance(of, NumPyType):
        raise TypeError("an array without a type")
    budget.spend(200)
    if isinstance(raw, str):  # Python 2 wrote bytes as text
        budget.spend(len(raw))
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes | memoryview):
        raise TypeError("an array without bytes")
    return np.frombuffer(raw, of.value).reshape(_whole(shape), order="F" if order == "F" else "C")


def _scalar(budget: Budget, of: Any, raw: Any) -> object:
    return _array(budget, raw, of, (1,))[0].item()


def _encode(budget: Budget, text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise RefusedError(f"the text encoding {printable(encoding)!r}")
    budget.spend(len(text) + 50)
    return text.encode("latin1")


def _stored(budget: Budget, raw: Any) -> Storage:
    if not isinstance(raw, bytes | memoryview):
        raise TypeError("a tensor without bytes")
    return Storage(lambda: bytes(raw), "", 0)


def _table(budget: Budget, pairs: Any = ()) -> dict[Any, Any]:
    budget.spend(250 + 200 * len(pairs))
    return {hashable(key): value for key, value in pairs}


def _later(budget: Budget, *_: object) -> dict[Any, Any]:
    budget.spend(250)
    return {}


def _plain_set(budget: Budget, items: Any = ()) -> set[Any]:
    budget.spend(232 + 64 * len(items))
    return {hashable(item) for item in items}


def _refused_call(*_: object) -> object:
    raise RefusedError("a call of a type")


KNOWN: dict[tuple[str, str], Named] = {
    ("collections", "OrderedDict"): Named(_table),
    ("collections", "defaultdict"): Named(_later),
    ("_codecs", "encode"): Named(_encode),
    ("numpy", "dtype"): Named(NumPyType),
    ("numpy", "ndarray"): Named(NumPyArray),
    ("torch.storage", "_load_from_bytes"): Named(_stored),
    ("torch._utils", "_rebuild_tensor_v2"): Named(Tensor),
    ("builtins", "set"): Named(_plain_set),
    ("__builtin__", "set"): Named(_plain_set),
    **{(module, kind): Named(_refused_call) for module in ("builtins", "__builtin__") for kind in ("list", "dict", "int", "float")},
}
for _core in ("numpy.core", "numpy._core"):
    KNOWN[f"{_core}.multiarray", "_reconstruct"] = Named(NumPyArray)
    KNOWN[f"{_core}.multiarray", "scalar"] = Named(_scalar)
    KNOWN[f"{_core}.numeric", "_frombuffer"] = Named(_array)


def hashable(key: Any) -> Any:
    """The key, if it is text, a number or a short flat tuple. Others are refused because hashing them may take unbounded time."""
    if type(key) not in (str, int, float, bool, bytes, type(None)):
        if type(key) is tuple and len(key) < 100 and all(type(k) in (str, int, float, bool, type(None)) for k in key):
            return key
        raise RefusedError(f"a {type(key).__name__.strip('_').lower()} as a key")
    return key


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, at most 120 characters."""
    return printable(" ".join(str(error).split()) or type(error).__name__, 120)
