"""EPDMS of single plans in a recorded scene: each plan is followed for 3 s from the recorded state, and other objects do not react.

This is NAVSIM's non-reactive score, for any source with boxes and a map. Progress is measured relative to the recorded ego, whose path is followed
by the same controller. The route consists of the lanes that the recorded ego drove on.

Shapes: k keyframes, n other objects. Frames: plans are LIDAR_TOP in the lidar frame of their keyframe, metres; everything else is global.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from jaxtyping import Bool, Float
from scipy.interpolate import CubicSpline

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES
from iidrive.core.scene import FUTURE_STEPS, Scene
from iidrive.scoring.driving.epdms import DriveScore, score_drive
from iidrive.scoring.driving.rollout import NO_PAST, PAST_STEPS, Ego, Others, Road, Rollout
from iidrive.scoring.driving.tracking import DT_S, STEPS, WHEELBASE_M, CarState, follow, reference

Array = np.ndarray

_BEYOND_M = 60.0
"""The recorded path is extended straight ahead by this much, so that plans that drive farther are measured, too."""

_AGENT = np.array([name.startswith(("vehicle.", "human.")) for name in CATEGORIES])


@dataclass(frozen=True)
class RecordedScene:
    """The ego and all other objects of a scene at its keyframes, and its road. Plans can be driven from any keyframe.

    `pose` (k,3): x, y, yaw of the ego's rear axle. `centre_m` (k,n,2), `yaw_rad` (k,n): boxes where `known` (k,n). `size_m` (n,2): length, width.
    `agent` (n,): vehicle or human.
    """

    scene: Scene
    road: Road | None
    time_s: Float[Array, "k"]
    pose: Float[Array, "k 3"]
    centre_m: Float[Array, "k n 2"]
    yaw_rad: Float[Array, "k n"]
    known: Bool[Array, "k n"]
    size_m: Float[Array, "n 2"]
    agent: Bool[Array, "n"]
    track: tuple[str, ...]

    @staticmethod
    def of(scene: Scene) -> RecordedScene:
        """The recorded scene of a data source's scene."""
        frames = scene.keyframes
        time = np.array([k.timestamp_us for k in frames]) / 1e6
        pose = np.array([[*k.global_T_ego.translation_m[:2], float(geometry.heading(k.global_T_ego.matrix))] for k in frames])
        place: dict[str, int] = {}
        size, label = [], []
        for keyframe in frames:
            for i, track in enumerate(keyframe.boxes.track):
                if track not in place:
                    place[track] = len(place)
                    size.append(keyframe.boxes.size_m[i, :2])
                    label.append(int(keyframe.boxes.label[i]))
        shape = len(frames), len(place)
        centre, yaw, known = np.zeros((*shape, 2)), np.zeros(shape), np.zeros(shape, bool)
        for t, keyframe in enumerate(frames):
            at = [place[track] for track in keyframe.boxes.track]
            centre[t, at], yaw[t, at], known[t, at] = keyframe.boxes.centre_m[:, :2], keyframe.boxes.yaw_rad, True
        road = _road(scene, pose)
        sizes, agent = np.array(size).reshape(-1, 2), _AGENT[np.array(label, int)]
        return RecordedScene(scene, road, time - time[0], pose, centre, yaw, known, sizes, agent, tuple(place))

    def others(self, index: int) -> Others:
        """The other objects over the 3 s from a keyframe, interpolated linearly between keyframes."""
        at = self.time_s[index] + np.arange(STEPS + 1) * DT_S
        before = np.clip(np.searchsorted(self.time_s, at + 1e-9, "right") - 1, 0, max(len(self.time_s) - 2, 0))
        after = np.minimum(before + 1, len(self.time_s) - 1)
        gap = np.maximum(self.time_s[after] - self.time_s[before], 1e-9)
        share = np.clip((at - self.time_s[before]) / gap, 0, 1)[:, None]
        turn = geometry.wrap_angle(self.yaw_rad[after] - self.yaw_rad[before])
        present = np.where(
            share < 1e-6, self.known[before], np.where(share > 1 - 1e-6, self.known[after], self.known[before] & self.known[after])
        )
        centre = self.centre_m[before] + share[..., None] * (self.centre_m[after] - self.centre_m[before])
        return Others(centre, self.yaw_rad[before] + share * turn, self.size_m, present, self.agent, self.track)

    def start(self, index: int) -> CarState:
        """The state of the recorded ego at a keyframe; speed and yaw rate by central differences."""
        first, last = max(index - 1, 0), min(index + 1, len(self.pose) - 1)
        seconds = max(self.time_s[last] - self.time_s[first], 1e-9)
        moved = self.pose[last, :2] - self.pose[first, :2]
        yaw = self.pose[index, 2]
        speed = max(float(moved @ [np.cos(yaw), np.sin(yaw)]) / seconds, 0.0)
        rate = float(geometry.wrap_angle(self.pose[last, 2] - self.pose[first, 2])) / seconds
        steer = np.arctan(WHEELBASE_M * rate / speed) if speed > 0.5 else 0.0
        return CarState(self.pose[index][None, :2], np.array([yaw]), np.array([speed]), np.zeros(1), np.array([steer]))

    def past(self, index: int) -> Ego:
        """The recorded ego every 0.1 s in the 1.5 s before a keyframe, interpolated by cubic splines. Shorter near the scene's start."""
        at = self.time_s[index] + np.arange(-PAST_STEPS, 0) * DT_S
        at = at[at > self.time_s[0] - 1e-6]
        if not len(at):
            return NO_PAST
        xy, yaw, moving = self._path(at)[:, :2], self._path(at)[:, 2], self._path(at, 1)[:, :2]
        speed = moving[:, 0] * np.cos(yaw) + moving[:, 1] * np.sin(yaw)
        return Ego(xy, geometry.wrap_angle(yaw), np.maximum(speed, 0.0))

    @cached_property
    def _path(self) -> CubicSpline:
        """x, y and yaw of the recorded ego over time."""
        return CubicSpline(self.time_s, np.column_stack([self.pose[:, :2], np.unwrap(self.pose[:, 2])]))

    def drive(self, index: int, plan_m: Float[Array, "6 2"]) -> Rollout:
        """The rollout of a plan from a keyframe among the recorded objects."""
        keyframe = self.scene.keyframes[index]
        start = self.start(index)
        states = [start, *follow(start, reference(np.asarray(plan_m)[None], float(keyframe.ego_T_lidar.translation_m[0])), STEPS)]
        xy, yaw, speed = (np.concatenate([getattr(s, name) for s in states]) for name in ("xy_m", "yaw_rad", "speed_mps"))
        none = np.zeros((0, 0))
        return Rollout(keyframe.token, Ego(xy, yaw, speed), self.others(index), none, none, STEPS + 1, past=self.past(index))

    def score(self, index: int, plan_m: Float[Array, "6 2"], true_m: Float[Array, "6 2"]) -> tuple[DriveScore, DriveScore]:
        """The scores of a plan and of the recorded path, both followed by the same controller.

        Extended comfort is left out, because it compares two consecutive plans.
        """
        human = self.drive(index, true_m)
        return score_drive(self.drive(index, plan_m), self.road, human), score_drive(human, self.road, human)


def _road(scene: Scene, pose: Float[Array, "k 3"]) -> Road | None:
    """The road, whose route is the lanes that the recorded ego drove on, with the recorded path."""
    heading = np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], -1)
    centre = Ego(pose[:, :2], pose[:, 2], np.zeros(len(pose))).centre_m
    moved = np.concatenate([[True], np.hypot(*np.diff(centre, axis=0).T) > 0.1])
    way = np.concatenate([centre[moved], (centre[-1] + _BEYOND_M * heading[-1])[None]])
    return Road.of(scene.map, _driven(scene, centre, heading), None, way)


def _driven(scene: Scene, centre_m: Float[Array, "k 2"], heading: Float[Array, "k 2"]) -> tuple[str, ...]:
    """Ids of the lanes that contain the recorded ego at some keyframe and run in its direction."""
    found = []
    for lane in scene.map.lanes:
        inside = np.flatnonzero(shapely.intersects_xy(lane.polygon, centre_m[:, 0], centre_m[:, 1]))
        if not len(inside):
            continue
        nearest = ((lane.centreline_m[:-1, None] - centre_m[inside]) ** 2).sum(-1).argmin(0)
        way = np.diff(lane.centreline_m, axis=0)[nearest]
        if ((way * heading[inside]).sum(-1) > 0).any():
            found.append(lane.id)
    return tuple(found)


def complete(scene: Scene) -> range:
    """Indices of the keyframes with six later keyframes."""
    return range(max(len(scene) - FUTURE_STEPS, 0))
