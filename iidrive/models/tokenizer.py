"""Stage 1: the scene tokenizer. It encodes semantic occupancy as a bird's-eye-view latent made of codebook vectors, and decodes it again.

- Class embeddings are tied: they embed labels at the input and score them at the output.
- A column of voxels becomes the channels of a 2-D map. Encoder and decoder are convolutional with residual blocks.
- Residual quantisation works within the frame and against four past frames aligned by the ego motion (`quantise.py`).

The architecture is the scene tokenizer of I2-World (Liao et al., ICCV 2025, arXiv 2507.09144), with deliberate differences from the
published code: past maps pass the same 1x1 convolution as the current one, and an inter level quantises their difference from it; each past
map is warped once, directly to the current frame; and cells are at the centres of the encoder's convolutions. Every difference is an option
of the config. The recipe `published` uses the published variants.

Shapes: B batch, T frames of a clip (oldest first), X, Y, Z voxels, C latent channels, x, y cells, J past frames, n codes per frame,
K classes, E class embedding channels, D decoder channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iidrive.core.batch import Batch
from iidrive.core.classes import FREE, IGNORE, OCC_CLASSES
from iidrive.core.errors import ConfigError
from iidrive.core.scene import GridSpec
from iidrive.models import cpu
from iidrive.models.compute import ComputeConfig, in_autocast
from iidrive.models.cpu.convolve import EnlargedConv, convolve_columns
from iidrive.models.history import mirrored, warp_once, warp_stream
from iidrive.models.layers import CellAttention, CellGrid, ResBlock, constant, rigid_inverse
from iidrive.models.losses import Counts, balanced_cross_entropy, distance_weight, focal, lovasz_by_frame, masked_mean, voxel_counts
from iidrive.models.norm import Norm
from iidrive.models.quantise import Quantised, QuantiserConfig, ResidualQuantiser


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of the tokenizer.

    A level is a resolution, finest first. Every level except the last ends in a stride-2 convolution.

    Attributes:
        grid: grid of the occupancy.
        class_width: channels of a class embedding.
        base_width: channels of the finest level.
        multipliers: channels of each level, in multiples of base_width.
        blocks: number of residual blocks of each level.
        attention: whether each level has self-attention over its cells.
        middle_attention: whether there is self-attention between encoder or decoder and latent.
        groups: groups of group normalisation; must divide the channels of every level.
        quantiser: settings of the quantiser.
        voxel_loss: focal (published), or balanced cross entropy with class_weights.
        voxel_weight: weight of the voxel loss.
        class_weights: one weight per class for the balanced loss; empty to compute them from the training split.
        prior: fraction of the class_weights' bias towards rare classes that is removed at inference, 0 to 1.
        lovasz_weight: weight of the Lovász loss, computed per frame; 0 for none.
        lovasz_bins: histogram bins that replace sorting in the Lovász loss; 0 to sort.
        lovasz_weights: one weight per class for the Lovász loss with the balanced voxel loss; empty to compute them from the training
            split. With the focal loss, the mean over classes is used (published).
        embed_weight: weight of the codebook loss.
        warp: once warps each past map directly to the current frame; stream resamples them at every frame (published).
        cell_points: position of a cell. centre: centre of its convolution, warped at z = 0. corner: corner of its square, warped at the
            bottom of the grid (published).
        mirror: augmentation that flips x and y with probability 0.5 each: none, per clip, or per frame (published).
        stale_mirror: keep the mirror of a stream's first frame, which misplaces maps of frames with another mirror (published).
    """

    grid: GridSpec = field(default_factory=GridSpec)
    class_width: int = 16
    base_width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: tuple[int, ...] = (2, 2, 4)
    attention: tuple[bool, ...] = (False, False, True)
    middle_attention: bool = True
    groups: int = 32
    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)
    voxel_loss: Literal["focal", "balanced"] = "focal"
    voxel_weight: float = 10.0
    class_weights: tuple[float, ...] = ()
    prior: float = 0.0
    lovasz_weight: float = 1.0
    lovasz_bins: int = 0
    lovasz_weights: tuple[float, ...] = ()
    embed_weight: float = 1.0
    warp: Literal["once", "stream"] = "once"
    cell_points: Literal["centre", "corner"] = "centre"
    mirror: Literal["none", "clip", "frame"] = "none"
    stale_mirror: bool = False

    def __post_init__(self) -> None:
        if not len(self.multipliers) == len(self.blocks) == len(self.attention):
            raise ConfigError(
                f"multipliers, blocks and attention need one entry per level; found {self.multipliers}, {self.blocks}, {self.attention}."
            )
        if self.grid.shape[0] % self.factor or self.grid.shape[1] % self.factor:
            raise ConfigError(
                f"with {len(self.multipliers)} levels the grid's x and y must be multiples of {self.factor}; found {self.grid.shape[:2]}."
            )
        if any(w % self.groups for w in self.widths):
            raise ConfigError(f"every level's width must be a multiple of groups={self.groups}; found {self.widths}.")
        if self.stale_mirror and self.warp != "stream":
            raise ConfigError("stale_mirror needs warp=stream.")
        middle = [low + n * self.grid.voxel_m / 2 for low, n in zip(self.grid.lower_m[:2], self.grid.shape[:2], strict=True)]
        if self.mirror != "none" and max(map(abs, middle)) > 1e-6:
            raise ConfigError(f"mirror needs a grid centred on the ego; found its centre at {middle} m.")

    @property
    def factor(self) -> int:
        """Voxels per latent cell along one axis."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.base_width * m for m in self.multipliers)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Size of the latent map, cells along x and y."""
        return self.grid.shape[0] // self.factor, self.grid.shape[1] // self.factor

    @property
    def latent_width(self) -> int:
        """Channels of the latent map."""
        return self.quantiser.width

    def cells(self) -> CellGrid:
        """Positions of latent cells in the ego frame."""
        x, y, z = self.grid.lower_m
        cell_m = self.grid.voxel_m * self.factor
        if self.cell_points == "corner":
            return CellGrid(self.latent_size, (x, y), cell_m, z)
        half = self.grid.voxel_m / 2
        return CellGrid(self.latent_size, (x + half, y + half), cell_m)


class Level(nn.Module):
    """Residual blocks at one resolution, each optionally followed by attention, then resampling."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, attention: bool, groups: int, resample: nn.Module, compute: ComputeConfig
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))
        self.attentions = nn.ModuleList(CellAttention(outputs, groups) if attention else nn.Identity() for _ in range(blocks))
        self.resample = resample
        self.activation_checkpointing = compute.activation_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            both = partial(_in_turn, block, attention)
            x = checkpoint(both, x, use_reentrant=False) if self.activation_checkpointing and x.requires_grad else both(x)
        return self.resample(x)


def _in_turn(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
    return second(first(x))


def _middle(width: int, config: TokenizerConfig) -> nn.Sequential:
    attention = CellAttention(width, config.groups) if config.middle_attention else nn.Identity()
    return nn.Sequential(ResBlock(width, width, config.groups), attention, ResBlock(width, width, config.groups))


class Encoder(nn.Module):
    """Encodes labels to a latent map. Fine levels are channels_last and the coarsest is contiguous, which is fastest for each."""

    def __init__(self, config: TokenizerConfig, compute: ComputeConfig) -> None:
        super().__init__()
        self.compute = compute
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.class_width * config.grid.shape[2], widths[0], 3, padding=1)
        levels = []
        for i, width in enumerate(widths):
            down = nn.Conv2d(width, width, 3, stride=2, padding=1) if i < last else nn.Identity()
            levels.append(
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    config.blocks[i],
                    config.attention[i],
                    config.groups,
                    down,
                    compute,
                )
            )
        self.levels = nn.ModuleList(levels)
        self.middle = _middle(widths[-1], config)
        self.out = nn.Sequential(
            Norm(config.groups, widths[-1], eps=1e-6, silu=True), nn.Identity(), nn.Conv2d(widths[-1], config.latent_width, 3, padding=1)
        )

    @in_autocast
    def forward(self, labels: UInt8[Tensor, "B X Y Z"], classes: Float[Tensor, "K E"]) -> Float[Tensor, "B C x y"]:
        x = convolve_columns(labels, classes, self.conv_in)
        for level in self.levels[:-1]:
            x = level(x)
        return self.out(self.middle(self.levels[-1](x.contiguous())))


class Decoder(nn.Module):
    """Decodes a latent map to class embeddings of columns. Mirrors the encoder."""

    def __init__(self, config: TokenizerConfig, compute: ComputeConfig) -> None:
        super().__init__()
        self.compute = compute
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.latent_width, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], config)
        levels = []
        for i in reversed(range(len(widths))):
            width = widths[i]
            up = EnlargedConv(width) if i else nn.Identity()
            levels.append(
                Level(
                    widths[min(i + 1, last)],
                    width,
                    config.blocks[i],
                    config.attention[i],
                    config.groups,
                    up,
                    compute,
                )
            )
        self.levels = nn.ModuleList(levels)
        self.out = nn.Sequential(
            Norm(config.groups, widths[0], eps=1e-6, silu=True),
            nn.Identity(),
            nn.Conv2d(widths[0], config.class_width * config.grid.shape[2], 3, padding=1),
        )

    @in_autocast
    def forward(self, x: Float[Tensor, "B C x y"]) -> Float[Tensor, "B D X Y"]:
        x = self.middle(self.conv_in(x.contiguous()))
        for level in self.levels:
            x = level(x)
        return self.out(x)


class Tokenizer(nn.Module):
    """Encodes, quantises and decodes frames. It has no state: past maps are an argument."""

    def __init__(self, config: TokenizerConfig, compute: ComputeConfig | None = None) -> None:
        super().__init__()
        compute = compute or ComputeConfig()
        self.config = config
        self.classes = nn.Parameter(torch.randn(len(OCC_CLASSES), config.class_width))
        self.encoder = Encoder(config, compute)
        self.quantiser = ResidualQuantiser(config.quantiser, config.latent_size)
        self.decoder = Decoder(config, compute)
        self.cells = config.cells()

    def computing(self, compute: ComputeConfig) -> Tokenizer:
        """A copy with other compute options, in eval mode, with the same weights, dtype and device."""
        other = Tokenizer(self.config, compute).to(self.classes).eval()
        other.load_state_dict(self.state_dict())
        return other

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time. They are compiled and run in mixed precision."""
        return [self.encoder, self.decoder]

    def encode(self, occupancy: UInt8[Tensor, "B X Y Z"]) -> Float[Tensor, "B C x y"]:
        """Encoder maps before quantisation. Unknown voxels are treated as free."""
        return self.encoder(torch.where(occupancy == IGNORE, FREE, occupancy), self.classes)

    def align(
        self, clip: Float[Tensor, "B T C x y"], now_T_frame: Float[Tensor, "B T 4 4"], mirrors: Float[Tensor, "B T 4 4"] | None = None
    ) -> tuple[Float[Tensor, "B J C x y"], Float[Tensor, "B J 1 x y"]]:
        """Past encoder maps of a clip warped to its last frame, newest first, and masks that are 1 inside each past map.

        A past frame that does not exist must be given as a copy of the earliest one (same map, same pose). `mirrors` are the mirrors of
        augmented frames; poses are those of the frames before mirroring.
        """
        marked = torch.cat([clip, torch.ones_like(clip[:, :, :1])], 2)
        config, history = self.config, self.config.quantiser.history
        if config.warp == "once":
            past = warp_once(self.cells, marked, now_T_frame, history, mirrors)
        else:
            past = warp_stream(self.cells, marked, now_T_frame, history, mirrors, config.stale_mirror)
        return past[:, :, :-1], past[:, :, -1:]

    def tokenize(self, occupancy: UInt8[Tensor, "B T X Y Z"], now_T_frame: Float[Tensor, "B T 4 4"]) -> Quantised:
        """Codes and latent of the last frame of each clip."""
        clip = rearrange(self.encode(rearrange(occupancy, "b t x y z -> (b t) x y z")), "(b t) c x y -> b t c x y", b=len(occupancy))
        return self.quantiser(clip[:, -1], *self.align(clip, now_T_frame))

    @torch.no_grad()
    def tokenize_scene(self, occupancy: UInt8[Tensor, "T X Y Z"], global_T_ego: Float64[Tensor, "T 4 4"]) -> Int[Tensor, "T n"]:
        """Codes of all keyframes of a scene. Each uses the four keyframes before it; every keyframe is encoded once."""
        maps = torch.cat([self.encode(part) for part in occupancy.split(8)])
        back = torch.arange(self.config.quantiser.history, -1, -1, device=maps.device)
        codes = []
        for now in torch.arange(len(maps), device=maps.device).split(8):
            seen = (now[:, None] - back).clamp(min=0)
            now_T_frame = rigid_inverse(global_T_ego[now])[:, None] @ global_T_ego[seen]
            codes.append(self.quantiser(maps[now], *self.align(maps[seen], now_T_frame.to(maps.dtype))).codes)
        return torch.cat(codes)

    def latent_of(self, codes: Int[Tensor, "*B n"]) -> Float[Tensor, "*B C x y"]:
        """Rebuild latents from code indices."""
        latent = self.quantiser.latent_of(codes.reshape(-1, codes.shape[-1]))
        return latent.view(*codes.shape[:-1], *latent.shape[1:])

    def decode(self, latent: Float[Tensor, "B C x y"]) -> Float[Tensor, "B X Y Z K"]:
        """Decode class logits of every voxel."""
        return self._logits(self.decoder(latent))

    def labels(self, latent: Float[Tensor, "B C x y"], without: Bool[Tensor, "K"] | None = None) -> UInt8[Tensor, "B X Y Z"]:
        """The most likely class of every voxel, excluding the classes in `without`."""
        (found,) = self.read(latent, lambda logits: (logits.argmax(-1).to(torch.uint8),), without)
        return found

    def read(
        self, latent: Float[Tensor, "B C x y"], reading: Callable[[Tensor], tuple[Tensor, ...]], without: Bool[Tensor, "K"] | None = None
    ) -> tuple[Tensor, ...]:
        """Apply `reading` to the class logits for inference (b X Y Z K) and return its results for all frames.

        With class weights, the fraction `prior` of their bias is removed from the logits, and classes absent from training are excluded.
        On a CPU the frames are read one after the other, since the logits of many frames do not fit the processor's cache.
        """
        bias = self._bias(latent)
        bias = bias if without is None else bias.masked_fill(without, -torch.inf)
        columns = self.decoder(latent)
        parts = columns.split(1) if cpu.pays_for(columns) else (columns,)
        made = [reading(self._logits(part).add_(bias)) for part in parts]
        return tuple(torch.cat(pieces) for pieces in zip(*made, strict=True))

    def _bias(self, like: Tensor) -> Float[Tensor, "K"]:
        """Bias (K,) that is added to the logits of each class; -inf excludes a class."""
        if not self.config.class_weights:
            return like.new_zeros(len(self.classes))
        weights = constant(self.config.class_weights, like)
        return torch.where(weights > 0, -self.config.prior * weights.clamp(min=1e-6).log(), -torch.inf)

    def _logits(self, columns: Float[Tensor, "B D X Y"]) -> Float[Tensor, "B X Y Z K"]:
        return rearrange(columns, "b (z e) x y -> b x y z e", e=self.config.class_width) @ self.classes.T

    def voxel_loss(
        self, logits: Float[Tensor, "B X Y Z K"], labels: UInt8[Tensor, "B X Y Z"], counts: Counts | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted voxel loss (focal or balanced) plus weighted Lovász loss of decoded voxels, and the parts."""
        config, counts = self.config, counts or voxel_counts(labels)
        if config.voxel_loss == "focal":
            weight = distance_weight(config.grid.shape[:2], logits.device)[None, :, :, None]
            parts = {"focal": config.voxel_weight * focal(logits, labels, weight, counts["voxels"])}
        else:
            parts = {"cross_entropy": config.voxel_weight * balanced_cross_entropy(logits, labels, config.class_weights, counts["voxels"])}
        if config.lovasz_weight:
            parts["lovasz"] = config.lovasz_weight * lovasz_by_frame(
                logits, labels, config.lovasz_bins, counts["frames"], config.lovasz_weights
            )
        return torch.stack(list(parts.values())).sum(), parts

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Initialise the codebook from samples, before the first step (see `QuantiserConfig.codebook_start`)."""
        assert batch.inputs.occupancy is not None
        if not bool(self.quantiser.started):
            self.quantiser.start(self.quantiser.before(self.encode(batch.inputs.occupancy[:, -1])))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of valid elements of a batch: known voxels, frames with at least one, clips."""
        assert batch.inputs.occupancy is not None
        chosen = _chosen(batch)
        truth = batch.inputs.occupancy[torch.arange(len(chosen), device=chosen.device), chosen]
        return {**voxel_counts(truth), "clips": chosen.new_full((), len(chosen))}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and codebook loss of one frame per clip in `batch.inputs`: the last for half of the clips, a random one for the
        others.

        A frame uses only the earlier frames of its clip, so starts of scenes are trained too. Gradients flow through the frame, not through
        its past.
        """
        seen, draw = batch.inputs, batch.targets.draw[:, 0]
        assert seen.occupancy is not None
        occupancy, mirrors = mirrored(seen.occupancy, draw, self.config.mirror)
        clips, frames = occupancy.shape[:2]
        chosen = _chosen(batch)
        rows = torch.arange(clips, device=draw.device)
        steps = torch.arange(self.config.quantiser.history, -1, -1, device=draw.device)
        index = (chosen[:, None] - steps).clamp(min=0)
        truth = occupancy[rows, chosen]
        with (
            torch.no_grad()
        ):  # the last frame is never history, so it is not encoded; its own map, which is not used, is a copy of the one before
            before = occupancy[:, : max(frames - 1, 1)]
            maps = rearrange(self.encode(before.flatten(0, 1)), "(b t) c x y -> b t c x y", b=clips)
            maps = maps[rows[:, None], index.clamp(max=maps.shape[1] - 1)]
        poses = seen.now_T_frame[rows[:, None], index]
        here_T_frame = rigid_inverse(poses[:, -1:].double()).to(poses.dtype) @ poses
        past, saw = self.align(maps, here_T_frame, None if mirrors is None else mirrors[rows[:, None], index])
        return self.frame_loss(truth, past, saw, counts or self.counts(batch))

    def frame_loss(
        self,
        occupancy: UInt8[Tensor, "B X Y Z"],
        past: Float[Tensor, "B J C x y"],
        seen: Float[Tensor, "B J 1 x y"],
        counts: Counts | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and codebook loss of frames, given their aligned past maps and masks (see `align`)."""
        clips = torch.full((), len(occupancy), device=occupancy.device)
        counts = counts or {**voxel_counts(occupancy), "clips": clips}
        quantised = self.quantiser(self.encode(occupancy), past, seen)
        voxels, parts = self.voxel_loss(self.decode(quantised.latent), occupancy, counts)
        parts["embed"] = self.config.embed_weight * masked_mean(quantised.loss * clips, counts["clips"])
        return voxels + parts["embed"], parts


def _chosen(batch: Batch) -> Int[Tensor, "B"]:
    """Index of the frame of each clip to reconstruct: the last for half of the clips, a random one for the others."""
    assert batch.inputs.occupancy is not None
    draw, frames = batch.targets.draw[:, 0], batch.inputs.occupancy.shape[1]
    return torch.where(draw < 0.5, frames - 1, ((draw - 0.5) * 2 * frames).long().clamp(max=frames - 1))
