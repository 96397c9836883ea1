"""Residual quantisation: first within a frame (intra, coarse to fine), then across frames (inter, one level per past frame).

All levels share one codebook. Each level quantises the residual of the levels before it, and its own 1x1 convolution adds its codes to the
latent. So the latent is a sum of linear functions of codes, and can be rebuilt from the code indices without the history.

Shapes: B batch, C latent channels, X, Y cells, J past frames, n codes of all levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from iidrive.models import cpu
from iidrive.models.cpu.products import linear


@dataclass(frozen=True)
class QuantiserConfig:
    """Settings of the quantiser.

    Attributes:
        codes: number of codebook vectors.
        width: channels of a codebook vector.
        history: number of inter levels, one per past frame.
        inter: what an inter level adds to the residual before quantising. change: the aligned past map minus the current one (zero where
            nothing moved and outside the past map). past: the past map itself (published).
        project_past: apply the 1x1 convolution of the current map to past maps too (published: false).
        inter_loss: compute the codebook loss for inter levels too (published: false).
        codebook_start: initial codes: from the first training batch (data), or U(-1/codes, 1/codes) (uniform, published).
        commitment: weight of the commitment loss (encoder towards codes) relative to the codebook loss (codes towards encoder).
    """

    codes: int = 512
    width: int = 128
    history: int = 4
    inter: Literal["change", "past"] = "change"
    project_past: bool = True
    inter_loss: bool = True
    codebook_start: Literal["data", "uniform"] = "data"
    commitment: float = 1.0


@dataclass(frozen=True)
class Quantised:
    """Output of the quantiser: the latent, the code indices of all levels (intra levels first), and the codebook loss."""

    latent: Float[Tensor, "B C X Y"]
    codes: Int[Tensor, "B n"]
    loss: Float[Tensor, ""]


class ResidualQuantiser(nn.Module):
    """Residual quantiser (see the module docstring). `size` is the size (X, Y) of the latent map.

    Intra levels have a quarter, half and all of this resolution.
    """

    def __init__(self, config: QuantiserConfig, size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.size = config, size
        width = config.width
        self.scales = [(max(1, size[0] // d), max(1, size[1] // d)) for d in (4, 2, 1)]
        self.codebook = nn.Parameter(torch.empty(config.codes, width).uniform_(-1 / config.codes, 1 / config.codes))
        self.before = nn.Conv2d(width, width, 1)
        self.after = nn.Conv2d(width, width, 1)
        self.scale_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in self.scales)
        self.time_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(config.history))
        self.started: Tensor
        self.register_buffer("started", torch.tensor(config.codebook_start == "uniform"))

    @property
    def level_cells(self) -> list[int]:
        """Number of cells of each level, intra levels first. Their sum is the number of codes per frame."""
        return [x * y for x, y in self.scales] + [self.size[0] * self.size[1]] * self.config.history

    def nearest(self, v: Float[Tensor, "B C x y"]) -> Int[Tensor, "B x y"]:
        """Index of the nearest code by squared Euclidean distance (the first on a tie). Plain version: `plain.nearest`."""
        flat = rearrange(v, "b c x y -> (b x y) c")
        # |v - e|^2 without |v|^2, which is the same for every code
        distance = linear(flat, self.codebook * -2, self.codebook.square().sum(1))
        if cpu.pays_for(distance) and distance.dtype == torch.float32:  # numpy's has vector units, torch's has none
            return torch.from_numpy(distance.numpy(force=True).argmin(1)).view(v.shape[0], *v.shape[2:])
        return distance.argmin(1).view(v.shape[0], *v.shape[2:])

    def look_up(self, index: Int[Tensor, "B x y"]) -> Float[Tensor, "B C x y"]:
        """Codebook vectors of a map of indices."""
        return rearrange(F.embedding(index.long(), self.codebook), "b x y c -> b c x y")

    def forward(self, now: Float[Tensor, "B C X Y"], past: Float[Tensor, "B J C X Y"], seen: Float[Tensor, "B J 1 X Y"]) -> Quantised:
        """Quantise an encoder map.

        Args:
            now: (B,C,X,Y) encoder map of the current frame.
            past: (B,J,C,X,Y) past encoder maps aligned to it, newest first.
            seen: (B,J,1,X,Y) 1 inside each past map, 0 outside.
        """
        here = self.before(now)
        residual, latent = here, torch.zeros_like(here)
        codes: list[Tensor] = []
        loss = here.new_zeros(())
        for scale, conv in zip(self.scales, self.scale_convs, strict=True):
            v = F.interpolate(residual, scale, mode="bilinear", align_corners=False)
            index, q, term = self._level(v)
            up = F.interpolate(q, self.size, mode="bilinear", align_corners=False)
            latent = latent + conv(up)
            residual = residual - up
            codes.append(index.flatten(1))
            loss = loss + term / len(self.scales)
        for j, conv in enumerate(self.time_convs):
            there = self.before(past[:, j]) if self.config.project_past else past[:, j]
            v = residual + ((there - here) * seen[:, j] if self.config.inter == "change" else there)
            index, q, term = self._level(v)
            latent = latent + conv(q)
            residual = residual - q
            codes.append(index.flatten(1))
            if self.config.inter_loss:
                loss = loss + term / len(self.time_convs)
        return Quantised(self.after(latent), torch.cat(codes, 1), loss)

    def latent_of(self, codes: Int[Tensor, "B n"]) -> Float[Tensor, "B C X Y"]:
        """Rebuild the latent from the indices of all levels.

        Everything after the codebook is linear. So a table per level holds the contribution of each code to the latent, and cells sum table
        entries. The result is channels_last. Plain version: `plain.latent_of`.
        """
        levels = codes.split(self.level_cells, dim=1)
        tables = self._tables()
        whole = [i for i, size in enumerate(self._level_sizes) if size == self.size]
        index = torch.stack([levels[i].long() + i * self.config.codes for i in whole], -1)
        latent = F.embedding_bag(index.flatten(0, 1), tables.flatten(0, 1), mode="sum")
        for level, table, size in zip(levels, tables, self._level_sizes, strict=True):
            if size != self.size:
                added = rearrange(F.embedding(level.long(), table), "b (x y) c -> b c x y", x=size[0])
                latent += rearrange(F.interpolate(added, self.size, mode="bilinear", align_corners=False), "b c x y -> (b x y) c")
        return rearrange(latent, "(b x y) c -> b c x y", x=self.size[0], y=self.size[1])

    @property
    def _level_sizes(self) -> list[tuple[int, int]]:
        return self.scales + [self.size] * self.config.history

    def _tables(self) -> Float[Tensor, "L K C"]:
        """Contribution of each code (K) of each level (L) to the latent. Biases are folded into the last table."""
        tables, constant = [], torch.zeros_like(self.codebook[0])
        for conv in [*self.scale_convs, *self.time_convs]:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            tables.append(F.linear(self.codebook, conv.weight.flatten(1)))
            constant = constant + conv.bias
        after = self.after.weight.flatten(1)
        made = F.linear(torch.stack(tables), after)
        return torch.cat([made[:-1], made[-1:] + F.linear(constant, after, self.after.bias)])

    def _level(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = self.nearest(v.detach())
        q = self.look_up(index)
        loss = F.mse_loss(q, v.detach()) + self.config.commitment * F.mse_loss(v, q.detach())
        return index, v + (q - v).detach(), loss

    @torch.no_grad()
    def start(self, here: Float[Tensor, "B C X Y"]) -> None:
        """Initialise the codebook from cells of the first batch, each scaled by a random factor so that codes fit both maps and
        residuals.
        """
        flat = rearrange(here, "b c x y -> (b x y) c")
        generator = torch.Generator(device="cpu").manual_seed(0)
        pick = torch.randint(len(flat), (self.config.codes,), generator=generator).to(flat.device)
        centred = flat[pick] - flat.mean(0)
        size = torch.rand(self.config.codes, 1, generator=generator).to(flat)
        self.codebook.data.copy_(centred * size + flat.mean(0) * (size > 0.8))
        self.started = torch.tensor(True, device=here.device)
