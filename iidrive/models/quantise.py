"""Residual quantisation, first within a frame (intra, coarse to fine), then across frames (inter, one level per past frame).

One codebook serves all levels. Every level quantises the residual of the earlier ones, and a level's own 1x1 convolution adds its code
to the latent. The latent is therefore a sum of linear functions of codes: the code indices alone rebuild it, no history is needed.

Shapes: B batch, C latent channels, X, Y cells, J past frames, n cells of a level.
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
    """The codebook, and how past frames enter it.

    Attributes:
        codes: vectors of the codebook.
        width: numbers of a vector.
        history: inter levels, one a past frame.
        inter: what an inter level adds to the residual before it quantises. change: the aligned past map minus the present one (zero where nothing
            moved or the past saw nothing, so that the level refines). past: the past map itself (published).
        project_past: whether past maps pass the same 1x1 convolution as the present one, or enter as the encoder gave them (published: false).
        inter_loss: whether inter levels have a codebook loss as intra levels do, so that they move the codes (published: false).
        codebook_start: where the first codes come from. data: the first training batch. uniform: U(-1/codes, 1/codes) (published).
        commitment: weight of the loss that draws the encoder to its codes, beside the loss that draws codes to the encoder.
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
    """The latent, the code index of every cell of every level (intra levels first), and the codebook loss."""

    latent: Float[Tensor, "B C X Y"]
    codes: Int[Tensor, "B n"]
    loss: Float[Tensor, ""]


class ResidualQuantiser(nn.Module):
    """See the module's docstring. `size` is the latent map's (X, Y); intra levels run at a quarter, a half and the whole of it."""

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
        """Cells of every level, intra levels first: their sum is the number of codes of a frame."""
        return [x * y for x, y in self.scales] + [self.size[0] * self.size[1]] * self.config.history

    def nearest(self, v: Float[Tensor, "B C x y"]) -> Int[Tensor, "B x y"]:
        """Index of the nearest code (squared Euclidean distance; the first wins a tie). Plain: `plain.nearest`."""
        flat = rearrange(v, "b c x y -> (b x y) c")
        # |v|^2 is the same for every code, so it is left out
        distance = linear(flat, self.codebook * -2, self.codebook.square().sum(1))
        if cpu.pays_for(distance) and distance.dtype == torch.float32:  # numpy's has vector units, torch's has none
            return torch.from_numpy(distance.numpy(force=True).argmin(1)).view(v.shape[0], *v.shape[2:])
        return distance.argmin(1).view(v.shape[0], *v.shape[2:])

    def look_up(self, index: Int[Tensor, "B x y"]) -> Float[Tensor, "B C x y"]:
        """Codes as a map."""
        return rearrange(F.embedding(index.long(), self.codebook), "b x y c -> b c x y")

    def forward(self, now: Float[Tensor, "B C X Y"], past: Float[Tensor, "B J C X Y"], seen: Float[Tensor, "B J 1 X Y"]) -> Quantised:
        """Quantise an encoder map, given the past encoder maps aligned to it, newest first, and where each past frame saw anything (0..1)."""
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

        Everything after the codebook is linear, so each level has a table of what its codes add to the latent, and cells sum up entries.
        The numbers of a cell lie together in memory. Plain: `plain.latent_of`.
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
        """What every code of every level adds to the latent. Biases are folded into the last table."""
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
        """Codes drawn from the first batch's maps, each shrunk towards their mean by a random factor, to serve whole maps and residuals."""
        flat = rearrange(here, "b c x y -> (b x y) c")
        generator = torch.Generator(device="cpu").manual_seed(0)
        pick = torch.randint(len(flat), (self.config.codes,), generator=generator).to(flat.device)
        centred = flat[pick] - flat.mean(0)
        size = torch.rand(self.config.codes, 1, generator=generator).to(flat)
        self.codebook.data.copy_(centred * size + flat.mean(0) * (size > 0.8))
        self.started = torch.tensor(True, device=here.device)
