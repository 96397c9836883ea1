"""Validation during training. Each function scores a model and returns (metrics, text); the first metric selects the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from iidrive.core.classes import FREE
from iidrive.core.scene import STEP_S
from iidrive.data.clips import EgoTrack, read_tracks, scored_clips
from iidrive.data.joint import parts_of
from iidrive.data.source import Source
from iidrive.models.forecast import Forecaster
from iidrive.models.occupancy_flow import FlowLearner
from iidrive.models.planner import Agent
from iidrive.models.reaction_loss import ReactionLearner
from iidrive.models.road_users import transported
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer, token_check
from iidrive.pipeline.forecast_rows import Truths, count_movers
from iidrive.pipeline.on_device import batches
from iidrive.pipeline.tokens import codes_in_memory
from iidrive.runtime.distributed import ProcessGroup
from iidrive.scoring.movers import MoverCounts, movers_in
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.score import score
from iidrive.scoring.tables import format_scores
from iidrive.simulation.branches import Branches
from iidrive.training.optim import TrainConfig

Array = np.ndarray
Validation = tuple[dict[str, float], str]


def held_out(source: Source, training: TrainConfig) -> list[tuple[Source, list[EgoTrack]]]:
    """The validation scenes of each source: the first ones of its usual validation split; empty if validation is off."""
    if not training.validate_every:
        return []
    return [(part, read_tracks(part, part.scene_names(part.usual_split("val"))[: training.validate_scenes])) for part in parts_of(source)]


def by_source(validate: Callable[[Source, list[EgoTrack]], Validation], scenes: Sequence[tuple[Source, list[EgoTrack]]]) -> Validation:
    """Validate on each source. For a single source the result is that of `validate`. For several it starts with the mean of their first metrics,
    followed by the metrics of each, prefixed with its name."""
    each = [(source.name, *validate(source, tracks)) for source, tracks in scenes]
    if len(each) == 1:
        return each[0][1:]
    firsts = [next(iter(numbers.items())) for _, numbers, _ in each]
    found = {f"{name}_{key}": value for name, numbers, _ in each for key, value in numbers.items()}
    text = "\n\n".join(f"{name}\n{told}" for name, _, told in each)
    return {f"mean_{firsts[0][0]}": float(np.mean([value for _, value in firsts])), **found}, text


def validate_tokenizer(tokenizer: Tokenizer, source: Source, tracks: list[EgoTrack]) -> Validation:
    """Reconstruction mIoU."""
    found = token_check.measure(tokenizer, source, tracks)
    return {"mIoU": found}, f"reconstruction mIoU {100 * found:.2f} %"


def validate_flow(learner: FlowLearner, source: Source, tracks: list[EgoTrack], process_group: ProcessGroup, batch: int = 8) -> Validation:
    """IoU of movers at 1, 2 and 3 s: present road users, decoded from tokens computed now, moved by the flow into the true future ego frames.

    These are the movers of the forecast table's row with the true path. The first metric is their mean, 0 if nothing moves in these scenes.
    """
    tokenizer, net, grid = learner.tokenizer, learner.net, learner.tokenizer.config.grid
    clips = scored_clips(tracks, codes_in_memory(tokenizer, source, tracks))
    steps = [step for step in infer.HORIZON_STEPS if step > 0]
    ahead = [step - 1 for step in steps]
    truths, total = Truths(source, grid), MoverCounts.zero(len(steps))
    for rows, part in batches(clips, process_group.shard(range(0, len(clips), batch)), batch):
        assert part.inputs.codes is not None
        latents = tokenizer.latent_of(part.inputs.codes[:, -net.history :])
        made, present = net.of(part.inputs, latents), tokenizer.labels(latents[:, -1])
        taken, frames = made.taken[:, steps].sigmoid(), part.targets.now_T_frame[:, ahead]
        nothing = torch.full_like(present, FREE)[:, None].expand(-1, len(steps), *grid.shape)
        labels = transported(nothing, present, taken, net.config.threshold, made.flow_m[:, ahead], frames, grid, net.fine)
        at = [(clips.tracks[number].name, index) for number, index in (clips.samples[row] for row in rows)]
        movers = [truths.movers(name, [index + step for step in steps]) for name, index in at]
        total += count_movers(movers_in(labels.numpy(force=True)), movers)
    shares = sum(process_group.gather(total), MoverCounts.zero(len(steps))).iou()
    values = {f"movers_IoU_{step * STEP_S:g}s": float(share) for step, share in zip(steps, shares, strict=True)}
    numbers = {name: value for name, value in values.items() if not np.isnan(value)}
    shown = " / ".join(f"{100 * value:.2f}" for value in values.values())
    return {"movers_IoU": float(np.mean(list(numbers.values()) or [0.0])), **numbers}, f"movers IoU at 1 / 2 / 3 s {shown} %"


def validate_reactions(
    learner: ReactionLearner, source: Source, tracks: list[EgoTrack], branches: Branches, process_group: ProcessGroup, batch: int = 8
) -> Validation:
    """How much of the forecast's cross entropy in branches of scenes the reaction net takes away. The first metric is that fraction."""
    clips = scored_clips(tracks, codes_in_memory(learner.forecaster.tokenizer, source, tracks)).with_labels(branches)
    mine: dict[int, Float[Array, "2 b"]] = {}
    for rows, part in batches(clips, process_group.shard(range(0, len(clips), batch)), batch):
        mine[rows.start] = torch.stack(learner.entropies(part)).double().numpy(force=True)
    found = {start: one for some in process_group.gather(mine) for start, one in some.items()}
    without, reacting = np.concatenate([found[start] for start in sorted(found)], 1).mean(1)
    text = f"branches: cross entropy {without:.3f} without the reaction net, {reacting:.3f} with it"
    return {"reaction_gain": float(1 - reacting / without), "entropy_without": float(without), "entropy": float(reacting)}, text


def validate_world(forecaster: Forecaster, source: Source, tracks: list[EgoTrack], process_group: ProcessGroup) -> Validation:
    """Forecast mIoU, averaged over 1, 2 and 3 s, from tokens computed now."""
    grid = forecaster.tokenizer.config.grid
    clips = scored_clips(tracks, codes_in_memory(forecaster.tokenizer, source, tracks), source, grid)
    scores = infer.forecasts(forecaster, clips, grid, process_group, source=source)
    ahead = scores.miou("world model")[1:]
    numbers = {"mIoU": ahead, "movers_IoU": scores.figure("world model", "movers_IoU")[1:]}
    found = {f"{name}_{s}s": v for name, values in numbers.items() for s, v in enumerate(values, 1) if not np.isnan(v)}
    return {"mIoU": float(np.mean(ahead)), **found}, scores.table()


def validate_planner(agent: Agent, source: Source, tracks: list[EgoTrack], process_group: ProcessGroup) -> Validation:
    """Scores by the reference protocol. The first metric is the negative average L2, so that larger is better."""
    clips = scored_clips(tracks, codes_in_memory(agent.forecaster.tokenizer, source, tracks))
    tokens, paths = infer.plans(partial(agent.plan, ii=agent.train_ii), clips, process_group)
    cases = infer.truth(source, tracks)
    scores = score(cases, align(cases, Predictions(paths, tokens, {}, "validation")))
    found = {"minus_L2": -scores.average["L2"], "obj_box_col": scores.average["obj_box_col"]}
    return {name: value for name, value in found.items() if not np.isnan(value)}, format_scores(scores)
