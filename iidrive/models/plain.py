"""Plain reference formulas of all optimised operations in `iidrive/models`.

No model calls these functions. `tests/test_shortcuts.py` and `tests/test_sampling.py` compare values and gradients with the optimised
versions in float64, and `benchmarks/plain.py` runs whole models with them. Each function has the signature of the operation that it
explains; for a method, the module is the first argument.

| optimised operation | what makes it faster |
|---|---|
| `cpu.products.linear`, `crossed` | a matrix product (`F.linear(x, weight, bias)`, `a.T @ b`) as a 1x1 convolution |
| `cpu.convolve.convolve_columns` | each distinct column is multiplied with the weights only once |
| `cpu.convolve.EnlargedConv` | a 2x2 convolution with summed weights for each of the four new cells |
| `cpu.voxel_losses` | gradients in closed form; voxels in chunks |
| `norm.Norm` | one autograd function for channels_last tensors |
| `layers.CellAttention` | `out` is folded into the value projection; only the probabilities are stored, other matrices of their size are
overwritten |
| `layers.DeformableAttention` | one product for values, scaled offsets and weights; sampled points are recomputed in the backward pass |
| `layers.CellGrid.read`, `inside` | bilinear sampling as a weighted sum of four table rows; for a map of ones, only the weights |
| `quantise.ResidualQuantiser.nearest` | omits the part of the distance that is the same for all codes; the minimum is found by NumPy |
| `tokenizer.Tokenizer.read` | class logits are computed and read frame by frame, so that they fit the processor's cache |
| `quantise.ResidualQuantiser.latent_of` | one table per level with each code's contribution to the latent |
| `world.attend` | key and value projections are applied to the single query and to the attended mean, not to every token |
| `world.InterLayer.mixed` | two consecutive linear maps are merged; the memory's part of the first is computed outside |
| `world.InterDecoder` | one product computes the memory's part for all layers; the time embedding becomes a bias |

Shapes: B batch, C, D channels, X, Y cells, Z voxels of a column, K classes, E class embedding channels, N tokens, V voxels, U distinct
columns, n codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from iidrive.models.cpu.convolve import EnlargedConv
from iidrive.models.layers import CellAttention, CellGrid, DeformableAttention
from iidrive.models.norm import Norm
from iidrive.models.quantise import ResidualQuantiser
from iidrive.models.world import InterDecoder, InterLayer


def convolve_columns(labels: UInt8[Tensor, "B X Y Z"], classes: Float[Tensor, "K E"], conv: nn.Conv2d) -> Float[Tensor, "B D X Y"]:
    """Embed every voxel's label, flatten each column's embeddings (z e) to channels, convolve."""
    return conv(F.embedding(labels.long(), classes).flatten(3).permute(0, 3, 1, 2))


def distinct_columns(labels: UInt8[Tensor, "B X Y Z"]) -> tuple[UInt8[Tensor, "U Z"], Int[Tensor, "B*X*Y"]]:
    """The distinct columns, and for each cell the index of its column."""
    return torch.unique(labels.flatten(0, 2), dim=0, return_inverse=True)


def enlarged_conv(layer: EnlargedConv, input: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B D 2X 2Y"]:
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""
    return nn.Sequential.forward(layer, input)


def norm(layer: Norm, input: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B C X Y"]:
    """Group normalisation, then SiLU if `layer.silu`."""
    made = F.group_norm(input.contiguous(), layer.num_groups, layer.weight, layer.bias, layer.eps)
    return F.silu(made) if layer.silu else made


def cell_attention(layer: CellAttention, x: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B C X Y"]:
    """x + out(softmax(q k / sqrt(C)) v), with four 1x1 convolutions."""
    normed = layer.norm(x)
    q, k, v = (conv(normed).flatten(2) for conv in (layer.q, layer.k, layer.v))
    probabilities = (torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5).softmax(2)
    return x + layer.out(torch.bmm(v, probabilities.transpose(1, 2)).view_as(x))


def deformable_attention(layer: DeformableAttention, tokens: Float[Tensor, "B N C"], size: tuple[int, int]) -> Float[Tensor, "B N C"]:
    """Values, offsets and weights from one linear layer each. Every head of a cell sums its sampled points by their weights."""
    batch, count, _ = tokens.shape
    x, y = size
    value = rearrange(layer.value(tokens), "b (x y) (h d) -> (b h) d x y", x=x, h=layer.heads)
    offsets = layer.offsets(tokens).view(batch, count, layer.heads, layer.points, 2) / tokens.new_tensor([y, x])
    weights = layer.weights(tokens).view(batch, count, layer.heads, layer.points).softmax(-1)
    j, i = ((torch.arange(n, dtype=tokens.dtype, device=tokens.device) + 0.5) / n for n in (y, x))
    cell = torch.stack([j[None].expand(x, y), i[:, None].expand(x, y)], -1).reshape(count, 1, 1, 2)
    places = rearrange(2 * (cell + offsets) - 1, "b n h p two -> (b h) n p two")
    read = F.grid_sample(value, places, align_corners=False)
    mixed = (read * rearrange(weights, "b n h p -> (b h) 1 n p")).sum(-1)
    return layer.out(rearrange(mixed, "(b h) d n -> b n (h d)", b=batch))


def read(cells: CellGrid, maps: Float[Tensor, "B C X Y"], points_m: Float[Tensor, "B P Q 2"]) -> Float[Tensor, "B C P Q"]:
    """Bilinear values of maps at points in their ego frame, by `grid_sample`; 0 outside."""
    index = (points_m - points_m.new_tensor(cells.first_m)) / cells.cell_m
    grid = (2 * index + 1) / points_m.new_tensor(cells.size) - 1
    return F.grid_sample(maps, grid.flip(-1), align_corners=False)  # grid_sample takes the last axis first


def inside(cells: CellGrid, points_m: Float[Tensor, "B P Q 2"]) -> Float[Tensor, "B 1 P Q"]:
    """`read` of a map of ones."""
    return read(cells, points_m.new_ones(len(points_m), 1, *cells.size), points_m)


def nearest(quantiser: ResidualQuantiser, v: Float[Tensor, "B C x y"]) -> Int[Tensor, "B x y"]:
    """Index of the code e with the smallest |v - e|^2 = |v|^2 + |e|^2 - 2 v e."""
    flat, e = rearrange(v, "b c x y -> (b x y) c"), quantiser.codebook
    distance = flat.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * flat @ e.T
    return distance.argmin(1).view(v.shape[0], *v.shape[2:])


def latent_of(quantiser: ResidualQuantiser, codes: Int[Tensor, "B n"]) -> Float[Tensor, "B C X Y"]:
    """The latent as in `ResidualQuantiser.forward`: `after` of the sum over levels of the convolved, upsampled codes."""
    sizes = [*quantiser.scales, *(quantiser.size for _ in quantiser.time_convs)]
    latent = quantiser.codebook.new_zeros(())
    levels = zip(codes.split(quantiser.level_cells, 1), sizes, [*quantiser.scale_convs, *quantiser.time_convs], strict=True)
    for level, (x, y), conv in levels:
        code = quantiser.look_up(level.view(-1, x, y))
        latent = latent + conv(F.interpolate(code, quantiser.size, mode="bilinear", align_corners=False))
    return quantiser.after(latent)


def focal_sum(
    logits: Float[Tensor, "V K"], target: Int[Tensor, "V"], weight: Float[Tensor, "V"], alpha: float, gamma: float
) -> Float[Tensor, ""]:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5): binary cross entropy of every class, times alpha_t (1 - p_t) ** gamma."""
    truth = F.one_hot(target, logits.shape[1]).to(logits)
    p = logits.sigmoid()
    missed = (1 - p) * truth + p * (1 - truth)
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * balance * missed**gamma
    return (each * weight[:, None]).sum()


def lovasz_of_classes(
    logits: Float[Tensor, "V K"], target: Int[Tensor, "V"], bins: int, weights: tuple[float, ...] = ()
) -> Float[Tensor, ""]:
    """Lovász-softmax (Berman et al. 2018, algorithm 1): sorted errors times the differences of the Jaccard loss. `bins` is ignored."""
    probabilities, parts = logits.softmax(1), []
    for k in range(probabilities.shape[1]):
        truth = (target == k).to(probabilities)
        if truth.sum() == 0:
            continue
        error, order = (truth - probabilities[:, k]).abs().sort(0, descending=True)
        hits = truth[order]
        jaccard = 1 - (hits.sum() - hits.cumsum(0)) / (hits.sum() + (1 - hits).cumsum(0))
        part = (error * torch.diff(jaccard, prepend=jaccard.new_zeros(1))).sum()
        parts.append(weights[k] * part if weights else part)
    return torch.stack(parts).sum() if weights else torch.stack(parts).mean()


def attend(attention: nn.MultiheadAttention, query: Float[Tensor, "B 1 C"], tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B 1 C"]:
    """The forward pass of `nn.MultiheadAttention`, with keys and values of every token."""
    return attention(query, tokens, tokens)[0]


def mixed(layer: InterLayer, x: Float[Tensor, "B N C"], memory: Float[Tensor, "B N D"]) -> Float[Tensor, "B N C"]:
    """`mix(join([x, memory]))`."""
    return layer.mix(layer.join(torch.cat([x, memory], -1)))


def inter_decoder(
    decoder: InterDecoder,
    x: Float[Tensor, "B N C"],
    before: Float[Tensor, "B N D"],
    now: Float[Tensor, "B N C"],
    time: Float[Tensor, "T C"],
    size: tuple[int, int],
) -> Float[Tensor, "B N C"]:
    """Every layer reads the whole memory: all latents concatenated, plus their time embedding."""
    memory = torch.cat([before, now], -1) + time.flatten()
    for layer in decoder:
        assert isinstance(layer, InterLayer)
        x = layer.norms[0](x + layer.attention(x, size))
        x = layer.norms[1](x + mixed(layer, x, memory))
        x = layer.norms[2](x + layer.feed_forward(x))
    return x
