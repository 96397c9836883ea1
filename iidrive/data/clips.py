"""Clips of many scenes as training batches, in an order that follows from the seed alone.

A sample is a keyframe with its past and future. Occupancy comes from the source, codes from a token cache; both are fetched when a batch needs them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iidrive.core import geometry
from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS, GridSpec, Scene, Trajectory
from iidrive.data.source import Source, intended_path, scenes, true_path

Array = np.ndarray
Frames = Callable[[str, Array], Array]
"""(scene name, keyframe indices) → stacked arrays: occupancy (n,X,Y,Z) uint8 or codes (n,m)."""

Labels = Callable[[str, int], Mapping[str, Array]]
"""(scene name, keyframe) → more targets of that sample, named as in `Targets`."""


@dataclass(frozen=True)
class EgoTrack:
    """What a scene's clips need, without its voxels: tokens, ego poses, times, commands, true paths, and the paths that the driver intended."""

    name: str
    tokens: tuple[str, ...]
    global_T_ego: Array
    ego_T_lidar: Array
    time_s: Array
    command: Array
    path: Array
    path_valid: Array
    intended: Array

    def true_path(self, index: int) -> Trajectory:
        """The path of keyframe `index`, as `source.true_path` gives it."""
        return Trajectory(self.path[index], "lidar", "lidar_top", self.path_valid[index])

    @staticmethod
    def of(scene: Scene) -> EgoTrack:
        """Read a scene once."""
        paths = [true_path(scene, i) for i in range(len(scene))]
        intended = paths if scene.intended is None else [intended_path(scene, i) for i in range(len(scene))]
        frames = scene.keyframes
        return EgoTrack(
            scene.name,
            tuple(k.token for k in frames),
            np.stack([k.global_T_ego.matrix for k in frames]),
            np.stack([k.ego_T_lidar.matrix for k in frames]),
            np.array([k.timestamp_us for k in frames]) / 1e6,
            np.array([k.command.index for k in frames]),
            np.stack([p.points_m for p in paths]),
            np.stack([p.valid for p in paths]),
            np.stack([p.points_m for p in intended]),
        )


def read_tracks(source: Source, of: str | Sequence[str]) -> list[EgoTrack]:
    """What clips need of every scene of a split, or of some scenes by name."""
    if isinstance(of, str):
        return [EgoTrack.of(scene) for scene in scenes(source, of)]
    source.prepare(of)
    return [EgoTrack.of(source.scene(name)) for name in of]


def keyframes(tracks: Iterable[EgoTrack]) -> int:
    """How many keyframes scenes have in all."""
    return sum(len(track.tokens) for track in tracks)


@dataclass(frozen=True)
class ClipSpec:
    """How clips are cut: `past` and `future` keyframes around now, and which samples count.

    `full_future` keeps only samples with all six future keyframes. `intended` makes the path what the ego's driver would have done if nothing had
    disturbed him: what is taught, never what is scored.
    """

    past: int = 5
    future: int = FUTURE_STEPS
    full_future: bool = True
    first: int = 0
    intended: bool = False


@dataclass(frozen=True)
class Mixture:
    """How samples of several sources are drawn: the sources' names, the source of every track as an index into them, and their shares.

    `shares` are above 0 and relative to each other. Without any, each source gives as many samples as it has.
    """

    names: tuple[str, ...]
    of_track: tuple[int, ...]
    shares: tuple[float, ...] = ()

    def drawn(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Samples of each source in a pass, which draws as many as there are in all: the shares by largest remainder, but one at least."""
        if not self.shares:
            return tuple(sizes)
        total = sum(sizes)
        wanted = np.array(self.shares) / sum(self.shares) * total
        counts = np.maximum(np.floor(wanted).astype(np.int64), 1)
        while counts.sum() < total:
            counts[np.argmax(wanted - counts)] += 1
        while counts.sum() > total:
            counts[np.argmax(np.where(counts > 1, counts - wanted, -np.inf))] -= 1
        return tuple(counts.tolist())


class ClipDataset:
    """All samples of some scenes; `batch(rows)` makes tensors of some of them, `order` says which ones when."""

    def __init__(
        self,
        tracks: Sequence[EgoTrack],
        spec: ClipSpec,
        occupancy: Frames | None = None,
        codes: Frames | None = None,
        future: bool = False,
        labels: Labels | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.tracks, self.spec, self.occupancy, self.codes, self.future = tuple(tracks), spec, occupancy, codes, future
        self.labels = labels
        places = [
            [i for i in range(spec.first, len(track.tokens)) if track.path_valid[i].all() or not spec.full_future] for track in self.tracks
        ]
        self.samples = [(t, i) for t, at in enumerate(places) for i in at]
        if not self.samples:
            raise DataError("no sample fits: the scenes are shorter than the clip, or the split is empty.")
        self.groups = _groups([t for t, _ in self.samples], mixture)
        self.drawn = tuple(map(len, self.groups)) if mixture is None else mixture.drawn(tuple(map(len, self.groups)))
        parts = [_cut(track, np.array(at, np.int64), spec) for track, at in zip(self.tracks, places, strict=True) if at]
        self.inputs, self.targets = ({k: np.concatenate([p[side][k] for p in parts]) for k in parts[0][side]} for side in (0, 1))

    def __len__(self) -> int:
        return len(self.samples)

    def without_occupancy(self) -> ClipDataset:
        """The same samples with codes alone, which is what planning reads. Nothing is cut again."""
        other = copy.copy(self)
        other.occupancy, other.future, other.labels = None, False, None
        return other

    def with_labels(self, labels: Labels) -> ClipDataset:
        """The same samples with more targets."""
        other = copy.copy(self)
        other.labels = labels
        return other

    def order(self, seed: int, start: int, count: int) -> Array:
        """Rows of the training order from place `start` on, which follow from the seed and the place alone.

        A pass draws `drawn` samples of each source, mixed by a permutation that follows from (seed, pass). The samples of one source come in
        permutations of their own: none is drawn a second time before all of its source were drawn once.
        """
        if len(self.groups) == 1:
            return order(len(self), seed, start, count)
        places, out = np.arange(start, start + count), np.empty(count, np.int64)
        total = sum(self.drawn)
        sources = np.repeat(np.arange(len(self.groups)), self.drawn)
        for epoch in np.unique(places // total):
            here = np.flatnonzero(places // total == epoch)
            mixed = np.random.default_rng([seed, int(epoch)]).permutation(sources)
            for k, rows in enumerate(self.groups):
                mine = mixed == k
                place = places[here] % total
                chosen = here[mine[place]]
                number = epoch * self.drawn[k] + np.cumsum(mine)[place[mine[place]]] - 1
                out[chosen] = rows[_permuted(len(rows), (seed, k), number)]
        return out

    def token(self, row: int) -> str:
        """Sample token of a row."""
        track, index = self.samples[row]
        return self.tracks[track].tokens[index]

    def batch(self, rows: Sequence[int], draws: Array | None = None, progress: float = 1.0, place: Sequence[int] | None = None) -> Batch:
        """Tensors of some samples. `draws` (len(rows), future) are the uniform numbers of `Targets.draw` (zeros if absent)."""
        rows = list(rows)
        inputs = {k: v[rows] for k, v in self.inputs.items()}
        targets = {k: v[rows] for k, v in self.targets.items()}
        for key, frames in (("occupancy", self.occupancy), ("codes", self.codes)):
            if frames is not None:
                found = np.stack([self._frames(frames, row) for row in rows])
                found = found.astype(np.int64) if key == "codes" else found
                inputs[key], later = np.split(found, [self.spec.past + 1], axis=1)
                if self.future:
                    targets[key] = later
        if self.labels is not None:
            each = [self.labels(self.tracks[number].name, now) for number, now in (self.samples[row] for row in rows)]
            targets |= {key: np.stack([one[key] for one in each]) for key in each[0]}
        draw = np.zeros((len(rows), self.spec.future)) if draws is None else draws
        tokens = tuple(self.token(r) for r in rows)
        return Batch(
            Inputs(tokens, **{k: torch.from_numpy(v) for k, v in inputs.items()}),
            Targets(draw=torch.from_numpy(draw.astype(np.float32)), **{k: torch.from_numpy(v) for k, v in targets.items()}),
            progress,
            place,
        )

    def _frames(self, frames: Frames, row: int) -> Array:
        """What `frames` holds of one sample's keyframes; the scene's first and last stand in for those that do not exist."""
        number, now = self.samples[row]
        track = self.tracks[number]
        last = now + self.spec.future if self.future else now
        return frames(track.name, np.arange(now - self.spec.past, last + 1).clip(0, len(track.tokens) - 1))


def scored_clips(
    tracks: Sequence[EgoTrack], codes: Frames | None = None, source: Source | None = None, grid: GridSpec | None = None
) -> ClipDataset:
    """Every sample with a full future, the first keyframe of a scene included; with future occupancy when a source and a grid are given."""
    occupancy = OccupancyFrames(source, grid, keyframes(tracks)) if source is not None and grid is not None else None
    return ClipDataset(tracks, ClipSpec(), occupancy, codes, future=occupancy is not None)


def _cut(track: EgoTrack, now: Array, spec: ClipSpec) -> tuple[dict[str, Array], dict[str, Array]]:
    """The numbers of all samples of a scene, at keyframes `now` (n,), named as in Inputs and Targets: (inputs, targets)."""
    past = now[:, None] + np.arange(-spec.past, 1)
    future = now[:, None] + np.arange(1, spec.future + 1)
    kept, next_ = past.clip(0), future.clip(max=len(track.tokens) - 1)
    now_T_global = geometry.invert(track.global_T_ego[now])[:, None]
    inputs = {
        "now_T_frame": (now_T_global @ track.global_T_ego[kept]).astype(np.float32),
        "known": past >= 0,
        "age_s": (track.time_s[now, None] - track.time_s[kept]).astype(np.float32),
        "command": track.command[now],
        "ego_T_lidar": track.ego_T_lidar[now].astype(np.float32),
        "global_T_now": track.global_T_ego[now].astype(np.float64),
    }
    targets = {
        "now_T_frame": (now_T_global @ track.global_T_ego[next_]).astype(np.float32),
        "valid": future < len(track.tokens),
        "path": (track.intended if spec.intended else track.path)[now, : spec.future].astype(np.float32),
    }
    return inputs, targets


def order(samples: int, seed: int, start: int, count: int) -> Array:
    """Rows of the training order from place `start` on: each pass over the samples is a permutation that follows from (seed, pass)."""
    return _permuted(samples, (seed,), np.arange(start, start + count))


def _permuted(samples: int, seed: tuple[int, ...], places: Array) -> Array:
    """Rows at any places of an order in which each pass over the samples is a permutation that follows from (*seed, pass)."""
    out = np.empty(len(places), np.int64)
    for epoch in np.unique(places // samples):
        here = places // samples == epoch
        out[here] = np.random.default_rng([*seed, int(epoch)]).permutation(samples)[places[here] % samples]
    return out


def _groups(track_of_sample: Sequence[int], mixture: Mixture | None) -> list[Array]:
    """The rows of every source. Raises DataError for a source without any."""
    if mixture is None:
        return [np.arange(len(track_of_sample))]
    source = np.array(mixture.of_track)[np.array(track_of_sample)]
    groups = [np.flatnonzero(source == k) for k in range(len(mixture.names))]
    for name, rows in zip(mixture.names, groups, strict=True):
        if not len(rows):
            raise DataError(f"no sample of {name} fits: its scenes are shorter than the clip, or its split is empty.")
    return groups


def draws(seed: int, start: int, count: int, width: int) -> Array:
    """Uniform numbers of the samples at places start..start+count of the training order; each place has its own, whoever computes it."""
    return np.stack([np.random.default_rng([seed, 7, place]).random(width) for place in range(start, start + count)])


class OccupancyFrames:
    """Occupancy of a source's scenes on one grid, keeping the scenes used last in memory (at most `memory_gb`).

    When `keyframes`, the number there are in all, fit into memory, a scene is read whole the first time: each scene is opened once.
    """

    def __init__(self, source: Source, spec: GridSpec, keyframes: int, memory_gb: float = 1.5) -> None:
        self.source, self.spec = source, spec
        self.limit = int(memory_gb * 2**30)
        self.kept: OrderedDict[str, dict[int, Array]] = OrderedDict()
        self.frame_bytes = int(np.prod(spec.shape))
        self.whole = keyframes * self.frame_bytes <= self.limit

    def __call__(self, name: str, indices: Array) -> Array:
        frames = self.kept.setdefault(name, {})
        self.kept.move_to_end(name)
        missing = [int(i) for i in np.unique(indices) if int(i) not in frames]
        if missing:
            scene = self.source.scene(name)
            for i in range(len(scene)) if self.whole else missing:
                frames[i] = self.source.occupancy(scene, i, self.spec).semantics
            while len(self.kept) > 1 and sum(len(f) for f in self.kept.values()) * self.frame_bytes > self.limit:
                self.kept.popitem(last=False)
        return np.stack([frames[int(i)] for i in indices])
