"""Findings of the doctor on tables in any printed form."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tables import PLAIN_L2, print_table

from iidrive.analysis.compare.tables import compare_tables
from iidrive.analysis.doctor.decode import decode
from iidrive.analysis.doctor.doctor import Diagnosis, diagnose, format_report, read_report_tables
from iidrive.analysis.doctor.findings.growth import DRIVEN_M
from iidrive.analysis.doctor.findings.hardware import hardware
from iidrive.analysis.doctor.printed import parse_tables
from iidrive.cli.main import main
from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.scoring.score import prefix_means


def said(text: str, n: int | None = None) -> list[Diagnosis]:
    return list(diagnose(parse_tables(text), n).tables)


def sentence(diagnosis: Diagnosis, kind: str) -> str:
    return next(f.sentence for f in diagnosis.findings if f.kind == kind)


def grid(l2: tuple[float, ...], percent: bool = False) -> str:
    """UniAD's shape: values at six steps."""
    zeros = " | ".join(["0.000%" if percent else "0.0000"] * 6)
    return (
        "| metrics | 0.5s | 1.0s | 1.5s | 2.0s | 2.5s | 3.0s |\n"
        f"| obj_box_col | {zeros} |\n| L2 | " + " | ".join(f"{v:.4f}" for v in l2) + " |"
    )


ZEROS = print_table(hits=(0,) * 6, truth=(0,) * 6, n=69)


# ---------------------------------------------------------------------------------------------------------------- N and the set


def test_zeros_do_not_determine_the_number_of_samples() -> None:
    for text in (ZEROS, "\n".join(ZEROS.split("\n")[:-3]), grid(PLAIN_L2)):
        found = said(text)[0]
        assert found.suspects() == []
        assert found.decoded is None
        assert "N is unknown" in sentence(found, "set")
    bar = "[>>>>>>>>>>>>>>>>>>>>] 81/81, 5.9 task/s, elapsed: 14s, ETA: 0s\n"
    assert "counts to 81" in sentence(said(bar + ZEROS)[0], "set")
    assert "nothing suspicious in what can be examined; unknown: the set" in format_report(diagnose(parse_tables(ZEROS)))


def test_vads_means_determine_the_number_of_samples_without_collisions() -> None:
    text = f"gt_car:{490 / 69}\n" + "".join(f"plan_L2_{h}s:0.{h}\nplan_obj_box_col_{h}s:0.0\n" for h in (1, 2, 3))
    found = decode(parse_tables(text)[0])
    assert found is not None
    assert (found.n, found.events["obj_box_col"]) == (69, (0, 0, 0))


def test_an_assumed_number_of_samples_is_not_a_mispairing() -> None:
    text = print_table(truth=(38, 35, 32, 30, 31, 29), tail=False)
    assert said(text)[0].suspects() == []
    assert "another set" in sentence(said(text)[0], "set")
    assert said(text, 5119)[0].suspects() == ["mis-paired"]


def test_only_sparsedrives_obj_col_is_a_checksum() -> None:
    table = "| metrics | 0.5s | 1.0s | 1.5s | 2.0s | 2.5s | 3.0s |\n| obj_col | 0.0002 | 0.0002 | 0.0003 | 0.0005 | 0.0007 | 0.0012 |"
    found = said(table)[0]
    assert found.decoded is not None
    assert found.decoded.n == 6019
    assert "no row is a checksum" in sentence(found, "set")


COUNTED = print_table(hits=(0, 0, 1, 1, 5, 17), truth=(0,) * 6, n=175)
LINE = "\nobj_box_col events per step, of {n} samples: {events}"
SCORED = "\nscored 175 samples; skipped none."


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (LINE.format(n=175, events="0 0 1 1 5 17") + SCORED, ""),
        (LINE.format(n=175, events="999 999 999 999 999 999") + SCORED, "999 events of 175"),
        (LINE.format(n=175, events="0 0 1 1 5 18") + SCORED, "would print"),
        (LINE.format(n=350, events="0 0 1 1 5 17") + SCORED, "different numbers of samples: 175, 350"),
        (LINE.format(n=2_000_000_000, events="0 0 1 1 5 17") + SCORED, "not plausible"),
        (LINE.format(n=0, events="0 0 0 0 0 0") + SCORED, "not plausible"),
    ],
)
def test_count_lines_are_compared_with_the_table(lines: str, why: str) -> None:
    found = said(COUNTED + lines)[0]
    assert found.decoded is not None
    assert (found.decoded.n, found.decoded.events["obj_box_col"]) == (175, (0, 0, 1, 1, 5, 17))
    assert found.suspects() == (["count lines"] if why else [])
    if why:
        assert any(why in line for f in found.findings for line in f.evidence)
        table = parse_tables(COUNTED + lines)[0]
        with pytest.raises(DataError, match="contradict"):
            compare_tables(table, parse_tables(COUNTED)[0])


@pytest.mark.parametrize("events", ["0 0 11 5 17", "9" * 5000, "0 0 0 0 0 " + "9" * 30, "0 0 1 1 5 17 3", "0 0 1 1 5 x", ""])
def test_unreadable_count_lines_are_reported(events: str) -> None:
    found = said(COUNTED + LINE.format(n=175, events=events) + SCORED)[0]
    assert found.suspects() == []
    assert "does not give six counts" in sentence(found, "unreadable")


def test_other_numbers_of_samples_beside_a_table_are_not_its_own() -> None:
    found = said(print_table() + "\nTotal 28130 samples in the training set")[0]
    assert found.suspects() == []
    assert found.decoded is not None
    assert found.decoded.n == 5119


def test_lines_below_a_table_are_its_own() -> None:
    text = f"{COUNTED}{LINE.format(n=175, events='0 0 1 1 5 17')}{SCORED}\n\nbevplanner\n0:plan_L2_1s:0.5\n0:plan_obj_box_col_3s:{6 / 175}"
    text += LINE.format(n=175, events="0 1 1 2 1 3") + SCORED
    one, two = said(text)
    assert one.suspects() == two.suspects() == []
    assert one.table.events["obj_box_col"] == (0, 0, 1, 1, 5, 17)
    assert two.decoded is not None
    assert two.decoded.events["obj_box_col"] == (6,)
    assert said(text.replace("0 1 1 2 1 3", "0 0 0 0 0 3"))[1].suspects() == ["count lines"]


# ------------------------------------------------------------------------------------------------------------------------ L2, NaN


def test_the_same_symptoms_are_seen_in_values_and_in_means() -> None:
    leak = (0.1, 0.14, 0.2, 0.29, 0.36, 0.41)
    assert said(grid(leak))[0].suspects() == ["leak"]
    assert said(grid(PLAIN_L2))[0].suspects() == []
    columns = prefix_means(leak)  # type: ignore[arg-type]
    lines = "".join(f"plan_L2_{h}s:{columns[2 * h - 1]}\nplan_obj_box_col_{h}s:0.0\n" for h in (1, 2, 3))
    assert said(lines)[0].suspects() == ["leak"]


def test_patterns_of_the_distance_driven_are_seen_in_three_columns() -> None:
    columns = prefix_means(DRIVEN_M)  # type: ignore[arg-type]
    lines = "".join(f"plan_L2_{h}s:{columns[2 * h - 1]}\nplan_obj_box_col_{h}s:{3 * h / (2 * h * 5119)}\n" for h in (1, 2, 3))
    assert said(lines)[0].suspects() == ["still or mis-paired"]


def test_a_constant_error_of_speed_on_a_small_set_is_no_stage_mismatch() -> None:
    text = grid(tuple(0.59 * k for k in range(1, 7))) + LINE.format(n=81, events="0 0 0 0 0 0")
    found = said(text)[0]
    assert found.suspects() == []
    assert "1.18 m/s" in sentence(found, "speed")


def test_with_unknown_averaging_only_findings_that_hold_both_ways_remain() -> None:
    table = "| Method | L2 1s | L2 2s | L2 3s |\n|---|---|---|---|\n| a | {} | {} | {} |"
    assert said(table.format(0.17, 0.34, 0.60))[0].suspects() == []  # a leak only if these were values
    assert said(table.format(0.16, 0.19, 0.24))[0].suspects() == ["leak"]


def test_unreadable_cells_are_not_suspicious() -> None:
    broken = print_table(tail=False).replace("0.2100", "O.21OO").replace("0.742%", "0.7?2%")
    found = said(broken)[0]
    assert found.suspects() == []
    assert "O.21OO" in sentence(found, "unreadable")
    without = "\n".join(line for line in print_table(tail=False).split("\n") if "     L2" not in line)
    assert said(without)[0].suspects() == []
    assert "unknown: L2" in format_report(diagnose(parse_tables(without)))


def test_printed_nan_is_suspect() -> None:
    found = said(print_table(tail=False).replace("0.2100", "nan"))[0]
    assert found.suspects() == ["NaN"]


def test_a_guessed_unit_is_not_suspicious() -> None:
    assert said(print_table(truth=(7,) * 6, n=361, tail=False).replace("%", ""))[0].suspects() == []


def test_losses_that_were_nan_above_a_table_are_named() -> None:
    log = "Iter [50/100]\tloss_cls: 0.4, loss: 12.1\nIter [100/100]\tloss_cls: nan, loss: NaN, grad_norm: nan\n"
    found = said(log + print_table())[0]
    assert found.suspects() == ["NaN losses"]
    finding = next(f for f in found.findings if f.kind == "NaN losses")
    assert finding.evidence == ("loss_cls: line 2", "loss: line 2")
    assert "up to its last line" in finding.sentence
    after = "Iter [150/100]\tloss: 11.0\n"
    assert "later lines have finite losses again" in sentence(said(log + after + print_table())[0], "NaN losses")
    assert said(print_table() + "\n" + log)[0].suspects() == []  # below the table
    assert said("INFO - nan_to_num: True, loss: 3.1\n" + print_table())[0].suspects() == []
    assert "NaN losses" in said('{"mode": "train", "loss": NaN}\n' + print_table())[0].suspects()


# ----------------------------------------------------------------------------------------------------------------------- protocols


def test_protocols_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(print_table())
    (tmp_path / "b.txt").write_text(grid(PLAIN_L2))
    (tmp_path / "c.txt").write_text("| Method | L2 1s | L2 2s | L2 3s |\n|---|---|---|---|\n| a | 0.17 | 0.34 | 0.60 |")
    (tmp_path / "d.txt").write_text("{'obj_box_col': 0.1, 'L2': 0.5}")
    for other, words in (
        ("b", "A follows sparsedrive and B uniad"),
        ("c", "means up to a time or values at that time"),
        ("d", "has only averages"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", "--tables", str(tmp_path / "a.txt"), str(tmp_path / f"{other}.txt")])
        assert stop.value.code == 2
        assert words in " ".join(capsys.readouterr().err.split())
    report = format_report(diagnose(read_report_tables([tmp_path / "a.txt", tmp_path / "b.txt"])))
    assert "tables 1 and 2: table 1 follows sparsedrive and table 2 uniad" in report


def test_tables_of_one_protocol_are_compared_by_its_own_weights() -> None:
    texts = [
        "".join(f"plan_L2_{h}s:{0.3 * h}\nplan_obj_box_col_{h}s:{k / (2 * h * 5119)}\n" for h, k in zip((1, 2, 3), totals, strict=True))
        for totals in ((11, 50, 128), (11, 50, 700))
    ]
    one, two = (parse_tables(text)[0] for text in texts)
    result = compare_tables(one, two)
    assert result.differs == {"L2": False, "obj_box_col": True}
    # weights 11, 5, 2 of 36: only the last span differs, by 572 events
    assert f"{-100 * 2 * 572 / (36 * 5119):+.3f} points" in result.verdict


# ------------------------------------------------------------------------------------------------------------------------ hardware


@pytest.mark.parametrize(
    ("words", "count", "model"),
    [
        ("I use 3 4090 GPUs", 3, "4090"),
        ("8 A100", 8, "A100"),
        ("8张A100", 8, "A100"),
        ("8×A100", 8, "A100"),
        ("8xA100 80G", 8, "A100"),
        ("8 x 80GB A100 GPUs", 8, "A100"),
        ("single GPU (RTX 3070), batch size 4", 1, "RTX 3070"),
        ("8 NVIDIA GeForce RTX 3090.", 8, "NVIDIA GEFORCE RTX 3090"),
        ("用了3张4090显卡", 3, "4090"),
        ("A100 x 8", 8, "A100"),
        ("NVIDIA A100 (x4)", 4, "NVIDIA A100"),
        ("2 nodes of 8 A100", 16, "A100"),
        ("dual RTX 4090", 2, "RTX 4090"),
        ("十六卡", 16, None),
        ("torchrun --nproc_per_node=4", 4, None),
        ("train.py --gpus 8", 8, None),
        ("RTX 3070", None, "RTX 3070"),
        ("the 4090 GPUs", None, "4090"),
        ("24 GPU hours", None, None),
        ("CUDA 11.8 GPU build", None, None),
        ("samples_per_gpu=2", None, None),
        ("GPU 3 was busy", None, None),
        ("batch 8, epoch 20", None, None),
    ],
)
def test_counts_and_models_of_gpus_are_distinguished(words: str, count: int | None, model: str | None) -> None:
    found = hardware(words)
    assert found.count == count
    assert found.models == ((model,) if model else ())


# ---------------------------------------------------------------------------------------------------------------------- foreign words


def test_text_around_tables_is_escaped_and_shortened() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\x9b") == r"a\x1b[31mb\x07\u202ec\x9b"
    assert printable("x" * 1000, 20) == "x" * 19 + "…"
    assert printable("中文 ✓\u00a0é") == "中文 ✓ é"
    evil = "evil \x07\x9b31m \u202e" + "long" * 500 + "\n" + print_table(tail=False)
    report = format_report(diagnose(parse_tables(evil)))
    assert report.replace("\n", "").isprintable()
    assert max(map(len, report.split("\n"))) < 1000


PIECES = [
    "nan",
    "inf",
    "1e308",
    "1e-300",
    "-1",
    "999999999999",
    "N/A",
    "%",
    "|",
    "&",
    "\n",
    "0.0",
    "½",
    "1,5",
    "L2",
    "avg",
    "0s",
    "±",
    "\x00",
]


@settings(max_examples=60, deadline=None)
@given(
    text=st.sampled_from([print_table(), COUNTED + LINE.format(n=175, events="0 0 1 1 5 17") + SCORED, grid(PLAIN_L2)]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES)), min_size=1, max_size=6),
    n=st.sampled_from([None, 1, 5119, 10**9]),
)
def test_no_change_to_a_table_breaks_the_doctor(text: str, changes: list[tuple[float, int, str]], n: int | None) -> None:
    for place, length, piece in changes:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + length :]
    report = diagnose(parse_tables(text), n)
    assert format_report(report).replace("\n", "").isprintable()
    for diagnosis in report.tables:
        assert diagnosis.decoded is None or all(0 <= k <= 6 * diagnosis.decoded.n for row in diagnosis.decoded.events.values() for k in row)


# ---------------------------------------------------------------------------------------------------------------------- from the field

SUSPECTED: dict[str, list[list[str]]] = {
    "d06_vad_bad.txt": [["units"]],
    "d08_sparseworld_md.md": [["leak"], ["leak"], [], []],
    "d24b_contradicting_counts.txt": [["count lines"]],
    "d29_gpus.txt": [[], ["number of GPUs"]],
    "d29b_gpus_zh.txt": [[], ["number of GPUs"]],
    "d29c_gpus.txt": [[], ["number of GPUs"]],
}


def test_other_collected_tables_are_not_suspected(shared: Path) -> None:
    for path in sorted((shared / "fixtures" / "field" / "doctor").iterdir()):
        if path.name == "d33_wide60.txt":
            continue
        found = [d.suspects() for d in diagnose(read_report_tables([path])).tables]
        assert found == SUSPECTED.get(path.name, [[]] * len(found)), path.name


@pytest.mark.parametrize(
    ("name", "suspects", "words"),
    [
        ("m4-doctor-2e9-samples", ["count lines"], "2000000000 samples are not plausible"),
        ("s4-doctor-999-events-of-175", ["count lines"], "999 events of 175 samples are impossible"),
        ("t10-doctor-1e400", [], "'1e400'"),
        ("t11-doctor-5000-digits", [], "does not give six counts"),
        ("t12-doctor-30-digits", [], "does not give six counts"),
        ("t19-doctor-five-events", [], "does not give six counts"),
        ("u5-compare-N-differs", ["count lines"], "different numbers of samples: 175, 350"),
    ],
)
def test_mutated_tables(shared: Path, name: str, suspects: list[str], words: str) -> None:
    report = diagnose(read_report_tables([shared / "fixtures" / "field" / "fuzz" / f"{name}.txt"]))
    found = report.tables[0]
    assert found.suspects() == suspects
    assert found.decoded is not None
    assert (found.decoded.n, found.decoded.events["obj_box_col"]) == (175, (0, 0, 1, 1, 5, 17))
    assert words in format_report(report)


def test_the_commands_on_a_log_of_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "20260501.log.json"
    path.write_text('{"mode": "train", "iter": 1, "loss": 3.0}\n{"mode": "val", "iter": 2, "obj_box_col": 0.0013, "L2": 0.636}\n')
    main(["doctor", str(path), "--json", str(tmp_path / "out.json")])
    assert "an average alone does not show how L2 grows" in capsys.readouterr().out
    assert '"protocol": ""' in (tmp_path / "out.json").read_text()
