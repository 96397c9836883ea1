"""The training loop at tiny size: resuming, determinism, schedules, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iidrive import recipes, stages
from iidrive.data.town import Town
from iidrive.errors import CheckpointError, ConfigError, IIDriveError, LineageError
from iidrive.models.tokenizer import Tokenizer
from iidrive.runs import Run
from iidrive.train import checkpoint
from iidrive.train.optim import Average, TrainConfig, learning_rate
from iidrive.train.session import Session

RECIPE = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=1, keyframes=14))
SHORT = replace(RECIPE, train_tokenizer=replace(RECIPE.train_tokenizer, samples=8, save_every=2, log_every=2))


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(RECIPE.town)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {**checkpoint.load_tensors(path), **checkpoint.load_tensors(path, "training.safetensors")}


def test_two_steps_then_two_more_equal_four(tmp_path: Path, town: Town) -> None:
    straight = stages.train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "a", {}))
    stages.train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "b", {}), Session(stop_at=4))
    resumed = stages.train_tokenizer(SHORT, town, "train", Run(tmp_path / "b"), Session(resume="on"))
    one, two = weights(straight), weights(resumed)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert checkpoint.read_manifest(straight).fingerprint == checkpoint.read_manifest(resumed).fingerprint


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, town: Town) -> None:
    marks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, seed=seed, samples=4))
        path = stages.train_tokenizer(recipe, town, "train", Run.start(tmp_path / name, {}))
        marks.append(checkpoint.read_manifest(path).fingerprint)
    assert marks[0] == marks[1] != marks[2]


def test_resuming_with_another_config_is_refused(tmp_path: Path, town: Town) -> None:
    stages.train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}), Session(stop_at=2))
    other = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match="another config"):
        stages.train_tokenizer(other, town, "train", Run(tmp_path), Session(resume="on"))
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        Run.start(tmp_path, {})
    Run.start(tmp_path, {"what": "again"}, resume=True)
    assert json.loads((tmp_path / "run-2.json").read_text())["what"] == "again"


def test_accumulation_gives_the_same_gradient_step(tmp_path: Path, town: Town) -> None:
    """The ego-status MLP's loss is a mean over samples that all have six steps: parts of a batch add up to the whole."""
    marks = []
    for name, micro in (("a", 0), ("b", 2)):
        recipe = replace(RECIPE, train_ego_mlp=replace(RECIPE.train_ego_mlp, micro_batch=micro))
        path = stages.train_ego_mlp(recipe, town, "train", Run.start(tmp_path / name, {}))
        marks.append(checkpoint.load_tensors(path))
    for key in marks[0]:
        torch.testing.assert_close(marks[0][key], marks[1][key], atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_a_number_stops_with_the_last_checkpoint_whole(
    tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = Tokenizer.loss

    def poisoned(self: Tokenizer, batch: object, counts: object):
        loss, logs = real(self, batch, counts)  # pyright: ignore[reportArgumentType]
        calls.append(1)
        return (loss * float("nan") if len(calls) == 3 else loss), logs

    monkeypatch.setattr(Tokenizer, "loss", poisoned)
    with pytest.raises(IIDriveError, match=r"became nan after 4 samples \(batch of [0-9a-f]{32}"):
        stages.train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}))
    assert checkpoint.read_manifest(tmp_path).samples_seen == 4


def test_stages_refuse_another_tokenizers_tokens(tmp_path: Path, town: Town) -> None:
    brief = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, samples=2))
    first = stages.train_tokenizer(brief, town, "train", Run.start(tmp_path / "a", {}))
    second = stages.train_tokenizer(
        replace(brief, train_tokenizer=replace(brief.train_tokenizer, seed=5)), town, "train", Run.start(tmp_path / "b", {})
    )
    cache = stages.write_tokens(first, town, town.scene_names("train"), tmp_path / "tokens")
    with pytest.raises(LineageError, match="written by tokenizer"):
        stages.train_world(RECIPE, second, cache, town, "train", Run.start(tmp_path / "w", {}))
    world = stages.train_world(RECIPE, first, cache, town, "train", Run.start(tmp_path / "w", {}), Session(stop_at=4))
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        stages.load_forecaster(world, second)
    assert stages.load_forecaster(world)[1].parent("tokenizer").fingerprint == checkpoint.read_manifest(first).fingerprint


def test_schedule_counts_samples() -> None:
    config = TrainConfig(samples=1000, batch=10, learning_rate=1.0, warmup=100, schedule="step", step_at=0.8)
    assert learning_rate(config, 0) == pytest.approx(10 / 110)
    assert learning_rate(config, 100) == 1.0
    assert learning_rate(config, 800) == pytest.approx(0.1)
    cosine = replace(config, schedule="cosine")
    assert learning_rate(cosine, 1000) == pytest.approx(0.01)
    assert learning_rate(cosine, 500) == pytest.approx(0.505)


def test_batches_that_do_not_divide_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest is 960"):
        TrainConfig(samples=950, batch=64)


def test_an_average_that_starts_ahead_moves_slowly_from_the_start() -> None:
    module, moved = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.ones_(moved.weight)
    config = TrainConfig(average=0.999, average_warmup=2000.0)
    found = []
    for ahead in (0, 10_560):
        average = Average(module, replace(config, average_ahead=ahead))
        average.update(moved, 1)
        found.append(average.state["weight"].item())
    assert found == pytest.approx([1 - 0.999 * 0.0005, 1 - 0.999 * (1 - 0.0050893)], abs=1e-5)
