"""Dicts `{token: path}`, as AD-MLP, GPT-Driver and Agent-Driver write them, and nuScenes submissions, whose paths are under `results`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.readers.rows import Rows, keys_of, named
from iidrive.scoring.readers.shapes import numbers

PATH_KEYS = ("trajectory", "final_planning", "planning_traj", "pred_traj")
"""Keys that are tried first for the path of a row."""
_INNER = ("img_bbox", "pts_bbox")
"""Keys that hold the predictions in mmdetection3d's rows."""
_TRUTH = re.compile(r"(?<![a-z])(?:gt|ground_?truth|truth|true|labels?|targets?)(?![a-z])", re.IGNORECASE)
"""Names of true paths, which are never read as plans."""


def is_submission(value: Any) -> bool:
    """Whether a value is a nuScenes submission."""
    return isinstance(value, dict) and "results" in value and "meta" in value and set(value) == {"meta", "results"}


def read_submission(value: Mapping[str, Any], where: str) -> Rows:
    """The paths of a nuScenes submission. Raises DataError as `rows.named`, and if `results` is not a dict."""
    inner = value["results"]
    if not isinstance(inner, dict):
        raise DataError(f"{where}: a nuScenes submission, but `results` is not an object of paths by sample token.")
    return named(inner.items(), "a nuScenes submission", where, path_in)


def is_table(value: Any) -> bool:
    """Whether a value may be a dict of paths by token. This is the last format tried for dicts."""
    return isinstance(value, dict)


def read_table(value: Mapping[Any, Any], where: str) -> Rows:
    """The paths of a dict by token. Raises DataError as `rows.named`."""
    return named(value.items(), "a table by sample token", where, path_in)


def path_in(value: Any) -> Any:
    """The path of an entry: the entry itself, or the only value of a dict that can be a path and is not named as the true one.

    Raises:
        DataError: if a dict has no such value, or several.
    """
    if not isinstance(value, dict):
        return value
    for key in PATH_KEYS:
        if key in value:
            return value[key]
    for key in _INNER:
        if isinstance(value.get(key), dict):
            return path_in(value[key])
    paths = [key for key, inner in value.items() if may_be_path(inner)]
    found = [key for key in paths if not is_truth(key)]
    if len(found) == 1:
        return value[found[0]]
    if found:
        raise DataError(
            f"an entry has several values that may be the path, {', '.join(map(repr, found[:4]))}: name the right one 'trajectory'."
        )
    if paths:
        raise DataError(f"an entry has only the true path, {paths[0]!r}, and no plan: name the plan 'trajectory'.")
    raise DataError(f"an entry has no path of six points; found {keys_of(value)}.")


def is_truth(key: Any) -> bool:
    """Whether a key names the true path, as `gt_trajectory` does."""
    return isinstance(key, str) and _TRUTH.search(key) is not None


def may_be_path(value: Any) -> bool:
    """Whether a value is an array with roughly the shape of a path: at least five rows of two or three numbers."""
    if not isinstance(value, list | tuple) and not hasattr(value, "__array__"):
        return False
    try:
        shape = numbers(value, "").shape
    except DataError:
        return False
    if len(shape) > 2:
        shape = tuple(n for n in shape if n != 1)
    return len(shape) == 2 and shape[0] >= FUTURE_STEPS - 1 and shape[1] in (2, 3)
