"""Pickles read without running anything of theirs: a fixed list of names is understood, each by a small function of this file.

Not even NumPy's or PyTorch's own rebuilding functions are called on what a file says: arrays are made here from checked types, shapes and
bytes, and tensors only when somebody asks for their values, by PyTorch's weights-only reader.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iidrive.core.errors import DataError

Array = np.ndarray

_PLAIN_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|U\d{1,4})")


def load(path: str | Path) -> Any:
    """What the pickle holds: dicts, lists, tuples, text, numbers, and things that `np.asarray` turns into arrays.

    Raises:
        DataError: naming the file, if it is damaged or names any other class or function (which is then not imported).
    """
    try:
        with open(path, "rb") as file:
            return _Reader(file, encoding="latin1").load()
    except _RefusedError as error:
        raise DataError(
            f"{path}: the pickle asks for {error}; only dicts, lists, tuples, text, numbers, NumPy arrays and PyTorch tensors are "
            "read, because anything else can run code: write the paths as JSON or npz, e.g. {token: path.tolist()}."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # A damaged pickle can fail in any way.
        raise DataError(f"{path}: not a readable pickle ({_one_line(error)}); it may be cut short: write it again.") from error


class _RefusedError(Exception):
    """Something that is not on the list."""


class _Maker:
    """A function that a pickle can call and cannot change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., object]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> object:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("a function cannot be given a state")


class _Type:
    """A NumPy type: booleans, integers, floats and text."""

    __slots__ = ("value",)

    def __init__(self, code: str, *_: object) -> None:
        if not (isinstance(code, str) and _PLAIN_TYPE.fullmatch(code)):
            raise _RefusedError(f"NumPy values of type {code!r}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Values:
    """An array that is filled by a later instruction of the pickle."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, of, by_columns, raw = state
        self.value = _array(raw, of, shape, "F" if by_columns else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.value if dtype is None else self.value.astype(dtype)


class _Tensor:
    """A tensor whose values are read when they are asked for."""

    __slots__ = ("place", "storage")

    def __init__(self, storage: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> None:
        self.storage, self.place = storage, (tuple(size), tuple(stride), offset)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.__slots__:
            raise TypeError("a tensor cannot be given a state")
        object.__setattr__(self, name, value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        try:
            stored = torch.load(io.BytesIO(self.storage), map_location="cpu", weights_only=True)
            flat = torch.empty(0, dtype=stored.dtype).set_(stored._untyped_storage)
            value = flat.as_strided(*self.place)
            found = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        except Exception as error:  # PyTorch raises many kinds for damaged bytes.
            raise DataError(f"a tensor is damaged ({_one_line(error)})") from error
        return found if dtype is None else found.astype(dtype)


def _array(raw: Any, of: Any, shape: Any, order: Any = "C") -> Array:
    if not isinstance(of, _Type):
        raise TypeError("an array without a type")
    if isinstance(raw, str):  # Python 2 wrote bytes as text.
        raw = raw.encode("latin1")
    elif isinstance(raw, bytearray):
        raw = bytes(raw)
    return np.frombuffer(raw, of.value).reshape(shape, order="F" if order == "F" else "C")


def _scalar(of: Any, raw: Any) -> object:
    return _array(raw, of, (1,))[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise _RefusedError(f"the text encoding {encoding!r}")
    return text.encode("latin1")


def _stored(raw: bytes) -> bytes:
    if not isinstance(raw, bytes):
        raise TypeError("a tensor without bytes")
    return raw


_KNOWN: dict[tuple[str, str], _Maker] = {
    ("collections", "OrderedDict"): _Maker(lambda pairs=(): dict(pairs)),
    ("_codecs", "encode"): _Maker(_encode),
    ("numpy", "dtype"): _Maker(_Type),
    ("numpy", "ndarray"): _Maker(_Values),
    ("torch.storage", "_load_from_bytes"): _Maker(_stored),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_Tensor),
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Maker(lambda *_: _Values())
    _KNOWN[f"{_core}.multiarray", "scalar"] = _Maker(_scalar)
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _Maker(_array)


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise _RefusedError(repr(f"{module_name}.{global_name}")) from None

    def persistent_load(self, pid: object) -> Any:
        raise _RefusedError("data that lie outside the file")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:119] + "…"
