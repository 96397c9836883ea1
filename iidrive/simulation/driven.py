"""State of one scene in closed loop: simulated road users, the ego's states, and a record of both.

Global frame, metres, radians, seconds. The simulation starts at the scene's first keyframe. The 2.5 s before it are simulated with the
expert driver, as the ego's history.
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
from iidrive.scoring.driving.rollout import PAST_STEPS, Ego, End, Others, Road, Rollout
from iidrive.scoring.driving.tracking import DT_S, STEPS_PER_WAYPOINT, CarState, Reference
from iidrive.simulation.displace import Start

Array = np.ndarray

PAST = 5
"""Keyframes before the first, as many as a clip's history."""

STEPS_PER_KEYFRAME = STEPS_PER_WAYPOINT

Agents = Literal["reactive", "replay"]
"""Whether the other road users react to the simulated ego, or replay the recorded scene."""

_AGENT = np.array([name.startswith(("vehicle.", "human.")) for name in CATEGORIES])


@dataclass(frozen=True)
class Moment:
    """What the ego observes at a keyframe: its pose, boxes in the global frame, and the time, seconds."""

    global_T_ego: Pose
    boxes: Boxes
    time_s: float


@dataclass
class Record:
    """The drive so far.

    Attributes:
        ego: ego states, 0.1 s apart.
        casts: states of all other road users, 0.1 s apart.
        plans: (speeds, m/s; headings, rad) of each plan that was followed.
        ended: why the drive ended early; empty if it has not.
    """

    ego: list[EgoState] = field(default_factory=list)
    casts: list[Cast] = field(default_factory=list)
    plans: list[tuple[Array, Array]] = field(default_factory=list)
    ended: End = ""

    def drive(self, last: int = 0) -> tuple[Ego, list[Cast]]:
        """Ego and other road users over the `last` time steps; 0 for all."""
        return _states(self.ego[-last:]), self.casts[-last:]


class DrivenScene:
    """A scene in closed loop.

    `keyframes` are the ego's observations; the last is the current one. `past` is the ego every 0.1 s in the 1.5 s before the start.
    """

    def __init__(self, town: Town, name: str, agents: Agents = "reactive", start: Start | None = None, moments: int | None = None) -> None:
        """The scene at its first keyframe.

        Args:
            town: the data source.
            name: name of the scene.
            agents: behaviour of the other road users.
            start: displacement of the ego; None for none.
            moments: maximum number of states of the drive, 0.1 s apart; None for the whole scene.
        """
        self.town, self.name, self.agents = town, name, agents
        self.route: Route = town.route(name)
        scene = town.scene(name)
        self.road = road_of(town, name)
        self.moments = min(moments or 10**9, STEPS_PER_KEYFRAME * (len(scene) - 1) + 1)
        live = town.live(name, -PAST)
        recorded, casts = [live.ego], [live.cast()]
        before = live
        for step in range(PAST * STEPS_PER_KEYFRAME):
            before = live.copy() if step + 1 == PAST * STEPS_PER_KEYFRAME else before
            live.step()
            recorded.append(live.ego)
            if (step + 1) % STEPS_PER_KEYFRAME == 0:
                casts.append(live.cast())
        egos = [start.displaced(ego, recorded[-1]) for ego in recorded] if start else recorded
        self.live = live
        if start and agents == "reactive":
            before.step(egos[-1])
            self.live = before
        self._state = CarState.rolling(egos[-1].xy_m[None], np.array([egos[-1].heading_rad]), np.array([egos[-1].speed_mps]))
        self.record = Record([egos[-1]], [self.live.cast()])
        self.past = _states(egos[-1 - PAST_STEPS : -1])
        times = (np.arange(-PAST, 1) * STEP_S).tolist()
        casts[-1] = self.live.cast()
        at_keyframes = egos[::STEPS_PER_KEYFRAME]
        self.keyframes = [self._moment(ego, cast, time) for ego, cast, time in zip(at_keyframes, casts, times, strict=True)]
        self._touched: set[str] = set()

    def copy(self) -> DrivenScene:
        """An independent copy of the current state."""
        other = copy.copy(self)
        other.live, other.keyframes, other._touched = self.live.copy(), list(self.keyframes), set(self._touched)
        other.record = Record(list(self.record.ego), list(self.record.casts), list(self.record.plans), self.record.ended)
        return other

    @property
    def state(self) -> CarState:
        """State of the ego (N = 1)."""
        return self._state

    @property
    def over(self) -> bool:
        """Whether the drive has ended, by time or early."""
        return bool(self.record.ended) or len(self.record.ego) >= self.moments

    @property
    def command(self) -> Command:
        """Driving command from the route and the ego's position."""
        return self.route.command(self.record.ego[-1].xy_m)

    def go(self, states: list[CarState], plan: Reference | None, go_on: bool = False) -> None:
        """Advance the simulation with the ego at each of `states`, 0.1 s apart.

        The drive ends at an at-fault collision, or when the ego's centre leaves the drivable area, unless `go_on` is true. `plan` is
        recorded.
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

    def step_expert(self) -> None:
        """Advance by half a second with the town's expert driver. Nothing ends the drive early."""
        for _ in range(min(STEPS_PER_KEYFRAME, self.moments - len(self.record.ego))):
            self.live.step()
            self.record.ego.append(self.live.ego)
            self.record.casts.append(self.live.cast())

    def rollout(self) -> Rollout:
        """The drive so far, for scoring."""
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
            self.past,
        )

    def _finish(self, steps: int, go_on: bool) -> None:
        """After `steps` steps, end the drive if it failed, else add the new keyframe."""
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
    """The road and route of a scene, for scoring."""
    route = town.route(name)
    found = Road.of(town.scene(name).map, route.lane_ids, route.points)
    assert found is not None, "every town has a drivable area"
    return found


LEVER_M = float(EGO_T_LIDAR.translation_m[0])
"""Distance from the rear axle forward to LIDAR_TOP, metres."""


def _states(egos: list[EgoState]) -> Ego:
    xy, yaw, speed = (np.array([getattr(s, n) for s in egos]) for n in ("xy_m", "heading_rad", "speed_mps"))
    return Ego(xy, yaw, speed)


def _others(casts: list[Cast], tracks: tuple[str, ...]) -> Others:
    first = casts[0]
    centre, yaw = np.concatenate([c.centre for c in casts]), np.concatenate([c.yaw for c in casts])
    return Others(centre, yaw, first.size[:, :2], np.ones(yaw.shape, bool), _AGENT[first.label], tracks)
