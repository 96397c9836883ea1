"""Run planners and forecasters over a split: plans by sample token, and occupancy counts per horizon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.scene import GridSpec, Observation, Target
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, EgoTrack, Frames
from iidrive.data.source import Source, window
from iidrive.models.forecast import Forecaster
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline.forecast_rows import ROWS, Truths, count_probabilities, count_rows, forecast_rows, transport_rows
from iidrive.pipeline.on_device import batches, confusion, counts_here
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import device
from iidrive.scoring import metrics
from iidrive.scoring.cases import Cases
from iidrive.scoring.cases_from_samples import cases_from_samples
from iidrive.scoring.forecast import ALL_CELLS, CORRIDOR, ForecastScores, RowCounts
from iidrive.scoring.movers import MoverCounts
from iidrive.scoring.reliability import Reliability

Array = np.ndarray
Hears = Callable[[Sequence[int], UInt8[Array, "B H X Y Z"]], None]
HORIZON_STEPS = (0, 2, 4, 6)
"""Steps of 0.5 s at which forecasts are scored: 0 s (reconstruction) and 1, 2, 3 s."""


def truth(source: Source, tracks: Iterable[EgoTrack]) -> Cases:
    """The cases of some scenes: every keyframe with its true path and boxes."""

    def samples() -> Iterator[tuple[Observation, Target]]:
        for track in tracks:
            scene = source.scene(track.name)
            for index in range(len(scene)):
                yield window(source, scene, index, past=0, path=track.true_path(index))

    return cases_from_samples(samples())


def plans(
    planner: Callable[[Inputs], Float[Tensor, "B *R 6 2"]], clips: ClipDataset, process_group: ProcessGroup | None = None, batch: int = 64
) -> tuple[tuple[str, ...], Float[Array, "n *R 6 2"]]:
    """Plan every sample: (sample tokens, LIDAR_TOP paths in the lidar frame, metres, float32). A planner may return R paths of each sample.

    The processes of a group share whole batches, so the result is bitwise independent of the number of processes.
    """
    process_group, made = process_group or ProcessGroup(), {}
    for rows, part in batches(clips, process_group.shard(range(0, len(clips), batch)), batch):
        made[rows.start] = part.inputs.tokens, planner(part.inputs).numpy(force=True).astype(np.float32)
    found = {start: plan for part in process_group.gather(made) for start, plan in part.items()}
    tokens, paths = zip(*(found[start] for start in sorted(found)), strict=True)
    return tuple(token for some in tokens for token in some), np.concatenate(paths)


def forecasts(
    forecaster: Forecaster,
    clips: ClipDataset,
    spec: GridSpec,
    process_group: ProcessGroup | None = None,
    batch: int = 8,
    steps: tuple[int, ...] = HORIZON_STEPS,
    source: Source | None = None,
    oracle_every: int = 4,
    hear: Hears = lambda rows, labels: None,
) -> ForecastScores:
    """Score the forecaster and the copy baselines on samples with a full future. `clips` must hold codes and future occupancy.

    - `world model`: reconstruction at 0 s and rollout after it, each in the ego frame that the model predicts;
    - `copy last`: nothing changes in the ego frame;
    - `copy warped`: the world is static and the ego keeps its turn rate and velocity;
    - `copy warped, true motion (oracle)`: the same with the true future ego motion.

    With the `source` of the samples, which has their boxes, all metrics are measured (else only mIoU and IoU), and there are more rows:

    - `transport`: as `copy warped`, but tracked boxes keep their turn rate and velocity and move their voxels;
    - `transport, true flow`: the same with the true motion of boxes and ego;
    - `world model, true path (oracle)`: the rollout along the true path, as in some publications. It doubles the cost, so it is computed only for
      every `oracle_every`-th batch. A world model with motion=map has no such row.

    `hear` is called with the rows of each batch and the labels that the world model imagines. The processes of a group share whole batches.
    """
    process_group = process_group or ProcessGroup()
    truths = None if source is None else Truths(source, spec)
    totals: dict[str, RowCounts] = {}
    none = MoverCounts.zero(len(steps))
    ceiling = none, none
    flow = None if source is None or forecaster.flow_grid is None else FlowTargets(source, forecaster.flow_grid)
    calibration: dict[str, Reliability] = {}
    for rows, part in batches(clips, process_group.shard(range(0, len(clips), batch)), batch):
        oracle = source is not None and rows.start // batch % oracle_every == 0
        made = forecast_rows(forecaster, part, spec, steps, oracle)
        hear(rows, made["world model"].labels)
        truth = None
        if truths is not None:
            truth = truths.of(clips, rows, part, steps)
            made |= transport_rows(truth.at, part, spec, steps)
            ceiling = ceiling[0] + truth.ceiling[0], ceiling[1] + truth.ceiling[1]
        for name, counts in count_rows(made, part, steps, spec, truth).items():
            totals[name] = totals[name] + counts if name in totals else counts
        taken = made["world model"].taken
        if flow is not None and taken is not None:
            for name, counts in count_probabilities(taken, clips, rows, part, flow, steps).items():
                calibration[name] = calibration[name] + counts if name in calibration else counts
    parts = process_group.gather((totals, ceiling, calibration))
    names = [name for name in ROWS if any(name in found for found, _, _ in parts)]
    whole = {name: sum((found[name] for found, _, _ in parts if name in found), RowCounts.zero(len(steps))) for name in names}
    ceiling = sum((found[0] for _, found, _ in parts), none), sum((found[1] for _, found, _ in parts), none)
    privileged = {name: ROWS[name] for name in names if ROWS[name]}
    ahead = sum(step > 0 for step in steps)
    places = [name for name in (ALL_CELLS, CORRIDOR) if any(name in found for _, _, found in parts)]
    reliability = {name: sum((found[name] for _, _, found in parts if name in found), Reliability.zero(ahead)) for name in places}
    return ForecastScores(whole[names[0]].samples, whole, steps, ceiling if source is not None else None, privileged, reliability)


@torch.no_grad()
def reconstruction(tokenizer: Tokenizer, codes: Frames, occupancy: Frames, rows: Iterable[tuple[str, Array]]) -> Int64[Array, "18 18"]:
    """Confusion matrix [truth, decoded] of keyframes (scene name, indices) decoded from their codes."""
    total, there = np.zeros((18, 18), np.int64), torch.zeros(18, 18, dtype=torch.int64, device=device())
    for name, indices in rows:
        for part in np.array_split(indices, max(1, len(indices) // 8)):
            labels = tokenizer.labels(tokenizer.latent_of(torch.from_numpy(codes(name, part).astype(np.int64)).to(device())))
            if counts_here(labels):
                there = there + confusion(torch.from_numpy(occupancy(name, part)).to(labels.device), labels)
            else:
                total += metrics.confusion(occupancy(name, part), labels.numpy())
    return total + there.numpy(force=True)
