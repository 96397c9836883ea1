"""The version of the package, written into every run and checkpoint."""

from __future__ import annotations

VERSION = "0.2.0"
