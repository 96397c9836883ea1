"""Cases and predictions: what a score is computed from, as two small npz files joined by sample token.

A **cases file** holds the truth of N samples: the true path, its boxes at steps t = 0..6, and nothing of a model unless `pred` is given.
A **predictions file** holds N planned paths with their sample tokens. Frame of both: LIDAR_TOP of each sample's own keyframe, x right,
y forward, metres, radians counter-clockwise from +x (forward is +pi/2); step t = 1..6 is 0.5..3.0 s ahead.

Shape letters: n samples, m boxes of all samples and steps together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from iidrive.core.classes import CATEGORIES
from iidrive.core.errors import DataError, unknown
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.text import printable
from iidrive.core.untrusted.npz import read_npz
from iidrive.scoring import npz

Array = np.ndarray

FARTHEST_M = 1e5
"""No path, box or pose lies farther from its sample's car, along any axis; larger numbers are damage."""
LARGEST_M = 1e3
"""No box is longer, wider or higher."""
MOST_AGENTS = 1 << 24
"""Agent numbers within a sample are below this."""
CASES_LIMIT = 1 << 31
"""Bytes of all arrays of a cases file."""

DETECTION_NAMES: tuple[str, ...] = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""nuScenes detection classes; a cases file may name its boxes by these or by the 23 categories."""

_ARRAYS = ("gt_ego_fut_offsets", "gt_ego_fut_masks", "box_case", "box_t", "box_agent", "box_label", "box_valid", "box")
_REQUIRED = (*_ARRAYS, "class_names")
_OPTIONAL_ARRAYS = ("pred", "lidar_pose", "ego_pose")
_KEYS = (*_REQUIRED, *_OPTIONAL_ARRAYS, "token", "scene", "kind", "frame", "unknown_points")


@dataclass(frozen=True)
class Cases:
    """The truth of n samples, laid out as in the cases file (field names are the file's keys).

    `gt_ego_fut_offsets` (n,6,2) per-step offsets of the true LIDAR_TOP path; `gt_ego_fut_masks` (n,6) true where the future keyframe
    exists; one row per box and step in `box_*` (m,): sample index, step 0..6, agent number within the sample, index into
    `class_names`, and whether the box has lidar points; `box` (m,7) x, y, z, **length, width, height**, yaw. Poses (n,7,3) are x, y,
    heading at steps 0..6: of LIDAR_TOP (heading of its +y axis) in the current lidar frame, of the ego (heading of +x) in the current
    ego frame. `own_tokens` is false where tokens were made up from row numbers; `unknown_points` counts
    valid boxes whose number of lidar points nobody knows. `where` names the file in messages.

    Raises:
        DataError: one sentence for the first of: wrong shape or type, NaN or infinity where a value is used, a negative box size, an
            unknown class name, an index out of range, a token that stands twice.
    """

    gt_ego_fut_offsets: Float32[Array, "n 6 2"]
    gt_ego_fut_masks: Bool[Array, "n 6"]
    class_names: tuple[str, ...]
    box_case: Int[Array, "m"]
    box_t: Int[Array, "m"]
    box_agent: Int[Array, "m"]
    box_label: Int[Array, "m"]
    box_valid: Bool[Array, "m"]
    box: Float[Array, "m 7"]
    token: tuple[str, ...]
    scene: tuple[str, ...] | None = None
    pred: Float32[Array, "n 6 2"] | None = None
    lidar_pose: Float[Array, "n 7 3"] | None = None
    ego_pose: Float[Array, "n 7 3"] | None = None
    own_tokens: bool = True
    unknown_points: int = 0
    ignored_keys: tuple[str, ...] = ()
    where: str = "cases"

    def __post_init__(self) -> None:
        where, n, m = self.where, len(self.token), len(self.box_case)
        put = object.__setattr__
        put(self, "gt_ego_fut_offsets", npz.numbers(self.gt_ego_fut_offsets, np.float32, (n, FUTURE_STEPS, 2), "gt_ego_fut_offsets", where))
        put(self, "gt_ego_fut_masks", npz.flags(self.gt_ego_fut_masks, (n, FUTURE_STEPS), "gt_ego_fut_masks", where))
        for key in ("box_case", "box_t", "box_agent", "box_label"):
            put(self, key, npz.integers(getattr(self, key), (m,), key, where))
        put(self, "box_valid", npz.flags(self.box_valid, (m,), "box_valid", where))
        put(self, "box", npz.numbers(self.box, np.float64, (m, 7), "box", where))
        if self.pred is not None:
            put(self, "pred", npz.numbers(self.pred, np.float32, (n, FUTURE_STEPS, 2), "pred", where))
        for key in ("lidar_pose", "ego_pose"):
            if getattr(self, key) is not None:
                put(self, key, npz.numbers(getattr(self, key), np.float64, (n, FUTURE_STEPS + 1, 3), key, where))
        if self.scene is not None and len(self.scene) != n:
            raise DataError(f"{where}: {len(self.scene)} scene names for {n} samples; give one a sample.")
        again = npz.repeated(self.token)
        if again:
            raise DataError(f"{where}: a sample may stand only once; repeated: {npz.few(again)}; remove the copies.")
        self._check_paths()
        self._check_boxes()

    def _check_paths(self) -> None:
        bad = ~np.isfinite(self.gt_ego_fut_offsets).all(axis=2) & self.gt_ego_fut_masks
        if bad.any():
            i, t = np.argwhere(bad)[0]
            raise DataError(
                f"{self.where}: the true path of sample {self.token[i]} holds NaN or infinity at step {t + 1}, which its mask calls valid "
                f"({int(bad.any(axis=1).sum())} samples are like this); repair gt_ego_fut_offsets or set the mask to 0."
            )
        far = (np.abs(self.gt_ego_fut_offsets).max(axis=2) > FARTHEST_M) & self.gt_ego_fut_masks
        if far.any():
            i, t = np.argwhere(far)[0]
            raise DataError(
                f"{self.where}: the true path of sample {printable(self.token[i])} moves more than {FARTHEST_M:g} m in step {t + 1} "
                f"({int(far.any(axis=1).sum())} samples are like this); repair gt_ego_fut_offsets."
            )
        for key in ("lidar_pose", "ego_pose"):
            pose = getattr(self, key)
            if pose is None:
                continue
            # Step 0 and the keyframes that exist; later ones may hold anything.
            used = np.concatenate([np.ones((len(self), 1), bool), self.gt_ego_fut_masks], axis=1)
            bad = ~(np.abs(pose).max(axis=2) <= FARTHEST_M) & used
            if bad.any():
                i, t = np.argwhere(bad)[0]
                raise DataError(
                    f"{self.where}: {key} of sample {printable(self.token[i])} holds NaN, infinity or more than {FARTHEST_M:g} m at step {t} "
                    f"({int(bad.any(axis=1).sum())} samples are like this); repair it."
                )
        if self.pred is not None:
            require_finite(self.pred, self.full, self.token, self.where)

    def _check_boxes(self) -> None:
        where = self.where
        if len(set(self.class_names)) != len(self.class_names):
            raise DataError(f"{where}: a class name stands twice in class_names: {list(self.class_names)}.")
        for name in self.class_names:
            if name not in CATEGORIES and name not in DETECTION_NAMES:
                raise DataError(f"{where}: class_names: {unknown('class', name, (*CATEGORIES, *DETECTION_NAMES))}")
        for key, end in (("box_case", len(self.token)), ("box_t", FUTURE_STEPS + 1), ("box_label", len(self.class_names))):
            value = getattr(self, key)
            bad = (value < 0) | (value >= end)
            if bad.any():
                row = int(np.argmax(bad))
                raise DataError(f"{where}: {key} must be 0..{end - 1}; found {int(value[row])} in row {row} ({int(bad.sum())} such rows).")
        finite = np.isfinite(self.box)
        if not finite.all():
            row = int(np.argmax(~finite.all(axis=1)))
            raise DataError(
                f"{where}: a box holds NaN or infinity: row {row}, sample {self.token[self.box_case[row]]}, step {int(self.box_t[row])}, "
                f"values {self.box[row].tolist()}; repair or remove it."
            )
        vast = (np.abs(self.box[:, :3]) > FARTHEST_M).any(axis=1) | (self.box[:, 3:6] > LARGEST_M).any(axis=1)
        vast |= np.abs(self.box[:, 6]) > FARTHEST_M
        if vast.any():
            row = int(np.argmax(vast))
            raise DataError(
                f"{where}: a box lies farther than {FARTHEST_M:g} m or is larger than {LARGEST_M:g} m: row {row}, "
                f"sample {printable(self.token[self.box_case[row]])}, values {printable(self.box[row].tolist(), 120)} ({int(vast.sum())} such rows); "
                "repair or remove it."
            )
        bad = (self.box_agent < 0) | (self.box_agent >= MOST_AGENTS)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{where}: box_agent must be 0..{MOST_AGENTS - 1}; found {int(self.box_agent[row])} in row {row} ({int(bad.sum())} such rows)."
            )
        self._check_agents()
        negative = self.box[:, 3:6] < 0
        if negative.any():
            row = int(np.argmax(negative.any(axis=1)))
            raise DataError(
                f"{where}: a box has a negative size: row {row}, sample {self.token[self.box_case[row]]}, length, width, height "
                f"{self.box[row, 3:6].tolist()} m; sizes must be 0 or more."
            )

    def _check_agents(self) -> None:
        """No agent stands twice in one step of one sample."""
        at = (self.box_case.astype(np.int64) * (FUTURE_STEPS + 1) + self.box_t) * MOST_AGENTS + self.box_agent
        order = np.argsort(at, kind="stable")
        again = np.flatnonzero(at[order][1:] == at[order][:-1])
        if len(again):
            row = int(order[again[0] + 1])
            raise DataError(
                f"{self.where}: box_agent {int(self.box_agent[row])} stands twice in step {int(self.box_t[row])} of sample "
                f"{printable(self.token[self.box_case[row]])}, again in row {row} ({len(again)} such rows); give each agent its own number."
            )

    def __len__(self) -> int:
        return len(self.token)

    @property
    def full(self) -> Bool[Array, "n"]:
        """True where all six future keyframes exist."""
        return np.all(self.gt_ego_fut_masks, axis=1).reshape(len(self))

    @property
    def note(self) -> str:
        """What a reader of a score must know about these cases; empty when there is nothing to say."""
        notes = []
        if not self.own_tokens:
            notes.append("The cases file carries no sample tokens: predictions are joined by row, so nothing can tell a shuffled file.")
        if self.unknown_points:
            notes.append(f"{self.unknown_points} boxes without a known number of lidar points were kept as obstacles.")
        if self.ignored_keys:
            notes.append(f"Keys of the cases file that nobody reads: {printable(', '.join(self.ignored_keys), 200)}.")
        return " ".join(notes)

    def true_path(self) -> Float32[Array, "n 6 2"]:
        """Positions of the true path, metres.

        Accumulated in float64 and rounded to float32 at each step: that is what PyTorch's float32 `cumsum` does on a CPU, and the
        originals use it. Rows of incomplete futures are only meaningful where the mask is true.
        """
        return np.cumsum(self.gt_ego_fut_offsets, axis=1, dtype=np.float64).astype(np.float32)


def read_cases(path: str | Path) -> Cases:
    """Read a cases file; see `Cases` for what is checked.

    Raises:
        DataError: naming the file, if it is missing, damaged, pickled, lacks a key or fails a check.
    """
    where = str(path)
    found, ignored = read_npz(path, _KEYS, CASES_LIMIT)
    missing = [key for key in _REQUIRED if key not in found]
    if missing:
        raise DataError(f"{where}: not a cases file, missing {', '.join(missing)}; found {sorted(found) or 'none of its keys'}.")
    if "frame" in found and npz.scalar_text(found["frame"]) != "lidar":
        raise DataError(
            f"{where}: the frame of a cases file is 'lidar' (x right, y forward); found '{printable(npz.scalar_text(found['frame']))}'; convert it."
        )
    n = len(np.atleast_1d(found["gt_ego_fut_offsets"]))
    if "token" in found:
        token, own = npz.names(found["token"], "token", where), True
        if len(token) != n:
            raise DataError(f"{where}: {len(token)} tokens for {n} samples; give one a sample.")
    else:
        token, own = row_tokens(n), False
    return Cases(
        **{key: found[key] for key in _ARRAYS},
        class_names=npz.names(found["class_names"], "class_names", where),
        token=token,
        scene=npz.names(found["scene"], "scene", where) if "scene" in found else None,
        pred=found.get("pred"),
        lidar_pose=found.get("lidar_pose"),
        ego_pose=found.get("ego_pose"),
        own_tokens=own,
        unknown_points=int(npz.integers(found.get("unknown_points", 0), (), "unknown_points", where)),
        ignored_keys=ignored,
        where=where,
    )


def write_cases(path: str | Path, cases: Cases) -> None:
    """Write a cases file whole or not at all. Made-up tokens are not written, so that they cannot pass for real ones later."""
    arrays: dict[str, Array] = {key: getattr(cases, key) for key in _ARRAYS}
    arrays["class_names"] = np.array(cases.class_names, dtype=np.str_)
    arrays["gt_ego_fut_masks"] = cases.gt_ego_fut_masks.astype(np.float32)
    if cases.own_tokens:
        arrays["token"] = np.array(cases.token, dtype=np.str_)
    if cases.unknown_points:
        arrays["unknown_points"] = np.array(cases.unknown_points)
    if cases.scene is not None:
        arrays["scene"] = np.array(cases.scene, dtype=np.str_)
    arrays |= {key: getattr(cases, key) for key in _OPTIONAL_ARRAYS if getattr(cases, key) is not None}
    npz.write_npz(path, arrays)


def row_tokens(n: int) -> tuple[str, ...]:
    """Stand-in tokens for files that carry none: the row number."""
    return tuple(f"case-{i:05d}" for i in range(n))


def require_finite(path: Float32[Array, "n 6 2"], rows: Bool[Array, "n"], tokens: Sequence[str], where: str) -> None:
    """Raise DataError, counting and naming the first few samples among `rows` whose path holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(path).all(axis=(1, 2)) & rows)
    if len(bad):
        raise DataError(
            f"{where}: the planned path of {npz.few([tokens[int(i)] for i in bad])} holds NaN or infinity; no score can be given."
        )
    far = np.flatnonzero((np.abs(path).max(axis=(1, 2), initial=0) > FARTHEST_M) & rows)
    if len(far):
        raise DataError(
            f"{where}: the planned path of {npz.few([tokens[int(i)] for i in far])} leads farther than {FARTHEST_M / 1000:g} km in 3 s; "
            "no score can be given. Paths are in metres."
        )
