"""Atomic file writes: a file is written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iidrive.core.untrusted.files import require_regular

_TRIES = 20


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Context manager that yields a temporary path. It is renamed to `path` when the block ends, and removed if the block fails.

    A killed process may leave the temporary file `.NAME.….tmp` behind. If `path` is a link, the file that it points to is replaced.

    Raises:
        DataError: if `path` exists and is not a regular file.
        OSError: naming `path`, if it cannot be written. The folder must exist.
    """
    require_regular(path)
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | Path, content: bytes | str) -> Path:
    """Write bytes, or text as UTF-8 with lone surrogates escaped. Raises DataError and OSError as `whole` does."""
    path, content = Path(path), content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    for tried in range(_TRIES):
        try:
            with whole(path) as temporary:
                temporary.write_bytes(content)
            break
        except FileNotFoundError:  # another process may have removed the temporary file as stale; try again
            if not path.parent.is_dir() or tried + 1 == _TRIES:
                raise
    return path
