"""Reader of untrusted JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.files import decode, read_bytes

LIMIT = 1 << 28
"""Maximum size of a JSON file, bytes."""
MOST_LEVELS = 100
_CHUNK = 1 << 20

Pairs = list[tuple[str, Any]]


def read_json(path: str | Path, limit: int = LIMIT, repeated: Callable[[list[str]], str] | None = None) -> Any:
    """Read a JSON file in UTF-8.

    Args:
        path: the file.
        limit: maximum size, bytes.
        repeated: error text for the keys that an object repeats; None for the default text.

    Raises:
        DataError: naming the file, if it is missing, too large, not UTF-8, not JSON, nested more than 100 levels deep, holds an integer of
            more than 4300 digits (Python's limit), or has an object with a repeated key.
    """
    where = printable_line(str(path))
    return parse_json(decode(read_bytes(path, limit), where), where, repeated)


def parse_json(text: str | bytes, where: str, repeated: Callable[[list[str]], str] | None = None) -> Any:
    """Parse JSON text. `where` is the file name for errors. Raises DataError as `read_json` does."""

    def once(pairs: Pairs) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            again = list(dict.fromkeys(key for key, _ in pairs if key in seen or seen.add(key)))
            told = repeated(again) if repeated else f"the key '{printable(again[0])}' is given twice; keep one"
            raise DataError(f"{where}: {told}.")
        return found

    if isinstance(text, bytes):
        text = decode(text, where)
    try:
        found = json.loads(text, object_pairs_hook=once)
    except DataError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else printable(str(error), 120)
        raise DataError(f"{where}: not readable as JSON ({said}); write it again.") from error
    if _may_be_deep(text) and _is_deep(found):
        raise DataError(f"{where}: not readable as JSON (nested more than {MOST_LEVELS} levels deep); write it again.")
    return found


def _may_be_deep(text: str) -> bool:
    """False if at most `MOST_LEVELS` brackets are open at once. Brackets inside strings count too, so True needs a second check."""
    depth = 0
    for start in range(0, len(text), _CHUNK):
        codes = np.frombuffer(text[start : start + _CHUNK].encode("utf-32-le", "surrogatepass"), np.uint32) | 32  # [ and {, ] and }
        steps = (codes == ord("{")).astype(np.int32) - (codes == ord("}"))
        if depth + int(steps.cumsum().max(initial=0)) > MOST_LEVELS:
            return True
        depth += int(steps.sum())
    return False


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]
        if not level:
            return False
    return True


def is_json(text: bytes) -> bool:
    """Whether a text is valid JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return False
    return True


def all_numbers(rows: Iterable[Iterable[object]]) -> bool:
    """Whether rows hold integers and floats alone: NumPy would take true for 1 and "1.5" for 1.5."""
    return set(map(type, chain.from_iterable(rows))) <= {int, float}
