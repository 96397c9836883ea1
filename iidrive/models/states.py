"""Comparison of state dicts: names, shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from iidrive.core.errors import CheckpointError

State = Mapping[str, Tensor]


def require_fit(found: State, wanted: State, where: str) -> None:
    """Raise CheckpointError, listing all differences, unless two state dicts have the same names and shapes and compatible dtypes.

    All floating-point dtypes are compatible with each other, but not with integers.

    Args:
        found: the weights as read.
        wanted: the state dict of the architecture.
        where: file of the weights, for the error message.
    """
    both = [(name, found[name], tensor) for name, tensor in wanted.items() if name in found]
    refuse(
        where,
        {
            "missing": [name for name in wanted if name not in found],
            "unexpected": [name for name in found if name not in wanted],
            "of another shape": [f"{name} {tuple(one.shape)} for {tuple(two.shape)}" for name, one, two in both if one.shape != two.shape],
            "of another dtype": [
                f"{name} {one.dtype} for {two.dtype}" for name, one, two in both if one.is_floating_point() != two.is_floating_point()
            ],
        },
    )


def refuse(where: str, problems: Mapping[str, list[str]]) -> None:
    """Raise CheckpointError if any of the lists is not empty. The message has the number and the first eight names of each."""
    told = [f"{what} ({len(names)}): {first(names, 8)}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{where}: these weights do not fit the architecture. " + "; ".join(told) + ".")


def unequal(one: State, other: State) -> list[str]:
    """Sorted names that are missing from one state dict, or whose tensors differ in shape, dtype or any value, treating NaNs as equal."""
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def first(names: list[str], most: int) -> str:
    """The first `most` names, followed by an ellipsis if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
