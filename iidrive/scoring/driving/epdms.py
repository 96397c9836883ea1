"""The EPDMS score of drives: multipliers over the whole drive, times a weighted mean of parts scored in windows of 4 s.

The public score is defined for drives of 4 s. Over 20 s its binary parts would almost always be 0. So the weighted parts are scored in
consecutive windows of 4 s and averaged. A window that was not driven to its end counts as 0. docs/closed-loop.md describes every part.

Source: NAVSIM's EPDMS (Dauner et al. 2024, arXiv 2406.15349; Cao et al. 2025, arXiv 2506.04218), after nuPlan's closed-loop score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.scoring.driving.comfort import comfortable, consistent
from iidrive.scoring.driving.contacts import Contact, contacts
from iidrive.scoring.driving.parts import about_to_collide, beside_lane, driving_direction, stations
from iidrive.scoring.driving.rollout import Road, Rollout
from iidrive.scoring.driving.tracking import DT_S

Array = np.ndarray

MULTIPLIERS = ("NC", "DAC", "DDC", "TLC")
WEIGHTS: Mapping[str, float] = {"EP": 5.0, "TTC": 5.0, "LK": 2.0, "HC": 2.0, "EC": 2.0}
PARTS = (*MULTIPLIERS, *WEIGHTS)

WINDOW_S = 4.0
_SHORT_M = 5.0
"""If the reference drives less than this in a window, ego progress is not measured and counts as 1."""

_TOUCHED_THING = 0.5
"""NC after an at-fault contact with an object that is not a road user."""


@dataclass(frozen=True)
class DriveScore:
    """The score of one drive.

    `multipliers`: value per part over the whole drive. `windows`: values (W,) per part and window. `absent`: reason per part that cannot be scored.
    `progress_m` (W,): progress along the route in each window. `off_road`: first time step at which the ego's centre is outside the drivable
    area, or None. (For DAC one corner outside is enough to fail.) `whole`: whether the drive reached its planned length.
    """

    name: str
    multipliers: Mapping[str, float]
    windows: Mapping[str, Float[Array, "w"]]
    absent: Mapping[str, str]
    progress_m: Float[Array, "w"]
    contacts: tuple[Contact, ...]
    off_road: int | None
    kilometres: float
    seconds: float
    whole: bool = field(default=True)

    @property
    def at_fault(self) -> int:
        """Number of at-fault contacts."""
        return sum(contact.at_fault for contact in self.contacts)

    @property
    def finished(self) -> bool:
        """Whether the drive reached its planned length without an at-fault contact and without leaving the road."""
        return self.whole and not self.at_fault and self.off_road is None

    @property
    def parts(self) -> dict[str, float | None]:
        """The value of every part, averaged over windows; None if it cannot be scored."""
        means = {name: float(values.mean()) for name, values in self.windows.items()}
        return {name: {**self.multipliers, **means}.get(name) for name in PARTS}

    @property
    def epdms(self) -> float:
        """The product of the multipliers times the weighted mean of the other parts, 0..1."""
        return _combined(self.multipliers, self.windows)

    def forgiving(self, expert: DriveScore) -> float:
        """EPDMS with the expert filter: a part counts as passed if the expert fails it too, in the same window."""
        multipliers = {k: 1.0 if expert.multipliers.get(k, 1.0) < 1 else v for k, v in self.multipliers.items()}
        windows = {k: np.where(expert.windows[k] <= 0, 1.0, v) if k in expert.windows else v for k, v in self.windows.items()}
        return _combined(multipliers, windows)


def _combined(multipliers: Mapping[str, float], windows: Mapping[str, Float[Array, "w"]]) -> float:
    total = sum(WEIGHTS[name] for name in windows)
    mean = sum(WEIGHTS[name] * values for name, values in windows.items()) / total
    return float(np.prod(list(multipliers.values())) * np.mean(mean))


def score_drive(rollout: Rollout, road: Road | None, expert: Rollout | None = None) -> DriveScore:
    """Score one drive on its road. Progress is measured relative to the expert's drive of the same scene; without an expert it is left out.

    Raises:
        DataError: if the drive is shorter than one step.
    """
    ego, others = rollout.ego, rollout.others
    if len(ego.yaw_rad) < 2:
        raise DataError(f"drive {rollout.name}: a drive needs at least two time steps; found {len(ego.yaw_rad)}.")
    met = contacts(ego, others, road)
    absent: dict[str, str] = {"TLC": "this source has no traffic lights"}
    multipliers = {"NC": min((1.0 if not c.at_fault else 0.0 if c.agent else _TOUCHED_THING for c in met), default=1.0)}
    off = np.zeros(len(ego.yaw_rad), bool)
    if road is None:
        absent["DAC"] = "this source has no drivable area"
    else:
        off = ~road.drives_on(ego.centre_m)
        multipliers["DAC"] = float(not road.off(ego.corners_m).any())
    if road is None or road.route is None:
        absent["DDC"] = "this source has no lanes of the route"
    else:
        multipliers["DDC"] = driving_direction(ego, road)
    spans = _spans(rollout)
    windows: dict[str, Array] = {}
    ignored = np.full(len(others.track), np.inf)
    for contact in met:
        if not contact.at_fault:
            ignored[contact.other] = contact.moment
    windows["TTC"] = _never(about_to_collide(ego, others, road, ignored), spans)
    windows["HC"] = _never(~comfortable(rollout), spans)
    progress = np.zeros(len(spans))
    if road is None or road.centreline_m is None:
        absent["LK"] = "this source has no centreline of the route"
    else:
        windows["LK"] = _never(beside_lane(ego, road, stations(ego.centre_m, road.centreline_m)[1]), spans)
    line = None if road is None else road.centreline_m if road.centreline_m is not None else road.way_m
    if line is None:
        absent["EP"] = "this source has no route to measure progress along"
    else:
        along, _ = stations(ego.centre_m, line)
        progress = np.array([max(along[min(b, len(along) - 1)] - along[min(a, len(along) - 1)], 0.0) for a, b in spans])
        if expert is None:
            absent["EP"] = "there is no reference drive"
        else:
            best, _ = stations(expert.ego.centre_m, line)
            windows["EP"] = np.array([_progress(gone, best, span, len(along)) for gone, span in zip(progress, spans, strict=True)])
    plans = len(rollout.plan_speed_mps)
    if plans < 2:
        absent["EC"] = "the drive ended before its second plan" if plans else "this driver makes no plans"
    else:
        windows["EC"] = _consistency(rollout, spans)
    ordered = {name: windows[name] for name in WEIGHTS if name in windows}
    left = int(np.argmax(off)) if off.any() else None
    whole = len(ego.yaw_rad) >= rollout.planned_moments
    return DriveScore(
        rollout.name, multipliers, ordered, absent, progress, tuple(met), left, rollout.kilometres, rollout.seconds, whole
    )  # fmt: skip


def _spans(rollout: Rollout) -> list[tuple[int, int]]:
    """First and last time step of every window of 4 s; one window if the planned drive is shorter."""
    step, last = round(WINDOW_S / DT_S), rollout.planned_moments - 1
    return [(a, a + step) for a in range(0, last - step + 1, step)] or [(0, last)]


def _driven(moments: int, span: tuple[int, int]) -> bool:
    return span[1] < moments


def _never(bad: Array, spans: list[tuple[int, int]]) -> Float[Array, "w"]:
    """1 for windows that were driven to their end and in which `bad` is never true, else 0."""
    return np.array([float(_driven(len(bad), (a, b)) and not bad[a : b + 1].any()) for a, b in spans])


def _progress(gone_m: float, best: Array, span: tuple[int, int], moments: int) -> float:
    """Progress in a window relative to the reference, 0..1. `best` is the reference's position along the route, metres."""
    a, b = (min(k, len(best) - 1) for k in span)
    there = best[b] - best[a]
    if there < _SHORT_M:
        return float(_driven(moments, span))
    return float(min(gone_m / there, 1.0))


def _consistency(rollout: Rollout, spans: list[tuple[int, int]]) -> Float[Array, "w"]:
    """Fraction of a window's plans that agree with the plan before; 0 for windows that were not driven to their end."""
    good, every = consistent(rollout), rollout.plan_every
    made = (np.arange(len(good)) + 1) * every
    out = []
    for a, b in spans:
        here = good[(made > a) & (made <= b)]
        out.append(float(here.mean()) if len(here) and _driven(len(rollout.ego.yaw_rad), (a, b)) else 0.0)
    return np.array(out)
