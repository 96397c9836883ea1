"""Reactions of others to a plan: the ground that candidates take, branches of simulations, the net, and planners that use it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

from iidrive.cli.main import main
from iidrive.core.errors import ConfigError
from iidrive.core.footprint import EGO_CENTRE_M, EGO_SIZE_M
from iidrive.core.scene import GridSpec
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.town.cache import SceneCache
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import footprints
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import planar
from iidrive.models.outcomes import read_along
from iidrive.models.planner import Agent, Planner
from iidrive.models.reaction_loss import ReactionLearner
from iidrive.models.reactions import ReactionConfig, footprint_maps
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldConfig, WorldModel
from iidrive.pipeline.arms import chooser
from iidrive.pipeline.load import load_agent, load_forecaster
from iidrive.pipeline.recipes import tiny
from iidrive.pipeline.tokens import codes_in_memory, write_tokens
from iidrive.pipeline.train import fastest_mps, train_planner, train_reactions, train_tokenizer, train_world
from iidrive.runtime.run_folder import Run
from iidrive.scoring.driving.tracking import CarState
from iidrive.simulation.branches import Branches, branches, plans_along
from iidrive.simulation.foresight import branched_occupancy
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions

TINY = tiny()
GRID = GridSpec((64, 64, 1), (-25.6, -25.6, -1.0), 0.8)
FRAME = torch.from_numpy(EGO_T_LIDAR.matrix.astype(np.float32))[None]
BENT = torch.tensor([[[[0.1, 3.0], [0.5, 6.0], [1.5, 9.0], [3.0, 11.5], [5.0, 13.5], [7.5, 15.0]], [[0.0, 1.0]] * 6]])


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(TownConfig(seed=907, train_scenes=2, val_scenes=1, test_scenes=2, keyframes=14))


def forecaster(reactions: int = 8) -> Forecaster:
    """An untrained world model. Its flow and reaction net have random outputs."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(TINY.tokenizer).eval()
    world = WorldModel(replace(TINY.world, reactions=ReactionConfig(reactions)), tokenizer.cells, tokenizer.config.grid)
    assert world.flow is not None
    with torch.no_grad():
        world.flow.out.weight.normal_(0, 1.0)
        if world.reactions is not None:
            world.reactions.out.weight.normal_(0, 1.0)
    return Forecaster(tokenizer, world).eval()


def clips_of(town: Town, tokenizer: Tokenizer) -> ClipDataset:
    tracks = [EgoTrack.of(town.scene(name)) for name in town.scene_names("test")]
    return ClipDataset(tracks, ClipSpec(), codes=codes_in_memory(tokenizer, town, tracks))


def test_the_maps_show_the_ground_that_a_candidate_takes() -> None:
    maps = footprint_maps(BENT, GRID, FRAME)
    area = GRID.voxel_m**2 * maps.sum((-1, -2))
    ego = planar(FRAME, footprints(BENT, (2, 2)).flatten(1, 2)).view(2, 6, 4, 2)
    x, y = np.meshgrid(GRID.centres(0), GRID.centres(1), indexing="ij")
    half = GRID.voxel_m / 2
    cells = shapely.box(x - half, y - half, x + half, y + half)
    for a in range(2):
        for s in range(6):
            box = shapely.MultiPoint(ego[a, s].numpy()).convex_hull
            share = shapely.area(shapely.intersection(cells, box)) / GRID.voxel_m**2
            found = maps[0, a, s].numpy()
            assert area[0, a, s] == pytest.approx(box.area, rel=0.05)
            assert (found[share > 0.999] > 0.999).all()
            assert (found[share < 1e-9] < 0.5).all()
            assert abs(found - share).max() < 0.35
            assert abs(found - share).mean() < 0.002


def test_each_candidate_reads_its_own_maps() -> None:
    maps = torch.rand(1, 2, 6, 64, 64)
    found = read_along(BENT, maps, GRID, FRAME)
    for a in range(2):
        assert torch.equal(found[:, a], read_along(BENT[:, a : a + 1], maps[:, a], GRID, FRAME)[:, 0])
    assert torch.equal(read_along(BENT, maps[:, :1].expand(-1, 2, -1, -1, -1), GRID, FRAME), read_along(BENT, maps[:, 0], GRID, FRAME))


def test_others_react_in_a_branch_and_the_recording_does_not(town: Town) -> None:
    """Somebody brakes, or goes, because the ego stands instead of driving on. Without reactions, the ego makes no difference."""
    differ = 0
    for name in town.scene_names("train"):
        scene, live = town.scene(name), town.live(name)
        for keyframe in scene.keyframes[:-6]:
            ego = live.ego
            still = CarState.rolling(ego.xy_m[None], np.array([ego.heading_rad]), np.zeros(1))
            ahead = np.array([np.cos(ego.heading_rad), np.sin(ego.heading_rad)])
            gone = [
                CarState.rolling((ego.xy_m + 0.8 * k * ahead)[None], np.array([ego.heading_rad]), np.array([8.0])) for k in range(1, 31)
            ]
            pose = keyframe.global_T_ego.matrix
            stands, drives = (branched_occupancy(live, states, pose, GRID) for states in ([still] * 30, gone))
            assert (stands[0] == drives[0]).all()
            differ += int((stands != drives).sum())
            recorded = [branched_occupancy(live, states, pose, GRID, reactive=False) for states in ([still] * 30, gone)]
            assert (recorded[0] == recorded[1]).all()
            for _ in range(5):
                live.step()
    assert differ > 0


def test_branches_start_at_the_keyframe_and_do_not_depend_on_the_future(town: Town) -> None:
    name = town.scene_names("train")[0]
    found, now = branches(town, name, GRID), FlowTargets(town, GRID)
    assert found.driven.shape == (8, 6, 2)
    for k in range(8):
        assert (found.taken[k, 0] == now(name, k)["taken"][0]).all()
    short = branches(Town(replace(town.config, keyframes=10)), name, GRID)
    assert (short.driven == found.driven[:4]).all(), "the plans are drawn by scene and keyframe"
    hops = np.linalg.norm(np.diff(found.driven, axis=1, prepend=0), axis=-1) * 2
    speeds = np.array([k.speed_mps for k in [start.ego for start in lives(town, name, 8)]])
    assert (abs((hops[:, 0] - speeds) / 0.25) < 6.5).all(), "they begin at the present speed"
    assert len({round(float(h), 3) for h in hops[:, -1]}) > 3, "and are not all the same"


def test_the_ends_of_scenes_and_routes() -> None:
    short = Town(TownConfig(seed=907, train_scenes=1, val_scenes=0, test_scenes=0, keyframes=6))
    found = branches(short, short.scene_names("train")[0], GRID)
    assert found.driven.shape == (0, 6, 2)
    assert found.taken.shape == (0, 7, 64, 64)
    ended = np.full((1, 111, 2), np.nan, np.float32)
    (plan,) = plans_along(ended, np.array([8.0]), np.array([0.0]))
    np.testing.assert_allclose(plan[:, 1], 4.0 * np.arange(1, 7), atol=1e-4)
    np.testing.assert_allclose(plan[:, 0], 0, atol=1e-4)


def lives(town: Town, name: str, count: int) -> list:
    live, out = town.live(name), []
    for _ in range(count):
        out.append(live.copy())
        for _ in range(5):
            live.step()
    return out


def test_branches_are_kept_and_a_damaged_file_is_made_again(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = town.scene_names("train")[0]
    cache = SceneCache(tmp_path)
    first = Branches(town, GRID, cache)(name, 3)
    (file,) = [path for path in tmp_path.rglob("*.safetensors") if path.name.startswith(f"{name}@branches")]
    assert cache.size().scenes == 0, "branches are not counted as scenes"
    whole = file.read_bytes()
    for damaged in (whole[:100], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        assert (Branches(town, GRID, cache)(name, 3)["taken"] == first["taken"]).all()
        assert file.read_bytes() == whole
    aside = Branches(town, replace(GRID, lower_m=(-10.0, -25.6, -1.0)), cache)(name, 3)
    assert (aside["taken"] != first["taken"]).any(), "another area has branches of its own"

    def fails(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("iidrive.simulation.branches.branches", fails)
    again = Branches(town, GRID, cache)(name, 3)
    assert all((again[key] == first[key]).all() for key in first)


def test_an_untrained_net_changes_nothing_and_learns_from_a_branch(town: Town) -> None:
    made = forecaster()
    clips = clips_of(town, made.tokenizer)
    assert made.world.reactions is not None
    labelled = clips.with_labels(Branches(town, made.world.reactions.fine))
    batch = labelled.batch([0, 5])
    with torch.no_grad():
        made.world.reactions.out.weight.zero_()
    learner = ReactionLearner(made).train()
    assert not made.tokenizer.training
    without, reacting = learner.entropies(batch)
    assert torch.equal(without, reacting)
    trained = [name for name, p in learner.named_parameters() if p.requires_grad]
    assert trained
    assert {id(p) for p in learner.parameters() if p.requires_grad} == {id(p) for p in learner.net.parameters()}
    optimiser = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], 1e-2)
    for _ in range(30):
        loss, _ = learner.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert learner.entropies(batch)[1].sum() < 0.7 * without.sum()


def test_a_planner_reads_one_forecast_per_candidate(town: Town) -> None:
    made = forecaster()
    inputs = clips_of(town, made.tokenizer).batch([0, 9]).inputs
    planner = Planner(replace(TINY.planner, per_candidate=True, counts_on="all"), made.tokenizer.cells)
    agent = Agent(made, planner, True).eval()
    base = agent.base_path(inputs)
    scene, shared = agent.scene(inputs, base, True), agent.scene(inputs, base, True, shared=True)
    candidates = planner.candidates(inputs, base)
    assert scene.shape == (2, candidates.shape[1], *shared.shape[1:])
    flow = made.occupancy_flow(inputs)
    for a in range(3):
        assert made.world.reactions is not None
        alone = made.world.reactions.of(flow, candidates[:, a : a + 1], inputs.ego_T_lidar)[:, 0].sigmoid()
        torch.testing.assert_close(scene[:, a], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(scene[:, 0], scene[:, 1]), "others react to the candidate"
    assert torch.equal(shared, flow.taken[:, 1:].sigmoid())
    own, common = agent.choice(inputs, True), agent.choice(inputs, True, shared=True)
    assert not torch.equal(own.outcomes.overlap, common.outcomes.overlap)
    assert torch.equal(agent.both(inputs)[:, 1], own.best())


def test_only_followers_react_if_a_planner_counts_on_nobody_else(town: Town) -> None:
    made = forecaster()
    inputs = clips_of(town, made.tokenizer).batch([0, 9]).inputs
    agents = [
        Agent(made, Planner(replace(TINY.planner, per_candidate=True, counts_on=who), made.tokenizer.cells), True).eval()
        for who in ("all", "followers")
    ]
    base = agents[0].base_path(inputs)
    everybody, followers = (agent.scene(inputs, base, True) for agent in agents)
    shared, flow = agents[0].scene(inputs, base, True, shared=True), made.occupancy_flow(inputs)
    assert made.world.reactions is not None
    fine = made.world.reactions.fine
    x, y = np.meshgrid(fine.centres(0), fine.centres(1), indexing="ij")
    origin = np.stack([x, y], -1) + flow.flow_m.detach().numpy()
    behind = torch.from_numpy((origin[..., 0] < EGO_CENTRE_M - EGO_SIZE_M[0] / 2) & (abs(origin[..., 1]) < 2.5))
    assert behind.any()
    assert not behind.all()
    for a in range(3):
        assert torch.equal(followers[:, a][behind], everybody[:, a][behind])
        assert torch.equal(followers[:, a][~behind], shared[~behind])


def test_arms_of_a_planner_with_one_forecast_per_candidate(town: Town) -> None:
    made = forecaster()
    clips = clips_of(town, made.tokenizer)
    inputs = clips.batch([0, 9]).inputs
    agent = Agent(made, Planner(replace(TINY.planner, per_candidate=True), made.tokenizer.cells), True).eval()
    told = {arm: chooser(agent, arm, clips, town)(inputs).outcomes.overlap for arm in ("on", "shared", "shuffled", "oracle")}
    assert len({tuple(value.flatten().tolist()) for value in told.values()}) == 4, "each arm reads another scene"
    assert all(value.shape == told["on"].shape for value in told.values())


def test_what_does_not_fit_is_refused(town: Town) -> None:
    with pytest.raises(ConfigError, match="multiple of 8; found 12"):
        ReactionConfig(12)
    with pytest.raises(ConfigError, match="corrects the occupancy flow"):
        WorldConfig(reactions=ReactionConfig(8))
    with pytest.raises(ConfigError, match="per_candidate needs candidates"):
        replace(TINY.planner, per_candidate=True, held=True)
    with pytest.raises(ConfigError, match="needs a world model with a reaction net: add one with `iidrive train reactions"):
        Agent(forecaster(0), Planner(replace(TINY.planner, per_candidate=True), forecaster(0).tokenizer.cells), True)


@pytest.mark.slow
def test_only_the_reaction_net_is_trained_and_planners_use_it(tmp_path: Path, town: Town) -> None:
    recipe = replace(TINY, reactions=ReactionConfig(8), train_reactions=replace(TINY.train_reactions, validate_every=8, validate_scenes=1))
    begin = {name: Run.start(tmp_path / name, {}) for name in ("tokenizer", "world", "reactions", "again", "planner")}
    tokenizer = train_tokenizer(recipe, town, "train", begin["tokenizer"])
    cache = write_tokens(tokenizer, town, town.scene_names("train"), tmp_path / "tokens")
    with pytest.raises(ConfigError, match="iidrive train reactions"):
        train_world(
            replace(recipe, world=replace(recipe.world, reactions=ReactionConfig(8))), tokenizer, cache, town, "train", begin["world"]
        )
    world = train_world(recipe, tokenizer, cache, town, "train", begin["world"])
    reacting = train_reactions(recipe, world, cache, town, "train", begin["reactions"])
    before, after = checkpoint.load_tensors(world), checkpoint.load_tensors(reacting)
    assert all(torch.equal(before[name], after[name]) for name in before)
    new = {name: value for name, value in after.items() if name not in before}
    assert all(name.startswith("reactions.") for name in new)
    assert new["reactions.out.weight"].abs().sum() > 0
    manifest = checkpoint.read_manifest(reacting)
    assert manifest.kind == "world"
    assert manifest.origins[0].fingerprint == checkpoint.read_manifest(world).fingerprint
    assert manifest.metrics["best"]["name"] == "reaction_gain"
    assert "cross entropy" in (tmp_path / "reactions/validation-000000016.txt").read_text()
    assert load_forecaster(reacting).model.world.reactions is not None

    with pytest.raises(ConfigError, match="has width 8: set"):
        train_reactions(replace(recipe, reactions=ReactionConfig(16)), reacting, cache, town, "train", Run.start(tmp_path / "wide", {}))
    resumed = train_reactions(recipe, world, cache, town, "train", begin["reactions"], RunOptions(resume="on"))
    assert checkpoint.read_manifest(resumed).fingerprint == manifest.fingerprint

    own = replace(recipe, planner=replace(recipe.planner, per_candidate=True))
    planner = load_agent(train_planner(own, reacting, cache, town, "train", begin["planner"], True)).model
    assert planner.planner.config.per_candidate
    assert planner.planner.config.fastest_mps == fastest_mps([EgoTrack.of(town.scene(n)) for n in town.scene_names("train")])
    with pytest.raises(ConfigError, match="needs a world model with a reaction net"):
        train_planner(own, world, cache, town, "train", Run.start(tmp_path / "without", {}), True)
    again = train_reactions(recipe, reacting, cache, town, "train", begin["again"])
    assert checkpoint.read_manifest(again).origins[0].fingerprint == manifest.fingerprint, "it starts from the net that is there"


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It adds a net to a world model, and says how a planner uses it."""
    sizes = {"train_scenes": 2, "val_scenes": 1, "test_scenes": 2, "keyframes": 9}
    options = ["--recipe", "tiny", *(f"--recipe.town.{name}={count}" for name, count in sizes.items())]
    main(["train", "tokenizer", "--run", str(tmp_path / "tokenizer"), *options])
    main(["train", "world", str(tmp_path / "tokenizer"), "--run", str(tmp_path / "world"), *options])
    main(["train", "reactions", str(tmp_path / "world"), "--run", str(tmp_path / "reactions"), *options])
    told = capsys.readouterr().out
    (following,) = [line for line in told.splitlines() if line.startswith(f"next: iidrive train planner {tmp_path / 'reactions'}")]
    assert following.endswith(" --recipe.planner.per_candidate=true")
    main([*shlex.split(following.removeprefix("next: iidrive ")), "--run", str(tmp_path / "planner")])
    assert load_agent(tmp_path / "planner").model.planner.config.per_candidate
    with pytest.raises(SystemExit):
        main(["train", "reactions", str(tmp_path / "world"), "--init", "town-small", "--run", str(tmp_path / "a"), *options])
    assert "leave --init out" in capsys.readouterr().err
    still = [*options, "--recipe.world.flow.width=0", "--recipe.planner.accelerations=[]"]
    main(["train", "world", str(tmp_path / "tokenizer"), "--run", str(tmp_path / "plain"), *still])
    with pytest.raises(SystemExit):
        main(["train", "reactions", str(tmp_path / "plain"), "--run", str(tmp_path / "b"), *options])
    assert "a reaction net corrects an occupancy flow" in capsys.readouterr().err
