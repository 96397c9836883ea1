"""Cases: the ground truth that planned paths are scored against, as one npz file.

A cases file holds, for each of N samples, the true path and the boxes at steps t = 0..6. It holds no model output unless `pred` is given.

Frame: LIDAR_TOP of each sample's own keyframe, x right, y forward, metres. Yaw is in radians, counter-clockwise from +x (forward is +pi/2).
Step t = 1..6 is 0.5..3.0 s ahead.

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
"""Largest allowed coordinate along any axis, metres from the sample's ego. Larger values are treated as damaged data."""
LARGEST_M = 1e3
"""Largest allowed length, width or height of a box, metres."""
MOST_AGENTS = 1 << 24
"""Exclusive upper bound of the agent numbers within a sample."""
CASES_LIMIT = 1 << 31
"""Largest allowed size of all arrays of a cases file together, bytes."""

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
"""The nuScenes detection classes. `class_names` of a cases file may hold these or the 23 nuScenes categories."""

_ARRAYS = ("gt_ego_fut_offsets", "gt_ego_fut_masks", "box_case", "box_t", "box_agent", "box_label", "box_valid", "box")
_REQUIRED = (*_ARRAYS, "class_names")
_OPTIONAL_ARRAYS = ("pred", "lidar_pose", "ego_pose")
_KEYS = (*_REQUIRED, *_OPTIONAL_ARRAYS, "token", "scene", "kind", "frame", "unknown_points")


@dataclass(frozen=True)
class Cases:
    """The ground truth of n samples. Field names are the keys of the cases file.

    `gt_ego_fut_offsets` (n,6,2): per-step offsets of the true LIDAR_TOP path, metres. `gt_ego_fut_masks` (n,6): whether the future keyframe
    exists.

    The `box_*` arrays (m,) have one row per box and step: sample index, step 0..6, agent number within the sample, index into
    `class_names`, and whether the box has lidar points. `box` (m,7): x, y, z, **length, width, height**, yaw.

    Poses (n,7,3) are x, y, heading at steps 0..6. `lidar_pose` is LIDAR_TOP (heading of its +y axis) in the current lidar frame; `ego_pose`
    is the ego (heading of its +x axis) in the current ego frame.

    `own_tokens` is false if the tokens were made from row numbers. `unknown_points` counts the valid boxes whose number of lidar points is
    unknown. `where` names the file in messages.

    Raises:
        DataError: for the first of: wrong shape or type, NaN or infinity where a value is used, a box without area, an unknown class name,
            an index out of range, a duplicate token.
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
            raise DataError(f"{where}: {len(self.scene)} scene names for {n} samples; give one per sample.")
        again = npz.repeated(self.token)
        if again:
            raise DataError(f"{where}: a sample may appear only once; repeated: {npz.few(again)}; remove the duplicates.")
        self._check_paths()
        self._check_boxes()

    def _check_paths(self) -> None:
        bad = ~np.isfinite(self.gt_ego_fut_offsets).all(axis=2) & self.gt_ego_fut_masks
        if bad.any():
            i, t = np.argwhere(bad)[0]
            raise DataError(
                f"{self.where}: the true path of sample {self.token[i]} holds NaN or infinity at step {t + 1}, which its mask calls valid "
                f"({int(bad.any(axis=1).sum())} samples in total); repair gt_ego_fut_offsets or set the mask to 0."
            )
        far = (np.abs(self.gt_ego_fut_offsets).max(axis=2) > FARTHEST_M) & self.gt_ego_fut_masks
        if far.any():
            i, t = np.argwhere(far)[0]
            raise DataError(
                f"{self.where}: the true path of sample {printable(self.token[i])} moves more than {FARTHEST_M:g} m in step {t + 1} "
                f"({int(far.any(axis=1).sum())} samples in total); repair gt_ego_fut_offsets."
            )
        for key in ("lidar_pose", "ego_pose"):
            pose = getattr(self, key)
            if pose is None:
                continue
            # Check step 0 and the keyframes that exist. Poses of missing keyframes are never used.
            used = np.concatenate([np.ones((len(self), 1), bool), self.gt_ego_fut_masks], axis=1)
            bad = ~(np.abs(pose).max(axis=2) <= FARTHEST_M) & used
            if bad.any():
                i, t = np.argwhere(bad)[0]
                raise DataError(
                    f"{self.where}: {key} of sample {printable(self.token[i])} holds NaN, infinity or more than {FARTHEST_M:g} m at step {t} "
                    f"({int(bad.any(axis=1).sum())} samples in total); repair it."
                )
        if self.pred is not None:
            require_finite(self.pred, self.full, self.token, self.where)

    def _check_boxes(self) -> None:
        where = self.where
        if len(set(self.class_names)) != len(self.class_names):
            raise DataError(f"{where}: class_names holds a duplicate: {list(self.class_names)}; name each class once.")
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
                f"{where}: a box lies farther away than {FARTHEST_M:g} m or is larger than {LARGEST_M:g} m: row {row}, "
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
        empty = (self.box[:, 3:5] <= 0).any(axis=1) | (self.box[:, 5] < 0)
        if empty.any():
            row = int(np.argmax(empty))
            raise DataError(
                f"{where}: a box has no area: row {row}, sample {self.token[self.box_case[row]]}, length, width, height "
                f"{self.box[row, 3:6].tolist()} m; length and width must be larger than 0, and the height not negative."
            )

    def _check_agents(self) -> None:
        """Check that no agent appears twice at one step of one sample."""
        at = (self.box_case.astype(np.int64) * (FUTURE_STEPS + 1) + self.box_t) * MOST_AGENTS + self.box_agent
        order = np.argsort(at, kind="stable")
        again = np.flatnonzero(at[order][1:] == at[order][:-1])
        if len(again):
            row = int(order[again[0] + 1])
            raise DataError(
                f"{self.where}: box_agent {int(self.box_agent[row])} appears twice at step {int(self.box_t[row])} of sample "
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
        """Sentences to print below the scores: what these cases cannot show. Empty if there is nothing to say."""
        notes = []
        if not self.own_tokens:
            notes.append("The cases file has no sample tokens: predictions are joined by row, and a shuffled file would not be noticed.")
        if self.unknown_points:
            notes.append(f"{self.unknown_points} boxes without a known number of lidar points were kept as obstacles.")
        if self.ignored_keys:
            notes.append(f"Unknown keys of the cases file, ignored: {printable(', '.join(self.ignored_keys), 200)}.")
        return " ".join(notes)

    def true_path(self) -> Float32[Array, "n 6 2"]:
        """Positions of the true path, metres.

        They are accumulated in float64 and rounded to float32 at each step, as PyTorch's float32 `cumsum` does on a CPU, which the reference
        evaluators use. Values are meaningful only where `gt_ego_fut_masks` is true.
        """
        return np.cumsum(self.gt_ego_fut_offsets, axis=1, dtype=np.float64).astype(np.float32)


def read_cases(path: str | Path) -> Cases:
    """Read a cases file. `Cases` lists the checks.

    Raises:
        DataError: if the file is missing, damaged, pickled, lacks a key or fails a check.
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
            raise DataError(f"{where}: {len(token)} tokens for {n} samples; give one per sample.")
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
    """Write a cases file atomically. Tokens made from row numbers are not written, so that they are never taken for real ones."""
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
    """Placeholder tokens `case-00000`, `case-00001`, … for files without tokens."""
    return tuple(f"case-{i:05d}" for i in range(n))


def require_finite(path: Float32[Array, "n 6 2"], rows: Bool[Array, "n"], tokens: Sequence[str], where: str) -> None:
    """Raise DataError if a path of the samples in `rows` holds NaN or infinity, or a coordinate beyond `FARTHEST_M`."""
    bad = np.flatnonzero(~np.isfinite(path).all(axis=(1, 2)) & rows)
    if len(bad):
        raise DataError(
            f"{where}: the planned path of {npz.few([tokens[int(i)] for i in bad])} holds NaN or infinity, so it cannot be scored."
        )
    far = np.flatnonzero((np.abs(path).max(axis=(1, 2), initial=0) > FARTHEST_M) & rows)
    if len(far):
        raise DataError(
            f"{where}: the planned path of {npz.few([tokens[int(i)] for i in far])} goes farther than {FARTHEST_M / 1000:g} km in 3 s, "
            "so it cannot be scored. Paths must be in metres."
        )
