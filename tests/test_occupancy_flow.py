"""Labels of what road users take and where they come from, the grids that are put together from them, and the net that predicts both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from iidrive.core import geometry
from iidrive.core.batch import Inputs
from iidrive.core.classes import FREE, MOVABLE, OCC
from iidrive.core.scene import GridSpec
from iidrive.data.box_tracks import BoxTracks, FlowTargets, SceneBoxes, flow_labels
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, scored_clips
from iidrive.data.flow import flow
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.occupancy_flow import FlowConfig, FlowLearner, FlowNet
from iidrive.models.planner import Agent, Planner
from iidrive.models.road_users import transported
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import infer, recipes
from iidrive.pipeline.tokens import codes_in_memory
from iidrive.pipeline.validate import validate_flow
from iidrive.runtime.distributed import ProcessGroup
from iidrive.scoring.movers import MoverCounts, count, mover_truth, movers_in, tracks_inside

GRID = recipes.COARSE_GRID
TINY = recipes.tiny()


@pytest.fixture(scope="module")
def source() -> Town:
    return Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1))


def one_box(label: str = "car", known: tuple[bool, ...] = (True, True, True)) -> BoxTracks:
    """A car of 4 x 2 m that drives along +y, 3 m a step, turning by a quarter at the last one."""
    centre = np.array([[[0.0, 0.0, 0.8]], [[0.0, 3.0, 0.8]], [[0.0, 6.0, 0.8]]])
    yaw = np.array([[np.pi / 2], [np.pi / 2], [0.0]])
    return BoxTracks(centre, yaw, np.array(known)[:, None], np.array([[4.0, 2.0]]), np.array([OCC[label]], np.uint8))


def test_flow_points_back_along_the_way_that_a_box_has_come() -> None:
    spec = GridSpec((40, 40, 1), (-10.0, -10.0, 0.0), 0.5)
    found = flow_labels(one_box(), spec)
    assert found.taken.shape == (3, 40, 40)
    assert found.taken.sum((1, 2)).tolist() == [32, 32, 32]  # 4.3 x 2.3 m: 8 x 4 cell centres lie inside
    assert np.isfinite(found.flow_m[..., 0]).sum((1, 2)).tolist() == [32, 32]
    x, y = np.nonzero(found.taken[1])
    assert np.allclose(found.flow_m[0, x, y], [0.0, -3.0], atol=1e-6)
    x, y = np.nonzero(found.taken[2])
    here = np.stack([spec.centres(0)[x], spec.centres(1)[y]], -1)
    local = here - [0.0, 6.0]  # the heading is +x then and +y now
    assert np.allclose(here + found.flow_m[1, x, y], np.stack([-local[:, 1], local[:, 0]], -1), atol=1e-5)


def test_a_box_that_is_not_there_yet_takes_cells_and_has_no_flow() -> None:
    found = flow_labels(one_box(known=(False, True, False)), GridSpec((40, 40, 1), (-10.0, -10.0, 0.0), 0.5))
    assert [bool(t.any()) for t in found.taken] == [False, True, False]
    assert np.isnan(found.flow_m).all()


def test_what_cannot_move_is_no_road_user() -> None:
    assert not flow_labels(one_box("barrier"), GRID).taken.any()


@pytest.mark.slow
def test_labels_agree_with_the_forward_flow(source: Town) -> None:
    scene = source.scene(source.scene_names("test")[0])
    boxes = SceneBoxes(source, 60.0)
    for index in (0, 12, len(scene) - 1):
        found = flow_labels(boxes(scene.name, index), GRID)
        now = flow(scene, index, (0,), GRID)
        assert (found.taken[0] == (now.owner != FREE)).all()
    assert not found.taken[1:].any()  # nothing is known after the scene's end


@pytest.mark.slow
def test_true_labels_carry_movers_to_where_they_are(source: Town) -> None:
    scene = source.scene(source.scene_names("test")[0])
    boxes = SceneBoxes(source, 60.0)
    counts, still = MoverCounts.zero(), MoverCounts.zero()
    for index in range(2, len(scene) - 6, 3):
        labels = flow_labels(boxes(scene.name, index), GRID)
        present = source.occupancy(scene, index, GRID).semantics
        frames = [scene.keyframes[i].global_T_ego.matrix for i in (index, index + 4)]
        frame = torch.from_numpy(geometry.invert(frames[0]) @ frames[1]).float()[None, None]
        ground = torch.full((1, 1, *GRID.shape), FREE, dtype=torch.uint8)
        taken, back = torch.from_numpy(labels.taken[4])[None, None], torch.from_numpy(labels.flow_m[3])[None, None].nan_to_num(0)
        made = transported(ground, torch.from_numpy(present)[None], taken.float(), 0.5, back, frame, GRID, GRID).numpy()[0, 0]
        assert set(np.unique(made)) <= {FREE, *np.unique(present[MOVABLE[present]]).tolist()}
        truth = mover_truth(scene, index + 4, GRID, tracks_inside(scene, index, GRID))
        counts += count(movers_in(made), truth)
        still += count(movers_in(present), truth)
    assert counts.iou() > 0.5 > 0.2 > still.iou()


def test_ground_stays_where_nothing_is_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    ground = torch.randint(11, 17, (2, 3, *GRID.shape), generator=generator, dtype=torch.uint8)
    present = torch.randint(0, 18, (2, *GRID.shape), generator=generator, dtype=torch.uint8)
    nothing = torch.zeros((2, 3, *GRID.shape[:2]), dtype=torch.bool)
    eye = torch.eye(4).expand(2, 3, 4, 4)
    back = torch.zeros((2, 3, *GRID.shape[:2], 2))
    assert (transported(ground, present, nothing.float(), 0.5, back, eye, GRID, GRID) == ground).all()
    everything = transported(ground, present, 1.0 - nothing.float(), 0.5, back, eye, GRID, GRID)
    movable = torch.from_numpy(MOVABLE[present.numpy()])[:, None].expand_as(ground)
    column = movable.any(-1, keepdim=True).expand_as(movable)
    assert (everything[column] == torch.where(movable, present[:, None], ground)[column]).all()


@pytest.fixture(scope="module")
def clips(source: Town) -> tuple[Tokenizer, ClipDataset]:
    torch.manual_seed(0)
    tokenizer = Tokenizer(TINY.tokenizer).eval()
    tracks = [EgoTrack.of(source.scene(name)) for name in source.scene_names("test")]
    codes = codes_in_memory(tokenizer, source, tracks)
    fine = net(tokenizer).fine
    return tokenizer, ClipDataset(tracks, ClipSpec(), codes=codes, labels=FlowTargets(source, fine))


def net(tokenizer: Tokenizer, config: FlowConfig | None = None) -> FlowNet:
    torch.manual_seed(1)
    world = replace(TINY.world, flow=config or TINY.world.flow)
    from iidrive.models.world import WorldModel

    made = WorldModel(world, tokenizer.cells, tokenizer.config.grid).flow
    assert made is not None
    return made


@pytest.mark.slow
def test_the_loss_falls_to_what_is_there(clips: tuple[Tokenizer, ClipDataset]) -> None:
    tokenizer, data = clips
    learner = FlowLearner(tokenizer, net(tokenizer))
    batch = data.batch([4, 9, 14])
    optimiser = torch.optim.AdamW(learner.net.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss, parts = learner.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append({k: v.item() for k, v in parts.items()})
    assert losses[-1]["taken"] < 0.35 * losses[0]["taken"]
    assert losses[-1]["flow"] < losses[0]["flow"]
    assert all(p.grad is not None for p in learner.net.parameters())


@pytest.mark.slow
def test_a_batch_in_parts_has_the_loss_of_the_whole(clips: tuple[Tokenizer, ClipDataset]) -> None:
    tokenizer, data = clips
    learner = FlowLearner(tokenizer, net(tokenizer)).eval()
    whole = data.batch([1, 7, 13])
    counts = learner.counts(whole)
    parts = [learner.loss(data.batch(rows), counts)[0] for rows in ([1], [7, 13])]
    torch.testing.assert_close(sum(parts), learner.loss(whole)[0])


@pytest.mark.slow
def test_frames_that_did_not_exist_change_nothing(clips: tuple[Tokenizer, ClipDataset]) -> None:
    tokenizer, data = clips
    model = net(tokenizer).eval()
    inputs = data.batch([1]).inputs  # the second keyframe: three of its five frames had not begun
    assert inputs.codes is not None
    latents = tokenizer.latent_of(inputs.codes)
    unknown = ~inputs.known[0]
    assert int(unknown.sum()) == 4
    other = torch.where(unknown[None, :, None, None, None], torch.randn_like(latents), latents)
    with torch.no_grad():
        a, b = model.of(inputs, latents), model.of(inputs, other)
    assert (a.taken == b.taken).all()
    assert (a.flow_m == b.flow_m).all()


@pytest.mark.slow
def test_it_is_told_of_the_egos_motion_in_no_other_way_than_by_the_frames(clips: tuple[Tokenizer, ClipDataset]) -> None:
    """What is seen around an ego that turned on the spot in the same place reads the same, but for the borders of the warped maps."""
    tokenizer, data = clips
    model = net(tokenizer).eval()
    inputs = data.batch([9]).inputs
    assert inputs.codes is not None
    moved = Inputs(**{**vars(inputs), "global_T_now": torch.eye(4, dtype=torch.float64)[None], "command": 1 - inputs.command.clamp(max=1)})
    with torch.no_grad():
        a, b = (model.of(i, tokenizer.latent_of(inputs.codes)) for i in (inputs, moved))
    assert (a.taken == b.taken).all()


@pytest.mark.slow
def test_validation_counts_the_movers_of_the_forecast_table() -> None:
    torch.manual_seed(0)
    town = Town(TownConfig(seed=908, train_scenes=0, val_scenes=0, test_scenes=1, keyframes=18))
    tokenizer = Tokenizer(replace(TINY.tokenizer, class_weights=tuple(float(k % 4) for k in range(18)), prior=0.5)).eval()
    world = WorldModel(TINY.world, tokenizer.cells, tokenizer.config.grid).eval()
    assert world.flow is not None
    assert world.flow.out.bias is not None
    with torch.no_grad():  # random models that show road users in many cells
        tokenizer.decoder.out[-1].weight.normal_(0, 0.5)
        world.flow.out.weight.normal_(0, 1.0)
        world.flow.out.bias.fill_(-1.0)
    tracks = [EgoTrack.of(town.scene(town.scene_names("test")[0]))]
    clips = scored_clips(tracks, codes_in_memory(tokenizer, town, tracks), town, tokenizer.config.grid)
    table = infer.forecasts(Forecaster(tokenizer, world), clips, tokenizer.config.grid, source=town, oracle_every=1)
    expected = table.figure("world model, true path (oracle)", "movers_IoU")[1:]
    with torch.no_grad():
        numbers, text = validate_flow(FlowLearner(tokenizer, world.flow).eval(), town, tracks, ProcessGroup())
    assert list(numbers) == ["movers_IoU", "movers_IoU_1s", "movers_IoU_2s", "movers_IoU_3s"]
    assert all(0 < value < 1 for value in numbers.values())
    np.testing.assert_allclose(list(numbers.values())[1:], expected, rtol=1e-2)  # poses of the roll-out are chained in float32
    assert numbers["movers_IoU"] == pytest.approx(np.mean(list(numbers.values())[1:]))
    assert text.startswith("movers IoU at 1 / 2 / 3 s ")


def test_a_held_scene_is_that_of_now_at_every_step() -> None:
    torch.manual_seed(0)
    town = Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1, keyframes=9))
    tokenizer = Tokenizer(TINY.tokenizer).eval()
    forecaster = Forecaster(tokenizer, WorldModel(TINY.world, tokenizer.cells, tokenizer.config.grid))
    tracks = [EgoTrack.of(town.scene(town.scene_names("test")[0]))]
    clips = ClipDataset(tracks, ClipSpec(full_future=False), codes=codes_in_memory(tokenizer, town, tracks))
    inputs = clips.batch([0, 1]).inputs
    agents = [Agent(forecaster, Planner(replace(TINY.planner, held=held), tokenizer.cells), True) for held in (False, True)]
    moving, held = (agent.scene(inputs, agent.base_path(inputs), True) for agent in agents)
    assert held.shape == moving.shape
    assert all(torch.equal(held[:, k], held[:, 0]) for k in range(held.shape[1]))
    flow = forecaster.imagine(inputs, 1).flow
    assert flow is not None
    assert torch.equal(held[:, 0], flow.taken[:, 0].sigmoid())
    assert torch.equal(moving, flow.taken[:, 1:].sigmoid())
    now = [agent.scene(inputs, agent.base_path(inputs), False) for agent in agents]
    assert torch.equal(*now), "without ii, both read the tokens of now"
