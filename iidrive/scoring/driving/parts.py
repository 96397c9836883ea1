"""Parts of the EPDMS score of one drive, per time step or over the whole drive.

Shapes: T time steps of 0.1 s, n other objects. Positions are in the global frame, metres.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import shapely
from jaxtyping import Bool, Float

from iidrive.scoring.driving.contacts import AHEAD_RAD, BEHIND_RAD, bearing
from iidrive.scoring.driving.rollout import Ego, Others, Road, near
from iidrive.scoring.driving.tracking import DT_S

Array = np.ndarray

_STANDS_MPS = 0.005
_PUSHED_S = (0.0, 0.3, 0.6, 0.9)

_WRONG_WAY_M = (2.0, 6.0)
"""Metres driven off the route's lanes within one second from which the driving direction (DDC) is 0.5, and 0."""

_BESIDE_M, _BESIDE_S = 0.5, 2.0
"""Lane keeping fails if the centre is farther than this from the centreline (metres) for this long (seconds)."""

_AS_NEAR_M = 0.5
"""Distances to a line that differ by less than this count as equal."""

_SEARCHED_M = (5.0, 15.0)
"""Search range behind and ahead of the previous position along a route, metres."""


def stations(points_m: Float[Array, "t 2"], line_m: Float[Array, "n 2"]) -> tuple[Float[Array, "t"], Float[Array, "t"]]:
    """Arc length of the nearest point on a line for each point of a path, and the distance to it, both metres.

    Each point is searched for near the previous one, so that a line that crosses itself is followed correctly. For the first point, the earliest
    of the nearest places on the line is taken.
    """
    piece = np.diff(line_m, axis=0)
    length = np.hypot(piece[:, 0], piece[:, 1])
    arc = np.concatenate([[0.0], np.cumsum(length)])
    along, away = np.zeros(len(points_m)), np.zeros(len(points_m))
    low, high = 0, len(piece)
    for t, point in enumerate(points_m):
        part = slice(low, high)
        off = point - line_m[:-1][part]
        share = np.clip((off * piece[part]).sum(-1) / np.maximum(length[part], 1e-9) ** 2, 0, 1)
        gap = np.hypot(*(off - share[:, None] * piece[part]).T)
        best = int(gap.argmin()) if t else _first_near(gap)
        along[t], away[t] = arc[low + best] + share[best] * length[low + best], gap[best]
        low = max(int(np.searchsorted(arc, along[t] - _SEARCHED_M[0], "right")) - 1, 0)
        high = min(max(int(np.searchsorted(arc, along[t] + _SEARCHED_M[1])), low + 1), len(piece))
    return along, away


def _first_near(gap_m: Float[Array, "n"]) -> int:
    """Index of the earliest local minimum that is about as near as the nearest place."""
    close = gap_m <= gap_m.min() + _AS_NEAR_M
    first = int(close.argmax())
    last = first + int((~close[first:]).argmax() or len(close) - first)
    return first + int(gap_m[first:last].argmin())


def driving_direction(ego: Ego, road: Road) -> float:
    """DDC: 1, 0.5 or 0, by the largest distance within any second that the centre moves off the route's lanes and outside junctions."""
    wrong = ~(road.on_route(ego.centre_m) | road.in_junction(ego.centre_m))
    hop = np.hypot(*np.diff(ego.centre_m, axis=0).T) * wrong[1:]
    second = round(1 / DT_S)
    total = np.convolve(hop, np.ones(second))
    worst = float(total.max()) if len(hop) else 0.0
    return 1.0 if worst < _WRONG_WAY_M[0] else 0.5 if worst < _WRONG_WAY_M[1] else 0.0


def about_to_collide(ego: Ego, others: Others, road: Road | None, ignored: Float[Array, "n"]) -> Bool[Array, "t"]:
    """TTC: time steps at which the ego, moved straight ahead at its speed for up to 0.9 s, would overlap an object at that later time.

    `ignored` (n,): time step from which an object no longer counts (after a contact without fault); infinite if it always counts.
    Only objects ahead count. If the ego is in several lanes, off the road or in a junction, all objects that are not behind it count.
    """
    moments = len(ego.yaw_rad)
    found = np.zeros(moments, bool)
    drives = ego.speed_mps >= _STANDS_MPS
    loose = _loose(ego, road)
    for seconds in _PUSHED_S:
        later = round(seconds / DT_S)
        kept = np.arange(moments - later)
        shifted = Others(others.centre_m[later:], others.yaw_rad[later:], others.size_m, others.present[later:], others.agent, others.track)
        part = Ego(ego.xy_m[kept], ego.yaw_rad[kept], ego.speed_mps[kept])
        t, i = near(part, shifted, seconds * float(ego.speed_mps.max(initial=0.0)))
        counts = drives[t] & (t < ignored[i]) & ~found[t]
        t, i = t[counts], i[counts]
        touching = shapely.intersects(part.pushed(seconds)[t], shifted.polygons(t, i))
        for moment, other in zip(t[touching].tolist(), i[touching].tolist(), strict=True):
            angle = bearing(ego, others.centre_m[moment, other], moment)
            found[moment] |= angle < AHEAD_RAD or (angle < BEHIND_RAD and loose(moment))
    return found


def _loose(ego: Ego, road: Road | None) -> Callable[[int], bool]:
    """A function that says whether the ego is in several lanes, off the road or in a junction at a time step. It is called for few time steps."""

    def at(moment: int) -> bool:
        if road is None:
            return False
        corners = ego.corners_m[moment]
        return bool(road.off(corners)) or bool(road.in_junction(ego.centre_m[moment])) or road.between_lanes(corners)

    return at


def beside_lane(ego: Ego, road: Road, away_m: Float[Array, "t"]) -> Bool[Array, "t"]:
    """LK: time steps that end two consecutive seconds with the centre beside the centreline. Time steps in junctions are skipped."""
    needed, row = round(_BESIDE_S / DT_S), 0
    out = np.zeros(len(away_m), bool)
    junction = road.in_junction(ego.centre_m)
    for t, away in enumerate(away_m):
        if junction[t]:
            continue
        row = row + 1 if away > _BESIDE_M else 0
        out[t] = row >= needed
    return out
