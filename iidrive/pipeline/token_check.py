"""The 0 s test: do cached tokens, decoded by the attached tokenizer, still show the scene as well as when stage 1 ended?

Fingerprints say whether two things belong together; this says whether they work together. It finds what no fingerprint can: tokens of other
occupancy, code that has changed since the tokens were written, a manifest that was edited.
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
"""Where stage 1's manifest holds what it measured, among its metrics, 0..1."""

FAR = 0.5
"""Below this share of what stage 1 recorded, reconstruction is far below it. Tokens of another tokenizer keep about a fifteenth (4 to 6 %
of mIoU where the own ones give 79 to 97 %, three tokenizers of towns); other scenes of the same data, nearly all."""

VISIBLE = 0.02
"""A gap of mIoU smaller than this is not acted on: a tokenizer that reconstructs next to nothing cannot be told from another by this test."""


@dataclass(frozen=True)
class Check:
    """The test's numbers, mIoU 0..1: what stage 1 recorded (measured now, if it recorded none), what the cached tokens give."""

    recorded: float
    found: float

    @property
    def far_below(self) -> bool:
        """Whether the tokens do not do what stage 1 promised."""
        return self.found < FAR * self.recorded and self.recorded - self.found > VISIBLE

    def metrics(self) -> dict[str, float]:
        """As a manifest keeps it."""
        return {"tokens_mIoU": self.found, "stage1_mIoU": self.recorded}


def chosen(tracks: Sequence[EgoTrack], count: int = KEYFRAMES, scenes: int = 8) -> list[tuple[str, Array]]:
    """About `count` keyframes: some in a row from the middle of each of `scenes` scenes, spread evenly over a split (names and indices)."""
    scenes = min(scenes, len(tracks))
    out = []
    for place in range(scenes):
        track = tracks[(2 * place + 1) * len(tracks) // (2 * scenes)]
        each = min(count // scenes, len(track.tokens))
        out.append((track.name, (len(track.tokens) - each) // 2 + np.arange(each)))
    return out


def fresh(tokenizer: Tokenizer, occupancy: Frames, tracks: Sequence[EgoTrack]) -> Frames:
    """Codes written on the spot: of keyframes in a row, each with the past that it sees, nothing else."""
    by_name = {track.name: track for track in tracks}

    def codes(name: str, indices: Array) -> Array:
        rows = np.arange(max(0, indices[0] - tokenizer.config.quantiser.history), indices[-1] + 1)
        frames = torch.from_numpy(occupancy(name, rows)).to(device())
        poses = torch.from_numpy(by_name[name].global_T_ego[rows]).to(device())
        return tokenizer.tokenize_scene(frames, poses).numpy(force=True)[indices - rows[0]]

    return codes


def measure(tokenizer: Tokenizer, source: Source, tracks: Sequence[EgoTrack], cache: TokenCache | None = None) -> float:
    """Reconstruction mIoU of the chosen keyframes, from cached tokens or from tokens written on the spot; 0 if nothing was there to see."""
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
    """The 0 s test before a training on tokens: (numbers, marks).

    Raises:
        LineageError: if reconstruction is far below what stage 1 recorded, saying whether tokens or tokenizer are to blame; with `allow`
            that is a mark instead.
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
            f"Written anew by this tokenizer the same keyframes give {100 * now:.1f} %, so these tokens are not its own, or not of these data: "
            f"delete {cache.folder} and run `iidrive tokens` again."
        )
    else:
        blame = (
            f"Written anew by this tokenizer the same keyframes give {100 * now:.1f} % too: the tokens are right, the tokenizer does not know "
            "these data. Train one on them with `iidrive train tokenizer`."
        )
    raise LineageError(f"{cache.folder}: {seen}.\n  tokens:    {cache.lineage}\n  tokenizer: {manifest.lineage()}\n{blame}\n{OVERRIDE}")


def _require_readable(tokenizer: Tokenizer, cache: TokenCache) -> None:
    """Even an allowed mismatch needs as many codes, from a book of the same bits."""
    cells, bits = sum(tokenizer.quantiser.level_cells), max(1, (tokenizer.config.quantiser.codes - 1).bit_length())
    held = cache.manifest
    if (held.codes_per_frame, held.bits) != (cells, bits):
        raise LineageError(
            f"{cache.folder}: {held.codes_per_frame} codes of {held.bits} bits a keyframe, but this tokenizer reads {cells} of {bits} bits. "
            "These tokens cannot be read with it at all: write the tokens anew with `iidrive tokens`."
        )
