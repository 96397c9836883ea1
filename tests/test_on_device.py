"""Evaluation on a GPU equals that on a CPU: batches made by workers, and voxels counted on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from iidrive.core.errors import DataError
from iidrive.data.clips import ClipDataset, ClipSpec, read_tracks
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer, on_device, recipes
from iidrive.scoring import metrics


@pytest.fixture(scope="module")
def clips() -> ClipDataset:
    return ClipDataset(read_tracks(Town(TownConfig(train_scenes=2, keyframes=14)), "train"), ClipSpec())


def test_batches_of_workers_are_the_same(clips: ClipDataset) -> None:
    starts = range(0, len(clips), 5)
    alone, ahead = (list(on_device.batches(clips, starts, 5, workers)) for workers in (0, 1))
    assert [rows for rows, _ in alone] == [rows for rows, _ in ahead]
    assert alone[-1][0] == range(starts[-1], len(clips))
    for (_, one), (_, other) in zip(alone, ahead, strict=True):
        for side, same in ((one.inputs, other.inputs), (one.targets, other.targets)):
            for name, value in vars(side).items():
                assert torch.equal(value, getattr(same, name)) if isinstance(value, Tensor) else value == getattr(same, name)


def test_a_sample_that_cannot_be_read_is_one_sentence_from_a_worker_too(clips: ClipDataset) -> None:
    def codes(name: str, rows: np.ndarray) -> np.ndarray:
        raise DataError("tokens are damaged.")

    broken = ClipDataset(clips.tracks, ClipSpec(), None, codes)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^tokens are damaged\.$"):
            list(on_device.batches(broken, [0], 2, workers))


def test_voxels_are_counted_as_on_the_host() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 19, (3, 7, 5, 4), generator=generator).to(torch.uint8)
    truth[truth == 18] = 255
    labels = torch.randint(0, 18, truth.shape, generator=generator).to(torch.uint8)
    np.testing.assert_array_equal(on_device.confusion(truth, labels).numpy(), metrics.confusion(truth.numpy(), labels.numpy()))


def test_reconstruction_is_counted_either_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = recipes.tiny()
    tokenizer = Tokenizer(replace(recipe.tokenizer, class_weights=(1.0,) * 18)).eval()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, recipe.tokenizer.quantiser.codes, (9, sum(tokenizer.quantiser.level_cells)))
    grids = rng.integers(0, 18, (9, *recipe.tokenizer.grid.shape)).astype(np.uint8)
    found = []
    for here in (False, True):
        monkeypatch.setattr(infer, "counts_here", lambda labels, here=here: here)
        found.append(infer.reconstruction(tokenizer, lambda _, rows: codes[rows], lambda _, rows: grids[rows], [("a", np.arange(9))]))
    np.testing.assert_array_equal(*found)
    assert found[0].sum() == grids.size
