"""A planner's choices among its candidates: predicted and true collisions and distances of every candidate of every sample.

Shapes: n samples, A candidates, S steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.scene import FUTURE_STEPS
from iidrive.data.clips import ClipDataset
from iidrive.data.outcome_targets import OutcomeTargets
from iidrive.data.source import Source
from iidrive.models.ego_motion import step_before
from iidrive.models.outcome_labels import OutcomeLabels, outcome_labels
from iidrive.models.outcomes import Quality
from iidrive.models.planner import Choice
from iidrive.pipeline.on_device import batches
from iidrive.runtime.distributed import ProcessGroup

Array = np.ndarray

NO_WAY_OUT, NOT_FORESEEN, NOT_AVOIDED = "no free candidate", "not foreseen", "foreseen, not avoided"
FAILURES = (NO_WAY_OUT, NOT_FORESEEN, NOT_AVOIDED)
"""Why a chosen candidate collides: all candidates do; fewer than `FORESEEN_STEPS` steps with a collision were predicted; or it was chosen anyway."""

FORESEEN_STEPS = 0.5

QUALITIES = {
    "ttc_steps": "steps with a time to collision below 1 s",
    "off_road_steps": "steps off the road",
    "progress": "progress of the expert's",
    "uncomfortable": "uncomfortable",
}
"""Outcomes that the quality head predicts: name in files → what it says of a candidate."""


@dataclass(frozen=True)
class Choices:
    """Samples `tokens`, the index of the `chosen` (n,) candidate, and values of every candidate (n,A).

    Predicted: `steps_expected`, number of steps with a collision; `distance_expected_m` from the expert's path; `overlap` with the imagined scene;
    `cost_m`. True: `steps_met`, number of steps with a collision; `distance_m` from the true path. `apart_m`: distance of its end from the end of the
    unchanged proposal. `quality`: name of an outcome in QUALITIES → predicted and true values, each (n,A); empty without a quality head.
    `paths` (n,6,2) are the chosen candidates, which are the plans: LIDAR_TOP in the lidar frame, metres.
    """

    tokens: tuple[str, ...]
    accelerations: tuple[float, ...]
    chosen: Int[Array, "n"]
    steps_expected: Float[Array, "n A"]
    distance_expected_m: Float[Array, "n A"]
    overlap: Float[Array, "n A"]
    cost_m: Float[Array, "n A"]
    steps_met: Int[Array, "n A"]
    distance_m: Float[Array, "n A"]
    apart_m: Float[Array, "n A"]
    quality: Mapping[str, tuple[Float[Array, "n A"], Float[Array, "n A"]]] = field(default_factory=dict)
    paths: Float[Array, "n 6 2"] = field(default_factory=partial(np.zeros, (0, FUTURE_STEPS, 2), np.float32))

    def to_json(self) -> dict[str, Any]:
        """The summary and the number of failures by reason."""
        return {**self.summary(), "failures": self.failure_counts()}

    def summary(self) -> dict[str, float]:
        """Values over all samples. The oracle takes the candidate with the fewest true collisions and, among these, nearest to the true path."""
        rows = np.arange(len(self.chosen))
        best = np.where(self.steps_met == self.steps_met.min(1, keepdims=True), self.distance_m, np.inf).argmin(1)
        return {
            "spread_3s_m": float(self.apart_m.max(1).mean()),
            "changed": float((self.chosen != 0).mean()),
            "steps_expected": float(self.steps_expected[rows, self.chosen].sum()),
            "steps_met": int(self.steps_met[rows, self.chosen].sum()),
            "steps_met_unchanged": int(self.steps_met[:, 0].sum()),
            "steps_met_oracle": int(self.steps_met[rows, best].sum()),
            "distance_m": float(self.distance_m[rows, self.chosen].mean()),
            "distance_unchanged_m": float(self.distance_m[:, 0].mean()),
            "distance_oracle_m": float(self.distance_m[rows, best].mean()),
            **{
                f"{name}{suffix}": float(values[rows, self.chosen].mean())
                for name, pair in self.quality.items()
                for suffix, values in zip(("_expected", ""), pair, strict=True)
            },
        }

    def failures(self) -> dict[str, str]:
        """Samples whose chosen candidate collides: token → reason, one of `FAILURES`."""
        rows = np.arange(len(self.chosen))
        blocked = self.steps_met.min(1) > 0
        foreseen = np.maximum(self.steps_expected, self.overlap)[rows, self.chosen] >= FORESEEN_STEPS
        met = np.flatnonzero(self.steps_met[rows, self.chosen] > 0)
        return {self.tokens[k]: NO_WAY_OUT if blocked[k] else NOT_AVOIDED if foreseen[k] else NOT_FORESEEN for k in met}

    def failure_counts(self) -> dict[str, int]:
        """Number of samples for each of `FAILURES`."""
        why = list(self.failures().values())
        return {kind: why.count(kind) for kind in FAILURES}

    def text(self) -> str:
        """The summary as three sentences."""
        s, failed = self.summary(), self.failure_counts()
        why = "; ".join(f"{kind} {count}" for kind, count in failed.items())
        met = sum(failed.values())
        more = "; ".join(f"{what} {s[f'{name}_expected']:.3f} and {s[name]:.3f}" for name, what in QUALITIES.items() if name in s)
        return (
            f"candidates: {len(self.accelerations)} speeds, the farthest ends {s['spread_3s_m']:.1f} m from the way at 3 s; the choice changed "
            f"{100 * s['changed']:.1f} % of the plans.\n"
            f"steps with a true box, mean distance from the true path: chosen {s['steps_met']} ({s['steps_expected']:.1f} expected), "
            f"{s['distance_m']:.3f} m; unchanged {s['steps_met_unchanged']}, {s['distance_unchanged_m']:.3f} m; an oracle's choice "
            f"{s['steps_met_oracle']}, {s['distance_oracle_m']:.3f} m.\n"
            f"samples whose choice meets a box: {met}"
            + (f" ({why})." if met else ".")
            + (f"\nthe chosen, expected and true, mean over samples: {more}." if more else "")
        )

    def lines(self) -> str:
        """One JSON object a sample: its token, the chosen candidate, and every candidate's figures."""
        names = [one.name for one in fields(self) if one.name not in ("tokens", "accelerations", "chosen", "quality", "paths")]
        out = []
        for i, token in enumerate(self.tokens):
            table = {name: np.round(getattr(self, name)[i].astype(float), 4).tolist() for name in names}
            for name, (expected, true) in self.quality.items():
                table[f"{name}_expected"], table[name] = (np.round(values[i].astype(float), 4).tolist() for values in (expected, true))
            out.append(json.dumps({"token": token, "chosen": int(self.chosen[i]), "accelerations_mps2": list(self.accelerations), **table}))
        return "\n".join(out) + "\n"


@torch.no_grad()
def choices(
    choose: Callable[[Inputs], Choice],
    accelerations: tuple[float, ...],
    clips: ClipDataset,
    source: Source,
    process_group: ProcessGroup | None = None,
    batch: int = 64,
) -> Choices:
    """The choices of a planner with candidates on every sample, with true outcomes. The processes of a group share whole batches."""
    process_group = process_group or ProcessGroup()
    labelled = clips.without_occupancy().with_labels(OutcomeTargets(source))
    made = {}
    for rows, part in batches(labelled, process_group.shard(range(0, len(labelled), batch)), batch):
        choice = choose(part.inputs)
        before = step_before(part.inputs, choice.candidates[:, 0])
        truth = outcome_labels(choice.candidates, part.targets, part.inputs.ego_T_lidar, before)
        met, off = truth.collision.sum(-1), truth.distance_m
        apart = (choice.candidates[:, :, -1] - choice.candidates[:, :1, -1]).norm(dim=-1)
        told = choice.outcomes.collision.sigmoid().sum(-1), choice.outcomes.distance_m, choice.outcomes.overlap, choice.cost_m
        quality = _quality(choice.outcomes.quality, truth)
        columns = choice.cost_m.argmin(1), *told, met, off, apart, choice.best().float(), *quality
        made[rows.start] = part.inputs.tokens, [x.numpy(force=True) for x in columns]
    found = {start: one for some in process_group.gather(made) for start, one in some.items()}
    ordered = [found[start] for start in sorted(found)]
    columns = [np.concatenate(column) for column in zip(*(arrays for _, arrays in ordered), strict=True)]
    tokens = tuple(token for some, _ in ordered for token in some)
    values, paths, rest = columns[:8], columns[8], columns[9:]
    quality = {name: (rest[2 * k], rest[2 * k + 1]) for k, name in enumerate(QUALITIES)} if rest else {}
    return Choices(tokens, accelerations, *values, quality=quality, paths=paths)


def _quality(expected: Quality | None, truth: OutcomeLabels) -> list[Tensor]:
    """Predicted and true values of each outcome in QUALITIES, (B,A), alternating; empty without a quality head."""
    if expected is None:
        return []
    ttc, road, harsh = (logits.sigmoid() for logits in (expected.ttc, expected.off_road, expected.uncomfortable))
    return [
        ttc.sum(-1),
        truth.ttc.sum(-1),
        road.sum(-1),
        truth.off_road.sum(-1),
        expected.progress,
        truth.progress,
        harsh,
        truth.uncomfortable,
    ]
