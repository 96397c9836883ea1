"""The command `score-occupancy`: occupancy of any code base."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from iidrive.analysis.doctor import occupancy
from iidrive.cli.options import DataOptions, Switch, note, write_json
from iidrive.core.class_tables import named
from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.core.paths import expanded
from iidrive.core.untrusted.files import require_regular
from iidrive.data.derive.files import is_derived
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
    """Score predicted occupancy by the rules of II-World, OccWorld, Occ3D and RayIoU, and by movers. Samples are joined by token.

    Args:
        predictions: folder of <scene>/<sample token>/labels.npz or <sample token>.npz, with `semantics`: the current grid, or seven grids (now
            and 0.5 to 3.0 s ahead); optional `flow`: velocities (x, y; m/s) of the current grid or of all seven, for mAVE.
        truth: folder of Occ3D labels in the same layout, with mask_camera for Occ3D's rule; default: ROOT/gts.
        rays: whether to compute RayIoU, which takes most of the time.
        classes: class numbers of the predictions: occ3d, openocc, surroundocc, uniocc, or a file with one class name per line; default: occ3d, if
            consistent with the labels.
        truth_classes: class numbers of the ground truth, likewise.
        json: file to write the scores to.
        where: nuScenes, needed for RayIoU (lidar origins), forecasts (order of keyframes) and movers (boxes). Without it, all scenes of the
            truth folder are scored.
    """
    root, split, version = where.root, where.split, where.version
    if json:
        require_regular(json)
    written = Written(named(classes), named(truth_classes))
    if not truth and not root:
        raise ConfigError(
            "score-occupancy needs the ground truth: --truth FOLDER of Occ3D labels, --root PATH of nuScenes with gts/ in it, or both."
        )
    if version and not root:
        raise ConfigError("--version is a folder of nuScenes: add --root.")
    labels = truth or str(expanded(root) / "gts")
    if root and not truth and not (expanded(root) / "gts").is_dir():
        raise ConfigError(f"{root} has no folder gts/ with Occ3D labels: give their folder with --truth.")
    tables = NuScenes(NuScenesConfig(root, version)) if root else None
    if is_derived(Path(truth or expanded(root) / "gts")):
        note(
            f"{truth or expanded(root) / 'gts'} holds derived occupancy, not labels: these scores are against boxes, maps and lidar points."
        )
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
    """Print a note if classes seem to be permuted or, for a low IoU, which correction of `doctor` would raise it.

    `hist` (18, 18) counts voxels at 0 s by [truth, prediction].
    """
    order = occupancy.exchanged(hist)
    suspects = [order] if order is not None else []
    if not suspects and float(iou_occupied(hist)) < _LOW:
        try:
            suspects += occupancy.examine(predictions, truth, written, 4).suspects()
        except IIDriveError:  # the scores are valid even if the files cannot be examined
            return
    for finding in suspects:
        print(f"note: {finding.kind}: {finding.sentence} Run `iidrive doctor {predictions} --truth {truth}` for details.")
