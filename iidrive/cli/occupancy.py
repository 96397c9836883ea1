"""Commands about occupancy of other code bases."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from iidrive.analysis.doctor import occupancy
from iidrive.cli.options import DataOptions, Switch, write_json
from iidrive.core.class_tables import named
from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.core.paths import expanded
from iidrive.core.untrusted.files import require_regular
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.runtime.progress import counting
from iidrive.scoring import occupancy_folders, occupancy_report
from iidrive.scoring.metrics import iou_occupied
from iidrive.scoring.occupancy_sides import Written

Array = np.ndarray

_LOW = 0.5
"""An IoU of occupied against free, now, below which something else than the model may be at fault."""


def score_occupancy(
    predictions: str,
    truth: str = "",
    rays: Switch = "on",
    classes: str = "",
    truth_classes: str = "",
    json: str = "",
    where: DataOptions = DataOptions(),  # noqa: B008
) -> None:
    """Score predicted occupancy by the rules of II-World, OccWorld, Occ3D and RayIoU, and what moves, joined to the truth by sample token.

    Args:
        predictions: folder of <scene>/<sample token>/labels.npz or <sample token>.npz, with `semantics`: the present grid, or seven (now and
            0.5 to 3.0 s ahead); `flow`, if it is there, holds velocities (m/s along x and y) of the present grid or of all seven, for mAVE.
        truth: folder of Occ3D labels in such a layout, with mask_camera for Occ3D's rule; default: ROOT/gts.
        rays: whether to trace rays, which takes most of the time.
        classes: class numbers of the predictions: occ3d, openocc, surroundocc, uniocc, or a file with a class name a line; default: occ3d, if the
            labels do not contradict it.
        truth_classes: class numbers of the truth, in the same way.
        json: where to write the scores.
        where: nuScenes gives the lidar's origins for RayIoU, the order of keyframes for forecasts, and the boxes for what moves. Without it,
            all scenes of the truth folder are scored.
    """
    root, split, version = where.root, where.split, where.version
    if json:
        require_regular(json)
    written = Written(named(classes), named(truth_classes))
    if not truth and not root:
        raise ConfigError(
            "score-occupancy needs the truth: --truth FOLDER of Occ3D labels, --root PATH of nuScenes with gts/ in it, or both."
        )
    if version and not root:
        raise ConfigError("--version names a folder of nuScenes: add --root.")
    labels = truth or str(expanded(root) / "gts")
    if root and not truth and not (expanded(root) / "gts").is_dir():
        raise ConfigError(f"{root} has no folder gts/ with Occ3D labels: say where they are with --truth.")
    tables = NuScenes(NuScenesConfig(root, version)) if root else None
    split = split or (tables.usual_split("test") if tables else "")
    with ExitStack() as open_:
        result = occupancy_folders.score_folders(
            predictions,
            labels,
            tables,
            split,
            rays == "on",
            lambda total: open_.enter_context(counting("occupancy", total)),
            written,
        )
    print(occupancy_report.format_result(result))
    _advise(result.score.hist[0], predictions, labels, written)
    if json:
        write_json(json, occupancy_report.to_json(result))


def _advise(hist: Array, predictions: str, truth: str, written: Written) -> None:
    """Below a table: whether classes seem to be exchanged, and where the IoU is low, what that the doctor tries would raise it.

    `hist` (18, 18) counts the present voxels by [truth, prediction].
    """
    order = occupancy.exchanged(hist)
    suspects = [order] if order is not None else []
    if not suspects and float(iou_occupied(hist)) < _LOW:
        try:
            suspects += occupancy.examine(predictions, truth, written, 4).suspects()
        except IIDriveError:  # the scores stand; what cannot be examined besides is no error of theirs
            return
    for finding in suspects:
        print(f"note: {finding.kind}: {finding.sentence} `iidrive doctor {predictions} --truth {truth}` says more.")
