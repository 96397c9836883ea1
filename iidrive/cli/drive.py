"""The command that drives in closed loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from iidrive.cli.options import DataOptions, Switch, TownFields, enter, require_scene, write_json
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import drive as driving
from iidrive.pipeline import recipes
from iidrive.pipeline.arms import TestII
from iidrive.pipeline.baselines import BASELINES
from iidrive.pipeline.drivers import subject_of
from iidrive.pipeline.evaluate import TestSet, town_of
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.train import describe
from iidrive.runtime.run_folder import Run
from iidrive.simulation.loop import LoopConfig

_SEVERAL: Mapping[str, tuple[TestII, ...]] = {"both": ("off", "on"), "all": ("off", "on", "shuffled", "oracle")}


def drive(
    planner: str,
    test_ii: Literal["off", "on", "shared", "shuffled", "oracle", "both", "all"] = "both",
    scenes: int = 0,
    scene: str = "",
    agents: Literal["reactive", "replay"] = "reactive",
    displace: Switch = "off",
    delay_s: float = 0.0,
    drop: float = 0.0,
    go_on: Switch = "off",
    baselines: Literal["auto", "on", "off"] = "auto",
    json: str = "",
    run: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    devices: int = 0,
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Drive a planner in closed loop through towns whose traffic reacts, and score what it drove (EPDMS).

    Args:
        planner: still, constant-velocity, ctrv, ego-mlp; a planner's run folder or checkpoint; or module:function, from a batch of inputs to
            paths (B,6,2).
        test_ii: what the planner is shown of the future; both (off and on) and all: a row each, and paired differences.
        scenes: how many scenes to drive; more than the split has enlarge it; 0: all of it.
        scene: drive this scene alone, by its name.
        agents: whether the others see the ego, or do what they did in the recorded scene.
        displace: start beside the path, turned, and at another speed.
        delay_s: so long a plan takes, at most 0.5 s; meanwhile the car goes on by the plan before.
        drop: share of the columns of the occupancy that look free to the planner.
        go_on: drive on after an at-fault contact and off the road.
        baselines: also drive the baselines; auto: those without weights, and beside a trained planner the ego-status MLP too.
        json: where to write the scores besides.
        run: run folder to write; default: runs/drive-PLANNER-SPLIT. Drives that it holds already are not driven again.
        recipe: names the towns and the ego-status MLP's training (a checkpoint's own towns are used, but for fields given one by one).
        where: scenes to drive; default: the test split (`--split hard`: somebody is in the way).
        devices: processes on this machine that share the scenes; results do not depend on it.
        towns: fields of the towns that were given one by one.
    """
    process_group = enter(devices)
    if scenes < 0:
        raise ConfigError(f"--scenes {scenes}: expected how many scenes to drive, or 0 for all of the split.")
    subject = subject_of(planner)
    if not isinstance(subject, str):
        recipe = replace(recipe, town=town_of(subject.manifest, recipe.town, towns.given))
    recipe = driving.enlarged(recipe, where.split or "test", scenes)
    source, split = where.open(recipe, "test")
    names = source.scene_names(split)[: scenes or None]
    require_scene(scene, names, split)
    names = (scene,) if scene else names
    name = Path(planner).name.replace(":", "-")
    loop = LoopConfig(agents, displace == "on", go_on == "on", delay_s=delay_s, dropped=drop)
    about = describe("drive", recipe, source, split) | {"planner": planner, "test_ii": test_ii, "loop": to_plain(loop)}
    started = Run.start(run or f"runs/drive-{name}-{split}", about, resume=True, process_group=process_group)
    source.prepare(names)
    on = TestSet(source, split, started, tuple(names))
    arms = _SEVERAL[test_ii] if test_ii in ("both", "all") else (test_ii,)
    few = tuple(KINEMATIC) if isinstance(subject, str) and baselines == "auto" else BASELINES
    result = driving.drive_rows(subject, arms, on, recipe, loop, () if baselines == "off" else few)
    print(f"{result.text}\npage: {started.folder / 'index.html'}")
    if json and process_group.is_rank_zero:
        write_json(json, result.scores)
