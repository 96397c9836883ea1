"""Optimised operations for CPUs. They equal the plain formulas in `iidrive.models.plain`."""

from __future__ import annotations

import torch
from torch import Tensor


def pays_for(tensor: Tensor) -> bool:
    """Whether to use the CPU version of an operation on this tensor. On a GPU and under torch.compile the plain version is faster."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()
