"""Commands that run trained models: demo, evaluate, swap, audit; and `lineage`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from iidrive.analysis import lineage_of
from iidrive.analysis.leakage import audit as auditing
from iidrive.analysis.leakage import findings
from iidrive.analysis.leakage import plausible as plausibility
from iidrive.analysis.leakage.subject import of_checkpoint
from iidrive.analysis.swap import swap as swap_
from iidrive.cli.options import (
    DataOptions,
    RecipeGiven,
    StageOptions,
    Switch,
    TownFields,
    choose_threads,
    enter,
    read_plans,
    write_json,
)
from iidrive.core.errors import ConfigError, unknown
from iidrive.core.lineage import mark_lines, mark_numbers
from iidrive.data.scene_lists import is_list
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import demo as demo_
from iidrive.pipeline import evaluate as evaluation
from iidrive.pipeline import recipes
from iidrive.pipeline.arms import TestII
from iidrive.pipeline.baselines import BASELINES
from iidrive.pipeline.pages import evaluation_page
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, about_line, town_of
from iidrive.pipeline.train import describe
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.scoring.cases import read_cases
from iidrive.scoring.predictions import align
from iidrive.scoring.sampled import holds_arrays
from iidrive.training import checkpoint, shipped


def demo(
    train: bool = False,
    recipe: Recipe = recipes.demo(),  # noqa: B008
    out: str = "runs/demo",
    where: DataOptions = DataOptions(),  # noqa: B008
    given: RecipeGiven = RecipeGiven(),  # noqa: B008
) -> None:
    """Evaluate the shipped weights and the baselines, or train all three models first. Prints tables and writes a page with pictures.

    Args:
        train: train all three models (some minutes); implied by --recipe and by data other than towns.
        where: towns, nuScenes (train on mini_train or train, test on mini_val or val) or Argoverse 2 (train on train, test on val).
        recipe: models and trainings.
        out: run folder.
        given: whether a recipe was given.
    """
    trains = train or given.named or where.data != "town"
    choose_threads()
    (demo_.run if trains else demo_.show)(recipe, where.source, Path(out))


def evaluate(
    planner: str,
    test_ii: TestII = "off",
    json: str = "",
    run: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    stages: StageOptions = StageOptions(),  # noqa: B008
    explain: Switch = "off",
    protocol: Literal["sparsedrive", "pdm"] = "sparsedrive",
    train_split: str = "",
    devices: int = 0,
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Plan every sample of a split, print the reference table, and write predictions by sample token.

    Args:
        planner: still, constant-velocity, ctrv, ego-mlp; or a run folder or checkpoint (of a world model: only forecasting).
        where: scenes to test on; default: the usual test split.
        test_ii: the future used: none, the imagined, another scene's, the true one.
        json: file to write the scores to.
        run: run folder to write; default: runs/evaluate-PLANNER-SPLIT.
        recipe: the towns and the training of ego-mlp (a checkpoint's own towns are used, except --recipe.town fields).
        stages: other stages to evaluate on.
        train_split: scenes to train ego-mlp on; default: the usual training split.
        explain: also write RUN/choices.jsonl: predicted and true collisions of every candidate of every sample.
        protocol: pdm: also follow every plan for 3 s and compute EPDMS.
        devices: processes on this machine that share the work; results do not depend on it.
        towns: town fields set on the command line.
    """
    process_group = enter(devices)
    if planner not in BASELINES and not shipped.exists(planner):
        raise ConfigError(f"{unknown('planner', planner, (*BASELINES, *shipped.names()))} Or give a run folder or checkpoint that exists.")
    if planner in BASELINES and (stages.world or stages.tokenizer):
        raise ConfigError(f"{planner} has no world model and no tokenizer: leave out --world and --tokenizer.")
    if planner in BASELINES and test_ii != "off":
        raise ConfigError(
            f"{planner} has no world model, so --test-ii {test_ii} does not apply. Leave it out, or evaluate a planner's run folder."
        )
    subject = planner if planner in BASELINES else checkpoint.read(planner)
    if not isinstance(subject, str):
        recipe = replace(recipe, town=town_of(subject.manifest, recipe.town, towns.given))
    source, split = where.open(recipe, "test")
    name = Path(planner).name if planner not in BASELINES else planner
    trained = train_split or source.usual_split("train")
    if train_split and planner != "ego-mlp":
        raise ConfigError(f"--train-split gives the scenes to train ego-mlp on; {planner} is not trained here. Leave it out.")
    tested = set(source.scene_names(split))
    both = (
        [name for name in source.scene_names(trained) if name in tested] if planner == "ego-mlp" and (train_split or is_list(split)) else []
    )
    if both:
        raise ConfigError(
            f"ego-mlp would be trained on {len(both)} of its test scenes ({', '.join(both[:3])}). Choose other scenes with --train-split."
        )
    state = f"-ii-{test_ii}" if planner not in BASELINES else ""
    about = describe("evaluate", recipe, source, split) | {"test_ii": test_ii}
    started = Run.start(
        run or f"runs/evaluate-{name}-{Path(split).stem if is_list(split) else split}{state}", about, process_group=process_group
    )
    use = evaluation.Use(test_ii, explain == "on", stages.world, stages.tokenizer, stages.allow_mismatch == "on")
    on = TestSet(source, split, started, pdm=protocol == "pdm")
    result = evaluation.evaluate(subject, on, recipe, trained, use)
    print(result.text)
    if process_group.is_rank_zero:
        title = f"{name}, ii {test_ii}" if state else name
        print(f"page: {evaluation_page(title, result, on)}")
    if json and process_group.is_rank_zero:
        write_json(json, result.scores)


def swap(
    paths: list[str],
    run: str = "runs/swap",
    scenes: int = 8,
    test_ii: Switch = "on",
    json: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Evaluate every combination of tokenizer × world model × planner of some runs, to tell a bad model from a mismatch.

    Args:
        paths: two or more run folders or checkpoints; the stages that they depend on are found automatically.
        run: run folder to write (swap.txt, swap.json, tokens).
        scenes: number of scenes of the split, evenly spread; 0: all.
        test_ii: whether planners use the imagined future.
        json: also write the results to this file.
        where: scenes to test on; default: the usual test split.
        recipe: the towns (the first world model's own towns are used, except --recipe.town fields).
        towns: town fields set on the command line.
    """
    grid = swap_.grid_of(paths)
    recipe = replace(recipe, town=town_of(grid.worlds[0].manifest, recipe.town, towns.given))
    source, split = where.open(recipe, "test")
    started = Run.start(run, describe("swap", recipe, source, split) | {"paths": paths, "scenes": scenes, "test_ii": test_ii})
    with counting("swap", grid.size) as tick:
        result = swap_.swap(grid, source, split, started, scenes, test_ii == "on", tick)
    text = swap_.text(result, source, split, test_ii == "on")
    print(text)
    started.write_text("swap.txt", text + "\n")
    for target in (str(started.folder / "swap.json"), json):
        if target:
            write_json(target, swap_.to_json(result))


def audit(
    model: str,
    cases: str = "",
    samples: int = 16,
    test_ii: Switch = "on",
    tokens: str = "",
    json: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Test whether information that a model must not use changes its outputs; for a predictions file, whether it is plausible.

    The exit status is 1 if there is a leak or the predictions are implausible.

    Args:
        model: run folder or checkpoint of a planner or world model, a baseline's name, or a file of planned paths (npz, pickle, JSON)
            with --cases.
        cases: ground truth for predictions.
        samples: approximate number of samples to audit, spread over the split.
        test_ii: whether the planner uses the imagined future.
        tokens: token cache to audit with the model; default: compute new tokens. For planned paths without sample tokens: their list.
        json: file to write the findings to.
        where: scenes to audit on; default: the usual test split.
        recipe: the towns (a checkpoint's own towns are used, except --recipe.town fields).
        towns: town fields set on the command line.
    """
    if not Path(model).is_dir() and holds_arrays(model):
        if not cases:
            raise ConfigError(f"{model} holds planned paths, which need the ground truth: add --cases CASES.npz.")
        truth = read_cases(cases)
        paths, marks = read_plans(model, tokens)
        judged = plausibility.plausible(truth, align(truth, paths))
        print(mark_lines(marks), end="")
        text, good, found = plausibility.format_plausibility(judged), not judged.reasons, mark_numbers(plausibility.to_json(judged), marks)
    else:
        if cases:
            raise ConfigError("--cases is the truth for a predictions file; a model is audited on --data.")
        make = of_checkpoint(model, test_ii == "on", tokens)
        marks = ()
        if model not in KINEMATIC and shipped.exists(model):
            manifest = checkpoint.read_manifest(model)
            recipe, marks = replace(recipe, town=town_of(manifest, recipe.town, towns.given)), manifest.marks
        source, split = where.open(recipe, "test")
        with ExitStack() as shown:
            report = auditing.audit(make, source, split, samples, report=lambda total: shown.enter_context(counting("audit", total)))
        text, good, found = findings.format_audit(report), report.believable, mark_numbers(findings.to_json(report), marks)
        text = f"{mark_lines(marks)}{about_line(source, split, {'model': model})}\n{text}"
    print(text)
    if json:
        write_json(json, found)
    if not good:
        sys.exit(1)


def lineage(paths: list[str]) -> None:
    """Print the lineage of checkpoints, token caches, predictions files, scores or run folders, and whether they match.

    Args:
        paths: one or more paths.
    """
    found = [item for path in paths for item in lineage_of.trace(path)]
    print("\n".join(lineage_of.describe(item) for item in found))
    together = lineage_of.fit_together(found)
    if together:
        print(together)
