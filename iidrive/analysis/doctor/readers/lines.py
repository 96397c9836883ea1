"""Normalise text to plain lines: no colour codes, carriage returns, fullwidth characters or box-drawing characters, and bounded length."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from iidrive.core.errors import DataError
from iidrive.core.text import printable

LARGEST_FILE = 200_000_000
"""Largest allowed size of a log, bytes."""
LONGEST_LINE = 20_000
"""Largest number of characters read per line."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,40}[ -/]{0,40}[@-~]|\][^\x07\x1b\n]{0,2000}(?:\x07|\x1b\\)|[@-Z\\-_])")
_BARS = str.maketrans(
    {chr(c): "+" for c in range(0x250C, 0x2570)}  # corners and crossings of boxes, some of which are bars
    | {c: "|" for c in "│┃║¦❘∣┆┇┊┋╎╏╵╷╹╻╽╿"}
    | {c: "-" for c in "─━═┄┅┈┉╌╍╴╶╸╺╼╾‐‑‒–—−"}
    | {"\u200b": "", "\ufeff": ""}
)
_ARCHIVES = {b"PK\x03\x04": "an archive or array file", b"\x93NUMPY": "an array file", b"\x80\x02": "a pickle", b"\x80\x04": "a pickle"}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\x1b\x08\x0c"))
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, UTF-16 or GB 18030, of at most `LARGEST_FILE` bytes.

    Raises:
        DataError: if it cannot be read, is too large, or is not text.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if len(raw) > LARGEST_FILE:
        raise DataError(f"{path}: larger than the limit of {LARGEST_FILE // 1_000_000} MB; keep only the lines around the table.")
    for start, kind in _ARCHIVES.items():
        if raw.startswith(start):
            raise DataError(f"{path}: this is {kind}, not text; expected a log or notes with a printed table.")
    if raw.startswith(_PACKED):
        raise DataError(f"{path}: this file is compressed; unpack it first, as in `gzip -d`.")
    return _decoded(raw, path)


def _decoded(raw: bytes, path: str | Path) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    start = raw[:4096]
    if b"\x00" in start:
        zeros = start[0::2].count(0), start[1::2].count(0)
        if max(zeros) > 0.4 * len(start) / 2:
            return raw.decode("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le", errors="replace")
        if len(start) - len(start.translate(None, _CONTROLS)) > len(start) // 50 + 1:
            raise DataError(f"{path}: this is a binary file, not text; expected a log or notes with a printed table.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        lenient = raw.decode("utf-8-sig", errors="replace")
    foreign = len(raw.translate(None, bytes(range(128))))
    if lenient.count("\ufffd") <= max(1, foreign // 20):  # a truncated or mixed log, not another encoding
        return lenient
    try:
        return raw.decode("gb18030")
    except UnicodeDecodeError:
        return lenient


def clean(text: str) -> list[str]:
    """Plain lines. A carriage return, as used by progress bars, begins a new line."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [_plain(line) for line in text.split("\n")]


def _plain(line: str) -> str:
    if len(line) > LONGEST_LINE:
        line = line[:LONGEST_LINE]
    if line.isascii():
        return line.rstrip()
    return unicodedata.normalize("NFKC", line)[:LONGEST_LINE].translate(_BARS).rstrip()


def words(lines: Sequence[str], most: int = 3) -> str:
    """The last few lines of text joined on one line, without rules, blank lines and progress bars."""
    kept: list[str] = []
    for line in reversed(lines):
        line = line.strip()
        if line and not is_rule(line) and not is_progress(line) and not _ECHO.match(line) and "+--" not in line and line.count("|") < 4:
            kept.append(line)
        if len(kept) == most:
            break
    text = " / ".join(line if len(line) <= 600 else line[:600] for line in reversed(kept))
    return printable(text if len(text) <= 300 else f"… {text[-300:]}", 310)


_ECHO = re.compile(r"\||\\[a-z]|</?[a-z][^<>]{0,60}>$|-{4,60} ?Planning|gt_[a-z_]{1,20} ?:|fut_valid_flag")
"""Lines of evaluators, other tables or markup, which do not describe a table."""
_RULE = re.compile(r"[\s+|:=_-]*")
_PROGRESS = re.compile(r"\[[> .=#-]{8,400}\]\s{0,4}(\d{1,9})/(\d{1,9})|\d{1,3}%\|.{0,200}\|\s?(\d{1,9})/(\d{1,9})\s?\[")


def is_rule(line: str) -> bool:
    """Whether a line only draws a border or is blank."""
    return not line or (line[0] in " \t+|:=_-" and _RULE.fullmatch(line) is not None)


def is_progress(line: str) -> bool:
    """Whether a line is a progress bar of mmcv or tqdm."""
    return ("]" in line or "%|" in line) and _PROGRESS.search(line) is not None


def counted(line: str) -> int | None:
    """The total of a finished progress bar: 6019 for `6019/6019`."""
    full = ">]" in line or "=]" in line or "#]" in line or "100%|" in line
    found = _PROGRESS.search(line) if full else None
    if not found:
        return None
    done, total = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(total) if done == total else None
