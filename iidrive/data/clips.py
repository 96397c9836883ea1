"""Dataset of clips and its batches. The training order depends only on the seed.

A sample is a keyframe with past and future keyframes. Occupancy comes from the source and codes from a token cache. Both are read when a
batch is made.
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
from iidrive.data.source import Source, intended_path, route_line, scenes, true_path

Array = np.ndarray
Frames = Callable[[str, Array], Array]
"""(scene name, n keyframe indices) → occupancy (n,X,Y,Z) uint8 or codes (n,m)."""

Labels = Callable[[str, int], Mapping[str, Array]]
"""(scene name, keyframe) → additional targets of that sample, with the names of `Targets`."""


@dataclass(frozen=True)
class EgoTrack:
    """Ego data of the T keyframes of a scene.

    Attributes:
        name: name of the scene.
        tokens: T sample tokens.
        global_T_ego: (T,4,4) ego poses.
        ego_T_lidar: (T,4,4) LIDAR_TOP poses in the ego frame.
        time_s: (T,) times, seconds.
        command: (T,) index into `MANOEUVRES`.
        path: (T,6,2) true path of each keyframe (see `source.true_path`), metres.
        path_valid: (T,6) false after the scene's end.
        intended: (T,6,2) path that the expert driver would have taken from each keyframe (see `source.intended_path`), metres.
        route_m: (n,2) line that the ego is to follow (see `source.route_line`), global frame, metres.
    """

    name: str
    tokens: tuple[str, ...]
    global_T_ego: Array
    ego_T_lidar: Array
    time_s: Array
    command: Array
    path: Array
    path_valid: Array
    intended: Array
    route_m: Array

    def true_path(self, index: int) -> Trajectory:
        """The true path from keyframe `index` on (see `source.true_path`)."""
        return Trajectory(self.path[index], "lidar", "lidar_top", self.path_valid[index])

    @staticmethod
    def of(scene: Scene) -> EgoTrack:
        """The track of a scene."""
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
            route_line(scene),
        )


def read_tracks(source: Source, of: str | Sequence[str]) -> list[EgoTrack]:
    """Ego tracks of all scenes of a split (a name), or of some scenes (a list of names)."""
    if isinstance(of, str):
        return [EgoTrack.of(scene) for scene in scenes(source, of)]
    source.prepare(of)
    return [EgoTrack.of(source.scene(name)) for name in of]


def keyframes(tracks: Iterable[EgoTrack]) -> int:
    """Total number of keyframes."""
    return sum(len(track.tokens) for track in tracks)


@dataclass(frozen=True)
class ClipSpec:
    """Which clips a dataset has.

    Attributes:
        past: keyframes before the current one.
        future: keyframes after it.
        full_future: keep only samples whose six future keyframes all exist.
        first: index of the first keyframe of a scene that may be the current one.
        intended: use the expert's intended path as the target instead of the driven one. For training only; scores use the driven path.
    """

    past: int = 5
    future: int = FUTURE_STEPS
    full_future: bool = True
    first: int = 0
    intended: bool = False


@dataclass(frozen=True)
class Mixture:
    """How samples of several sources are drawn.

    Attributes:
        names: names of the sources.
        of_track: index of each track's source in `names`.
        shares: relative shares of the sources, above 0; empty for shares proportional to their numbers of samples.
    """

    names: tuple[str, ...]
    of_track: tuple[int, ...]
    shares: tuple[float, ...] = ()

    def drawn(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Number of samples of each source in an epoch, for `sizes` available ones. They sum to the total size: the shares by largest remainder, at
        least one each."""
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
    """All samples of some scenes. `batch(rows)` returns the samples at these rows as tensors, `order` gives the training order of rows.

    Args:
        tracks: ego tracks of the scenes.
        spec: which clips.
        occupancy: reads occupancy; None for none.
        codes: reads token indices; None for none.
        future: whether occupancy and codes are also read for future keyframes, as targets.
        labels: reads additional targets; None for none.
        mixture: how samples of several sources are drawn; None for a single source.

    Raises:
        DataError: if no sample fits.
    """

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
        """The same samples without occupancy and labels, for planning, which reads codes only."""
        other = copy.copy(self)
        other.occupancy, other.future, other.labels = None, False, None
        return other

    def with_labels(self, labels: Labels) -> ClipDataset:
        """The same samples with additional targets."""
        other = copy.copy(self)
        other.labels = labels
        return other

    def order(self, seed: int, start: int, count: int) -> Array:
        """`count` rows of the training order from position `start` on. They depend on the seed and the position only.

        An epoch draws `drawn` samples of each source, mixed by a permutation that depends on (seed, epoch). The samples of each source follow
        permutations of their own, so no sample is drawn again before all samples of its source were drawn.
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
        """Some samples as tensors.

        Args:
            rows: indices of the samples.
            draws: (len(rows), future) uniform numbers for `Targets.draw`; None for zeros.
            progress: fraction of the training already done, 0 to 1.
            place: index of each sample in the global batch, if this is a part of one.
        """
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
        """Frames of one sample's keyframes. Keyframes before the first or after the last repeat the first or last."""
        number, now = self.samples[row]
        track = self.tracks[number]
        last = now + self.spec.future if self.future else now
        return frames(track.name, np.arange(now - self.spec.past, last + 1).clip(0, len(track.tokens) - 1))


def scored_clips(
    tracks: Sequence[EgoTrack], codes: Frames | None = None, source: Source | None = None, grid: GridSpec | None = None
) -> ClipDataset:
    """The samples that are scored: every keyframe with a full future. With occupancy if a source and a grid are given."""
    occupancy = OccupancyFrames(source, grid, keyframes(tracks)) if source is not None and grid is not None else None
    return ClipDataset(tracks, ClipSpec(), occupancy, codes, future=occupancy is not None)


def _cut(track: EgoTrack, now: Array, spec: ClipSpec) -> tuple[dict[str, Array], dict[str, Array]]:
    """Arrays of the samples at keyframes `now` (n,) of a scene: two dicts with the names of `Inputs` and `Targets`."""
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
    """`count` rows of the training order from position `start` on. Each epoch is a permutation that depends on (seed, epoch) only."""
    return _permuted(samples, (seed,), np.arange(start, start + count))


def _permuted(samples: int, seed: tuple[int, ...], places: Array) -> Array:
    """Rows at the positions `places` of an order in which each epoch is a permutation that depends on (*seed, epoch) only."""
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
    """(count, width) uniform numbers for positions start … start + count - 1 of the training order.

    Each position's numbers depend on the seed and the position only, not on which process computes them.
    """
    return np.stack([np.random.default_rng([seed, 7, place]).random(width) for place in range(start, start + count)])


class OccupancyFrames:
    """Occupancy of a source's scenes on one grid. Caches the most recently used scenes, at most `memory_gb` GiB.

    If all `keyframes` (their total number) fit into the cache, a scene is read completely on first use, so each scene is opened once.
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
