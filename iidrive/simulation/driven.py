"""One scene in closed loop: the others go on, the ego goes where it is put, and everything is remembered.

Frames: global, metres, radians, seconds. The scene starts at its own first keyframe; what the ego saw in the two and a half seconds before
stands in for its past.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from iidrive.core.classes import CATEGORIES
from iidrive.core.scene import STEP_S, Boxes, Command, Pose
from iidrive.data.town.record import EGO_T_LIDAR, Cast, boxes_at
from iidrive.data.town.route import Route
from iidrive.data.town.source import Town
from iidrive.data.town.traffic import EgoState
from iidrive.scoring.driving.contacts import contacts
from iidrive.scoring.driving.rollout import Ego, End, Others, Road, Rollout
from iidrive.scoring.driving.tracking import DT_S, CarState, Reference
from iidrive.simulation.displace import Start

Array = np.ndarray

PAST = 5
"""Keyframes before the first: windows hold as many."""

STEPS_PER_KEYFRAME = round(STEP_S / DT_S)

Agents = Literal["reactive", "replay"]
"""Whether the others see the simulated ego, or do what they did in the recorded scene."""

_AGENT = np.array([name.startswith(("vehicle.", "human.")) for name in CATEGORIES])


@dataclass(frozen=True)
class Moment:
    """What the ego can see at a keyframe: where it is, who is around (global frame), and when."""

    global_T_ego: Pose
    boxes: Boxes
    time_s: float


@dataclass
class Record:
    """The drive so far, every 0.1 s, and the plans that were followed."""

    ego: list[EgoState] = field(default_factory=list)
    casts: list[Cast] = field(default_factory=list)
    plans: list[tuple[Array, Array]] = field(default_factory=list)
    ended: End = ""

    def drive(self, last: int = 0) -> tuple[Ego, list[Cast]]:
        """The ego and everyone else, over all moments or the last so many."""
        states = self.ego[-last:]
        xy, yaw, speed = (np.array([getattr(s, n) for s in states]) for n in ("xy_m", "heading_rad", "speed_mps"))
        return Ego(xy, yaw, speed), self.casts[-last:]


class DrivenScene:
    """A scene that an ego drives through. `keyframes` are what it has seen, the last is now."""

    def __init__(self, town: Town, name: str, agents: Agents = "reactive", start: Start | None = None, moments: int | None = None) -> None:
        """The scene at its first keyframe. `start` displaces the ego there; `moments` cuts the drive short."""
        self.town, self.name, self.agents = town, name, agents
        self.route: Route = town.route(name)
        scene = town.scene(name)
        self.road = road_of(town, name)
        self.moments = min(moments or 10**9, STEPS_PER_KEYFRAME * (len(scene) - 1) + 1)
        live = town.live(name, -PAST)
        seen = [(live.ego, live.cast())]
        before = live
        for step in range(PAST * STEPS_PER_KEYFRAME):
            before = live.copy() if step + 1 == PAST * STEPS_PER_KEYFRAME else before
            live.step()
            if (step + 1) % STEPS_PER_KEYFRAME == 0:
                seen.append((live.ego, live.cast()))
        recorded = [ego for ego, _ in seen]
        egos = [start.displaced(ego, recorded[-1]) for ego in recorded] if start else recorded
        self.live = live
        if start and agents == "reactive":
            before.step(egos[-1])
            self.live = before
        self._state = CarState.rolling(egos[-1].xy_m[None], np.array([egos[-1].heading_rad]), np.array([egos[-1].speed_mps]))
        self.record = Record([egos[-1]], [self.live.cast()])
        times = (np.arange(-PAST, 1) * STEP_S).tolist()
        casts = [cast for _, cast in seen[:-1]] + [self.live.cast()]
        self.keyframes = [self._moment(ego, cast, time) for ego, cast, time in zip(egos, casts, times, strict=True)]
        self._touched: set[str] = set()

    def copy(self) -> DrivenScene:
        """The same moment once more; neither of the two influences the other from then on."""
        other = copy.copy(self)
        other.live, other.keyframes, other._touched = self.live.copy(), list(self.keyframes), set(self._touched)
        other.record = Record(list(self.record.ego), list(self.record.casts), list(self.record.plans), self.record.ended)
        return other

    @property
    def state(self) -> CarState:
        """The ego, as one car (N = 1)."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether the drive has ended, by time or before."""
        return bool(self.record.ended) or len(self.record.ego) >= self.moments

    @property
    def command(self) -> Command:
        """What the navigator says, from the route and where the ego is."""
        return self.route.command(self.record.ego[-1].xy_m)

    def go(self, states: list[CarState], plan: Reference | None, go_on: bool = False) -> None:
        """Go on with the ego where each state (one car) puts it, 0.1 s apart.

        An at-fault contact, or the ego's centre beside the road, ends the drive, unless `go_on`.
        """
        for state in states[: self.moments - len(self.record.ego)]:
            ego = EgoState(state.xy_m[0], float(state.yaw_rad[0]), float(state.speed_mps[0]))
            self.live.step(ego if self.agents == "reactive" else None)
            self.record.ego.append(ego)
            self.record.casts.append(self.live.cast())
            self._state = state
        if plan is not None:
            self.record.plans.append((plan.speed_mps[0], plan.yaw_rad[0]))
        self._finish(len(states), go_on)

    def let_drive(self) -> None:
        """Go on for half a second with the town's own driver at the wheel, to whom nothing ends the drive."""
        for _ in range(min(STEPS_PER_KEYFRAME, self.moments - len(self.record.ego))):
            self.live.step()
            self.record.ego.append(self.live.ego)
            self.record.casts.append(self.live.cast())

    def rollout(self) -> Rollout:
        """What was driven."""
        ego, casts = self.record.drive()
        speeds, yaws = ([plan[k] for plan in self.record.plans] for k in (0, 1))
        none = np.zeros((0, 0))
        return Rollout(
            self.name,
            ego,
            _others(casts, self.live.tracks),
            np.stack(speeds) if speeds else none,
            np.stack(yaws) if yaws else none,
            self.moments,
            self.record.ended,
            STEPS_PER_KEYFRAME,
        )

    def _finish(self, steps: int, go_on: bool) -> None:
        """Look at what the last steps did: end the drive where it ended, else see the new keyframe."""
        ego, casts = self.record.drive(steps + 1)
        met = [c for c in contacts(ego, _others(casts, self.live.tracks), self.road) if c.track not in self._touched]
        self._touched |= {contact.track for contact in met}
        off = np.flatnonzero(~self.road.drives_on(ego.centre_m))
        ends: dict[int, End] = {int(off[0]): "off road"} if len(off) else {}
        ends |= {contact.moment: "collision" for contact in met[::-1] if contact.at_fault}
        if ends and not go_on:
            moment, why = min(ends.items())
            extra = len(ego.yaw_rad) - 1 - moment
            del self.record.ego[len(self.record.ego) - extra :], self.record.casts[len(self.record.casts) - extra :]
            self.record.ended = why
            return
        now = self.record.ego[-1]
        self.keyframes.append(self._moment(now, casts[-1], round((len(self.record.ego) - 1) * DT_S, 3)))

    def _moment(self, ego: EgoState, cast: Cast, time_s: float) -> Moment:
        pose = Pose.from_xy_yaw(float(ego.xy_m[0]), float(ego.xy_m[1]), ego.heading_rad)
        return Moment(pose, boxes_at(cast, 0, ego.xy_m, self.live.tracks), time_s)


def road_of(town: Town, name: str) -> Road:
    """What drives through a scene are judged by."""
    route = town.route(name)
    found = Road.of(town.scene(name).map, route.lane_ids, route.points)
    assert found is not None, "every town has a drivable area"
    return found


LEVER_M = float(EGO_T_LIDAR.translation_m[0])
"""LIDAR_TOP is so far ahead of the rear axle."""


def _others(casts: list[Cast], tracks: tuple[str, ...]) -> Others:
    first = casts[0]
    centre, yaw = np.concatenate([c.centre for c in casts]), np.concatenate([c.yaw for c in casts])
    return Others(centre, yaw, first.size[:, :2], np.ones(yaw.shape, bool), _AGENT[first.label], tracks)
