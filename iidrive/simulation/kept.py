"""Drives on disk, one npz file per scene, so that an evaluation can be resumed and a scene can be viewed later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from iidrive.core.errors import DataError
from iidrive.core.untrusted.npz import read_npz
from iidrive.runtime import atomic
from iidrive.scoring.driving.rollout import Ego, End, Others, Rollout

Array = np.ndarray

_EGO = ("xy_m", "yaw_rad", "speed_mps")
_OTHERS = ("centre_m", "yaw_rad", "size_m", "present", "agent", "track")
_PLANS = ("plan_speed_mps", "plan_yaw_rad")


def write_rollout(path: Path, rollout: Rollout) -> None:
    """Write one drive atomically."""
    arrays: dict[str, Any] = {f"ego_{name}": getattr(rollout.ego, name) for name in _EGO}
    arrays |= {f"past_{name}": getattr(rollout.past, name) for name in _EGO}
    arrays |= {f"others_{name}": np.asarray(getattr(rollout.others, name)) for name in _OTHERS}
    arrays |= {name: getattr(rollout, name) for name in _PLANS}
    counts = np.array([rollout.planned_moments, rollout.plan_every])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, name=np.array(rollout.name), ended=np.array(rollout.ended), counts=counts, **arrays)


def read_rollout(path: Path) -> Rollout:
    """Read a drive that `write_rollout` wrote.

    Raises:
        DataError: if the file is missing, damaged or holds something else.
    """
    found, _ = read_npz(path, None, missing="it is written by `iidrive drive`")
    try:
        ended = str(found["ended"])
        if ended not in get_args(End):
            raise ValueError(f"a drive cannot end with '{ended}'")
        planned, every = (int(n) for n in found["counts"])
        ego, past = (Ego(*(found[f"{whose}_{name}"] for name in _EGO)) for whose in ("ego", "past"))
        centre, yaw, size, present, agent, track = (found[f"others_{name}"] for name in _OTHERS)
        others = Others(centre, yaw, size, present, agent, tuple(track.tolist()))
        plans = [found[name] for name in _PLANS]
        moments = len(ego.yaw_rad)
        if (
            past.xy_m.shape != (len(past.yaw_rad), 2)
            or ego.xy_m.shape != (moments, 2)
            or others.centre_m.shape != (moments, len(others.track), 2)
        ):
            raise ValueError("the shapes of its arrays do not match")
        return Rollout(str(found["name"]), ego, others, plans[0], plans[1], planned, ended, every, past)  # pyright: ignore[reportArgumentType]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path}: not a file of `iidrive drive` ({error}); delete it and drive the scene again.") from None
