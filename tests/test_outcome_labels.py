"""Exact outcomes of candidates, and the head that predicts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch

from iidrive.core.batch import Targets
from iidrive.core.errors import ConfigError
from iidrive.core.scene import ROAD_GRID, GridSpec
from iidrive.data.outcome_targets import OutcomeTargets, drivable_area
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import BasePath, speed_profiles
from iidrive.models.outcome_labels import departures, outcome_labels, soon, uncomfortable
from iidrive.models.outcomes import Costs, Outcomes, Quality, QualityHead, sample
from iidrive.models.planner import PlannerConfig

TURN = torch.eye(4)
TURN[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # lidar: x right, y forward
FRAME = TURN[None]
MPS = 6.0
PATH = torch.stack([torch.zeros(6), torch.arange(1, 7) * MPS / 2], -1)[None]
BEFORE = torch.tensor([[0.0, -MPS / 2]])
SPEEDS = torch.tensor([0.0, -2.0, -6.0, 2.0])


def targets(box_x_m: float, road_until_m: float = 32.0) -> Targets:
    """One box of 4 x 2 m that stands ahead of the ego, and a road that ends ahead of it."""
    boxes, known = torch.zeros(1, 1, 7, 5), torch.ones(1, 1, 7, dtype=torch.bool)
    boxes[..., 0], boxes[..., 3], boxes[..., 4] = box_x_m, 4.0, 2.0
    x = torch.from_numpy(ROAD_GRID.centres(0)).float()
    drivable = (x < road_until_m)[None, :, None].expand(1, *ROAD_GRID.shape[:2])
    whole = torch.ones(1, 6, dtype=torch.bool)
    return Targets(
        torch.eye(4).expand(1, 6, 4, 4),
        whole,
        PATH,
        torch.zeros(1, 6),
        boxes=boxes,
        boxes_known=known,
        drivable=drivable,
        road_known=torch.tensor([True]),
    )


def candidates() -> torch.Tensor:
    return speed_profiles(BasePath.alone(PATH), SPEEDS)


def test_a_short_time_to_collision_comes_before_the_collision() -> None:
    """At 6 m/s the ego's front is 3, 6, … m further at every step, and reaches the box, 6 m within the next second, two steps early."""
    found = outcome_labels(candidates(), targets(14.5), FRAME, BEFORE)
    first = int(found.collision[0, 0].int().argmax())
    assert found.collision[0, 0].any()
    assert found.ttc[0, 0].int().argmax() == first - 2
    assert not found.collision[0, 2].any(), "it brakes in time"
    assert not found.ttc[0, 2, -1], "and stands"
    assert found.ttc.shape == (1, 4, 4)


def test_time_to_collision_follows_boxes_to_their_later_steps() -> None:
    """A box that drives off as fast as the ego is never within a second, though it stands in the way of a map of the present."""
    truth = targets(8.0)
    moving = truth.boxes.clone()
    moving[..., 0] += torch.arange(7) * MPS / 2
    assert not soon(candidates()[:, :1], replace(truth, boxes=moving), FRAME).any()
    assert soon(candidates()[:, :1], truth, FRAME)[..., :3].all(), "and then it has driven through it"


def test_departures_count_corners_outside_the_drivable_area() -> None:
    truth = targets(200.0, road_until_m=10.0)
    off = departures(candidates(), truth, FRAME)[0]
    reach = candidates()[0, :, :, 1] + 0.5 + 4.084 / 2  # LIDAR_TOP to the centre, half the ego's length
    np.testing.assert_array_equal(off.numpy(), (reach > 10.0).numpy())
    assert not departures(candidates(), replace(truth, road_known=torch.tensor([False])), FRAME).any()


def test_progress_ends_at_the_first_collision_or_departure() -> None:
    free = outcome_labels(candidates(), targets(200.0), FRAME, BEFORE)
    assert free.progress[0, 0] == pytest.approx(1.0)
    assert free.progress[0, 3] == 1.0, "more than the expert's counts as all"
    assert free.progress[0, 2] == pytest.approx(float(candidates()[0, 2, -1, 1]) / 18, abs=1e-5)
    blocked = outcome_labels(candidates(), targets(14.5), FRAME, BEFORE)
    clear = int(blocked.collision[0, 0].int().argmax())
    assert blocked.progress[0, 0] == pytest.approx(clear * 3 / 18)
    standing = replace(targets(200.0), path=PATH * 0.01)
    assert (outcome_labels(candidates(), standing, FRAME, BEFORE).progress == 1).all()


def test_comfort_counts_hard_braking_and_sudden_turns() -> None:
    assert uncomfortable(candidates(), BEFORE)[0].tolist() == [False, False, True, False]
    assert uncomfortable(candidates(), torch.zeros(1, 2))[0, 0], "from a standstill to 6 m/s within a step"
    turned = PATH[:, None].clone()
    turned[:, :, 1:, 0] = torch.arange(1, 6) * 3.0
    assert uncomfortable(turned, BEFORE)[0, 0]


def test_the_drivable_area_is_that_of_the_map() -> None:
    source = Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1))
    scene = source.scene(source.scene_names("test")[0])
    for index in (0, 20):
        area = drivable_area(scene, index)
        assert area is not None
        pose = scene.keyframes[index].global_T_ego.matrix
        for i, j in ((80, 80), (100, 84), (30, 140)):
            here = pose[:2, :2] @ [ROAD_GRID.centres(0)[i], ROAD_GRID.centres(1)[j]] + pose[:2, 3]
            assert area[i, j] == scene.map.layers["drivable_area"].intersects(shapely.Point(here))
    assert area[80, 80], "the ego is on the road"
    bare = replace(scene, map=replace(scene.map, layers={}))
    assert drivable_area(bare, 0) is None
    labels = OutcomeTargets(source)(scene.name, 20)
    assert labels["road_known"]
    np.testing.assert_array_equal(labels["drivable"], area)


def test_costs_weigh_what_the_quality_head_predicts() -> None:
    never, surely = torch.full((1, 2, 4), -50.0), torch.full((1, 2, 4), 50.0)
    off = torch.full((1, 2, 6), -50.0)
    quality = Quality(torch.stack([never[:, 0], surely[:, 0]], 1), off, torch.tensor([[1.0, 0.25]]), torch.tensor([[-50.0, 50.0]]))
    made = Outcomes(torch.full((1, 2, 6), -50.0), torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2), quality)
    slower = torch.tensor([False, False])
    assert made.cost(Costs(10.0, 0.0), slower)[0].tolist() == pytest.approx([1, 1])
    assert made.cost(Costs(10.0, 0.0, ttc_m=2.0), slower)[0].tolist() == pytest.approx([1, 9])
    assert made.cost(Costs(10.0, 0.0, progress_m=4.0, comfort_m=0.5), slower)[0].tolist() == pytest.approx([1, 4.5])
    turned = replace(made, quality=replace(quality, ttc=quality.ttc.flip(1)))
    assert turned.cost(Costs(10.0, 0.0, ttc_m=2.0), torch.tensor([False, True]))[0, 1] == pytest.approx(9), "nobody flees forwards"
    with pytest.raises(ConfigError, match="ttc_m weigh"):
        PlannerConfig(accelerations=(0.0,), ttc_m=1.0)


@pytest.mark.slow
def test_the_head_learns_all_four_outcomes() -> None:
    """Trained for a moment on made scenes, the head tells candidates that leave the road, come near, stop short or brake hard."""
    torch.manual_seed(0)
    grid = GridSpec((80, 80, 1), (-32.0, -32.0, 0.0), 0.8)
    head = QualityHead(32)
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    here = candidates()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    x = torch.from_numpy(grid.centres(0)).float()
    found = truth = None
    for _ in range(300):
        ahead, end = float(torch.rand(()) * 20 + 6), float(torch.rand(()) * 20 + 8)
        truth = outcome_labels(here, targets(ahead, end), FRAME, BEFORE)
        taken = ((x - ahead).abs() < 2)[:, None] & (torch.from_numpy(grid.centres(1)).float().abs() < 1)
        sampled = sample(here, PATH, taken.float().expand(1, 6, 80, 80), True, grid, FRAME)
        found = head(sampled, here, (x >= end).float()[None, :, None].expand(1, 80, 80), BEFORE, grid, FRAME)
        pairs = ((found.ttc, truth.ttc), (found.off_road, truth.off_road), (found.uncomfortable, truth.uncomfortable))
        loss = sum((entropy(logits, label.float()) for logits, label in pairs), (found.progress - truth.progress).abs().mean())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right, gap = [], []
    for ahead, end in ((10.0, 30.0), (25.0, 12.0), (16.0, 20.0), (30.0, 31.0)):
        truth = outcome_labels(here, targets(ahead, end), FRAME, BEFORE)
        taken = ((x - ahead).abs() < 2)[:, None] & (torch.from_numpy(grid.centres(1)).float().abs() < 1)
        sampled = sample(here, PATH, taken.float().expand(1, 6, 80, 80), True, grid, FRAME)
        found = head(sampled, here, (x >= end).float()[None, :, None].expand(1, 80, 80), BEFORE, grid, FRAME)
        for logits, label in ((found.ttc, truth.ttc), (found.off_road, truth.off_road), (found.uncomfortable, truth.uncomfortable)):
            right.append(((logits > 0) == label).float().mean())
        gap.append((found.progress - truth.progress).abs().mean())
    assert torch.stack(right).mean() > 0.9
    assert torch.stack(gap).mean() < 0.12
