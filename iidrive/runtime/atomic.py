"""Files that are whole or absent: written under a temporary name beside the target, then renamed."""

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
    """A temporary path to write; it becomes `path` when the block ends, and is removed when the block fails.

    A process that is killed can leave it behind, as `.NAME.….tmp`. A link to a regular file stays a link: the file is written.

    Raises:
        DataError: if something else than a regular file is there, which would be replaced.
        OSError: where it cannot be written; the folder must exist.
    """
    require_regular(path)
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: str | Path, content: bytes | str) -> Path:
    """Write bytes, or text as UTF-8 (lone surrogates escaped). Raises DataError and OSError as `whole` does."""
    path, content = Path(path), content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    for tried in range(_TRIES):
        try:
            with whole(path) as temporary:
                temporary.write_bytes(content)
            break
        except FileNotFoundError:  # another process may have taken the temporary file for a leftover: once more
            if not path.parent.is_dir() or tried + 1 == _TRIES:
                raise
    return path
