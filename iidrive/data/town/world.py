"""Generation of one scene: build a town, simulate its traffic, and try again until there is no collision.

A scene that is built around a kind of conflict must also contain it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from iidrive.core.errors import DataError
from iidrive.core.scene import STEP_S, Conflict, Scene
from iidrive.data.town.agents import Mover, Still, Walker, spawn_ego, spawn_movers, spawn_still, spawn_walkers
from iidrive.data.town.config import FACTORS, HARD, TownConfig, scene_seed
from iidrive.data.town.disturb import lapsing, swerving
from iidrive.data.town.hard import AHEAD_S, HARD_KINDS, LEAST_DRIVEN_M, HardKind, Stage, evidence, stage
from iidrive.data.town.lanes import vector_map
from iidrive.data.town.record import Cast, assemble, record, settle, track_names
from iidrive.data.town.roads import Roads, build_roads
from iidrive.data.town.route import STEP_M, Route
from iidrive.data.town.static import Surroundings, build_surroundings
from iidrive.data.town.traffic import DT_S, Tracks, Traffic

Array = np.ndarray

WARM_S = 4.0
_FASTEST_MPS = 9.0
TOWNS, TRIES_PER_TOWN = 10, 4
"""Maximum number of towns per scene, and of attempts per town. Some streets are too narrow for their traffic, so another town is drawn."""
HARD_TOWNS = 200
"""Maximum number of towns per scene with a conflict. Many towns have no place for it; this is checked before anything is built."""


@dataclass(frozen=True)
class World:
    """A generated scene.

    Attributes:
        scene: the scene.
        ego: (t,3) rear axle and heading of the ego at every keyframe (x, y, yaw), global frame, metres and radians.
        route: the ego's route.
        surroundings: function that returns the static surroundings.
        draw: (town, attempt) that gave the scene, to simulate its traffic again.
        kept: (n,) mask of the road users that are in the scene.
    """

    scene: Scene
    ego: Float[Array, "t 3"]
    route: Route
    surroundings: Callable[[], Surroundings]
    draw: tuple[int, int]
    kept: Bool[Array, "n"]


@dataclass(frozen=True)
class Place:
    """A town without traffic: the roads, the ego with its route, and the static surroundings of that route."""

    roads: Roads
    ego: Mover
    around: Surroundings


@dataclass(frozen=True)
class Players:
    """All road users of a scene at the start.

    Attributes:
        roads: the roads that they use.
        around: static surroundings of the ego's route.
        movers: vehicles and cyclists; the first is the ego.
        walkers: pedestrians.
        still: static boxes.
        heights_m: (w,) heights of the pedestrians.
        stage: the staged conflict; None if there is none.
    """

    roads: Roads
    around: Surroundings
    movers: list[Mover]
    walkers: list[Walker]
    still: list[Still]
    heights_m: Float[Array, "w"]
    stage: Stage | None

    def traffic(self) -> Traffic:
        """The traffic simulation before its first step."""
        return Traffic(self.roads, self.movers, self.walkers, self.stage.blocks if self.stage else ())

    @property
    def disturbed(self) -> bool:
        """Whether the ego is disturbed by swerves or lapses."""
        return self.movers[0].swerve_m is not None or bool(self.movers[0].lapses)

    def cast(self, tracks: Tracks) -> Cast:
        """All road users except the ego, at the positions in `tracks`."""
        return assemble(self.movers, self.walkers, self.heights_m, self.still, tracks)


def hard_kind(config: TownConfig, name: str) -> HardKind | None:
    """Kind of conflict that a scene is built around; None for none.

    The split `hard` cycles through the kinds. In `train` and `val` they are drawn with the fractions in the config.
    """
    seed = scene_seed(config, name)
    split = name.split("-")[1]
    if split == HARD:
        return HARD_KINDS[seed[2] % len(HARD_KINDS)]
    shares = np.cumsum([getattr(config, factor) for factor in FACTORS])
    if split == "test" or shares[-1] == 0:
        return None
    drawn = int(np.searchsorted(shares, np.random.default_rng((*seed, 2)).random(), side="right"))
    return HARD_KINDS[drawn] if drawn < len(HARD_KINDS) else None


def make_place(config: TownConfig, name: str, town: int) -> Place | None:
    """The `town`-th town for a scene's seed; None if it has no place for the scene's kind of conflict."""
    seed, kind = scene_seed(config, name), hard_kind(config, name)
    rng = np.random.default_rng((*seed, 0, town))
    roads = build_roads(rng)
    ego = spawn_ego(rng, roads)
    if kind and not any(_stage(seed, kind, roads, ego, town, attempt) for attempt in range(TRIES_PER_TOWN)):
        return None
    return Place(roads, ego, _surroundings(config, rng, roads, ego))


def _surroundings(config: TownConfig, rng: np.random.Generator, roads: Roads, ego: Mover) -> Surroundings:
    return build_surroundings(rng, roads, ego.route.points[: route_reach(config) : 12])


def route_reach(config: TownConfig) -> int:
    """Maximum number of route samples that the ego can pass in a scene. Surroundings are built around these."""
    return int((WARM_S + config.keyframes * STEP_S) * _FASTEST_MPS / STEP_M)


def _stage(seed: tuple[int, int, int], kind: HardKind, roads: Roads, ego: Mover, town: int, attempt: int) -> Stage | None:
    return stage(kind, np.random.default_rng((*seed, 3, town, attempt)), roads, ego, WARM_S)


def make_players(config: TownConfig, name: str, place: Place, town: int, attempt: int) -> Players | None:
    """The road users of a town at the `attempt`-th attempt; None if the conflict cannot be staged."""
    seed, kind = scene_seed(config, name), hard_kind(config, name)
    rng = np.random.default_rng((*seed, 1, town, attempt))
    if kind is None:
        movers = spawn_movers(rng, place.roads, _at_the_wheel(config, name, place), config.traffic)
        walkers = spawn_walkers(rng, place.roads, place.around, place.ego, config.pedestrians)
        still = spawn_still(rng, place.roads, place.around, config.parked, config.pedestrians)
        return Players(place.roads, place.around, movers, walkers, still, rng.uniform(1.55, 1.9, len(walkers)), None)
    set_up = _stage(seed, kind, place.roads, place.ego, town, attempt)
    if set_up is None:
        return None
    movers = spawn_movers(rng, set_up.roads, set_up.ego, config.traffic, set_up.movers, set_up.reserved)
    around = place.around
    if set_up.ego.route.lanes != place.ego.route.lanes:  # a left turn takes the ego elsewhere in the town
        around = _surroundings(config, np.random.default_rng((*seed, 6, town, attempt)), set_up.roads, set_up.ego)
    walkers = [*set_up.walkers, *spawn_walkers(rng, set_up.roads, around, set_up.ego, config.pedestrians)]
    still = [*set_up.still, *set_up.room(spawn_still(rng, set_up.roads, around, config.parked, config.pedestrians))]
    return Players(set_up.roads, around, movers, walkers, still, rng.uniform(1.55, 1.9, len(walkers)), set_up)


def _at_the_wheel(config: TownConfig, name: str, place: Place) -> Mover:
    """The ego of a scene without a conflict. In some training scenes it is disturbed."""
    ego, seed = place.ego, scene_seed(config, name)
    if name.split("-")[1] != "train":
        return ego
    if config.swerves and (rng := np.random.default_rng((*seed, 4))).random() < config.swerves:
        ego = replace(ego, swerve_m=swerving(rng, ego.route))
    if config.lapses and (rng := np.random.default_rng((*seed, 5))).random() < config.lapses:
        ego = replace(ego, lapses=lapsing(rng, WARM_S + config.keyframes * STEP_S))
    return ego


def make_world(config: TownConfig, name: str) -> World:
    """Generate one scene. It depends on the config and the name only.

    Raises:
        DataError: for a name that no split has, or if no attempt succeeds because the traffic is too dense.
    """
    kind = hard_kind(config, name)
    for town in range(HARD_TOWNS if kind else TOWNS):
        place = make_place(config, name, town)
        for attempt in range(TRIES_PER_TOWN if place else 0):
            players = make_players(config, name, place, town, attempt) if place else None
            world = players and place and _played(config, name, place, players, (town, attempt), kind)
            if world:
                return world
    raise DataError(
        f"scene {name}: all {(HARD_TOWNS if kind else TOWNS) * TRIES_PER_TOWN} attempts ended in a collision"
        f"{f' or without its conflict ({kind})' if kind else ''}; "
        "lower TownConfig.traffic or TownConfig.pedestrians."
    )


def _played(config: TownConfig, name: str, place: Place, players: Players, draw: tuple[int, int], kind: HardKind | None) -> World | None:
    """Simulate the traffic. None if there is a collision, or if a required conflict is missing or too late."""
    every = round(STEP_S / DT_S)
    intended: list[Array] = []
    fine = players.traffic().run(WARM_S, (config.keyframes - 1) * every + 1, 1) if kind else None
    told = intended if players.disturbed else None
    tracks = fine.every(every) if fine else players.traffic().run(WARM_S, config.keyframes, intentions=told)
    cast = players.cast(tracks)
    kept = settle(cast, tracks)
    if kept is None:
        return None
    route = players.movers[0].route
    conflict = None
    if fine and kind:
        conflict = _conflict(name, kind, players, fine, kept, route)
        if conflict is None or conflict.keyframe >= config.keyframes - min(config.keyframes // 2, round(AHEAD_S / STEP_S)):
            return None
    scene = record(name, cast.select(kept), tracks, route, vector_map(place.roads, players.around))
    ego = np.concatenate([tracks.axle[:, 0], tracks.heading[:, :1]], 1)
    return World(
        replace(scene, conflict=conflict, intended=np.stack(intended) if intended else None), ego, route, lambda: players.around, draw, kept
    )


def _conflict(name: str, kind: HardKind, players: Players, fine: Tracks, kept: Array, route: Route) -> Conflict | None:
    """The conflict of a scene; None if the ego would not hit the staged road user by keeping its route and speed, or hardly moves."""
    assert players.stage
    who = players.stage.named(len(players.movers) - 1, len(players.walkers))
    driven = float(np.hypot(*np.diff(fine.axle[:, 0], axis=0).T).sum())
    if not kept[who] or driven < LEAST_DRIVEN_M * fine.seconds(DT_S) / 20:
        return None
    cast = players.cast(fine)
    found = evidence(route, fine.axle[:, 0], fine.speed[:, 0], cast.centre[:, who], cast.yaw[:, who], cast.size[who])
    if found is None:
        return None
    track = track_names(name, int(kept.sum()))[int(kept[:who].sum())]
    return Conflict(kind, track, *found)
