"""Faster formulations give what the plain ones give, in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iidrive.models.compute import ComputeConfig
from iidrive.models.cpu.convolve import EnlargedConv, convolve_columns, distinct_columns
from iidrive.models.layers import CellAttention
from iidrive.models.norm import Norm
from iidrive.models.quantise import QuantiserConfig, ResidualQuantiser
from iidrive.models.world import InterDecoder, InterLayer, WorldConfig, attend


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def agree(mine: Callable[[], Tensor], plain: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random weighting of them."""
    a, b = mine(), plain()
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(b)
    for x, y in zip(
        torch.autograd.grad((a * weight).sum(), inputs, allow_unused=True),
        torch.autograd.grad((b * weight).sum(), inputs, allow_unused=True),
        strict=True,
    ):
        assert x is not None
        assert y is not None
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)


def given(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("height", [3, 8, 16, 19])
def test_convolution_of_columns(height: int) -> None:
    labels = torch.randint(0, 3, (2, 6, 5, height), dtype=torch.uint8)
    labels[:, ::2] = labels[:1, :1, :1]
    classes, conv = given(4, 2), nn.Conv2d(2 * height, 3, 3, padding=1).double()

    def plain() -> Tensor:
        return conv(F.embedding(labels.long(), classes).flatten(3).permute(0, 3, 1, 2))

    agree(lambda: convolve_columns(labels, classes, conv), plain, [classes, *conv.parameters()])


def test_distinct_columns_are_told_apart_by_every_voxel() -> None:
    labels = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    labels[0, 0, torch.arange(17), torch.arange(17)] = 255
    labels = torch.cat([labels, labels], 1)
    columns, index = distinct_columns(labels)
    assert len(columns) == 17
    assert torch.equal(columns[index], labels.flatten(0, 2))


def test_convolution_of_enlarged_maps() -> None:
    conv, x = EnlargedConv(4).double(), given(2, 4, 3, 5)
    agree(lambda: conv(x), lambda: conv[1](F.interpolate(x, scale_factor=2.0)), [x, *conv.parameters()])


@pytest.mark.parametrize("silu", [True, False])
def test_norm_of_maps_with_their_channels_together(silu: bool) -> None:
    norm, x = Norm(4, 8, eps=1e-6, silu=silu).double(), given(2, 8, 3, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)

    def plain() -> Tensor:
        made = F.group_norm(x, 4, norm.weight, norm.bias, 1e-6)
        return F.silu(made) if silu else made

    agree(lambda: norm(x.contiguous(memory_format=torch.channels_last)), plain, [x, *norm.parameters()])


def test_attention_of_cells() -> None:
    layer, x = CellAttention(8, 4).double(), given(2, 8, 3, 5)

    def plain() -> Tensor:
        n = layer.norm(x)
        q, k, v = (f(n).flatten(2) for f in (layer.q, layer.k, layer.v))
        shares = (q.transpose(1, 2) @ k / 8**0.5).softmax(-1)
        return x + layer.out((v @ shares.transpose(1, 2)).view_as(x))

    agree(lambda: layer(x), plain, [x, *layer.parameters()])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(), atol=1e-10, rtol=1e-10)


def test_attention_of_one_query() -> None:
    attention, query, tokens = nn.MultiheadAttention(8, 2, batch_first=True).double(), given(3, 1, 8), given(3, 7, 8)
    nn.init.normal_(attention.in_proj_bias)
    agree(
        lambda: attend(attention, query, tokens),
        lambda: attention(query, tokens, tokens, need_weights=False)[0],
        [query, tokens, *attention.parameters()],
    )


def test_linear_maps_that_meet() -> None:
    layer = InterLayer(WorldConfig(width=16, heads=4, history=2, feed_forward=32)).double()
    x, memory = given(2, 12, 16), given(2, 12, 32)
    agree(
        lambda: layer._mix(x, F.linear(memory, layer.of_memory())),
        lambda: layer.mix(layer.join(torch.cat([x, memory], -1))),
        [x, memory, *layer.join.parameters(), *layer.mix.parameters()],
    )


def test_layers_that_read_one_memory() -> None:
    config = WorldConfig(width=16, heads=4, history=2, feed_forward=32)
    decoder = InterDecoder(replace(config, decoder_layers=2), ComputeConfig()).double()
    x, before, now, time = given(2, 12, 16), given(2, 12, 16), given(2, 12, 16), given(2, 16)

    def plain() -> Tensor:
        out, memory = x, torch.cat([before, now], -1) + time.flatten()
        for layer in decoder:
            assert isinstance(layer, InterLayer)
            out = layer(out, F.linear(memory, layer.of_memory()), (3, 4))
        return out

    agree(lambda: decoder(x, before, now, time, (3, 4)), plain, [x, before, now, time, *decoder.parameters()])


def test_latents_from_tables_of_codes() -> None:
    quantiser = ResidualQuantiser(QuantiserConfig(codes=9, width=4, history=2), (6, 5)).double()
    codes = torch.randint(0, 9, (2, sum(quantiser.level_cells)))

    def plain() -> Tensor:
        latent = torch.zeros(2, 4, 6, 5, dtype=torch.float64)
        sizes = [*quantiser.scales, (6, 5), (6, 5)]
        convs = [*quantiser.scale_convs, *quantiser.time_convs]
        for index, size, conv in zip(codes.split(quantiser.level_cells, 1), sizes, convs, strict=True):
            q = quantiser.look_up(index.view(2, *size))
            latent = latent + conv(F.interpolate(q, (6, 5), mode="bilinear", align_corners=False))
        return quantiser.after(latent)

    inputs = [p for name, p in quantiser.named_parameters() if not name.startswith("before")]
    agree(lambda: quantiser.latent_of(codes), plain, inputs)
