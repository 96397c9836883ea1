"""Commands about predictions and tables, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iidrive import recipes, trace
from iidrive.commands.common import note, open_data, write_json
from iidrive.data import Data, DataName
from iidrive.errors import ConfigError
from iidrive.eval import compare as comparing
from iidrive.eval import doctor as doctoring
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
    source, split = open_data(Data(data, root, version), recipe, split, "test")
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
            note(found.assumed)
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
        write_json(json, mark_numbers(scoring.to_json(*scores), marks))
    if per_sample:
        scoring.write_per_sample(per_sample, *scores)


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
        write_json(json, doctoring.to_json(report))
