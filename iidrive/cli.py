"""The command line: one typed function per command."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console

from iidrive import assess, recipes, stages
from iidrive import demo as demo_
from iidrive.configs import to_plain
from iidrive.data import Data, DataName
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.errors import ConfigError, IIDriveError, unknown
from iidrive.eval import compare as comparing
from iidrive.eval import doctor as doctoring
from iidrive.eval import score as scoring
from iidrive.eval.cases import align, read_cases, read_predictions
from iidrive.eval.compare_tables import compare_files as compare_table_files
from iidrive.eval.protocols import protocol_named
from iidrive.eval.repair import diagnose_predictions
from iidrive.eval.sampled import holds_arrays, read_runs
from iidrive.recipes import Recipe
from iidrive.runs import Run
from iidrive.train import checkpoint

Switch = Literal["on", "off"]
console = Console(stderr=True)


def demo(
    data: DataName = "town",
    root: str = "",
    recipe: Recipe = recipes.demo(),  # noqa: B008
    out: str = "runs/demo",
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
) -> None:
    """Train all three models, evaluate them beside the baselines, print the tables and draw the pictures.

    Args:
        data: embedded towns, or nuScenes (train on mini_train or train, test on mini_val or val).
        root: folder of nuScenes that holds v1.0-…/ and maps/.
        recipe: tiny, demo, small, full or a YAML file; any field can follow, as in --recipe.train_world.samples 1600.
        out: run folder.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
    """
    demo_.run(recipe, Data(data, root, version, occupancy, gts, predicted), Path(out))


def train_tokenizer(
    run: str = "runs/tokenizer",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Switch = "off",
) -> None:
    """Stage 1: train the scene tokenizer.

    Args:
        run: run folder to write.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file; any field can follow, as in --recipe.train_tokenizer.batch 4.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    started = _start(run, stages.describe("train tokenizer", recipe, source, split), resume)
    _finish(stages.train_tokenizer(recipe, source, split, started, resume == "on"), choice, recipe, run)


def train_world(
    tokenizer: str,
    run: str = "runs/world",
    tokens: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Switch = "off",
) -> None:
    """Stage 2: train the world model on a tokenizer's tokens.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        run: run folder to write.
        tokens: token cache written by `iidrive tokens`; default: RUN/tokens, written if absent.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file, with overrides.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    started = _start(run, stages.describe("train world", recipe, source, split), resume)
    cache = _tokens(tokens, tokenizer, source, split, Path(run))
    _finish(stages.train_world(recipe, tokenizer, cache, source, split, started, resume == "on"), choice, recipe, run)


def train_planner(
    world: str,
    train_ii: Switch = "on",
    run: str = "runs/planner",
    tokens: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Switch = "off",
) -> None:
    """Train the planner on top of a world model.

    Args:
        world: run folder or checkpoint of stage 2.
        train_ii: whether the planner learns to use the imagined future.
        run: run folder to write.
        tokens: token cache; default: the world run's, or RUN/tokens, written if absent.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file, with overrides.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    manifest = checkpoint.read_manifest(world)
    checkpoint.require_kind(manifest, "world", world)
    started = _start(run, stages.describe("train planner", recipe, source, split), resume)
    tokenizer = stages.locate(manifest, "tokenizer", world)
    near = stages.tokens_folder(Path(world), tokenizer, source)
    cache = _tokens(tokens or (str(near) if near.is_dir() else ""), str(tokenizer), source, split, Path(run))
    _finish(stages.train_planner(recipe, world, cache, source, split, started, train_ii == "on", resume == "on"), choice, recipe, run)


def tokens(
    tokenizer: str,
    out: str,
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
) -> None:
    """Write the token cache of a split: the code indices of every keyframe.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        out: folder to write; scenes already there are kept.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to tokenize; default: the usual training split.
        recipe: names the towns (seed, number of scenes).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    cache = _tokens(out, tokenizer, source, split, Path(out))
    print(f"tokens of {split} in {cache.folder}: {cache.frame_bytes} bytes a keyframe, tokenizer {cache.manifest.tokenizer}")


def evaluate(
    planner: str,
    data: DataName = "town",
    root: str = "",
    split: str = "",
    test_ii: Switch = "off",
    json: str = "",
    run: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
) -> None:
    """Plan every sample of a split, print the reference table, write predictions keyed by sample token.

    Args:
        planner: still, constant-velocity, ctrv, ego-mlp; or a run folder or checkpoint (of a world model: forecasting alone).
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to test on; default: the usual test split.
        test_ii: whether the planner uses the imagined future now.
        json: where to write the scores.
        run: run folder to write; default: runs/evaluate-PLANNER-SPLIT.
        recipe: names the towns and the ego-status MLP's training (a checkpoint's own towns are used when it was trained on towns).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    if planner not in stages.BASELINES and not Path(planner).exists():
        raise ConfigError(f"{unknown('planner', planner, stages.BASELINES)} Or give a run folder or checkpoint that exists.")
    if planner in stages.BASELINES and test_ii == "on":
        raise ConfigError(
            f"{planner} has no world model, so --test-ii on means nothing for it. Leave it out, or evaluate a planner's run folder."
        )
    if planner not in stages.BASELINES:
        recipe = replace(recipe, town=assess.town_of(checkpoint.read_manifest(planner), recipe.town))
    source, split = _open(choice, recipe, split, "test")
    name = Path(planner).name if planner not in stages.BASELINES else planner
    source.scene_names(split)
    state = f"-ii-{test_ii}" if planner not in stages.BASELINES else ""
    started = Run.start(
        run or f"runs/evaluate-{name}-{split}{state}", stages.describe("evaluate", recipe, source, split) | {"test_ii": test_ii}
    )
    result = assess.assess(planner, source, split, source.usual_split("train"), recipe, started, test_ii == "on")
    print(result.text)
    if json:
        _write_json(json, result.scores)


def score(
    cases: str,
    protocol: str = "sparsedrive",
    predictions: str = "",
    json: str = "",
    per_sample: str = "",
) -> None:
    """Score planned paths by a public protocol.

    Args:
        cases: truth: an npz cases file.
        protocol: sparsedrive.
        predictions: an npz of planned paths keyed by sample token; default: `pred` of the cases file, or the true path as a checksum.
        json: where to write the scores.
        per_sample: where to write the per-sample decisions (npz).
    """
    protocol_named(protocol)
    truth = read_cases(cases)
    if predictions:
        paths = align(truth, read_predictions(predictions))
    elif truth.pred is not None:
        paths = truth.pred
    else:
        print("no predictions given: scoring the true path itself, whose obj_col row is a checksum of the set.")
        paths = np.cumsum(truth.gt_ego_fut_offsets, axis=1, dtype=np.float32)
    scores = scoring.score(truth, paths, protocol)
    print(scoring.format_scores(scores))
    if json:
        _write_json(json, scoring.to_json(scores))
    if per_sample:
        scoring.write_per_sample(per_sample, scores)


def compare(files: list[str], cases: str = "", tables: bool = False, grid: bool = False, samples: int = 0) -> None:
    """Say whether two runs differ: A is better, worse, or there is no difference that these data can show.

    Args:
        files: A B: predictions, per-sample files or run folders; several seeds of a side joined by commas; or two texts with tables.
        cases: truth of the samples, needed for predictions; names the scenes of per-sample files.
        tables: A and B are printed tables (FILE#2 is the second table of a file); texts are recognised without it.
        grid: any number of files that say their train_ii and test_ii: print the 2×2 and compare its rows and columns.
        samples: how many samples the tables were scored on, where their digits do not say it.
    """
    if tables or not any(holds_arrays(part) for file in files for part in file.split(",")):
        print(compare_table_files(files, samples or None))
        return
    truth = read_cases(cases) if cases else None
    if grid:
        print(comparing.grid([run for file in files for run in read_runs(file, truth)]))
        return
    if len(files) != 2:
        raise ConfigError(f"compare takes two sides, A and B; found {len(files)}. Join the seeds of one side by commas.")
    print(f"A: {files[0]}\nB: {files[1]}")
    print(comparing.format_comparison(comparing.compare(read_runs(files[0], truth), read_runs(files[1], truth))))


def doctor(files: list[str], cases: str = "", samples: int = 0, json: str = "") -> None:
    """Examine printed tables, runs or predictions: which set, how many events, what is noise, what looks wrong and what would decide it.

    Args:
        files: logs or notes with printed tables (FILE#2: the second table alone), run folders, or one predictions file with --cases.
        cases: truth to examine a predictions file with.
        samples: how many samples were scored, where the digits do not say it.
        json: where to write the findings.
    """
    if len(files) == 1 and not Path(files[0]).is_dir() and holds_arrays(files[0]):
        if not cases:
            raise ConfigError(f"{files[0]} holds planned paths, which can only be examined with the truth: add --cases CASES.npz.")
        report = diagnose_predictions(read_cases(cases), read_predictions(files[0]))
    else:
        report = doctoring.diagnose(doctoring.read_report_tables(files), samples or None)
    print(doctoring.format_report(report))
    if json:
        _write_json(json, doctoring.to_json(report))


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": {"_help": "Train a stage.", "tokenizer": train_tokenizer, "world": train_world, "planner": train_planner},
    "tokens": tokens,
    "evaluate": evaluate,
    "score": score,
    "compare": compare,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that iidrive raises on purpose are printed as one sentence, exit status 2."""
    try:
        auto_cli(COMMANDS, args=_spell(sys.argv[1:] if arguments is None else arguments), as_positional=True, prog="iidrive")
    except IIDriveError as error:
        console.print(f"iidrive: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        console.print(f"iidrive: cannot read or write {error.filename or 'a file'}: {error.strerror}.", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("iidrive: stopped. Checkpoints written so far are whole; `--resume on` goes on from the newest.")
        sys.exit(130)


def _spell(arguments: Sequence[str]) -> list[str]:
    """`--test-ii` as `--test_ii`, and a recipe's name as its values, so that overrides can follow it."""
    if arguments and arguments[0] in ("compare", "doctor"):
        arguments = _gather(arguments)
    out: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            argument = "--" + name[2:].replace("-", "_") + equals + value
        if name == "--recipe" and value and not value.endswith((".yaml", ".yml", ".json")):
            argument = f"--recipe={json.dumps(to_plain(recipes.named(value)))}"
        elif out and out[-1] == "--recipe" and not argument.endswith((".yaml", ".yml", ".json")):
            argument = json.dumps(to_plain(recipes.named(argument)))
        out.append(argument)
    return out


def _gather(arguments: Sequence[str]) -> list[str]:
    """File names as one list wherever they stand, and `--tables`, `--grid` as switches."""
    options, files, rest = [], [], iter(arguments[1:])
    for argument in rest:
        if argument in ("--tables", "--grid"):
            options.append(f"{argument}=true")
        elif argument.startswith("-"):
            options.append(argument)
            if "=" not in argument and argument not in ("-h", "--help"):
                options += [value for value in (next(rest, None),) if value is not None]
        else:
            files.append(argument)
    return [arguments[0], *options, *([json.dumps(files)] if files else [])]


def _open(data: Data, recipe: Recipe, split: str, part: Literal["train", "test"] = "train") -> tuple[Source, str]:
    source = data.open(recipe.town)
    for sentence in source.missing():
        console.print(f"note: {sentence}", markup=False, highlight=False, soft_wrap=True)
    return source, split or source.usual_split(part)


def _start(run: str, about: dict[str, Any], resume: Switch) -> Run:
    started = Run.start(run, about, resume == "on")
    if resume == "off":
        started.write_json("recipe.json", about["recipe"])
    return started


def _tokens(folder: str, tokenizer: str, source: Source, split: str, run: Path) -> TokenCache:
    names = source.scene_names(split)
    with assess.counting("tokens", len(names)) as tick:
        return stages.write_tokens(tokenizer, source, names, folder or stages.tokens_folder(run, tokenizer, source), tick)


def _finish(path: Path, data: Data, recipe: Recipe, run: str) -> None:
    manifest = checkpoint.read_manifest(path)
    print(f"{manifest.kind} {manifest.fingerprint} after {manifest.samples_seen} samples: {path}")
    follow = {
        "tokenizer": ["train", "world", run],
        "world": ["train", "planner", run],
        "planner": ["evaluate", run, "--test-ii", "on"],
    }
    options = [f"--{k}={v}" for k, v in to_plain(replace(data, name="town")).items() if v != getattr(Data(), k)]
    if data.name != "town":
        options.insert(0, f"--data={data.name}")
    if recipe != recipes.small():
        options.append(f"--recipe={Path(run) / 'recipe.json'}")
    print(f"next: {shlex.join(['iidrive', *follow[manifest.kind], *options])}")


def _write_json(path: str, value: object) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Run(target.parent).write_json(target.name, value)
