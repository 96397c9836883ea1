"""Tokenizer, world model and planner: published size, latents from codes, causality, and ii on and off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from iidrive.core.batch import Batch, Inputs, Targets
from iidrive.core.errors import ConfigError
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames, draws
from iidrive.data.outcome_targets import OutcomeTargets
from iidrive.data.source import scenes
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import CREEP_M, BasePath
from iidrive.models.ego_motion import motion_between, past_motions
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import CellGrid, Norm
from iidrive.models.planner import Agent, Planner, drivable
from iidrive.models.quantise import QuantiserConfig, ResidualQuantiser
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.scoring.planning.sparsedrive import sparsedrive_yaw

RECIPE = recipes.tiny()
REGRESSOR = replace(RECIPE.planner, accelerations=())
TOWN = Town(TownConfig(train_scenes=1, keyframes=14))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two samples of a town with occupancy and random codes."""
    torch.manual_seed(0)
    tracks = [EgoTrack.of(scene) for scene in scenes(TOWN, "train")]
    clips = ClipDataset(tracks, ClipSpec(past=5), OccupancyFrames(TOWN, RECIPE.tokenizer.grid, 14), future=True)
    made = clips.batch([0, 6])
    cells = sum(Tokenizer(RECIPE.tokenizer).quantiser.level_cells)
    codes = torch.randint(0, RECIPE.tokenizer.quantiser.codes, (2, 12, cells))
    draw = torch.rand(2, 6)
    inputs = Inputs(**{**vars(made.inputs), "codes": codes[:, :6]})
    return Batch(inputs, Targets(**{**vars(made.targets), "codes": codes[:, 6:], "draw": draw}), progress=0.5)


@pytest.mark.slow
def test_rollouts_work_from_the_current_frame_alone(batch: Batch) -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer)
    forecaster = Forecaster(tokenizer, WorldModel(replace(RECIPE.world, history=1), tokenizer.cells, tokenizer.config.grid))
    forecaster.loss(batch)[0].backward()
    assert forecaster.eval().imagine(batch.inputs, 2).latents.isfinite().all()


@pytest.fixture
def agent() -> Agent:
    """The regressor."""
    torch.manual_seed(1)
    tokenizer = Tokenizer(RECIPE.tokenizer)
    forecaster = Forecaster(tokenizer, WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid))
    made = Agent(forecaster, Planner(REGRESSOR, tokenizer.cells), train_ii=True)
    with torch.no_grad():
        for name, p in [*made.planner.named_parameters(), *forecaster.world.named_parameters()]:
            if p.abs().max() == 0:
                p.normal_(0, 0.1)
            assert name
    return made.eval()


def test_published_size() -> None:
    config = recipes.full()
    tokenizer = Tokenizer(config.tokenizer)
    assert parameters(tokenizer.encoder) == 9_444_992
    assert parameters(tokenizer.decoder) == 10_551_616
    assert parameters(tokenizer.quantiser) == 214_144
    assert tokenizer.classes.numel() == 288
    assert sum(tokenizer.quantiser.level_cells) == 13_269
    published = replace(config.world, norm="batch", residual="none", motion="none")
    world = WorldModel(published, tokenizer.cells, tokenizer.config.grid)
    assert parameters(world.intra) + parameters(world.inter) == 1_355_552 + 977_568


@pytest.mark.slow
def test_the_latent_is_rebuilt_from_codes_alone(batch: Batch) -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    inputs = batch.inputs
    assert inputs.occupancy is not None
    quantised = tokenizer.tokenize(inputs.occupancy, inputs.now_T_frame)
    torch.testing.assert_close(tokenizer.latent_of(quantised.codes), quantised.latent, atol=1e-5, rtol=1e-5)
    assert quantised.codes.shape[1] == sum(tokenizer.quantiser.level_cells)


def test_tokenizing_a_scene_equals_tokenizing_its_clips() -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    scene = TOWN.scene(TOWN.scene_names("train")[0])
    track = EgoTrack.of(scene)
    frames = OccupancyFrames(TOWN, RECIPE.tokenizer.grid, 14)
    occupancy = torch.from_numpy(frames(scene.name, torch.arange(14).numpy()))
    at_once = tokenizer.tokenize_scene(occupancy, torch.from_numpy(track.global_T_ego))
    clips = ClipDataset([track], ClipSpec(past=4), frames)
    part = clips.batch([0, 2, 7]).inputs
    assert part.occupancy is not None
    alone = tokenizer.tokenize(part.occupancy, part.now_T_frame).codes
    assert (alone == at_once[[0, 2, 7]]).float().mean() > 0.999


def test_later_frames_do_not_change_codes() -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    scene = TOWN.scene(TOWN.scene_names("train")[0])
    frames = OccupancyFrames(TOWN, RECIPE.tokenizer.grid, 14)
    occupancy = torch.from_numpy(frames(scene.name, torch.arange(14).numpy())).clone()
    poses = torch.from_numpy(EgoTrack.of(scene).global_T_ego)
    before = tokenizer.tokenize_scene(occupancy, poses)[:8]
    occupancy[8:] = 4
    poses[8:, 0, 3] += 50
    assert torch.equal(tokenizer.tokenize_scene(occupancy, poses)[:8], before)


def test_nearest_code_and_intra_levels() -> None:
    quantiser = ResidualQuantiser(QuantiserConfig(codes=8, width=4, history=1, codebook_start="uniform"), (8, 8))
    v = quantiser.codebook.detach()[[3, 5]].T.reshape(1, 4, 1, 2) + 1e-4
    assert quantiser.nearest(v).tolist() == [[[3, 5]]]
    assert quantiser.level_cells == [4, 16, 64, 64]


def test_inter_levels_see_only_change() -> None:
    """With past equal to present, the default inter level quantises the residual only, so the past has no other effect."""
    torch.manual_seed(0)
    quantiser = ResidualQuantiser(QuantiserConfig(codes=8, width=4, history=2, codebook_start="uniform"), (8, 8)).eval()
    now = torch.randn(1, 4, 8, 8)
    everywhere = torch.ones(1, 2, 1, 8, 8)
    still = quantiser(now, now[:, None].repeat(1, 2, 1, 1, 1), everywhere)
    moved = quantiser(now, torch.randn(1, 2, 4, 8, 8), everywhere)
    unseen = quantiser(now, torch.randn(1, 2, 4, 8, 8), 0 * everywhere)
    assert torch.equal(still.codes, unseen.codes)
    intra = sum(quantiser.level_cells[:3])
    assert torch.equal(still.codes[:, :intra], moved.codes[:, :intra])
    assert not torch.equal(still.codes[:, intra:], moved.codes[:, intra:])


def test_warp_moves_maps_in_the_right_direction() -> None:
    grid = CellGrid((10, 10), (-5.0, -5.0), 1.0)
    maps = torch.zeros(1, 1, 10, 10)
    maps[0, 0, 7, 4] = 1.0
    forward = torch.eye(4)[None].clone()
    forward[0, 0, 3] = 2.0
    assert grid.warp(maps, forward)[0, 0].nonzero().tolist() == [[5, 4]]
    left = torch.eye(4)[None].clone()
    left[0, 1, 3] = 1.0
    assert grid.warp(maps, left)[0, 0].nonzero().tolist() == [[7, 3]]


def test_norm_ignores_memory_layout() -> None:
    x = 3 + 0.1 * torch.randn(2, 16, 40, 40)
    norm = Norm(8, 16)
    torch.testing.assert_close(norm(x), norm(x.to(memory_format=torch.channels_last)))


def test_motion_at_rest_is_the_identity() -> None:
    still = motion_between(torch.eye(4)[None])[0]
    assert still.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    frames = torch.eye(4).repeat(1, 3, 1, 1)
    frames[0, 0, 0, 3] = -4.0
    frames[0, 1, 0, 3] = -2.0
    motions = past_motions(frames, torch.tensor([[True, True, True]]), torch.tensor([[1.0, 0.5, 0.0]]))
    assert motions[0, :, [0, 6]].tolist() == [[2.0, 4.0], [2.0, 4.0]]
    unknown = past_motions(frames, torch.tensor([[False, True, True]]), torch.tensor([[0.5, 0.5, 0.0]]))
    assert unknown[0, 0].tolist() == still.tolist()


@pytest.mark.slow
def test_an_untrained_world_model_keeps_the_current_latent(batch: Batch) -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer)
    forecaster = Forecaster(tokenizer, WorldModel(replace(RECIPE.world, motion="last"), tokenizer.cells, tokenizer.config.grid)).eval()
    inputs = batch.inputs
    imagined = forecaster.imagine(inputs, 2)
    last = forecaster.initial_state(inputs).motions[:, -1]
    torch.testing.assert_close(motion_between(imagined.now_T_frame[:, 0])[1, :3], last[1, :3], atol=1e-3, rtol=1e-2)
    assert inputs.codes is not None
    present = forecaster.latents(inputs.codes[:, -1])
    torch.testing.assert_close(imagined.latents[:, 0], tokenizer.cells.warp(present, imagined.now_T_frame[:, 0]), atol=1e-4, rtol=1e-4)


def test_labels_remove_some_of_the_class_weights_bias() -> None:
    """With weighted training, a rare class with the same logit as a frequent one is less likely.

    Classes absent from training are never predicted.
    """
    weights = (0.0, *[1.0] * 10, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0)
    told = []
    for prior in (0.0, 0.5):
        tokenizer = Tokenizer(replace(RECIPE.tokenizer, class_weights=weights, prior=prior)).eval()
        logits = torch.full((1, 2, 2, 1, 18), -9.0)
        logits[..., 0], logits[..., 13], logits[..., 11] = 9.0, 1.0, torch.tensor([[0.5], [-0.5]])[None]
        tokenizer._logits = lambda columns, logits=logits: logits.clone()
        told.append(tokenizer.labels(torch.zeros(1, 16, 1, 1))[0, 0, :, 0].tolist())
        without = torch.arange(18) == 13
        assert tokenizer.labels(torch.zeros(1, 16, 1, 1), without)[0, 0, :, 0].tolist() == [11, 11]
    assert told == [[13, 13], [11, 13]]  # log 9 / 2 = 1.1: between the two differences


@pytest.mark.slow
def test_losses_reach_every_weight(batch: Batch, agent: Agent) -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer).train()
    tokenizer.loss(batch)[0].backward()
    idle = [n for n, p in tokenizer.named_parameters() if p.grad is None]
    assert idle == []
    agent.forecaster.world.requires_grad_(True)
    agent.forecaster.loss(batch)[0].backward()
    idle = [n for n, p in agent.forecaster.world.named_parameters() if p.grad is None and not n.startswith("flow.")]
    assert idle == []  # the occupancy flow is trained before
    agent.forecaster.world.requires_grad_(False)
    assert all(p.grad is None for p in agent.forecaster.tokenizer.parameters())
    agent.loss(batch)[0].backward()
    assert [n for n, p in agent.planner.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_losses_of_parts_add_up_to_that_of_the_batch(agent: Agent) -> None:
    """For every trainable model: losses and gradients of parts, divided by the whole batch's counts, add up to those of the batch."""
    tracks = [EgoTrack.of(scene) for scene in scenes(TOWN, "train")]
    cut = ClipSpec(past=5, full_future=False)
    cells = sum(agent.forecaster.tokenizer.quantiser.level_cells)
    codes = torch.randint(0, RECIPE.tokenizer.quantiser.codes, (14, cells), generator=torch.Generator().manual_seed(0)).numpy()
    clips = ClipDataset(tracks, cut, OccupancyFrames(TOWN, RECIPE.tokenizer.grid, 14), lambda _, rows: codes[rows], future=True)
    agent.forecaster.world.requires_grad_(True)
    tokenizer = Tokenizer(RECIPE.tokenizer).double()
    tokenizer.quantiser.started.fill_(True)
    for owner, module in ((tokenizer, tokenizer), (agent.forecaster.double(), agent.forecaster.world), (agent.double(), agent.planner)):
        found = []
        for parts in ([[5, 1, 12, 0]], [[5], [1, 12, 0]], [[5, 1], [12], [0]]):
            module.zero_grad()
            places = [at.tolist() for at in torch.arange(4).split([len(p) for p in parts])]
            made = [replace(clips.batch(rows, draws(0, at[0], len(at), 6), 0.3), place=at) for rows, at in zip(parts, places, strict=True)]
            made = [part.as_type(torch.float64) for part in made]
            counts = {k: sum((owner.counts(p)[k] for p in made), torch.zeros(())) for k in owner.counts(made[0])}
            total = sum(owner.loss(part, counts)[0] for part in made)
            total.backward()
            grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            found.append((total.detach(), grads))
        for total, grads in found[1:]:
            torch.testing.assert_close(total, found[0][0], rtol=1e-12, atol=0)
            torch.testing.assert_close(grads, found[0][1], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_plans_do_not_depend_on_the_rest_of_the_batch(batch: Batch, agent: Agent) -> None:
    inputs = batch.inputs
    for ii in (False, True):
        both = agent.plan(inputs, ii)
        torch.testing.assert_close(agent.plan(inputs.select([0]), ii), both[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_without_ii_the_world_model_is_not_run(batch: Batch, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    off, on = agent.plan(batch.inputs, False), agent.plan(batch.inputs, True)
    assert not torch.equal(off, on)

    def forbidden(*_: object) -> None:
        raise AssertionError("the world model was asked")

    monkeypatch.setattr(agent.forecaster, "imagine", forbidden)
    assert torch.equal(agent.plan(batch.inputs, False), off)
    with pytest.raises(AssertionError, match="asked"):
        agent.plan(batch.inputs, True)


@pytest.mark.slow
def test_an_untrained_ii_branch_changes_nothing(batch: Batch) -> None:
    tokenizer = Tokenizer(RECIPE.tokenizer)
    forecaster = Forecaster(tokenizer, WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid))
    fresh = Agent(forecaster, Planner(REGRESSOR, tokenizer.cells), train_ii=False).eval()
    assert torch.equal(fresh.plan(batch.inputs, False), fresh.plan(batch.inputs, True))


@pytest.fixture
def chooser(agent: Agent) -> Agent:
    """A planner with candidates, on the same world model."""
    torch.manual_seed(2)
    made = Agent(agent.forecaster, Planner(RECIPE.planner, agent.forecaster.tokenizer.cells), train_ii=True)
    with torch.no_grad():
        made.planner.outcomes.out.weight.normal_(0, 0.3)
        for name, p in made.planner.named_parameters():
            if "correct" in name:
                p.normal_(0, 0.1)
    return made.eval()


@pytest.fixture(scope="module")
def boxed(batch: Batch) -> Batch:
    clips = ClipDataset([EgoTrack.of(scene) for scene in scenes(TOWN, "train")], ClipSpec(past=5), labels=OutcomeTargets(TOWN))
    found = clips.batch([0, 6]).targets
    known = {name: getattr(found, name) for name in ("boxes", "boxes_known", "drivable", "road_known")}
    return replace(batch, targets=replace(batch.targets, **known))


def test_a_planner_with_candidates_plans_one_of_them(boxed: Batch, chooser: Agent) -> None:
    for ii in (False, True):
        choice = chooser.choice(boxed.inputs, ii)
        assert choice.candidates.shape == (2, len(recipes.ACCELERATIONS), 6, 2)
        best = choice.cost_m.argmin(1)
        assert torch.equal(chooser.plan(boxed.inputs, ii), choice.candidates[torch.arange(2), best])
        alone = chooser.choice(boxed.inputs.select([0]), ii)
        torch.testing.assert_close(alone.cost_m, choice.cost_m[:1], atol=1e-4, rtol=1e-4)
    spread = (choice.candidates[:, :, -1] - choice.candidates[:, :1, -1]).norm(dim=-1).amax(1)
    assert (spread > 2).any()  # metres at 3 s


def test_a_candidate_that_stops_keeps_its_heading(boxed: Batch, chooser: Agent) -> None:
    """Repeated points have no heading: SparseDrive's evaluator would turn the car to the side."""
    gone = torch.tensor([1.6, 2.8, 3.6, 4.0, 4.1, 4.1])
    base = BasePath.alone(torch.stack([torch.zeros(6), gone], -1).expand(2, -1, -1))
    found = chooser.planner.candidates(boxed.inputs, base)
    hops = torch.diff(found, dim=2, prepend=torch.zeros_like(found[:, :, :1])).norm(dim=-1)
    assert hops.min() >= 0.99 * CREEP_M
    assert (hops[:, :, -1] < 2 * CREEP_M).sum() > 6, "most of them have stopped"
    yaw = sparsedrive_yaw(found.flatten(0, 1).numpy())
    assert np.abs(yaw - np.pi / 2).max() < 0.3


def test_with_ii_only_the_scene_differs(boxed: Batch, chooser: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    off, on = (chooser.choice(boxed.inputs, ii) for ii in (False, True))
    assert torch.equal(off.candidates, on.candidates)
    assert not torch.equal(off.cost_m, on.cost_m)

    def forbidden(*_: object) -> None:
        raise AssertionError("the world model's future was asked for")

    monkeypatch.setattr(chooser.forecaster, "imagine", forbidden)
    monkeypatch.setattr(chooser.forecaster, "taken", forbidden)
    assert torch.equal(chooser.choice(boxed.inputs, False).cost_m, off.cost_m)
    with pytest.raises(AssertionError, match="asked"):
        chooser.choice(boxed.inputs, True)


def test_outcome_losses_train_the_head_but_not_the_world_model(boxed: Batch, chooser: Agent) -> None:
    loss, parts = chooser.loss(boxed)
    assert {"collision", "distance", "quality", "collision_ii", "distance_ii", "quality_ii"} < set(parts)
    loss.backward()
    assert {n.split(".")[0] for n, p in chooser.planner.named_parameters() if p.grad is None} == {"route"}
    assert all(p.grad is None for p in chooser.forecaster.parameters())
    off = Agent(chooser.forecaster, chooser.planner, train_ii=False)
    assert not any("ii" in name for name in off.loss(boxed)[1])


@pytest.mark.slow
def test_training_without_ii_does_not_change_its_branch(batch: Batch, agent: Agent) -> None:
    off = Agent(agent.forecaster, agent.planner, train_ii=False)
    off.loss(batch)[0].backward()
    touched = {n.split(".")[0] for n, p in off.planner.named_parameters() if p.grad is not None}
    assert "ii_reader" not in touched
    assert "future" not in touched


def test_invalid_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="one entry per level"):
        replace(RECIPE.tokenizer, blocks=(1,))
    with pytest.raises(ConfigError, match="multiple of groups"):
        replace(RECIPE.tokenizer, base_width=12)
    with pytest.raises(ConfigError, match="latent width"):
        replace(RECIPE, world=replace(RECIPE.world, width=32))
    with pytest.raises(ConfigError, match="multiple of heads"):
        replace(RECIPE.world, heads=3)
    for weight in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"smooth must be 0 or a positive number; found {weight}"):
            replace(RECIPE.planner, smooth=weight)


def test_drivable_keeps_normal_driving_and_removes_noise_at_standstill() -> None:
    turn = torch.linspace(0, 1.2, 7)[1:]
    arc = torch.stack([6 * (1 - turn.cos()), 6 * turn.sin()], -1)
    jitter = torch.tensor([[0.0, 0.01], [-0.01, -0.02], [0.02, 0.05], [0.0, 0.16], [0.04, 0.39], [0.07, 0.6]])
    kept, settled = drivable(torch.stack([arc, jitter]))
    torch.testing.assert_close(kept, arc, atol=1e-5, rtol=0)
    hops = torch.diff(settled, dim=0, prepend=torch.zeros(1, 2))
    assert (hops[:, 1] >= 0).all()
    assert (hops[:, 0].abs() <= hops[:, 1] + 1e-6).all()
    assert (settled - jitter).norm(dim=-1).max() < 0.06
