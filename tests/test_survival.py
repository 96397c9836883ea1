"""Trainings that are killed, stopped or fed bad data: nothing half-written is read later, and what is resumed ends as if nothing had
happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from together import run_together, start

from iidrive.core.errors import CheckpointError, ConfigError, DataError, IIDriveError
from iidrive.data.clips import OccupancyFrames
from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_planner, train_tokenizer, train_world
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions, StopRequested

TINY = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=1, keyframes=14))
OFTEN = {
    f"train_{name}": replace(getattr(TINY, f"train_{name}"), samples=20, batch=2, log_every=2, save_every=2, validate_every=0)
    for name in ("tokenizer", "motion", "world", "route", "planner")
}
RECIPE = replace(TINY, **OFTEN)
"""A checkpoint after every step, so that most kills happen while one is written or shortly before or after."""


def train_all(process_group: ProcessGroup, folder: Path, delay_s: float = 0.0) -> None:
    """Train all stages, resuming each."""
    real = checkpoint.save_file

    def slow_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        time.sleep(delay_s)  # so that kills fall between the files of a checkpoint too

    checkpoint.save_file = slow_save
    town, options = Town(TINY.town), RunOptions(process_group, resume="auto")

    def begin(name: str) -> Run:
        return Run.start(folder / name, {}, True, process_group)

    tokenizer = train_tokenizer(RECIPE, town, "train", begin("tokenizer"), options)
    cache = write_tokens(tokenizer, town, town.scene_names("train"), folder / "tokens", process_group=process_group)
    world = train_world(RECIPE, tokenizer, cache, town, "train", begin("world"), options)
    train_planner(RECIPE, world, cache, town, "train", begin("planner"), True, options)
    if process_group.is_rank_zero:
        (folder / "done").touch()


def train_alone(folder: Path, delay_s: float) -> None:
    """The same in one process."""
    train_all(ProcessGroup(), folder, delay_s)


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """All weights and training state of all stages."""
    names = ("tokenizer", "world/motion", "world", "planner/route", "planner")
    files = ("weights.safetensors", "training.safetensors")
    return {f"{n}/{f}/{k}": v for n in names for f in files for k, v in checkpoint.load_tensors(folder / n, f).items()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted training."""
    folder = tmp_path_factory.mktemp("straight")
    process = start(train_alone, folder, 0.0)
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.slow
def test_thirty_kills_change_nothing(straight: Path, tmp_path: Path) -> None:
    """SIGKILL at random times of all phases. The final weights equal those of the uninterrupted run bit for bit."""
    chance, kills, phases = random.Random(0), 0, set()
    while not (tmp_path / "done").exists():
        process = start(train_alone, tmp_path, 0.03)
        before = _made(tmp_path)
        while process.is_alive() and kills % 4 and _made(tmp_path) <= before:
            time.sleep(0.005)  # three of four kills fall near the next file, the fourth anywhere, as in starting up
        process.join(0.1 * chance.random() if kills < 60 else 600)
        if process.is_alive():
            phases.update(name.split("/")[0] for name in _made(tmp_path) - before)
            process.kill()
            kills += 1
        process.join()
    print(f"{kills} kills, seen in {sorted(phases)}")
    assert kills >= 30
    assert phases >= {"tokenizer", "world", "planner"}
    one, other = everything(straight), everything(tmp_path)
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
    assert [p for p in tmp_path.rglob("checkpoints/.*")] == []
    for name in ("tokenizer", "world", "planner"):
        told = [json.loads(line)["samples"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert told == list(range(2, 22, 2)), "every step is logged once"


def _made(folder: Path) -> set[str]:
    """Complete checkpoints and token files."""
    patterns = (
        "*/checkpoints/samples-*",
        "world/motion/checkpoints/samples-*",
        "planner/route/checkpoints/samples-*",
        "tokens/scenes/*.safetensors",
    )
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)}


def first_half(process_group: ProcessGroup, folder: Path) -> None:
    """Half of the tokenizer's training."""
    train_tokenizer(
        RECIPE, Town(TINY.town), "train", Run.start(folder, {}, True, process_group), RunOptions(process_group, resume="auto", stop_at=10)
    )


def second_half(process_group: ProcessGroup, folder: Path) -> None:
    """The other half."""
    train_tokenizer(RECIPE, Town(TINY.town), "train", Run.start(folder, {}, True, process_group), RunOptions(process_group, resume="on"))


@pytest.mark.slow
def test_another_number_of_processes_can_resume(straight: Path, tmp_path: Path) -> None:
    run_together(1, first_half, tmp_path)
    run_together(2, second_half, tmp_path)
    one = checkpoint.load_tensors(straight / "tokenizer", "training.safetensors")
    other = checkpoint.load_tensors(tmp_path, "training.safetensors")
    x, y = (torch.cat([v.double().flatten() for k, v in sorted(w.items()) if k.startswith("module.")]) for w in (one, other))
    assert float((x - y).norm() / x.norm()) < 5e-3
    assert checkpoint.read_manifest(tmp_path).samples_seen == 20


def trained(folder: Path, stop_at: int, resume: str = "off") -> Path:
    """The tokenizer's first samples, in this process."""
    options = RunOptions(resume=resume, stop_at=stop_at)  # pyright: ignore[reportArgumentType]
    return train_tokenizer(RECIPE, Town(TINY.town), "train", Run.start(folder, {}, resume != "off"), options)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "manifest"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    whole = checkpoint.load_tensors(trained(tmp_path / "whole", 8), "training.safetensors")
    newest = trained(tmp_path / "hurt", 6)
    file = newest / ("manifest.json" if damage == "manifest" else "training.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "bit" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match=rf"{newest.name}.*Continuing from the checkpoint before it"):
        path = trained(tmp_path / "hurt", 8, "on")
    mended = checkpoint.load_tensors(path, "training.safetensors")
    assert all(torch.equal(whole[k], mended[k]) for k in whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_does_not_stay_the_newest(tmp_path: Path) -> None:
    newest = trained(tmp_path, 6)
    (newest / "training.safetensors").unlink()
    with pytest.warns(UserWarning, match="damaged or missing"):
        path = trained(tmp_path, 4, "on")
    assert path.name == checkpoint.name(4)
    assert not newest.exists()


@pytest.mark.slow
def test_without_an_undamaged_checkpoint_resuming_is_refused(tmp_path: Path) -> None:
    path = trained(tmp_path, 2)
    save_file({"x": torch.zeros(1)}, path / "weights.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="no undamaged checkpoint to continue from"):
        trained(tmp_path, 4, "on")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    steps, before = [], signal.getsignal(number)
    real = OccupancyFrames.__call__

    def watched(self: OccupancyFrames, name: str, indices: object) -> object:
        steps.append(name)
        if len(steps) == 9:
            os.kill(os.getpid(), number)
        return real(self, name, indices)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(OccupancyFrames, "__call__", watched)
    rare = replace(RECIPE, train_tokenizer=replace(RECIPE.train_tokenizer, save_every=20))
    with pytest.raises(StopRequested, match=rf"stopped by {number.name} after \d+ samples, and saved") as stopped:
        train_tokenizer(rare, Town(TINY.town), "train", Run.start(tmp_path, {}))
    assert stopped.value.status == 128 + number
    seen = checkpoint.read_manifest(tmp_path).samples_seen
    assert 0 < seen < 20
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_an_unreadable_sample_is_named_and_the_training_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OccupancyFrames.__call__
    calls = []

    def torn(self: OccupancyFrames, name: str, indices: object) -> object:
        calls.append(name)
        if len(calls) > 9:
            raise DataError("gts/scene-1/abc/labels.npz: cut short.")
        return real(self, name, indices)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(OccupancyFrames, "__call__", torn)
    rare = replace(RECIPE, train_tokenizer=replace(RECIPE.train_tokenizer, save_every=20))
    with pytest.raises(
        DataError, match=r"the batch after \d+ samples \(step \d+\) cannot be read: gts/scene-1/abc/labels.npz: cut short.*saved"
    ):
        train_tokenizer(rare, Town(TINY.town), "train", Run.start(tmp_path, {}))
    assert checkpoint.read_manifest(tmp_path).samples_seen > 0


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = checkpoint.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) > 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"samples-000000006: cannot be written.*No space left.*free some disk space"):
        trained(tmp_path, 8)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["samples-000000004"] or checkpoint.find(
        tmp_path
    ).name == "samples-000000004"
    assert not list((tmp_path / "checkpoints").glob(".*"))
    checkpoint.verify_checksums(checkpoint.find(tmp_path))


def one_dies(process_group: ProcessGroup, folder: Path) -> None:
    """The second process is killed in its third step. The first must report it and end."""
    real, calls = OccupancyFrames.__call__, []

    def deadly(self: OccupancyFrames, name: str, indices: object) -> object:
        calls.append(name)
        if process_group.rank == 1 and len(calls) > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, name, indices)  # pyright: ignore[reportArgumentType]

    OccupancyFrames.__call__ = deadly  # pyright: ignore[reportAttributeAccessIssue]
    try:
        train_tokenizer(RECIPE, Town(TINY.town), "train", Run.start(folder, {}, True, process_group), RunOptions(process_group))
    except IIDriveError as error:
        (folder / f"told-{process_group.rank}").write_text(str(error))
    os._exit(0)


@pytest.mark.slow
def test_other_processes_report_a_dead_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"exit codes \[0, -9\]"):
        run_together(2, one_dies, tmp_path)
    told = (tmp_path / "told-0").read_text()
    assert "process 0 of 2 lost the others" in told
    assert "continue from the newest with `--resume on`" in told
    checkpoint.verify_checksums(checkpoint.find(tmp_path))


def one_reads_badly(process_group: ProcessGroup, folder: Path) -> None:
    """A sample of the second process cannot be read. All processes report the same error and end."""
    real, calls = OccupancyFrames.__call__, []

    def torn(self: OccupancyFrames, name: str, indices: object) -> object:
        calls.append(name)
        if process_group.rank == 1 and len(calls) > 5:
            raise DataError("labels.npz: cut short.")
        return real(self, name, indices)  # pyright: ignore[reportArgumentType]

    OccupancyFrames.__call__ = torn  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(IIDriveError, match=r"cannot be read: labels.npz: cut short"):
        train_tokenizer(RECIPE, Town(TINY.town), "train", Run.start(folder, {}, True, process_group), RunOptions(process_group))
    assert checkpoint.find(folder).name == checkpoint.name(checkpoint.read_manifest(folder).samples_seen)


@pytest.mark.slow
def test_an_unreadable_sample_of_one_process_stops_all(tmp_path: Path) -> None:
    run_together(2, one_reads_badly, tmp_path)


def test_init_and_resume_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--init starts a new training"):
        RunOptions(init="somewhere", resume="on")
