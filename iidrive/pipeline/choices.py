"""A planner's choices among its candidates: predicted and true collisions and distances of every candidate of every sample.

Shapes: n samples (B in a batch), A candidates, S steps, N boxes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from iidrive.core import geometry
from iidrive.core.batch import Inputs, Targets
from iidrive.core.classes import CATEGORIES
from iidrive.core.scene import FUTURE_STEPS, STEP_S, Scene
from iidrive.data.clips import ClipDataset
from iidrive.data.outcome_targets import OutcomeTargets
from iidrive.data.source import Source
from iidrive.models.ego_motion import step_before
from iidrive.models.outcome_labels import OutcomeLabels, collisions, outcome_labels
from iidrive.models.outcomes import Quality
from iidrive.models.planner import Agent, Choice
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
    `paths` (n,6,2) are the chosen candidates, which are the plans: LIDAR_TOP in the lidar frame, metres. At each of the six steps,
    `collision_expected` (n,A,6) is the predicted probability of a collision, `collision` (n,A,6) the truth. `met_track` and `met_category` (n,A):
    the box that a candidate meets first, "" for none.
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
    collision_expected: Float[Array, "n A 6"] = field(default_factory=partial(np.zeros, (0, 0, FUTURE_STEPS), np.float32))
    collision: Bool[Array, "n A 6"] = field(default_factory=partial(np.zeros, (0, 0, FUTURE_STEPS), bool))
    met_track: Shaped[Array, "n A"] = field(default_factory=partial(np.zeros, (0, 0), np.str_))
    met_category: Shaped[Array, "n A"] = field(default_factory=partial(np.zeros, (0, 0), np.str_))

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
        """One JSON object a sample: its token, the chosen candidate, and for every candidate what was predicted and what it met."""
        out = []
        for i, token in enumerate(self.tokens):
            table = {name: _rounded(getattr(self, name)[i]) for name in _OF_A_CANDIDATE}
            for name, (expected, true) in self.quality.items():
                table[f"{name}_expected"], table[name] = _rounded(expected[i]), _rounded(true[i])
            table |= {"collision_expected": _rounded(self.collision_expected[i]), "collision": self.collision[i].tolist()}
            table["first_met_s"] = [(steps.index(True) + 1) * STEP_S if any(steps) else None for steps in self.collision[i].tolist()]
            table |= {name: [told or None for told in getattr(self, name)[i].tolist()] for name in ("met_track", "met_category")}
            out.append(json.dumps({"token": token, "chosen": int(self.chosen[i]), "accelerations_mps2": list(self.accelerations), **table}))
        return "\n".join(out) + "\n"


_OF_A_CANDIDATE = ("steps_expected", "distance_expected_m", "overlap", "cost_m", "steps_met", "distance_m", "apart_m")


def _rounded(values: Shaped[Array, "*s"]) -> list[Any]:
    return np.round(values.astype(float), 4).tolist()


def choices(
    choose: Callable[[Inputs], Choice],
    accelerations: tuple[float, ...],
    clips: ClipDataset,
    source: Source,
    process_group: ProcessGroup | None = None,
    batch: int = 64,
) -> Choices:
    """The choices of a planner with candidates on every sample, with true outcomes. The processes of a group share whole batches."""
    (made,) = _choices(lambda inputs: [choose(inputs)], accelerations, clips, source, process_group, batch)
    return made


def choices_without_and_with_ii(
    agent: Agent, clips: ClipDataset, source: Source, process_group: ProcessGroup | None = None, batch: int = 64
) -> list[Choices]:
    """As `choices`, for a planner without ii and with it. Both have the same candidates, so these and their true outcomes are computed once."""
    return _choices(agent.both_choices, agent.planner.config.accelerations, clips, source, process_group, batch)


@torch.no_grad()
def _choices(
    choose: Callable[[Inputs], Sequence[Choice]],
    accelerations: tuple[float, ...],
    clips: ClipDataset,
    source: Source,
    process_group: ProcessGroup | None,
    batch: int,
) -> list[Choices]:
    """One `Choices` for each `Choice` that `choose` returns of a batch. All of them have the same candidates."""
    process_group = process_group or ProcessGroup()
    labelled = clips.without_occupancy().with_labels(OutcomeTargets(source))
    made = {}
    for rows, part in batches(labelled, process_group.shard(range(0, len(labelled), batch)), batch):
        each = choose(part.inputs)
        candidates, frame = each[0].candidates, part.inputs.ego_T_lidar
        truth = outcome_labels(candidates, part.targets, frame, step_before(part.inputs, candidates[:, 0]))
        samples = [clips.samples[row] for row in rows]
        places = [(source.scene(clips.tracks[number].name), index) for number, index in samples]
        whom = first_met(candidates, truth.collision, part.targets, frame, places)
        made[rows.start] = part.inputs.tokens, [[*_columns(choice, truth), *whom] for choice in each]
    found = {start: one for some in process_group.gather(made) for start, one in some.items()}
    ordered = [found[start] for start in sorted(found)]
    tokens = tuple(token for some, _ in ordered for token in some)
    return [_joined(tokens, accelerations, parts) for parts in zip(*(each for _, each in ordered), strict=True)]


def _columns(choice: Choice, truth: OutcomeLabels) -> list[Array]:
    """Values of a batch in the order in which `_joined` reads them."""
    told, apart = choice.outcomes, (choice.candidates[:, :, -1] - choice.candidates[:, :1, -1]).norm(dim=-1)
    risk = told.collision.sigmoid()
    columns = [choice.cost_m.argmin(1), risk.sum(-1), told.distance_m, told.overlap, choice.cost_m]
    columns += [truth.collision.sum(-1), truth.distance_m, apart, choice.best().float(), risk, truth.collision]
    return [column.numpy(force=True) for column in (*_quality(told.quality, truth), *columns)]


def _joined(tokens: tuple[str, ...], accelerations: tuple[float, ...], parts: Sequence[Sequence[Array]]) -> Choices:
    """Join the columns of all batches."""
    *quality, chosen, risk, far, overlap, cost, met, off, apart, paths, collision_expected, collision, track, category = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    pairs = {name: (quality[2 * k], quality[2 * k + 1]) for k, name in enumerate(QUALITIES)} if quality else {}
    values = chosen, risk, far, overlap, cost, met, off, apart
    return Choices(tokens, accelerations, *values, pairs, paths, collision_expected, collision, track, category)


def first_met(
    candidates: Float[Tensor, "B A S 2"],
    collision: Bool[Tensor, "B A S"],
    targets: Targets,
    ego_T_lidar: Float[Tensor, "B 4 4"],
    at: Sequence[tuple[Scene, int]],
) -> tuple[Shaped[Array, "B A"], Shaped[Array, "B A"]]:
    """Track and category of the box that each candidate meets at its first step with a `collision`; "" for none.

    If it meets several boxes at that step, it is the one that comes nearest to where the ego is now. `at`: scene and keyframe of each sample.
    """
    assert targets.boxes is not None
    assert targets.boxes_known is not None
    hit, step = collision.any(-1).cpu(), collision.int().argmax(-1).cpu()
    tracks, categories = np.full(hit.shape, "", object), np.full(hit.shape, "", object)
    for b in hit.any(1).nonzero()[:, 0].tolist():
        some = hit[b].nonzero()[:, 0]
        boxes, known = targets.boxes[b].cpu(), targets.boxes_known[b].cpu()
        alone = replace(targets, boxes=boxes[:, None], boxes_known=known[:, None])  # every box as a sample of its own
        paths = candidates[b].cpu()[some].expand(len(boxes), -1, -1, -1)
        touched = collisions(paths, alone, ego_T_lidar[b].cpu().expand(len(boxes), 4, 4))
        scene, index = at[b]
        ego_T_global = geometry.invert(scene.keyframes[index].global_T_ego.matrix)
        for k, a in enumerate(some.tolist()):
            when = int(step[b, a]) + 1
            box = boxes[int(touched[:, k, when - 1].int().argmax()), when, :2].numpy()
            there = scene.keyframes[index + when].boxes
            away = np.linalg.norm(geometry.apply(ego_T_global, there.centre_m)[:, :2] - box, axis=1)
            tracks[b, a], categories[b, a] = there.track[away.argmin()], CATEGORIES[there.label[away.argmin()]]
    return tracks.astype(np.str_), categories.astype(np.str_)


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
