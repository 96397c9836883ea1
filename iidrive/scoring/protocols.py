"""Open-loop planning protocols by name: how each evaluator decides, averages and prints, and what its numbers mean.

A protocol is a pure function of a `Setting` (cases and planned paths) that returns per-sample values; `score` averages them. To add one, write a
file in `scoring/planning`, an entry in `PROTOCOLS`, and a test against that evaluator's own outputs. Numbers of different protocols are not
comparable, so each entry describes what its numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from iidrive.core.errors import ConfigError, unknown
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.scoring.cases import Cases
from iidrive.scoring.planning.bevplanner import bevplanner
from iidrive.scoring.planning.setting import VEHICLES, PlanningSteps, Setting, of_classes, road_users
from iidrive.scoring.planning.sparsedrive import sparsedrive
from iidrive.scoring.planning.stp3 import admlp, stp3
from iidrive.scoring.planning.uniad import uniad
from iidrive.scoring.planning.vad import occworld, vad

Averaging = Literal["prefix", "value", "prefix_float32", "horizon"]
"""How columns are computed from steps. `prefix`: mean of the steps up to each step, float64. `value`: the value of the step. `prefix_float32`:
mean of the steps up to 1, 2 and 3 s, float32. `horizon`: the per-sample values for 1, 2 and 3 s in `detail`, averaged over samples in float64."""
Layout = Literal["sparsedrive", "uniad", "stp3", "vad", "occworld", "bevplanner"]

_STEPS = tuple(f"{STEP_S * (t + 1):.1f}s" for t in range(FUTURE_STEPS))
_SECONDS = ("1s", "2s", "3s")
_ROWS = ("obj_col", "obj_box_col", "L2")
_FULL = "samples with six future keyframes"
_BLOCK = "a block of 8 x 4 cells of 0.5 m that is never rotated, -1.5..2.5 m forward"
_PATH_HEADING = "central difference including the origin, last step backward, straight ahead if the path's ends are within 0.5 m"


@dataclass(frozen=True)
class Protocol:
    """One evaluator.

    `rows`: the printed rows, in the evaluator's order. `columns`: labels of the columns. `averaged`: the columns whose mean is the single number
    of a row. `prefix`: prefix of its arrays in per-sample files; default: the name. `counts`: detection classes that are obstacles; empty: all.
    `with_points`: only boxes with lidar points are obstacles. `from_now`: only vehicles and humans that exist at t = 0 are obstacles. The other
    texts describe what the numbers mean.
    """

    name: str
    evaluate: Callable[[Setting], PlanningSteps]
    averaging: Averaging
    layout: Layout
    columns: tuple[str, ...]
    averaged: tuple[int, ...]
    frame: str
    obstacles: str
    ego_box: str
    heading: str
    meaning: str
    samples: str
    rows: tuple[str, ...] = _ROWS
    prefix: str = ""
    counts: tuple[str, ...] = ()
    with_points: bool = False
    from_now: bool = False

    def has_obstacles(self, cases: Cases) -> bool:
        """Whether the cases hold at least one box that counts as an obstacle. Without one, zero collisions would be meaningless."""
        use = cases.box_t == 0 if self.from_now else cases.box_t > 0
        if self.from_now:
            use = use & road_users(cases)[cases.box_label]
        elif self.counts:
            use = use & of_classes(cases, self.counts)[cases.box_label]
        return bool((use & cases.box_valid if self.with_points else use).any())


_ALL = (
    Protocol(
        name="sparsedrive",
        evaluate=sparsedrive,
        averaging="prefix",
        layout="sparsedrive",
        columns=_STEPS,
        averaged=(1, 3, 5),
        frame="lidar, x right, y forward",
        obstacles="all classes with lidar points, at the same step; obj_col is the true path's own collision rate",
        ego_box="4.084 x 1.85 m polygon, centre 0.5 m ahead along the heading; touching counts",
        heading=_PATH_HEADING,
        meaning="each column is the mean of the steps up to it; avg is the mean of the 1 s, 2 s and 3 s columns",
        samples=f"{_FULL} (5119 on nuScenes val)",
        with_points=True,
    ),
    Protocol(
        name="uniad",
        evaluate=uniad,
        averaging="value",
        layout="uniad",
        columns=_STEPS,
        averaged=(1, 3, 5),
        frame="lidar, x right, y forward",
        obstacles="vehicles and cycles, with or without lidar points, drawn in 0.5 m cells; no pedestrians",
        ego_box=_BLOCK,
        heading="none",
        meaning="each column is the value at that step, over all samples: missing futures count as 0",
        samples="all samples (6019 on nuScenes val)",
        counts=VEHICLES,
    ),
    Protocol(
        name="stp3",
        evaluate=stp3,
        averaging="prefix_float32",
        layout="stp3",
        columns=_SECONDS,
        averaged=(0, 1, 2),
        frame="lidar path on an ego-frame image (0.94 m lever arm ignored)",
        obstacles="vehicles and humans that exist at t = 0, with or without lidar points, in 0.5 m cells of their own keyframe, warped",
        ego_box=_BLOCK,
        heading="none",
        meaning="each column is the mean of the steps up to it",
        samples=f"{_FULL} (and, in the original, two past ones: 4819 on nuScenes val)",
        from_now=True,
    ),
    Protocol(
        name="vad",
        evaluate=vad,
        averaging="horizon",
        layout="vad",
        columns=_SECONDS,
        averaged=(0, 1, 2),
        frame="lidar, x right, y forward; rows reversed",
        obstacles="vehicles and humans with lidar points and |x| < 15 m, |y| < 30 m at t = 0, moved by their displacements, in 0.5 m cells",
        ego_box=f"{_BLOCK}; the reversed rows shift it by up to a cell",
        heading="none",
        meaning="each column is the mean of the steps up to it; obj_col reads cells about 25 m beside the point",
        samples=f"{_FULL} (5119 on nuScenes val)",
        rows=("L2", "obj_col", "obj_box_col"),
        with_points=True,
        from_now=True,
    ),
    Protocol(
        name="occworld",
        evaluate=occworld,
        averaging="horizon",
        layout="occworld",
        columns=_SECONDS,
        averaged=(0, 1, 2),
        frame="lidar, x right, y forward; rows reversed",
        obstacles="as vad, without the range filter",
        ego_box=f"{_BLOCK}; the reversed rows shift it by up to a cell",
        heading="none",
        meaning="each column is the mean of the steps up to it; obj_col reads cells about 25 m beside the point",
        samples=f"{_FULL} (and, in the original, enough past ones: 4219 on nuScenes val)",
        rows=("L2", "obj_col", "obj_box_col"),
        prefix="vad_norange",
        with_points=True,
        from_now=True,
    ),
    Protocol(
        name="admlp",
        evaluate=admlp,
        averaging="prefix_float32",
        layout="stp3",
        columns=_SECONDS,
        averaged=(0, 1, 2),
        frame="lidar path on an ego-frame image (0.94 m lever arm ignored)",
        obstacles="as stp3",
        ego_box=_BLOCK,
        heading="none",
        meaning="as stp3, but plans within 0.1 m of the origin count as standing still; obj_col is always 0",
        samples=f"{_FULL} (and, in the original, two past ones: 4819 on nuScenes val)",
        from_now=True,
    ),
    Protocol(
        name="bevplanner",
        evaluate=bevplanner,
        averaging="horizon",
        layout="bevplanner",
        columns=_SECONDS,
        averaged=(0, 1, 2),
        frame="ego, x forward, y left; rear axle",
        obstacles="vehicles and cycles with lidar points, in 0.1 m cells; no pedestrians",
        ego_box="4.084 x 1.85 m in cells of 0.1 m, centre 1.49 m ahead of the rear axle, rotated cell by cell",
        heading="direction of the last step; 0 if that step is under 1 m",
        meaning="L2: mean of the steps up to it; collisions: fraction of samples that collide at any step up to it",
        samples=_FULL,
        rows=("L2", "obj_col", "obj_box_col"),
        counts=VEHICLES,
        with_points=True,
    ),
)

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ALL}
"""All protocols by name."""


def protocol_named(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError for an unknown name, suggesting the nearest known one."""
    if name not in PROTOCOLS:
        raise ConfigError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


def protocols_named(names: str | Sequence[str]) -> tuple[str, ...]:
    """Protocol names from `"a,b,c"`, a sequence or `"all"`, without duplicates. Raises ConfigError for an unknown name or no name."""
    asked = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)
    asked = [name for name in asked if name]
    if not asked:
        raise ConfigError(f"no protocol was named; give some of {', '.join(PROTOCOLS)}, or all.")
    if asked == ["all"]:
        return tuple(PROTOCOLS)
    return tuple(dict.fromkeys(protocol_named(name).name for name in asked))
