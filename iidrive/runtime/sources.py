"""Digest of iidrive's own source files, for results on disk that they decide."""

from __future__ import annotations

import hashlib
import json
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


def named_by(name: str, identity: Sequence[object]) -> str:
    """A name for results on disk: `name` without spaces and punctuation, and eight hex digits of `identity`, which is all that decides them."""
    mark = hashlib.sha256(json.dumps([name, *identity], sort_keys=True, default=str).encode()).hexdigest()
    return f"{name.replace(' ', '-').replace(',', '').replace(chr(39), '')}-{mark[:8]}"
