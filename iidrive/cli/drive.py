"""The command `drive`: closed loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from iidrive.cli.options import DataOptions, DriveOptions, TownFields, enter, require_scene, write_json
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import drive as driving
from iidrive.pipeline import recipes
from iidrive.pipeline.arms import TestII
from iidrive.pipeline.baselines import BASELINES
from iidrive.pipeline.drivers import subject_of
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, town_of
from iidrive.pipeline.train import describe
from iidrive.runtime.run_folder import Run

_SEVERAL: Mapping[str, tuple[TestII, ...]] = {"both": ("off", "on"), "all": ("off", "on", "shuffled", "oracle")}


def drive(
    planner: str,
    test_ii: Literal["off", "on", "shared", "shuffled", "oracle", "both", "all"] = "both",
    scenes: int = 0,
    scene: str = "",
    drives: DriveOptions = DriveOptions(),  # noqa: B008
    baselines: Literal["auto", "on", "off"] = "auto",
    json: str = "",
    run: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    devices: int = 0,
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Drive a planner in closed loop through towns with reactive traffic, and score the drives by EPDMS.

    Args:
        planner: still, constant-velocity, ctrv, ego-mlp; a planner's run folder or checkpoint; or module:function, from a batch of inputs to
            paths (B,6,2).
        test_ii: the future that the planner uses; both (off and on) and all: one row each, and paired differences.
        scenes: number of scenes to drive; the split is enlarged if needed; 0: all its scenes.
        scene: drive only the scene of this name; results go to RUN/replay/SCENE.
        drives: how the scenes are driven.
        baselines: also drive the baselines; auto: those without weights, and ego-mlp if the planner is trained.
        json: also write the scores to this file.
        run: run folder to write; default: runs/drive-PLANNER-SPLIT. Existing drives in it are reused.
        recipe: the towns and the training of ego-mlp (a checkpoint's own towns are used, except --recipe.town fields).
        where: scenes to drive; default: the test split (`--split hard`: scenes with conflicts).
        devices: processes on this machine that share the scenes; results do not depend on it.
        towns: town fields set on the command line.
    """
    process_group = enter(devices)
    if scenes < 0:
        raise ConfigError(f"--scenes {scenes}: expected the number of scenes to drive, or 0 for all of the split.")
    subject = subject_of(planner)
    if not isinstance(subject, str):
        recipe = replace(recipe, town=town_of(subject.manifest, recipe.town, towns.given))
    recipe = driving.enlarged(recipe, where.split or "test", scenes)
    source, split = where.open(recipe, "test")
    names = source.scene_names(split)[: scenes or None]
    require_scene(scene, names, split)
    names = (scene,) if scene else names
    name = Path(planner).name.replace(":", "-")
    loop = drives.loop
    about = describe("drive", recipe, source, split) | {"planner": planner, "test_ii": test_ii, "loop": to_plain(loop)}
    table = Path(run or f"runs/drive-{name}-{split}")
    started = Run.start(table / "replay" / scene if scene else table, about, resume=True, process_group=process_group)
    source.prepare(names)
    on = TestSet(source, split, started, tuple(names))
    arms = _SEVERAL[test_ii] if test_ii in ("both", "all") else (test_ii,)
    few = tuple(KINEMATIC) if isinstance(subject, str) and baselines == "auto" else BASELINES
    result = driving.drive_rows(subject, arms, on, recipe, loop, () if baselines == "off" else few, table)
    print(f"{result.text}\npage: {started.folder / 'index.html'}")
    if json and process_group.is_rank_zero:
        write_json(json, result.scores)
