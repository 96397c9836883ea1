"""How two sets of named tensors (state dicts) differ: in names, shapes and kinds of number, or in values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from iidrive.core.errors import CheckpointError

State = Mapping[str, Tensor]


def require_fit(found: State, wanted: State, where: str) -> None:
    """Raise CheckpointError, with all differences, unless two states have the same names, shapes and kinds of number.

    Precision is no difference: float64 fits float32. Integers do not fit real numbers.

    Args:
        found: the weights that were read.
        wanted: those of the architecture.
        where: the file of the weights.
    """
    both = [(name, found[name], tensor) for name, tensor in wanted.items() if name in found]
    refuse(
        where,
        {
            "missing": [name for name in wanted if name not in found],
            "unexpected": [name for name in found if name not in wanted],
            "misshapen": [f"{name} {tuple(one.shape)} for {tuple(two.shape)}" for name, one, two in both if one.shape != two.shape],
            "of another kind": [
                f"{name} {one.dtype} for {two.dtype}" for name, one, two in both if one.is_floating_point() != two.is_floating_point()
            ],
        },
    )


def refuse(where: str, problems: Mapping[str, list[str]]) -> None:
    """Raise CheckpointError if any list of problems has names; it counts them and gives the first eight of each."""
    told = [f"{what} ({len(names)}): {first(names, 8)}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{where}: these weights do not fit the architecture. " + "; ".join(told) + ".")


def unequal(one: State, other: State) -> list[str]:
    """Names, sorted, that one state lacks or whose tensors differ in shape, type or any value; NaNs are equal to NaNs."""
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def first(names: list[str], most: int) -> str:
    """The first `most` names, and a mark if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
