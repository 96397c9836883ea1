"""What is computed once for several readers is what each would have computed by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from iidrive.data.clips import ClipDataset, read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import infer, recipes
from iidrive.pipeline.choices import choices
from iidrive.pipeline.evaluate import reconstruction_miou
from iidrive.pipeline.pictures import Sample, draw
from iidrive.pipeline.testset import TestSet
from iidrive.pipeline.tokens import codes_in_memory
from iidrive.runtime.run_folder import Run

pytestmark = pytest.mark.slow

RECIPE = recipes.tiny()


@pytest.fixture(scope="module")
def source() -> Town:
    return Town(TownConfig(seed=908, train_scenes=0, val_scenes=0, test_scenes=1, keyframes=18))


@pytest.fixture(scope="module")
def agent() -> Agent:
    torch.manual_seed(0)
    weights = tuple(float(k % 4) for k in range(18))  # some classes are never shown
    tokenizer = Tokenizer(replace(RECIPE.tokenizer, class_weights=weights, prior=0.5)).eval()
    world = WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid)
    made = Agent(Forecaster(tokenizer, world), Planner(RECIPE.planner, tokenizer.cells), True).eval()
    with torch.no_grad():
        made.planner.outcomes.out.weight.normal_(0, 3.0)
        made.forecaster.tokenizer.decoder.out[-1].weight.normal_(0, 0.5)
    return made


@pytest.fixture(scope="module")
def clips(source: Town, agent: Agent) -> ClipDataset:
    tracks = read_tracks(source, "test")
    tokenizer = agent.forecaster.tokenizer
    return scored_clips(tracks, codes_in_memory(tokenizer, source, tracks), source, tokenizer.config.grid)


def test_labels_read_frame_by_frame(agent: Agent, clips: ClipDataset) -> None:
    tokenizer, codes = agent.forecaster.tokenizer, clips.batch(range(5)).inputs.codes
    assert codes is not None
    with torch.no_grad():
        latent = tokenizer.latent_of(codes[:, -1])
        logits = tokenizer.decode(latent) + tokenizer._bias(latent)
        without = torch.zeros(18, dtype=torch.bool)
        without[[1, 2, 3, 17]] = True
        assert torch.equal(tokenizer.labels(latent), logits.argmax(-1).to(torch.uint8))
        assert torch.equal(tokenizer.labels(latent, without), logits.masked_fill(without, -torch.inf).argmax(-1).to(torch.uint8))
        assert len(torch.unique(tokenizer.labels(latent))) > 2
        assert tokenizer.labels(latent[:0]).shape == (0, *tokenizer.config.grid.shape)
        top, low = tokenizer.read(latent, lambda part: (part.amax(-1), part.softmax(-1).amin(-1)))
    torch.testing.assert_close(top, logits.amax(-1))
    torch.testing.assert_close(low, logits.softmax(-1).amin(-1))


def test_plans_of_both_states(agent: Agent, clips: ClipDataset) -> None:
    bare = clips.without_occupancy()
    tokens, paths = infer.plans(agent.both, bare)
    assert paths.shape == (len(clips), 2, 6, 2)
    for k, ii in enumerate((False, True)):
        alone = infer.plans(partial(agent.plan, ii=ii), bare)
        assert alone[0] == tokens
        np.testing.assert_array_equal(paths[:, k], alone[1])
    assert (paths[:, 0] != paths[:, 1]).any()


def test_choices_hold_the_plans(agent: Agent, clips: ClipDataset, source: Town) -> None:
    choose = partial(agent.choice, ii=True)
    made = choices(choose, RECIPE.planner.accelerations, clips, source)
    tokens, paths = infer.plans(partial(agent.plan, ii=True), clips.without_occupancy())
    assert made.tokens == tokens
    np.testing.assert_array_equal(made.paths, paths)
    assert made.paths.dtype == np.float32
    assert "paths" not in made.lines()


def test_keyframes_of_the_forecast_are_not_decoded_again(
    agent: Agent, clips: ClipDataset, source: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = agent.forecaster.tokenizer
    on = TestSet(source, "test", Run.start(tmp_path, {"what": "test"}))
    heard: dict[int, np.ndarray] = {}
    scores = infer.forecasts(
        agent.forecaster, clips, tokenizer.config.grid, hear=lambda rows, labels: heard.update(zip(rows, labels, strict=True))
    )
    whole = reconstruction_miou(tokenizer, clips.codes, on)
    assert 0 < whole < 1
    decoded: list[int] = []
    labels = Tokenizer.labels
    monkeypatch.setattr(
        Tokenizer, "labels", lambda self, latent, without=None: decoded.append(len(latent)) or labels(self, latent, without)
    )
    assert reconstruction_miou(tokenizer, clips.codes, on, scores) == whole
    assert sum(decoded) == 6, "the last 3 s of the scene"

    assert sorted(heard) == list(range(len(clips)))
    monkeypatch.setattr(Forecaster, "forecast", lambda *_: pytest.fail("imagined twice"))
    (picture,) = draw(on, agent.forecaster, clips, {}, [Sample(0, 4)], imagined={4: heard[4]})
    assert (tmp_path / picture[1]).is_file()
