"""Write derived occupancy for scenes without labels: for each scene, read its sweeps, then write every keyframe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from iidrive.core.errors import ConfigError
from iidrive.core.scene import OCC3D_GRID
from iidrive.data.derive import files
from iidrive.data.derive.grids import SceneOccupancy
from iidrive.data.derive.objects import BoxesOverTime
from iidrive.data.derive.surroundings import accumulate
from iidrive.data.derive.sweeps import HasSweeps
from iidrive.data.source import Source


@dataclass(frozen=True)
class Written:
    """Numbers of keyframes written, of keyframes that existed already, and of sweeps read, and the time taken, seconds."""

    keyframes: int
    kept: int
    sweeps: int
    seconds: float


def write_occupancy(
    source: Source, names: Sequence[str], folder: Path, every: int = 5, report: Callable[[str], None] = lambda name: None
) -> Written:
    """Derive the occupancy of some scenes and write it in Occ3D's layout. Existing files are kept.

    `every`: every n-th sweep is read; 0 reads none.

    Raises:
        ConfigError: for a source whose occupancy is exact.
        DataError: as `files.begin`, or for a damaged sweep.
    """
    if not isinstance(source, HasSweeps):
        raise ConfigError(
            f"{source.name}: its occupancy is known exactly, so there is nothing to derive; name --data nuscenes or --data av2, and --root PATH."
        )
    identity = {key: value for key, value in source.identity().items() if not key.startswith("occupancy")}
    files.begin(folder, {"source": identity, "every": every})
    began, new, kept, sweeps = time.perf_counter(), 0, 0, 0
    for name in names:
        scene = source.scene(name)
        places = [files.place(folder, name, keyframe.token) for keyframe in scene.keyframes]
        absent = [index for index, place in enumerate(places) if not place.is_file()]
        kept += len(places) - len(absent)
        if absent:
            over_time = BoxesOverTime.of(scene)
            around = accumulate(scene, source.sweeps(scene, every), over_time) if every else None
            sweeps += around.sweeps if around else 0
            made = SceneOccupancy.of(scene, around, over_time, source.ground(scene))
            for index in absent:
                files.write(places[index], made.keyframe(index, OCC3D_GRID))
        new += len(absent)
        report(name)
    return Written(new, kept, sweeps, time.perf_counter() - began)
