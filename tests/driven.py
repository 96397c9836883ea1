"""Hand-made drives for tests: a straight two-lane street along +x, and whoever stands or moves on it."""

from __future__ import annotations

import numpy as np
import shapely

from iidrive.core.scene import Junction, Lane, VectorMap
from iidrive.scoring.driving.rollout import Ego, Others, Road, Rollout

Array = np.ndarray


def street(junction_from_m: float | None = None) -> VectorMap:
    """Lane `own` (y -1.75 to 1.75) runs along +x, lane `oncoming` (y 1.75 to 5.25) against it, for 400 m; a junction at the end if
    wanted.
    """
    end = 400.0 if junction_from_m is None else junction_from_m
    own = Lane("own", shapely.box(-50, -1.75, end, 1.75), np.array([[-50.0, 0.0], [end, 0.0]]))
    oncoming = Lane("oncoming", shapely.box(-50, 1.75, end, 5.25), np.array([[end, 3.5], [-50.0, 3.5]]))
    junctions = () if junction_from_m is None else (Junction("j", shapely.box(end, -5, 400, 8)),)
    return VectorMap({"drivable_area": shapely.box(-50, -1.75, 400, 5.25)}, (own, oncoming), junctions)


CENTRELINE = np.stack([np.arange(-50.0, 400.0, 0.5), np.zeros(900)], -1)


def road(junction_from_m: float | None = None) -> Road:
    """The street as a road with the route along `own`."""
    found = Road.of(street(junction_from_m), ("own",), CENTRELINE)
    assert found is not None
    return found


def straight(seconds: float = 8.0, speed: float | Array = 5.0, y: float | Array = 0.0, x: float = 0.0) -> Ego:
    """An ego that heads along +x, at a speed and a distance to the left that may be given for every moment."""
    moments = round(seconds * 10) + 1
    speeds = np.broadcast_to(np.asarray(speed, float), (moments,)).copy()
    along = x + np.concatenate([[0.0], np.cumsum((speeds[1:] + speeds[:-1]) / 20)])
    return Ego(np.stack([along, np.broadcast_to(y, (moments,))], -1), np.zeros(moments), speeds)


def others(moments: int, *who: tuple[Array | tuple[float, float], float, tuple[float, float], bool]) -> Others:
    """Others by (centre (2,) or (T,2), heading, size, whether it is a road user)."""
    n = len(who)
    centre = np.stack([np.broadcast_to(np.asarray(w[0], float), (moments, 2)) for w in who], 1) if n else np.zeros((moments, 0, 2))
    yaw = np.broadcast_to(np.array([w[1] for w in who]), (moments, n))
    sizes = np.array([w[2] for w in who], float).reshape(n, 2)
    return Others(
        centre, yaw, sizes, np.ones((moments, n), bool), np.array([w[3] for w in who], bool), tuple(f"other-{i}" for i in range(n))
    )


def rollout(ego: Ego, around: Others | None = None, planned: int | None = None) -> Rollout:
    """A drive that made no plans."""
    moments = len(ego.yaw_rad)
    none = np.zeros((0, 0))
    return Rollout("made", ego, around or others(moments), none, none, planned or moments)


CAR = (4.5, 1.9)
