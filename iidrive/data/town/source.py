"""The town: a procedural, seeded driving world in the shape of nuScenes scenes, so that everything can be tried without any download.

Every scene is its own town of curved streets, junctions, pavements, buildings, gardens and parks, with traffic that reacts (see
`town.traffic`). Occupancy is exact by construction: the standing world is a raster of columns fixed in the global frame, and the
boxes of the keyframe are painted into it. Right-hand traffic; flat ground at z = 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from iidrive.core import geometry
from iidrive.core.classes import IGNORE
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import Boxes, CommandSource, GridSpec, OccGrid, OccSource, Pose, Scene
from iidrive.data.scene_lists import is_list, read_list
from iidrive.data.town import workers
from iidrive.data.town.cache import SceneCache
from iidrive.data.town.config import ALL_SPLITS, SPLITS, VERSION, TownConfig, scene_counts, scene_seed
from iidrive.data.town.live import LiveScene
from iidrive.data.town.record import paint_boxes
from iidrive.data.town.route import Route
from iidrive.data.town.static import Raster, column_table, rasterise, static_columns
from iidrive.data.town.stored import cache_key, decode, encode
from iidrive.data.town.visibility import visible
from iidrive.data.town.world import World, make_world, route_reach

__all__ = ["SPLITS", "VERSION", "Town", "TownConfig", "scene_seed"]

Array = np.ndarray

SEEN_AROUND_M = 62.0
"""The raster reaches this far beyond the ego's route: the corner of an 80 m grid, and some more."""

KEPT_RASTERS = 32
"""Rasters are quick to make again, and a megabyte each; a closed loop drives some scenes side by side."""


class Town:
    """The source of town scenes; `scene(name)` is a pure function of the config and the name."""

    def __init__(self, config: TownConfig | None = None, cache: SceneCache | None = None) -> None:
        """Towns of a config. Without `disk_cache` nothing is read from or written to a cache; the usual one stands in for `cache`."""
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
        """Commands come from the planned route."""
        return "route"

    @property
    def occupancy_source(self) -> OccSource:
        """Occupancy is exact by construction."""
        return "labels"

    def identity(self) -> dict[str, object]:
        """Name, version and every field of the config that the scenes depend on."""
        return {"source": self.name, "version": VERSION, **self.config.identity()}

    def missing(self) -> tuple[str, ...]:
        """Nothing: towns are made whole."""
        return ()

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """Towns have splits of these names."""
        return part

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split, `town-train-00000` and on, or of a file of scene names.

        Raises:
            ConfigError: for an unknown split.
            DataError: if a file names a scene that these towns do not hold.
        """
        if split not in ALL_SPLITS:
            if not is_list(split):
                raise ConfigError(f"town: {unknown('split', split, ALL_SPLITS)} A file with one scene name a line will do too.")
            for name in (names := read_list(split)):
                scene_seed(self.config, name)
            return names
        return tuple(f"town-{split}-{k:05d}" for k in range(scene_counts(self.config)[split]))

    def scene(self, name: str) -> Scene:
        """One scene. Raises DataError for a name that the splits do not hold."""
        return self._world(name).scene

    def route(self, name: str) -> Route:
        """The route that the ego of a scene plans to take; its commands are read from it."""
        return self._world(name).route

    def live(self, name: str, keyframe: int = 0) -> LiveScene:
        """A scene set going again from one of its keyframes, for an ego that may drive otherwise than it did."""
        return LiveScene(self.config, self._world(name), keyframe)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Exact occupancy of keyframe `index` of one of this town's scenes, in that keyframe's ego frame (no camera mask).

        With `visible_only` in the config, voxels that are hidden from the LIDAR are unknown (255).
        """
        keyframe = scene.keyframes[index]
        return self.seen_at(scene.name, keyframe.global_T_ego, keyframe.ego_T_lidar, keyframe.boxes, spec)

    def seen_at(self, name: str, global_T_ego: Pose, ego_T_lidar: Pose, boxes: Boxes, spec: GridSpec) -> OccGrid:
        """The same around an ego anywhere in a scene's surroundings, with these road users (boxes in the global frame)."""
        grid = self.occupancy_at(name, global_T_ego, boxes, spec)
        if self.config.visible_only:
            grid.semantics[~visible(grid.semantics, spec, ego_T_lidar.translation_m)] = IGNORE
        return grid

    def visible(self, scene: Scene, index: int, spec: GridSpec) -> Bool[Array, "x y z"]:
        """Voxels of keyframe `index` that nothing hides from the LIDAR, whatever the config says: for inputs that know no more than that."""
        keyframe = scene.keyframes[index]
        grid = self.occupancy_at(scene.name, keyframe.global_T_ego, keyframe.boxes, spec)
        return visible(grid.semantics, spec, keyframe.ego_T_lidar.translation_m)

    def occupancy_at(self, name: str, global_T_ego: Pose, boxes: Boxes, spec: GridSpec) -> OccGrid:
        """Exact occupancy around an ego anywhere in a scene's surroundings, with these road users (boxes in the global frame)."""
        pose = global_T_ego.matrix
        x, y = spec.centres(0)[:, None], spec.centres(1)[None]
        xy = np.stack([pose[k, 0] * x + pose[k, 1] * y + pose[k, 3] for k in (0, 1)], -1)
        semantics = static_columns(self._raster(name), xy, self._columns(spec))
        paint_boxes(semantics, boxes.moved(geometry.invert(pose), "ego"), spec)
        return OccGrid(semantics, spec, self.occupancy_source)

    def prepare(self, names: Sequence[str], processes: int | None = None, report: Callable[[int, int], None] | None = None) -> None:
        """Make those scenes that neither memory nor the disk holds, spread over the machine's cores.

        What comes out is the same for any number of processes. `processes` defaults to one a core, and to this process alone inside a job
        of several. `report(done, of)` hears of every scene that was made.

        Raises:
            DataError: for a name that the splits do not hold, or a scene that cannot be made.
        """
        for name in names:
            scene_seed(self.config, name)
        cache = self._cache
        missing = [n for n in names if n not in self._worlds and not (cache and cache.holds(self._key, n))]
        room = self.config.cached_scenes
        if cache is None:
            missing = missing[:room]  # more would be forgotten before they are read
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
        """What the disk holds of a scene; None where it holds nothing, or something damaged, which is then replaced."""
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
        """Semantics of every column code on a grid's z axis, kept for the grid that was used last."""
        if self._table is None or self._table[0] != spec:
            self._table = (spec, column_table(spec.lower_m[2], spec.shape[2], spec.voxel_m))
        return self._table[1]

    def _raster(self, name: str) -> Raster:
        if name not in self._rasters:
            world = self._world(name)
            driven = np.array([k.global_T_ego.translation_m[:2] for k in world.scene.keyframes])
            path = np.concatenate([driven, world.route.points[: route_reach(self.config)]])
            low, high = path.min(0) - SEEN_AROUND_M, path.max(0) + SEEN_AROUND_M
            self._rasters[name] = rasterise(world.surroundings(), low, high, self.config.raster_m)
            while len(self._rasters) > KEPT_RASTERS:
                self._rasters.popitem(last=False)
        self._rasters.move_to_end(name)
        return self._rasters[name]
