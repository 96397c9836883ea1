"""Accepted shapes of a path, (6,2) or unambiguous variants of it, and their conversion to (6,2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.text import printable
from iidrive.core.untrusted.plain_pickle import to_array

Array = np.ndarray

SHAPE = f"({FUTURE_STEPS}, 2)"
_AT_ORIGIN_M = 0.05
_STANDING_M = 1.0
_SLACK_RAD = 0.3


@dataclass(frozen=True)
class Shaped:
    """One path as in the file, without axes of length 1: (6,2), (6,3), (7,2) or (7,3). `boxed`: it had such an axis."""

    value: Array
    boxed: bool


def shaped(value: Any, what: str) -> Shaped:
    """A value as an array with an accepted shape. Raises DataError without the file name."""
    found = numbers(_points(value), what)
    shape = found.shape
    if found.ndim > 2:
        found = found.squeeze()
    steps = FUTURE_STEPS
    if found.shape not in ((steps, 2), (steps, 3), (steps + 1, 2), (steps + 1, 3)):
        advice = ""
        if found.ndim == 2 and found.shape[1] in (2, 3) and len(found) > steps + 1:
            advice = f" If the points are 0.5 s apart, write the first {steps}; if they are closer, write those at 0.5, 1.0, … 3.0 s."
        elif found.ndim == 3 and found.shape[1:] == (steps, 2):
            advice = (
                f" These are {len(found)} paths of one sample: write one of them (for VAD, the cumulative sum of the command's offsets)."
            )
        elif found.shape == (2, steps):
            advice = " Turn it, so that a row is a point."
        elif found.shape == (2 * steps,):
            advice = f" Reshape it to {SHAPE}, if its numbers are the x and y of one point after the other."
        raise DataError(f"{what} must have shape {SHAPE}, x and y at 0.5 to 3.0 s; found {shape}.{advice}")
    with np.errstate(over="ignore"):
        return Shaped(found.astype(np.float32), len(shape) > 2)


def _points(value: Any) -> Any:
    """Points that were written as `{"x": …, "y": …}` as pairs; any other value as it is."""
    if isinstance(value, list | tuple) and value and all(isinstance(point, dict) and {"x", "y"} <= point.keys() for point in value):
        return [[point["x"], point["y"]] for point in value]
    return value


def numbers(value: Any, what: str) -> Array:
    """A value as an array of real numbers of any shape. Raises DataError for anything else, booleans included, without the file name."""
    try:
        found = to_array(value)
    except DataError as error:
        raise DataError(f"{what} cannot be read: {error}; write the file again.") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{what} is not an array of numbers of shape {SHAPE}: its rows differ in length.") from error
    if found.dtype.kind not in "fiu" or _has_boolean(value):
        held = "booleans" if found.dtype.kind == "b" or _has_boolean(value) else _named(value)
        if found.dtype.kind in "cV":
            held = printable(str(found.dtype), 60)
        raise DataError(f"{what} must be numbers of shape {SHAPE}; found {held}.")
    return found


def _has_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(_has_boolean(item) for item in value))


def _named(value: Any) -> str:
    if isinstance(value, list | tuple):
        return next((_named(item) for item in value if not isinstance(item, int | float)), "a list")
    if isinstance(value, str):
        return f"the text {printable(repr(value[:40]))}"
    return "nothing (null)" if value is None else type(value).__name__.lstrip("_").lower()


def joined(found: Sequence[Shaped], whose: Sequence[str], where: str) -> tuple[Array, str]:
    """All paths as (n,6,2), and a text that says what was left out.

    Raises:
        DataError: if the paths have different shapes, the first of seven points is not (0, 0), or a third column is not the heading.
    """
    shapes = {one.value.shape for one in found}
    if len(shapes) > 1:
        first = found[0].value.shape
        k = next(k for k, one in enumerate(found) if one.value.shape != first)
        raise DataError(
            f"{where}: all paths must have the same shape; the path of {whose[k]} has {found[k].value.shape}, the first one {first}."
        )
    value, said = np.stack([one.value for one in found]), ""
    if value.shape[1] == FUTURE_STEPS + 1:
        away = np.flatnonzero(~(np.abs(value[:, 0, :2]).max(axis=1) <= _AT_ORIGIN_M))
        if len(away):
            raise DataError(
                f"{where}: the path of {whose[away[0]]} must have shape {SHAPE}, x and y at 0.5 to 3.0 s; found {value.shape[1:]}, and its first "
                f"point is not the ego at t = 0, (0, 0) ({len(away)} of {len(value)} paths): write the six points at 0.5, 1.0, … 3.0 s."
            )
        value, said = value[:, 1:], f"{said}, the point at t = 0 left out"
    if value.shape[2] == 3:
        if not all(one.boxed for one in found) and not _is_heading(value):
            raise DataError(
                f"{where}: the path of {whose[0]} must have shape {SHAPE}, x and y at 0.5 to 3.0 s; found {value.shape[1:]}, and the third column is "
                "not the heading of the path: write only x and y."
            )
        value, said = value[:, :, :2], f"{said}, the third column (heading) left out"
    return np.ascontiguousarray(value), said


def _is_heading(value: Array) -> bool:
    """Whether the third column of (n,6,3) is zero, or the direction of motion at most steps, measured from +x or from straight ahead."""
    third = value[:, :, 2].astype(np.float64)
    if not third.any():
        return True
    step = np.diff(value[:, :, :2].astype(np.float64), axis=1, prepend=0)
    moved = np.hypot(step[..., 0], step[..., 1]) >= _STANDING_M
    away = np.arctan2(step[..., 1], step[..., 0])[moved] if moved.any() else np.full(third.size, np.pi / 2)
    third = third[moved] if moved.any() else third.reshape(-1)

    def near(angle: Array) -> bool:
        return bool((np.abs(np.angle(np.exp(1j * angle))) < _SLACK_RAD).mean() > 0.8)

    ahead = np.pi / 2
    return near(third - away) or near(third - (away - ahead)) or near(third + (away - ahead))
