"""Quantity and time named in a header or row name."""

from __future__ import annotations

import re

_LONGEST = 400
"""Largest number of characters read of a name."""
_SPACES = re.compile(r"[\s_]{1,40}")
_BOX = re.compile(r"(?<![a-z])box(?![a-z])")
_COLLISION = re.compile(r"(?<![a-z])(?:collisions?|coll?s?|cr)(?![a-z])|碰撞")
_POINT = re.compile(r"(?<![a-z])obj (?:single )?coll?(?![a-z])|traj collision")
_L2 = re.compile(r"(?<![a-z0-9])l2(?![a-z0-9])")
_MIOU = re.compile(r"(?<![a-z])miou(?![a-z])")
_IOU = re.compile(r"(?<![a-z])iou(?![a-z])")
_TIME = re.compile(r"(?<![\d.,])(\d{1,2}(?:[.,]\d{1,2})?)\s?(?:s|secs?|seconds?|秒)(?![a-z0-9])")
_AVERAGE = re.compile(r"(?<![a-z])(?:avg|average|mean|ave)(?![a-z])|平均|均值")
_UNIT = re.compile(r"(?<![a-z])(cm|mm)(?![a-z])|‰")
_FACTORS = {"cm": 0.01, "mm": 0.001, "‰": 0.001}
AVERAGE = -1.0
"""Time value that stands for the column of averages."""


def _normal(words: str) -> str:
    return _SPACES.sub(" ", words.lower())


def quantity(words: str) -> str:
    """`L2`, `obj_col`, `obj_box_col`, `mIoU`, `IoU`, or "" if none is named. A collision that names neither point nor box is the box's."""
    text = _normal(words[:_LONGEST])
    if _L2.search(text):
        return "L2"
    if _COLLISION.search(text):
        return "obj_col" if _POINT.search(text) and not _BOX.search(text) else "obj_box_col"
    if _MIOU.search(text):
        return "mIoU"
    return "IoU" if _IOU.search(text) else ""


def says_box(words: str) -> bool:
    """Whether the name of a collision column mentions the box."""
    return _BOX.search(_normal(words)) is not None


def factor_of(words: str) -> float | None:
    """The factor of a unit that a name states, to metres or fractions of 1: 0.01 for cm, 0.001 for mm and ‰. None for other units and no unit."""
    found = _UNIT.search(_normal(words[:_LONGEST]))
    return _FACTORS[found[0]] if found else None


def single(words: str) -> bool:
    """Whether the name says that the value is that of a single step, as in one of II-World's tables."""
    return " single " in f" {_normal(words)} "


def time_of(words: str) -> float | None:
    """The time in a name in seconds (`0.5s`, `L2 (m) 1s`), AVERAGE for a column of averages, or None."""
    text = _normal(words[:_LONGEST])
    found = _TIME.search(text) if "s" in text or "秒" in text else None
    if found:
        return float(found[1].replace(",", "."))
    return AVERAGE if _AVERAGE.search(text) else None


_EXACT = re.compile(r"obj[ _]col|obj[ _]box[ _]col|l2(?: ?\(m\)| ?\[m\]| error)?", re.IGNORECASE)


def is_row_name(words: str) -> bool:
    """Whether a cell is an evaluator's row name, which is accepted without a header."""
    return _EXACT.fullmatch(words) is not None
