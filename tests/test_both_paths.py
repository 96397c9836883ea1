"""What a GPU computes, by plain formulas and without waiting, is what a CPU's shortcuts give: values and gradients in float64, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from iidrive.core.batch import Batch
from iidrive.core.scene import GridSpec
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames
from iidrive.data.source import scenes
from iidrive.data.town.source import Town, TownConfig
from iidrive.models import cpu, repeatable
from iidrive.models.candidates import BasePath, shifted, speed_profiles
from iidrive.models.cpu.convolve import EnlargedConv, convolve_columns
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import CellAttention, CellGrid, DeformableAttention, planar_transform, read_grid
from iidrive.models.losses import focal, lovasz
from iidrive.models.norm import Norm
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import InterLayer, WorldConfig, WorldModel
from iidrive.pipeline import recipes


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def agree(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor], Sequence[Tensor]], None]:
    """Equal values and gradients with the shortcuts, without, and as a GPU computes that has to have the same bits every time."""

    def both(run: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
        found = []
        for shortcuts, again in ((True, False), (False, False), (False, True)):
            monkeypatch.setattr(cpu, "pays_for", lambda tensor, on=shortcuts: on)
            monkeypatch.setattr(repeatable, "wanted", lambda tensor, on=again: on)
            made = run()
            weight = torch.arange(1.0, 1.0 + made.numel(), dtype=made.dtype).view_as(made).cos()
            found.append((made, *torch.autograd.grad((made * weight).sum(), inputs)))
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)

    return both


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def exactly_rigid(transform: Tensor) -> Tensor:
    """Planar poses of float32 are so up to its rounding, by which their inverse and their transpose differ."""
    yaw = torch.atan2(transform[..., 1, 0], transform[..., 0, 0])
    return planar_transform(transform[..., :2, 3], yaw.cos(), yaw.sin())


def test_layers(agree: Callable[..., None]) -> None:
    labels, classes, conv = torch.randint(0, 4, (2, 6, 5, 3), dtype=torch.uint8), given(4, 2), nn.Conv2d(6, 8, 3, padding=1).double()
    agree(lambda: convolve_columns(labels, classes, conv), [classes, *conv.parameters()])
    x = given(2, 8, 6, 5)
    enlarged, norm, attention = EnlargedConv(8).double(), Norm(4, 8, silu=True).double(), CellAttention(8, 4).double()
    agree(lambda: enlarged(x), [x, *enlarged.parameters()])
    agree(lambda: norm(x.contiguous(memory_format=torch.channels_last)), [x, *norm.parameters()])
    agree(lambda: attention(x), [x, *attention.parameters()])
    layer = InterLayer(WorldConfig(width=16, heads=4, history=2, feed_forward=32)).double()
    tokens, remembered = given(2, 30, 16), given(2, 30, 16)
    agree(lambda: layer(tokens, remembered, (6, 5)), [tokens, remembered])


def test_maps_are_read_the_same_inside_at_the_edge_and_outside(agree: Callable[..., None]) -> None:
    cells, maps = CellGrid((6, 5), (-2.0, -1.5), 0.8), given(3, 4, 6, 5)
    points = (torch.rand(3, 7, 9, 2, dtype=torch.float64) * 8 - 4).requires_grad_()
    agree(lambda: cells.read(maps, points), [maps, points])
    grid = GridSpec((6, 5, 1), (-2.0, -1.5, 0.0), 0.8)
    agree(lambda: read_grid(maps, points, grid), [maps, points])
    attention, tokens = DeformableAttention(16, 4).double(), given(2, 30, 16)
    nn.init.normal_(attention.offsets.bias, std=2)  # at its start every point is a cell's centre, where the slope has two values
    agree(lambda: attention(tokens, (6, 5)), [tokens, *attention.parameters()])


def test_paths_at_other_speeds_and_beside(agree: Callable[..., None]) -> None:
    paths, added = given(3, 6, 2), torch.tensor([0.0, -2.0, 1.0], dtype=torch.float64)
    agree(lambda: speed_profiles(BasePath.alone(paths), added), [paths])
    agree(lambda: shifted(paths, 0.7), [paths])


@pytest.mark.parametrize("bins", [0, 16])
@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 0.0, 2.0, 0.25, 1.0, 1.0)])
def test_voxel_losses(agree: Callable[..., None], bins: int, weights: tuple[float, ...]) -> None:
    """Classes 5 and 6 are absent, some voxels are unknown; in the last case all are."""
    logits, labels = given(4, 5, 6, 7), torch.randint(0, 5, (4, 5, 6), dtype=torch.uint8)
    labels[torch.rand(4, 5, 6) < 0.2] = 255
    agree(lambda: focal(logits, labels, torch.ones(4, 5, 6, dtype=torch.float64)), [logits])
    agree(lambda: lovasz(logits, labels, bins, weights), [logits])
    agree(lambda: lovasz(logits, torch.full_like(labels, 255), bins, weights), [logits])


@pytest.mark.slow
def test_whole_losses(agree: Callable[..., None]) -> None:
    """Of a tokenizer and a world model on a drive through a town."""
    recipe, town = recipes.tiny(), Town(TownConfig(train_scenes=1, keyframes=14))
    tokenizer = Tokenizer(replace(recipe.tokenizer, attention=(False, True), middle_attention=True, mirror="clip")).double()
    tokenizer.quantiser.started.fill_(True)
    codes = torch.randint(0, recipe.tokenizer.quantiser.codes, (14, sum(tokenizer.quantiser.level_cells))).numpy()
    tracks = [EgoTrack.of(scene) for scene in scenes(town, "train")]
    frames = OccupancyFrames(town, recipe.tokenizer.grid, 14)
    batch: Batch = ClipDataset(tracks, ClipSpec(past=5), frames, lambda _, rows: codes[rows], future=True).batch([0, 7])
    batch = replace(batch.as_type(torch.float64), progress=0.4)
    batch = replace(batch, inputs=replace(batch.inputs, now_T_frame=exactly_rigid(batch.inputs.now_T_frame)))
    agree(lambda: tokenizer.loss(batch)[0], [tokenizer.classes, *tokenizer.decoder.parameters(), tokenizer.encoder.conv_in.weight])
    forecaster = Forecaster(tokenizer, WorldModel(recipe.world, tokenizer.cells, tokenizer.config.grid).double())
    for p in forecaster.world.parameters():
        nn.init.normal_(p, std=0.1)
    agree(lambda: forecaster.loss(batch)[0], [*forecaster.world.inter.parameters(), *forecaster.world.fuse.parameters()])
