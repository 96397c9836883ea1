"""What the public evaluators gave on the shared protocol cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["planning", "occ"]


def protocols(shared: Path) -> Path:
    """The folder with inputs and outputs of the public evaluators."""
    return shared / "fixtures" / "protocols"


def outputs(shared: Path, kind: Kind) -> dict[str, np.ndarray]:
    """Arrays by name: every decision, distance or histogram."""
    with np.load(protocols(shared) / f"{kind}_outputs.npz") as found:
        return {key: found[key] for key in found.files}


def aggregates(shared: Path, kind: Kind) -> dict[str, Any]:
    """Averages and printed tables by name."""
    return json.loads((protocols(shared) / f"{kind}_aggregate.json").read_text())
