"""The synthetic town: procedurally generated scenes in the form of nuScenes scenes, so that everything can be tried without a download.

Every scene is a separate town with curved streets, junctions, pavements, buildings, gardens and parks, and reactive traffic (see
`town.traffic`). Occupancy is exact: static objects are a raster of columns in the global frame, into which the boxes of the keyframe are
painted. Traffic drives on the right. The ground is flat at z = 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from iidrive.core import geometry
from iidrive.core.classes import IGNORE
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import Boxes, CommandSource, GridSpec, OccGrid, OccSource, Pose, Scene
from iidrive.data.scene_lists import is_list, read_list
from iidrive.data.town import workers
from iidrive.data.town.cache import BESIDE, SceneCache
from iidrive.data.town.config import ALL_SPLITS, SPLITS, VERSION, TownConfig, scene_counts, scene_seed
from iidrive.data.town.live import LiveScene
from iidrive.data.town.record import paint_boxes
from iidrive.data.town.route import Route
from iidrive.data.town.static import Raster, column_table, rasterise, static_columns
from iidrive.data.town.stored import cache_key, decode, decode_raster, encode, encode_raster
from iidrive.data.town.visibility import visible
from iidrive.data.town.world import World, make_world, route_reach

__all__ = ["SPLITS", "VERSION", "Town", "TownConfig", "scene_seed"]

Array = np.ndarray

SEEN_AROUND_M = 62.0
"""The raster extends this far beyond the ego's route, metres: slightly more than the distance to the corner of an 80 m grid."""

KEPT_RASTERS = 32
"""Number of rasters in memory. Each has about a megabyte and is quickly made again; a closed loop uses several at a time."""


class Town:
    """A `Source` of generated scenes. `scene(name)` depends on the config and the name only."""

    def __init__(self, config: TownConfig | None = None, cache: SceneCache | None = None) -> None:
        """Make a source. `cache` defaults to the default scene cache; it is not used if `config.disk_cache` is false."""
        self.config = config or TownConfig()
        self._cache = (cache or SceneCache()) if self.config.disk_cache else None
        self._key = cache_key(self.config) if self._cache else ""
        self._worlds: OrderedDict[str, World] = OrderedDict()
        self._rasters: OrderedDict[str, Raster] = OrderedDict()
        self._table: tuple[GridSpec, Array] | None = None

    @property
    def name(self) -> str:
        """`town`."""
        return "town"

    @property
    def command_source(self) -> CommandSource:
        """Always `route`: commands come from the planned route."""
        return "route"

    @property
    def occupancy_source(self) -> OccSource:
        """Always `labels`: occupancy is exact."""
        return "labels"

    def identity(self) -> dict[str, object]:
        """Name, version, and the config fields that identify the data."""
        return {"source": self.name, "version": VERSION, **self.config.identity()}

    def missing(self) -> tuple[str, ...]:
        """Empty: generated scenes lack nothing."""
        return ()

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """The split of the same name."""
        return part

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split (`town-train-00000`, …), or of a file of scene names.

        Raises:
            ConfigError: for an unknown split.
            DataError: if a file names a scene that this config does not have.
        """
        if split not in ALL_SPLITS:
            if not is_list(split):
                raise ConfigError(f"town: {unknown('split', split, ALL_SPLITS)} A file with one scene name per line may be given too.")
            for name in (names := read_list(split)):
                scene_seed(self.config, name)
            return names
        return tuple(f"town-{split}-{k:05d}" for k in range(scene_counts(self.config)[split]))

    def scene(self, name: str) -> Scene:
        """One scene, with its planned route. Raises DataError for a name that no split has."""
        world = self._world(name)
        return replace(world.scene, route_m=world.route.points)

    def route(self, name: str) -> Route:
        """Planned route of a scene's ego. Its commands come from this route."""
        return self._world(name).route

    def live(self, name: str, keyframe: int = 0) -> LiveScene:
        """Live simulation of a scene from one of its keyframes on, for an ego that may drive differently."""
        return LiveScene(self.config, self._world(name), keyframe)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Exact occupancy of keyframe `index` of a scene, in that keyframe's ego frame, without a camera mask.

        If `config.visible_only` is true, voxels that are hidden from the LIDAR are unknown (255).
        """
        keyframe = scene.keyframes[index]
        return self.seen_at(scene.name, keyframe.global_T_ego, keyframe.ego_T_lidar, keyframe.boxes, spec)

    def seen_at(self, name: str, global_T_ego: Pose, ego_T_lidar: Pose, boxes: Boxes, spec: GridSpec) -> OccGrid:
        """As `occupancy`, for any ego pose in a scene's surroundings and any boxes (global frame)."""
        grid = self.occupancy_at(name, global_T_ego, boxes, spec)
        if self.config.visible_only:
            grid.semantics[~visible(grid.semantics, spec, ego_T_lidar.translation_m)] = IGNORE
        return grid

    def visible(self, scene: Scene, index: int, spec: GridSpec) -> Bool[Array, "x y z"]:
        """Mask of the voxels of keyframe `index` that are visible from the LIDAR, regardless of `config.visible_only`."""
        keyframe = scene.keyframes[index]
        grid = self.occupancy_at(scene.name, keyframe.global_T_ego, keyframe.boxes, spec)
        return visible(grid.semantics, spec, keyframe.ego_T_lidar.translation_m)

    def occupancy_at(self, name: str, global_T_ego: Pose, boxes: Boxes, spec: GridSpec) -> OccGrid:
        """Exact occupancy, hidden voxels included, for any ego pose in a scene's surroundings and any boxes (global frame)."""
        pose = global_T_ego.matrix
        x, y = spec.centres(0)[:, None], spec.centres(1)[None]
        xy = np.stack([pose[k, 0] * x + pose[k, 1] * y + pose[k, 3] for k in (0, 1)], -1)
        semantics = static_columns(self._raster(name), xy, self._columns(spec))
        paint_boxes(semantics, boxes.moved(geometry.invert(pose), "ego"), spec)
        return OccGrid(semantics, spec, self.occupancy_source)

    def prepare(self, names: Sequence[str], processes: int | None = None, report: Callable[[int, int], None] | None = None) -> None:
        """Generate the scenes that are neither in memory nor on disk, in parallel. Results do not depend on the number of processes.

        Args:
            names: names of the scenes.
            processes: number of processes; None for one per core, or only this process in a job of several processes.
            report: called as `report(done, total)` after each scene.

        Raises:
            DataError: for a name that no split has, or a scene that cannot be generated.
        """
        for name in names:
            scene_seed(self.config, name)
        cache = self._cache
        missing = [n for n in names if n not in self._worlds and not (cache and cache.holds(self._key, n))]
        room = self.config.cached_scenes
        if cache is None:
            missing = missing[:room]  # more would be evicted before they are read
        processes = workers.usual_processes(len(missing)) if processes is None else processes
        if cache and processes == 1:
            missing = workers.from_somewhere(missing)
        made = workers.make(self.config, missing, processes, lambda n: bool(cache and cache.holds(self._key, n)))
        for done, (name, content) in enumerate(made, start=1):
            if content is not None and cache:
                cache.write(self._key, name, content)
            if content is not None and len(self._worlds) < room:
                self._keep(name, decode(content))
            if report:
                report(done, len(missing))

    def _world(self, name: str) -> World:
        if name in self._worlds:
            self._worlds.move_to_end(name)
            return self._worlds[name]
        return self._keep(name, self._stored(name) or self._made(name))

    def _keep(self, name: str, world: World) -> World:
        self._worlds[name] = world
        while len(self._worlds) > self.config.cached_scenes:
            self._worlds.popitem(last=False)
        return world

    def _stored(self, name: str) -> World | None:
        """Read a scene from the disk cache. None if it is absent or damaged; a damaged file is then replaced."""
        scene_seed(self.config, name)
        content = self._cache.read(self._key, name) if self._cache else None
        if content is None:
            return None
        try:
            world = decode(content)
        except DataError:
            return None
        return world if world.scene.name == name else None

    def _made(self, name: str) -> World:
        world = make_world(self.config, name)
        if self._cache:
            self._cache.write(self._key, name, encode(world))
        return world

    def _columns(self, spec: GridSpec) -> Array:
        """Semantics of every column code on a grid's z axis. Cached for the last grid."""
        if self._table is None or self._table[0] != spec:
            self._table = (spec, column_table(spec.lower_m[2], spec.shape[2], spec.voxel_m))
        return self._table[1]

    def _raster(self, name: str) -> Raster:
        if name not in self._rasters:
            self._rasters[name] = self._stored_raster(name) or self._made_raster(name)
            while len(self._rasters) > KEPT_RASTERS:
                self._rasters.popitem(last=False)
        self._rasters.move_to_end(name)
        return self._rasters[name]

    def _stored_raster(self, name: str) -> Raster | None:
        """Read a scene's raster from the disk cache. None if it is absent or damaged."""
        content = self._cache.read(self._key, raster_name(name, self.config)) if self._cache else None
        if content is not None:
            with suppress(DataError):
                return decode_raster(content, self.config.raster_m)
        return None

    def _made_raster(self, name: str) -> Raster:
        world = self._world(name)
        driven = np.array([k.global_T_ego.translation_m[:2] for k in world.scene.keyframes])
        path = np.concatenate([driven, world.route.points[: route_reach(self.config)]])
        low, high = path.min(0) - SEEN_AROUND_M, path.max(0) + SEEN_AROUND_M
        raster = rasterise(world.surroundings(), low, high, self.config.raster_m)
        if self._cache:
            self._cache.write(self._key, raster_name(name, self.config), encode_raster(raster))
        return raster


def raster_name(name: str, config: TownConfig) -> str:
    """Name of a scene's raster in the cache."""
    return f"{name}{BESIDE}{config.raster_m:g}"
