"""Finds what makes host and GPU wait for each other, without a GPU: a watch over what runs on the `meta` device, which has shapes but no
numbers.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import iidrive

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.equal,
    aten._linalg_check_errors,
}
"""Operations whose result, or the size of whose result, the host reads: it waits for the GPU."""

FACTORIES = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


@contextmanager
def no_host() -> Iterator[None]:
    """Raises AssertionError, with places in iidrive, if the block makes tensors on the host, mixes such with others, or waits for a
    result.
    """
    found: list[str] = []
    with _Operations(found), _Calls(found):
        yield
    assert not found, "\n" + "\n".join(dict.fromkeys(found))


class _Operations(TorchDispatchMode):
    """What reaches the device."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func.overloadpacket in WAITS or _on_host((args, kwargs)):
            self.found.append(f"{_place()} {func}")
        if func is aten.grid_sampler_2d.default:  # its own way to this shape takes a hundred operations
            return args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:3])
        made = func(*args, **(kwargs or {}))
        if _on_host(made):
            self.found.append(f"{_place()} {func} on the host")
        return made


class _Calls(TorchFunctionMode):
    """What torch does before it gets there: numbers, lists and masks become tensors."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in FACTORIES:
            self.found.append(f"{_place()} {func.__name__}")
        if func in INDEXING:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) or (isinstance(part, Tensor) and part.dtype == torch.bool) for part in index):
                self.found.append(f"{_place()} indexed by a list or a mask")
        return func(*args, **(kwargs or {}))


def _on_host(values: Any) -> bool:
    return any(isinstance(value, Tensor) and value.device.type == "cpu" for value in tree_leaves(values))


def _place() -> str:
    """The innermost line of iidrive (or else of the caller) that is being run."""
    package = str(Path(iidrive.__file__).parent)
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    frame = next((f for f in reversed(frames) if f.filename.startswith(package)), frames[-1])
    return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
