"""The route ahead: its labels, its head, and the base path on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from iidrive.core.batch import Batch
from iidrive.core.errors import ConfigError
from iidrive.core.scene import ROUTE_AHEAD, ROUTE_BEHIND, ROUTE_STEP_M, Keyframe, Pose, Scene
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.routes import RouteTargets, windows
from iidrive.data.source import route_line, scenes
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.data.town.source import Town
from iidrive.models.candidates import BasePath, speed_profiles
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import identity, planar_transform
from iidrive.models.planner import Agent, Planner
from iidrive.models.route import RouteConfig, RouteHead, RouteLearner, route_ahead
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline.load import load_agent
from iidrive.pipeline.recipes import Recipe, named
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_planner, train_tokenizer, train_world
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions

RECIPE = named("tiny")
TOWN = Town(replace(RECIPE.town, train_scenes=2))


@pytest.fixture(scope="module")
def tracks() -> list[EgoTrack]:
    return [EgoTrack.of(scene) for scene in scenes(TOWN, "train")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(RECIPE.tokenizer).eval()


@pytest.fixture(scope="module")
def batch(tracks: list[EgoTrack], tokenizer: Tokenizer) -> Batch:
    """Four samples with drawn tokens and true routes."""
    cells, count = sum(tokenizer.quantiser.level_cells), RECIPE.tokenizer.quantiser.codes
    drawn = np.random.default_rng(0).integers(0, count, (64, cells))
    clips = ClipDataset(tracks, ClipSpec(), codes=lambda name, at: drawn[at], labels=RouteTargets(tracks))
    return clips.batch([0, 9, 20, 40], draws=np.full((4, 6), 0.9))


def head(tokenizer: Tokenizer) -> RouteHead:
    torch.manual_seed(1)
    made = RouteHead(RECIPE.planner.route, RECIPE.planner.latent_width, tokenizer.cells)
    with torch.no_grad():
        for p in made.parameters():
            if p.abs().max() == 0:
                p.normal_(0, 0.1)
    return made.eval()


def driven(*xy: tuple[float, float]) -> Scene:
    """A log without a planned route whose LIDAR_TOP drives over these points, looking along x."""
    town = next(scenes(TOWN, "train"))
    place = [Pose.from_xy_yaw(x - float(EGO_T_LIDAR.translation_m[0]), y, 0.0) for x, y in xy]
    frames = tuple(replace(k, global_T_ego=p, ego_T_lidar=EGO_T_LIDAR) for k, p in zip(town.keyframes, place, strict=False))
    assert all(isinstance(k, Keyframe) for k in frames)
    return Scene("log", frames, town.map)


def test_a_log_without_a_route_has_the_driven_line() -> None:
    scene = driven((0, 0), (2, 0), (2, 0.01), (2, 0), (4, 0), (4, 3))
    line = route_line(scene)
    np.testing.assert_allclose(line[:9], np.stack([np.arange(9) / 2, np.zeros(9)], -1), atol=1e-9)
    np.testing.assert_allclose(line[-1], (4, 3), atol=1e-9)  # standing and its jitter add nothing: 4 m and 3 m
    assert len(line) == 15


def test_a_label_is_the_route_around_a_keyframe() -> None:
    track = EgoTrack.of(driven(*((float(x), 0.0) for x in range(0, 60, 3))))
    label = windows(track)
    assert label.shape == (20, ROUTE_BEHIND + ROUTE_AHEAD + 1, 2)
    known = np.isfinite(label[..., 0])
    assert known[0, :ROUTE_BEHIND].sum() == 0
    assert known[5].sum() == ROUTE_BEHIND + 1 + 84  # 15 m driven, 42 m to go: all 8 m behind, and 84 halves of a metre ahead
    ahead = label[5, ROUTE_BEHIND:][known[5, ROUTE_BEHIND:]]
    lever = float(EGO_T_LIDAR.translation_m[0])
    np.testing.assert_allclose(ahead, np.stack([lever + ROUTE_STEP_M * np.arange(85), np.zeros(85)], -1), atol=1e-5)


def test_a_town_is_labelled_with_its_planned_route(tracks: list[EgoTrack]) -> None:
    for track in tracks:
        planned = TOWN.route(track.name).points
        assert abs(len(track.route_m) - len(planned)) < 3
        gap = np.linalg.norm(track.route_m[:, None] - planned[None], axis=-1).min(1)
        assert gap.max() < 0.26  # half the distance of two points
        nearest = np.linalg.norm(windows(track) - track.ego_T_lidar[:, None, :2, 3], axis=-1)
        assert (np.nanmin(nearest, 1) < 0.6).all()  # the driver keeps to it
        assert (np.nanargmin(nearest, 1) == ROUTE_BEHIND).all()


def test_a_lane_that_bends_back_is_followed_in_order() -> None:
    """The nearest point of the whole line may be one that the ego reaches much later."""
    out = [(float(x), 0.0) for x in range(0, 40, 2)]
    back = [(float(x), 0.4) for x in range(40, 0, -2)]
    track = EgoTrack.of(driven(*out, *back[: 41 - len(out)]))
    label = windows(track)
    lever = float(EGO_T_LIDAR.translation_m[0])
    np.testing.assert_allclose(label[3, ROUTE_BEHIND : ROUTE_BEHIND + 10, 0], lever + ROUTE_STEP_M * np.arange(10), atol=1e-5)


def test_route_ahead_starts_at_the_nearest_point() -> None:
    line = torch.stack([ROUTE_STEP_M * (torch.arange(40.0) - ROUTE_BEHIND), torch.zeros(40)], -1)
    line[35:] = torch.nan
    beside = planar_transform(
        torch.tensor([[1.0, -1.0]]), torch.tensor([0.0]), torch.tensor([1.0])
    )  # from the ego frame: turned left by 90°
    found, known = route_ahead(line[None], beside, points=4, every=5)
    # In the new frame the line goes along y at x = 1; its nearest point is 0.5 m · round(1 / 0.5) before the origin.
    assert known.tolist() == [[True, True, True, False]]
    torch.testing.assert_close(found[0, :3], torch.tensor([[1.0, 2.5], [1.0, 5.0], [1.0, 7.5]]))


def test_displaced_samples_have_the_same_route_in_another_frame(batch: Batch, tokenizer: Tokenizer) -> None:
    """Displaced and true labels are the same points of the world, but for where counting starts."""
    learner = RouteLearner(tokenizer, head(tokenizer))
    learner.head.config = replace(learner.head.config, displaced=1.0)
    moved, some = learner._displacement(batch)
    assert bool(some.all())
    xy, yaw = moved[:, :2, 3], torch.atan2(moved[:, 1, 0], moved[:, 0, 0])
    torch.testing.assert_close(xy, torch.tensor([[0.8, 1.2]]).expand(4, 2))
    torch.testing.assert_close(yaw, torch.full((4,), 0.28))
    lidar, known = learner._true(batch, (moved, some))
    homogeneous = torch.cat([lidar, torch.zeros(4, lidar.shape[1], 1), torch.ones(4, lidar.shape[1], 1)], -1)
    ego = torch.einsum("bij,bnj->bni", moved @ batch.inputs.ego_T_lidar, homogeneous)[..., :2]
    assert batch.targets.route is not None
    gap = (ego[:, :, None] - batch.targets.route[:, None]).norm(dim=-1).nan_to_num(torch.inf).min(-1).values
    assert float(gap[known].max()) < 1e-3
    assert int(known.sum()) > 8


def test_the_latent_is_moved_with_the_label(batch: Batch, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of the world is read at its new coordinates from a displaced latent."""
    learner = RouteLearner(tokenizer, head(tokenizer))
    learner.head.config, cells = replace(learner.head.config, displaced=1.0), tokenizer.cells
    seen: list[torch.Tensor] = []
    plain = learner.head.forward
    monkeypatch.setattr(learner.head, "forward", lambda inputs, latent: (seen.append(latent), plain(inputs, latent))[1])
    x = cells.points(torch.zeros(1))[..., 0]
    ramp = x.expand(4, RECIPE.planner.latent_width, *x.shape).contiguous()
    monkeypatch.setattr(tokenizer, "latent_of", lambda codes: ramp)
    learner.loss(batch)
    moved, _ = learner._displacement(batch)
    there = torch.tensor([[[3.0, -2.0]]])
    value = cells.read(seen[0][:1], there[:, :, None])[0, 0, 0, 0]
    place = moved[0] @ torch.tensor([3.0, -2.0, 0.0, 1.0])
    assert float(value) == pytest.approx(float(place[0]), abs=1e-3)


def test_the_head_reads_the_latent_and_the_command_and_no_motion(batch: Batch, tokenizer: Tokenizer) -> None:
    made, inputs = head(tokenizer), batch.inputs
    assert inputs.codes is not None
    latent = tokenizer.latent_of(inputs.codes[:, -1])
    with torch.no_grad():
        route = made(inputs, latent)[-1]
        still = replace(inputs, now_T_frame=identity(inputs.now_T_frame).expand_as(inputs.now_T_frame), age_s=2 * inputs.age_s)
        assert torch.equal(made(still, latent)[-1], route)
        assert not torch.allclose(made(replace(inputs, command=(inputs.command + 1) % 3), latent)[-1], route)
        assert not torch.allclose(made(inputs, latent.flip(0))[-1], route)
    assert route.shape == (4, RECIPE.planner.route.points, 2)


def test_an_untrained_head_goes_straight(batch: Batch, tokenizer: Tokenizer) -> None:
    fresh = RouteHead(RECIPE.planner.route, RECIPE.planner.latent_width, tokenizer.cells)
    assert batch.inputs.codes is not None
    route = fresh(batch.inputs, tokenizer.latent_of(batch.inputs.codes[:, -1]))[-1]
    ahead = 2.5 * torch.arange(1, 9)
    torch.testing.assert_close(route, torch.stack([torch.zeros(8), ahead], -1).expand(4, 8, 2))


def test_training_lowers_the_distance(batch: Batch, tokenizer: Tokenizer) -> None:
    learner = RouteLearner(tokenizer, head(tokenizer)).train()
    assert not learner.tokenizer.training
    optimiser = torch.optim.AdamW(learner.head.parameters(), 1e-2)
    first = float(learner.loss(batch)[1]["route"].detach())
    for _ in range(60):
        optimiser.zero_grad()
        learner.loss(batch)[0].backward()
        optimiser.step()
    assert float(learner.loss(batch)[1]["route"].detach()) < 0.3 * first
    assert all(p.grad is None for p in tokenizer.parameters())


def test_the_loss_divides_by_the_points_of_the_global_batch(batch: Batch, tokenizer: Tokenizer) -> None:
    learner = RouteLearner(tokenizer, head(tokenizer))
    counts = learner.counts(batch)
    whole = learner.loss(batch, counts)[0]
    rows = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    parts = [replace(batch, inputs=batch.inputs.select(r.tolist()), targets=batch.targets.select(r)) for r in rows]
    torch.testing.assert_close(sum(learner.loss(part, counts)[0] for part in parts), whole)


def test_the_base_path_has_the_proposals_distances_on_the_route(batch: Batch, tokenizer: Tokenizer) -> None:
    torch.manual_seed(2)
    forecaster = Forecaster(tokenizer, WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid))
    unshifted = replace(RECIPE.planner, shifts_m=())
    planner = Planner(unshifted, tokenizer.cells)
    agent = Agent(forecaster, planner, True).eval()
    assert planner.route is not None
    assert not any(p.requires_grad for p in planner.route.parameters())
    base = agent.base_path(batch.inputs)
    assert base.line.shape == (4, RECIPE.planner.route.points, 2)
    plain = Agent(forecaster, Planner(replace(unshifted, route=RouteConfig()), tokenizer.cells), True).eval()
    own = {k: v for k, v in planner.state_dict().items() if not k.startswith("route.")}
    plain.planner.load_state_dict(own)
    alone = plain.base_path(batch.inputs)
    assert alone.path is alone.line

    def gone(path: torch.Tensor) -> torch.Tensor:
        return torch.diff(path, dim=1, prepend=torch.zeros_like(path[:, :1])).norm(dim=-1).cumsum(1)

    torch.testing.assert_close(base.path[..., 1], gone(alone.path), atol=1e-4, rtol=1e-4)  # the fresh route goes straight ahead
    torch.testing.assert_close(base.path[..., 0], torch.zeros(4, 6), atol=1e-5, rtol=0)


def test_faster_candidates_stay_on_the_route() -> None:
    """A slow base path before a bend: the candidate that accelerates takes the bend, and does not go straight on."""
    bend = torch.tensor([[[0.0, 2.5], [0.0, 5.0], [2.5, 5.0], [5.0, 5.0]]])
    slow = torch.stack([torch.zeros(6), 0.5 * torch.arange(1, 7)], -1)[None]
    found = speed_profiles(BasePath(slow, bend), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found[:, 0], slow)
    assert float(found[0, 1, -1, 0]) > 1.0
    assert float(found[0, 1, -1, 1]) == pytest.approx(5.0, abs=1e-4)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        RouteConfig(points=4, width=20)
    with pytest.raises(ConfigError, match=r"multiple of 0\.5 m"):
        RouteConfig(points=4, spacing_m=2.2)


@pytest.mark.slow
def test_a_planner_gets_its_route_head_first_or_from_the_checkpoint_it_starts_from(tmp_path: Path) -> None:
    def begin(name: str) -> Run:
        return Run.start(tmp_path / name, {})

    def planned(recipe: Recipe, name: str, init: str = "") -> dict[str, torch.Tensor]:
        options = RunOptions(init=init)
        return checkpoint.load_tensors(train_planner(recipe, world, cache, TOWN, "train", begin(name), True, options))

    stage1 = train_tokenizer(RECIPE, TOWN, "train", begin("tokenizer"))
    cache = write_tokens(stage1, TOWN, TOWN.scene_names("train"), tmp_path / "tokens")
    world = train_world(RECIPE, stage1, cache, TOWN, "train", begin("world"))
    without = replace(RECIPE, planner=replace(RECIPE.planner, route=RouteConfig()))
    assert not any(name.startswith("route") for name in planned(without, "without"))
    assert not (tmp_path / "without" / "route").exists()

    added = planned(RECIPE, "added", str(tmp_path / "without"))
    first = checkpoint.load_tensors(tmp_path / "added" / "route")
    assert first
    assert all(torch.equal(added[f"route.{name}"], value) for name, value in first.items()), "the planner's training leaves it as it is"
    kept = planned(RECIPE, "kept", str(tmp_path / "added"))
    assert not (tmp_path / "kept" / "route").exists()
    assert all(torch.equal(kept[f"route.{name}"], value) for name, value in first.items())
    assert not torch.equal(kept["first.weight"], added["first.weight"])
    assert load_agent(str(tmp_path / "kept")).model.planner.route is not None
