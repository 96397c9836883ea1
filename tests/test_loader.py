"""Clips, their order, and which frames are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_scene import straight_scene

from iidrive.core.errors import DataError
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, draws, order


def test_clips_hold_past_and_future() -> None:
    batch = ClipDataset([EgoTrack.of(straight_scene(12))], ClipSpec(past=3)).batch([0, 5])
    seen, ahead = batch.inputs, batch.targets
    assert seen.tokens == ("straight-0", "straight-5")
    assert seen.known.tolist() == [[False, False, False, True], [True] * 4]
    assert seen.now_T_frame[1, :, 0, 3].tolist() == [-6.0, -4.0, -2.0, 0.0]
    assert seen.age_s[1].tolist() == [1.5, 1.0, 0.5, 0.0]
    assert ahead.now_T_frame[1, :, 0, 3].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    np.testing.assert_allclose(ahead.path[1, :, 1], [2, 4, 6, 8, 10, 12], atol=1e-5)


def test_missing_frames_repeat_the_nearest_and_are_flagged() -> None:
    clips = ClipDataset([EgoTrack.of(straight_scene(4))], ClipSpec(past=1, full_future=False))
    batch = clips.batch([3])
    assert not batch.targets.valid.any()
    assert torch.equal(batch.targets.now_T_frame[0], torch.eye(4).repeat(6, 1, 1))
    with pytest.raises(DataError, match="shorter than the clip"):
        ClipDataset([EgoTrack.of(straight_scene(4))], ClipSpec(past=1))


def test_order_is_a_permutation_in_each_epoch_and_needs_no_state() -> None:
    straight = order(7, seed=3, start=0, count=21)
    assert sorted(straight[:7]) == sorted(straight[7:14]) == list(range(7))
    assert not np.array_equal(straight[:7], straight[7:14])
    pieces = np.concatenate([order(7, 3, start, 3) for start in range(0, 21, 3)])
    np.testing.assert_array_equal(pieces, straight)
    assert not np.array_equal(order(7, 4, 0, 21), straight)


def test_draws_depend_on_the_position_only() -> None:
    whole = draws(1, 0, 8, 6)
    np.testing.assert_array_equal(np.concatenate([draws(1, 0, 5, 6), draws(1, 5, 3, 6)]), whole)
    assert len(np.unique(whole)) == whole.size
