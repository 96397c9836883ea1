"""Summary of many drives: event rates, EPDMS and its parts, with intervals over scenes, and the paired difference of two planners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from iidrive.core.errors import DataError
from iidrive.core.text import aligned
from iidrive.scoring.driving.epdms import PARTS, DriveScore
from iidrive.scoring.stats import Test, mean_interval, paired, ratio_interval

Array = np.ndarray


@dataclass(frozen=True)
class Row:
    """The drives of one planner, and the expert's drives of the same scenes (for the expert's own row: the same drives).

    `scenes` is the scene of every drive; it is needed if several drives share a scene, because scenes are the independent units.
    """

    name: str
    scores: tuple[DriveScore, ...]
    expert: tuple[DriveScore, ...]
    scenes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if [s.name for s in self.scores] != [s.name for s in self.expert] or not self.scores:
            raise DataError(f"{self.name}: a row needs at least one drive, and the expert's drives of the same scenes in the same order.")

    @staticmethod
    def of_seeds(name: str, seeds: Sequence[Row]) -> Row:
        """The drives of planners that differ only in their seed as one row. A scene stays one unit."""
        scores, expert = (tuple(chain.from_iterable(getattr(row, part) for row in seeds)) for part in ("scores", "expert"))
        return Row(name, scores, expert, tuple(score.name for score in scores))

    @property
    def cluster(self) -> Int[Array, "s"]:
        """Index of every drive's scene."""
        return np.unique(np.array(self.scenes or [score.name for score in self.scores]), return_inverse=True)[1]

    @property
    def epdms(self) -> Float[Array, "s"]:
        """EPDMS of every drive."""
        return np.array([score.epdms for score in self.scores])

    @property
    def forgiving(self) -> Float[Array, "s"]:
        """EPDMS of every drive, with the expert filter."""
        return np.array([score.forgiving(expert) for score, expert in zip(self.scores, self.expert, strict=True)])

    @property
    def kilometres(self) -> float:
        """Distance of all drives together, kilometres."""
        return sum(score.kilometres for score in self.scores)

    @property
    def at_fault(self) -> Float[Array, "s"]:
        """Number of at-fault contacts of every drive."""
        return np.array([score.at_fault for score in self.scores], float)

    @property
    def departures(self) -> Float[Array, "s"]:
        """1 for every drive that left the road, else 0."""
        return np.array([score.off_road is not None for score in self.scores], float)

    def per_km(self, count: float) -> float | None:
        """A count per kilometre; None at 0 km."""
        return count / self.kilometres if self.kilometres > 0 else None

    def per_km_interval(self, counts: Float[Array, "s"]) -> tuple[float, float] | None:
        """A 95 % interval over scenes of a count per kilometre, from the counts of every drive; None at 0 km."""
        kilometres = np.array([score.kilometres for score in self.scores])
        return ratio_interval(counts, kilometres, self.cluster) if self.kilometres > 0 else None

    def absent(self) -> dict[str, str]:
        """Parts that cannot be scored, with the reason, and in how many of the drives if not in all."""
        found: dict[str, list[str]] = {}
        for part in PARTS:
            counts = Counter(score.absent[part] for score in self.scores if part in score.absent)
            for reason, count in counts.items():
                some = f" in {count} of {len(self.scores)} drives" if count < len(self.scores) else ""
                found.setdefault(part, []).append(reason + some)
        return {part: "; ".join(reasons) for part, reasons in found.items()}

    def parts(self) -> dict[str, float | None]:
        """Every part, averaged over the drives in which it can be scored; None if there is none."""
        found = {}
        for name in PARTS:
            values = [value for score in self.scores if (value := score.parts[name]) is not None]
            found[name] = float(np.mean(values)) if values else None
        return found

    def parts_intervals(self) -> dict[str, tuple[float, float]]:
        """A 95 % interval over scenes of every part's mean, over the drives in which it can be scored. Parts that cannot be scored are missing."""
        found, cluster = {}, self.cluster
        for name in PARTS:
            values = [score.parts[name] for score in self.scores]
            rows = np.array([value is not None for value in values])
            if rows.any():
                scored = np.array([value for value in values if value is not None])
                found[name] = mean_interval(scored, np.unique(cluster[rows], return_inverse=True)[1])
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values. A value is None only if `absent` has the reason, or for a rate at 0 km."""
        return dict(self._values)

    @cached_property
    def _values(self) -> dict[str, Any]:
        """The values of `to_json`. Tables, pages and files ask for them, and the intervals take a quarter of a second."""
        seconds = sum(score.seconds for score in self.scores)
        at_fault, departures = int(self.at_fault.sum()), int(self.departures.sum())
        return {
            "scenes": int(self.cluster.max()) + 1,
            "drives": len(self.scores),
            "km": self.kilometres,
            "seconds": seconds,
            "speed_mps": 1000 * self.kilometres / seconds if seconds else None,
            "at_fault_collisions": at_fault,
            "at_fault_collisions_per_km": self.per_km(at_fault),
            "at_fault_collisions_per_km_interval": self.per_km_interval(self.at_fault),
            "departures": departures,
            "departures_per_km": self.per_km(departures),
            "departures_per_km_interval": self.per_km_interval(self.departures),
            "interventions_per_km": self.per_km(at_fault + departures),
            "interventions_per_km_interval": self.per_km_interval(self.at_fault + self.departures),
            "contacts_not_at_fault": sum(len(score.contacts) for score in self.scores) - at_fault,
            "finished": float(np.mean([score.finished for score in self.scores])),
            "epdms": float(self.epdms.mean()),
            "epdms_interval": mean_interval(self.epdms, self.cluster),
            "epdms_expert_filter": float(self.forgiving.mean()),
            "forgiven": float((self.forgiving - self.epdms).mean()),
            "parts": self.parts(),
            "parts_intervals": self.parts_intervals(),
            "absent": self.absent(),
        }

    def scene_lines(self) -> list[dict[str, Any]]:
        """Plain values, one dict per drive."""
        return [
            {
                "planner": self.name,
                "scene": score.name,
                "epdms": score.epdms,
                "epdms_expert_filter": float(forgiven),
                **score.parts,
                "km": score.kilometres,
                "seconds": score.seconds,
                "finished": score.finished,
                "off_road_s": None if score.off_road is None else score.off_road / 10,
                "contacts": [{**asdict(c), "moment": c.moment / 10} for c in score.contacts],
            }
            for score, forgiven in zip(self.scores, self.forgiving, strict=True)
        ]


INTERVAL = "95 %"
HEADER = ("planner", "EPDMS", INTERVAL, "filtered", *PARTS, "at fault", "off road", "km", "per km", "m/s", "finished")


def table(rows: Sequence[Row], joined: bool = False) -> list[list[str]]:
    """A header and one line per planner: EPDMS and its parts in percent, events, kilometres, interventions per km.

    `joined` puts EPDMS and its interval into one cell, as HTML pages need it.
    """
    lines = [[name for name in HEADER if not (joined and name == INTERVAL)]]
    for row in rows:
        values = row.to_json()
        mean, interval = values["epdms"], values["epdms_interval"]
        lines.append(
            [
                row.name,
                *([_between(mean, *interval)] if joined else [f"{100 * mean:.1f}", "-".join(f"{100 * end:.0f}" for end in interval)]),
                f"{100 * values['epdms_expert_filter']:.1f}",
                *("-" if v is None else f"{100 * v:.1f}" for v in values["parts"].values()),
                str(values["at_fault_collisions"]),
                str(values["departures"]),
                f"{values['km']:.2f}",
                "-" if values["interventions_per_km"] is None else f"{values['interventions_per_km']:.2f}",
                "-" if values["speed_mps"] is None else f"{values['speed_mps']:.2f}",
                f"{100 * values['finished']:.0f} %",
            ]
        )
    return lines


def rates(rows: Sequence[Row]) -> list[list[str]]:
    """A header and one line per planner: at-fault contacts and departures per kilometre, with 95 % intervals over scenes; `-` at 0 km."""
    lines = [["per km", "at fault", INTERVAL, "off road", INTERVAL]]
    for row in rows:
        cells, values = [row.name], row.to_json()
        for kind in ("at_fault_collisions", "departures"):
            rate, interval = values[f"{kind}_per_km"], values[f"{kind}_per_km_interval"]
            cells += ["-", "-"] if rate is None or interval is None else [f"{rate:.2f}", f"{interval[0]:.2f}-{interval[1]:.2f}"]
        lines.append(cells)
    return lines


def parts_table(rows: Sequence[Row]) -> list[list[str]]:
    """A header and one line per planner: every part in percent, with its 95 % interval over scenes; `-` where it cannot be scored."""
    lines = [["percent", *PARTS]]
    for row in rows:
        values = row.to_json()
        means, intervals = values["parts"], values["parts_intervals"]
        cells = ["-" if means[part] is None else _between(means[part], *intervals[part]) for part in PARTS]
        lines.append([row.name, *cells])
    return lines


def _between(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def text(rows: Sequence[Row], differences: Sequence[Difference] = (), per_km: bool = False) -> str:
    """The table, with `per_km` that of `rates` too, the parts that are left out, and the differences of planners."""
    tables = [table(rows), rates(rows)] if per_km else [table(rows)]
    return "\n".join([*map(aligned, tables), *left_out_parts(rows), *(difference.sentence() for difference in differences)])


def left_out_parts(rows: Sequence[Row]) -> list[str]:
    """One line per part and reason for which it is left out, with the rows."""
    absent: dict[str, list[str]] = {}
    for row in rows:
        for part, reason in row.absent().items():
            absent.setdefault(f"{part}: {reason}", []).append(row.name)
    return [f"left out, {what} ({'all rows' if len(who) == len(rows) else ', '.join(who)})" for what, who in absent.items()]


@dataclass(frozen=True)
class Difference:
    """Paired difference of two planners by scene, second minus first: EPDMS, at-fault contacts and departures per drive."""

    first: str
    second: str
    epdms: Test
    at_fault: Test
    departures: Test

    @staticmethod
    def of(first: Row, second: Row) -> Difference:
        """The paired difference, second minus first. Raises DataError if the two rows have different scenes."""
        if [s.name for s in first.scores] != [s.name for s in second.scores]:
            raise DataError(f"{first.name} and {second.name} drove different scenes; compare drives of the same scenes.")
        scene = first.cluster
        pairs = ((second.epdms, first.epdms), (second.at_fault, first.at_fault), (second.departures, first.departures))
        return Difference(first.name, second.name, *(paired(b, a, scene) for b, a in pairs))

    def sentence(self) -> str:
        """The difference as one line of text."""

        def shown(test: Test, scale: float, unit: str) -> str:
            return f"{scale * test.difference:+.2f}{unit} [{scale * test.low:+.2f}, {scale * test.high:+.2f}], p {test.p:.3f}"

        return (
            f"{self.second} against {self.first}, paired by scene: EPDMS {shown(self.epdms, 100, ' points')}; "
            f"at-fault collisions per scene {shown(self.at_fault, 1, '')}; departures per scene {shown(self.departures, 1, '')}"
        )

    def cells(self) -> list[str]:
        """The cells of one table row, with the header `DIFFERENCES`."""
        cells = [f"{self.second} against {self.first}"]
        for test, scale in ((self.epdms, 100), (self.at_fault, 1), (self.departures, 1)):
            cells += [f"{scale * test.difference:+.2f} [{scale * test.low:+.2f}, {scale * test.high:+.2f}]", f"{test.p:.4f}"]
        return cells

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tests = {name: asdict(getattr(self, name)) for name in ("epdms", "at_fault", "departures")}
        return {"first": self.first, "second": self.second, **tests}


DIFFERENCES = ("planners", "EPDMS, points", "p", "at-fault collisions per scene", "p", "departures per scene", "p")
"""Header of `Difference.cells`."""
