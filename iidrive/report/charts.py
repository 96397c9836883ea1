"""Charts of planner scores over time and of the calibration of probabilities.

Shapes: S steps, H horizons, K probability bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iidrive.report.drawing import PLAN_STYLES, write_png

Array = np.ndarray

_DPI = 110
_INK, _SOFT, _GRID = "#1d2129", "#5b6472", "#e3e6ea"


@dataclass(frozen=True)
class Curve:
    """A planner's mean L2 (S,), metres, and collision rate (S,), 0..1, at each step; NaN if unknown."""

    name: str
    l2_m: Float[Array, "S"]
    collision: Float[Array, "S"]


def planner_chart(curves: Sequence[Curve], seconds: Sequence[float], path: Path | str) -> Path:
    """Write one PNG: L2 over time on the left, the fraction of colliding samples on the right, one line per planner. Returns the path."""
    figure = Figure(figsize=(11, 3.9), dpi=_DPI, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, curve in enumerate(curves):
        colour, dashes, marker = PLAN_STYLES[k % len(PLAN_STYLES)]
        filled = colour if k < len(PLAN_STYLES) else "white"
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markerfacecolor": filled, "markersize": 5, "linewidth": 1.6}
        left.plot(seconds, curve.l2_m, label=curve.name, **style)
        right.plot(seconds, 100 * curve.collision, label=curve.name, **style)
    for axes, title in ((left, "distance from the true path (L2), m"), (right, "samples that collide at this step, %")):
        _plain(axes, title)
        axes.set_xlabel("seconds ahead", color=_SOFT)
        axes.set_xticks(list(seconds))
        axes.set_ylim(bottom=0)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return write_png(FigureCanvasAgg(figure), path)


@dataclass(frozen=True)
class Calibration:
    """Cells binned by predicted probability, per horizon: number of cells, mean prediction, and fraction truly occupied."""

    cells: Int[Array, "H K"]
    mean: Float[Array, "H K"]
    taken: Float[Array, "H K"]


def reliability_chart(places: Mapping[str, Calibration], seconds: Sequence[float], path: Path | str, fewest: int = 50) -> Path:
    """Write one PNG: for each set of cells, the fraction occupied against the predicted probability, one line per horizon.

    Perfect calibration is the diagonal. Bins with fewer than `fewest` cells are left out. Returns the path.
    """
    figure = Figure(figsize=(4.6 * len(places) + 1.2, 4.4), dpi=_DPI, facecolor="white", layout="constrained")
    for axes, (place, found) in zip(np.atleast_1d(figure.subplots(1, len(places))), places.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle=":")
        for h, when in enumerate(seconds):
            colour, dashes, marker = PLAN_STYLES[h % len(PLAN_STYLES)]
            shown = found.cells[h] >= fewest
            axes.plot(found.mean[h][shown], found.taken[h][shown], color=colour, linestyle=dashes, marker=marker, label=f"{when:g} s")
        _plain(axes, place)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xlabel("predicted probability", color=_SOFT)
        axes.set_ylabel("fraction occupied", color=_SOFT)
        axes.legend(frameon=False, loc="upper left")
    return write_png(FigureCanvasAgg(figure), path)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, color=_INK, loc="left")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GRID)
