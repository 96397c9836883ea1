"""Printed tables in any text, and the counts behind their percentages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tables import PLAIN_EVENTS, print_table

from iidrive.analysis.doctor.printed import ROWS, decode, parse_tables, read_tables
from iidrive.core.errors import DataError
from iidrive.scoring.tables import NUSCENES_VAL_OBJ_COL, NUSCENES_VAL_SAMPLES

TABLE = print_table()
FULLWIDTH = {ord(c): ord(c) + 0xFEE0 for c in "0123456789|%+-.:"}


def test_the_notes(shared: Path) -> None:
    tables = read_tables(shared / "fixtures" / "notes" / "reference-notes.txt")
    assert [t.number for t in tables] == [1, 2, 3, 4, 5]
    assert [t.heading for t in tables][2:] == [
        "八卡测试",
        "使用ii_world作者提供的stage 2权重进行测试",
        "八卡训练,使用ii_world的训练好的权重",
    ]
    assert [t.remark for t in tables] == ["", "", "", "是不是因为第一阶段是用两张卡练的啊", ""]
    assert [t.average("L2") for t in tables] == [
        0.7054560465945139,
        0.7055729615191618,
        1.2582640664445028,
        3.580865571896235,
        0.18394799903035164,
    ]
    assert tables[4].rows["L2"].columns == (0.1004, 0.1201, 0.1477, 0.1826, 0.2176, 0.2492)


def test_the_notes_decode_to_the_known_counts(shared: Path) -> None:
    known = json.loads((shared / "fixtures" / "protocols" / "reference_run_counts.json").read_text())
    for table, key in zip(read_tables(shared / "fixtures" / "notes" / "reference-notes.txt"), "abcde", strict=True):
        found = decode(table)
        assert found is not None
        assert (found.n, found.source, found.exact) == (5119, "digits", True)
        assert found.events["obj_col"] == tuple(known["obj_col"]["counts"])
        expected = next(known[k]["K"] for k in "abcde" if known[k]["avg"] == table.averages["obj_box_col"])
        assert found.weighted("obj_box_col") == expected, key


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(30, 6500),
    shares=st.lists(st.floats(0, 0.15), min_size=12, max_size=12),
)
def test_counts_and_their_number_come_back_from_the_digits(n: int, shares: list[float]) -> None:
    counts = [int(share * n) for share in shares]
    table = parse_tables(print_table(hits=counts[:6], truth=counts[6:], n=n))[0]
    found = decode(table)
    if not any(counts):
        return  # zeros do not determine n
    assert found is not None
    assert found.exact
    assert n in (found.n, *found.others)
    given_n = decode(table, n)
    assert given_n is not None
    assert given_n.events == {"obj_col": tuple(counts[6:]), "obj_box_col": tuple(counts[:6])}


def test_without_the_dict_val_is_assumed_only_where_it_fits() -> None:
    found = decode(parse_tables(print_table(tail=False))[0])
    assert found is not None
    assert (found.n, found.source, found.exact) == (5119, "assumed", False)
    assert found.events == {"obj_col": NUSCENES_VAL_OBJ_COL, "obj_box_col": PLAIN_EVENTS}
    assert decode(parse_tables(print_table(truth=(7,) * 6, n=361, tail=False))[0]) is None


def test_count_lines_state_the_number_of_samples() -> None:
    text = print_table(hits=(0,) * 6, truth=(0,) * 6, n=69) + (
        "\nobj_col events per step, of 69 samples: 0 0 0 0 0 0\nobj_box_col events per step, of 69 samples: 0 0 0 0 0 0"
        "\nscored 69 samples; skipped none.\nchecksum: 69 samples were scored\nmy words"
    )
    table = parse_tables(text)[0]
    found = decode(table)
    assert found is not None
    assert (found.n, found.source) == (69, "stated")
    assert table.remark == "my words"


def same(text: str, tables: int = 1) -> None:
    """All tables of `text` are TABLE."""
    plain = parse_tables(TABLE)[0]
    found = parse_tables(text)
    assert len(found) == tables
    for table in found:
        assert set(table.rows) == set(ROWS)
        for name in ROWS:
            assert table.rows[name].columns == plain.rows[name].columns
            assert table.rows[name].average == plain.rows[name].average
        assert table.averages == plain.averages


NOISE = st.lists(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n|"), max_size=40).filter(
        lambda line: not any(name in line for name in (*ROWS, "metrics"))
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(before=NOISE, between=NOISE, after=NOISE, newline=st.sampled_from(["\n", "\r\n"]))
def test_words_around_tables_do_not_matter(before: list[str], between: list[str], after: list[str], newline: str) -> None:
    lines = [*before, *TABLE.split("\n"), *between, *TABLE.split("\n"), *after]
    same(newline.join(lines), tables=2)


@settings(max_examples=40, deadline=None)
@given(
    kept=st.lists(st.booleans(), min_size=4, max_size=4),
    prefix=st.sampled_from(["", "> ", "    ", "2026-05-01 10:00:00,123 - mmdet - INFO - ", "12:00 | INFO | eval:print:7 - "]),
)
def test_borders_may_be_lost_and_log_prefixes_added(kept: list[bool], prefix: str) -> None:
    lines, rule = [], 0
    for line in TABLE.split("\n"):
        head = line.startswith("+") or "metrics" in line
        if head:
            rule += 1
        if not head or kept[rule - 1]:
            lines.append(prefix + line)
    same("\n".join(lines))


@settings(max_examples=30, deadline=None)
@given(
    places=st.lists(st.integers(0, len(TABLE)), max_size=8),
    code=st.sampled_from(["\x1b[32m", "\x1b[0m", "\x1b[1;31m", "\x1b[K", "\x1b]0;title\x07"]),
)
def test_colour_codes_do_not_matter(places: list[int], code: str) -> None:
    text = TABLE
    for place in sorted(places, reverse=True):
        text = text[:place] + code + text[place:]
    same(text)


def test_other_forms() -> None:
    same(TABLE.translate(FULLWIDTH))
    same(TABLE.replace("|", "│").replace("-", "─").replace("+", "┼"))
    same("\n".join(line.replace("|", " ") for line in TABLE.split("\n")))
    same(TABLE.replace("+", "|"))  # Markdown
    same(TABLE.replace("\n", "\r"))
    same(" 10%|█         | 1/10 [00:01<00:09]\r 20%|██        | 2/10\r\n" + TABLE)
    same(TABLE.replace("'L2': ", "'L2': np.float64(").replace("}", ")}"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "笔记.txt"
    path.write_bytes(("八卡测试\n" + TABLE).encode(encoding))
    assert read_tables(path)[0].heading == "八卡测试"


def test_rates_without_percent_signs() -> None:
    table = parse_tables(TABLE.replace("%", ""))[0]
    assert table.percent_guessed
    assert table.rows["obj_col"].columns[0] == pytest.approx(0.00742)
    fractions = "| obj_col | 0.1 | 0.1 | 0.1 | 0.1 | 0.1 | 0.1 | 0.1 |\n{'obj_col': 0.1, 'L2': 1.0}"
    assert parse_tables(fractions)[0].rows["obj_col"].columns[0] == 0.1


def test_rows_of_another_table_do_not_mix() -> None:
    """A table that lost its last row does not take that of the next."""
    cut = "\n".join(line for line in print_table(tail=False).split("\n") if "L2" not in line)
    first, second = parse_tables(cut + "\n" + TABLE)
    assert set(first.rows) == {"obj_col", "obj_box_col"}
    assert set(second.rows) == set(ROWS)


def test_text_without_tables() -> None:
    assert parse_tables("") == []
    assert parse_tables("L2: 0.7\nobj_col is 0.3% of 5 samples\n{'obj_col': 0.1}") == []
    assert parse_tables("| L2 | 0.1 | 0.2 | 0.3 |") == []
    assert parse_tables("| L2 | 0.1234 | 0.25678 | 12345678 |") == []


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    parse_tables(text)


def test_one_of_several_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text(TABLE + "\n\nsecond\n" + TABLE)
    assert [t.number for t in read_tables(f"{path}#2")] == [2]
    with pytest.raises(DataError, match="there is no table 3; the file has 2"):
        read_tables(f"{path}#3")
    with pytest.raises(DataError, match=r"no-file.txt: cannot be read"):
        read_tables(tmp_path / "no-file.txt")
    path.write_text("nothing")
    with pytest.raises(DataError, match="no table found"):
        read_tables(path)
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(DataError, match="array file, not text"):
        read_tables(tmp_path / "x.npz")


def test_nan_cells_are_read_and_decode_to_nothing() -> None:
    text = TABLE.replace("0.742%", "nan%")
    table = parse_tables(text)[0]
    assert np.isnan(table.rows["obj_col"].columns[0])
    assert decode(table, NUSCENES_VAL_SAMPLES) is None
