"""Parsing of one printed cell: a number with unit and spread, or a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf, nan

LONGEST_CELL = 120
_DIGITS = r"\d{1,40}(?:[.,]\d{0,40})?|[.,]\d{1,40}"
_NUMBER = re.compile(
    rf"(?P<value>[-+]?(?:{_DIGITS})(?:[eE][-+]?\d{{1,3}})?|[-+]?(?:nan|inf|infinity)\b)\s?(?P<unit>%|m\b|cm\b)?"
    rf"(?:\s?(?:±|\+/-|\+-)\s?(?P<spread>{_DIGITS})\s?(?P<spread_unit>%|m\b)?)?(?:\s?\([^()]{{0,30}}\))?",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"(?:<sup>[^<>]{0,20}</sup>|</?[a-zA-Z][^<>]{0,200}>|\$|\*{1,3}|~~|`|[↑↓†‡{}]|\^\{[^{}]{0,20}\}|\^\w"
    r"|\\(?:rm|bf|it|small|tiny|scriptsize|scriptstyle|hline)\b)+"
)
_SPECIAL = re.compile(r"[\\<>$*~`↑↓†‡^{}\[]")
_LINK = re.compile(r"\[([^\[\]]{1,80})\]\([^()]{0,300}\)")
_SIMPLE = re.compile(r"([-+]?\d{1,12})(?:\.(\d{1,17}))?(%?)")
_MACRO = re.compile(r"\\(?:textbf|underline|emph|mathbf|text|textit|textsc|mathrm|uline|bm|boldsymbol|best|second)\s?\{([^{}]{0,200})\}")
_DROPPED = re.compile(
    r"\\(?:cite[a-z]{0,8}|ref|rowcolor|cellcolor|color|textcolor|footnotemark|label)\s?(?:\[[^\[\]]{0,60}\])?\{[^{}]{0,200}\}"
)
_ARROWS = re.compile(r"\\(?:downarrow|uparrow|dagger|ddagger|ast|star|checkmark|quad|,|;|!)")
_BELOW = re.compile(r"[_^]\{\s?±")
_FIGURES = frozenset("0123456789.,")
_ABSENT = frozenset({"", "-", "--", "---", "–", "—", "n/a", "na", "none", "null", "/"})
_LIKE = re.compile(r"[-+]?[\dOoIlBSZ|]{1,12}\s?[.,:]\s?[\dOoIlBSZ|]{1,40}\s?%?(?:[eE][-+]?\d{1,9})?")


@dataclass(frozen=True)
class Number:
    """A printed number, in the printed unit.

    `half`: half of the last digit. `percent`: a percent sign follows. `spread`: the ± value. `significant`: number of significant digits.
    """

    value: float
    half: float
    percent: bool
    spread: float | None = None
    significant: int = 0


def plain(cell: str) -> str:
    """A cell without bold, links, footnote marks, arrows and LaTeX commands."""
    text = cell[:400]
    if not _SPECIAL.search(text):
        return text.strip()
    if "\\" in text:
        text = text.replace(r"\%", "%").replace(r"\_", "_").replace(r"\pm", "±").replace(r"\&", "&").replace("~", " ")
        for _ in range(4):
            shorter = _MACRO.sub(r"\1", _DROPPED.sub("", text))
            if shorter == text:
                break
            text = shorter
        text = _BELOW.sub("±", _ARROWS.sub("", text))
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    return _MARKUP.sub(_without, text.replace("{,}", ",")).strip()


def _without(mark: re.Match[str]) -> str:
    """Nothing in place of markup, but a blank within a number: `0.$1` is a damaged cell, not 0.1, and `0.7<b>1</b>` not 0.71."""
    before, after = mark.string[: mark.start()][-1:], mark.string[mark.end() :][:1]
    return " " if before in _FIGURES and after in _FIGURES else ""


def number(cell: str) -> Number | None:
    """The number of a cell such as `0.742%`, `**0.09**`, `0,2388`, `0.020±0.004%` or `0.31 m`; None if the cell has none.

    A single comma is a decimal comma. A number too large for a float gives None.
    """
    simple = _SIMPLE.fullmatch(cell)
    if simple:
        digits, behind = simple[1], simple[2] or ""
        significant = len((digits + behind).lstrip("+-0"))
        return Number(float(f"{digits}.{behind}"), 0.5 * 10.0 ** -len(behind), bool(simple[3]), None, significant)
    text = plain(cell)
    if not text or len(text) > LONGEST_CELL:
        return None
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    digits = found["value"].replace(",", ".").lower()
    if "n" in digits:
        return Number(nan if "nan" in digits else inf, 0.0, found["unit"] == "%")
    value = float(digits)
    if abs(value) > 1e12:
        return None
    scale = 0.01 if found["unit"] == "cm" else 1.0
    spread = float(found["spread"].replace(",", ".")) if found["spread"] else None
    mantissa = digits.partition("e")[0]
    significant = len(mantissa.replace(".", "").lstrip("+-0"))
    percent = "%" in (found["unit"] or "", found["spread_unit"] or "")
    half = 0.5 * 10.0 ** -max(decimals(digits), -6)
    return Number(value * scale, half * scale, percent, spread, significant)


def absent(cell: str) -> bool:
    """Whether a cell marks a missing value, such as `-` or `n/a`."""
    return plain(cell).lower() in _ABSENT


def damaged(cell: str) -> bool:
    """Whether a cell that is not a number looks like a damaged number: `O.020%`, `0.l48%`, `1e400`, `0.7.4`."""
    text = plain(cell)
    if not text or len(text) > 6000:
        return False
    figures = sum(c.isdigit() for c in text)
    return _LIKE.fullmatch(text[:80]) is not None or (figures > 0 and 2 * figures >= len(text.replace(" ", "")))


def decimals(text: str) -> int:
    """Number of decimals of a printed number, minus its exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)
