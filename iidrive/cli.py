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

from iidrive import assess, interchange, recipes, stages, trace
from iidrive import audit as auditing
from iidrive import demo as demo_
from iidrive import swap as swap_
from iidrive.configs import to_plain
from iidrive.data import Data, DataName
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.errors import ConfigError, IIDriveError, unknown
from iidrive.eval import audit as findings
from iidrive.eval import compare as comparing
from iidrive.eval import doctor as doctoring
from iidrive.eval import plausible as plausibility
from iidrive.eval import score as scoring
from iidrive.eval.cases import align, read_cases, read_predictions, write_cases
from iidrive.eval.compare_tables import compare_files as compare_table_files
from iidrive.eval.protocols import protocols_named
from iidrive.eval.readers import read_paths
from iidrive.eval.repair import diagnose_predictions
from iidrive.eval.sampled import holds_arrays, read_runs
from iidrive.evaluate import truth as true_cases
from iidrive.lineage import mark_lines, mark_numbers
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
    allow_mismatch: Switch = "off",
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
        allow_mismatch: use stages that do not belong together all the same; everything made with them is marked.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    started = _start(run, stages.describe("train world", recipe, source, split) | {"allow_mismatch": allow_mismatch}, resume)
    cache = _tokens(tokens, tokenizer, source, split, Path(run), allow_mismatch == "on")
    path = stages.train_world(recipe, tokenizer, cache, source, split, started, resume == "on", allow=allow_mismatch == "on")
    _finish(path, choice, recipe, run)


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
    allow_mismatch: Switch = "off",
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
        allow_mismatch: use stages that do not belong together all the same; everything made with them is marked.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    manifest = checkpoint.read_manifest(world)
    checkpoint.require_kind(manifest, "world", world)
    started = _start(run, stages.describe("train planner", recipe, source, split) | {"allow_mismatch": allow_mismatch}, resume)
    tokenizer = stages.locate(manifest, "tokenizer", world)
    near = stages.tokens_folder(Path(world), tokenizer, source)
    cache = _tokens(tokens or (str(near) if near.is_dir() else ""), str(tokenizer), source, split, Path(run), allow_mismatch == "on")
    path = stages.train_planner(
        recipe, world, cache, source, split, started, train_ii == "on", resume == "on", allow=allow_mismatch == "on"
    )
    _finish(path, choice, recipe, run)


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
    shard: str = "0/1",
) -> None:
    """Write the token cache of a split: the code indices of every keyframe.

    It can be stopped at any moment and started again: scenes that are there and whole are kept, damaged ones are named and written anew.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        out: folder to write.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to tokenize; default: the usual training split.
        recipe: names the towns (seed, number of scenes).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        shard: K/N writes every N-th scene from the K-th on, counted from 0, so that N processes share the work.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = _open(choice, recipe, split)
    cache = _tokens(out, tokenizer, source, split, Path(out), shard=_shard(shard))
    whose = split if shard == "0/1" else f"shard {shard} of {split}"
    print(f"tokens of {whose} in {cache.folder}: {cache.frame_bytes} bytes a keyframe, tokenizer {cache.manifest.tokenizer}")


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
    world: str = "",
    tokenizer: str = "",
    allow_mismatch: Switch = "off",
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
        world: run folder or checkpoint of stage 2 in place of the one that the planner names; it must be the same model.
        tokenizer: run folder or checkpoint of stage 1 in place of the one that the world model names; it must be the same model.
        allow_mismatch: use stages that do not belong together all the same; everything made with them is marked.
    """
    choice = Data(data, root, version, occupancy, gts, predicted)
    if planner not in stages.BASELINES and not Path(planner).exists():
        raise ConfigError(f"{unknown('planner', planner, stages.BASELINES)} Or give a run folder or checkpoint that exists.")
    if planner in stages.BASELINES and (world or tokenizer):
        raise ConfigError(f"{planner} has no world model and no tokenizer: leave out --world and --tokenizer.")
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
    train = source.usual_split("train")
    result = assess.assess(planner, source, split, train, recipe, started, test_ii == "on", world, tokenizer, allow_mismatch == "on")
    print(result.text)
    if json:
        _write_json(json, result.scores)


def cases(
    out: str = "cases.npz",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    version: str = "",
) -> None:
    """Write the truth of a split once, for `iidrive score`, `compare` and `doctor`: every keyframe, its true path, the boxes around it.

    Args:
        out: cases file to write (npz).
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to write; default: the usual test split.
        recipe: names the towns (seed, number of scenes).
        version: version folder of nuScenes, where there are several.
    """
    source, split = _open(Data(data, root, version), recipe, split, "test")
    found = true_cases(source, split)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_cases(out, found)
    print(f"{len(found)} samples of {source.name} {split}, {int(found.full.sum())} with a full future, {len(found.box)} boxes: {out}")


def score(
    cases: str,
    protocol: str = "sparsedrive",
    predictions: str = "",
    json: str = "",
    per_sample: str = "",
    tokens: str = "",
) -> None:
    """Score planned paths by public protocols, in one pass.

    Args:
        cases: truth: an npz cases file.
        protocol: some of sparsedrive,uniad,stp3,vad,occworld,admlp,bevplanner, or all (those that the files can serve).
        predictions: planned paths by sample token (npz, pickle, JSON), or SparseDrive's results.pkl with --tokens; default: `pred` of
            the cases file, or the true path as a checksum.
        json: where to write the scores.
        per_sample: where to write the per-sample decisions (npz).
        tokens: sample tokens of predictions that carry none, in their order: one a line, or a JSON list.
    """
    names = protocols_named(protocol)
    truth = read_cases(cases)
    marks: tuple[str, ...] = ()
    if tokens and not predictions:
        raise ConfigError("--tokens names the rows of a predictions file: add --predictions FILE.")
    if predictions:
        found = read_paths(predictions, tokens)
        paths, marks = align(truth, found.predictions), trace.lineage_of_predictions(found.predictions).marks
        if found.assumed:
            _note(found.assumed)
        if found.trusted:
            print(f"warning: {found.trusted}")
    elif truth.pred is not None:
        paths = truth.pred
    else:
        print("no predictions given: scoring the true path itself, whose obj_col row is a checksum of the set.")
        paths = np.cumsum(truth.gt_ego_fut_offsets, axis=1, dtype=np.float32)
    if protocol.strip() == "all":
        scores, lacking = scoring.score_possible(truth, paths, names)
    else:
        scores, lacking = scoring.score_all(truth, paths, names), []
    tables = "\n\n".join(
        scoring.format_scores(one) if len(names) == 1 else f"{one.protocol}\n{scoring.format_scores(one)}" for one in scores
    )
    print(f"{mark_lines(marks)}{tables}")
    if len(names) > 1:
        print("\n" + "\n".join([scoring.format_together(scores), *lacking]))
    if json:
        _write_json(json, mark_numbers(scoring.to_json(*scores), marks))
    if per_sample:
        scoring.write_per_sample(per_sample, *scores)


def import_ii_world(stage1: str = "", stage2: str = "", out: str = "runs/ii-world") -> None:
    """Make iidrive checkpoints of published II-World weights.

    Args:
        stage1: .pth file of the scene tokenizer.
        stage2: .pth file of the world model; it may hold its tokenizer.
        out: folder to write: OUT/tokenizer and OUT/world.
    """
    for path in interchange.import_ii_world(stage1, stage2, out):
        manifest = checkpoint.read_manifest(path)
        print(f"{manifest.kind} {manifest.fingerprint}: {path}")


def export_ii_world(folder: str, stage1: str = "", stage2: str = "") -> None:
    """Write weights back as published II-World files.

    Args:
        folder: what `iidrive import ii-world` wrote.
        stage1: .pth file to write for the scene tokenizer.
        stage2: .pth file to write for the world model.
    """
    interchange.export_ii_world(folder, stage1, stage2)
    print("\n".join(f"wrote {path}" for path in (stage1, stage2) if path))


def lineage(paths: list[str]) -> None:
    """Print what checkpoints, token caches, predictions files, scores or run folders descend from, and whether they fit together.

    Args:
        paths: one or more paths, separated by blanks.
    """
    found = [item for path in paths for item in trace.trace(path)]
    print("\n".join(trace.describe(item) for item in found))
    together = trace.fit_together(found)
    if together:
        print(together)


def swap(
    paths: list[str],
    run: str = "runs/swap",
    scenes: int = 8,
    test_ii: Switch = "on",
    json: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
) -> None:
    """Evaluate every tokenizer × world model × planner of some runs, and say whether quality or a mismatch makes a result bad.

    Args:
        paths: two or more run folders or checkpoints, separated by blanks; the stages below each are found by themselves.
        run: run folder to write (swap.txt, swap.json, tokens).
        scenes: how many scenes of the split, spread evenly; 0: all.
        test_ii: whether planners use the imagined future.
        json: where to write the numbers besides.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to test on; default: the usual test split.
        recipe: names the towns (the first world model's own towns are used when it was trained on towns).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
    """
    grid = swap_.grid_of(paths)
    choice = Data(data, root, version, occupancy, gts, predicted)
    recipe = replace(recipe, town=assess.town_of(grid.worlds[0].manifest, recipe.town))
    source, split = _open(choice, recipe, split, "test")
    started = Run.start(run, stages.describe("swap", recipe, source, split) | {"paths": paths, "scenes": scenes, "test_ii": test_ii})
    with assess.counting("swap", grid.size) as tick:
        result = swap_.swap(grid, source, split, started, scenes, test_ii == "on", tick)
    text = swap_.text(result, source, split, test_ii == "on")
    print(text)
    started.write_text("swap.txt", text + "\n")
    for target in (str(started.folder / "swap.json"), json):
        if target:
            _write_json(target, swap_.to_json(result))


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


def audit(
    model: str,
    cases: str = "",
    samples: int = 16,
    test_ii: Switch = "on",
    tokens: str = "",
    json: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
) -> None:
    """Does anything that a model must not know change its answers? Exit status 1 if so. For predictions alone: can they be this good?

    Args:
        model: run folder or checkpoint of a planner or world model, a baseline's name, or an npz of planned paths with --cases.
        cases: truth to judge predictions with.
        samples: about how many samples to audit at, spread over the split.
        test_ii: whether the planner uses the imagined future.
        tokens: token cache to audit with the model; default: tokens are made anew.
        json: where to write the findings.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to audit on; default: the usual test split.
        recipe: names the towns (a checkpoint's own towns are used when it was trained on towns).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
    """
    if Path(model).is_file() and holds_arrays(model):
        if not cases:
            raise ConfigError(f"{model} holds planned paths, which can only be judged with the truth: add --cases CASES.npz.")
        truth = read_cases(cases)
        judged = plausibility.plausible(truth, align(truth, read_predictions(model)))
        text, good, found = plausibility.format_plausibility(judged), not judged.reasons, plausibility.to_json(judged)
    else:
        make = auditing.of_checkpoint(model, test_ii == "on", tokens)
        if Path(model).exists():
            recipe = replace(recipe, town=assess.town_of(checkpoint.read_manifest(model), recipe.town))
        source, split = _open(Data(data, root, version, occupancy, gts, predicted), recipe, split, "test")
        some = auditing.choose(source, split, samples)
        with assess.counting("audit", auditing.rounds(some)) as tick:
            report = auditing.audit(make, source, some, tick)
        text, good, found = findings.format_audit(report), report.clean, findings.to_json(report)
        text = f"{assess.about_line(source, split, {'model': model})}\n{text}"
    print(text)
    if json:
        _write_json(json, found)
    if not good:
        sys.exit(1)


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": {"_help": "Train a stage.", "tokenizer": train_tokenizer, "world": train_world, "planner": train_planner},
    "tokens": tokens,
    "evaluate": evaluate,
    "cases": cases,
    "score": score,
    "compare": compare,
    "doctor": doctor,
    "audit": audit,
    "import": {"_help": "Bring in weights of another project.", "ii-world": import_ii_world},
    "export": {"_help": "Give weights to another project.", "ii-world": export_ii_world},
    "lineage": lineage,
    "swap": swap,
}
MANY = ("lineage", "swap", "compare", "doctor")
"""Commands that take any number of paths."""


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
    """`--test-ii` as `--test_ii`, a recipe's name as its values, so that overrides can follow it, and many paths as one list."""
    if arguments and arguments[0] in MANY:
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
        _note(sentence)
    return source, split or source.usual_split(part)


def _note(sentence: str) -> None:
    console.print(f"note: {sentence}", markup=False, highlight=False, soft_wrap=True)


def _start(run: str, about: dict[str, Any], resume: Switch) -> Run:
    started = Run.start(run, about, resume == "on")
    if resume == "off":
        started.write_json("recipe.json", about["recipe"])
    return started


def _tokens(
    folder: str, tokenizer: str, source: Source, split: str, run: Path, allow: bool = False, shard: slice = slice(None)
) -> TokenCache:
    if allow and folder and (Path(folder) / "manifest.json").is_file():
        there = TokenCache(folder)
        if there.manifest.tokenizer != checkpoint.read_manifest(tokenizer).fingerprint:
            return there  # another tokenizer's: read as it is, never added to
    names = source.scene_names(split)[shard]
    folder = folder or str(stages.tokens_folder(run, tokenizer, source))
    with assess.counting("tokens", len(names)) as tick:
        return stages.write_tokens(tokenizer, source, names, folder, tick, _note)


def _shard(text: str) -> slice:
    """The places of a shard's scenes: `1/4` is 1, 5, 9, …"""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard {text}: expected K/N with 0 <= K < N, as in `--shard 0/4` to `--shard 3/4` for four processes.")
    return slice(int(number), None, int(count))


def _finish(path: Path, data: Data, recipe: Recipe, run: str) -> None:
    manifest = checkpoint.read_manifest(path)
    print(f"{mark_lines(manifest.marks)}{manifest.kind} {manifest.fingerprint} after {manifest.samples_seen} samples: {path}")
    if "tokens_mIoU" in manifest.metrics:
        found, recorded = 100 * manifest.metrics["tokens_mIoU"], 100 * manifest.metrics["stage1_mIoU"]
        print(f"0 s check: its tokens decode at {found:.1f} % mIoU; stage 1 recorded {recorded:.1f} %")
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
