"""The published roll-out on windows: the same state as a stream would carry, trained and asked like any world model."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from scipy.spatial.transform import Rotation

from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.errors import ConfigError
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.source import scenes
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.iiworld.quirks import Quirk
from iidrive.models.iiworld.windows import continuous, quaternion_of, recorded
from iidrive.models.occupancy_flow import FlowConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes

TINY = recipes.tiny()
CONFIG = replace(
    TINY.world,
    motion="map",
    align="none",
    residual="none",
    norm="batch",
    start="xavier",
    voxel_weight=0.0,
    flow=FlowConfig(),
    quirks=get_args(Quirk),
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Keyframes 0, 5, 6 and 7 of a town scene, with made-up codes."""
    tracks = [EgoTrack.of(scene) for scene in scenes(Town(TownConfig(train_scenes=1, keyframes=14)), "train")]
    made = ClipDataset(tracks, ClipSpec(past=5), future=True).batch([0, 5, 6, 7])
    cells = sum(Tokenizer(TINY.tokenizer).quantiser.level_cells)
    codes = torch.randint(0, TINY.tokenizer.quantiser.codes, (4, 12, cells), generator=torch.Generator().manual_seed(0))
    inputs = Inputs(**{**vars(made.inputs), "codes": codes[:, :6]})
    return Batch(inputs, Targets(**{**vars(made.targets), "codes": codes[:, 6:], "draw": torch.rand(4, 6)}), progress=0.5)


def forecaster() -> Forecaster:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TINY.tokenizer)
    return Forecaster(tokenizer, WorldModel(CONFIG, tokenizer.cells, tokenizer.config.grid))


def test_a_window_holds_what_a_stream_would_have_carried(batch: Batch) -> None:
    latents = torch.zeros(4, 5, CONFIG.width, *TINY.tokenizer.latent_size)
    drive, state = recorded(batch.inputs, latents, CONFIG.quirks, 5, 6, (batch.targets, latents[:, :1].expand(-1, 6, -1, -1, -1)))
    assert state.motions[0].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0, 0]] * 5, "nothing lies before a scene"
    for k in (1, 2):
        pushed = torch.cat([state.motions[k, 1:], drive.motions[k, :1]])
        torch.testing.assert_close(pushed[1:], state.motions[k + 1, 1:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(pushed[0, :6], state.motions[k + 1, 0, :6], atol=1e-4, rtol=1e-4)
    assert drive.starts.tolist() == [True, False, False, False]
    torch.testing.assert_close(drive.next_T_now[:, 0].float(), torch.linalg.inv(batch.targets.now_T_frame[:, 0]), atol=1e-4, rtol=1e-4)


def test_it_trains_and_imagines(batch: Batch) -> None:
    made = forecaster().train()
    total, parts = made.loss(batch)
    total.backward()
    assert list(parts)[-2:] == ["trajectory", "rotation"]
    assert [n for n, p in made.world.named_parameters() if p.grad is None] == []
    made.eval()
    imagined = made.imagine(batch.inputs, 3)
    assert imagined.latents.shape[:2] == imagined.now_T_frame.shape[:2] == (4, 3)
    moved = imagined.now_T_frame[:, 0, :3, :3]
    torch.testing.assert_close(moved @ moved.transpose(1, 2), torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=1e-5)


def test_imagining_depends_on_where_the_map_s_axes_point(batch: Batch) -> None:
    """The published model is told motions in map axes: turn the map and the same drive gives another plan."""
    made, inputs = forecaster().eval(), batch.inputs
    assert inputs.global_T_now is not None
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned = made.imagine(replace(inputs, global_T_now=turn @ inputs.global_T_now), 1)
    assert not torch.allclose(turned.now_T_frame, made.imagine(inputs, 1).now_T_frame, atol=1e-3)
    with pytest.raises(ConfigError, match="the ego's pose in the map"):
        made.imagine(replace(inputs, global_T_now=None), 1)


def test_quaternions_of_matrices() -> None:
    wanted = Rotation.random(200, random_state=0)
    found = quaternion_of(torch.from_numpy(wanted.as_matrix()))
    xyzw = torch.from_numpy(wanted.as_quat())
    assert ((found * xyzw[:, [3, 0, 1, 2]]).sum(-1).abs() - 1).abs().max() < 1e-12
    track = continuous(found[None])[0]
    assert ((track[1:] * track[:-1]).sum(-1) >= 0).all()
