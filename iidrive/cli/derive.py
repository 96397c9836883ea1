"""The command `occupancy`: derived occupancy for scenes without labels."""

from __future__ import annotations

from pathlib import Path

from iidrive.cli.options import DataOptions
from iidrive.core.errors import ConfigError
from iidrive.core.paths import expanded
from iidrive.pipeline import recipes
from iidrive.pipeline.derive import write_occupancy
from iidrive.runtime.progress import counting


def occupancy(
    out: str = "gts",
    sweeps: int = 5,
    where: DataOptions = DataOptions(),  # noqa: B008
) -> None:
    """Write occupancy derived from boxes, the map, ground heights and lidar sweeps, in Occ3D's layout.

    The command can be stopped and restarted at any time. `--gts OUT` reads the result, which is called derived in all tables.

    Args:
        out: folder to write; it gets <scene>/<sample token>/labels.npz.
        sweeps: every n-th lidar sweep is read, if there are any; 0: none.
        where: scenes of nuScenes or Argoverse 2; default: the usual training split.
    """
    if sweeps < 0:
        raise ConfigError(f"--sweeps cannot be below 0; found {sweeps}.")
    source, split = where.open(recipes.small(), "train")
    names = source.scene_names(split)
    with counting("occupancy", len(names)) as tick:
        made = write_occupancy(source, names, expanded(out), sweeps, tick)
    speed = f", {made.keyframes / made.seconds:.1f} keyframes/s" if made.keyframes else ""
    told = f"{made.sweeps} lidar sweeps" if made.sweeps else "no lidar sweeps"
    print(
        f"{made.keyframes} keyframes of {len(names)} scenes of {source.name} {split} in {Path(out)} from {told}{speed}; {made.kept} were there"
    )
