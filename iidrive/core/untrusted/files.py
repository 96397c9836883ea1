"""Reading files with a size limit, and checks before a file is overwritten."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from iidrive.core.errors import DataError
from iidrive.core.text import printable, printable_line


def read_bytes(path: str | Path, limit: int, missing: str = "check its name") -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        DataError: if it is missing, not a regular file, unreadable, or larger.
    """
    where = printable_line(str(path))
    length = require_file(path, missing)
    if length > limit:
        raise DataError(f"{where}: {length} bytes, more than the {size(limit)} that such a file may have.")
    try:
        with open(path, "rb") as file:
            content = file.read(length + 1)  # not `limit`: read() would allocate that much at once
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(content) > length:
        raise DataError(f"{where}: the file grew while it was read; wait until it is complete.")
    return content


def require_file(path: str | Path, missing: str = "check its name") -> int:
    """Size of a regular file, bytes. The file is not opened, so a pipe cannot block this.

    Raises:
        DataError: if it is missing or not a regular file.
    """
    where = printable_line(str(path))
    try:
        about = os.stat(path)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; {missing}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(about.st_mode):
        kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
        raise DataError(f"{where}: cannot be read, it is {kind}; give a regular file.")
    return about.st_size


def decode(content: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: for any other encoding.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "; it begins like UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
        raise DataError(f"{where}: not text in UTF-8 ({error.reason} at byte {error.start}{found}); write it again as UTF-8.") from error


def require_regular(path: str | Path) -> None:
    """Check that a path may be written: it does not exist yet, or is a regular file or a link to one.

    Raises:
        DataError: for a folder, device, pipe, socket or broken link, or a path inside something that is not a folder.
    """
    where = printable(str(path), 200)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise DataError(f"{where}: cannot be written, it is a link to something that is not there; remove the link.") from None
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be written ({getattr(error, 'strerror', None) or error}); name another file.") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else "not a regular file"
        raise DataError(f"{where}: cannot be written, it is {kind}; name a regular file or one that does not exist yet.")


def size(count: int) -> str:
    """A number of bytes as text, such as `1 GiB` or `256 MiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):g} {unit}"
    return f"{count} bytes"
