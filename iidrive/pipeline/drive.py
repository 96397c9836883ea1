"""Drive planners in closed loop and score them in one table, with the baselines and the town's own driver."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from iidrive.core import geometry
from iidrive.core.batch import Inputs
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.core.lineage import mark_lines, mark_numbers
from iidrive.core.version import VERSION
from iidrive.data.town.source import Town
from iidrive.pipeline.arms import TestII
from iidrive.pipeline.drivers import Driver, driver_of, drivers_of, subject_of
from iidrive.pipeline.evaluate import Assessment
from iidrive.pipeline.recipes import Recipe, small
from iidrive.pipeline.testset import TestSet
from iidrive.report.drive_strip import DriveRow, drive_strip
from iidrive.report.page import Page, Table, write_index
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.runtime.sources import PACKAGE, named_by, source_digest
from iidrive.scoring.driving.epdms import DriveScore, score_drive
from iidrive.scoring.driving.rollout import Rollout
from iidrive.scoring.driving.summary import DIFFERENCES, Difference, Row, left_out_parts, parts_table, rates, table, text
from iidrive.scoring.driving.tracking import DT_S
from iidrive.scoring.driving.tracking_error import TrackingError, tracking_error
from iidrive.simulation.driven import LEVER_M, road_of
from iidrive.simulation.kept import read_rollout, write_rollout
from iidrive.simulation.loop import LoopConfig, Starts, drive_expert, drive_scenes
from iidrive.training.checkpoint import Checkpoint

EXPERT = "town's driver"
_MOVES_MPS = 0.1


@dataclass(frozen=True)
class Driven:
    """Results of several drivers in the same scenes.

    `rows`: one per driver, the town's own driver first. `drives`: rollouts by row name. `left_out`: scenes that start off the road and
    cannot be scored. `tracking`: how closely the controller follows the town's own driver in these scenes; None if no drive has 3 s.
    """

    town: Town
    rows: tuple[Row, ...]
    drives: Mapping[str, Sequence[Rollout]]
    left_out: tuple[str, ...] = ()
    tracking: TrackingError | None = None

    def text(self) -> str:
        """The table of all rows."""
        return "\n".join([text(self.rows, per_km=True), *self.notes()])

    def notes(self) -> list[str]:
        """Notes below the table."""
        notes = []
        if error := self.tracking:
            cm = f"{100 * error.mean_m:.1f} cm on average and {100 * error.worst_m:.1f} cm at worst"
            notes.append(f"tracking error: the controller follows the path of the {EXPERT} within {cm}")
        if self.left_out:
            scenes = f"{len(self.left_out)} of the scenes"
            notes.append(f"left out, {scenes}: the map has no road where the ego starts ({', '.join(self.left_out)})")
        return notes

    def row(self, name: str) -> Row:
        """The row of a driver."""
        return next(row for row in self.rows if row.name == name)


def drive(
    planner: str | Callable[[Inputs], Tensor],
    town: Town,
    split: str = "test",
    scenes: int = 0,
    test_ii: Sequence[TestII] = ("off", "on"),
    config: LoopConfig | None = None,
    run: str | Path = "runs/drive",
) -> Driven:
    """Drive a planner in closed loop through scenes of a town. This is `iidrive.drive`.

    Args:
        planner: a planner as for `iidrive drive`, or a function from a batch of inputs to paths (B,6,2) of LIDAR_TOP, lidar frame, metres.
        town: the synthetic town.
        split: the split.
        scenes: number of scenes; 0: all scenes of the split.
        test_ii: the predicted futures to plan with, one row each.
        config: closed-loop settings.
        run: run folder; drives in it are reused. Those of a function are reused only if it is an unchanged function of a source file, not a
            lambda, a function made by another one, or an object.

    Raises:
        ConfigError: for a model that does not plan, a planner that never moves, or an unknown split.
    """
    names = tuple(town.scene_names(split)[: scenes or None])
    on = TestSet(town, split, Run.start(run, {"what": "drive", "data": town.identity(), "split": split}, resume=True), names)
    if callable(planner):
        drivers = [driver_of(planner, getattr(planner, "__name__", "planner"))]
    else:
        drivers = drivers_of(subject_of(planner), test_ii, on, small())
    return drive_all(drivers, on, config or LoopConfig())


def drive_rows(
    subject: str | Checkpoint,
    test_ii: Sequence[TestII],
    on: TestSet,
    recipe: Recipe,
    config: LoopConfig,
    beside: Sequence[str],
    table: Path | None = None,
) -> Assessment:
    """Drive a planner, the town's own driver and the baselines `beside` through the scenes of a test set, and score them.

    Existing drives in the run folder are reused, and those in the run folder `table` if it is given. Writes `drive.txt`, `drive.json` and
    `scenes.jsonl`.

    Raises:
        ConfigError: as `drive_all` does.
    """
    asked = drivers_of(subject, test_ii, on, recipe)
    known = [driver.name for driver in asked]
    driven = drive_all([d for name in beside if name not in known for d in drivers_of(name, (), on, recipe)] + asked, on, config, table)
    if on.run.process_group.is_rank_zero:
        draw(driven, known, on.run.folder / "pictures")
    return _written(driven, asked, on, config)


def drive_all(drivers: Sequence[Driver], on: TestSet, config: LoopConfig, table: Path | None = None) -> Driven:
    """Drive the town's own driver and `drivers` through the scenes of a test set, and score them.

    Existing drives in the run folder are reused, and those in the run folder `table` if it is given.

    Raises:
        ConfigError: for data other than towns, for scenes without a road, and for a planner that never moves.
    """
    town = on.source
    if not isinstance(town, Town):
        raise ConfigError(f"only towns can be driven in closed loop; found {town.name}, whose scenes are recordings. Use --data town.")
    names = on.names or town.scene_names(on.split)
    starts = Starts(town, config)
    own = starts if config.agents == "reactive" else Starts(town, replace(config, agents="reactive"))  # others react to their own driver
    roads = {name: road_of(town, name) for name in names}
    kept = _Drives(on, config, code_digest(), table)
    expert = kept.of(EXPERT, names, partial(drive_expert, starts=own))
    left_out = tuple(one.name for one in expert if not roads[one.name].drives_on(one.ego.centre_m[:1]).all())
    names = tuple(name for name in names if name not in left_out)
    if not names:
        raise ConfigError(f"there is no road where the ego starts in any of these scenes ({', '.join(left_out[:3])}).")
    expert = [one for one in expert if one.name not in left_out]
    reference_scores = tuple(score_drive(one, roads[one.name], one) for one in expert)
    rows = [Row(EXPERT, reference_scores, reference_scores)]
    drives = {EXPERT: expert}
    for driver in drivers:
        make = partial(drive_scenes, starts=starts, plan=driver.plan, tokenizer=driver.tokenizer)
        found = kept.of(driver.name, names, make, str(driver.lineage), driver.source)
        scores = tuple(score_drive(one, roads[one.name], best) for one, best in zip(found, expert, strict=True))
        rows.append(Row(driver.name, scores, reference_scores))
        drives[driver.name] = found
        if driver.ought_to_move and all(one.plan_speed_mps.max(initial=0.0) < _MOVES_MPS for one in found):
            raise ConfigError(
                f"{driver.name} never moves: all of its paths stay at the origin, in {len(names)} scenes. Paths must be in metres, in the lidar "
                "frame."
            )
    return Driven(town, tuple(rows), drives, left_out, tracking_error([one.ego for one in expert], LEVER_M))


DRAWN = 3
"""Largest number of drawn scenes: those in which the requested drivers differ most, or the only one scores worst."""

_DIFFERS = 0.05
"""Scenes in which the requested drivers differ by less EPDMS than this (0 to 1) are not drawn, except the first."""


def draw(driven: Driven, asked: Sequence[str], folder: Path) -> list[Path]:
    """Draw a strip of each scene in which the drivers `asked` differ most, or in which a single one scores worst. Returns the paths."""
    values = np.stack([driven.row(name).epdms for name in asked])
    telling = np.ptp(values, axis=0) if len(asked) > 1 else -values[0]
    pictures = []
    order = np.argsort(-telling, kind="stable")[:DRAWN].tolist()
    for place in order if len(asked) == 1 else [order[0], *(k for k in order[1:] if telling[k] >= _DIFFERS)]:
        expert = driven.drives[EXPERT][place]
        strips = [_strip_row(name, driven.row(name).scores[place], driven.drives[name][place]) for name in (EXPERT, *asked)]
        target = folder / f"drive-{expert.name}.png"
        pictures.append(drive_strip(expert.name, driven.town.scene(expert.name).map, strips, expert.ego.xy_m, target, DT_S))
    return pictures


def _strip_row(name: str, score: DriveScore, rollout: Rollout) -> DriveRow:
    ego, others = rollout.ego, rollout.others
    corners = geometry.box_corners_bev(
        others.centre_m, others.size_m[None, :, 0], others.size_m[None, :, 1], others.yaw_rad
    )  # fmt: skip
    touched = np.zeros(others.yaw_rad.shape, bool)
    for contact in score.contacts:
        touched[contact.moment :, contact.other] = True
    return DriveRow(
        name, f"EPDMS {100 * score.epdms:.0f}", ego.xy_m, ego.yaw_rad, ego.speed_mps, ego.corners_m, corners, touched, rollout.ended
    )


def _written(driven: Driven, asked: Sequence[Driver], on: TestSet, config: LoopConfig) -> Assessment:
    rows = driven.rows
    own = [row for row in rows if row.name in {driver.name for driver in asked}]
    differences = [Difference.of(own[0], other) for other in own[1:]]
    lineage = asked[-1].lineage
    about = {"planner": asked[-1].name, **on.about, **to_plain(config), **asked[-1].about, "lineage": lineage.child("drive").to_plain()}
    line = f"data: {on.source.name} {on.split} · {len(own[0].scores)} scenes · others: {config.agents}"
    line += " · displaced starts" if config.displace else ""
    line += f" · plans {config.delay_s:g} s late" if config.delay_s else ""
    line += f" · {100 * config.dropped:g} % of columns dropped" if config.dropped else ""
    line += f" · road users seen {100 * config.depth_error:g} % too near or too far" if config.depth_error else ""
    body = "\n".join([f"{mark_lines(lineage.marks)}{line}", text(rows, differences, per_km=True), *driven.notes(), _BY_CONSTRUCTION])
    plain = {row.name: row.to_json() for row in rows}
    values = {
        **plain[own[-1].name],
        "rows": plain,
        "differences": [difference.to_json() for difference in differences],
        "left_out": list(driven.left_out),
        "tracking_error_m": driven.tracking.to_json() if driven.tracking else None,
    }
    scores = {**mark_numbers(values, lineage.marks), "about": about}
    on.run.write_text("drive.txt", body + "\n")
    on.run.write_json("drive.json", scores)
    on.run.write_text("scenes.jsonl", "".join(json.dumps(line) + "\n" for row in rows for line in row.scene_lines()))
    if on.run.process_group.is_rank_zero:
        _page(driven, [row.name for row in own], differences, line, on)
    return Assessment(body, scores)


def _page(driven: Driven, asked: Sequence[str], differences: Sequence[Difference], line: str, on: TestSet) -> None:
    """Write index.html of the drives: the table, every scene, and the strips."""
    header, *lines = table(driven.rows, joined=True)
    tables: list[tuple[str, str | Table]] = [
        ("Closed loop: EPDMS and its parts in percent, with 95 % intervals over scenes", Table(header, lines))
    ]
    for title, (header, *lines) in {"Parts of EPDMS": parts_table(driven.rows), "Events per kilometre": rates(driven.rows)}.items():
        tables.append((f"{title}, with 95 % intervals", Table(header, lines)))
    if differences:
        tables.append(("Differences, paired by scene, with 95 % intervals", Table(DIFFERENCES, [one.cells() for one in differences])))
    rows = [driven.row(name) for name in (EXPERT, *asked)]
    scenes = [
        [score.name, *(f"{100 * row.scores[place].epdms:.1f}" for row in rows), *(_ending(row.scores[place]) for row in rows[1:])]
        for place, score in enumerate(rows[0].scores)
    ]
    headings = ["scene", *(row.name for row in rows), *(f"{row.name}: end" for row in rows[1:])]
    tables.append(("Every scene: EPDMS, and how the drive ended", Table(headings, scenes)))
    strips = sorted((on.run.folder / "pictures").glob("drive-*.png"))
    pictures = [(f"{path.stem.removeprefix('drive-')} driven in closed loop", f"pictures/{path.name}") for path in strips]
    notes = [*left_out_parts(driven.rows), *driven.notes(), _BY_CONSTRUCTION]
    write_index(on.run.folder, Page(f"iidrive: {asked[-1]} at the wheel", line, [], tables, pictures, notes))


def _ending(score: DriveScore) -> str:
    if score.at_fault:
        return "at-fault collision"
    return "off the road" if score.off_road is not None else "drove on"


_BY_CONSTRUCTION = (
    f"{EXPERT}: scenes were sampled until no vehicle collided, so its zero collisions are by construction. EPDMS and parts in percent; "
    "a drive ends at an at-fault collision or off the road, and windows that were not driven count as 0."
)


DECIDE = (
    *("core/*.py", "data/*.py", "data/town/*.py", "models/**/*.py", "simulation/*.py"),
    *("scoring/driving/contacts.py", "scoring/driving/rollout.py", "scoring/driving/tracking.py"),
    *("pipeline/arms.py", "pipeline/baselines.py", "pipeline/drivers.py", "pipeline/load.py", "pipeline/tokens.py"),
)
"""Source files of iidrive that decide how a scene is driven. The score does not: it is computed anew from stored drives."""


def code_digest(package: Path = PACKAGE) -> str:
    """Digest of iidrive's version and of its source files that decide how a scene is driven. `package` is the package's folder."""
    return hashlib.sha256(f"{VERSION} {source_digest(DECIDE, package)}".encode()).hexdigest()


@dataclass(frozen=True)
class _Drives:
    """Drives in the run folder, named by all that decides them. `table`: a run folder whose drives are read too, if it has them."""

    on: TestSet
    config: LoopConfig
    code: str
    table: Path | None

    def of(
        self, row: str, names: Sequence[str], make: Callable[..., list[Rollout]], lineage: str = "", source: str | None = ""
    ) -> list[Rollout]:
        """The drives of some scenes: the stored ones, and the missing ones, which the processes of the group share.

        `lineage` and `source` are those of the driver. If its source is unknown (None), all its drives are made again.
        """
        group, folder = self.on.run.process_group, self.on.run.folder
        label = self._label(row, lineage, source)
        if source is None:
            if group.is_rank_zero:
                shutil.rmtree(folder / label, ignore_errors=True)
            group.barrier()

        def place(name: str) -> Path:
            given = (self.table or folder) / label / f"{name}.npz"
            return given if source is not None and given.is_file() else folder / label / f"{name}.npz"

        together = [tuple(names[k : k + self.config.together]) for k in range(0, len(names), self.config.together)]
        with group.raise_on_all_ranks(), counting(f"drive: {row}", len(together), group) as tick:
            for some in group.shard(together):
                if not all(place(name).is_file() for name in some):
                    for name, rollout in zip(some, make(names=some), strict=True):
                        write_rollout(folder / label / f"{name}.npz", rollout)
                tick(some[-1])
        group.barrier()
        return [read_rollout(place(name)) for name in names]

    def _label(self, row: str, lineage: str, source: str | None) -> str:
        return f"rollouts/{named_by(row, [lineage, source, asdict(self.config), self.on.data, self.code])}"


def enlarged(recipe: Recipe, split: str, scenes: int) -> Recipe:
    """A recipe whose towns have at least `scenes` scenes in a split."""
    name = f"{split}_scenes"
    if scenes <= 0 or not hasattr(recipe.town, name):
        return recipe
    return replace(recipe, town=replace(recipe.town, **{name: max(scenes, getattr(recipe.town, name))}))
