"""Closed-loop drives as an image strip: one row per driver, one bird's-eye view per time step, the ego's heading up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.core.scene import Pose, VectorMap
from iidrive.report.drawing import draw_map, to_picture, write_png

Array = np.ndarray

_LOW_M, _HIGH_M = np.array([-16.0, -12.0]), np.array([16.0, 28.0])
"""Corners of a view, metres to the right of and ahead of the rear axle."""

_MOMENT_IN, _NAME_IN, _HEAD_IN = (1.9, 2.375), 1.5, 0.75
_OWN, _OTHER, _HIT, _REFERENCE = "#56B4E9", "#c9ccd1", "#D55E00", "#007A5A"


@dataclass(frozen=True)
class DriveRow:
    """One driver of a scene over T time steps, in the global frame.

    Rear axle `xy_m`, `yaw_rad`, `speed_mps`; corners of the ego `own_m` (T,4,2) and of other objects `others_m` (T,n,4,2). `touched` (T,n): whether
    the ego has touched an object. `said`: text below the name. `ended`: text at the last time step of a drive that ended early.
    """

    name: str
    said: str
    xy_m: Float[Array, "t 2"]
    yaw_rad: Float[Array, "t"]
    speed_mps: Float[Array, "t"]
    own_m: Float[Array, "t 4 2"]
    others_m: Float[Array, "t n 4 2"]
    touched: Bool[Array, "t n"]
    ended: str = ""


def drive_strip(
    title: str, layers: VectorMap, rows: list[DriveRow], reference_m: Float[Array, "t 2"], path: Path | str, step_s: float, moments: int = 7
) -> Path:
    """Write a PNG with one row per drive of a scene, each with `moments` views evenly spread over the longest drive. Returns the path.

    `reference_m`: path of the reference driver, global frame. `step_s`: seconds per time step.

    Raises:
        DataError: if there are no rows.
    """
    if not rows:
        raise DataError(f"{title}: there is no drive to draw.")
    last = max(len(row.yaw_rad) for row in rows) - 1
    at = np.linspace(0, last, moments).round().astype(int)
    width, height = _NAME_IN + moments * _MOMENT_IN[0], _HEAD_IN + len(rows) * _MOMENT_IN[1]
    figure = Figure(figsize=(width, height), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1 / width, 1 - 0.28 / height, title, fontsize=12, weight="bold", va="center")
    legend = "blue: ego   orange: touched   green: the way of the town's own driver"
    figure.text(0.1 / width, 1 - 0.55 / height, legend, fontsize=9, color="#555555", va="center")
    for k, row in enumerate(rows):
        bottom = height - _HEAD_IN - (k + 1) * _MOMENT_IN[1]
        figure.text(0.1 / width, (bottom + _MOMENT_IN[1] / 2) / height, f"{row.name}\n{row.said}", fontsize=9, va="center")
        end = len(row.yaw_rad) - 1
        for j, moment in enumerate(at):
            if j and at[j - 1] >= end:
                break  # this drive has already ended
            left = _NAME_IN + j * _MOMENT_IN[0]
            place = (left + 0.03) / width, (bottom + 0.2) / height, (_MOMENT_IN[0] - 0.06) / width, (_MOMENT_IN[1] - 0.25) / height
            _moment(figure.add_axes(place), layers, row, reference_m, int(moment), step_s)
    return write_png(canvas, path)


def _moment(axes: Axes, layers: VectorMap, row: DriveRow, reference_m: Array, moment: int, step_s: float) -> None:
    axes.set(xlim=(_LOW_M[0], _HIGH_M[0]), ylim=(_LOW_M[1], _HIGH_M[1]), xticks=[], yticks=[], facecolor="#fafaf8")
    here = min(moment, len(row.yaw_rad) - 1)
    over = moment >= len(row.yaw_rad) - 1 and bool(row.ended)
    pose = Pose.from_xy_yaw(float(row.xy_m[here, 0]), float(row.xy_m[here, 1]), float(row.yaw_rad[here])).matrix
    ego_T_global = geometry.invert(pose)

    def shown(points: Array) -> Array:
        return to_picture(geometry.apply(ego_T_global, np.concatenate([points, np.zeros((*points.shape[:-1], 1))], -1)))

    draw_map(axes, layers, pose, _LOW_M, _HIGH_M)
    axes.plot(*shown(reference_m).T, color=_REFERENCE, lw=1.2, zorder=3)
    axes.plot(*shown(row.xy_m[: here + 1]).T, color=_OWN, lw=1.6, zorder=3)
    touched = row.touched[here]
    colours = [_HIT if hit else _OTHER for hit in touched]
    axes.add_collection(PolyCollection(list(shown(row.others_m[here])), facecolors=colours, edgecolors="#333333", linewidths=0.6, zorder=4))
    axes.add_collection(PolyCollection([shown(row.own_m[here])], facecolors=_OWN, edgecolors="black", linewidths=1.0, zorder=5))
    said = row.ended if over else f"{row.speed_mps[here]:.1f} m/s"
    axes.set_xlabel(f"{here * step_s:.1f} s   {said}", fontsize=8, color=_HIT if over else "#333333", labelpad=2)
    for spine in axes.spines.values():
        spine.set(color=_HIT if over else "#aaaaaa", linewidth=1.6 if over else 0.8)
