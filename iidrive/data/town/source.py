"""The town: a procedural, seeded driving world in the shape of nuScenes scenes, so that everything can be tried without any download.

Every scene is its own town of curved streets, junctions, pavements, buildings, gardens and parks, with traffic that reacts (see
`town_traffic`). Occupancy is exact by construction: the standing world is a raster of columns fixed in the global frame, and the
boxes of the keyframe are painted into it. Right-hand traffic; flat ground at z = 0.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import STEP_S, CommandSource, GridSpec, OccGrid, OccSource, Scene
from iidrive.data.town.agents import Mover, spawn_ego, spawn_movers, spawn_still, spawn_walkers
from iidrive.data.town.record import assemble, paint_boxes, record, settle
from iidrive.data.town.roads import Roads, build_roads
from iidrive.data.town.route import STEP_M, Route
from iidrive.data.town.static import Raster, Surroundings, build_surroundings, rasterise, static_columns, vector_map
from iidrive.data.town.traffic import Traffic

Array = np.ndarray

VERSION = 1
"""Raised whenever the same config would give other scenes."""

SPLITS = ("train", "val", "test")
SEEN_AROUND_M = 62.0
"""The raster reaches this far beyond the ego's path: the corner of an 80 m grid, and some more."""

KEPT_RASTERS = 4
"""Rasters are quick to make again and large (some 5 MB); scenes are neither (2 MB)."""

WARM_S = 4.0
TOWNS, TRIES_PER_TOWN = 10, 4
"""Some streets are too tight for the traffic drawn, so after a few tries the town is drawn anew."""


@dataclass(frozen=True)
class TownConfig:
    """What the town is like: how many scenes a split has, how long they are, and how busy.

    Attributes:
        seed: other seeds are other towns.
        train_scenes: scenes of the training split.
        val_scenes: scenes of the validation split.
        test_scenes: scenes of the test split.
        keyframes: keyframes of a scene, at 2 Hz; at most 45.
        traffic: factor on the usual number of vehicles that drive.
        pedestrians: factor on the usual number of pedestrians.
        parked: factor on the usual number of parked vehicles.
        raster_m: cell of the standing world's raster, metres.
        cached_scenes: scenes kept in memory; results do not depend on it.

    Raises:
        ConfigError: for counts or sizes that cannot work.
    """

    seed: int = 0
    train_scenes: int = 300
    val_scenes: int = 50
    test_scenes: int = 50
    keyframes: int = 41
    traffic: float = 1.0
    pedestrians: float = 1.0
    parked: float = 1.0
    raster_m: float = 0.25
    cached_scenes: int = 256

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("train_scenes", 0),
            ("val_scenes", 0),
            ("test_scenes", 0),
            ("keyframes", 2),
            ("cached_scenes", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"TownConfig.{name} must be at least {least}; found {getattr(self, name)}.")
        if self.keyframes > 45:
            raise ConfigError(f"TownConfig.keyframes must be at most 45 (22 s, as far as routes reach); found {self.keyframes}.")
        for name in ("traffic", "pedestrians", "parked"):
            if not 0 <= getattr(self, name) <= 3:
                raise ConfigError(f"TownConfig.{name} is a factor from 0 to 3; found {getattr(self, name)}.")
        if not 0.05 <= self.raster_m <= 1.0:
            raise ConfigError(f"TownConfig.raster_m must lie between 0.05 and 1 m; found {self.raster_m}.")


@dataclass(frozen=True)
class _World:
    """What is kept of a scene that was made."""

    scene: Scene
    route: Route
    surroundings: Surroundings


class Town:
    """The source of town scenes; `scene(name)` is a pure function of the config and the name."""

    def __init__(self, config: TownConfig | None = None) -> None:
        self.config = config or TownConfig()
        self._worlds: OrderedDict[str, _World] = OrderedDict()
        self._rasters: OrderedDict[str, Raster] = OrderedDict()

    @property
    def name(self) -> str:
        """`town`."""
        return "town"

    @property
    def command_source(self) -> CommandSource:
        """Commands come from the planned route."""
        return "route"

    @property
    def occupancy_source(self) -> OccSource:
        """Occupancy is exact by construction."""
        return "labels"

    def identity(self) -> dict[str, object]:
        """Name, version and every field of the config that the scenes depend on."""
        fields = {k: v for k, v in asdict(self.config).items() if k != "cached_scenes"}
        return {"source": self.name, "version": VERSION, **fields}

    def missing(self) -> tuple[str, ...]:
        """Nothing: towns are made whole."""
        return ()

    def usual_split(self, part: Literal["train", "test"]) -> str:
        """Towns have splits of these names."""
        return part

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split, `town-train-00000` and on. Raises ConfigError for an unknown split."""
        if split not in SPLITS:
            raise ConfigError(f"town: {unknown('split', split, SPLITS)}")
        return tuple(f"town-{split}-{k:05d}" for k in range(_counts(self.config)[split]))

    def scene(self, name: str) -> Scene:
        """One scene. Raises DataError for a name that the splits do not hold."""
        return self._world(name).scene

    def route(self, name: str) -> Route:
        """The route that the ego of a scene plans to take; its commands are read from it."""
        return self._world(name).route

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Exact occupancy of keyframe `index` of one of this town's scenes, in that keyframe's ego frame (no camera mask)."""
        keyframe = scene.keyframes[index]
        global_T_ego = keyframe.global_T_ego.matrix
        x, y = spec.centres(0)[:, None], spec.centres(1)[None]
        xy = np.stack([global_T_ego[k, 0] * x + global_T_ego[k, 1] * y + global_T_ego[k, 3] for k in (0, 1)], -1)
        semantics = static_columns(self._raster(scene.name), xy, spec)
        paint_boxes(semantics, keyframe.boxes.moved(geometry.invert(global_T_ego), "ego"), spec)
        return OccGrid(semantics, spec, self.occupancy_source)

    def _world(self, name: str) -> _World:
        if name not in self._worlds:
            self._worlds[name] = make_world(self.config, name)
            while len(self._worlds) > self.config.cached_scenes:
                self._worlds.popitem(last=False)
        self._worlds.move_to_end(name)
        return self._worlds[name]

    def _raster(self, name: str) -> Raster:
        if name not in self._rasters:
            world = self._world(name)
            path = np.array([k.global_T_ego.translation_m[:2] for k in world.scene.keyframes])
            low, high = path.min(0) - SEEN_AROUND_M, path.max(0) + SEEN_AROUND_M
            self._rasters[name] = rasterise(world.surroundings, low, high, self.config.raster_m)
            while len(self._rasters) > KEPT_RASTERS:
                self._rasters.popitem(last=False)
        self._rasters.move_to_end(name)
        return self._rasters[name]


def _counts(config: TownConfig) -> dict[str, int]:
    return dict(zip(SPLITS, (config.train_scenes, config.val_scenes, config.test_scenes), strict=True))


def scene_seed(config: TownConfig, name: str) -> tuple[int, int, int]:
    """(seed, split number, scene number): what all chance in a scene grows from, different for any two scenes of any two splits.

    Raises:
        DataError: for a name that is not `town-<split>-<number>` with a number that the split holds.
    """
    parts = name.split("-")
    counts = _counts(config)
    good = (
        len(parts) == 3 and parts[0] == "town" and parts[1] in SPLITS and len(parts[2]) == 5 and parts[2].isascii() and parts[2].isdigit()
    )
    if not good or int(parts[2]) >= counts[parts[1]]:
        held = ", ".join(f"{count} {split}" for split, count in counts.items())
        raise DataError(f"the town has no scene '{name}'; names are like town-train-00000, and this town holds {held} scenes.")
    return config.seed, SPLITS.index(parts[1]), int(parts[2])


@dataclass(frozen=True)
class _Place:
    """A town before its traffic: the roads, the ego with its route, and what stands around it."""

    roads: Roads
    ego: Mover
    around: Surroundings


def _place(config: TownConfig, seed: tuple[int, ...]) -> _Place:
    rng = np.random.default_rng(seed)
    roads = build_roads(rng)
    ego = spawn_ego(rng, roads)
    reach = int((WARM_S + config.keyframes * STEP_S) * 9.0 / STEP_M)
    return _Place(roads, ego, build_surroundings(rng, roads, ego.route.points[:reach:12]))


def make_world(config: TownConfig, name: str) -> _World:
    """Build a town, let its traffic run, and try again with other traffic until nobody has touched anybody.

    Raises:
        DataError: when no try succeeds (too dense a config).
    """
    seed = scene_seed(config, name)
    for town in range(TOWNS):
        place = _place(config, (*seed, 0, town))
        roads, around = place.roads, place.around
        for attempt in range(TRIES_PER_TOWN):
            rng = np.random.default_rng((*seed, 1, town, attempt))
            movers = spawn_movers(rng, roads, place.ego, config.traffic)
            walkers = spawn_walkers(rng, roads, around, place.ego, config.pedestrians)
            still = spawn_still(rng, roads, around, config.parked, config.pedestrians)
            tracks = Traffic(roads, movers, walkers).run(WARM_S, config.keyframes)
            cast = settle(assemble(rng, movers, walkers, still, tracks), tracks)
            if cast is not None:
                return _World(record(name, cast, tracks, place.ego.route, vector_map(roads, around)), place.ego.route, around)
    raise DataError(
        f"scene {name}: all of {TOWNS * TRIES_PER_TOWN} tries ended in a collision; lower TownConfig.traffic or TownConfig.pedestrians."
    )
