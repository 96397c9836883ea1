"""The cells of a transfer table, and printing.

Shapes: H horizons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from iidrive.core.text import aligned
from iidrive.scoring.forecast import FIGURES, RowCounts

FEW_SCENES = 10
"""Tables with fewer test scenes than this get a warning."""
_RESAMPLES = 1999
_SEED = 20230


@dataclass(frozen=True)
class Cell:
    """A number with the 95 % interval of a bootstrap over scenes, NaN if unknown."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    @staticmethod
    def of_counts(scenes: Sequence[RowCounts], figure: str, horizon: int) -> Cell:
        """A metric of forecasts in percent, pooled over all scenes, with its bootstrap interval."""

        def read(drawn: Sequence[RowCounts]) -> float:
            return 100 * FIGURES[figure](reduce(add, drawn))[horizon]

        if len(scenes) < 2:
            return Cell(read(scenes))
        rng = np.random.default_rng(_SEED)
        picks = np.unique(np.sort(rng.integers(len(scenes), size=(_RESAMPLES, len(scenes))), axis=1), axis=0, return_counts=True)
        values = np.repeat([read([scenes[k] for k in pick]) for pick in picks[0]], picks[1])
        if not np.isfinite(values).any():
            return Cell(read(scenes))
        return Cell(read(scenes), *(float(v) for v in np.nanpercentile(values, (2.5, 97.5))))

    def shown(self) -> str:
        """`1.23 (0.98 to 1.51)`; `-` without a value."""
        if np.isnan(self.value):
            return "-"
        value, low, high = (f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}" for v in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} ({low} to {high})"

    def to_json(self) -> dict[str, float | None]:
        """Plain values; None instead of NaN."""
        return {name: None if np.isnan(value) else float(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Measured:
    """One row of the table, the averages of every protocol, the parts of the followed plans' score, and why protocols are left out."""

    name: str
    cells: Mapping[str, Cell]
    protocols: Mapping[str, Mapping[str, float]]
    driven: Mapping[str, Any]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        protocols = {
            name: {key: None if np.isnan(value) else float(value) for key, value in average.items()}
            for name, average in self.protocols.items()
        }
        cells = {name: cell.to_json() for name, cell in self.cells.items()}
        return {**cells, "protocols": protocols, "left_out": list(self.left_out), "pdm": dict(self.driven)}


def table(rows: Sequence[Measured]) -> str:
    """Planning and driving, then the forecast; intervals over scenes in brackets."""
    names = list(rows[0].cells)
    blocks = (names[:3], names[3:6], names[6:])
    return "\n\n".join(
        aligned([["trained on", *block], *([row.name, *(row.cells[name].shown() for name in block)] for row in rows)]) for block in blocks
    )
