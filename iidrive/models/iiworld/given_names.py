"""Names of weights as training tools leave them, turned into the names of the architecture.

DDP, FSDP and torch.compile put a part of their own anywhere into a name (`module.`, `_orig_mod.`), frameworks put one before it (`model.`), and
moving averages stand beside the weights or in their place: `ema_encoder_conv_in_weight` (mmcv), `model_ema.encoderconv_inweight`,
`ema_model.encoder.conv_in.weight`, or all names with an `n_averaged` among them (torch's AveragedModel).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from iidrive.core.errors import CheckpointError
from iidrive.core.text import printable

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts that wrappers of modules add, at any place of a name."""
OUTER = frozenset({"model", "net", "network", "online_model"})
"""First parts that frameworks add. They are taken off where a known name is left."""
AVERAGED = frozenset({"ema", "ema_model", "model_ema", "module_ema"})
"""First parts that say that what follows is a moving average."""
COUNTERS = frozenset({"n_averaged", "steps", "decay", "num_updates", "updates"})
"""Numbers that averages keep beside the weights."""


@dataclass(frozen=True)
class Given:
    """Weights and their moving average, both under plain names; either may be empty."""

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]


def plain_names(state: Mapping[str, Tensor], known: Collection[str], where: str) -> Given:
    """Take off what tools added to names. What leads to no known name keeps its own, without wrappers.

    Args:
        state: tensors under the names of a file.
        known: names of the architecture.
        where: the file.

    Raises:
        CheckpointError: if two names with different values come to one.
    """
    whole = frozenset(known)
    flat = {name.replace(".", mark): name for mark in ("_", "") for name in known}
    found: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    came: dict[tuple[bool, str], str] = {}
    counters = {name for name in state if name.split(".")[-1] in COUNTERS and state[name].numel() == 1 and name not in whole}
    for name, value in state.items():
        if name in counters and (name.split(".")[0] in AVERAGED or name.split(".")[-1] == "n_averaged"):
            continue
        averaged, plain = _plain(name, whole, flat)
        before = came.setdefault((averaged, plain), name)
        if before != name and not _same(state[before], value):
            raise CheckpointError(
                f"{where}: two of its names, {printable(before)} and {printable(name)}, stand for {printable(plain)} and differ in value. "
                "Save one model's weights alone."
            )
        found[averaged][plain] = value
    if any(name.split(".")[-1] == "n_averaged" for name in counters) and not found[True]:
        return Given({}, found[False])
    return Given(found[False], found[True])


def _plain(name: str, known: frozenset[str], flat: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a name is that of a moving average, and its plain name."""
    stem = ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
    averaged, rest = False, stem
    while rest not in known:
        head, dot, tail = rest.partition(".")
        if not dot or head not in OUTER | AVERAGED:
            break
        averaged, rest = averaged or head in AVERAGED, tail
    if rest in known:
        return averaged, rest
    if averaged and rest in flat:
        return True, flat[rest]
    if stem.startswith("ema_"):
        joined = stem.removeprefix("ema_")
        while joined not in flat and joined.startswith(_JOINED):
            joined = next(joined.removeprefix(p) for p in _JOINED if joined.startswith(p))
        if joined in flat:
            return True, flat[joined]
    return False, stem


_JOINED = tuple(f"{part}_" for part in sorted(WRAPPERS | OUTER))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
