"""Text for terminals and files: values from untrusted files made safe to print, and fixed-width tables.

Control characters can change a terminal and direction marks can reorder text, so both are escaped when a file's content is quoted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

LIMIT = 80
"""Characters of a value that an error message shows."""
_PLAIN = (str, bytes, bytearray, int, float, bool, type(None))


def printable(value: object, limit: int = LIMIT) -> str:
    """A value as text of at most `limit` characters, with control characters escaped. Longer text ends in an ellipsis.

    A string is returned without quotes. Only the beginning of a large value is read, so the time does not depend on its size.
    """
    return _cut("".join(_escaped(c) for c in _shown(value, limit)), limit)


def _shown(value: object, limit: int, depth: int = 3) -> str:
    """Enough of a value's text to fill `limit` characters."""
    if isinstance(value, str):
        return value[: limit + 1]
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value[: limit + 1]))
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * limit:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict):
        return _several(value, limit, depth)
    if isinstance(value, _PLAIN):
        return repr(value)
    return f"a {type(value).__name__}" if type(value).__repr__ is object.__repr__ else repr(value)[: limit + 1]


def _several(value: list[object] | tuple[object, ...] | dict[object, object], limit: int, depth: int) -> str:
    left, right = {list: "[]", tuple: "()", dict: "{}"}.get(type(value), "()")
    if depth == 0:
        return f"{left}…{right}"
    text = left
    for i, item in enumerate(value.items() if isinstance(value, dict) else value):
        text += ", " if i else ""
        if isinstance(value, dict):
            key, inner = item  # pyright: ignore[reportGeneralTypeIssues]
            text += f"{_quoted(key, limit, depth)}: {_quoted(inner, limit, depth)}"
        else:
            text += _quoted(item, limit, depth)
        if len(text) > limit:
            return text
    return text + right


def _quoted(value: object, limit: int, depth: int) -> str:
    return repr(value[: limit + 1]) if isinstance(value, str) else _shown(value, limit, depth - 1)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return " " if unicodedata.category(character) == "Zs" else character.encode("unicode_escape").decode("ascii")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_line(text: str) -> str:
    """A message as one line: control characters and surrogates are escaped, nothing is cut."""
    return text if text.isprintable() else "".join(_escaped(c) for c in text)


def text_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One table row: the first cell left-aligned, the others right-aligned. A cell longer than its width makes the row longer."""
    return "".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(cells, widths, strict=True)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Table whose columns are as wide as their widest cell, two spaces apart: the first left-aligned, the others right-aligned."""
    widths = [width + 2 * (k > 0) for k, width in enumerate(_widest(rows))]
    return "\n".join(text_row(cells, widths) for cells in rows)


def ruled(rows: Sequence[Sequence[str]], pad: Callable[[str, int], str] = str.ljust) -> str:
    """Table with rules of `+`, `-` and `|`. The first row is the header; `pad(cell, width)` pads a cell to its column's width."""
    widths = _widest(rows)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    body = ["|" + "|".join(f" {pad(cell, width)} " for cell, width in zip(cells, widths, strict=True)) + "|" for cells in rows]
    return "\n".join([rule, body[0], rule, *body[1:], rule])


def _widest(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
