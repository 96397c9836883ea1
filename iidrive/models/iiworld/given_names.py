"""Removes what training tools add to the names of weights.

DDP, FSDP and torch.compile insert parts anywhere in a name (`module.`, `_orig_mod.`), and frameworks add a prefix (`model.`). An EMA may be
stored beside the weights or instead of them: `ema_encoder_conv_in_weight` (mmcv), `model_ema.encoderconv_inweight`,
`ema_model.encoder.conv_in.weight`, or plain names together with `n_averaged` (PyTorch's AveragedModel).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from iidrive.core.errors import CheckpointError
from iidrive.core.text import printable

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Parts that module wrappers insert anywhere in a name."""
OUTER = frozenset({"model", "net", "network", "online_model"})
"""Prefixes that frameworks add. They are removed if a known name remains."""
AVERAGED = frozenset({"ema", "ema_model", "model_ema", "module_ema"})
"""Prefixes that mark an EMA."""
COUNTERS = frozenset({"n_averaged", "steps", "decay", "num_updates", "updates"})
"""Counters that are stored with an EMA."""


@dataclass(frozen=True)
class Given:
    """Weights and their EMA under plain names. Either may be empty."""

    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]


def plain_names(state: Mapping[str, Tensor], known: Collection[str], where: str) -> Given:
    """Remove what training tools added to names. An unknown name is kept, without wrappers.

    Args:
        state: tensors by their names in the file.
        known: names of the architecture.
        where: the file, for the error message.

    Raises:
        CheckpointError: if two names with different values become the same.
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
                f"{where}: the names {printable(before)} and {printable(name)} both mean {printable(plain)}, but their values differ. "
                "Save the weights of one model only."
            )
        found[averaged][plain] = value
    if any(name.split(".")[-1] == "n_averaged" for name in counters) and not found[True]:
        return Given({}, found[False])
    return Given(found[False], found[True])


def _plain(name: str, known: frozenset[str], flat: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a name belongs to an EMA, and its plain name."""
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
