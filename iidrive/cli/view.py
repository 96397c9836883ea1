"""The command that shows one sample in three dimensions, or a whole scene as a video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iidrive.cli.options import DataOptions, Switch, TownFields, read_plans
from iidrive.core.errors import ConfigError, unknown
from iidrive.pipeline import recipes
from iidrive.pipeline.evaluate import town_of
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.view import view_of_checkpoint, view_of_predictions
from iidrive.report.view.page import write_view
from iidrive.scoring.sampled import holds_arrays
from iidrive.training import checkpoint, shipped


def view(
    subject: str,
    scene: str = "",
    keyframe: int = -1,
    out: str = "scene.html",
    test_ii: Switch = "on",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Write a page that shows a sample in three dimensions: true beside imagined occupancy 0 to 3 s ahead, boxes, candidates, the plan.

    The page is one file and needs no network. Drag to turn; the keys are listed on it.

    Args:
        subject: run folder or checkpoint of a planner or world model, or a predictions file.
        scene: a scene of the split; default: its first.
        keyframe: number of the keyframe; default: the one whose next 3 s differ most from going straight on.
        out: page to write.
        test_ii: whether the planner sees the imagined future.
        recipe: names the towns (a checkpoint's own towns are used, but for fields given one by one).
        where: scenes to choose from; default: the usual test split.
        towns: fields of the towns that were given one by one.
    """
    if Path(out).suffix != ".html":
        raise ConfigError(f"--out {out}: expected a page, like scene.html.")
    predictions = Path(subject).is_file() and holds_arrays(subject)
    if not predictions and not shipped.exists(subject):
        raise ConfigError(f"{unknown('model', subject, shipped.names())} Or give a run folder, checkpoint or predictions file that exists.")
    found = None if predictions else checkpoint.read(subject)
    if found is not None:
        recipe = replace(recipe, town=town_of(found.manifest, recipe.town, towns.given))
    source, split = where.open(recipe, "test")
    names = source.scene_names(split)
    if scene and scene not in names:
        raise ConfigError(f"--scene {scene}: there is no such scene in {split}; its scenes are {names[0]} to {names[-1]}.")
    name, index = scene or names[0], None if keyframe < 0 else keyframe
    if found is None:
        plans, _ = read_plans(subject)
        made = view_of_predictions(plans, source, name, index)
    else:
        made = view_of_checkpoint(found, source, name, index, test_ii == "on")
    path = write_view(made, out)
    print(f"{made.title}: {path} ({path.stat().st_size / 1e6:.1f} MB; open it in a browser, it needs no network)")
