"""IoU of moving road users for simple forecasts, and for a world model if one is given.

    python benchmarks/movers.py [--world RUN] [--seed 907] [--scenes 10]

The towns have a seed that no recipe trains on. `boxes` rows draw tracked boxes in the same way as the truth, more exactly than a grid can; `true
occupancy` is the upper bound of a grid with these voxels. The second table counts only road users wholly inside the grid at t = 0, because others
cannot be transported.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from iidrive.core import geometry
from iidrive.core.classes import FREE
from iidrive.core.footprint import MARGIN_CELLS, rectangles
from iidrive.core.scene import STEP_S, Boxes, GridSpec, Scene
from iidrive.data.clips import EgoTrack, scored_clips
from iidrive.data.source import Source
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.transport import constant_turn_moves, transport, true_moves, without_boxes
from iidrive.pipeline import infer
from iidrive.pipeline.load import load_forecaster
from iidrive.pipeline.recipes import COARSE_GRID
from iidrive.pipeline.tokens import write_tokens
from iidrive.scoring.movers import MoverCounts, count, mover_truth, movers_in, tracks_inside

Array = np.ndarray
STEPS = infer.HORIZON_STEPS


def drawn(boxes: Boxes, velocity_mps: Array, ahead_s: float, ego_T_global: Array, spec: GridSpec) -> Array:
    """Cells of boxes (global frame) after `ahead_s` seconds at constant velocity, in an ego frame."""
    centre = geometry.apply(ego_T_global, boxes.centre_m + velocity_mps * ahead_s)
    yaw = boxes.yaw_rad + geometry.heading(ego_T_global)
    return rectangles(centre[:, :2], boxes.size_m[:, :2], yaw, spec, MARGIN_CELLS * spec.voxel_m).mask(spec)


def velocities(scene: Scene, index: int) -> Array:
    """Velocities (m/s) of a keyframe's boxes over the half second before, global frame; 0 for new boxes."""
    now, before = scene.keyframes[index].boxes, scene.keyframes[max(index - 1, 0)].boxes
    place = now.found_in(before)
    known = place >= 0
    out = np.zeros((len(now), 3))
    out[known] = (now.centre_m[known] - before.centre_m[place[known]]) / STEP_S
    return out


def sample_rows(source: Source, scene: Scene, index: int, spec: GridSpec) -> dict[str, list[Array]]:
    """Mover cells of every simple forecast, per horizon."""
    now = scene.keyframes[index]
    grids = [source.occupancy(scene, index + step, spec).semantics for step in STEPS]
    present = np.where(grids[0] > FREE, np.uint8(FREE), grids[0])
    frames = np.stack([geometry.invert(now.global_T_ego.matrix) @ scene.keyframes[index + s].global_T_ego.matrix for s in STEPS])
    rows: dict[str, list[Array]] = defaultdict(list)
    for step, grid in zip(STEPS, grids, strict=True):
        ego_T_global = geometry.invert(scene.keyframes[index + step].global_T_ego.matrix)
        rows["true occupancy"].append(movers_in(np.where(grid > FREE, np.uint8(FREE), grid)))
        velocity = velocities(scene, index)
        rows["boxes at constant velocity"].append(drawn(now.boxes, velocity, STEP_S * step, ego_T_global, spec))
        rows["boxes standing still"].append(drawn(now.boxes, velocity, 0.0, ego_T_global, spec))
    for name, moves in (("transport, true ego motion", constant_turn_moves), ("transport, true flow", true_moves)):
        made = moves(scene, index, STEPS)
        moved = transport(present, without_boxes(present, made.boxes, spec), made, frames, spec)
        rows[name] = list(movers_in(moved))
    return rows


def counted(source: Source, names: tuple[str, ...], spec: GridSpec) -> tuple[dict[str, MoverCounts], dict[str, MoverCounts], int]:
    """Counts of every row over all samples with a full future: all movers, those inside at present, and the number of samples."""
    totals: tuple[dict[str, MoverCounts], dict[str, MoverCounts]] = ({}, {})
    samples = 0
    for name in names:
        scene = source.scene(name)
        for index in range(len(scene) - max(STEPS)):
            tracks = tracks_inside(scene, index, spec)
            truths = [[mover_truth(scene, index + s, spec, of) for s in STEPS] for of in (None, tracks)]
            for row, found in sample_rows(source, scene, index, spec).items():
                for total, truth in zip(totals, truths, strict=True):
                    each = [count(cells, t) for cells, t in zip(found, truth, strict=True)]
                    here = MoverCounts(*(np.array([getattr(c, part) for c in each]) for part in ("hit", "found", "true")))
                    total[row] = total[row] + here if row in total else here
            samples += 1
    return *totals, samples


def world_table(path: str, source: Source, names: tuple[str, ...]) -> str:
    """The forecast table of a world model on the same towns."""
    loaded = load_forecaster(path)
    spec = loaded.model.tokenizer.config.grid
    with tempfile.TemporaryDirectory() as folder:
        cache = write_tokens(loaded.tokenizer, source, names, folder)
        clips = scored_clips([EgoTrack.of(source.scene(n)) for n in names], cache, source, spec)
        return infer.forecasts(loaded.model, clips, spec, source=source).table()


def main(report: Callable[[str], None] = print) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--world", default="", help="run folder or checkpoint of a world model")
    parser.add_argument("--seed", type=int, default=907)
    parser.add_argument("--scenes", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = Town(TownConfig(seed=args.seed, train_scenes=0, val_scenes=0, test_scenes=args.scenes))
    names = source.scene_names("test")
    every, within, samples = counted(source, names, COARSE_GRID)
    for title, totals in (("all movers", every), ("movers inside the grid at present", within)):
        report(f"{title}, IoU in % at " + ", ".join(f"{s * STEP_S:.0f} s" for s in STEPS) + f"; {samples} samples")
        for name, counts in totals.items():
            report(f"  {name:<28}" + "".join(f"{100 * v:7.1f}" for v in counts.iou()))
    if args.world:
        report(world_table(args.world, source, names))


if __name__ == "__main__":
    main()
