"""The command `view`: one sample as a 3-D page, or a scene as a video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iidrive.cli.options import DataOptions, Switch, TownFields, read_plans, require_scene
from iidrive.core.errors import ConfigError, unknown
from iidrive.core.lineage import mark_lines
from iidrive.pipeline import recipes
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import town_of
from iidrive.pipeline.view import film_of_subject, view_of_subject, views_of_subject
from iidrive.report.video import SUFFIXES, write_video
from iidrive.report.view.live import LiveView, require_viser
from iidrive.report.view.page import write_view
from iidrive.scoring.sampled import holds_arrays
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Checkpoint

PER_SECOND = 2
"""Keyframes per second, as recorded."""


def view(
    subject: str,
    scene: str = "",
    keyframe: int = -1,
    out: str = "scene.html",
    test_ii: Switch = "on",
    live: bool = False,
    port: int = 8080,
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Write a 3-D page of a sample: true and imagined occupancy 0 to 3 s ahead, boxes, candidates and the plan.

    The page is one file and needs no network. If the name ends in .gif or .mp4, a bird's-eye video of the whole scene is written. With `--live`
    nothing is written: the whole scene is served to a browser on this machine until Ctrl-C.

    Args:
        subject: run folder or checkpoint of a planner or world model, or a predictions file.
        scene: a scene of the split; default: the first one.
        keyframe: index of the keyframe; default: the one whose next 3 s differ most from driving straight ahead.
        out: page (.html) or video (.gif, .mp4) to write.
        test_ii: whether the planner uses the imagined future.
        live: serve the whole scene on 127.0.0.1 by viser (extra `view`), with a slider for the keyframe.
        port: port for `--live`; if it is in use, the next free one is taken.
        recipe: the towns (a checkpoint's own towns are used, except --recipe.town fields).
        where: scenes to choose from; default: the usual test split.
        towns: town fields set on the command line.
    """
    suffix = Path(out).suffix
    if suffix not in (".html", *SUFFIXES):
        raise ConfigError(f"--out {out}: expected a page or a video, like scene.html, scene.gif or scene.mp4.")
    if suffix != ".html" and keyframe >= 0:
        raise ConfigError(f"--keyframe is for pages; a video shows all of a scene. Leave it out, or write {Path(out).stem}.html.")
    if live and (out != "scene.html" or keyframe >= 0):
        raise ConfigError("--live writes no file and shows every keyframe of a scene: leave --out and --keyframe out.")
    if live:
        require_viser()
    predictions = Path(subject).is_file() and holds_arrays(subject)
    if not predictions and not shipped.exists(subject):
        raise ConfigError(f"{unknown('model', subject, shipped.names())} Or give a run folder, checkpoint or predictions file that exists.")
    found, marks = read_plans(subject) if predictions else (checkpoint.read(subject), ())
    if isinstance(found, Checkpoint):
        recipe = replace(recipe, town=town_of(found.manifest, recipe.town, towns.given))
    source, split = where.open(recipe, "test")
    names = source.scene_names(split)
    require_scene(scene, names, split)
    name, index = scene or names[0], None if keyframe < 0 else keyframe
    if live:
        served = LiveView(views_of_subject(found, source, name, test_ii == "on", marks), port)
        print(f"{mark_lines(served.marks)}{name}: {served.url} (on this machine alone; Ctrl-C ends it)", flush=True)
        served.serve()
        return
    if suffix != ".html":
        print(f"{name}: {write_video(film_of_subject(found, source, name, test_ii == 'on'), out, PER_SECOND)}")
        return
    made = view_of_subject(found, source, name, index, test_ii == "on", marks)
    path = write_view(made, out)
    print(f"{mark_lines(made.marks)}{made.title}: {path} ({path.stat().st_size / 1e6:.1f} MB; open it in a browser, it needs no network)")
