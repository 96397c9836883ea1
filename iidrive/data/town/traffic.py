"""Traffic simulation of the town at 10 Hz. All road users react to the current state of the others.

Vehicles follow their leader with the intelligent driver model (Treiber, Hennecke and Helbing 2000) and steer by pure pursuit with a bicycle
model. They enter a junction only after reserving it (first come, first served, no conflicting links, stop signs obeyed), and they stop for
pedestrians at crossings. Pedestrians wait at the kerb until vehicles that cannot stop have passed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from iidrive.core.geometry import wrap_angle
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.data.town import staged
from iidrive.data.town.agents import Mover, Still, Walker
from iidrive.data.town.disturb import way_back
from iidrive.data.town.roads import Roads
from iidrive.data.town.route import STEP_M

Array = np.ndarray

DT_S = 0.1
LOOK_STEPS, LOOK_STRIDE = 22, 4
"""Look-ahead of a driver: 22 path samples, 2 m (4 route samples) apart."""

BRAKE = 2.0
HARD_BRAKE = -7.0
STANDSTILL_M = 2.0

LOST_M = 10.0

PATIENCE_S = 5.0
"""A driver who stopped for a pedestrian that does not step off the kerb drives on after this long, seconds."""


@dataclass(frozen=True)
class Tracks:
    """States of m movers and w walkers over t frames, global frame.

    Attributes:
        axle: (t,m,2) rear axles, metres.
        heading: (t,m) headings, radians.
        speed: (t,m) speeds, m/s.
        walker: (t,w,2) positions of walkers, metres.
        walker_heading: (t,w) headings of walkers, radians.
    """

    axle: Float[Array, "t m 2"]
    heading: Float[Array, "t m"]
    speed: Float[Array, "t m"]
    walker: Float[Array, "t w 2"]
    walker_heading: Float[Array, "t w"]

    def every(self, steps: int) -> Tracks:
        """Every `steps`-th frame, starting with the first."""
        return Tracks(*(getattr(self, f.name)[::steps] for f in fields(self)))

    def seconds(self, step_s: float) -> float:
        """Duration of the tracks, seconds, if frames are `step_s` apart."""
        return (len(self.axle) - 1) * step_s


@dataclass(frozen=True)
class EgoState:
    """State of the ego: position of the rear axle (global frame, metres), heading, and forward speed."""

    xy_m: Float[Array, "2"]
    heading_rad: float
    speed_mps: float


class Traffic:
    """State of a traffic simulation. `run` simulates a whole scene, `step` advances by 0.1 s, `copy` branches it. The ego is mover 0."""

    STATE = (
        "s", "v", "xy", "psi", "steer", "gate", "zebra", "stopped_at", "since", "passed", "ws", "aside", "gone", "waited", "wxy", "wpsi",
    )  # fmt: skip
    """Arrays that change from step to step."""

    PATHS = ("path", "path_heading", "path_cos", "path_sin")
    """Arrays that change when a scripted vehicle changes its path."""

    dt_s = DT_S

    def __init__(self, roads: Roads, movers: list[Mover], walkers: list[Walker], blocks: Sequence[Still] = ()) -> None:
        """Initial state. `blocks` are standing vehicles that drivers pass."""
        self.roads, self.movers, self.walkers = roads, movers, walkers
        m = len(movers)
        count = max(len(v.route.points) for v in movers)
        self.path = np.zeros((m, count, 2))
        self.path_heading = np.zeros((m, count))
        self.profile = np.zeros((m, count))
        for i, v in enumerate(movers):
            n = len(v.route.points)
            self._lay_path(i, v.swerve_m)
            self.path_heading[i, :n], self.path_heading[i, n:] = v.route.heading, v.route.heading[-1]
            self.profile[i, :n] = v.route.speed_mps
        self.path_cos, self.path_sin = np.cos(self.path_heading).astype(np.float32), np.sin(self.path_heading).astype(np.float32)
        self.s = np.array([v.start_s for v in movers])
        self.v = np.array([v.start_mps for v in movers])
        self.steer = np.zeros(m)
        self.length = np.array([v.size_m[0] for v in movers])
        self.half_width = np.array([v.size_m[1] / 2 for v in movers])
        self.axle = np.array([v.axle_m for v in movers])
        self.front = self.axle + self.length / 2
        self.back = self.length / 2 - self.axle
        self.wheelbase = np.array([v.wheelbase_m for v in movers])
        self.acceleration = np.array([v.acceleration for v in movers])
        self.headway = np.array([v.headway_s for v in movers])
        self._discs()
        self.gate = np.zeros(m, int)
        self.scripted = [i for i, v in enumerate(movers) if v.script]
        self.since = np.full(m, -1.0)
        self.passed = np.zeros(m, int)
        self.narrow = staged.go_around(self, blocks) if blocks else {}
        staged.begin(self)
        at = (self.s / STEP_M).astype(int)
        self.xy = self.path[np.arange(m), at]
        self.psi = self.path_heading[np.arange(m), at]
        self.zebra = np.zeros(m, int)
        self.stopped_at = np.full(m, -1)
        self.waiting: dict[int, list[int]] = {}
        self.holding: dict[int, dict[int, int]] = {}
        self.ego_given = False
        self.ego_stood_s = 0.0
        self.time_s = 0.0
        self.lapses = movers[0].lapses
        self._walker_state()

    def _lay_path(self, i: int, swerve_m: Array | None) -> None:
        """Set the path of mover `i`: its route with lateral offset, small oscillations, and swerves if given."""
        v = self.movers[i]
        n = len(v.route.points)
        along = np.arange(n) * STEP_M
        shift = v.right_m + 0.1 * np.sin(along / 9.0 + v.wander_phase) + 0.06 * np.sin(along / 4.3 + 2 * v.wander_phase)
        if swerve_m is not None:
            shift = shift + swerve_m
        normal = np.stack([np.sin(v.route.heading), -np.cos(v.route.heading)], -1)
        self.path[i, :n] = v.route.points + shift[:, None] * normal
        self.path[i, n:] = self.path[i, n - 1]

    def _discs(self) -> None:
        """Approximate bodies by rows of discs, to compute gaps to leaders: their owners and positions along the body."""
        owner, place = [], []
        for i, length in enumerate(self.length):
            radius = self.half_width[i]
            count = 3 if length < 6 else 5
            spots = self.axle[i] + np.linspace(-1, 1, count) * max(length / 2 - radius, 0.0)
            owner += [i] * count
            place += spots.tolist()
        self.disc_owner, self.disc_place = np.array(owner), np.array(place)

    def _walker_state(self) -> None:
        w = len(self.walkers)
        count = max((len(p.points) for p in self.walkers), default=2)
        self.way = np.zeros((w, count, 2))
        for k, p in enumerate(self.walkers):
            self.way[k, : len(p.points)] = p.points
            self.way[k, len(p.points) :] = p.points[-1]
        self.way_end = np.array([(len(p.points) - 2) * STEP_M for p in self.walkers])
        self.ws = np.zeros(w)
        self.aside = np.zeros(w)
        self.pace = np.array([p.pace_mps for p in self.walkers])
        self.begin = np.array([p.begin_s for p in self.walkers])
        self.end = np.array([p.end_s for p in self.walkers])
        self.crossing = np.array([p.crossing for p in self.walkers], int)
        self.from_left = np.array([p.from_left for p in self.walkers], bool)
        self.gone = np.zeros(w, bool)
        self.waited = np.full(w, DT_S)
        self._place_walkers()

    def intended(self) -> Float[Array, "s 3"]:
        """Rear axle and heading (x, y, yaw) of the ego at the next keyframes if its driver continues without disturbance, global frame."""
        other, out = self.undisturbed(), []
        for _ in range(FUTURE_STEPS):
            for _ in range(round(STEP_S / DT_S)):
                other.step()
            out.append([*other.xy[0], other.psi[0]])
        return np.array(out)

    def run(self, warm_s: float, keyframes: int, every: int = 5, intentions: list[Array] | None = None) -> Tracks:
        """Simulate a scene and return its states at the keyframes.

        Args:
            warm_s: simulated time before the first keyframe, seconds.
            keyframes: number of keyframes.
            every: steps between keyframes.
            intentions: if given, the result of `intended` at each keyframe is appended.
        """
        out: list[tuple[Array, ...]] = []
        warm = round(warm_s / DT_S)
        for step in range(warm + (keyframes - 1) * every + 1):
            if step >= warm and (step - warm) % every == 0:
                out.append((self.xy.copy(), self.psi.copy(), self.v.copy(), self.wxy.copy(), self.wpsi.copy()))
                if intentions is not None:
                    intentions.append(self.intended())
            self.step()
        xy, psi, v, wxy, wpsi = (np.stack(column) for column in zip(*out, strict=True))
        return Tracks(xy, psi, v, wxy, wpsi)

    def now(self) -> Tracks:
        """The current states, as tracks of one frame."""
        return Tracks(self.xy[None], self.psi[None], self.v[None], self.wxy[None], self.wpsi[None])

    @property
    def ego(self) -> EgoState:
        """Current state of the ego."""
        return EgoState(self.xy[0].copy(), float(self.psi[0]), float(self.v[0]))

    def step(self, ego: EgoState | None = None) -> None:
        """Advance by 0.1 s. All road users react to the current state, including that of the ego.

        `ego` is the ego's state after the step; None to let the expert driver drive.
        """
        self.ego_given = ego is not None
        staged.follow_scripts(self)
        stop = self._rules()
        gap, lead = self._leaders()
        acceleration = self._drive(gap, lead, stop)
        self._walk()
        self._move(acceleration, ego)
        self.ego_stood_s = self.ego_stood_s + DT_S if self.v[0] < 0.25 else 0.0
        self.time_s += DT_S

    def copy(self) -> Traffic:
        """An independent copy of the current state."""
        other = copy.copy(self)
        for name in self.STATE + (self.PATHS if self.scripted else ()):
            setattr(other, name, getattr(self, name).copy())
        other.waiting = {node: list(queue) for node, queue in self.waiting.items()}
        other.holding = {node: dict(held) for node, held in self.holding.items()}
        return other

    def undisturbed(self) -> Traffic:
        """An independent copy without further disturbances: the ego's driver returns to its route."""
        other = self.copy()
        other.lapses = ()
        swerve_m = self.movers[0].swerve_m
        if swerve_m is not None:
            other.path = self.path.copy()
            other._lay_path(0, way_back(swerve_m, min(int(self.s[0] / STEP_M), len(swerve_m) - 1)))
        return other

    def _leaders(self) -> tuple[Array, Array]:
        """Gap of each mover to the first obstacle in its corridor, metres, and the obstacle's speed along the corridor, m/s."""
        m = len(self.movers)
        direction = np.stack([np.cos(self.psi), np.sin(self.psi)], -1)
        disc = self.xy[self.disc_owner] + self.disc_place[:, None] * direction[self.disc_owner]
        radius, owner = self.half_width[self.disc_owner], self.disc_owner
        speed = self.v[:, None] * direction
        on_road = self.gone & (self.ws < self.end + 0.5)
        if on_road.any():
            disc = np.concatenate([disc, self.wxy[on_road]])
            radius = np.concatenate([radius, np.full(int(on_road.sum()), 0.4)])
            owner = np.concatenate([owner, np.full(int(on_road.sum()), m)])
        speed = np.concatenate([speed, np.zeros((1, 2))])
        at = np.minimum((self.s / STEP_M).astype(int)[:, None] + np.arange(LOOK_STEPS) * LOOK_STRIDE, self.path.shape[1] - 1)
        # Coordinates relative to the ego, because global ones would lose centimetres in float32.
        anchor = self.xy[0]
        rows = np.arange(m)[:, None]
        seen = (self.path[rows, at] - anchor).astype(np.float32)
        cos, sin = self.path_cos[rows, at], self.path_sin[rows, at]
        body = (disc - anchor).astype(np.float32)
        dx, dy = body[:, 0] - seen[..., :1], body[:, 1] - seen[..., 1:]
        across = dy * cos[..., None] - dx * sin[..., None]
        reach = (self.half_width[:, None] + radius[None] + 0.3).astype(np.float32)
        reach[owner[None] == np.arange(m)[:, None]] = -1.0
        i, k, j = np.nonzero(np.abs(across) < reach[:, None])
        along = dx[i, k, j] * cos[i, k] + dy[i, k, j] * sin[i, k]
        distance = at[i, k] * STEP_M - self.s[i] + along
        good = (np.abs(along) <= 1.15) & (distance > self.axle[i])
        i, k, j = i[good], k[good], j[good]
        free = distance[good] - radius[j] - self.front[i]
        gap, lead = np.full(m, np.inf), np.zeros(m)
        order = np.argsort(-free, kind="stable")
        gap[i[order]] = free[order]
        who = owner[j[order]]
        lead[i[order]] = speed[who, 0] * cos[i, k][order] + speed[who, 1] * sin[i, k][order]
        return gap, np.maximum(lead, 0.0)

    def _drive(self, gap: Array, lead: Array, stop: Array) -> Array:
        m = np.arange(len(self.movers))
        target = np.maximum(self.profile[m, np.minimum((self.s / STEP_M).astype(int) + 1, self.profile.shape[1] - 1)], 0.1)
        a, v = self.acceleration, self.v
        free = np.where(v <= target, a * (1 - (v / target) ** 4), np.maximum(-1.6 * (v - target), -3.0))

        def follow(distance: Array, other: Array, rest: float, headway: Array) -> Array:
            wish = rest + np.maximum(v * headway + v * (v - other) / (2 * np.sqrt(a * BRAKE)), 0)
            return free - a * (wish / np.maximum(distance, 0.1)) ** 2

        out = np.minimum(free, np.where(np.isfinite(gap), follow(gap, lead, STANDSTILL_M, self.headway), np.inf))
        out = np.minimum(out, np.where(np.isfinite(stop), follow(stop, np.zeros_like(v), 0.3, np.full_like(v, 0.5)), np.inf))
        out[staged.standing(self)] = HARD_BRAKE
        out[0] = min([out[0], *(lapse.limit_mps2(self.time_s, float(v[0])) for lapse in self.lapses)])
        return np.clip(out, HARD_BRAKE, None)

    def _move(self, acceleration: Array, ego: EgoState | None = None) -> None:
        m = np.arange(len(self.movers))
        last = self.path.shape[1] - 1
        v = np.maximum(self.v + acceleration * DT_S, 0.0)
        v[v < 0.03] = 0.0
        if ego is not None:
            v[0] = ego.speed_mps
        step = (self.v + v) / 2 * DT_S
        ahead = np.clip(0.45 * self.v + 1.1 * self.wheelbase, 1.5, 9.0)
        target = self.path[m, np.minimum(((self.s + ahead) / STEP_M + 0.5).astype(int), last)] - self.xy
        angle = wrap_angle(np.arctan2(target[:, 1], target[:, 0]) - self.psi)
        wanted = np.arctan(2 * self.wheelbase * np.sin(angle) / np.maximum(np.hypot(target[:, 0], target[:, 1]), 0.5))
        self.steer = np.clip(self.steer + np.clip(wanted - self.steer, -0.09, 0.09) * (v > 0), -0.65, 0.65)
        turn = step * np.tan(self.steer) / self.wheelbase
        middle = self.psi + turn / 2
        self.xy = self.xy + step[:, None] * np.stack([np.cos(middle), np.sin(middle)], -1)
        if ego is not None:
            turn[0] = wrap_angle(ego.heading_rad - self.psi[0])
            self.steer[0] = np.arctan(self.wheelbase[0] * turn[0] / step[0]) if step[0] > 0.01 else 0.0
        self.psi = wrap_angle(self.psi + turn)
        at = np.minimum(((self.s + step) / STEP_M + 0.5).astype(int), last)
        if ego is not None:
            self.xy[0], self.psi[0] = ego.xy_m, ego.heading_rad
            at[0] = self._station(ego.xy_m, int(at[0]))
        off = self.xy - self.path[m, at]
        heading = self.path_heading[m, at]
        self.s = np.maximum(self.s, at * STEP_M + off[:, 0] * np.cos(heading) + off[:, 1] * np.sin(heading))
        self.v = v

    def _station(self, xy: Array, guess: int) -> int:
        """Sample of the ego's path from which its progress is measured: `guess`, or the nearest one around it if the ego left the path."""
        if np.hypot(*(xy - self.path[0, guess])) < 3.0:
            return guess
        low, high = max(guess - 20, 0), min(guess + 40, self.path.shape[1])
        return low + int(np.argmin(((self.path[0, low:high] - xy) ** 2).sum(-1)))

    def _lost(self) -> bool:
        """Whether the ego is so far from its route that it no longer reserves the route's junctions."""
        at = min(int(self.s[0] / STEP_M + 0.5), self.path.shape[1] - 1)
        return bool(np.hypot(*(self.xy[0] - self.path[0, at])) > LOST_M)

    def _rules(self) -> Array:
        """Distance from each mover's front to the nearest point where it must stop, metres; infinite if there is none."""
        stop = np.full(len(self.movers), np.inf)
        active = self._people_at_crossings()
        for i, mover in enumerate(self.movers):
            v, front = float(self.v[i]), float(self.s[i] + self.front[i])
            stop[i] = len(mover.route.points) * STEP_M - 4.0 - front
            zebras = mover.route.zebras
            while self.zebra[i] < len(zebras) and self.s[i] - self.back[i] > zebras[self.zebra[i]].end_s:
                self.zebra[i] += 1
            for zebra in zebras[self.zebra[i] : self.zebra[i] + 2]:
                d = zebra.begin_s - 1.2 - front
                if d > -1.1 and zebra.crossing in active and self._must_yield(active[zebra.crossing], zebra.across_m, d, v):
                    stop[i] = min(stop[i], d)
                    break
            stop[i] = min(stop[i], self._junction(i, front, v))
            if self.narrow:
                stop[i] = min(stop[i], staged.narrow_stop(self, i))
        return stop

    def _people_at_crossings(self) -> dict[int, list[tuple[float, float, float]]]:
        """Pedestrians on or about to enter each crossing: (distance from its left kerb in metres, walking direction, seconds of waiting).

        The waiting time is 0 for pedestrians who are walking.
        """
        active: dict[int, list[tuple[float, float, float]]] = {}
        for k in np.flatnonzero((self.crossing >= 0) & (self.ws > self.begin - 1.5) & (self.ws < self.end)):
            if self.walkers[k].steps_out_s and not self.gone[k]:
                continue  # drivers cannot anticipate a jaywalker
            width = self.end[k] - self.begin[k]
            done = self.ws[k] - self.begin[k]
            u = done if self.from_left[k] else width - done
            active.setdefault(int(self.crossing[k]), []).append((float(u), 1.0 if self.from_left[k] else -1.0, float(self.waited[k])))
        return active

    @staticmethod
    def _must_yield(people: list[tuple[float, float, float]], across_m: float, d: float, v: float) -> bool:
        for u, sign, waits in people:
            if waits > PATIENCE_S:
                continue
            if waits:
                if d > 0.3 and v * v / (2 * d) < 2.4:
                    return True
            elif (abs(u - across_m) < 2.6 or sign * (across_m - u) > 0) and v * v < 2 * 6.0 * max(d, 0.3):
                return True
        return False

    def _junction(self, i: int, front: float, v: float) -> float:
        """Reserve the next junction when near, and release passed ones. Returns the distance to its stop line while it is not reserved."""
        gates = self.movers[i].route.gates
        for k in range(max(self.gate[i] - 3, 0), self.gate[i]):
            held = self.holding.get(gates[k].node, {})
            if held.get(i) == gates[k].link and self.s[i] - self.back[i] > gates[k].exit_s + 0.8:
                del held[i]
        if i == 0 and self.ego_given and self._lost():
            for held in self.holding.values():
                held.pop(0, None)
            return np.inf
        waits = i == 0 and self.ego_given and self.ego_stood_s > PATIENCE_S
        if waits and self.gate[0] and gates[self.gate[0] - 1].stop_s - front > 0:
            # A standing ego releases its reservation, so that others need not wait for it.
            held = self.holding.get(gates[self.gate[0] - 1].node, {})
            if held.pop(0, None) is not None:
                self.gate[0] -= 1
        if self.gate[i] >= len(gates):
            return np.inf
        gate = gates[self.gate[i]]
        d = gate.stop_s - front
        script = self.movers[i].script
        first = script is not None and script.comes_first
        if d > (staged.FIRST_M if first else max(12.0, v * v / 3.0 + 8.0)):
            return np.inf
        held = self.holding.setdefault(gate.node, {})
        if d < 1.5 and v < 0.25:
            self.stopped_at[i] = self.gate[i]
        queue = self.waiting.setdefault(gate.node, [])
        if waits and d > 0:
            if i in queue:
                queue.remove(i)
            return d
        if i not in queue and (not gate.stop_sign or self.stopped_at[i] == self.gate[i]):
            queue.append(i)
        if d < -2.5 or (i in queue and self._free(i, queue, held, gate.link)):
            held[i] = gate.link
            if i in queue:
                queue.remove(i)
            self.gate[i] += 1
            return np.inf
        return d

    def _free(self, i: int, queue: list[int], held: dict[int, int], link: int) -> bool:
        roads = self.roads
        for j, other in held.items():
            if j == i or not (after := roads.clear_after(other, link)):
                continue
            inside = next((g.enter_s for g in self.movers[j].route.gates[: self.gate[j]][::-1] if g.link == other), 0.0)
            if self.s[j] - self.back[j] < inside + after:
                return False
        lane = roads.links[link].lane_in
        for j in queue[: queue.index(i)]:
            other = self.movers[j].route.gates[self.gate[j]].link
            if roads.links[other].lane_in == lane or (roads.clear_after(link, other) and self._has_room(j, other)):
                return False
        return self._has_room(i, link)

    def _has_room(self, i: int, link: int) -> bool:
        """Whether the junction's exit is not blocked by a slow vehicle."""
        gate = self.movers[i].route.gates[self.gate[i]]
        k = min(int((gate.exit_s + 4.0) / STEP_M), self.path.shape[1] - 1)
        gaps = np.hypot(*(self.xy + self.axle[:, None] * np.stack([np.cos(self.psi), np.sin(self.psi)], -1) - self.path[i, k]).T)
        blocked = (gaps < 3.0 + self.length / 2) & (self.v < 1.5) & (np.cos(self.psi - self.path_heading[i, k]) > 0.7)
        blocked[i] = False
        return not blocked.any()

    def _walk(self) -> None:
        if not len(self.walkers):
            return
        go = np.ones(len(self.walkers), bool)
        for k in np.flatnonzero((self.crossing >= 0) & ~self.gone & (self.ws + 0.2 >= self.begin)):
            surprises = self.walkers[k].steps_out_s > 0
            self.gone[k] = staged.steps_out(self, int(k)) if surprises else self._safe_to_cross(int(self.crossing[k]))
            go[k] = self.gone[k]
            self.waited[k] = 0.0 if self.gone[k] else self.waited[k] + DT_S
        # A pedestrian behind another slows down; pedestrians who meet step to their right.
        ahead = np.stack([np.cos(self.wpsi), np.sin(self.wpsi)], -1)
        d = self.wxy[None] - self.wxy[:, None]
        along = d[..., 0] * ahead[:, None, 0] + d[..., 1] * ahead[:, None, 1]
        across = d[..., 1] * ahead[:, None, 0] - d[..., 0] * ahead[:, None, 1]
        facing = np.cos(self.wpsi[None] - self.wpsi[:, None])
        meet = ((along > 0) & (along < 4.0) & (np.abs(across) < 0.9) & (facing < -0.3)).any(1)
        first = np.arange(len(d))[None] < np.arange(len(d))[:, None]
        behind = ((along > 0.05) & (along < 1.2) & (np.abs(across) < 0.7) & (facing >= -0.3) & ((facing > 0.5) | first)).any(1)
        self.aside = np.clip(self.aside + np.where(meet, 0.06, -0.03), 0.0, 0.42)
        step = self.pace * DT_S * (go & ~behind)
        self.ws = np.minimum(self.ws + step, np.maximum(self.way_end, 0.0))
        self._place_walkers()

    def _place_walkers(self) -> None:
        w = np.arange(len(self.walkers))
        k = np.minimum((self.ws / STEP_M).astype(int), self.way.shape[1] - 2)
        a, b = self.way[w, k], self.way[w, k + 1]
        d = b - a
        far = self.way[w, np.minimum(k + 3, self.way.shape[1] - 1)] - self.way[w, np.maximum(k - 1, 0)]
        self.wpsi = np.arctan2(far[:, 1], far[:, 0])
        right = np.stack([np.sin(self.wpsi), -np.cos(self.wpsi)], -1)
        self.wxy = a + (self.ws / STEP_M - k)[:, None] * d + self.aside[:, None] * right

    def _safe_to_cross(self, crossing: int) -> bool:
        """Whether every approaching vehicle can stop, and none is on the crossing."""
        for i, mover in enumerate(self.movers):
            for zebra in mover.route.zebras[self.zebra[i] : self.zebra[i] + 2]:
                if zebra.crossing != crossing:
                    continue
                d, v = zebra.begin_s - float(self.s[i] + self.front[i]), float(self.v[i])
                if d < 0.1 or (v > 0.6 and d < v * v / 5.0 + 2.2):
                    return False
        return True
