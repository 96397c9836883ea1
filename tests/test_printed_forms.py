"""Every printed form is read into the same typed table: hand-made inputs and collected ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_cases import random_cases
from make_tables import print_table

from iidrive.analysis.doctor.decode import decode
from iidrive.analysis.doctor.printed import is_log, parse_tables, read_tables
from iidrive.analysis.doctor.readers.cells import damaged, number
from iidrive.analysis.doctor.table import Table
from iidrive.core.errors import DataError
from iidrive.scoring.protocols import PROTOCOLS
from iidrive.scoring.score import score_possible
from iidrive.scoring.tables import format_scores, format_together

OBJ = ("0.742%", "0.713%", "0.684%", "0.659%", "0.649%", "0.638%", "0.670%")
BOX = ("0.020%", "0.020%", "0.026%", "0.073%", "0.148%", "0.309%", "0.134%")
L2 = ("0.2388", "0.3595", "0.4970", "0.6561", "0.8369", "1.0406", "0.6854")
TIMES = ("0.5s", "1.0s", "1.5s", "2.0s", "2.5s", "3.0s", "avg")
ROWS = (("obj_col", OBJ), ("obj_box_col", BOX), ("L2", L2))
COUNTS = {"obj_col": (38, 35, 32, 30, 31, 30), "obj_box_col": (1, 1, 2, 11, 23, 57)}
UNIAD = """
|   metrics   |  0.5s  |  1.0s  |  1.5s  |  2.0s  |  2.5s  |  3.0s  |
|   obj_col   | 0.0000 | 0.0000 | 0.0002 | 0.0002 | 0.0003 | 0.0012 |
| obj_box_col | 0.0003 | 0.0005 | 0.0007 | 0.0012 | 0.0033 | 0.0060 |
|      L2     | 0.3482 | 0.5463 | 0.7742 | 1.0430 | 1.3588 | 1.7089 |
"""


def lines(join: str, start: str = "", end: str = "", rows: tuple[tuple[str, tuple[str, ...]], ...] = ROWS) -> list[str]:
    return [start + join.join((name, *cells)) + end for name, cells in (("metrics", TIMES), *rows)]


def markdown() -> str:
    head, *rows = lines(" | ", "| ", " |")
    return "\n".join([head, "|" + "---:|" * 8, *rows])


def html() -> str:
    rows = [(name, *cells) for name, cells in (("metrics", TIMES), *ROWS)]
    return "<table>" + "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows) + "</table>"


FORMS = {
    "boxed": "\n".join(lines(" | ", "| ", " |")),
    "markdown": markdown(),
    "latex": "\n".join(lines(" & ", end=r" \\")).replace("%", r"\%").replace("_", r"\_"),
    "latex on many lines": "\n".join(line.replace(" & ", " &\n") for line in lines(" & ", end=r" \\")),
    "html": html(),
    "html on many lines": html().replace("<t", "\n<t"),
    "pandas": "\n".join("  ".join(f"{cell:>11}" for cell in line.split(";")) for line in lines(";")),
    "csv": "\n".join(lines(",")),
    "decimal commas": "\n".join(line.replace(".", ",") for line in lines(";")),
    "tight decimal commas": "\n".join(line.replace("0.", "0,").replace("1.0406", "1,0406") for line in lines(" ")),
    "tabs": "\n".join(lines("\t")),
    "bold": "\n".join(lines(" | ", "| ", " |")).replace("0.134%", "**0.134%**").replace("0.6854", "<b>0.6854</b>"),
    "plus minus": "\n".join(lines(" | ", "| ", " |")).replace("0.2388", "0.2388 ± 0.003").replace("0.020%", "0.020±0.004%"),
    "units in names": "\n".join(lines(" | ", "| ", " |")).replace("| L2 |", "| L2 (m) |"),
    "blanks in names": "\n".join(lines(" | ", "| ", " |")).replace("obj_box_col", "obj box col"),
    "carriage returns": "\r\n".join(lines(" | ", "| ", " |")),
    "colours": "\n".join(lines(" | \x1b[1m", "| ", "\x1b[0m |")),
    "progress bar before": " 99%|███▉| 9/10 [00:01<00:09]\r100%|████| 10/10\r" + "\n".join(lines(" | ", "| ", " |")),
    "no outer borders": "\n".join(lines(" | ")),
    "ranks between": "\nrank1: loading\n".join(lines(" | ", "rank0: | ", " |")),
    "log prefixes": "\n".join(lines(" | ", "2026-05-01 10:00:00,123 - mmdet - INFO - | ", " |")),
    "wide cells": "\n".join(lines(f"{'|':^60}", "|", "|")),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_the_same_table_in_every_form(form: str) -> None:
    tables = parse_tables(FORMS[form])
    assert len(tables) == 1
    table = tables[0]
    assert (table.follows.name, table.follows.averaging, table.unread) == ("sparsedrive", "prefix", ())
    assert table.times_s == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    for name, cells in ROWS:
        scale = 1 if name == "L2" else 0.01
        values = [float(cell.rstrip("%")) * scale for cell in cells]
        np.testing.assert_allclose((*table.rows[name].columns, table.rows[name].average), values, rtol=1e-12)
    found = decode(table)
    assert found is not None
    assert (found.n, found.events) == (5119, COUNTS)


def test_plus_minus_is_kept() -> None:
    assert parse_tables(FORMS["plus minus"])[0].rows["L2"].spread[0] == 0.003
    assert parse_tables(FORMS["plus minus"])[0].rows["obj_box_col"].spread[0] == pytest.approx(0.00004)


@pytest.mark.parametrize(
    ("name", "cells", "half"),
    [
        ("L2 (cm)", "23.88 | 35.95 | 104.06", 5e-5),
        ("L2 [mm]", "238.8 | 359.5 | 1040.6", 5e-5),
        ("L2 (cm)", "0.2388 m | 0.3595 m | 1.0406 m", 5e-5),
    ],
)
def test_units_of_lengths(name: str, cells: str, half: float) -> None:
    """A unit beside the name holds for the row, unless the cells state their own."""
    by_row = parse_tables(f"| metrics | 1s | 2s | 3s |\n| {name} | {cells} |")[0]
    by_column = parse_tables(f"| Method | {name} 1s | {name} 2s | {name} 3s |\n| Ours | {cells} |")[0]
    for table in (by_row, by_column):
        assert table.rows["L2"].columns == pytest.approx((0.2388, 0.3595, 1.0406))
        assert table.rows["L2"].halves[0] == pytest.approx(half)


def test_rates_per_thousand() -> None:
    table = parse_tables(
        "| metrics | 1s | 2s | 3s | avg |\n| L2 [m] | 0.4 | 0.7 | 1.0 | 0.7 |\n| obj_box_col (‰) | 0.20 | 0.73 | 3.09 | 1.34 |"
    )[0]
    assert table.rows["obj_box_col"].columns == pytest.approx((0.0002, 0.00073, 0.00309))
    assert table.rows["obj_box_col"].average == pytest.approx(0.00134)


def test_lines_that_a_terminal_wrapped_are_refused(tmp_path: Path) -> None:
    """The second half of the header is no second line of names: values would move to later times."""
    path = tmp_path / "t.txt"
    path.write_text("\n".join(f"{line[:40]}\n{line[40:]}" for line in print_table().splitlines()[:7]))
    with pytest.raises(DataError, match="two lines of the header name different times; if a terminal wrapped the lines, join them"):
        read_tables(path)


# ------------------------------------------------------------------------------------------------------------------- other shapes


def test_uniads_shape_is_values_in_fractions() -> None:
    table = parse_tables(UNIAD)[0]
    assert (table.follows.name, table.follows.averaging) == ("uniad", "value")
    assert table.rows["obj_box_col"].columns == (0.0003, 0.0005, 0.0007, 0.0012, 0.0033, 0.0060)
    found = decode(table)
    assert found is not None
    assert (found.n, found.events["obj_box_col"], found.weights) == (6019, (2, 3, 4, 7, 20, 36), (0, 12, 0, 12, 0, 12))
    assert found.weighted("obj_box_col") == 12 * (3 + 7 + 36)


def test_a_title_names_the_protocol() -> None:
    title = "|          STP3's Definition Planning Metrics (Cumulative Average)         |"
    table = parse_tables(f"+---+\n{title}\n+---+{UNIAD}")[0]
    assert (table.follows.name, table.follows.averaging) == ("stp3", "prefix")
    assert "title" in table.follows.why


def test_ten_steps_are_ten_steps() -> None:
    times = [f"{0.5 * k:.1f}s" for k in range(1, 11)]
    text = "| metrics | " + " | ".join(times) + " |\n| L2 | " + " | ".join(f"{0.3 * k:.4f}" for k in range(1, 11)) + " |"
    table = parse_tables(text)[0]
    assert table.times_s[-1] == 5.0
    assert table.rows["L2"].average is None
    assert table.rows["L2"].columns[-1] == 3.0


def test_plan_lines_hold_counts() -> None:
    n, totals = 5119, (11, 50, 128)
    text = "-------------- Planning --------------\n" + "\n".join(
        f"plan_L2_{h}s:{0.4 * h}\nplan_obj_box_col_{h}s:{np.float32(k / (2 * h * n))!s}" for h, k in zip((1, 2, 3), totals, strict=True)
    )
    table = parse_tables(text)[0]
    found = decode(table)
    assert found is not None
    assert (table.follows.name, found.n, found.source) == ("vad", n, "digits")
    assert found.events["obj_box_col"] == (11, 39, 78)
    assert found.weights == (11, 5, 2)


def test_ssrs_second_set_is_values_at_the_step() -> None:
    text = "".join(f"plan_L2_{h}s:{0.3 * h}\nplan_L2_stp3_{h}s:{0.4 * h}\n" for h in (1, 2, 3))
    first, second = parse_tables(text)
    assert (first.follows.averaging, second.follows.averaging) == ("prefix", "value")
    assert second.rows["L2"].columns == pytest.approx((0.4, 0.8, 1.2))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("plan_L2_{h}s:{v}", "vad"),
        ("plan_L2_{h}s : {v}", "stp3"),
        ("plan_L2_{h}s is {v}", "occworld"),
        ("0:plan_L2_{h}s:{v}", "bevplanner"),
        ("{{'plan_L2_{h}s': {v}}}", "vad"),
        ("| plan_L2_{h}s | {v} |", "vad"),
        ("10:00:05 INFO pts/plan_L2_{h}s: {v}", "vad"),
    ],
)
def test_ways_of_printing_plan_lines(line: str, name: str) -> None:
    text = "\n".join(line.format(h=h, v=0.5 * h) for h in (1, 2, 3))
    table = parse_tables(text)[0]
    assert table.follows.name == name
    assert table.rows["L2"].columns == (0.5, 1.0, 1.5)


@pytest.mark.parametrize(
    ("line", "join"),
    [
        ("planning/L2_{h}s: {a}  planning/col_{h}s: {b}", "  "),
        ("wandb:      val/L2_{h}s {a}\nwandb: val/obj_box_col_{h}s {b}", "\n"),
        ('"L2_{h}s": {a}, "obj_box_col_{h}s": {b}', ", "),
    ],
)
def test_names_with_times_of_any_logger(line: str, join: str) -> None:
    text = join.join(line.format(h=h, a=0.3 * h, b=f"{0.0005 * h:.4f}") for h in (1, 2, 3))
    (table,) = parse_tables(f"2026 - mmengine - INFO - Epoch(val) [24][6019/6019]  {text}  data_time: 0.0024" if "plan" in text else text)
    assert table.follows.name == table.follows.averaging == ""
    assert table.rows["L2"].columns == pytest.approx((0.3, 0.6, 0.9))
    assert table.rows["obj_box_col"].columns == pytest.approx((0.0005, 0.0010, 0.0015))
    assert ("names neither point nor box" in " ".join(table.notes)) == ("/col" in line)


def test_methods_as_columns_are_not_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("name VAD Ours\nL2_1s 0.41 0.30\nL2_2s 0.70 0.60\nL2_3s 1.05 0.97\n")
    with pytest.raises(DataError, match="no table found"):
        read_tables(tmp_path / "t.txt")


def test_methods_as_rows() -> None:
    text = """
| Method | L2 (m) 1s | L2 (m) 2s | L2 (m) 3s | Col. (%) 1s | Col. (%) 2s | Col. (%) 3s |
|---|---|---|---|---|---|---|
| [VAD](https://example.org) | 0.17 | 0.34 | 0.60 | 0.07 | **0.10** | 0.24 |
| Ours | - | 0.32 | 0.57 | 0.01 | 0.07 | 0.22 |
"""
    one, two = parse_tables(text)
    assert (one.label, two.label) == ("VAD", "Ours")
    assert one.rows["obj_box_col"].columns == pytest.approx((0.0007, 0.0010, 0.0024))
    assert one.follows.averaging == ""
    assert two.rows["L2"].states == ("absent", "", "")


def test_groups_of_columns_under_names() -> None:
    latex = r"""
\multirow{2}{*}{Method} & \multicolumn{4}{c|}{Col. Rate (\%) $\downarrow$} & \multicolumn{4}{c}{L2 (m) $\downarrow$} \\
& 1s & 2s & 3s & Avg. & 1s & 2s & 3s & Avg. \\
Ours~\cite{a} & 0.01 & 0.05 & \textbf{0.18} & 0.08 & 0.29 & \underline{0.58} & 0.96 & 0.61 \\
"""
    table = parse_tables(latex)[0]
    assert table.rows["L2"].columns == (0.29, 0.58, 0.96)
    assert table.rows["L2"].average == 0.61
    assert table.rows["obj_box_col"].columns == pytest.approx((0.0001, 0.0005, 0.0018))
    cells = "".join(f"<td>{v}</td>" for v in (0.29, 0.58, 0.96, 0.01, 0.05, 0.18))
    times = "".join(f"<th>{h}s</th>" for h in (1, 2, 3, 1, 2, 3))
    for span in (" rowspan='2'", ""):
        head = f"<tr><th{span}>Method</th><th colspan=3>L2 (m)</th><th colspan=3>Collision (%)</th></tr><tr>{times}</tr>"
        assert parse_tables(f"<table>{head}<tr><td>Ours</td>{cells}</tr></table>")[0].rows["L2"].columns == (0.29, 0.58, 0.96)


def test_rows_of_pandas_with_an_index_or_in_parts() -> None:
    text = """
  method  L2_1s  L2_2s  L2_3s  col_1s  col_2s  col_3s
0    VAD   0.17   0.34   0.60    0.07    0.10    0.24
1  Ours    0.14   0.30   0.50    0.03    0.08    0.20
"""
    one, two = parse_tables(text)
    assert one.rows["L2"].columns == (0.17, 0.34, 0.60)
    assert two.rows["obj_box_col"].columns == pytest.approx((0.0003, 0.0008, 0.0020))
    parts = """
                 0.5s      1.0s      1.5s  \\
obj_box_col  0.000195  0.000195  0.000260
L2           0.238800  0.359500  0.497000

                 2.0s      2.5s      3.0s
obj_box_col  0.000733  0.001484  0.003093
L2           0.656100  0.836900  1.040600
"""
    (whole,) = parse_tables(parts)
    assert whole.rows["L2"].columns == (0.2388, 0.3595, 0.4970, 0.6561, 0.8369, 1.0406)
    assert whole.rows["obj_box_col"].columns[-1] == 0.003093


def test_a_row_that_does_not_fit_its_header_is_not_read(tmp_path: Path) -> None:
    for text in (
        "| Method | L2 1s | L2 2s |\n|---|---|---|\n| a | 0.1 | 0.2 | 0.3 |",
        "method  L2_1s  L2_2s  L2_3s\nVAD 3 0.1 0.2 0.3 0.4\n",
    ):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(DataError, match="cells below"):
            read_tables(tmp_path / "t.txt")


def test_lists_in_a_dict() -> None:
    text = "{'obj_box_col': tensor([0.0003, 0.0005, 0.0007, 0.0012, 0.0033, 0.0060]), 'L2': tensor([0.3, 0.5, 0.8, 1.0, 1.4, 1.7])}"
    (table,) = parse_tables(text)
    assert (table.form, table.follows.name) == ("dict of lists", "")
    assert table.rows["L2"].columns == (0.3, 0.5, 0.8, 1.0, 1.4, 1.7)
    assert table.rows["obj_box_col"].columns[-1] == 0.0060


def test_groups_without_names_are_read_in_the_usual_order_with_a_note() -> None:
    table = parse_tables(r"Method & 1s & 2s & 3s & 1s & 2s & 3s \\" + "\n" + r"UniAD & 0.45 & 0.70 & 1.04 & 0.62 & 0.58 & 0.63 \\")[0]
    assert table.rows["L2"].columns == (0.45, 0.70, 1.04)
    assert table.rows["obj_box_col"].columns == pytest.approx((0.0062, 0.0058, 0.0063))
    assert "have no names" in table.notes[0]


def test_times_as_rows() -> None:
    text = """
| Time    | mIoU  | IoU   | Traj L2 Loss | Traj Collision | Traj Box Collision |
| 1.0s    | 47.62 | 54.29 | 0.33         | 0.02           | 0.09               |
| 2.0s    | 38.58 | 49.43 | 0.81         | 0.05           | 0.21               |
| Average | 43.10 | 51.86 | 0.57         | 0.03           | 0.15               |
"""
    table = parse_tables(text)[0]
    assert (table.follows.name, table.follows.averaging, table.times_s) == ("ii-world", "value", (1.0, 2.0))
    assert table.rows["mIoU"].columns == pytest.approx((0.4762, 0.3858))
    assert table.rows["obj_col"].columns == pytest.approx((0.0002, 0.0005))
    assert table.rows["obj_box_col"].average == pytest.approx(0.0015)
    pandas = "      obj_box_col      L2\n0.5s     0.0003  0.3482\n1.0s     0.0005  0.5463\n"
    assert parse_tables(pandas)[0].rows["L2"].columns == (0.3482, 0.5463)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("2026 - mmdet - INFO - Iter(val) [6019]\timg/NDS: 0.52, obj_col: 0.0067, obj_box_col: 0.0013, L2: 0.6360", "log line"),
        ('{"mode": "train", "loss": 1.0}\n{"mode": "val", "iter": 6019, "obj_box_col": 0.0013, "L2": 0.636}', "log.json"),
        ("{'obj_col': 0.0067, 'obj_box_col': np.float64(0.0013), 'L2': 0.636}", "dict"),
        ("{'L2': 0.636,\n 'obj_box_col': 0.0013,\n 'obj_col': 0.0067}", "dict"),
    ],
)
def test_averages_by_name(text: str, form: str) -> None:
    tables = parse_tables(text)
    assert [t.form for t in tables] == [form]
    assert tables[0].times_s == ()
    assert (tables[0].average("L2"), tables[0].average("obj_box_col")) == (0.636, 0.0013)
    assert decode(tables[0]) is None


def test_runs_of_numbers_between_slashes() -> None:
    text = (
        "Processed total 6019 samples, with UniAD-style metrics L2 = 0.21/0.61/1.24/0.69 and Collision = 0.00/0.17/0.63/0.27%,\n"
        "and STP-3-style metrics L2 = 0.15/0.32/0.57/0.35 and Collision = 0.01/0.07/0.22/0.10%. Saved on 2026/05/01 to 1/2/3."
    )
    one, two = parse_tables(text)
    assert [(t.follows.name, t.scored) for t in (one, two)] == [("uniad", 6019), ("stp3", 6019)]
    assert one.rows["obj_box_col"].columns == pytest.approx((0.0, 0.0017, 0.0063))
    assert two.rows["L2"].average == 0.35
    assert decode(two) is None  # 16 to 18 events print as 0.07 %


def test_every_protocol_of_ours_is_read_back() -> None:
    cases, path = random_cases(3, n=60, boxes_per_step=4)
    cases = replace(cases, gt_ego_fut_masks=np.ones((60, 6), bool))
    scores, _ = score_possible(cases, path, list(PROTOCOLS))
    for one in scores:
        table = parse_tables(f"{one.protocol}\n{format_scores(one)}")[0]
        assert table.follows.name == one.protocol
        assert table.n == one.n_scored
        assert table.events == {name: tuple(value.tolist()) for name, value in one.events.items()}
        np.testing.assert_allclose(table.rows["L2"].columns, one.columns["L2"], atol=6e-5)
        for name in one.events:
            np.testing.assert_allclose(table.rows[name].columns, one.columns[name], atol=6e-5)
    together = parse_tables(format_together(scores))
    assert [(t.label, t.follows.name, t.scored) for t in together] == [(s.protocol, s.protocol, s.n_scored) for s in scores]


# --------------------------------------------------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("0.$1%", None),  # damaged: a digit became a mark
        ("0.{2", None),
        ("0.7<b>1</b>", None),
        ("0.4**1", None),
        ("0.72<sup>1</sup>", 0.72),  # a footnote
        ("$0.72^1$", 0.72),
        ("0.72$^{\\dagger}$", 0.72),
        ("**0.72**", 0.72),
        ("{\\bf 0.72}", 0.72),
        ("0{,}72", 0.72),
        ("$0.72\\pm0.01$", 0.72),
        ("$0.72_{\\pm 0.01}$", 0.72),
        ("$\\mathbf{0.72}{\\scriptstyle\\pm0.01}$", 0.72),
    ],
)
def test_marks_stand_around_numbers_and_never_within(cell: str, value: float | None) -> None:
    found = number(cell)
    assert (found.value if found else None) == value
    assert value is not None or damaged(cell)


def test_damaged_cells_are_named_and_left_out() -> None:
    text = "\n".join(lines(" | ", "| ", " |")).replace("0.026%", "O.026%").replace("0.4970", "1e400")
    table = parse_tables(text)[0]
    assert table.rows["obj_box_col"].states[2] == table.rows["L2"].states[2] == "unread"
    assert len(table.unread) == 2
    found = decode(table)
    assert found is not None
    assert found.events == {"obj_col": COUNTS["obj_col"]}


def test_a_truncated_number_is_dropped() -> None:
    text = "\n".join(lines(" | ", "| ", " |"))
    table = parse_tables(text[: text.rindex("0.6561") + 4])[0]
    assert table.rows["L2"].columns[:3] == (0.2388, 0.3595, 0.4970)
    assert table.rows["L2"].states[3:] == ("absent",) * 3
    assert any("may be cut" in line for line in table.unread)


def test_unreadable_tables_are_reported(tmp_path: Path) -> None:
    for text, words in (
        ("| L2 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 |", "5 numbers and no header"),
        ("| Method | L2 | L2 |\n| a | 0.1 | 0.2 |", "more than once"),
        ("| m | 1s | 2s | 1s | 2s | 1s | 2s |\n| a | 1 | 2 | 3 | 4 | 5 | 6 |", "3 groups of columns without names"),
        ("| x | 1s | 2s |\n| a | 1.0 | 2.0 |", "does not name its quantity"),
    ):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            read_tables(tmp_path / "t.txt")


@pytest.mark.parametrize(
    "piece",
    ["a", "|", "&", "\\", "1", "<td>", "\x1b[", "\x1b]", r"\multicolumn{2}{c}{", r"\textbf{", "plan_L2_1s:", "L2 ", "'L2':", "0.1/", "|0.1",
     "obj_col|", "loss: nan ", "1s|", "±", "%|", "1,", "<tr><td>1", "&0.1", " \t", "│"],
)  # fmt: skip
def test_long_lines_are_read_in_bounded_time(piece: str) -> None:
    """A reader with quadratic time per line would not end."""
    assert parse_tables(piece * (1_000_000 // len(piece))) == []
    assert all(isinstance(table, Table) for table in parse_tables("\n".join([(piece * 20_000)[:20_000]] * 10)))


@pytest.mark.slow
def test_many_tables_and_many_lines() -> None:
    tables = parse_tables("| L2 | 0.1 | 0.2 | 0.3 | 0.4 | 0.5 | 0.6 | 0.2 |\n" * 3000)
    assert len(tables) == 1000
    assert "only the first 1000" in tables[-1].notes[-1]
    assert parse_tables("obj_col events per step, of 69 samples: 0 0 0 0 0 0\n" * 20_000) == []
    assert parse_tables("x\n" * 200_000) == []


def test_sizes_and_kinds_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"\x1f\x8b" + b"0" * 100)
    with pytest.raises(DataError, match="compressed"):
        read_tables(path)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(DataError, match="binary"):
        read_tables(path)
    path.write_bytes(print_table().encode("utf-16-le"))  # without its mark
    assert len(read_tables(path)) == 1
    path.write_bytes("八卡测试\n".encode() + print_table().encode() + b"\nbroken \xff byte")
    assert read_tables(path)[0].heading == "八卡测试"
    monkeypatch.setattr("iidrive.analysis.doctor.readers.lines.LARGEST_FILE", 500)
    with pytest.raises(DataError, match="larger than"):
        read_tables(path)


def test_training_logs_are_not_paths(tmp_path: Path) -> None:
    for name, text, expected in (
        ("a.log.json", '{"env_info": 1}\n{"mode": "val", "L2": 0.6, "obj_box_col": 0.1}\n', True),
        ("b.json", '{"token": [[0, 0]]}', False),
        ("c.json", "[1, 2", False),
        ("metrics.json", '{\n "plan_L2_1s": 0.3,\n "plan_obj_box_col_1s": 0.001\n}', True),
        ("beside.json", '{"L2": 0.3, "predictions": {"a": [[0, 0]]}}', False),
        ("nested.json", '{"L2": {"1s": 0.3}, "obj_box_col": {"1s": 0.001}}', True),
        ("d.txt", '{"mode": "val"}', False),
    ):
        (tmp_path / name).write_text(text)
        assert is_log(tmp_path / name) == expected


# ------------------------------------------------------------------------------------------------------------------ from the field

EXPECTED: dict[str, list[tuple[str, str, int | None]]] = {
    # file: protocol, averaging and number of samples of each table
    "d01_uniad.txt": [("uniad", "value", 6019)],
    "d02_uniad_b2d.txt": [("uniad", "value", None)],
    "d03_ten_steps.txt": [("uniad", "value", None)],
    "d04_vad.txt": [("vad", "prefix", 5119)],
    "d05_vad_mini.txt": [("vad", "prefix", 69)],
    "d06_vad_bad.txt": [("vad", "prefix", 5119)],
    "d08_sparseworld_md.md": [("", "", None), ("", "", None), ("", "", None), ("", "prefix", 4219)],
    "d09_bridgead.txt": [("sparsedrive", "prefix", 5119)],
    "d10_bold_md.md": [("sparsedrive", "prefix", 5119)],
    "d11_diffusiondrive.txt": [("sparsedrive", "prefix", 5119)],
    "d12_readme_md.md": [("", "", None)] * 5,
    "d13_runs_md.md": [("", "", None)] * 4,
    "d14_slash.txt": [("uniad", "value", 6019), ("stp3", "prefix", None)],
    "d15_ssr.txt": [("vad", "prefix", 5119), ("ssr-step", "value", 5119)],
    "d16_dict_only.txt": [("", "", None), ("", "", None)],
    "d17_latex.tex": [("", "", None), ("", "", None)],
    "d18_iiworld.log": [("ii-world", "value", None)],
    "d19_ocr.txt": [("sparsedrive", "prefix", 5119)],
    "d20_ocr2.txt": [("sparsedrive", "prefix", 5119)],
    "d21_log.json": [("", "", None)],
    "d22_sparsedrive.log": [("sparsedrive", "prefix", 5119), ("sparsedrive", "prefix", 5119)],
    "d23_l2_only.txt": [("sparsedrive", "prefix", None)],
    "d24_own_two_protocols.txt": [("sparsedrive", "prefix", 69), ("bevplanner", "any", 69)],
    "d24b_contradicting_counts.txt": [("sparsedrive", "prefix", 69)],
    "d25_own_uniad.txt": [("uniad", "value", 81)],
    "d26_mini_zero.txt": [("sparsedrive", "prefix", 69)],
    "d27_mini_all_zero.txt": [("sparsedrive", "prefix", None)],
    "d28_uniad_mini_zero.txt": [("uniad", "value", None)],
    "d29_gpus.txt": [("sparsedrive", "prefix", 5119), ("sparsedrive", "prefix", 5119)],
    "d29b_gpus_zh.txt": [("sparsedrive", "prefix", 5119), ("sparsedrive", "prefix", 5119)],
    "d29c_gpus.txt": [("sparsedrive", "prefix", 5119), ("sparsedrive", "prefix", 5119)],
    "d30_html.md": [("sparsedrive", "prefix", 5119)],
    "d32_pm.txt": [("sparsedrive", "prefix", 5119)],
    "d33_wide.txt": [("", "", None)],
}


def field(shared: Path, name: str) -> list[Table]:
    return read_tables(shared / "fixtures" / "field" / "doctor" / name)


@pytest.mark.parametrize("name", list(EXPECTED))
def test_collected_inputs(shared: Path, name: str) -> None:
    tables = field(shared, name)
    counts = [decode(table) for table in tables]
    found = [(t.follows.name, t.follows.averaging, c.n if c else None) for t, c in zip(tables, counts, strict=True)]
    assert found == EXPECTED[name]


def test_boxes_of_heavy_lines() -> None:
    """As rich prints them: other characters for the header's borders."""
    text = (
        "┏━━━━━━┳━━━━━━┳━━━━━━┳━━━━━━┓\n┃ name ┃ 1.0s ┃ 2.0s ┃ 3.0s ┃\n┡━━━━━━╇━━━━━━╇━━━━━━╇━━━━━━┩\n"
        "│ L2   │ 0.36 │ 0.66 │ 1.04 │\n└──────┴──────┴──────┴──────┘"
    )
    (table,) = parse_tables(text)
    assert table.times_s == (1.0, 2.0, 3.0)
    assert table.rows["L2"].columns == (0.36, 0.66, 1.04)


def test_tables_that_pandas_wrapped() -> None:
    text = (
        "           0.5s    1.0s    1.5s  \\\nL2       0.2388  0.3595  0.4970   \nobj_col  0.742%  0.713%  0.684%   \n\n"
        "           2.0s    2.5s    3.0s  \nL2       0.6561  0.8369  1.0406  \nobj_col  0.659%  0.649%  0.638%  \n"
    )
    (table,) = parse_tables(text)
    assert table.times_s == (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    assert table.rows["L2"].columns == (0.2388, 0.3595, 0.497, 0.6561, 0.8369, 1.0406)


def test_a_progress_bar_and_windows_line_ends_before_uniads_table() -> None:
    bar = "".join(f"\r[>{' ' * k}] {k}/6019, 12.3 task/s, elapsed: 3s, ETA:   4s" for k in range(5))
    (table,) = parse_tables((bar + UNIAD).replace("\n", "\r\n"))
    assert (table.follows.name, table.rows["L2"].columns[-1]) == ("uniad", 1.7089)


def test_tables_side_by_side_are_no_methods_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n".join(f"{line}    {line}" for line in UNIAD.strip().split("\n")))
    with pytest.raises(DataError, match="the times stand twice above rows of one quantity each"):
        read_tables(path)


def test_what_is_unread_is_said_even_if_another_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(print_table().replace("0.5s", "500ms"))
    (table,) = read_tables(path)
    assert table.rows["L2"].columns == ()
    assert "elsewhere, line 4: 7 numbers below 6 columns" in table.unread


def test_a_wide_row_without_a_header_is_refused(shared: Path) -> None:
    """Five numbers of 60 characters each, which once took 19 s."""
    with pytest.raises(DataError, match="the row 'L2' has 5 numbers and no header"):
        field(shared, "d33_wide60.txt")


def test_numbers_of_the_field(shared: Path) -> None:
    """Values that were read wrongly, or not at all, when they came in."""
    assert field(shared, "d03_ten_steps.txt")[0].rows["L2"].columns[6] == 2.1002  # 3.5 s, once taken for the average
    for name, cumulated in (("d04_vad.txt", (11, 50, 128)), ("d05_vad_mini.txt", (0, 0, 2)), ("d06_vad_bad.txt", (46, 345, 1068))):
        counts = decode(field(shared, name)[0])
        assert counts is not None
        assert tuple(np.cumsum(counts.events["obj_box_col"])) == cumulated
    step = decode(field(shared, "d15_ssr.txt")[1])
    assert step is not None
    assert step.events["obj_box_col"] == (0, 4, 22)
    assert field(shared, "d12_readme_md.md")[4].rows["L2"].columns == (0.14, 0.10, 0.41)
    assert [t.label for t in field(shared, "d12_readme_md.md")] == ["ST-P3", "UniAD", "VAD-Tiny", "VAD-Base", "Ours"]
    assert field(shared, "d13_runs_md.md")[2].average("L2") == 0.5757
    assert field(shared, "d16_dict_only.txt")[1].average("L2") == 4.33
    assert field(shared, "d17_latex.tex")[0].rows["L2"].columns == (0.45, 0.70, 1.04)
    assert field(shared, "d18_iiworld.log")[0].rows["obj_box_col"].columns == pytest.approx((0.0009, 0.0021, 0.0052))
    assert field(shared, "d19_ocr.txt")[0].rows["L2"].columns == (0.2388, 0.3595, 0.4970, 0.6561, 0.8369, 1.0406)
    assert len(field(shared, "d20_ocr2.txt")[0].unread) == 2
    assert field(shared, "d21_log.json")[0].average("L2") == 0.636
    assert field(shared, "d32_pm.txt")[0].rows["L2"].spread == (0.003, 0.004, 0.005, 0.006, 0.008, 0.011)
    assert field(shared, "d33_wide.txt")[0].times_s == (1.0, 1.5, 2.0, 2.5, 3.0)
    with pytest.raises(DataError, match="5 numbers and no header"):
        field(shared, "d33_wide60.txt")
