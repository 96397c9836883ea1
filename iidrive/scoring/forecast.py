"""The forecast table: counts per forecaster, summed over samples, and the metrics computed from the sums.

Metrics per horizon:

- mIoU and IoU, each grid in the ego frame that its forecaster predicts;
- in the *true* future ego frame: IoU, precision and recall of movers (see `movers`), IoU of movers that lie wholly inside the grid at t = 0, IoU of
  movers within the corridor of plausible plans, mIoU over movable classes, and mIoU of voxels out of sight at t = 0;
- the error of the predicted ego path.

A grid is resampled to the true frame at its cell centres by nearest cell; cells outside the forecast grid count as free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int64

from iidrive.core.classes import MOVABLE
from iidrive.core.scene import STEP_S
from iidrive.core.text import text_row
from iidrive.scoring import metrics
from iidrive.scoring.movers import MoverCounts
from iidrive.scoring.reliability import Reliability

Array = np.ndarray


ALL_CELLS, CORRIDOR = "all cells", "cells that plausible plans sweep"
"""The two sets of cells on which reliability is measured."""

ORACLE = "(oracle)"
"""Part of the name of a row that is given the ego's true future. Other privileged rows have a star in the table."""


@dataclass(frozen=True)
class RowCounts:
    """Sums over the samples of one forecaster, per horizon. Add the counts of several batches with `+`.

    Confusion matrices [truth, forecast]: `histogram` in the forecaster's own ego frame; `in_true_frame` in the true ego frame; `unseen` in the
    true frame, only voxels out of sight at t = 0. Mover cells: `movers` of all movers, `seen` of those wholly inside the grid at t = 0, `corridor`
    of those inside the corridor. `path_m`: sum of the distances between predicted and true ego positions, metres, over `paths` samples; 0 paths
    for a forecaster that predicts none.
    """

    samples: int
    histogram: Int64[Array, "H 18 18"]
    in_true_frame: Int64[Array, "H 18 18"]
    unseen: Int64[Array, "H 18 18"]
    movers: MoverCounts
    seen: MoverCounts
    corridor: MoverCounts
    path_m: Float[Array, "H"]
    paths: int = 0

    @staticmethod
    def zero(horizons: int) -> RowCounts:
        """No samples yet."""
        none = np.zeros((horizons, metrics.N_CLASSES, metrics.N_CLASSES), np.int64)
        movers = MoverCounts.zero(horizons)
        return RowCounts(0, none, none, none, movers, movers, movers, np.zeros(horizons))

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def _each(value: Callable[[Int64[Array, "18 18"]], float], matrices: Int64[Array, "H 18 18"]) -> list[float]:
    return [value(matrix) for matrix in matrices]


def movable_miou(matrix: Int64[Array, "18 18"]) -> float:
    """Mean IoU over the movable classes present in the truth or the forecast, 0..1; NaN if there is none."""
    iou = metrics.class_iou(matrix)[MOVABLE[: metrics.N_CLASSES]]
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")


FIGURES: dict[str, Callable[[RowCounts], list[float]]] = {
    "mIoU": lambda row: _each(metrics.miou, row.histogram),
    "IoU": lambda row: _each(metrics.iou_occupied, row.histogram),
    "movers_IoU": lambda row: row.movers.iou().tolist(),
    "movers_precision": lambda row: row.movers.precision().tolist(),
    "movers_recall": lambda row: row.movers.recall().tolist(),
    "movers_seen_IoU": lambda row: row.seen.iou().tolist(),
    "movable_mIoU": lambda row: _each(movable_miou, row.in_true_frame),
    "unseen_mIoU": lambda row: _each(metrics.miou, row.unseen),
    "corridor_IoU": lambda row: row.corridor.iou().tolist(),
    "path_error_m": lambda row: (row.path_m / row.paths if row.paths else np.full(len(row.path_m), np.nan)).tolist(),
}
"""Metrics of a row, per horizon, by their name in JSON: fractions 0..1, or metres. NaN where nothing was counted."""

_BLOCKS = (
    ("forecast, true ego frame", ("movers_IoU", "movers_precision", "movers_recall", "movers_seen_IoU")),
    ("forecast, true ego frame", ("movable_mIoU", "unseen_mIoU", "corridor_IoU", "path_error_m")),
)
_TITLES = {
    "movers_IoU": "movers IoU",
    "movers_precision": "movers precision",
    "movers_recall": "movers recall",
    "movers_seen_IoU": "IoU of those in sight",
    "movable_mIoU": "movable mIoU",
    "unseen_mIoU": "out of sight mIoU",
    "corridor_IoU": "movers IoU in corridor",
    "path_error_m": "path error (m)",
}


@dataclass(frozen=True)
class ForecastScores:
    """Counts per forecaster and horizon (`steps` of 0.5 s), and the number of samples.

    `ceiling`: counts of the true occupancy against the true boxes, for all movers and for those inside the grid at t = 0; no forecast can score
    higher. `privileged`: by row name, the future information that the row is given. `reliability`: the probabilities of a road user predicted by a
    world model with an occupancy flow, at the horizons ahead, on all cells (ALL_CELLS) and on the corridor (CORRIDOR).
    """

    samples: int
    rows: Mapping[str, RowCounts]
    steps: tuple[int, ...]
    ceiling: tuple[MoverCounts, MoverCounts] | None = None
    privileged: Mapping[str, str] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)

    @property
    def present(self) -> Int64[Array, "18 18"]:
        """How the voxels of the present come back from the tokens, [truth, decoded]: the world model's row at 0 s."""
        return self.rows["world model"].histogram[self.steps.index(0)]

    def miou(self, name: str) -> list[float]:
        """mIoU over the 17 non-free classes, per horizon. Classes in neither truth nor forecast are left out."""
        return self.figure(name, "mIoU")

    def iou(self, name: str) -> list[float]:
        """IoU of occupied voxels, per horizon."""
        return self.figure(name, "IoU")

    def figure(self, name: str, figure: str) -> list[float]:
        """One metric of `FIGURES` for a row, per horizon."""
        return FIGURES[figure](self.rows[name])

    def to_json(self) -> dict[str, object]:
        """Plain values; None where nothing was counted."""
        rows = {
            name: {"n": row.samples, **{figure: _plain(read(row)) for figure, read in FIGURES.items()}} for name, row in self.rows.items()
        }
        out: dict[str, object] = {"n": self.samples, "seconds": [s * STEP_S for s in self.steps], "rows": rows}
        if self.ceiling is not None:
            every, seen = self.ceiling
            out["movers_ceiling"] = {"movers_IoU": _plain(every.iou().tolist()), "movers_seen_IoU": _plain(seen.iou().tolist())}
        if self.reliability:
            out["reliability"] = {"seconds": self.ahead_s, **{name: counts.to_json() for name, counts in self.reliability.items()}}
        return {**out, "privileged": dict(self.privileged)}

    @property
    def ahead_s(self) -> list[float]:
        """The horizons ahead, seconds."""
        return [step * STEP_S for step in self.steps if step > 0]

    def table(self) -> str:
        """mIoU and IoU in percent, one row per forecaster; then the other metrics, if they were counted."""
        head = [f"{s * STEP_S:.0f} s" for s in self.steps]
        names = {name: name + (" *" if name in self.privileged and ORACLE not in name else "") for name in self.rows}
        width = max(len(n) for n in names.values()) + 2
        widths = (width, *(10 for _ in range(2 * len(head))))
        lines = [text_row(["forecast", *(f"mIoU {h}" for h in head), *(f"IoU {h}" for h in head)], widths)]
        for name, shown in names.items():
            lines.append(text_row([shown, *map(_percent, [*self.miou(name), *self.iou(name)])], widths))
        if self.ceiling is None:
            return "\n".join(lines)
        for title, figures in _BLOCKS:
            lines += ["", *self._block(title, figures, names, head, width)]
        return "\n".join([*lines, "", *self._notes()])

    def _block(self, title: str, figures: tuple[str, ...], names: Mapping[str, str], head: list[str], width: int) -> list[str]:
        groups = (width, *(8 * len(head) for _ in figures))
        widths = (width, *(8 for _ in range(len(head) * len(figures))))
        lines = [text_row([title, *(_TITLES[figure] for figure in figures)], groups), text_row(["", *head * len(figures)], widths)]
        for name, shown in names.items():
            cells = (_metres(v) if figure == "path_error_m" else _percent(v) for figure in figures for v in self.figure(name, figure))
            lines.append(text_row([shown, *cells], widths))
        if "movers_IoU" in figures:
            assert self.ceiling is not None
            every, seen = self.ceiling
            cells = (_percent(v) for v in [*every.iou(), *every.precision(), *every.recall(), *seen.iou()])
            lines.append(text_row(["true occupancy (ceiling)", *cells], widths))
        return lines

    def _notes(self) -> list[str]:
        notes = [f"* {name}: {knows}" for name, knows in self.privileged.items() if name in self.rows]
        notes += [f"{name}: {row.samples} samples" for name, row in self.rows.items() if row.samples != self.samples]
        when = " / ".join(f"{s:g}" for s in self.ahead_s)
        for where, counts in self.reliability.items():
            error, share = (" / ".join(_percent(v) for v in values) for values in (counts.error(), counts.share_taken()))
            notes.append(
                f"probability of a road user, {where}: calibration error {error} points at {when} s, where {share} % of the cells are occupied"
            )
        return notes


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _metres(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def _plain(values: list[float]) -> list[float | None]:
    return [None if np.isnan(v) else v for v in values]
