"""The swap grid: diagnoses of hand-made numbers, code agreement, and the whole grid of two tiny chains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from three_runs import RECIPE, TOWN, Chain, train_chain

from iidrive.analysis.swap import diagnosis, swap
from iidrive.analysis.swap.agreement import agreement, mutual_information
from iidrive.cli.main import main
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.lineage import MARKED
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> list[Chain]:
    return [train_chain(tmp_path_factory.mktemp(f"chain{seed}"), seed) for seed in range(2)]


OWN = (0.80, 0.60, 0.50, 0.40, 0.30)


def test_a_mismatch_is_distinguished_from_a_poor_tokenizer() -> None:
    sentence = diagnosis.mismatched_pair((0.81, 0.05, 0.04, 0.04, 0.04), OWN)
    assert sentence.startswith("mismatch, not the tokenizer's quality")
    assert "6.2 % of that (its own: 75.0 %)" in sentence
    assert diagnosis.mismatched_pair((0.4, 0.02, 0.02, 0.02, 0.02), OWN).startswith("mismatch, and a poorer tokenizer")
    assert diagnosis.mismatched_pair((0.4, 0.3, 0.25, 0.2, 0.1), OWN).startswith("the tokenizer's quality")
    assert diagnosis.mismatched_pair(OWN, OWN).startswith("mismatch without visible cost")
    assert diagnosis.mismatched_pair((0.80, 0.50, 0.40, 0.30, 0.20), OWN).startswith("mismatch, at a cost")  # r4: 45.7 % instead of 56.4 %
    assert "no cost can be measured" in diagnosis.mismatched_pair((0.02,) * 5, (0.02,) * 5)
    assert "not among these" in diagnosis.mismatched_pair(OWN, None)


def test_matched_pairs_are_diagnosed_by_where_the_gap_begins() -> None:
    assert "as good as the best" in diagnosis.matched_pair(OWN, OWN)
    assert "the tokenizer is worse, already at 0 s" in diagnosis.matched_pair((0.5, 0.4, 0.3, 0.2, 0.1), OWN)
    assert "stage 2 is worse" in diagnosis.matched_pair((0.8, 0.5, 0.3, 0.2, 0.1), OWN)


def test_sentences_about_planners_and_tokenizers() -> None:
    assert "the mismatch, as that tokenizer is as good" in diagnosis.swapped_chain((3.58, 2), (0.71, 2), True)
    assert "which is lower" in diagnosis.swapped_chain((3.58, 2), (0.71, 2), False)
    assert diagnosis.swapped_chain((0.72, 11), (0.71, 2), True).endswith("no visible cost in L2; 11 collision events, 2 with its own.")
    assert diagnosis.swapped_chain((0.72, -1), (0.71, -1), True).endswith("no visible cost in L2.")
    assert "not among these" in diagnosis.swapped_chain((0.72, 0), None, True)
    assert "equally good;" in diagnosis.tokenizers(0.80, 0.81, 0.002, 0.002, 0.3)
    assert "does not mean the same in both" in diagnosis.tokenizers(0.80, 0.81, 0.002, 0.002, 0.3)
    assert "one tokenizer is better" in diagnosis.tokenizers(0.5, 0.8, 0.9, 0.002, 0.9)


def test_agreement_of_equal_renamed_and_unrelated_codes() -> None:
    rng = np.random.default_rng(1)
    a = rng.integers(0, 16, (50, 60))
    same, renamed = agreement(a, a, [20, 40]), agreement(a, (a + 5) % 16, [20, 40])
    unrelated = agreement(a, rng.integers(0, 16, a.shape), [20, 40])
    for level in range(2):
        assert (same[level].equal, same[level].information) == (1.0, pytest.approx(1.0))
        assert renamed[level].equal == 0.0
        assert renamed[level].information == pytest.approx(1.0)
        assert unrelated[level].equal == pytest.approx(unrelated[level].chance, abs=0.03)
        assert unrelated[level].information == pytest.approx(0.0, abs=0.05)
    assert [x.codes for x in same] == [1000, 2000]
    with pytest.raises(DataError, match="same keyframes and levels"):
        agreement(a, a[:10], [20, 40])


def test_mutual_information_by_hand() -> None:
    """Two fair bits: equal 1, independent 0; 0 with a constant."""
    assert mutual_information(np.array([0, 1, 0, 1]), np.array([1, 0, 1, 0])) == pytest.approx(1.0)
    assert mutual_information(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.0)
    assert mutual_information(np.array([0, 0, 0, 0]), np.array([0, 1, 0, 1])) == 0.0


@pytest.mark.slow
def test_the_grid_is_complete_and_mismatches_are_marked(chains: list[Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    town = ["--recipe", "tiny", "--run", str(tmp_path / "swap"), "--json", str(tmp_path / "s.json")]
    main(["swap", *(str(c.planner) for c in chains), *town])
    printed = capsys.readouterr().out
    assert printed.count(MARKED) == 2 + 6
    assert printed.count("matched") - printed.count("mismatched") == 2 + 2 + 2  # pairs, chains, sentences
    assert printed == (tmp_path / "swap" / "swap.txt").read_text()
    found = json.loads((tmp_path / "s.json").read_text())
    assert (len(found["forecast"]), len(found["planning"])) == (4, 8)
    assert found["n"] == 6
    for row in found["forecast"]:
        assert bool(row["marks"]) == (row["tokenizer"] != row["world"])
        assert len(row["miou"]) == len(found["seconds"]) == 5
        assert row["miou"][0] == found["forecast"][2 * row["tokenizer"]]["miou"][0]  # the current frame depends only on the tokenizer
    for row in found["planning"]:
        assert bool(row["marks"]) == (not row["tokenizer"] == row["world"] == row["planner"])
    quantiser = RECIPE.tokenizer.quantiser
    assert [len(x["levels"]) for x in found["agreement"]] == [3 + quantiser.history]
    assert sum(x["codes"] for x in found["agreement"][0]["levels"]) == 12 * (16 + 64 + 256 * (1 + quantiser.history))


@pytest.mark.slow
def test_the_grid_agrees_with_evaluate_on_a_matched_chain(chains: list[Chain], tmp_path: Path) -> None:
    out = tmp_path / "e.json"
    main(["evaluate", str(chains[0].planner), "--test-ii", "on", "--recipe", "tiny", "--run", str(tmp_path / "e"), "--json", str(out)])
    expected = json.loads(out.read_text())
    grid = swap.grid_of([chains[0].world.parent])
    assert (len(grid.tokenizers), len(grid.worlds), len(grid.planners), grid.size) == (1, 1, 1, 3)
    result = swap.swap(grid, TOWN, "test", Run.start(tmp_path / "s", {}), scenes=0, test_ii=True)
    assert result.triples[0].l2_m == expected["sparsedrive"]["average"]["L2"]
    assert [result.pairs[0].miou[i] for i in (0, 2, 3, 4)] == expected["forecast"]["rows"]["world model"]["mIoU"]


@pytest.mark.slow
def test_stages_are_found_from_a_checkpoint_alone(chains: list[Chain], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to swap"):
        swap.grid_of([chains[0].tokenizer])
    world = checkpoint.save(tmp_path / "w", checkpoint.read_manifest(chains[0].world), checkpoint.load_tensors(chains[0].world))
    grid = swap.grid_of([world, chains[1].tokenizer])
    assert (grid.own_tokenizer(0), len(grid.tokenizers), len(grid.planners)) == (0, 2, 0)
