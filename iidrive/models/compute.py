"""Precision and activation checkpointing of the expensive parts of a model."""

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
    """Compute options of a model. They affect results by rounding only.

    Attributes:
        autocast: dtype of convolutions and matrix products in the expensive parts; None for that of the weights. Quantisation, geometry and
            losses never use it.
        activation_checkpointing: recompute activations in the backward pass instead of storing them.
    """

    autocast: torch.dtype | None = None
    activation_checkpointing: bool = False


def in_autocast(forward: Callable[..., T]) -> Callable[..., T]:
    """Decorator: run the `forward` of a module that has a `compute: ComputeConfig` under its autocast, and return float32."""

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
