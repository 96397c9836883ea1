"""Commands about predictions and printed tables of any code base: cases, score, compare, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from iidrive.analysis.compare import compare as comparing
from iidrive.analysis.compare.grid import format_grid
from iidrive.analysis.compare.navsim import compare_score_files, is_score_file
from iidrive.analysis.compare.tables import compare_files as compare_table_files
from iidrive.analysis.doctor import doctor as doctoring
from iidrive.analysis.doctor import occupancy
from iidrive.analysis.doctor.printed import is_log
from iidrive.analysis.doctor.repair import diagnose_predictions, repair
from iidrive.cli.options import DataOptions, read_plans, write_json
from iidrive.core.class_tables import named
from iidrive.core.errors import ConfigError
from iidrive.core.lineage import joined, mark_lines, mark_numbers
from iidrive.core.untrusted.files import require_regular
from iidrive.data import DataName
from iidrive.data.clips import read_tracks
from iidrive.data.occupancy_grids import looks_like_occupancy
from iidrive.pipeline import recipes
from iidrive.pipeline.infer import truth as true_cases
from iidrive.pipeline.pdm import TRUE_PATH, pdm
from iidrive.pipeline.recipes import Recipe
from iidrive.scoring import score as scoring
from iidrive.scoring.cases import Cases, read_cases, write_cases
from iidrive.scoring.occupancy_sides import Written
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.protocols import protocols_named
from iidrive.scoring.readers import read_paths
from iidrive.scoring.sampled import holds_arrays, pieces_of, predictions_in, read_runs
from iidrive.scoring.tables import format_scores, format_together

Array = np.ndarray

_FAR_M = 1.5
"""If L2 at 0.5 s is above this, the paths are probably in another format: real planners are below 0.5 m."""


def cases(
    out: str = "cases.npz",
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Write the ground truth of a split for `iidrive score`, `compare` and `doctor`: every keyframe with its true path and boxes.

    Args:
        out: cases file to write (npz).
        where: scenes to write; default: the usual test split.
        recipe: the towns (seed, number of scenes).
    """
    source, split = where.open(recipe, "test")
    found = true_cases(source, read_tracks(source, split))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_cases(out, found)
    print(f"{_counted(found, f'{source.name} {split}')}: {out}")


def score(
    files: list[str] = [],  # noqa: B006 - never written to
    protocol: str = "sparsedrive",
    predictions: str = "",
    json: str = "",
    per_sample: str = "",
    tokens: str = "",
    cases: str = "",
    data: Literal["", "town", "nuscenes", "av2"] = "",
    where: DataOptions = DataOptions(),  # noqa: B008
) -> None:
    """Score planned paths by public protocols, in one pass.

    Args:
        files: the ground truth: one cases file (npz), or use --data.
        protocol: some of sparsedrive,uniad,stp3,vad,occworld,admlp,bevplanner, or all (those that the files allow); or pdm, which follows
            every plan for 3 s among the recorded boxes and computes EPDMS: it needs --data.
        predictions: planned paths by sample token (npz, pickle, JSON), or SparseDrive's results.pkl with --tokens; default: `pred` of
            the cases file, or the true path as a checksum.
        json: file to write the scores to.
        per_sample: file to write the per-sample results to (npz).
        tokens: sample tokens of predictions without tokens, in their order: one per line, or a JSON list.
        cases: alternative way to give the cases file.
        data: dataset with the ground truth, instead of a cases file.
        where: scenes to score; default: the usual test split.
    """
    if protocol.strip() == "pdm":
        _score_pdm(files, predictions, tokens, json, data, where)
        return
    names = protocols_named(protocol)
    if tokens and not predictions:
        raise ConfigError("--tokens is the list of sample tokens of a predictions file: add --predictions FILE.")
    for path in (json, per_sample):
        if path:
            require_regular(path)
    truth = _truth([*files, *([cases] if cases else [])], data, where)
    marks: tuple[str, ...] = ()
    if predictions:
        found, marks = read_plans(predictions, tokens)
        paths = align(truth, found)
    elif truth.pred is not None:
        paths = truth.pred
    else:
        print("no predictions given: scoring the true path itself, whose obj_col row is a checksum of the set.")
        paths = np.cumsum(truth.gt_ego_fut_offsets, axis=1, dtype=np.float32)
    if protocol.strip() == "all":
        scores, lacking = scoring.score_possible(truth, paths, names)
    else:
        scores, lacking = scoring.score_all(truth, paths, names), []
    tables = "\n\n".join(format_scores(one) if len(names) == 1 else f"{one.protocol}\n{format_scores(one)}" for one in scores)
    print(f"{mark_lines(marks)}{tables}")
    if len(names) > 1:
        print("\n" + "\n".join([format_together(scores), *lacking]))
    if predictions:
        _advise(truth, paths, float(scores[0].per_step["L2"][0]), predictions)
    if json:
        write_json(json, mark_numbers(scoring.to_json(*scores), marks))
    if per_sample:
        scoring.write_per_sample(per_sample, *scores, scene=truth.scene, marks=marks)


def _advise(truth: Cases, paths: Array, first_m: float, predictions: str) -> None:
    """Print a note if the paths are probably in another format than expected, with the correction that would fit."""
    found = repair(truth, paths)
    command = f"`iidrive doctor {predictions} --cases CASES.npz`"
    if found is not None:
        print(f"note: {found.kind}: {found.sentence} Run {command} for details.")
    elif first_m > _FAR_M:
        print(
            f"note: L2 at 0.5 s is {first_m:.2f} m, more than any planner's: the paths may be in another frame, unit or order. "
            f"{command} tests some of these."
        )


def _score_pdm(files: Sequence[str], predictions: str, tokens: str, json: str, data: DataName | Literal[""], where: DataOptions) -> None:
    if files or not data or data == "town":
        raise ConfigError(
            "pdm needs maps and tracks, which cases files do not have: add --data nuscenes (av2) --root PATH. "
            "For towns: `iidrive evaluate PLANNER --protocol pdm`."
        )
    source, split = replace(where, data=data).open(recipes.small(), "test")
    tracks = read_tracks(source, split)
    marks: tuple[str, ...] = ()
    if predictions:
        found, marks = read_plans(predictions, tokens)
        if found.token is None:
            raise ConfigError(f"{predictions} has no sample tokens: add --tokens LIST.")
        plans = dict(zip(found.token, found.trajectory, strict=True))
    else:
        print("no predictions given: scoring the true path itself.")
        plans = {token: track.path[i] for track in tracks for i, token in enumerate(track.tokens)}
    result = pdm(Path(predictions).stem if predictions else TRUE_PATH, source, tracks, plans)
    print(f"{mark_lines(marks)}{result.text()}")
    if json:
        write_json(json, mark_numbers({"pdm": result.to_json()}, marks))


def _truth(files: Sequence[str], data: DataName | Literal[""], where: DataOptions) -> Cases:
    """The ground truth from a cases file or directly from a dataset."""
    if len(files) > 1:
        raise ConfigError(
            f"score takes one cases file; found {', '.join(files)}. Every other file follows an option, as in --predictions FILE."
        )
    cases = files[0] if files else ""
    if not data and (where.root or where.split or where.version):
        raise ConfigError("--root, --split and --version describe a dataset: add --data nuscenes or --data av2.")
    if cases and data:
        raise ConfigError(f"the ground truth was given twice, by {cases} and by --data {data}: leave one out.")
    if data == "town":
        raise ConfigError("towns need a recipe: write their ground truth with `iidrive cases --recipe …`, then score that file.")
    if data:
        source, split = replace(where, data=data).open(recipes.small(), "test")
        found = true_cases(source, read_tracks(source, split))
        print(_counted(found, f"{source.name} {split}"))
        return found
    if not cases:
        raise ConfigError("score needs the ground truth: `iidrive score CASES.npz …`, or --data nuscenes (av2) --root PATH.")
    if Path(cases).is_dir():
        raise ConfigError(
            f"{cases} is a folder, not a cases file. For the ground truth of a dataset: --data nuscenes --root {cases}, or --data av2."
        )
    return read_cases(cases)


def _counted(cases: Cases, of: str) -> str:
    return f"{len(cases)} samples of {of}, {int(cases.full.sum())} with a full future, {len(cases.box)} boxes"


def compare(files: list[str], cases: str = "", tables: bool = False, grid: bool = False, samples: int = 0, tokens: str = "") -> None:
    """Test whether two runs differ: A is better, worse, or there is no significant difference.

    Args:
        files: A B: predictions (npz, pickle, JSON), per-sample files or run folders; several seeds of a side joined by
            commas, folds of a seed by +; or two texts with tables, or two score files of NAVSIM (csv).
        cases: ground truth of the samples, needed for predictions; it also gives the scenes of per-sample files.
        tables: A and B are printed tables (FILE#2 is the second table of a file); texts are recognised without it.
        grid: any number of files with train_ii and test_ii in their meta: print the 2×2 grid and compare rows and columns.
        samples: number of samples that the tables were scored on, if their digits do not determine it.
        tokens: sample tokens of predictions without tokens, in their order: one per line, or a JSON list.
    """
    if not tables and files and all(is_score_file(file) for file in files):
        print(compare_score_files(files))
        return
    if not tables and (csv := [file for file in files if is_score_file(file)]):
        raise ConfigError(
            f"{csv[0]} is a score file of NAVSIM, which is compared with another score file; found {len(files)} files, {len(csv)} of them such."
        )
    if tables or not any(holds_arrays(part) and not is_log(part) for file in files for seed in file.split(",") for part in pieces_of(seed)):
        if tokens:
            raise ConfigError("--tokens is for predictions without sample tokens, and tables have none: leave it out.")
        print(compare_table_files(files, samples or None))
        return
    if not grid and len(files) != 2:
        raise ConfigError(f"compare takes two sides, A and B; found {len(files)}. Join the seeds of one side by commas.")
    truth = read_cases(cases) if cases else None
    unnamed: list[Path] = []

    def read(path: Path) -> Predictions:
        if tokens and read_paths(path).predictions.token is None:
            unnamed.append(path)
        found, marks = read_plans(path, tokens if path in unnamed else "")
        print(mark_lines(marks), end="")
        return found

    sides = [read_runs(file, truth, read) for file in files]
    print(mark_lines(joined(*(run.marks for side in sides for run in side))), end="")
    if tokens and not unnamed:
        raise ConfigError("--tokens is for predictions without sample tokens, but all of these files have their own: leave it out.")
    if grid:
        print(format_grid([run for side in sides for run in side]))
        return
    print(f"A: {files[0]}\nB: {files[1]}")
    print(comparing.format_comparison(comparing.compare(sides[0], sides[1])))


def doctor(
    files: list[str],
    cases: str = "",
    truth: str = "",
    classes: str = "",
    truth_classes: str = "",
    samples: int = 0,
    json: str = "",
    tokens: str = "",
) -> None:
    """Examine printed tables, runs or predictions: evaluation set, event counts, significance, and suspected errors with a decisive test.

    Args:
        files: logs or notes with printed tables (FILE#2: only the second table), run folders, one predictions file (npz, pickle, JSON)
            with --cases, or one folder of predicted occupancy with --truth.
        cases: ground truth for a predictions file, or for the one in a run folder.
        truth: folder of occupancy labels, to find the class numbers, axes, shift, time or sample that fit predicted occupancy.
        classes: class numbers of predicted occupancy, as in `iidrive score-occupancy`.
        truth_classes: class numbers of the occupancy labels.
        samples: number of scored samples, if the digits do not determine it.
        json: file to write the findings to.
        tokens: sample tokens of predictions without tokens, in their order: one per line, or a JSON list.
    """
    if truth:
        if len(files) != 1 or cases or tokens or samples:
            raise ConfigError(
                "--truth is for one folder of predicted occupancy: `iidrive doctor PREDICTED --truth GTS`, without --cases, --tokens or --samples."
            )
        found = occupancy.examine(files[0], truth, Written(named(classes), named(truth_classes)))
        print(occupancy.format_report(found))
        if json:
            write_json(json, occupancy.to_json(found))
        return
    if classes or truth_classes:
        raise ConfigError("--classes and --truth-classes are for occupancy: add --truth GTS, the folder of its labels.")
    if len(files) == 1 and not cases and looks_like_occupancy(files[0]):
        raise ConfigError(f"{files[0]} holds occupancy, which needs the ground truth: add --truth GTS, the folder of labels.")
    paths = [file for file in files if not Path(file).is_dir() and holds_arrays(file) and not is_log(file)]
    if cases and len(files) == 1 and Path(files[0]).is_dir():
        paths = [str(predictions_in(Path(files[0])))]
    if paths:
        if len(files) > 1:
            raise ConfigError(f"doctor examines one predictions file at a time; found {', '.join(files)}. Use `iidrive compare` for two.")
        if not cases:
            raise ConfigError(f"{paths[0]} holds planned paths, which need the ground truth: add --cases CASES.npz.")
        true = read_cases(cases)
        found, marks = read_plans(paths[0], tokens)
        print(mark_lines(marks), end="")
        report = diagnose_predictions(true, found)
    else:
        if cases or tokens:
            raise ConfigError("--cases and --tokens are for one predictions file or run folder; tables are examined without them.")
        report = doctoring.doctor(files, samples)
    print(doctoring.format_report(report))
    if json:
        write_json(json, doctoring.to_json(report))
