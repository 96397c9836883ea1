"""Digest of iidrive's own source files, for results on disk that they decide."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of iidrive's source files."""


def source_digest(patterns: Sequence[str], package: Path = PACKAGE) -> str:
    """SHA-256 of the names and contents of the files below `package` that match one of the glob patterns, in order of name."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in package.glob(pattern)}):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
