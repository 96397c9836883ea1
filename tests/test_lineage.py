"""Lineage: mismatched pairs are refused, allowed mismatches stay marked, and lineages can be read back."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from three_runs import RECIPE, TOWN, Chain, train_chain

from iidrive.analysis import lineage_of
from iidrive.cli.main import main
from iidrive.core.errors import CheckpointError, ConfigError, DataError, LineageError
from iidrive.core.lineage import MARKED, Lineage, Parent, joined, mark_numbers, matched
from iidrive.data.clips import read_tracks
from iidrive.data.tokens import TokenCache
from iidrive.pipeline import token_check
from iidrive.pipeline.evaluate import Use, evaluate
from iidrive.pipeline.infer import truth
from iidrive.pipeline.load import load_agent, load_forecaster, load_tokenizer
from iidrive.pipeline.testset import TestSet
from iidrive.pipeline.train import train_planner, train_world
from iidrive.runtime.run_folder import Run
from iidrive.scoring.cases import write_cases
from iidrive.scoring.predictions import read_predictions
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest
from iidrive.training.options import RunOptions

TINY = ["--recipe", "tiny", "--recipe.town.train_scenes", "2", "--recipe.town.test_scenes", "1", "--recipe.town.keyframes", "12"]


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> list[Chain]:
    return [train_chain(tmp_path_factory.mktemp(f"chain{seed}"), seed) for seed in range(3)]


def mark(path: Path) -> str:
    return checkpoint.read_manifest(path).fingerprint


def test_a_mismatch_shows_both_chains_and_the_advice() -> None:
    user = Lineage("planner", "1a", "runs/p", (Parent("world", "runs/w", "3c"), Parent("tokenizer", "runs/t", "5e")))
    given = Lineage("world", "77", "runs/w2", (Parent("tokenizer", "runs/t2", "99"),))
    assert matched(user, "world", Lineage("world", "3c"), "") == ()
    with pytest.raises(LineageError) as stop:
        matched(user, "world", given, "do this.")
    message = str(stop.value)
    assert "planner 1a ← world 3c ← tokenizer 5e" in message
    assert "world 77 ← tokenizer 99" in message
    assert "do this." in message
    assert "--allow-mismatch on" in message
    (allowed,) = matched(user, "world", given, "", allow=True)
    assert allowed == "planner 1a, trained on world 3c, used with world 77"
    assert joined([allowed], (allowed, "other")) == (allowed, "other")


def test_lineage_survives_json() -> None:
    made = Lineage("planner", "1a", "p", (Parent("world", "w", "3c"),), ("m",)).child("predictions")
    assert Lineage.from_plain(json.loads(json.dumps(made.to_plain())), "here") == made
    assert made.to_plain()["chain"] == "predictions ← planner 1a ← world 3c"
    with pytest.raises(LineageError, match=r"here: its lineage is damaged"):
        Lineage.from_plain({"links": [{}], "marks": []}, "here")


def test_every_block_of_numbers_is_marked() -> None:
    assert mark_numbers({"a": {"x": 1}}, ()) == {"a": {"x": 1}}
    assert mark_numbers({"a": {"x": 1}}, ["m"]) == {"marks": ["m"], "a": {"x": 1, "marks": ["m"]}}


@pytest.mark.slow
def test_of_27_combinations_the_three_matched_ones_are_accepted(chains: list[Chain]) -> None:
    """Three tokenizers × three world models × three planners. Refusals name the checkpoints that differ."""
    assert len({mark(c.tokenizer) for c in chains}) == len({mark(c.world) for c in chains}) == len({mark(c.planner) for c in chains}) == 3
    accepted = 0
    for t, w, p in product(range(3), repeat=3):
        planner, world, tokenizer = chains[p].planner, chains[w].world, chains[t].tokenizer
        if t == w == p:
            assert load_agent(planner, world, tokenizer).manifest.marks == ()
            accepted += 1
            continue
        with pytest.raises(LineageError) as stop:
            load_agent(planner, world, tokenizer)
        for path in (tokenizer, chains[w].tokenizer) if t != w else (world, chains[p].world):
            assert mark(path) in str(stop.value)
        manifest = load_agent(planner, world, tokenizer, allow=True).manifest
        assert manifest.marks
        assert [link.fingerprint for link in manifest.lineage().links] == [mark(planner), mark(world), mark(tokenizer)]
    assert accepted == 3


@pytest.mark.slow
def test_tokens_fit_only_their_own_tokenizer_and_world_model(chains: list[Chain], tmp_path: Path) -> None:
    for i, j in product(range(3), repeat=2):
        cache = TokenCache(chains[i].tokens)
        if i == j:
            assert cache.require(checkpoint.read_manifest(chains[j].world).lineage()) == ()
            continue
        run = Run.start(tmp_path / f"{i}{j}", {})
        with pytest.raises(LineageError, match=f"tokens ← tokenizer {mark(chains[i].tokenizer)}"):
            train_world(RECIPE, chains[j].tokenizer, cache, TOWN, "train", run)
        with pytest.raises(LineageError, match=f"world {mark(chains[j].world)} ← tokenizer {mark(chains[j].tokenizer)}"):
            train_planner(RECIPE, chains[j].world, cache, TOWN, "train", run, train_ii=False)
        assert not list(run.folder.glob("checkpoints"))


@pytest.mark.slow
def test_an_allowed_mismatch_marks_all_descendants(chains: list[Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = chains[0], chains[1]
    world, planner = tmp_path / "world", tmp_path / "planner"
    with pytest.raises(SystemExit):
        main(["train", "world", str(a.tokenizer), "--tokens", str(b.tokens), "--run", str(tmp_path / "refused"), *TINY])
    assert f"tokens ← tokenizer {mark(b.tokenizer)}" in capsys.readouterr().err
    main(["train", "world", str(a.tokenizer), "--tokens", str(b.tokens), "--run", str(world), "--allow-mismatch", "on", *TINY])
    wrong = f"tokens of tokenizer {mark(b.tokenizer)} read with tokenizer {mark(a.tokenizer)}"
    assert checkpoint.read_manifest(world).marks[0] == wrong
    assert f"{MARKED}: {wrong}" in capsys.readouterr().out
    main(["train", "planner", str(world), "--run", str(planner), *TINY])  # its own tokens match, its world model is marked
    assert checkpoint.read_manifest(planner).marks[0] == wrong
    main(["evaluate", str(planner), "--run", str(tmp_path / "e"), "--json", str(tmp_path / "e.json"), *TINY])
    printed = capsys.readouterr().out
    assert printed.count(f"{MARKED}: {wrong}") >= 2
    scores = json.loads((tmp_path / "e.json").read_text())
    for block in ("sparsedrive", "forecast"):
        assert scores[block]["marks"][0] == wrong
    assert scores["about"]["lineage"]["marks"][0] == wrong
    for name in ("table-planner.txt", "forecast.txt"):
        assert (tmp_path / "e" / name).read_text().startswith(f"{MARKED}: {wrong}")
    predictions = tmp_path / "e" / "predictions-planner.npz"
    assert read_predictions(predictions).meta["lineage"]["marks"][0] == wrong  # pyright: ignore[reportIndexIssue, reportArgumentType]
    write_cases(tmp_path / "cases.npz", truth(TOWN, read_tracks(TOWN, "test")))
    main(["score", str(tmp_path / "cases.npz"), "--predictions", str(predictions), "--json", str(tmp_path / "s.json")])
    assert f"{MARKED}: {wrong}" in capsys.readouterr().out
    assert json.loads((tmp_path / "s.json").read_text())["sparsedrive"]["marks"][0] == wrong
    rows = str(tmp_path / "e" / "rows-planner.npz")
    main(["compare", rows, rows])
    assert capsys.readouterr().out.count(f"{MARKED}: {wrong}") == 1
    with suppress(SystemExit):  # whether it looks plausible does not matter
        main(["audit", str(predictions), "--cases", str(tmp_path / "cases.npz"), "--json", str(tmp_path / "a.json")])
    assert json.loads((tmp_path / "a.json").read_text())["marks"][0] == wrong
    with suppress(SystemExit):
        main(["audit", str(planner), "--samples", "1", "--json", str(tmp_path / "b.json")])
    assert f"{MARKED}: {wrong}" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["marks"][0] == wrong
    for file in ("manifest.json", "weights.safetensors"):
        assert lineage_of.trace(checkpoint.find(planner) / file)[0].fingerprint == mark(planner)


@pytest.mark.slow
def test_evaluating_with_other_stages_needs_the_override(chains: list[Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = chains[0], chains[1]
    other = ["--tokenizer", str(b.tokenizer), *TINY]
    with pytest.raises(SystemExit):
        main(["evaluate", str(a.planner), "--run", str(tmp_path / "no"), *other])
    message = capsys.readouterr().err
    assert f"world {mark(a.world)} ← tokenizer {mark(a.tokenizer)}" in message
    assert "iidrive train world" in message
    main(["evaluate", str(a.planner), "--run", str(tmp_path / "yes"), "--allow-mismatch", "on", *other])
    assert f"world {mark(a.world)}, trained on tokenizer {mark(a.tokenizer)}, used with" in capsys.readouterr().out
    (found,) = [x for x in lineage_of.trace(tmp_path / "yes") if x.kind == "predictions"]
    assert [p.fingerprint for p in found.ancestors] == [mark(a.planner), mark(a.world), mark(b.tokenizer)]
    assert len(found.marks) == 2
    on = TestSet(TOWN, "test", Run.start(tmp_path / "x", {}))
    with pytest.raises(ConfigError, match="--world is for planners"):
        evaluate(checkpoint.read(a.world), on, RECIPE, "train", Use(world=str(b.world)))


@pytest.mark.slow
def test_marked_runs_cannot_be_resumed_without_the_mark(chains: list[Chain], tmp_path: Path) -> None:
    a, b = chains[0], chains[1]
    run = Run.start(tmp_path, {})
    train_world(RECIPE, a.tokenizer, TokenCache(b.tokens), TOWN, "train", run, RunOptions(stop_at=4), allow=True)
    with pytest.raises(Exception, match="marks differs"):
        train_world(RECIPE, a.tokenizer, TokenCache(a.tokens), TOWN, "train", run, RunOptions(resume="on"))


@pytest.mark.slow
def test_lineages_are_printed_for_any_path(chains: list[Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = chains[0], chains[1]
    main(["lineage", str(a.planner), str(a.tokens)])
    printed = capsys.readouterr().out
    assert f"planner {mark(a.planner)} ← world {mark(a.world)} ← tokenizer {mark(a.tokenizer)}" in printed
    assert f"tokens ← tokenizer {mark(a.tokenizer)}" in printed
    assert "may be used together" in printed
    main(["lineage", str(a.world), str(b.tokens)])
    assert "2 different tokenizers, which must not be mixed" in capsys.readouterr().out
    assert {x.kind for x in lineage_of.trace(a.world.parent)} == {"tokenizer", "tokens", "world", "planner"}
    main(["evaluate", "ctrv", "--run", str(tmp_path / "ctrv"), *TINY])
    capsys.readouterr()
    main(["lineage", str(tmp_path / "ctrv")])
    assert "predictions ← ctrv" in capsys.readouterr().out
    with pytest.raises(DataError, match="nothing here has a lineage"):
        lineage_of.trace(tmp_path / "ctrv" / "run.json")
    np.savez(tmp_path / "p.npz", pred=np.zeros((3, 6, 2), np.float32))
    assert "unknown origin" in str(lineage_of.trace(tmp_path / "p.npz")[0])


def test_what_has_no_lineage_is_named(tmp_path: Path) -> None:
    manifest = Manifest("tokenizer", "0" * 16, {}, 8, "x", {})
    (checkpoint.save(tmp_path / "c", manifest, {"a": torch.ones(1)}) / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"c: no checkpoint: beside its manifest\.json, weights\.safetensors is missing"):
        lineage_of.trace(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth: weights of another project have no lineage here.*iidrive import ii-world"):
        lineage_of.trace(tmp_path / "w.pth")
    (tmp_path / "t.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"t\.txt: neither a predictions file \(\.npz\) nor scores \(\.json\): not readable as JSON.*[^.]\.$"
    ):
        lineage_of.trace(tmp_path / "t.txt")


@pytest.mark.slow
def test_a_stage_trained_again_in_the_same_folder_is_detected(chains: list[Chain], tmp_path: Path) -> None:
    shutil.copytree(chains[0].world.parent, tmp_path / "copy")
    world = tmp_path / "copy" / "world"
    file = checkpoint.find(world) / "manifest.json"
    plain = json.loads(file.read_text())
    plain["parents"][0]["path"] = str(checkpoint.find(tmp_path / "copy" / "tokenizer"))
    file.write_text(json.dumps(plain))
    shutil.rmtree(tmp_path / "copy" / "tokenizer")
    shutil.copytree(chains[1].tokenizer, tmp_path / "copy" / "tokenizer")
    assert "replaced by another one" in lineage_of.describe(lineage_of.trace(world)[0])
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        load_forecaster(world)


@pytest.mark.slow
def test_weights_of_another_checkpoint_are_detected(chains: list[Chain], tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint.find(chains[0].tokenizer), tmp_path / "t"))
    weights = checkpoint.load_tensors(path)
    save_file({**weights, "classes": weights["classes"] + 1e-6}, path / "weights.safetensors")
    with pytest.raises(LineageError, match="but architecture, weights and parents give"):
        load_tokenizer(path)
    tokens = Path(shutil.copytree(chains[0].tokens, tmp_path / "tokens"))
    name = TOWN.scene_names("train")[0]
    shutil.copy(TokenCache(chains[1].tokens).path(name), TokenCache(tokens).path(name))
    with pytest.raises(LineageError, match="written for another cache"):
        TokenCache(tokens)(name, np.array([0]))


@pytest.mark.slow
def test_the_zero_second_check(chains: list[Chain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 records its reconstruction mIoU; the same keyframes from the cache give the same value; a far lower one stops stage 2."""
    chain = chains[0]
    loaded = load_tokenizer(chain.tokenizer)
    tokenizer, manifest = loaded.model, loaded.manifest
    tracks, cache = read_tracks(TOWN, "train"), TokenCache(chain.tokens)
    assert sum(len(rows) for _, rows in token_check.chosen(tracks)) == 24  # all of two scenes of 12
    assert [r.tolist() for _, r in token_check.chosen(tracks, 5)] == [[5, 6], [5, 6]]
    zero, marks = token_check.check(tokenizer, manifest, cache, TOWN, tracks)
    assert marks == ()
    assert zero.found == pytest.approx(zero.recorded, abs=1e-6)
    assert checkpoint.read_manifest(chain.world).metrics["tokens_mIoU"] == pytest.approx(zero.found)

    assert not token_check.Check(0.03, 0.012).far_below  # too weak a tokenizer to be checked
    assert not token_check.Check(0.8, 0.7).far_below
    assert token_check.Check(0.8, 0.05).far_below

    checkpoint.amend(chain.tokenizer, {token_check.RECORD: 0.8})
    try:
        manifest = checkpoint.read_manifest(chain.tokenizer)
        with pytest.raises(LineageError, match=r"stage 1 recorded 80\.0 %"):  # fresh tokens are equally poor: the tokenizer is the cause
            token_check.check(tokenizer, manifest, cache, TOWN, tracks)
        with pytest.raises(LineageError, match="stage 1 recorded"):
            train_world(RECIPE, chain.tokenizer, cache, TOWN, "train", Run.start(tmp_path / "w", {}))
        monkeypatch.setattr(token_check, "measure", lambda t, s, k, cache=None: 0.05 if cache is not None else 0.79)
        with pytest.raises(LineageError, match="the cached tokens are not its own"):
            token_check.check(tokenizer, manifest, cache, TOWN, tracks)
        assert token_check.check(tokenizer, manifest, cache, TOWN, tracks, allow=True)[1] == (
            "tokens decode at 5.0 % mIoU where stage 1 recorded 80.0 %",
        )
    finally:
        checkpoint.amend(chain.tokenizer, {token_check.RECORD: zero.recorded})


@pytest.mark.slow
def test_a_tokenizer_without_a_recorded_miou_is_measured(chains: list[Chain]) -> None:
    loaded = load_tokenizer(chains[0].tokenizer)
    tokenizer, manifest = loaded.model, loaded.manifest
    bare = checkpoint.Manifest(**{**vars(manifest), "metrics": {}})
    tracks = read_tracks(TOWN, "train")
    zero, _ = token_check.check(tokenizer, bare, TokenCache(chains[0].tokens), TOWN, tracks)
    assert zero.recorded == pytest.approx(manifest.metrics[token_check.RECORD])
    assert torch.is_grad_enabled()
