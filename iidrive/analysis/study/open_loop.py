"""Open-loop results of planners by scene: SparseDrive's collision events and L2, and EPDMS of plans that are followed among recorded boxes.

Shapes: n samples, s scenes. Paths are LIDAR_TOP positions in the lidar frame of their keyframe, metres.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iidrive.core.untrusted.json_text import parse_json
from iidrive.core.version import VERSION
from iidrive.data.clips import ClipDataset
from iidrive.pipeline.drive import DECIDE
from iidrive.pipeline.evaluate import Plan
from iidrive.pipeline.infer import plans
from iidrive.pipeline.pdm import pdm
from iidrive.pipeline.testset import TestSet
from iidrive.runtime.run_folder import Run
from iidrive.runtime.sources import named_by, source_digest
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.score import score

Array = np.ndarray

_DECIDE = (*DECIDE, "scoring/**/*.py", "pipeline/infer.py", "pipeline/on_device.py", "pipeline/pdm.py", "analysis/study/open_loop.py")
"""Source files of iidrive that decide open-loop results."""


def kept_as(on: TestSet, name: str, fingerprint: str = "") -> Path:
    """The file for the open-loop results of a planner, named by all that decides them: the planner (`name` and `fingerprint`), the scenes, and
    iidrive's own code.
    """
    identity = [fingerprint, on.data, [track.name for track in on.tracks], VERSION, source_digest(_DECIDE)]
    return on.run.folder / f"{named_by(name, identity)}.json"


def open_loop(plan: Plan, clips: ClipDataset, on: TestSet, kept: Path, with_pdm: bool = False) -> dict[str, Float[Array, "s"]]:
    """Collision events and mean L2 (metres) of every scene and, `with_pdm`, the EPDMS of its plans, each followed among the recorded boxes.

    Results are read from `kept` (see `kept_as`) if it exists.
    """
    return _stored(kept, on, with_pdm) or _scored(*plans(plan, clips, on.run.process_group), on, kept, with_pdm)


def of_true_path(on: TestSet, kept: Path) -> dict[str, Float[Array, "s"]]:
    """As `open_loop` with EPDMS, for the true path: what the best plan by L2 scores otherwise."""
    cases = on.cases
    tokens = tuple(np.asarray(cases.token)[cases.full])
    return _stored(kept, on, True) or _scored(tokens, cases.true_path()[cases.full], on, kept, True)


def _stored(kept: Path, on: TestSet, with_pdm: bool) -> dict[str, Float[Array, "s"]]:
    """The results in a file; empty if it does not exist, or holds others."""
    if not kept.is_file():
        return {}
    found = {name: np.array(values) for name, values in parse_json(kept.read_text(), str(kept)).items()}
    fits = all(len(column) == len(on.tracks) for column in found.values()) and ("EPDMS" in found) >= with_pdm
    return found if fits else {}


def _scored(tokens: Sequence[str], paths: Float[Array, "n 6 2"], on: TestSet, kept: Path, with_pdm: bool) -> dict[str, Float[Array, "s"]]:
    cases = on.cases
    found = score(cases, align(cases, Predictions(paths, tuple(tokens), {}, kept.stem)))
    place, steps = {track.name: k for k, track in enumerate(on.tracks)}, found.steps
    rows = np.flatnonzero(steps.evaluated)
    scene = np.array([place[name] for name in np.asarray(cases.scene)[rows]])
    events, far = steps.per_step["obj_box_col"][rows].sum(-1), steps.per_step["L2"][rows].mean(-1)
    counted = np.bincount(scene, minlength=len(place))
    values = {"events": np.bincount(scene, events, len(place)), "L2": np.bincount(scene, far, len(place)) / np.maximum(counted, 1)}
    if with_pdm:
        followed = pdm(kept.stem, on.source, on.tracks, dict(zip(tokens, paths, strict=True)), on.run.process_group).plans
        at = np.array([place[name] for name in followed.scenes])
        values["EPDMS"] = np.bincount(at, followed.epdms, len(place)) / np.maximum(np.bincount(at, minlength=len(place)), 1)
    kept.parent.mkdir(parents=True, exist_ok=True)
    Run(kept.parent, on.run.process_group).write_text(kept.name, json.dumps({name: column.tolist() for name, column in values.items()}))
    on.run.process_group.barrier()
    return values
