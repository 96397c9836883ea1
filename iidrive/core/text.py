"""Foreign words made safe to print."""

from __future__ import annotations

import unicodedata


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
