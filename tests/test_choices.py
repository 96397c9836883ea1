"""Reports of a planner's choices."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from iidrive.core import geometry
from iidrive.core.batch import Targets
from iidrive.core.classes import CATEGORIES
from iidrive.core.scene import FUTURE_STEPS, STEP_S, Boxes, Scene
from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.outcome_labels import collisions
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.choices import Choices, choices, choices_without_and_with_ii, first_met
from iidrive.pipeline.tokens import codes_in_memory

RECIPE = recipes.tiny()


@pytest.fixture(scope="module")
def found() -> tuple[Choices, Agent]:
    torch.manual_seed(0)
    source = Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1))
    tokenizer = Tokenizer(RECIPE.tokenizer).eval()
    world = WorldModel(RECIPE.world, tokenizer.cells, tokenizer.config.grid)
    agent = Agent(Forecaster(tokenizer, world), Planner(RECIPE.planner, tokenizer.cells), True).eval()
    with torch.no_grad():
        agent.planner.outcomes.out.weight.normal_(0, 0.2)
    tracks = read_tracks(source, "test")
    clips = scored_clips(tracks, codes_in_memory(tokenizer, source, tracks))
    choose = partial(agent.choice, ii=True)
    whole = choices(choose, RECIPE.planner.accelerations, clips, source)
    again = choices(choose, RECIPE.planner.accelerations, clips, source, batch=7)
    for name in ("steps_met", "chosen", "collision", "met_track", "met_category"):
        assert (getattr(whole, name) == getattr(again, name)).all()
    for one, ii in zip(choices_without_and_with_ii(agent, clips, source), (False, True), strict=True):
        alone = whole if ii else choices(partial(agent.choice, ii=False), RECIPE.planner.accelerations, clips, source)
        assert one.lines() == alone.lines(), "as if each had been computed by itself"
        assert (one.paths == alone.paths).all()
    return whole, agent


@pytest.mark.slow
def test_the_summary_counts_what_the_table_says(found: tuple[Choices, Agent]) -> None:
    made, agent = found
    n = len(made.tokens)
    assert made.cost_m.shape == (n, len(recipes.ACCELERATIONS))
    assert (made.chosen == made.cost_m.argmin(1)).all()
    config = agent.planner.config
    risk = config.collision_m * made.steps_expected + config.overlap_m * made.overlap
    risk = np.where(np.array(config.accelerations) > 0, np.maximum(risk, risk[:, :1]), risk)
    np.testing.assert_allclose(made.cost_m, risk + made.distance_expected_m, atol=1e-3)
    summary = made.summary()
    rows = np.arange(n)
    assert summary["steps_met"] == made.steps_met[rows, made.chosen].sum()
    assert summary["steps_met_oracle"] == made.steps_met.min(1).sum()
    assert summary["steps_met_oracle"] <= summary["steps_met"]
    assert summary["changed"] == np.mean(made.chosen != 0)
    assert (made.apart_m[:, 0] == 0).all()
    assert summary["spread_3s_m"] > 1
    assert f"chosen {summary['steps_met']} " in made.text()


def test_the_oracle_takes_the_nearest_collision_free_candidate() -> None:
    zero = np.zeros((1, 3))
    made = Choices(
        ("a",), (0.0, -1.0, -2.0), np.array([0]), zero, zero, zero, zero, np.array([[2, 0, 0]]), np.array([[0.1, 0.7, 0.4]]), zero
    )
    assert made.summary()["distance_oracle_m"] == 0.4
    assert made.summary()["steps_met_oracle"] == 0
    assert replace(made, steps_met=np.array([[2, 1, 1]])).summary()["steps_met_oracle"] == 1


@pytest.mark.slow
def test_every_line_describes_a_sample(found: tuple[Choices, Agent]) -> None:
    made, _ = found
    lines = [json.loads(line) for line in made.lines().splitlines()]
    assert [line["token"] for line in lines] == list(made.tokens)
    assert lines[3]["chosen"] == int(made.chosen[3])
    assert lines[3]["accelerations_mps2"] == list(recipes.ACCELERATIONS)
    assert lines[3]["steps_met"] == made.steps_met[3].tolist()
    scene = Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=1)).scene("town-test-00000")
    met = 0
    for index, line in enumerate(lines):
        np.testing.assert_allclose(np.sum(line["collision_expected"], 1), line["steps_expected"], atol=1e-3)
        assert np.sum(line["collision"], 1).tolist() == line["steps_met"]
        told = zip(line["collision"], line["first_met_s"], line["met_track"], line["met_category"], strict=True)
        for collision, seconds, track, category in told:
            if seconds is None:
                assert (any(collision), track, category) == (False, None, None)
                continue
            met += 1
            first = round(seconds / STEP_S)
            assert collision[:first] == [False] * (first - 1) + [True]
            boxes = scene.keyframes[index + first].boxes
            assert CATEGORIES[boxes.label[boxes.track.index(track)]] == category
    assert met > 0


def test_the_first_box_met_is_named() -> None:
    """A candidate that reaches a pedestrian at 1 s and a car behind it at 1.5 s, and one that stands."""
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # lidar: x right, y forward
    path = torch.stack([torch.zeros(6), 4.0 * torch.arange(1, 7)], -1)
    candidates = torch.stack([path, path * 0])[None]
    boxes, known = torch.zeros(1, 3, 7, 5), torch.ones(1, 3, 7, dtype=torch.bool)
    boxes[0, :, :, 0] = torch.tensor([[-20.0], [10.5], [14.0]])
    boxes[0, :, :, 3:] = torch.tensor([[4.0, 2.0], [0.6, 0.6], [4.0, 2.0]])[:, None]
    targets = Targets(
        torch.eye(4).expand(1, 6, 4, 4), torch.ones(1, 6, dtype=torch.bool), path[None], torch.zeros(1, 6), boxes=boxes, boxes_known=known
    )
    met = collisions(candidates, targets, turn[None])
    assert met[0].tolist() == [[False, True, True, True, False, False], [False] * 6]

    ego = geometry.rigid(np.eye(3), np.array([100.0, 50.0, 0.0]))  # the global frame is not the ego's
    centre = np.array([[114.0, 50.0, 0.8], [80.0, 50.0, 0.8], [110.5, 50.0, 0.8]])
    label = np.array([CATEGORIES.index(name) for name in ("vehicle.car", "vehicle.car", "human.pedestrian.adult")])
    there = Boxes("global", centre, np.ones((3, 3)), np.zeros(3), label, ("ahead", "behind", "walker"), np.zeros(3, int))
    keyframe = SimpleNamespace(global_T_ego=SimpleNamespace(matrix=ego), boxes=there)
    scene = cast(Scene, SimpleNamespace(keyframes=[keyframe] * (2 + FUTURE_STEPS)))
    track, category = first_met(candidates, met, targets, turn[None], [(scene, 1)])
    assert track.tolist() == [["walker", ""]]
    assert category.tolist() == [["human.pedestrian.adult", ""]]


def test_the_reason_of_a_collision_follows_from_predicted_and_free_candidates() -> None:
    zero = np.zeros((4, 2))
    met = np.array([[1, 2], [3, 0], [1, 0], [0, 1]])  # all collide; a free candidate existed, twice; the chosen one does not collide
    expected = np.array([[2.0, 2.0], [0.49, 0.0], [0.5, 0.6], [1.0, 0.0]])
    made = Choices(tuple("abcd"), (0.0, -1.0), np.zeros(4, int), expected, zero, zero, zero, met, zero, zero)
    assert made.failures() == {"a": "no free candidate", "b": "not foreseen", "c": "foreseen, not avoided"}
    assert made.to_json()["failures"] == {"no free candidate": 1, "not foreseen": 1, "foreseen, not avoided": 1}
    assert "meets a box: 3 (no free candidate 1; not foreseen 1; foreseen, not avoided 1)." in made.text()
    seen = replace(made, overlap=np.array([[0.0, 0], [0.6, 0], [0, 0], [0, 0]]))
    assert seen.failures()["b"] == "foreseen, not avoided", "its footprint is taken in the scene that the planner sees"
    free = replace(made, steps_met=np.zeros((4, 2), int))
    assert free.failures() == {}
    assert free.text().endswith("meets a box: 0.")
