"""The doctor on the reference runs, on planted errors, and on correct tables, which must not be suspected."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cases import make_cases
from make_tables import PLAIN_L2, print_table

from iidrive.analysis.doctor.doctor import Diagnosis, Report, diagnose, format_report, read_report_tables
from iidrive.analysis.doctor.findings.growth import DRIVEN_M, MIRRORED_M
from iidrive.analysis.doctor.findings.hardware import gpus_named
from iidrive.analysis.doctor.printed import parse_tables
from iidrive.analysis.doctor.repair import diagnose_predictions
from iidrive.cli.main import main
from iidrive.scoring.cases import Cases, read_cases, write_cases
from iidrive.scoring.predictions import Predictions, write_predictions
from iidrive.scoring.score import score
from iidrive.scoring.tables import format_scores


def one(text: str, n: int | None = None) -> Diagnosis:
    return diagnose(parse_tables(text), n).tables[0]


def told(diagnosis: Diagnosis, kind: str) -> str:
    return next(f.sentence for f in diagnosis.findings if f.kind == kind)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Report:
    return diagnose(read_report_tables([shared / "fixtures" / "notes" / "reference-notes.txt"]))


def test_the_five_runs(reference: Report) -> None:
    assert [d.suspects() for d in reference.tables] == [[], [], ["number of GPUs"], ["stage mismatch"], ["leak"]]
    assert [(i, j) for i, j, _ in reference.noise] == [(1, 2)]
    assert len(reference.differ) == 9
    for diagnosis in reference.tables:
        assert told(diagnosis, "set").startswith("nuScenes val, complete: obj_col decodes to 38 35 32 30 31 30 of 5119")


def test_each_suspicion_has_evidence_and_a_decisive_test(reference: Report) -> None:
    for diagnosis in reference.tables:
        for finding in diagnosis.findings:
            if finding.suspect:
                assert len(finding.evidence) >= 2
                assert "iidrive" in finding.decide
    text = format_report(reference)
    assert "9.2 m/s²" in text
    assert "It is not the 2 GPUs: table 1 names 2 too" in text
    assert "8 does not divide the 150 scenes" in text
    assert "4 times as large" in text
    assert "0.09 m/s² of unforeseen acceleration" in text


def test_the_numbers_alone_are_enough(shared: Path) -> None:
    """Without the text around the tables, R4 and R5 are still suspected; R3 is only noted, because its GPUs are not named."""
    notes = (shared / "fixtures" / "notes" / "reference-notes.txt").read_text(encoding="utf-8")
    bare = "\n\n".join(line for line in notes.split("\n") if re.match(r"[|+{]|obj_box_col:|L2:", line))
    found = diagnose(parse_tables(bare)).tables
    assert [d.suspects() for d in found] == [[], [], [], ["stage mismatch"], ["leak"]]
    assert "number of GPUs" in [f.kind for f in found[2].findings]


def test_chance_is_the_square_root_of_the_counts(reference: Report) -> None:
    assert "avg 0.164 % ± 0.018" in told(reference.tables[0], "events")


@pytest.mark.parametrize(
    ("l2", "kind"),
    [
        ([2 * d for d in DRIVEN_M], "sign flip"),
        ([np.sqrt(2) * d for d in DRIVEN_M], "wrong frame"),
        (DRIVEN_M, "still or mis-paired"),
        ([2.28 * d for d in DRIVEN_M], "units"),
        ([0.02, *DRIVEN_M[:-1]], "units"),
        ([2.3] * 6, "shifted steps"),
        ([1.2, 2.5, 4.2, 6.1, 8.2, 10.4], "stage mismatch"),
        ([0.1, 0.14, 0.2, 0.29, 0.36, 0.41], "leak"),
        (PLAIN_L2, None),
        ([0.10, 0.25, 0.45, 0.75, 1.05, 1.4], None),  # ego status and command only, as published planners reach it
        ([0.32, 0.85, 1.56, 2.45, 3.5, 4.8], None),  # constant velocity
    ],
)
def test_planted_symptoms(l2: list[float], kind: str | None) -> None:
    assert one(print_table(l2)).suspects() == ([kind] if kind else [])


def test_mirrored_paths_are_only_noted() -> None:
    found = one(print_table(MIRRORED_M))
    assert found.suspects() == []
    assert "check the sign of x" in told(found, "sign of x")


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0.6, 1.8), bend=st.floats(0.9, 1.15), seed=st.integers(0, 10**6))
def test_healthy_planners_stay_healthy(scale: float, bend: float, seed: int) -> None:
    wobble = np.random.default_rng(seed).uniform(0.97, 1.03, 6)
    l2 = scale * np.array(PLAIN_L2) ** bend * wobble
    assert one(print_table(l2.tolist())).suspects() == []


def test_the_evaluation_set() -> None:
    assert one(print_table(truth=(38, 35, 32, 30, 31, 29))).suspects() == ["mis-paired"]
    half = one(print_table(truth=(19, 17, 16, 15, 15, 14), n=2501))
    assert "a subset of it or another set" in told(half, "set")
    assert "another set than nuScenes val" in told(one(print_table(truth=(80, 85, 82, 80, 81, 83), n=2501)), "set")
    assert one(print_table(truth=(38, 35, 32, 30, 31, 31), n=5120)).suspects() == ["repeated samples"]
    assert "UniAD" in told(one(print_table(truth=(38, 35, 32, 31, 31, 30), n=6019)), "set")
    assert "set" in one(print_table(truth=(7,) * 6, n=361, tail=False)).suspects()


def test_tables_that_contradict_themselves() -> None:
    good = print_table()
    assert "inconsistent averages" in one(good.replace("L2: 0.", "L2: 9.")).suspects()
    assert "inconsistent averages" in one(re.sub(r"'L2': [\d.]+", "'L2': 0.5", good)).suspects()
    rows = [line for line in good.split("\n") if "|     L2" in line]
    wrong = rows[0].replace(rows[0].split("|")[-2], " 0.6500 ")
    found = one(good.replace(rows[0], wrong))
    assert "inconsistent averages" in found.suspects()


def test_tables_of_other_sets_are_not_compared() -> None:
    text = print_table() + "\n\n" + print_table(truth=(38, 35, 32, 30, 31, 29))
    report = diagnose(parse_tables(text))
    assert [(i, j) for i, j, _ in report.apart] == [(1, 2)]
    assert "not comparable" in format_report(report)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("两卡，训练有ii", 2),
        ("八卡测试", 8),
        ("用4张卡", 4),
        ("trained on 8 GPUs", 8),
        ("8xGPU", 8),
        ("two-GPU run", 2),
        ("卡住了", None),
        ("", None),
    ],
)
def test_numbers_of_gpus(words: str, expected: int | None) -> None:
    assert gpus_named(words) == expected


def test_the_command_reads_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "table-a.txt").write_text(print_table())
    (tmp_path / "run" / "table-b.txt").write_text("8 GPUs\n" + print_table([1.9 * v for v in PLAIN_L2]))
    (tmp_path / "run" / "other.txt").write_text("no table")
    main(["doctor", str(tmp_path / "run"), "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "table 2" in printed
    assert "SUSPECT number of GPUs" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert [t["suspects"] for t in found["tables"]] == [[], ["number of GPUs"]]
    for arguments, message in (
        ([str(tmp_path / "none.txt")], "cannot be read"),
        ([str(tmp_path)], "no table in the text files"),
        ([str(tmp_path / "run" / "other.txt")], "no table found"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *arguments])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------------------------------------------------- planned paths


@pytest.fixture(scope="module")
def driven(shared: Path) -> Cases:
    cases = read_cases(shared / "fixtures" / "protocols" / "inputs.npz")
    return replace(cases, own_tokens=True)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda p: p * [-1, 1], "sign flip"),
        (lambda p: -p, "sign flip"),
        (lambda p: np.stack([p[..., 1], -p[..., 0]], -1), "wrong frame"),
        (lambda p: p[..., ::-1], "wrong frame"),
        (lambda p: np.diff(p, axis=1, prepend=0.0), "units"),
        (lambda p: p / 0.3048, "units"),
        (lambda p: p, None),
    ],
)
def test_the_correction_of_paths_is_found(driven: Cases, change: Callable[[np.ndarray], np.ndarray], kind: str | None) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (len(driven), 6, 2)) * np.arange(1, 7)[:, None]
    plan = np.asarray(change(driven.true_path() + noise), np.float32)
    report = diagnose_predictions(driven, Predictions(np.ascontiguousarray(plan), driven.token))
    suspects = report.tables[0].suspects()
    assert (kind in suspects) if kind else not {"sign flip", "wrong frame", "units", "mis-paired", "shifted steps"} & set(suspects)


def test_paths_of_the_row_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    heading = rng.uniform(0, np.pi, 40)
    paths = np.arange(1, 7)[None, :, None] * 3.0 * np.stack([np.cos(heading), np.sin(heading)], -1)[:, None]
    cases = make_cases(list(paths))
    write_cases(tmp_path / "c.npz", cases)
    write_predictions(tmp_path / "p.npz", cases.token, np.roll(paths, 1, axis=0))
    main(["doctor", str(tmp_path / "p.npz"), "--cases", str(tmp_path / "c.npz")])
    assert "SUSPECT mis-paired: with paths of the sample 1 rows after" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["doctor", str(tmp_path / "p.npz")])
    assert "add --cases CASES.npz" in " ".join(capsys.readouterr().err.split())


def test_its_own_printout_is_read_back(driven: Cases) -> None:
    assert driven.pred is not None
    scores = score(driven, driven.pred)
    table = parse_tables(format_scores(scores))[0]
    assert table.n == 360
    assert table.events == {name: tuple(value.tolist()) for name, value in scores.events.items()}
    assert "another set than nuScenes val" in told(diagnose([table]).tables[0], "set")


def test_a_marked_table_is_suspected(driven: Cases) -> None:
    assert driven.pred is not None
    mark = "MISMATCH ALLOWED: world 3c4d, trained on tokenizer 9d01, used with tokenizer 5e6f"
    table = parse_tables(f"{mark}\ndata: mine\n{format_scores(score(driven, driven.pred))}")[0]
    assert (table.marks, table.heading) == ((mark,), "data: mine")
    finding = next(f for f in diagnose([table]).tables[0].findings if f.kind == "stage mismatch")
    assert finding.suspect
    assert finding.evidence == (mark,)
    assert "iidrive lineage" in finding.decide
