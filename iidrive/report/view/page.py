"""Write one sample as an interactive 3-D page: true and predicted occupancy, boxes, candidates and the chosen plan.

The page is one file: data, style, and a bundle of web/view.js with three.js (web/package.json builds it). Grids travel packed by gzip.

Shapes: S time steps, n boxes, X, Y, Z voxels. All positions are in the current ego frame, metres: x forward, y left, z up.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from jinja2 import Environment, StrictUndefined

from iidrive.core.classes import FREE, MOVABLE, OCC, OCC_CLASSES, OCC_COLOURS
from iidrive.core.errors import DataError
from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M
from iidrive.core.scene import GridSpec
from iidrive.runtime import atomic

Array = np.ndarray

EGO_HEIGHT_M = 1.6
GROUND = ("driveable_surface", "other_flat", "sidewalk", "terrain")


@dataclass(frozen=True)
class Panel:
    """Occupancy `labels` (S,X,Y,Z) at every time step, their ego `frames` (S,4,4), and the ego's rear axle `ego` (S,3): x, y, yaw."""

    labels: UInt8[Array, "S X Y Z"]
    frames: Float[Array, "S 4 4"]
    ego: Float[Array, "S 3"]


@dataclass(frozen=True)
class Candidate:
    """A candidate path `points_m` (7,2), starting at the current position; its collision probability `risk` (0..1); and the cells of its row."""

    name: str
    points_m: Float[Array, "7 2"]
    risk: float
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """The content of a page.

    `boxes`: (n,7) at every time step: centre, length, width, height, yaw. `path_m` (7,2): the true path, starting at the current position.
    `headings`: header of the candidates' rows. `chosen`: index of the chosen candidate (-1: none). `note`: explanation of the rows.
    `marks`: marks of the model's lineage, shown at the top.

    Raises:
        DataError: if a panel does not fit the grid or the number of time steps.
    """

    title: str
    lead: str
    spec: GridSpec
    seconds: Sequence[float]
    true: Panel
    boxes: Sequence[Float[Array, "n 7"]]
    imagined: Panel | None = None
    path_m: Float[Array, "7 2"] | None = None
    candidates: Sequence[Candidate] = ()
    headings: Sequence[str] = ()
    chosen: int = -1
    note: str = "Dashed: the true path."
    facts: Sequence[tuple[str, str]] = ()
    marks: Sequence[str] = ()

    def __post_init__(self) -> None:
        moments = len(self.seconds)
        for name, panel in (("true", self.true), ("imagined", self.imagined)):
            if panel is not None and panel.labels.shape != (moments, *self.spec.shape):
                raise DataError(f"view: {name} occupancy must be {(moments, *self.spec.shape)}; found {panel.labels.shape}.")
        if len(self.boxes) != moments:
            raise DataError(f"view: boxes of {moments} moments are needed; found {len(self.boxes)}.")


def write_view(view: View, path: Path | str) -> Path:
    """Write the page atomically, create its folder, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, render_view(view))


def render_view(view: View) -> str:
    """The page as HTML text."""
    web = files("iidrive.report.view") / "web"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((web / "view.html").read_text(encoding="utf-8")).render(
        title=view.title,
        lead=view.lead,
        facts=view.facts,
        marks=view.marks,
        headings=view.headings,
        note=view.note,
        style=(web / "view.css").read_text(encoding="utf-8"),
        bundle=(web / "view.bundle.js").read_text(encoding="utf-8"),
        data=_json(view),
    )


def _json(view: View) -> str:
    """The data for the page's script as JSON. `<` is escaped, so that no text can end the surrounding element."""
    panels = {"true": view.true, **({"imagined": view.imagined} if view.imagined is not None else {})}
    grids = np.concatenate([panel.labels.reshape(-1) for panel in panels.values()])
    data = {
        "shape": view.spec.shape,
        "lower": view.spec.lower_m,
        "voxel": view.spec.voxel_m,
        "seconds": list(view.seconds),
        "classes": OCC_CLASSES,
        "colours": OCC_COLOURS.tolist(),
        "free": FREE,
        "movable": np.flatnonzero(MOVABLE).tolist(),
        "ground": [OCC[name] for name in GROUND],
        "grids": base64.b64encode(gzip.compress(grids.tobytes(), 9, mtime=0)).decode(),
        "panels": {name: {"frames": _rounded(panel.frames), "ego": _rounded(ego_boxes(panel.ego))} for name, panel in panels.items()},
        "boxes": [_rounded(boxes) for boxes in view.boxes],
        "path": [] if view.path_m is None else _rounded(view.path_m),
        "candidates": [
            {"name": one.name, "points": _rounded(one.points_m), "risk": round(float(one.risk), 4), "told": list(one.told)}
            for one in view.candidates
        ],
        "chosen": view.chosen,
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def ego_boxes(ego: Float[Array, "S 3"]) -> Float[Array, "S 7"]:
    """The ego's box at every time step from its rear axle: centre, length, width, height, yaw."""
    x, y, yaw = ego.T
    centre = [x + EGO_CENTRE_M * np.cos(yaw), y + EGO_CENTRE_M * np.sin(yaw), np.full(len(ego), EGO_HEIGHT_M / 2)]
    size = [np.full(len(ego), metres) for metres in (*EGO_SIZE_M, EGO_HEIGHT_M)]
    return np.stack([*centre, *size, yaw], 1)


def _rounded(values: Array) -> list[object]:
    return np.round(np.asarray(values, np.float64), 3).tolist()
