"""Plain text for terminals and files that people parse: foreign words made safe to print, and tables of a fixed width."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence


def printable(text: str, limit: int = 300) -> str:
    """Foreign text on one line: control and formatting characters as escapes, other blanks as spaces, at most `limit` characters.

    A terminal obeys control characters, and direction marks reorder what is read; neither may come from a file that is only quoted.
    """
    if len(text) > limit:
        text = f"{text[: max(limit - 1, 0)]}…"
    return "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
