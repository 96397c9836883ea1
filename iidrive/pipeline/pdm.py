"""`--protocol pdm`: EPDMS of single plans, each followed for 3 s among the recorded boxes. It works for any source with a map."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.data.clips import EgoTrack, keyframes
from iidrive.data.source import Source
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.progress import counting
from iidrive.scoring.driving.epdms import DriveScore
from iidrive.scoring.driving.pdm import RecordedScene
from iidrive.scoring.driving.summary import Difference, Row, text

Array = np.ndarray
TRUE_PATH = "true path"


@dataclass(frozen=True)
class PdmScores:
    """Scores of the plans and of the true path over the same samples, both followed by the same controller.

    `left_out`: number of samples without a plan or a full future.
    """

    plans: Row
    truth: Row
    left_out: int

    def text(self) -> str:
        """The table and the paired difference from the true path. If the true path itself was scored, only its row."""
        rows = [self.truth] if self.plans.name == TRUE_PATH else [self.truth, self.plans]
        table = text(rows, [Difference.of(*pair) for pair in itertools.pairwise(rows)])
        without = f"; {self.left_out} without a plan or a full future" if self.left_out else ""
        scored = len(self.plans.scores)
        return f"{table}\npdm: every plan is followed for 3 s among recorded boxes, which do not react. {scored} samples{without}."

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.plans.to_json(), "rows": {row.name: row.to_json() for row in (self.truth, self.plans)}, "left_out": self.left_out}


def pdm(
    name: str,
    source: Source,
    tracks: Sequence[EgoTrack],
    plans: Mapping[str, Float[Array, "6 2"]],
    process_group: ProcessGroup | None = None,
) -> PdmScores:
    """Score plans (LIDAR_TOP paths by sample token, lidar frame, metres) of some scenes by EPDMS. The processes of a group share the scenes.

    Raises:
        DataError: if no plan belongs to a sample with a full future.
    """
    process_group = process_group or ProcessGroup()
    made: dict[int, list[tuple[DriveScore, DriveScore]]] = {}
    with counting("pdm", len(tracks), process_group) as tick:
        for number in process_group.shard(range(len(tracks))):
            track = tracks[number]
            recorded = RecordedScene.of(source.scene(track.name))
            scored = [k for k, token in enumerate(track.tokens) if token in plans and track.path_valid[k].all()]
            made[number] = [recorded.score(k, plans[track.tokens[k]], track.path[k]) for k in scored]
            tick(track.name)
    each = {number: pairs for some in process_group.gather(made) for number, pairs in some.items()}
    pairs = [pair for number in range(len(tracks)) for pair in each[number]]
    if not pairs:
        raise DataError(
            f"{name}: no plan belongs to a sample of these scenes with six future keyframes; are the sample tokens those of the data?"
        )
    own, truth = zip(*pairs, strict=True)
    scenes = tuple(track.name for number, track in enumerate(tracks) for _ in each[number])
    left_out = keyframes(tracks) - len(pairs)
    return PdmScores(Row(name, own, truth, scenes), Row(TRUE_PATH, truth, truth, scenes), left_out)
