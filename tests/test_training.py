"""The training loop at tiny size: resuming, determinism, schedules, and errors."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iidrive.analysis.lineage_of import describe, trace
from iidrive.core.batch import Batch
from iidrive.core.config_io import from_plain
from iidrive.core.errors import CheckpointError, ConfigError, IIDriveError, LineageError
from iidrive.data.town.source import Town
from iidrive.models.losses import Counts
from iidrive.models.tokenizer import Tokenizer, TokenizerConfig
from iidrive.pipeline import recipes
from iidrive.pipeline.load import load_forecaster
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_ego_mlp, train_planner, train_tokenizer, train_world
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.optim import EMA, TrainConfig, learning_rate
from iidrive.training.options import RunOptions
from iidrive.training.parallel import ParallelConfig

RECIPE = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=1, keyframes=14))
SHORT = replace(RECIPE, train_tokenizer=replace(RECIPE.train_tokenizer, samples=8, save_every=2, log_every=2))


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(RECIPE.town)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {**checkpoint.load_tensors(path), **checkpoint.load_tensors(path, "training.safetensors")}


@pytest.mark.slow
def test_two_steps_then_two_more_equal_four(tmp_path: Path, town: Town) -> None:
    straight = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "a", {}))
    train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "b", {}), RunOptions(stop_at=4))
    resumed = train_tokenizer(SHORT, town, "train", Run(tmp_path / "b"), RunOptions(resume="on"))
    one, two = weights(straight), weights(resumed)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert checkpoint.read_manifest(straight).fingerprint == checkpoint.read_manifest(resumed).fingerprint


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, town: Town) -> None:
    marks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, seed=seed, samples=4))
        path = train_tokenizer(recipe, town, "train", Run.start(tmp_path / name, {}))
        marks.append(checkpoint.read_manifest(path).fingerprint)
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.slow
def test_resuming_with_another_config_is_refused(tmp_path: Path, town: Town) -> None:
    train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}), RunOptions(stop_at=2))
    other = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, weight_decay=0.5))
    with pytest.raises(CheckpointError, match="another config"):
        train_tokenizer(other, town, "train", Run(tmp_path), RunOptions(resume="on"))
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        Run.start(tmp_path, {})
    Run.start(tmp_path, {"what": "again"}, resume=True)
    assert json.loads((tmp_path / "run-2.json").read_text())["what"] == "again"


@pytest.mark.slow
def test_resuming_with_more_test_towns_is_the_same_training(tmp_path: Path, town: Town) -> None:
    """A run may be judged on more towns later. Another number of towns of the training split is another training."""
    train_ego_mlp(RECIPE, town, "train", Run.start(tmp_path / "a", {}), RunOptions(stop_at=8))
    train_ego_mlp(RECIPE, town, "test", Run.start(tmp_path / "b", {}), RunOptions(stop_at=8))

    def again(run: str, split: str, **changed: int) -> Path:
        other = replace(RECIPE, town=replace(town.config, **changed))
        return train_ego_mlp(other, Town(other.town), split, Run(tmp_path / run), RunOptions(resume="on"))

    with pytest.raises(CheckpointError, match="data differs: train_scenes was 2, is 3"):
        again("a", "train", train_scenes=3)
    with pytest.raises(CheckpointError, match="data differs: test_scenes was 1, is 2"):
        again("b", "test", test_scenes=2)
    done = again("a", "train", test_scenes=4, hard_scenes=70)
    assert checkpoint.read_manifest(done).samples_seen == RECIPE.train_ego_mlp.samples


@pytest.mark.slow
def test_an_option_that_is_newer_than_the_checkpoint_does_not_stop_a_resume(
    tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}), RunOptions(stop_at=2))
    read = checkpoint.read_manifest

    def older(path: Path) -> checkpoint.Manifest:
        manifest = read(path)
        nested = {k: v for k, v in manifest.architecture["quantiser"].items() if k != "commitment"}
        return replace(manifest, architecture={**manifest.architecture, "quantiser": nested})

    monkeypatch.setattr(checkpoint, "read_manifest", older)
    assert "commitment" not in older(checkpoint.find(tmp_path)).architecture["quantiser"]
    train_tokenizer(SHORT, town, "train", Run(tmp_path), RunOptions(resume="on", stop_at=4))
    other = replace(SHORT, tokenizer=replace(SHORT.tokenizer, quantiser=replace(SHORT.tokenizer.quantiser, commitment=0.5)))
    with pytest.raises(CheckpointError, match="architecture differs"):
        train_tokenizer(other, town, "train", Run(tmp_path), RunOptions(resume="on"))


@pytest.mark.slow
def test_a_training_can_resume_with_another_learning_rate_and_warns(tmp_path: Path, town: Town) -> None:
    train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}), RunOptions(stop_at=2))
    lower = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, learning_rate=1e-4))
    with pytest.warns(UserWarning, match=r"learning_rate changes from 0\.001 to 0\.0001 after 2 samples"):
        path = train_tokenizer(lower, town, "train", Run(tmp_path), RunOptions(resume="on", stop_at=4))
    change = {"samples": 2, "field": "learning_rate", "from": 1e-3, "to": 1e-4}
    assert checkpoint.read_manifest(path).about["changes"] == [change]
    path = train_tokenizer(lower, town, "train", Run(tmp_path), RunOptions(resume="on"))
    assert checkpoint.read_manifest(path).about["changes"] == [change], "kept, and not noted twice"
    (lineage,) = trace(tmp_path)
    assert "learning_rate changed from 0.001 to 0.0001 after 2 samples" in describe(lineage)


@pytest.mark.slow
def test_accumulation_gives_the_same_gradient_step(tmp_path: Path, town: Town) -> None:
    """The ego-status MLP's loss is a mean over samples that all have six steps: parts of a batch add up to the whole."""
    marks = []
    for name, micro in (("a", 0), ("b", 2)):
        recipe = replace(RECIPE, train_ego_mlp=replace(RECIPE.train_ego_mlp, micro_batch=micro))
        path = train_ego_mlp(recipe, town, "train", Run.start(tmp_path / name, {}))
        marks.append(checkpoint.load_tensors(path))
    for key in marks[0]:
        torch.testing.assert_close(marks[0][key], marks[1][key], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_nan_loss_stops_and_keeps_the_last_checkpoint(tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = Tokenizer.loss

    def poisoned(self: Tokenizer, batch: object, counts: object):
        loss, logs = real(self, batch, counts)  # pyright: ignore[reportArgumentType]
        calls.append(1)
        return (loss * float("nan") if len(calls) == 3 else loss), logs

    monkeypatch.setattr(Tokenizer, "loss", poisoned)
    with pytest.raises(IIDriveError, match=r"became nan after 4 samples \(batch of [0-9a-f]{32}"):
        train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}))
    assert checkpoint.read_manifest(tmp_path).samples_seen == 4


@pytest.mark.slow
def test_stages_refuse_another_tokenizers_tokens(tmp_path: Path, town: Town) -> None:
    brief = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, samples=2))
    first = train_tokenizer(brief, town, "train", Run.start(tmp_path / "a", {}))
    second = train_tokenizer(
        replace(brief, train_tokenizer=replace(brief.train_tokenizer, seed=5)), town, "train", Run.start(tmp_path / "b", {})
    )
    cache = write_tokens(first, town, town.scene_names("train"), tmp_path / "tokens")
    with pytest.raises(LineageError, match="written by tokenizer"):
        train_world(RECIPE, second, cache, town, "train", Run.start(tmp_path / "w", {}))
    world = train_world(RECIPE, first, cache, town, "train", Run.start(tmp_path / "w", {}), RunOptions(stop_at=4))
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        load_forecaster(world, second)
    assert load_forecaster(world).manifest.parent("tokenizer").fingerprint == checkpoint.read_manifest(first).fingerprint


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


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 0), ("samples", 0), ("log_every", 0), ("save_every", -1), ("validate_scenes", 0), ("learning_rate", -1.0)],
)
def test_invalid_values_are_named(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be"):
        replace(TrainConfig(), **{field: value})


def test_negative_parallel_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--parallel.grad_accum_steps must be at least 0; found -1"):
        ParallelConfig(grad_accum_steps=-1)


@pytest.mark.slow
def test_without_save_every_the_last_step_is_saved(tmp_path: Path, town: Town) -> None:
    recipe = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, samples=4, save_every=0))
    assert train_tokenizer(recipe, town, "train", Run.start(tmp_path, {})).name == checkpoint.name(4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save_every", "remedy"),
    [(2, "Continue from samples-000000002 with a lower"), (0, "There is no checkpoint yet: start again with a lower")],
)
def test_divergence_gives_advice(tmp_path: Path, town: Town, save_every: int, remedy: str) -> None:
    recipe = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, learning_rate=1e30, save_every=save_every))
    with pytest.raises(IIDriveError, match=rf"became (nan|inf).*{remedy} learning rate"):
        train_tokenizer(recipe, town, "train", Run.start(tmp_path, {}))


@pytest.mark.slow
def test_a_full_shared_memory_is_an_error(tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked, so they inherit this patched shared memory, which always fails."""

    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to write to file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    options = RunOptions(parallel=ParallelConfig(workers=1))
    with pytest.raises(IIDriveError, match=r"does not fit into shared memory .*--parallel\.workers 0"):
        train_tokenizer(SHORT, town, "train", Run.start(tmp_path, {}), options)


@pytest.mark.slow
def test_steps_before_the_first_checkpoint_are_not_logged_twice(tmp_path: Path, town: Town) -> None:
    run = Run.start(tmp_path, {})
    for samples in (2, 4):
        run.log({"samples": samples})
    recipe = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, samples=4))
    train_tokenizer(recipe, town, "train", run, RunOptions(resume="auto"))
    assert [json.loads(line)["samples"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2, 4]


@pytest.mark.slow
def test_double_precision_is_validated_too(tmp_path: Path, town: Town) -> None:
    path = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "tokenizer", {}))
    cache = write_tokens(path, town, town.scene_names("train"), tmp_path / "tokens")
    precise = replace(SHORT.train_world, precision="64", samples=8, validate_every=8)
    world = train_world(replace(SHORT, train_world=precise), path, cache, town, "train", Run.start(tmp_path / "world", {}))
    assert checkpoint.read_manifest(world).metrics["best"]["samples"] == 8
    assert checkpoint.load_tensors(world)["row"].dtype == torch.float64


def test_an_ema_with_initial_steps_moves_slowly_from_the_start() -> None:
    module, moved = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    torch.nn.init.ones_(moved.weight)
    config = TrainConfig(ema_decay=0.999, ema_warmup_steps=2000.0)
    found = []
    for ahead in (0, 10_560):
        average = EMA(module, replace(config, ema_initial_steps=ahead))
        average.update(moved, 1)
        found.append(average.state["weight"].item())
    assert found == pytest.approx([1 - 0.999 * 0.0005, 1 - 0.999 * (1 - 0.0050893)], abs=1e-5)


@pytest.mark.slow
def test_activation_checkpointing_does_not_change_results(tmp_path: Path, town: Town) -> None:
    marks = []
    for name in ("kept", "again"):
        options = RunOptions(parallel=ParallelConfig(activation_checkpointing=name == "again"))
        tokenizer = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / name, {}), options)
        cache = write_tokens(tokenizer, town, town.scene_names("train"), tmp_path / f"{name}-tokens")
        world = train_world(RECIPE, tokenizer, cache, town, "train", Run.start(tmp_path / f"{name}-world", {}), options)
        marks.append(checkpoint.read_manifest(world).fingerprint)
    assert marks[0] == marks[1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "16"])
def test_mixed_precision_trains_near_single_precision(tmp_path: Path, town: Town, precision: str) -> None:
    """The loss is close to that in float32, and the loss scale is kept when resuming."""
    whole = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "32", {}))
    mixed = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, precision=precision))
    straight = train_tokenizer(mixed, town, "train", Run.start(tmp_path / "a", {}))
    losses = [checkpoint.read_manifest(path).metrics["loss"] for path in (whole, straight)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
    train_tokenizer(mixed, town, "train", Run.start(tmp_path / "b", {}), RunOptions(stop_at=4))
    resumed = train_tokenizer(mixed, town, "train", Run(tmp_path / "b"), RunOptions(resume="on"))
    one, two = weights(straight), weights(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert ("scaler" in one) == (precision == "16")


@pytest.mark.slow
def test_frozen_parts_keep_their_weights(tmp_path: Path, town: Town) -> None:
    torch.manual_seed(SHORT.train_tokenizer.seed)
    frozen = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, freeze=("decoder", "classes")))
    path = train_tokenizer(frozen, town, "train", Run.start(tmp_path / "a", {}))
    trained, config = checkpoint.load_tensors(path, "training.safetensors"), checkpoint.read_manifest(path).architecture
    torch.manual_seed(SHORT.train_tokenizer.seed)
    fresh = Tokenizer(from_plain(TokenizerConfig, config, "")).state_dict()
    same = {k for k in fresh if torch.equal(fresh[k], trained[f"module.{k}"])}
    assert {k for k in fresh if k.startswith(("decoder.", "classes"))} <= same
    assert not [k for k in same if k.startswith("encoder.") and k.endswith("weight")]
    for freeze, said in (
        (("decode",), "has no part 'decode'. Its parts are classes, decoder"),
        (("classes", "encoder", "quantiser", "decoder"), "no part of this tokenizer would be trained"),
    ):
        wrong = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, freeze=freeze))
        with pytest.raises(ConfigError, match=said):
            train_tokenizer(wrong, town, "train", Run.start(tmp_path / said[:3], {}))


@pytest.mark.slow
def test_fine_tuning_starts_from_the_given_weights_and_records_them(tmp_path: Path, town: Town) -> None:
    first = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / "first", {}))
    cache = write_tokens(first, town, town.scene_names("train"), tmp_path / "tokens")
    world = train_world(RECIPE, first, cache, town, "train", Run.start(tmp_path / "world", {}))
    still = replace(RECIPE, train_world=replace(RECIPE.train_world, learning_rate=1e-12, weight_decay=0.0, ema_decay=0.0))
    tuned = train_world(still, first, cache, town, "train", Run.start(tmp_path / "tuned", {}), RunOptions(init=str(world)))
    before, after = checkpoint.load_tensors(world), checkpoint.load_tensors(tuned)
    assert all(torch.allclose(before[k], after[k], atol=1e-8) for k in before), "it started where the other ended"
    mark = checkpoint.read_manifest(world).fingerprint
    assert f"initial world {mark}" in str(checkpoint.read_manifest(tuned).lineage())
    again = train_world(still, first, cache, town, "train", Run(tmp_path / "tuned"), RunOptions(resume="on"))
    assert checkpoint.read_manifest(again).origins[0].fingerprint == mark, "what it started from need not be said again"
    assert load_forecaster(tuned).manifest.origins[0].fingerprint == mark

    second = replace(SHORT, train_tokenizer=replace(SHORT.train_tokenizer, seed=5))
    other = train_tokenizer(second, town, "train", Run.start(tmp_path / "second", {}))
    others = write_tokens(other, town, town.scene_names("train"), tmp_path / "others")
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        train_world(RECIPE, other, others, town, "train", Run.start(tmp_path / "mixed", {}), RunOptions(init=str(world)))
    with pytest.raises(CheckpointError, match="expected a world, found a tokenizer"):
        train_world(RECIPE, first, cache, town, "train", Run.start(tmp_path / "kind", {}), RunOptions(init=str(first)))
    wide = replace(RECIPE, world=replace(RECIPE.world, feed_forward=48))
    with pytest.raises(CheckpointError, match=r"do not fit the architecture.*of another shape"):
        train_world(wide, first, cache, town, "train", Run.start(tmp_path / "wide", {}), RunOptions(init=str(world)))


@pytest.mark.slow
def test_validation_is_logged_and_does_not_change_the_training(tmp_path: Path, town: Town) -> None:
    def seen_to(recipe: recipes.Recipe, every: int) -> recipes.Recipe:
        stages_ = {f"train_{n}": getattr(recipe, f"train_{n}") for n in ("tokenizer", "flow", "world", "planner")}
        return replace(recipe, **{k: replace(v, validate_every=every, validate_scenes=1) for k, v in stages_.items()})

    marks = []
    for name, every in (("without", 0), ("with", 8)):
        recipe, folder = seen_to(RECIPE, every), tmp_path / name
        tokenizer = train_tokenizer(recipe, town, "train", Run.start(folder / "tokenizer", {}))
        cache = write_tokens(tokenizer, town, town.scene_names("train"), folder / "tokens")
        world = train_world(recipe, tokenizer, cache, town, "train", Run.start(folder / "world", {}))
        planner = train_planner(recipe, world, cache, town, "train", Run.start(folder / "planner", {}), True)
        flow = checkpoint.find(folder / "world/flow")
        marks.append([checkpoint.load_tensors(path) for path in (tokenizer, flow, world, planner)])
    assert all(torch.equal(a[k], b[k]) for a, b in zip(*marks, strict=True) for k in a)
    assert "reconstruction mIoU" in (tmp_path / "with/tokenizer/validation-000000016.txt").read_text()
    assert "world model" in (tmp_path / "with/world/validation-000000008.txt").read_text()
    assert "obj_box_col" in (tmp_path / "with/planner/validation-000000016.txt").read_text()
    best = checkpoint.read_manifest(tmp_path / "with/planner").metrics["best"]
    assert best["name"] == "minus_L2"
    assert best["samples"] in (8, 16)
    rows = [json.loads(line) for line in (tmp_path / "with/world/metrics.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows if "validation_mIoU" in row] == [8, 16]
    assert "movers IoU at 1 / 2 / 3 s" in (tmp_path / "with/world/flow/validation-000000016.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "with/world/flow/metrics.jsonl").read_text().splitlines()]
    assert [row["samples"] for row in rows if "validation_movers_IoU" in row] == [8, 16]
    assert checkpoint.read_manifest(tmp_path / "with/world/flow").metrics["best"]["name"] == "movers_IoU"
    assert not list((tmp_path / "without").rglob("validation-*"))


@pytest.mark.slow
def test_workers_make_the_same_batches(tmp_path: Path, town: Town) -> None:
    marks = []
    for workers in (0, 2):
        options = RunOptions(parallel=ParallelConfig(workers=workers))
        path = train_tokenizer(SHORT, town, "train", Run.start(tmp_path / str(workers), {}), options)
        marks.append(checkpoint.read_manifest(path).fingerprint)
    assert marks[0] == marks[1]


@pytest.mark.slow
def test_no_step_uses_a_global_random_state(tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no random state is stored: augmentation and sampling depend on the seed and the samples seen only."""
    states = []
    real = Tokenizer.loss

    def watched(self: Tokenizer, batch: Batch, counts: Counts | None) -> object:
        out = real(self, batch, counts)
        states.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()))
        return out

    monkeypatch.setattr(Tokenizer, "loss", watched)
    mirrored = replace(SHORT, tokenizer=replace(SHORT.tokenizer, mirror="clip"))
    train_tokenizer(mirrored, town, "train", Run.start(tmp_path, {}))
    assert len(states) == 4
    assert all(torch.equal(a, states[0][0]) and b == states[0][1] and (c == states[0][2]).all() for a, b, c in states)


@pytest.mark.slow
def test_tensorboard_curves_are_written_or_the_package_is_requested(tmp_path: Path, town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(folder: Path) -> None:
        train_ego_mlp(RECIPE, town, "train", Run.start(folder, {}), RunOptions(tensorboard=True))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install \"iidrive\[track\]\""):
        train(tmp_path / "without")
    monkeypatch.undo()
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    train(tmp_path / "with")
    assert list((tmp_path / "with/tensorboard").glob("events.*"))
