"""The value of future knowledge to a planner: one proposal, ten speeds, chosen by different predictions of where other objects will be.

    python benchmarks/futures.py PLANNER_RUN [--seed 907] [--scenes 60] [--split test]

The towns have a seed that no recipe trains on. The proposal is the planner's plan before it chooses a speed. All rows choose among the planner's own
candidates, which are smoothed and creep on where they stop. A planner without candidates gets ten plain speeds, and no `head` rows.

- `rule` rows take the speed with the smallest change that is predicted to be free; if none is, the one with the fewest predicted collisions. A
  probability below a threshold counts as free.
- `head` rows use the planner's outcome head, with several weights of collisions and overlap, its own marked with a star, and four scenes: ii off (the
  current scene), ii on (imagined), shuffled (the imagined scene of a sample of another scene with the same command: a placebo) and oracle (the true
  future occupancy).

Events are steps of SparseDrive's obj_box_col. Rows with true boxes or true occupancy use future information. Rows with current boxes use boxes, which
the planner is not given. Thresholds and weights are chosen on `val`, never on the reported towns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from iidrive.core import geometry
from iidrive.core.batch import Inputs
from iidrive.core.classes import MOVABLE
from iidrive.core.scene import FUTURE_STEPS, STEP_S, Scene
from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import BasePath, speed_profiles
from iidrive.models.layers import grid_centres, planar, read_grid, transform_inverse
from iidrive.models.outcomes import read_along
from iidrive.models.planner import Agent, PlannerConfig
from iidrive.pipeline.arms import partners
from iidrive.pipeline.infer import truth
from iidrive.pipeline.load import load_agent
from iidrive.pipeline.recipes import ACCELERATIONS
from iidrive.pipeline.tokens import write_tokens
from iidrive.scoring.planning.sparsedrive import sparsedrive_hits, sparsedrive_yaw

Array = np.ndarray
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
COLLISION_M = (5.0, 10.0, 20.0, 40.0, 80.0)
WEIGHTS_M = (*((c, 0.0) for c in COLLISION_M), (0.0, 20.0), (0.0, 80.0), (10.0, 20.0), (20.0, 40.0), (40.0, 80.0), (80.0, 160.0))
"""Costs of a step with a predicted collision, and of a step whose whole footprint is occupied in the forecast, metres. Without a forecast nothing is
occupied in it."""


def weights_of(config: PlannerConfig, ii: bool) -> list[tuple[float, float]]:
    """The weights to try, including the planner's own."""
    tried = {*WEIGHTS_M, (config.collision_m, config.overlap_m)}
    return sorted(tried if ii else {(collision_m, 0.0) for collision_m, _ in tried if collision_m})


def candidates_of(agent: Agent, inputs: Inputs, base: BasePath) -> torch.Tensor:
    """The candidates (B,A,S,2) that the planner chooses among; plain speeds if it has none."""
    if agent.planner.config.accelerations:
        return agent.planner.candidates(inputs, base)
    return speed_profiles(base, torch.tensor(ACCELERATIONS))


def believed_boxes(scene: Scene, index: int, moving: float) -> list[Array]:
    """Current boxes (n,7) in the current lidar frame at each step: standing still (`moving` 0) or at their last velocity (1)."""
    now, before = scene.keyframes[index], scene.keyframes[max(index - 1, 0)]
    place = now.boxes.found_in(before.boxes)
    velocity = np.where(place[:, None] >= 0, now.boxes.centre_m - before.boxes.centre_m[place], 0.0) / STEP_S
    out = []
    for step in range(1, FUTURE_STEPS + 1):
        lidar = now.boxes.moved(geometry.invert(now.global_T_lidar), "lidar")
        shift = moving * velocity * STEP_S * step @ geometry.invert(now.global_T_lidar)[:3, :3].T
        out.append(np.concatenate([lidar.centre_m + shift, lidar.size_m, lidar.yaw_rad[:, None]], 1))
    return out


def movable_maps(grids: torch.Tensor, voxels: int) -> torch.Tensor:
    """Whether each cell of the occupancy flow contains a voxel of a road user, (..., X, Y)."""
    movable = torch.from_numpy(MOVABLE)[grids.long()].any(-1).float()
    return torch.nn.functional.max_pool2d(movable.flatten(0, -3)[:, None], voxels)[:, 0].unflatten(0, movable.shape[:-2])


def carried(maps: torch.Tensor, now_T_frame: torch.Tensor, agent: Agent) -> torch.Tensor:
    """Maps (B,S,X,Y) in future ego frames, resampled to the current ego frame; 0 outside a map."""
    flow = agent.forecaster.world.flow
    assert flow is not None
    there = planar(transform_inverse(now_T_frame), grid_centres(flow.fine, now_T_frame).expand(*maps.shape[:2], -1, -1, -1))
    return read_grid(maps.flatten(0, 1)[:, None], there.flatten(0, 1), flow.fine)[:, 0].unflatten(0, maps.shape[:2])


@torch.no_grad()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("planner")
    parser.add_argument("--seed", type=int, default=907)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    given = parser.parse_args()
    loaded = load_agent(given.planner)
    agent = loaded.model
    grid, fine = agent.forecaster.tokenizer.config.grid, agent.forecaster.flow_grid
    assert fine is not None
    voxels = grid.shape[0] // fine.shape[0]
    counts = {"train_scenes": 0, "val_scenes": 0, "test_scenes": 0, f"{given.split}_scenes": given.scenes}
    source = Town(TownConfig(seed=given.seed, **counts))
    tracks = read_tracks(source, given.split)
    with tempfile.TemporaryDirectory() as scratch:
        cache = write_tokens(loaded.world.tokenizer, source, [track.name for track in tracks], scratch)
        clips = scored_clips(tracks, cache, source, grid)
        batches, kept = [], []
        for start in range(0, len(clips), 16):
            batch = clips.batch(range(start, min(start + 16, len(clips))))
            inputs, targets = batch.inputs, batch.targets
            assert inputs.occupancy is not None
            assert targets.occupancy is not None
            seen = agent.forecaster.current_occupancy(inputs)
            base = agent.base_path(inputs, seen)
            candidates = candidates_of(agent, inputs, base)
            now = movable_maps(inputs.occupancy[:, -1:], voxels).expand(-1, FUTURE_STEPS, -1, -1)
            then = carried(movable_maps(targets.occupancy, voxels), targets.now_T_frame, agent)
            imagined = agent.scene(inputs, base, True, seen, shared=True)
            part = {"candidates": candidates.numpy(), "true": targets.path.numpy()}
            for name, maps in (("present occupancy", now), ("true occupancy", then), ("imagined", imagined)):
                part[name] = read_along(candidates, maps, fine, inputs.ego_T_lidar)[..., 0].numpy()
            kept.append((replace(inputs, occupancy=None), base, seen, candidates, imagined.half(), then.half()))
            batches.append((inputs.tokens, part))
    tokens = [token for some, _ in batches for token in some]
    found = {key: np.concatenate([part[key] for _, part in batches]) for key in batches[0][1]}
    candidates, true = found["candidates"].astype(np.float32), found["true"]
    cases = truth(source, tracks)
    row = {token: k for k, token in enumerate(cases.token)}
    index = np.array([row[token] for token in tokens])

    def hits(path: Array, boxes: Array, steps: Array) -> Array:
        full = np.zeros((len(cases.token), FUTURE_STEPS, 2), np.float32)
        full[index] = path
        return sparsedrive_hits(full, sparsedrive_yaw(full), boxes, np.arange(len(boxes)), steps)[index]

    use = cases.box_valid & (cases.box_t > 0) & np.isin(cases.box_case, index)
    real = cases.box[use], cases.box_case[use].astype(np.int64) * FUTURE_STEPS + cases.box_t[use] - 1
    own = hits(true.astype(np.float32), *real)
    met = np.stack([hits(candidates[:, k], *real) & ~own for k in range(candidates.shape[1])], 1)
    distance = np.linalg.norm(candidates - true[:, None], axis=-1)

    def show(name: str, cost: Array) -> None:
        pick = np.where((cost <= 0).any(1), (cost <= 0).argmax(1), cost.argmin(1))
        chosen = np.arange(len(pick)), pick
        means = np.cumsum(distance[chosen].mean(0)) / np.arange(1, FUTURE_STEPS + 1)
        events = met[chosen].sum(0)
        print(
            f"{name:34s} L2 {means[[1, 3, 5]].mean():.4f}  events {events.sum():4d} {events.tolist()}  changed {np.mean(pick > 0):.3f}",
            flush=True,
        )

    print(f"{given.split} towns of seed {given.seed}: {given.scenes} scenes, {len(tokens)} samples, {len(tokens) * FUTURE_STEPS} steps")
    none = np.zeros(met.shape[:2])
    show("nothing", none)
    show("rule: true boxes (oracle)", met.any(2).astype(float))
    show("rule: true occupancy (oracle)", np.where((found["true occupancy"] > 0.5).any(2), found["true occupancy"].sum(2), 0.0))
    by_scene: dict[float, list[Array]] = defaultdict(list)
    steps = []
    for track in tracks:
        scene = source.scene(track.name)
        for i, keyframe in enumerate(scene.keyframes):
            if keyframe.token in row and row[keyframe.token] in set(index.tolist()):
                for moving in (0.0, 1.0):
                    by_scene[moving] += believed_boxes(scene, i, moving)
                steps += [np.full(len(keyframe.boxes), row[keyframe.token] * FUTURE_STEPS + s) for s in range(FUTURE_STEPS)]
    for moving, name in ((1.0, "rule: boxes at constant velocity"), (0.0, "rule: boxes standing still")):
        boxes, at = np.concatenate(by_scene[moving]), np.concatenate(steps)
        show(name, np.stack([hits(candidates[:, k], boxes, at) for k in range(candidates.shape[1])], 1).any(2).astype(float))
    show("rule: present occupancy", np.where((found["present occupancy"] > 0.5).any(2), found["present occupancy"].sum(2), 0.0))
    for threshold in THRESHOLDS:
        show(f"rule: imagined, below {threshold}", np.where((found["imagined"] > threshold).any(2), found["imagined"].sum(2), 0.0))
    if not agent.planner.config.accelerations:
        return
    scenes = [clips.tracks[number].name for number, _ in clips.samples]
    commands = torch.cat([inputs.command for inputs, *_ in kept]).tolist()
    scenes_imagined = torch.cat([imagined for *_, imagined, _ in kept])
    config = agent.planner.config
    other = torch.tensor(partners(scenes, commands))
    for title, ii in (("ii off", False), ("ii on", True), ("shuffled", True), ("oracle", True)):
        outcomes, start = [], 0
        for inputs, base, seen, candidates, imagined, then in kept:
            rows = slice(start, start + len(base.path))
            start += len(base.path)
            scene = {"ii on": imagined, "shuffled": scenes_imagined[other[rows]], "oracle": then}.get(title)
            choice = agent.choose(inputs, base, agent.scene(inputs, base, False, seen) if scene is None else scene.float(), ii, seen)
            assert torch.equal(choice.candidates, candidates), "other candidates were scored than chosen among"
            outcomes.append(choice.outcomes)
        for collision_m, overlap_m in weights_of(config, ii):
            costs = replace(config.costs(), collision_m=collision_m, overlap_m=overlap_m)
            cost = torch.cat([found.cost(costs, agent.planner.accelerations > 0) for found in outcomes]).numpy()
            own = (collision_m, overlap_m) == (config.collision_m, config.overlap_m if ii else 0.0)
            show(f"head: {title}, {collision_m:g} and {overlap_m:g} m{' *' if own else ''}", cost - cost.min(1, keepdims=True))


if __name__ == "__main__":
    main()
