"""How the costly parts of a model compute: in which precision, and whether activations are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ComputeConfig:
    """Speed and memory of a model. Results differ by rounding alone.

    `autocast` is the type of convolutions and matrix products in the costly parts (None: that of the weights). Quantisation, geometry and
    losses never use it. `activation_checkpointing` computes activations again in the backward pass instead of keeping them.
    """

    autocast: torch.dtype | None = None
    activation_checkpointing: bool = False


def in_autocast(forward: Callable[..., T]) -> Callable[..., T]:
    """Make the `forward` of a module with a `compute: ComputeConfig` run in that precision and return float32."""

    @wraps(forward)
    def run(self: Any, *inputs: Any) -> Any:
        dtype = self.compute.autocast
        if dtype is None:
            return forward(self, *inputs)
        device = next(value.device.type for value in inputs if isinstance(value, Tensor))
        with torch.autocast(device, dtype=dtype):
            return _in_float32(forward(self, *inputs))

    return run


def _in_float32(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_in_float32(part) for part in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
