"""Results of VAD, GenAD and SSR, which share one format: per-step offsets for each of three commands, and the command.

`plan_results` is {token: [offsets (3,6,2), command (1,1,1,3)]}. The rows of `pts_bbox` hold the same as `ego_fut_preds` and `ego_fut_cmd`, in the
order of the data set. The path is the cumulative sum of the command's offsets, metres.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.readers.rows import Rows, keys_of, named, unnamed, what
from iidrive.scoring.readers.shapes import numbers

Array = np.ndarray

_FORM = "VAD's results: the offsets of each sample's command, summed"


def is_vad(value: Any) -> bool:
    """Whether a value is VAD's results, by token or as rows."""
    if isinstance(value, dict):
        return "plan_results" in value
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict) and "pts_bbox" in value[0]


def read_vad(value: Any, where: str) -> Rows:
    """The paths of VAD's results. Raises DataError for other shapes, no command or several, and as `rows.named`."""
    if isinstance(value, dict):
        table = value["plan_results"]
        if not isinstance(table, dict):
            raise DataError(f"{where}: VAD's results, but `plan_results` must be an object by sample token; found {what(table)}.")
        return named(table.items(), _FORM, where, _of_pair)
    return unnamed(value, _FORM, where, _of_row)


def _of_pair(entry: Any) -> Array:
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise DataError(f"an entry of VAD's results must be [offsets, command]; found {what(entry)}.")
    return summed(*entry)


def _of_row(row: Any) -> Array:
    inner = row.get("pts_bbox") if isinstance(row, dict) else None
    if not isinstance(inner, dict) or "ego_fut_preds" not in inner or "ego_fut_cmd" not in inner:
        found = keys_of(inner) if isinstance(inner, dict) else what(inner)
        raise DataError(f"a row of VAD's results needs ego_fut_preds and ego_fut_cmd; found {found}.")
    return summed(inner["ego_fut_preds"], inner["ego_fut_cmd"])


def summed(offsets: Any, command: Any) -> Array:
    """The path (6,2) from the offsets (c,6,2) of a one-hot command (c,). Raises DataError for other shapes or another command."""
    steps, chosen = numbers(offsets, "the offsets of VAD's results"), numbers(command, "the command of VAD's results").reshape(-1)
    while steps.ndim > 3 and steps.shape[0] == 1:
        steps = steps[0]
    if steps.ndim != 3 or steps.shape[1:] != (FUTURE_STEPS, 2):
        raise DataError(f"the offsets of VAD's results must have shape (3, {FUTURE_STEPS}, 2), one path per command; found {steps.shape}.")
    if len(chosen) != len(steps) or sorted(chosen.tolist()) != [0.0] * (len(steps) - 1) + [1.0]:
        raise DataError(f"the command of VAD's results must be one-hot of length {len(steps)}; found {chosen.tolist()[:6]}.")
    return np.cumsum(steps[int(np.argmax(chosen))].astype(np.float32), axis=0, dtype=np.float32)
