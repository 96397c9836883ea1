"""Branches of recorded scenes: from a keyframe on, the ego follows another plan for three seconds, and the others react to it.

They are the training labels of the reaction net (models/reactions.py). At each keyframe that has a full future, one plan is drawn: the ego
follows its route at its present speed plus a constant acceleration. The acceleration is drawn by scene and keyframe, without regard to what
comes next, so a branch shows what the plan causes.

Shapes: K keyframes, H = S + 1 times (now, then S future steps), X, Y cells.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
import torch
from jaxtyping import Bool, Float32, UInt8
from safetensors import SafetensorError

from iidrive.core import geometry
from iidrive.core.config_io import to_plain
from iidrive.core.scene import FUTURE_STEPS, ROUTE_BEHIND, ROUTE_STEP_M, STEP_S, GridSpec
from iidrive.data.clips import EgoTrack
from iidrive.data.routes import windows
from iidrive.data.town.cache import BESIDE, SceneCache
from iidrive.data.town.config import scene_seed
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.data.town.source import Town
from iidrive.data.town.stored import cache_key
from iidrive.models.candidates import BasePath, along, speed_profiles
from iidrive.runtime.sources import source_digest
from iidrive.scoring.driving.tracking import STEPS, CarState, follow, reference
from iidrive.simulation.driven import LEVER_M, STEPS_PER_KEYFRAME
from iidrive.simulation.foresight import branched_occupancy

Array = np.ndarray

ADDED_MPS2 = (-6.0, 3.0)
"""Range of the accelerations that are drawn, m/s²."""

_REJOINS_M = 4.0
"""The ego returns to its route within this distance, metres."""


@dataclass(frozen=True)
class SceneBranches:
    """The branches of one scene.

    Attributes:
        driven: (K,S,2) plan of the ego in each branch: LIDAR_TOP in the lidar frame of its keyframe, metres.
        taken: (K,H,X,Y) true for cells that a road user occupies, now and at every step of the branch, ego frame of its keyframe.
    """

    driven: Float32[Array, "k s 2"]
    taken: Bool[Array, "k h x y"]


class Branches:
    """Clip labels `driven` and `taken` by (scene name, keyframe); see `core.batch.Targets`.

    They are made once, and kept beside the scene in the scene cache, with a checksum.
    """

    def __init__(self, town: Town, grid: GridSpec, cache: SceneCache | None = None) -> None:
        """`grid`: grid of `taken`. `cache`: default: the default scene cache; not used if the town's config has `disk_cache` false."""
        self.town, self.grid = town, grid
        self._cache = (cache or SceneCache()) if town.config.disk_cache else None
        self._key = cache_key(town.config) if self._cache else ""
        decides = json.dumps([to_plain(grid), source_digest(_DECIDE)], sort_keys=True)
        self._suffix = f"{BESIDE}branches-{hashlib.sha256(decides.encode()).hexdigest()[:16]}"
        self._kept: dict[str, tuple[Array, Array]] = {}

    def __call__(self, name: str, index: int) -> dict[str, Array]:
        driven, packed = self._of(name)
        cells = (1 + FUTURE_STEPS, *self.grid.shape[:2])
        return {"driven": driven[index], "taken": np.unpackbits(packed[index], count=int(np.prod(cells))).astype(bool).reshape(cells)}

    def prepare(self, name: str) -> None:
        """Make or read the branches of a scene."""
        self._of(name)

    def _of(self, name: str) -> tuple[Array, Array]:
        """Plans (K,S,2) and packed cells (K,bytes) of a scene."""
        if name not in self._kept:
            self._kept[name] = self._stored(name) or self._made(name)
        return self._kept[name]

    def _stored(self, name: str) -> tuple[Array, Array] | None:
        content = self._cache.read(self._key, name + self._suffix) if self._cache else None
        if content is None:
            return None
        with suppress(SafetensorError, KeyError):
            found = safetensors.numpy.load(content)
            if (found["sum"] == _sum(found["driven"], found["taken"])).all():
                return found["driven"], found["taken"]
        return None

    def _made(self, name: str) -> tuple[Array, Array]:
        made = branches(self.town, name, self.grid)
        packed = np.packbits(made.taken.reshape(len(made.taken), -1), axis=1)
        if self._cache:
            arrays = {"driven": made.driven, "taken": packed, "sum": _sum(made.driven, packed)}
            self._cache.write(self._key, name + self._suffix, safetensors.numpy.save(arrays))
        return made.driven, packed


def _sum(driven: Array, packed: Array) -> UInt8[Array, "32"]:
    """SHA-256 of the arrays of a file."""
    return np.frombuffer(hashlib.sha256(driven.tobytes() + packed.tobytes()).digest(), np.uint8)


def branches(town: Town, name: str, grid: GridSpec) -> SceneBranches:
    """Branch a scene at every keyframe with a full future (about 40 ms each)."""
    track = EgoTrack.of(town.scene(name))
    count = max(len(track.tokens) - FUTURE_STEPS, 0)
    if not count:
        return SceneBranches(np.zeros((0, FUTURE_STEPS, 2), np.float32), np.zeros((0, 1 + FUTURE_STEPS, *grid.shape[:2]), bool))
    live, starts = town.live(name), []
    for _ in range(count):
        starts.append(live.copy())
        for _ in range(STEPS_PER_KEYFRAME):
            live.step()
    egos = [start.ego for start in starts]
    speed = np.array([ego.speed_mps for ego in egos])
    added = np.array([np.random.default_rng((*scene_seed(town.config, name), 8, k)).uniform(*ADDED_MPS2) for k in range(count)])
    plans = plans_along(windows(track)[:count], speed, added)
    state = CarState.rolling(np.stack([ego.xy_m for ego in egos]), np.array([ego.heading_rad for ego in egos]), speed)
    states = follow(state, reference(plans.astype(np.float64), LEVER_M), STEPS)
    taken = [
        branched_occupancy(start, [one.select(np.array([k])) for one in states], track.global_T_ego[k], grid)
        for k, start in enumerate(starts)
    ]
    return SceneBranches(plans, np.stack(taken))


def plans_along(route_m: Float32[Array, "k r 2"], speed_mps: Array, added_mps2: Array) -> Float32[Array, "k s 2"]:
    """Plans along the route at the present speed plus a constant acceleration. `route_m` is in the ego frame, plans are in the lidar frame."""
    first = ROUTE_BEHIND + round(_REJOINS_M / ROUTE_STEP_M)
    lidar_T_ego = geometry.invert(EGO_T_LIDAR.matrix)
    ahead = route_m[:, first :: round(1 / ROUTE_STEP_M)].astype(np.float64)
    plans = []
    for line, speed, added in zip(ahead, speed_mps, added_mps2, strict=True):
        line = line[np.isfinite(line).all(-1)]
        if not len(line):  # the route ends here: straight on
            line = np.array([[_REJOINS_M, 0.0]])
        flat = np.concatenate([line, np.zeros((len(line), 1))], -1)
        own = torch.from_numpy(geometry.apply(lidar_T_ego, flat)[None, :, :2].astype(np.float32))
        gone = torch.arange(1, FUTURE_STEPS + 1, dtype=torch.float32) * (float(speed) * STEP_S)
        base = BasePath(along(own, gone[None, None])[:, 0], own)
        plans.append(speed_profiles(base, torch.tensor([float(added)]))[0, 0].numpy())
    return np.stack(plans)


_DECIDE = (
    *("core/*.py", "data/clips.py", "data/source.py", "data/routes.py", "data/box_tracks.py", "models/candidates.py", "models/layers.py"),
    *("models/repeatable.py", "scoring/driving/tracking.py", "simulation/branches.py", "simulation/driven.py", "simulation/foresight.py"),
)
"""Source files that decide a branch, besides those of the town, which are part of the scene's key."""
