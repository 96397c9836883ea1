"""Score files of NAVSIM in `iidrive compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from iidrive.analysis.compare.navsim import compare_score_files, is_score_file, read_score_file
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.stats import paired

HEAD = "token,valid,no_at_fault_collisions,drivable_area_compliance,ego_progress,time_to_collision_within_bound,comfort,score"


def row(token: str, nc: float, ep: float, valid: bool = True, more: str = "") -> str:
    score = nc * (5 * ep + 5 + 2) / 12
    return f"{token},{valid},{nc},1.0,{ep},1.0,1.0,{score}{more}" if valid else f"{token},False,,,,,,"


def written(path: Path, rows: Sequence[str], head: str = HEAD, index: bool = True) -> str:
    """As pandas writes a frame: with an index column."""
    lines = [f",{head}", *(f"{k},{line}" for k, line in enumerate(rows))] if index else [head, *rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def draws(seed: int, worse: float = 0.0) -> list[tuple[str, float, float]]:
    rng = np.random.default_rng(seed)
    return [(f"{k:016x}", float(rng.random() > 0.05 + worse), float(rng.uniform(0.6, 1.0))) for k in range(400)]


def score_of(path: str) -> dict[str, float]:
    found = read_score_file(path)
    return dict(zip(found.token, found.values["score"].tolist(), strict=True))


def test_the_table_holds_means_and_paired_tests(tmp_path: Path) -> None:
    a = written(tmp_path / "a.csv", [row(*one) for one in draws(1)])
    b = written(tmp_path / "b.csv", [row(*one) for one in reversed(draws(2, 0.3))], index=False)
    text = compare_score_files([a, b])
    x, y = score_of(a), score_of(b)
    values = np.array([[x[token], y[token]] for token in x])
    test = paired(values[:, 0], values[:, 1], np.arange(400))
    cells = next(line for line in text.splitlines() if line.startswith("score")).split()
    assert cells[1:4] == [f"{100 * values[:, 0].mean():.2f}", f"{100 * values[:, 1].mean():.2f}", f"{100 * test.difference:+.2f}"]
    assert [line.split()[0] for line in text.splitlines()[4:10]] == ["score", "NC", "DAC", "EP", "TTC", "C"]
    assert "400 samples in common, of 400 samples" in text
    assert text.splitlines()[-1].startswith(f"verdict: A is better than B in score ({100 * test.difference:+.2f} points")


def test_equal_planners_are_not_told_apart(tmp_path: Path) -> None:
    sides = [written(tmp_path / f"{k}.csv", [row(*one) for one in draws(k)]) for k in (1, 2)]
    assert "no difference that these data can show in score; to show one of the size seen would take about" in compare_score_files(sides)


def test_averages_and_failures_are_left_out_and_said(tmp_path: Path) -> None:
    lines = [row("a" * 16, 1, 0.8), row("b" * 16, 0, 0.9), row("c" * 16, 1, 0.7, valid=False)]
    mean = sum(float(line.split(",")[-1]) for line in lines[:2]) / 2
    honest = written(tmp_path / "honest.csv", [*lines, f"average,False,0.5,1,0.85,1,1,{mean}"])
    found = read_score_file(honest)
    assert found.token == ("a" * 16, "b" * 16)
    assert [note.partition(": ")[2] for note in found.notes] == [
        "1 samples failed and have no score. NAVSIM's average leaves them out too, as if they had not been there."
    ]
    other = written(tmp_path / "other.csv", [*lines, "average,False,0.5,1,0.85,1,1,0.95"])
    assert f"says 0.9500, but its rows average to {mean:.4f}" in " ".join(read_score_file(other).notes)


def test_samples_of_a_log_are_one_group(tmp_path: Path) -> None:
    def side(name: str, seed: int) -> str:
        lines = [row(*one, more=f",log-{k // 50}") for k, one in enumerate(draws(seed))]
        return written(tmp_path / name, lines, f"{HEAD},log_name")

    text = compare_score_files([side("a.csv", 1), side("b.csv", 2)])
    assert "of 8 logs" in text
    assert "independent" not in text


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_files_that_a_spreadsheet_wrote_again(tmp_path: Path, mark: str) -> None:
    """With quotes, and with decimal commas where the mark is no comma."""
    lines = [HEAD, *(row(*one) for one in draws(1)[:5])]
    want = score_of(written(tmp_path / "a.csv", lines[1:], index=False))
    if mark != ",":
        lines = [line.replace(",", mark).replace(".", ",") for line in lines]
    quoted = [mark.join(f'"{cell}"' for cell in line.split(mark)) for line in lines]
    for text in (lines, quoted):
        (tmp_path / "b.csv").write_text("\r\n".join(text) + "\r\n")
        assert is_score_file(tmp_path / "b.csv")
        assert score_of(str(tmp_path / "b.csv")) == want


def test_two_kinds_of_score_are_not_compared(tmp_path: Path) -> None:
    lines = [row(*one) for one in draws(1)[:5]]
    one = written(tmp_path / "one.csv", lines)
    two = written(tmp_path / "two.csv", [f"{line},1.0" for line in lines], f"{HEAD.replace('comfort', 'history_comfort')},lane_keeping")
    with pytest.raises(
        DataError, match=r"one\.csv holds PDMS \(NAVSIM v1\) and .*two\.csv EPDMS \(NAVSIM v2\), which are different scores"
    ):
        compare_score_files([one, two])


def test_what_a_score_file_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [row(*one) for one in draws(1)[:5]]
    whole = written(tmp_path / "whole.csv", lines)
    other = written(tmp_path / "other.csv", lines, HEAD.replace(",score", ",pdm_score"))
    (tmp_path / "notes.txt").write_text("L2 0.1")
    for files, message in (
        ([whole, other], "other.csv: expected a CSV table with the columns token and score"),
        ([whole, str(tmp_path / "notes.txt")], "whole.csv is a score file of NAVSIM, which is compared with another score file"),
    ):
        with pytest.raises(SystemExit):
            main(["compare", *files])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d" * 16 + ",True,1,1,nan,1,1,0.5", "ego_progress must be a number from 0 to 1; found nan"),
        ("d" * 16 + ",True,1,1,0.5,1,1,71.2", "score must be a number from 0 to 1; found 71.2"),
        ("d" * 16 + ",True,1,1,0.5,1,1", "line 3: the row has fewer cells than the header"),
        ("a" * 16 + ",True,1,1,0.5,1,1,0.5", "is there twice"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "bad.csv", [row("a" * 16, 1, 0.8), line], index=False)
    with pytest.raises(DataError, match=message) as stop:
        read_score_file(path)
    assert "bad.csv, line 3" in str(stop.value)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = written(tmp_path / "a.csv", [row("a" * 16, 1, 0.8)])
    b = written(tmp_path / "b.csv", [row("b" * 16, 1, 0.8)])
    failed = written(tmp_path / "failed.csv", [row("a" * 16, 1, 0.8, valid=False)])
    with pytest.raises(DataError, match="no token in common"):
        compare_score_files([a, b])
    with pytest.raises(DataError, match="no valid row"):
        compare_score_files([a, failed])
    with pytest.raises(ConfigError, match="two sides"):
        compare_score_files([a])
    assert "Only 1 samples: no difference can be significant" in compare_score_files([a, a])


def test_compare_recognises_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [written(tmp_path / f"{k}.csv", [row(*one) for one in draws(k)]) for k in (1, 2)]
    assert all(map(is_score_file, sides))
    (tmp_path / "other.csv").write_text("step,loss\n1,2\n")
    assert not is_score_file(tmp_path / "other.csv")
    assert not is_score_file(tmp_path / "missing.csv")
    main(["compare", *sides])
    assert "400 samples in common" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    {
        "a cell more": (lambda lines: [*lines[:3], lines[3] + ",0.5", *lines[4:]], "line 4: the row has more cells"),
        "a cell fewer": (lambda lines: [*lines[:3], lines[3].rsplit(",", 1)[0], *lines[4:]], "line 4: the row has fewer cells"),
        "a column twice": (
            lambda lines: [line + f",{'score' if k == 0 else 0.5}" for k, line in enumerate(lines)],
            "column score is there twice",
        ),
        "valid is a word": (lambda lines: [line.replace("True", "maybe") for line in lines], "line 2: valid must be True or False"),
        "no token": (lambda lines: [lines[0], "," + lines[1].split(",", 1)[1]], "a sample token must be text"),
        "an open quote": (lambda lines: [*lines, '"abc'], "not a CSV table"),
    }.values(),
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[list[str]], list[str]], told: str) -> None:
    lines = [HEAD, *(row(*one) for one in draws(1)[:6])]
    (tmp_path / "a.csv").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(DataError, match=told):
        read_score_file(tmp_path / "a.csv")
