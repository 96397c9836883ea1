"""Comparisons: null pairs show no difference, planted effects are found, and samples are joined correctly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_cases import random_cases
from make_tables import PLAIN_EVENTS, PLAIN_L2, print_table

from iidrive.analysis.compare.compare import METRICS, compare, format_comparison
from iidrive.analysis.compare.grid import format_grid
from iidrive.analysis.compare.tables import compare_tables
from iidrive.analysis.doctor.printed import WEIGHTS, parse_tables, read_tables
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.cases import read_cases, write_cases
from iidrive.scoring.predictions import Predictions, write_predictions
from iidrive.scoring.sampled import Sampled, read_runs, scored
from iidrive.scoring.stats import counts_differ, holm, paired, samples_needed

SAME = "no difference that these data can show"


def simulated(
    rng: np.random.Generator, scenes: int = 40, each: int = 20, shift: float = 0.0, hits: float = 0.03
) -> tuple[Sampled, Sampled]:
    """Two runs over clustered samples: scenes and samples are hard or easy for both, each run has its own noise per scene and per sample.

    `shift` is added to A's L2 (a share of it) and, as a factor 1 + shift, to its hit rate.
    """
    n = scenes * each
    scene = np.repeat(np.arange(scenes), each)
    hard = np.exp(rng.normal(0, 0.5, scenes))[scene] * np.exp(rng.normal(0, 0.3, n))
    growth = np.linspace(0.2, 2.0, 6)
    out = []
    for k in range(2):
        luck = np.exp(rng.normal(0, 0.15, scenes))[scene] * np.exp(rng.normal(0, 0.2, n))
        factor = 1 + shift * (k == 0)
        l2 = (hard * luck * factor)[:, None] * growth
        incident = rng.random(scenes)[scene] < 0.3
        hit = incident[:, None] & (rng.random((n, 6)) < hits / 0.3 * factor)
        out.append(Sampled("AB"[k], tuple(f"t{i}" for i in range(n)), l2, hit, np.zeros((n, 6), bool), tuple(f"s{s}" for s in scene)))
    return out[0], out[1]


def called(result_verdict: str) -> bool:
    """Whether a verdict claims any difference."""
    return "better" in result_verdict or "worse" in result_verdict


@pytest.mark.slow
def test_null_pairs_show_no_difference_at_about_the_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(called(compare([a], [b], resamples=399).verdict) for a, b in (simulated(rng, 25, 6) for _ in range(80)))
    assert wrong <= 10  # nominal 4 of 80; more than 10 has a chance of 0.2 %


@pytest.mark.slow
def test_null_tables_show_no_difference() -> None:
    """Counts of clustered runs, read from tables alone: the conservative count test must not find a difference."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(30):
        a, b = simulated(rng, 150, 34)
        texts = [print_table((run.L2.mean(0)).tolist(), run.hit.sum(0).tolist(), n=5100, tail=False) for run in (a, b)]
        one, two = (parse_tables(text)[0] for text in texts)
        wrong += called(compare_tables(one, two, n=5100).verdict)
    assert wrong <= 2


@pytest.mark.slow
def test_planted_effects_are_found() -> None:
    rng = np.random.default_rng(2)
    found = [compare([a], [b], resamples=999).verdict for a, b in (simulated(rng, 60, 20, shift=0.3) for _ in range(10))]
    assert sum("A is worse than B in L2" in verdict for verdict in found) >= 9
    a, b = simulated(rng, 60, 20, hits=0.02)
    many = replace(a, hit=a.hit | (rng.random(a.hit.shape) < 0.05))
    assert "obj_box_col" in compare([many], [b], resamples=999).verdict.split("no difference")[0]
    assert "better" in compare([b], [many], resamples=999).verdict


def test_the_order_of_rows_does_not_matter_and_missing_samples_are_counted() -> None:
    a, b = simulated(np.random.default_rng(3), 10, 10)
    order = np.random.default_rng(4).permutation(100)
    assert b.scene is not None
    shuffled = replace(
        b,
        token=tuple(b.token[i] for i in order),
        L2=b.L2[order],
        hit=b.hit[order],
        gt_col=b.gt_col[order],
        scene=tuple(b.scene[i] for i in order),
    )
    assert compare([a], [shuffled], resamples=199) == compare([a], [b], resamples=199)
    less = replace(b, token=b.token[5:], L2=b.L2[5:], hit=b.hit[5:], gt_col=b.gt_col[5:], scene=b.scene[5:])
    result = compare([a], [less], resamples=199)
    assert result.n == 95
    assert any("A: 5 samples (t0, t1, t2, …) not in every other file" in note for note in result.notes)


def test_equal_runs_are_the_same() -> None:
    a, _ = simulated(np.random.default_rng(5), 10, 5)
    assert "are the same" in compare([a], [replace(a, name="B")], resamples=99).verdict


def test_few_scenes_and_unknown_scenes_are_noted() -> None:
    a, b = simulated(np.random.default_rng(6), 4, 50, shift=5.0)
    result = compare([a], [b], resamples=99)
    assert SAME in result.verdict
    assert any("Only 4 independent groups" in note and "below 0.25" in note for note in result.notes)
    assert "would take about 350 samples for L2" in result.verdict, "seven scenes of fifty, though the spread alone would ask for fewer"
    loose = compare([replace(a, scene=None)], [replace(b, scene=None)], resamples=99)
    assert loose.independent
    assert any("too narrow" in note for note in loose.notes)
    assert "taken as independent" in loose.verdict
    assert "too narrow" in format_comparison(loose)


def test_at_least_seven_scenes_are_needed() -> None:
    for scenes, note, verdict in ((6, ["Only 6"], SAME), (7, [], "A is worse than B in L2")):
        a, b = simulated(np.random.default_rng(6), scenes, 50, shift=5.0)
        result = compare([a], [b], resamples=99)
        assert [n[:6] for n in result.notes if "independent groups" in n] == note
        assert verdict in result.verdict


def test_other_truth_is_refused() -> None:
    a, b = simulated(np.random.default_rng(7), 5, 5)
    with pytest.raises(DataError, match="different ground truth"):
        compare([a], [replace(b, gt_col=~b.gt_col)])
    with pytest.raises(DataError, match="no sample in common"):
        compare([a], [replace(b, token=tuple(t + "x" for t in b.token))])


def test_seeds_with_more_spread_than_the_sides_differ() -> None:
    """Each seed differs significantly from the others, but seeds of one side differ as much as the sides: no difference."""
    a, _ = simulated(np.random.default_rng(8), 40, 10)
    side_a = [replace(a, L2=a.L2 * f) for f in (1.0, 1.3)]
    side_b = [replace(a, L2=a.L2 * f) for f in (1.1, 1.4)]
    result = compare(side_a, side_b, resamples=499)
    assert SAME in result.verdict
    assert "scatter" in result.verdict
    assert "over 2 seeds of A" in format_comparison(result)
    near = compare([replace(a, L2=a.L2 * f) for f in (1.0, 1.01)], [replace(a, L2=a.L2 * f) for f in (1.3, 1.31)], resamples=499)
    assert near.verdict.startswith("A is better than B in L2")


# ------------------------------------------------------------------------------------------------------------------ statistics


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_paired_by_hand() -> None:
    """Six scenes of one sample, all differing by the same sign: exactly 2 of 64 permutations are as extreme."""
    found = paired(np.array([2.0, 3, 4, 5, 6, 7]), np.ones(6), np.arange(6))
    assert found.difference == 3.5
    assert found.p == pytest.approx(2 / 64)
    assert found.low > 0
    needed = samples_needed(6, found.difference, found.error)
    assert needed is not None
    assert needed < 6
    assert samples_needed(6, 0.0, 1.0) is None


def test_a_cluster_counts_once() -> None:
    """A hundred copies of each of six scenes show no more than six scenes."""
    a, b = np.repeat([2.0, 3, 4, 5, 6, 0], 100), np.ones(600)
    alone = paired(a[::100], b[::100], np.arange(6))
    assert paired(a, b, np.repeat(np.arange(6), 100)).p == pytest.approx(alone.p)


def test_counts_by_hand() -> None:
    assert counts_differ([8], [0], [1], group=1)[0] == pytest.approx(2 / 2**8)
    assert counts_differ([16], [0], [1], group=8)[0] == pytest.approx(2 / 2**2)
    assert counts_differ([3], [3], [1])[0] == 1.0
    assert counts_differ([0], [0], [1])[0] == 1.0
    p, _ = counts_differ([40000], [39000], [11], group=8)  # by the normal curve
    assert 0.1 < p < 0.3


# --------------------------------------------------------------------------------------------------------------------- tables


def test_reference_runs_one_and_two_are_no_difference(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = shared / "fixtures" / "notes" / "reference-notes.txt"
    main(["compare", "--tables", f"{notes}#1", f"{notes}#2"])
    printed = capsys.readouterr().out
    assert f"A and B: {SAME} in L2 or obj_box_col" in printed
    assert "1 2 4 11 23 74 (115) against 1 3 4 11 24 79 (122)" in printed
    assert "samples for obj_box_col" in printed
    tables = read_tables(notes)
    worse = compare_tables(tables[0], tables[3])
    assert worse.verdict.startswith("A is better than B in L2 (-2.8754 m) and obj_box_col (-0.637 points)")


def test_tables_of_other_sets_are_refused() -> None:
    one, other = parse_tables(print_table())[0], parse_tables(print_table(truth=(38, 35, 32, 30, 31, 29)))[0]
    with pytest.raises(DataError, match="different evaluation sets"):
        compare_tables(one, other)
    odd = parse_tables(print_table(truth=(7,) * 6, n=361, tail=False))[0]
    with pytest.raises(DataError, match="--samples"):
        compare_tables(odd, odd)


def test_texts_are_recognised_and_two_tables_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_text(print_table() + "\n\n" + print_table(PLAIN_L2, [3 * k for k in PLAIN_EVENTS]))
    main(["compare", str(path)])
    assert "verdict: A" in capsys.readouterr().out
    path.write_text(print_table())
    with pytest.raises(SystemExit):
        main(["compare", str(path)])
    assert "expected two tables to compare; found 1" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A cases file of ten scenes, predictions a (good) and b (worse), and per-sample files of both."""
    cases, path = random_cases(0, n=80, boxes_per_step=2)
    cases = replace(cases, gt_ego_fut_masks=np.ones((80, 6), bool), scene=tuple(f"scene-{i // 8}" for i in range(80)))
    write_cases(tmp_path / "cases.npz", cases)
    for name, extra, ii in (("a", 0.0, "on"), ("b", 1.5, "off")):
        order = np.random.default_rng(len(ii)).permutation(80)
        about = {"train_ii": "on", "test_ii": ii}
        write_predictions(tmp_path / f"{name}.npz", [cases.token[i] for i in order], (path + extra)[order], about)
        main(
            [
                "score",
                str(tmp_path / "cases.npz"),
                "--predictions",
                str(tmp_path / f"{name}.npz"),
                "--per-sample",
                str(tmp_path / f"{name}-rows.npz"),
            ]
        )
    return tmp_path


def test_one_command_for_two_predictions_and_one_cases_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["compare", str(files / "a.npz"), str(files / "b.npz"), "--cases", str(files / "cases.npz")])
    by_paths = capsys.readouterr().out
    assert "80 samples in common, of 10 scenes" in by_paths
    assert "verdict: A is better than B in L2" in by_paths
    main(["compare", "--cases", str(files / "cases.npz"), str(files / "a-rows.npz"), str(files / "b-rows.npz")])
    by_rows = capsys.readouterr().out
    assert by_rows.split("verdict: ")[1] == by_paths.split("verdict: ")[1]
    main(["compare", str(files / "a-rows.npz"), str(files / "b-rows.npz")])
    assert capsys.readouterr().out.split("verdict: ")[1] == by_paths.split("verdict: ")[1]
    with np.load(files / "a-rows.npz") as rows:
        np.savez(files / "nowhere-rows.npz", **{k: rows[k] for k in rows.files if k != "scene"})
    main(["compare", str(files / "nowhere-rows.npz"), str(files / "nowhere-rows.npz")])
    assert "too narrow" in capsys.readouterr().out
    (files / "run").mkdir()
    (files / "a.npz").rename(files / "run" / "predictions-planner.npz")
    main(["compare", str(files / "run"), str(files / "b.npz"), f"--cases={files / 'cases.npz'}"])
    assert capsys.readouterr().out.split("verdict: ")[1] == by_paths.split("verdict: ")[1]


def test_seeds_by_commas_and_patterns(files: Path) -> None:
    cases = read_cases(files / "cases.npz")
    assert len(read_runs(f"{files / 'a.npz'},{files / 'b.npz'}", cases)) == 2
    assert len(read_runs(str(files / "?.npz"), cases)) == 2


def test_the_grid(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["compare", "--grid", str(files / "a.npz"), str(files / "b.npz"), "--cases", str(files / "cases.npz")])
    printed = capsys.readouterr().out
    assert "test-ii off" in printed
    assert "train-ii on/test-ii on is better than train-ii on/test-ii off in L2" in printed
    assert printed.count("–") >= 2  # the cells that were not given
    cell = scored(read_cases(files / "cases.npz"), Predictions(np.zeros((80, 6, 2)), read_cases(files / "cases.npz").token))
    with pytest.raises(ConfigError, match="does not state train_ii and test_ii"):
        format_grid([cell])


def test_missing_and_foreign_predictions_are_named(files: Path) -> None:
    cases = read_cases(files / "cases.npz")
    tokens = (*cases.token[3:], "foreign")
    run = scored(cases, Predictions(np.zeros((78, 6, 2)), tokens, {}, "p"))
    assert len(run.token) == 77
    assert any("no prediction for 3 samples (sample0, sample1, sample2)" in note for note in run.notes)
    assert any("1 sample (foreign) not in" in note for note in run.notes)
    with pytest.raises(DataError, match="another split"):
        scored(cases, Predictions(np.zeros((1, 6, 2)), ("foreign",)))


def test_averages_are_those_of_score(files: Path) -> None:
    cases = read_cases(files / "cases.npz")
    run = read_runs(str(files / "a.npz"), cases)[0]
    result = compare([run], [run], resamples=9)
    assert [line.metric for line in result.lines[:2]] == list(METRICS)
    assert result.lines[0].a == pytest.approx(float((run.L2 @ WEIGHTS / 36).mean()))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sparsedrive_L2", 3.4e38, r"sparsedrive_L2 must be 0 to 1e\+06 m; found 3.4e\+38 \(1 such samples\)"),
        ("sparsedrive_L2", -0.5, "sparsedrive_L2 must be 0 to"),
        ("sparsedrive_L2", np.nan, "sparsedrive_L2 must be 0 to"),
        ("sparsedrive_obj_box_col", 2, "sparsedrive_obj_box_col may hold only 0 and 1"),
        ("sparsedrive_gt_col", -1, "sparsedrive_gt_col may hold only 0 and 1"),
        ("evaluated_full_future", 0.5, "evaluated_full_future may hold only 0 and 1"),
    ],
)
def test_numbers_that_no_score_can_have_are_refused(key: str, value: float, message: str, files: Path) -> None:
    with np.load(files / "a-rows.npz") as rows:
        arrays = {name: rows[name] for name in rows.files}
    arrays[key] = arrays[key].astype(np.float64)
    arrays[key][(5, 2)[: arrays[key].ndim]] = value
    np.savez(files / "odd.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_runs(str(files / "odd.npz"), None)


def test_clear_errors(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["a.npz", "b.npz"], "add --cases CASES.npz"),
        (["nowhere.npz", "b.npz"], "does not exist"),
        (["a.npz", "b.npz", "a.npz", "--cases", "cases.npz"], "takes two sides"),
        ([".", "b.npz", "--cases", "cases.npz"], "expected one predictions file"),
        (["cases.npz", "b.npz", "--cases", "cases.npz"], "not a predictions file"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *(str(files / a) if a.endswith((".npz", ".")) else a for a in arguments)])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
