"""Optimised operations equal the plain formulas (`iidrive.models.plain`) in float64, including gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iidrive.models import plain
from iidrive.models.compute import ComputeConfig
from iidrive.models.cpu import products
from iidrive.models.cpu.convolve import EnlargedConv, convolve_columns, distinct_columns
from iidrive.models.cpu.voxel_losses import focal_sum, lovasz_of_classes
from iidrive.models.layers import CellAttention, DeformableAttention
from iidrive.models.norm import Norm
from iidrive.models.quantise import QuantiserConfig, ResidualQuantiser
from iidrive.models.world import InterDecoder, InterLayer, WorldConfig, attend


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def agree(mine: Callable[[], Tensor], formula: Callable[[], Tensor], inputs: Sequence[Tensor]) -> None:
    """Equal values, and equal gradients of a random weighting of them."""
    a, b = mine(), formula()
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
    agree(
        lambda: convolve_columns(labels, classes, conv),
        lambda: plain.convolve_columns(labels, classes, conv),
        [classes, *conv.parameters()],
    )


def test_distinct_columns_are_told_apart_by_every_voxel() -> None:
    labels = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    labels[0, 0, torch.arange(17), torch.arange(17)] = 255
    labels = torch.cat([labels, labels], 1)
    columns, index = distinct_columns(labels)
    assert len(columns) == 17
    assert torch.equal(columns[index], labels.flatten(0, 2))


def test_distinct_columns_are_those_of_unique() -> None:
    labels = torch.randint(0, 2, (2, 6, 5, 3), dtype=torch.uint8)
    (columns, index), (all_columns, all_index) = distinct_columns(labels), plain.distinct_columns(labels)
    assert torch.equal(columns[index], all_columns[all_index])
    assert len(columns) == len(all_columns)


def test_convolution_of_enlarged_maps() -> None:
    conv, x = EnlargedConv(4).double(), given(2, 4, 3, 5)
    agree(lambda: conv(x), lambda: plain.enlarged_conv(conv, x), [x, *conv.parameters()])


@pytest.mark.parametrize("silu", [True, False])
def test_norm_of_maps_with_their_channels_together(silu: bool) -> None:
    norm, x = Norm(4, 8, eps=1e-6, silu=silu).double(), given(2, 8, 3, 5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    agree(lambda: norm(x.contiguous(memory_format=torch.channels_last)), lambda: plain.norm(norm, x), [x, *norm.parameters()])


def test_attention_of_cells() -> None:
    layer, x = CellAttention(8, 4).double(), given(2, 8, 3, 5)
    agree(lambda: layer(x), lambda: plain.cell_attention(layer, x), [x, *layer.parameters()])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain.cell_attention(layer, x), atol=1e-10, rtol=1e-10)


def test_deformable_attention() -> None:
    layer, tokens = DeformableAttention(16, 4).double(), given(3, 30, 16)
    for p in layer.parameters():
        nn.init.normal_(p)  # as it starts, offsets and weights do not depend on the tokens
    agree(lambda: layer(tokens, (6, 5)), lambda: plain.deformable_attention(layer, tokens, (6, 5)), [tokens, *layer.parameters()])


def test_attention_of_one_query() -> None:
    attention, query, tokens = nn.MultiheadAttention(8, 2, batch_first=True).double(), given(3, 1, 8), given(3, 7, 8)
    nn.init.normal_(attention.in_proj_bias)
    agree(
        lambda: attend(attention, query, tokens), lambda: plain.attend(attention, query, tokens), [query, tokens, *attention.parameters()]
    )


def test_linear_maps_that_meet() -> None:
    layer = InterLayer(WorldConfig(width=16, heads=4, history=2, feed_forward=32)).double()
    x, memory = given(2, 12, 16), given(2, 12, 32)
    agree(
        lambda: layer.mixed(x, F.linear(memory, layer.of_memory())),
        lambda: plain.mixed(layer, x, memory),
        [x, memory, *layer.join.parameters(), *layer.mix.parameters()],
    )


def test_layers_that_read_one_memory() -> None:
    config = WorldConfig(width=16, heads=4, history=2, feed_forward=32)
    decoder = InterDecoder(replace(config, decoder_layers=2), ComputeConfig()).double()
    x, before, now, time = given(2, 12, 16), given(2, 12, 16), given(2, 12, 16), given(2, 16)
    agree(
        lambda: decoder(x, before, now, time, (3, 4)),
        lambda: plain.inter_decoder(decoder, x, before, now, time, (3, 4)),
        [x, before, now, time, *decoder.parameters()],
    )


def test_latents_from_tables_of_codes() -> None:
    quantiser = ResidualQuantiser(QuantiserConfig(codes=9, width=4, history=2), (6, 5)).double()
    codes = torch.randint(0, 9, (2, sum(quantiser.level_cells)))
    inputs = [p for name, p in quantiser.named_parameters() if not name.startswith("before")]
    agree(lambda: quantiser.latent_of(codes), lambda: plain.latent_of(quantiser, codes), inputs)


def test_nearest_codes() -> None:
    quantiser = ResidualQuantiser(QuantiserConfig(codes=9, width=4, history=0), (6, 5)).double()
    v = torch.randn(2, 4, 6, 5, dtype=torch.float64) / 9
    found = quantiser.nearest(v)
    assert torch.equal(found, plain.nearest(quantiser, v))
    assert len(found.unique()) > 1


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_of_voxels(gamma: float) -> None:
    logits, target, weight = given(90, 7), torch.randint(0, 5, (90,)), torch.rand(90, dtype=torch.float64)
    agree(lambda: focal_sum(logits, target, weight, 0.25, gamma), lambda: plain.focal_sum(logits, target, weight, 0.25, gamma), [logits])


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 0.0, 2.0, 0.25, 1.0, 1.0)])
def test_lovasz_loss_of_voxels(weights: tuple[float, ...]) -> None:
    logits, target = given(90, 7), torch.randint(0, 5, (90,))
    agree(lambda: lovasz_of_classes(logits, target, 0, weights), lambda: plain.lovasz_of_classes(logits, target, 0, weights), [logits])


def test_lovasz_sorts_float32_by_its_bits() -> None:
    logits, target = torch.randn(90, 7, requires_grad=True), torch.randint(0, 5, (90,))
    mine, formula = lovasz_of_classes(logits, target, 0), plain.lovasz_of_classes(logits, target, 0)
    torch.testing.assert_close(mine, formula)
    torch.testing.assert_close(torch.autograd.grad(mine, logits)[0], torch.autograd.grad(formula, logits)[0])


def test_products_by_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)
    x, weight, bias, other = torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(6), torch.randn(12, 7)
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(products.crossed(x.flatten(0, 1), other), x.flatten(0, 1).T @ other)
