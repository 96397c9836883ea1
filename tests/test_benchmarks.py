"""Benchmarks at tiny size: what they measure is what their tables say."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import speed_profiles
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.tokens import codes_in_memory

TINY = recipes.tiny()
FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_futures_scores_the_candidates_that_the_planner_chooses_among(monkeypatch: pytest.MonkeyPatch) -> None:
    futures = script("futures", monkeypatch)
    torch.manual_seed(0)
    town = Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1, keyframes=12))
    tokenizer = Tokenizer(TINY.tokenizer).eval()
    forecaster = Forecaster(tokenizer, WorldModel(TINY.world, tokenizer.cells, tokenizer.config.grid))
    tracks = read_tracks(town, "test")
    inputs = scored_clips(tracks, codes_in_memory(tokenizer, town, tracks)).batch(range(4)).inputs
    agent = Agent(forecaster, Planner(TINY.planner, tokenizer.cells), True).eval()
    with torch.no_grad():
        base = agent.base_path(inputs)
        plain = speed_profiles(base, torch.tensor(recipes.ACCELERATIONS))
        assert torch.equal(futures.candidates_of(agent, inputs, base), agent.choice(inputs, ii=True).candidates)
        assert not torch.allclose(futures.candidates_of(agent, inputs, base), plain, atol=1e-3)
        without = Agent(forecaster, Planner(replace(TINY.planner, accelerations=()), tokenizer.cells), True).eval()
        assert torch.equal(futures.candidates_of(without, inputs, base), plain)


def test_futures_tries_the_planners_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    futures = script("futures", monkeypatch)
    for recipe in (recipes.small(), recipes.full()):
        assert (recipe.planner.collision_m, recipe.planner.overlap_m) in futures.WEIGHTS_M
    odd = replace(TINY.planner, collision_m=7.0, overlap_m=3.0)
    assert (7.0, 3.0) in futures.weights_of(odd, ii=True)
    off = futures.weights_of(odd, ii=False)
    assert (7.0, 0.0) in off
    assert {overlap_m for _, overlap_m in off} == {0.0}, "without a forecast nothing is occupied in it"
    assert len(set(off)) == len(off)


@pytest.mark.slow
def test_the_flow_is_measured_beside_the_roll_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = script("model", monkeypatch)
    quantiser = replace(TINY.tokenizer.quantiser, codes=512)
    small = replace(TINY, tokenizer=replace(TINY.tokenizer, quantiser=quantiser))
    monkeypatch.setattr(model.recipes, "full", lambda: small)
    assert model.forecaster()[0].world.flow is None
    loss, norm = model.forward_backward(model.flow_loss())().tolist()
    assert loss > 0
    assert norm > 0
    assert model.CASES["flow"].make()().shape == (1, 7, 32, 32)
    found = model.rollout_with_flow(2)
    assert set(found) == {"without_s", "with_s", "ratio"}
    assert all(value > 0 for value in found.values())
