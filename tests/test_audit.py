"""The audit finds and names every planted leak, and reports no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from leaks import CLEAN, MLP, PLANTED, TOWN
from three_runs import TOWN as CHAIN_TOWN
from three_runs import train_chain

from iidrive.analysis.leakage.audit import audit_samples, choose
from iidrive.analysis.leakage.counterfactual import INPUTS, Change, Counterfactual, Wrapped
from iidrive.analysis.leakage.findings import changed, format_audit, to_json
from iidrive.analysis.leakage.plausible import format_plausibility, plausible
from iidrive.analysis.leakage.subject import Pipeline, Sample, tokenizing
from iidrive.cli.main import main
from iidrive.core.batch import Batch
from iidrive.core.errors import ConfigError
from iidrive.core.scene import CommandSource
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, read_tracks, scored_clips
from iidrive.data.source import true_path
from iidrive.data.tokens import TokenCache, build
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import infer
from iidrive.pipeline.load import load_tokenizer
from iidrive.scoring.cases import write_cases
from iidrive.scoring.predictions import write_predictions


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return choose(TOWN, "test", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found_and_named(name: str, samples: list[Sample]) -> None:
    found = audit_samples(PLANTED[name].make, TOWN, samples)
    named = {leak.input: leak for leak in found.leaks}
    assert not found.clean, format_audit(found)
    assert PLANTED[name].named in named, format_audit(found)
    leak = named[PLANTED[name].named]
    assert 0 < leak.samples <= leak.of == len(samples)
    also = {"boxes up to now"} if name == "boxes of the next keyframe" else set()  # the next one of a past keyframe is not later
    assert {"boxes up to now", "map and route", "boxes and map together"} & named.keys() <= {PLANTED[name].named} | also
    assert "LEAK" in format_audit(found)
    json.dumps(to_json(found), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_model_has_no_leaks(name: str, samples: list[Sample]) -> None:
    found = audit_samples(CLEAN[name], TOWN, samples)
    assert found.clean, format_audit(found)
    assert found.believable, format_audit(found)
    assert not found.leaks
    assert "clean" in format_audit(found)


def test_the_worth_of_a_leak_is_the_increase_of_l2_without_it(samples: list[Sample]) -> None:
    """Half of the true path halves the error; replacing it by another path is worse than removing it."""
    leaky, honest = (
        audit_samples(PLANTED["plan reads the true path"].make, TOWN, samples),
        audit_samples(CLEAN["constant turn rate and velocity"], TOWN, samples),
    )
    assert leaky.l2_m == pytest.approx(honest.l2_m / 2, rel=1e-5)
    assert max(leak.worth_m for leak in leaky.leaks if leak.input == "later poses") > honest.l2_m - leaky.l2_m


def test_a_leak_at_the_first_keyframe_alone_is_found_there_alone(samples: list[Sample]) -> None:
    found = audit_samples(PLANTED["velocity of the next pose at a scene's start"].make, TOWN, samples)
    leak = next(leak for leak in found.leaks if leak.input == "later poses")
    assert leak.samples == sum(index == 0 for _, index in samples)


def test_an_oracle_command_is_declared_and_measured(samples: list[Sample]) -> None:
    class Oracle(Wrapped):
        @property
        def command_source(self) -> CommandSource:
            return "oracle"

    found = audit_samples(lambda: Pipeline(lambda b: {"plan": MLP.plan(b.inputs)}), Oracle(TOWN), samples)  # pyright: ignore
    assert found.clean
    assert [leak.input for leak in found.leaks] == ["oracle command (declared)"]
    assert np.isfinite(found.leaks[0].worth_m)


def test_a_model_that_is_not_repeatable_is_not_audited(samples: list[Sample]) -> None:
    with pytest.raises(ConfigError, match="different outputs for the same samples"):
        audit_samples(lambda: Pipeline(lambda b: {"plan": torch.rand(len(b.inputs.tokens), 6, 2)}), TOWN, samples)


@pytest.mark.parametrize("value", ["other", "noise"])
def test_a_counterfactual_keeps_the_past_and_replaces_all_that_follows(value: str) -> None:
    name = TOWN.scene_names("test")[0]
    real, other = TOWN.scene(name), Counterfactual(TOWN, {name: 3}, Change(frozenset(INPUTS), value)).scene(name)  # pyright: ignore
    assert other.keyframes[:4] == real.keyframes[:4]
    for a, b in zip(real.keyframes[4:], other.keyframes[4:], strict=True):
        assert not np.allclose(a.global_T_ego.matrix, b.global_T_ego.matrix)
        assert a.timestamp_us != b.timestamp_us
        assert len(a.boxes) != len(b.boxes) or not np.array_equal(a.boxes.centre_m, b.boxes.centre_m)
    assert any(a.command != b.command for a, b in zip(real.keyframes[4:], other.keyframes[4:], strict=True))
    assert len(Counterfactual(TOWN, {name: 3}, Change(end=True)).scene(name)) == 4


def test_bits_are_compared_not_values() -> None:
    zero, nan = np.zeros((1, 2), np.float32), np.full((1, 2), np.nan, np.float32)
    assert changed({"plan": zero}, {"plan": -zero}).all()
    assert not changed({"plan": nan}, {"plan": nan}).any()
    assert changed({"plan": zero}, {"plan": np.nextafter(zero, 1)}).all()


def test_implausibly_good_scores_are_flagged_without_the_model() -> None:
    cases = infer.truth(TOWN, read_tracks(TOWN, "test"))
    clips = scored_clips(read_tracks(TOWN, "test"))
    rows = {token: i for i, token in enumerate(cases.token)}
    path = cases.true_path()
    for name in ("still", "constant-velocity", "ctrv"):
        tokens, plans = infer.plans(KINEMATIC[name], clips)
        plan = path.copy()
        plan[[rows[t] for t in tokens]] = plans
        assert not plausible(cases, plan).reasons, name
    assert plausible(cases, path).reasons
    near = path + 0.002 * np.random.default_rng(0).normal(size=path.shape).astype(np.float32)
    assert "is implausible" in plausible(cases, near).reasons[0]


def test_few_samples_are_not_judged_by_their_mean_error() -> None:
    cases = infer.truth(TOWN, read_tracks(TOWN, "test"))
    near = cases.true_path() + 0.002 * np.random.default_rng(0).normal(size=(len(cases), 6, 2)).astype(np.float32)
    rows = np.flatnonzero(cases.full)[:7]
    masks = np.zeros_like(cases.gt_ego_fut_masks)
    masks[rows] = True
    judged = plausible(replace(cases, gt_ego_fut_masks=masks), near)
    assert not judged.reasons
    assert "too few to judge" in format_plausibility(judged)
    path = cases.true_path()
    assert "not planned" in plausible(replace(cases, gt_ego_fut_masks=masks), path).reasons[0]


@pytest.mark.slow
def test_implausible_scores_are_flagged_even_without_a_leak() -> None:
    """A planner that has memorised the test scenes by their appearance: replacing the future does not change its plans."""
    samples = choose(TOWN, "test", 8)
    seen = {}
    for name in TOWN.scene_names("test"):
        clips = ClipDataset([EgoTrack.of(TOWN.scene(name))], ClipSpec(full_future=False), None, None, future=True)
        for row, (_, index) in enumerate(clips.samples):
            look = clips.batch([row]).inputs.now_T_frame.numpy().tobytes()
            seen[look] = true_path(TOWN.scene(name), index).points_m + np.float32(0.003)

    def recall(batch: Batch) -> dict[str, torch.Tensor]:
        looks = [frame.numpy().tobytes() for frame in batch.inputs.now_T_frame]
        return {"plan": torch.from_numpy(np.stack([seen.get(look, np.zeros((6, 2), np.float32)) for look in looks]))}

    found = audit_samples(lambda: Pipeline(recall), TOWN, samples)
    assert found.clean
    assert not found.leaks
    assert not found.believable
    assert found.score is not None
    assert {"still", "constant-velocity", "ctrv"} <= set(found.score.baselines)
    printed = format_audit(found)
    assert "IMPLAUSIBLE" in printed
    assert "no leak found, but the score is implausible" in printed
    json.dumps(to_json(found), allow_nan=False)
    steady = audit_samples(lambda: Pipeline(lambda batch: {"plan": KINEMATIC["ctrv"](batch.inputs)}), TOWN, samples)
    assert steady.believable
    assert steady.score is not None
    np.testing.assert_array_equal(steady.score.l2, steady.score.baselines["ctrv"])


@pytest.mark.slow
def test_a_trained_chain_is_clean_and_stored_tokens_of_another_moment_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = train_chain(tmp_path, 0)
    main(["audit", str(chain.planner), "--samples", "2"])
    assert "clean" in capsys.readouterr().out
    early = chain.tokens.with_name("early")
    names = CHAIN_TOWN.scene_names("test")
    encode = tokenizing(load_tokenizer(chain.tokenizer).model)
    known = TokenCache(chain.tokens).manifest
    build(
        CHAIN_TOWN,
        names,
        lambda scene: np.roll(encode(CHAIN_TOWN, scene.name), -1, axis=0),
        early,
        known.tokenizer,
        2**known.bits,
        known.codes_per_frame,
    )
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(chain.planner), "--samples", "2", "--tokens", str(early)])
    assert stop.value.code == 1
    assert "tokens that saw later keyframes" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_says_clean_with_status_0_and_implausible_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["audit", "ctrv", "--samples", "2", "--recipe", "tiny", "--json", str(tmp_path / "audit.json")])
    assert "clean" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["clean"] is True
    cases = infer.truth(TOWN, read_tracks(TOWN, "test"))
    write_cases(tmp_path / "cases.npz", cases)
    write_predictions(tmp_path / "mine.npz", cases.token, cases.true_path(), {})
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(tmp_path / "mine.npz"), "--cases", str(tmp_path / "cases.npz")])
    assert stop.value.code == 1
    assert "IMPLAUSIBLE" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["audit", str(tmp_path / "mine.npz")])
    assert stop.value.code == 2
