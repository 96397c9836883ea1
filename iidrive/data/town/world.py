"""Making one scene: build a town, let its traffic run, and try again with other traffic until nobody has touched anybody."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from iidrive.core.errors import DataError
from iidrive.core.scene import STEP_S, Scene
from iidrive.data.town.agents import Mover, Still, Walker, spawn_ego, spawn_movers, spawn_still, spawn_walkers
from iidrive.data.town.config import TownConfig, scene_seed
from iidrive.data.town.lanes import vector_map
from iidrive.data.town.record import Cast, assemble, record, settle
from iidrive.data.town.roads import Roads, build_roads
from iidrive.data.town.route import STEP_M, Route
from iidrive.data.town.static import Surroundings, build_surroundings
from iidrive.data.town.traffic import Tracks, Traffic

Array = np.ndarray

WARM_S = 4.0
TOWNS, TRIES_PER_TOWN = 10, 4
"""Some streets are too tight for the traffic drawn, so after a few tries the town is drawn anew."""


@dataclass(frozen=True)
class World:
    """A scene that was made: the ego's rear axle and heading (x, y, yaw) at every keyframe, its route, and what stands around it.

    `draw` (town, attempt) says which try it was and `kept` who of everyone then is in the scene, so that its traffic can be set going again.
    """

    scene: Scene
    ego: Float[Array, "t 3"]
    route: Route
    surroundings: Surroundings
    draw: tuple[int, int]
    kept: Bool[Array, "n"]


@dataclass(frozen=True)
class Place:
    """A town before its traffic: the roads, the ego with its route, and what stands around it."""

    roads: Roads
    ego: Mover
    around: Surroundings


@dataclass(frozen=True)
class Players:
    """Everyone in a town before it starts to move; `heights_m` are the walkers'."""

    movers: list[Mover]
    walkers: list[Walker]
    still: list[Still]
    heights_m: Float[Array, "w"]

    def cast(self, tracks: Tracks) -> Cast:
        """Everyone but the ego where the tracks have them."""
        return assemble(self.movers, self.walkers, self.heights_m, self.still, tracks)


def make_place(config: TownConfig, seed: tuple[int, int, int], town: int) -> Place:
    """The town that a scene's seed gives at the `town`-th try."""
    rng = np.random.default_rng((*seed, 0, town))
    roads = build_roads(rng)
    ego = spawn_ego(rng, roads)
    reach = int((WARM_S + config.keyframes * STEP_S) * 9.0 / STEP_M)
    return Place(roads, ego, build_surroundings(rng, roads, ego.route.points[:reach:12]))


def make_players(config: TownConfig, seed: tuple[int, int, int], place: Place, town: int, attempt: int) -> Players:
    """Who is in that town at the `attempt`-th try."""
    rng = np.random.default_rng((*seed, 1, town, attempt))
    movers = spawn_movers(rng, place.roads, place.ego, config.traffic)
    walkers = spawn_walkers(rng, place.roads, place.around, place.ego, config.pedestrians)
    still = spawn_still(rng, place.roads, place.around, config.parked, config.pedestrians)
    return Players(movers, walkers, still, rng.uniform(1.55, 1.9, len(walkers)))


def make_world(config: TownConfig, name: str) -> World:
    """One scene, a pure function of the config and the name.

    Raises:
        DataError: for a name that the splits do not hold, and when no try succeeds (too dense a config).
    """
    seed = scene_seed(config, name)
    for town in range(TOWNS):
        place = make_place(config, seed, town)
        for attempt in range(TRIES_PER_TOWN):
            players = make_players(config, seed, place, town, attempt)
            tracks = Traffic(place.roads, players.movers, players.walkers).run(WARM_S, config.keyframes)
            cast = players.cast(tracks)
            kept = settle(cast, tracks)
            if kept is not None:
                scene = record(name, cast.select(kept), tracks, place.ego.route, vector_map(place.roads, place.around))
                ego = np.concatenate([tracks.axle[:, 0], tracks.heading[:, :1]], 1)
                return World(scene, ego, place.ego.route, place.around, (town, attempt), kept)
    raise DataError(
        f"scene {name}: all of {TOWNS * TRIES_PER_TOWN} tries ended in a collision; lower TownConfig.traffic or TownConfig.pedestrians."
    )
