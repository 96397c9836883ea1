"""Plain text for terminals and files that people parse: foreign values made safe to print, and tables of a fixed width.

A terminal obeys control characters, and direction marks reorder what is read: neither may come from a file that is only quoted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

LIMIT = 80
"""Characters of a value that an error message shows."""
_PLAIN = (str, bytes, bytearray, int, float, bool, type(None))


def printable(value: object, limit: int = LIMIT) -> str:
    """A value as text of at most `limit` characters: control characters escaped, what is longer cut with an ellipsis.

    Text stands without quotes. Only the beginning of large values is looked at, so the time does not depend on their size.
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
    """A whole message on one line: control characters and surrogates escaped, nothing cut."""
    return text if text.isprintable() else "".join(_escaped(c) for c in text)


def text_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Cells side by side in columns of given widths: the first to the left of its column, the others to the right. Longer cells push."""
    return "".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(cells, widths, strict=True)))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns as wide as their widest cell, two blanks apart: the first to the left, the others to the right."""
    widths = [width + 2 * (k > 0) for k, width in enumerate(_widest(rows))]
    return "\n".join(text_row(cells, widths) for cells in rows)


def ruled(rows: Sequence[Sequence[str]], pad: Callable[[str, int], str] = str.ljust) -> str:
    """Rows in a grid of `+`, `-` and `|`, the first one a header; `pad` brings a cell to its column's width."""
    widths = _widest(rows)
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    body = ["|" + "|".join(f" {pad(cell, width)} " for cell, width in zip(cells, widths, strict=True)) + "|" for cells in rows]
    return "\n".join([rule, body[0], rule, *body[1:], rule])


def _widest(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
