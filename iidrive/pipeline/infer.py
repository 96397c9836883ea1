"""Runs planners and forecasters over a split: plans joined by sample token, occupancy histograms per horizon."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from iidrive.core.classes import FREE, IGNORE
from iidrive.core.scene import FUTURE_STEPS, STEP_S, GridSpec, Inputs, Observation, Target
from iidrive.data.clips import ClipDataset, EgoTrack, Frames
from iidrive.data.source import Source, window
from iidrive.models.baselines import copy_last, copy_warped
from iidrive.models.ego_motion import constant_turn
from iidrive.models.forecast import Forecaster
from iidrive.models.tokenizer import Tokenizer
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import device
from iidrive.scoring import metrics
from iidrive.scoring.cases import Cases, cases_from_windows

Array = np.ndarray
HORIZON_STEPS = (0, 2, 4, 6)
"""Forecasts are scored now (reconstruction) and 1, 2, 3 s ahead."""


def truth(source: Source, tracks: Iterable[EgoTrack]) -> Cases:
    """The cases of some scenes: every keyframe, its true path and the boxes around it."""

    def samples() -> Iterator[tuple[Observation, Target]]:
        for track in tracks:
            scene = source.scene(track.name)
            for index in range(len(scene)):
                yield window(source, scene, index, past=0, path=track.true_path(index))

    return cases_from_windows(samples())


def plans(
    planner: Callable[[Inputs], Float[Tensor, "B 6 2"]], clips: ClipDataset, process_group: ProcessGroup | None = None, batch: int = 64
) -> tuple[tuple[str, ...], Float[Array, "n 6 2"]]:
    """Plan every sample: (sample tokens, paths of LIDAR_TOP in the lidar frame, float32).

    The processes of a `process_group` share whole batches, so that the answer has the same bits for any number of them.
    """
    process_group, made = process_group or ProcessGroup(), {}
    for start in process_group.shard(range(0, len(clips), batch)):
        inputs = clips.batch(range(start, min(start + batch, len(clips)))).inputs
        made[start] = inputs.tokens, planner(inputs.to(device())).numpy(force=True).astype(np.float32)
    found = {start: plan for part in process_group.gather(made) for start, plan in part.items()}
    tokens, paths = zip(*(found[start] for start in sorted(found)), strict=True)
    return tuple(token for some in tokens for token in some), np.concatenate(paths)


@dataclass(frozen=True)
class ForecastScores:
    """Confusion matrices [truth, forecast] per forecaster and horizon (`steps` of 0.5 s), and the number of samples."""

    samples: int
    histograms: Mapping[str, Int64[Array, "H 18 18"]]
    steps: tuple[int, ...] = HORIZON_STEPS

    def miou(self, name: str) -> list[float]:
        """mIoU over the 17 non-free classes, per horizon; classes that neither truth nor forecast holds are left out."""
        return [metrics.miou(h) for h in self.histograms[name]]

    def iou(self, name: str) -> list[float]:
        """IoU of occupied against free, per horizon."""
        return [metrics.iou_occupied(h) for h in self.histograms[name]]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        seconds = [s * STEP_S for s in self.steps]
        rows = {name: {"mIoU": self.miou(name), "IoU": self.iou(name)} for name in self.histograms}
        return {"n": self.samples, "seconds": seconds, "rows": rows}

    def table(self) -> str:
        """mIoU and IoU in percent, one row a forecaster."""
        head = [f"{s * STEP_S:.0f} s" for s in self.steps]
        width = max(len(n) for n in self.histograms) + 2
        lines = [f"{'forecast':<{width}}" + "".join(f"{'mIoU ' + h:>10}" for h in head) + "".join(f"{'IoU ' + h:>10}" for h in head)]
        for name in self.histograms:
            values = [*self.miou(name), *self.iou(name)]
            lines.append(f"{name:<{width}}" + "".join(f"{100 * v:>10.2f}" for v in values))
        return "\n".join(lines)


def forecasts(
    forecaster: Forecaster,
    clips: ClipDataset,
    spec: GridSpec,
    process_group: ProcessGroup | None = None,
    batch: int = 8,
    steps: tuple[int, ...] = HORIZON_STEPS,
) -> ForecastScores:
    """Score the forecaster and the copy baselines on samples with a full future (windows with codes and future occupancy).

    - `world model`: reconstruction now, roll-out ahead, each in the ego frame that the model predicts;
    - `copy last`: nothing changes in the ego frame;
    - `copy warped`: the world stands still and the ego keeps its turn rate and velocity;
    - `copy warped, true motion`: the same with the true future ego motion, which no forecaster may know.

    The processes of a `process_group` share whole batches.
    """
    process_group = process_group or ProcessGroup()
    names = ["world model", "copy last", "copy warped", "copy warped, true motion (oracle)"]
    histograms = {name: np.zeros((len(steps), 18, 18), np.int64) for name in names}
    count = 0
    for start in process_group.shard(range(0, len(clips), batch)):
        part = clips.batch(range(start, min(start + batch, len(clips)))).to(device())
        inputs, targets = part.inputs, part.targets
        assert inputs.occupancy is not None
        assert targets.occupancy is not None
        now = inputs.occupancy[:, -1]
        at = list(steps)
        real = torch.cat([now[:, None], targets.occupancy], 1)[:, at]
        now = torch.where(now == IGNORE, FREE, now)
        found = {
            "copy last": copy_last(now, FUTURE_STEPS),
            "copy warped": copy_warped(now, constant_turn(inputs), spec),
            "copy warped, true motion (oracle)": copy_warped(now, targets.now_T_frame, spec),
        }
        found = {k: torch.cat([now[:, None], v], 1)[:, at] for k, v in found.items()}
        found["world model"] = forecaster.forecast(inputs, at)[0]
        for name, labels in found.items():
            for h in range(len(at)):
                histograms[name][h] += metrics.confusion(real[:, h].numpy(force=True), labels[:, h].numpy(force=True))
        count += len(inputs.tokens)
    parts = process_group.gather((count, histograms))
    whole = {name: np.sum([made[name] for _, made in parts], axis=0) for name in names}
    return ForecastScores(sum(samples for samples, _ in parts), whole, steps)


@torch.no_grad()
def reconstruction(tokenizer: Tokenizer, codes: Frames, occupancy: Frames, rows: Iterable[tuple[str, Array]]) -> Int64[Array, "18 18"]:
    """Confusion matrix [truth, decoded] of keyframes (scene name and indices), decoded from their codes alone."""
    total = np.zeros((18, 18), np.int64)
    for name, indices in rows:
        for part in np.array_split(indices, max(1, len(indices) // 8)):
            latent = tokenizer.latent_of(torch.from_numpy(codes(name, part).astype(np.int64)).to(device()))
            total += metrics.confusion(occupancy(name, part), tokenizer.labels(latent).numpy(force=True))
    return total
