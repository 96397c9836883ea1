"""Past maps warped to the current frame: mirrored frames, and the blur of resampling at every frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames, draws
from iidrive.data.source import scenes
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.history import mirrored, warp_once, warp_stream
from iidrive.models.layers import CellGrid, planar_transform
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import recipes

CELLS = CellGrid((10, 10), (-4.5, -4.5), 1.0)


def drive(frames: int, turn_rad: float, step_m: float) -> torch.Tensor:
    """now_T_frame (1,T,4,4) of an ego that drives forward and turns."""
    move = planar_transform(torch.tensor([step_m, 0.0]), torch.tensor(turn_rad).cos(), torch.tensor(turn_rad).sin()).double()
    poses = [torch.eye(4, dtype=torch.float64)]
    for _ in range(frames - 1):
        poses.append(poses[-1] @ move)
    return (torch.linalg.inv(poses[-1]) @ torch.stack(poses)).float()[None]


def test_mirrored_frames_give_the_mirrored_past() -> None:
    """However each frame was flipped, past maps are warped to the last frame correctly."""
    clip, poses = torch.randn(1, 5, 3, 10, 10), drive(5, 0.1, 0.7)
    occupancy = torch.randint(0, 18, (1, 5, 10, 10, 2)).to(torch.uint8)
    plain = warp_once(CELLS, clip, poses, 4)
    for draw in torch.rand(8):
        flipped, mirrors = mirrored(occupancy, draw[None], "frame")
        assert mirrors is not None
        maps = clip.clone()
        for t in range(5):
            axes = [a for a in (0, 1) if mirrors[0, t, a, a] < 0]
            maps[0, t] = clip[0, t].flip([1 + a for a in axes])
            assert torch.equal(flipped[0, t], occupancy[0, t].flip(axes))
        last = [3 + a for a in (0, 1) if mirrors[0, -1, a, a] < 0]
        for warp in (warp_once, warp_stream):
            torch.testing.assert_close(warp(CELLS, maps, poses, 4, mirrors), warp(CELLS, clip, poses, 4).flip(last), atol=1e-4, rtol=1e-4)
    assert plain.shape == (1, 4, 3, 10, 10)


def test_a_clip_is_mirrored_as_a_whole() -> None:
    occupancy = torch.randint(0, 18, (64, 3, 4, 4, 2)).to(torch.uint8)
    _, mirrors = mirrored(occupancy, torch.rand(64), "clip")
    assert mirrors is not None
    assert torch.equal(mirrors, mirrors[:, :1].expand_as(mirrors))
    assert 0.25 < (mirrors[:, 0, 0, 0] < 0).float().mean() < 0.75
    assert mirrored(occupancy, torch.rand(64), "none")[1] is None


def test_both_ways_agree_for_shifts_by_whole_cells() -> None:
    """For shifts by whole cells both ways agree; for fractions of a cell the stream blurs."""
    clip = torch.randn(1, 5, 3, 10, 10)
    whole, between = drive(5, 0.0, 1.0), drive(5, 0.0, 0.5)
    torch.testing.assert_close(warp_stream(CELLS, clip, whole, 4), warp_once(CELLS, clip, whole, 4), atol=1e-4, rtol=1e-4)
    rough = [w(CELLS, clip, between, 4)[:, 3].std() for w in (warp_once, warp_stream)]
    assert rough[1] < 0.9 * rough[0]


def test_the_published_size_is_trained_on_mirrored_frames() -> None:
    assert (recipes.published().tokenizer.mirror, recipes.published().tokenizer.stale_mirror) == ("frame", True)
    assert (recipes.full().tokenizer.mirror, recipes.full().tokenizer.stale_mirror) == ("clip", False)


@pytest.mark.slow
def test_a_streaming_tokenizer_trains_and_gives_clips_the_codes_of_scenes() -> None:
    """With every published option, at tiny size: mirrored clips give a finite loss, and windows give the codes of the whole scene."""
    published, tiny = recipes.published().tokenizer, recipes.tiny().tokenizer
    levels = replace(published.quantiser, codes=tiny.quantiser.codes, width=tiny.quantiser.width)
    options = {"warp": "stream", "cell_points": "corner", "mirror": "frame", "stale_mirror": True, "voxel_loss": "focal"}
    tokenizer = Tokenizer(replace(tiny, quantiser=levels, **options))  # pyright: ignore[reportArgumentType]
    town = Town(TownConfig(train_scenes=1, keyframes=14))
    tracks, frames = [EgoTrack.of(scene) for scene in scenes(town, "train")], OccupancyFrames(town, tiny.grid, 14)
    clips = ClipDataset(tracks, ClipSpec(past=4, future=1, full_future=False), frames)
    total, parts = tokenizer.loss(clips.batch([3, 7], draws(0, 0, 2, 1)))
    total.backward()
    assert total.isfinite()
    assert set(parts) == {"focal", "lovasz", "embed"}
    tokenizer.eval()
    occupancy = torch.from_numpy(frames(tracks[0].name, torch.arange(14).numpy()))
    at_once = tokenizer.tokenize_scene(occupancy, torch.from_numpy(tracks[0].global_T_ego))
    part = clips.batch([0, 2, 7]).inputs
    assert part.occupancy is not None
    with torch.no_grad():
        alone = tokenizer.tokenize(part.occupancy, part.now_T_frame).codes
    assert (alone == at_once[[0, 2, 7]]).float().mean() > 0.999
