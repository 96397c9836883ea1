"""The 0 s check: whether cached tokens, decoded by their tokenizer, reconstruct the scene as well as at the end of stage 1.

Fingerprints verify that tokens and tokenizer match by name; this check verifies that they work together. It also detects tokens of other occupancy,
code that has changed since the tokens were written, and an edited manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iidrive.core.errors import LineageError
from iidrive.core.lineage import OVERRIDE
from iidrive.data.clips import EgoTrack, Frames, OccupancyFrames
from iidrive.data.joint import parts_of, tracks_of
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer
from iidrive.runtime.run_folder import device
from iidrive.scoring import metrics
from iidrive.training.checkpoint import Manifest

Array = np.ndarray
KEYFRAMES = 32
RECORD = "reconstruction_mIoU"
"""Metric in stage 1's manifest: its reconstruction mIoU, 0..1."""

FAR = 0.5
"""The check fails if the reconstruction mIoU is below this fraction of the recorded one. Tokens of another tokenizer reach about a fifteenth
(4 to 6 % mIoU instead of 79 to 97 %, for three tokenizers of towns); other scenes of the same data reach nearly all of it."""

VISIBLE = 0.02
"""A smaller gap in mIoU is ignored, because a tokenizer that reconstructs almost nothing cannot be checked this way."""


@dataclass(frozen=True)
class Check:
    """The mIoUs of the check, 0..1: `recorded` by stage 1 (measured now if it recorded none), and `found` from the cached tokens."""

    recorded: float
    found: float

    @property
    def far_below(self) -> bool:
        """Whether the check fails."""
        return self.found < FAR * self.recorded and self.recorded - self.found > VISIBLE

    def metrics(self) -> dict[str, float]:
        """The values as metrics of a manifest."""
        return {"tokens_mIoU": self.found, "stage1_mIoU": self.recorded}


def chosen(tracks: Sequence[EgoTrack], count: int = KEYFRAMES, scenes: int = 8) -> list[tuple[str, Array]]:
    """About `count` keyframes: consecutive ones from the middle of each of `scenes` scenes, spread evenly over a split (scene names, indices)."""
    scenes = min(scenes, len(tracks))
    out = []
    for place in range(scenes):
        track = tracks[(2 * place + 1) * len(tracks) // (2 * scenes)]
        each = min(count // scenes, len(track.tokens))
        out.append((track.name, (len(track.tokens) - each) // 2 + np.arange(each)))
    return out


def fresh(tokenizer: Tokenizer, occupancy: Frames, tracks: Sequence[EgoTrack]) -> Frames:
    """Codes of consecutive keyframes, computed now with only the history that they need."""
    by_name = {track.name: track for track in tracks}

    def codes(name: str, indices: Array) -> Array:
        rows = np.arange(max(0, indices[0] - tokenizer.config.quantiser.history), indices[-1] + 1)
        frames = torch.from_numpy(occupancy(name, rows)).to(device())
        poses = torch.from_numpy(by_name[name].global_T_ego[rows]).to(device())
        return tokenizer.tokenize_scene(frames, poses).numpy(force=True)[indices - rows[0]]

    return codes


def measure(tokenizer: Tokenizer, source: Source, tracks: Sequence[EgoTrack], cache: TokenCache | None = None) -> float:
    """Reconstruction mIoU of the chosen keyframes, 0..1, from cached tokens or from tokens computed now; 0 if the scenes are empty."""
    occupancy = OccupancyFrames(source, tokenizer.config.grid, keyframes=0, memory_gb=0.1)
    codes = cache if cache is not None else fresh(tokenizer, occupancy, tracks)
    return float(np.nan_to_num(metrics.miou(infer.reconstruction(tokenizer, codes, occupancy, chosen(tracks)))))


def record(tokenizer: Tokenizer, source: Source, tracks: Sequence[EgoTrack]) -> dict[str, float]:
    """What stage 1's manifest keeps of `measure`: one number, and where there are several sources also that of each."""
    parts = parts_of(source)
    each = {_name(part): measure(tokenizer, part, tracks_of(source, part, tracks)) for part in parts} if len(parts) > 1 else {}
    return {RECORD: measure(tokenizer, source, tracks), **each}


def _name(source: Source) -> str:
    """Where stage 1's manifest holds what it measured on one of several sources."""
    return f"{RECORD}_{source.name}"


def check(
    tokenizer: Tokenizer, manifest: Manifest, cache: TokenCache, source: Source, tracks: Sequence[EgoTrack], allow: bool = False
) -> tuple[Check, tuple[str, ...]]:
    """The 0 s check before a training on tokens. Returns the mIoUs and the marks.

    Raises:
        LineageError: if reconstruction is far below what stage 1 recorded. The message says whether tokens or tokenizer are the cause. With `allow` a
            mark is returned instead.
    """
    _require_readable(tokenizer, cache)
    recorded = manifest.metrics.get(_name(source), manifest.metrics.get(RECORD))
    result = Check(measure(tokenizer, source, tracks) if recorded is None else recorded, measure(tokenizer, source, tracks, cache))
    if not result.far_below:
        return result, ()
    now = result.recorded if recorded is None else measure(tokenizer, source, tracks)
    seen = f"tokens decode at {100 * result.found:.1f} % mIoU where stage 1 recorded {100 * result.recorded:.1f} %"
    if allow:
        return result, (seen,)
    if Check(now, result.found).far_below:
        blame = (
            f"Tokens computed now by this tokenizer give {100 * now:.1f} %, so the cached tokens are not its own, or not of these data: "
            f"delete {cache.folder} and run `iidrive tokens` again."
        )
    else:
        blame = (
            f"Tokens computed now by this tokenizer also give only {100 * now:.1f} %: the tokens are correct, and the tokenizer does not fit "
            "these data. Train one on them with `iidrive train tokenizer`."
        )
    raise LineageError(f"{cache.folder}: {seen}.\n  tokens:    {cache.lineage}\n  tokenizer: {manifest.lineage()}\n{blame}\n{OVERRIDE}")


def _require_readable(tokenizer: Tokenizer, cache: TokenCache) -> None:
    """Raise LineageError unless the cache has the tokenizer's number of codes and bits per code. This holds even for an allowed mismatch."""
    cells, bits = sum(tokenizer.quantiser.level_cells), max(1, (tokenizer.config.quantiser.codes - 1).bit_length())
    held = cache.manifest
    if (held.codes_per_frame, held.bits) != (cells, bits):
        raise LineageError(
            f"{cache.folder}: {held.codes_per_frame} codes of {held.bits} bits per keyframe, but this tokenizer needs {cells} of {bits} bits. "
            "It cannot decode these tokens: write them again with `iidrive tokens`."
        )
