"""Candidate plans, the ground they cover, and their exact labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from scipy.optimize import least_squares

from iidrive.core.batch import Targets
from iidrive.core.footprint import EGO_SIZE_M
from iidrive.core.scene import GridSpec
from iidrive.data.box_tracks import MOST_BOXES, BoxTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.town.record import EGO_T_LIDAR
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.candidates import (
    LIDAR_TO_CENTRE_M,
    BasePath,
    along,
    footprints,
    headings,
    rectangles_meet,
    shifted,
    smoothed,
    smoothing,
    speed_profiles,
)
from iidrive.models.outcome_labels import collisions
from iidrive.models.outcomes import Costs, OutcomeHead, Outcomes, on_the_road, sample
from iidrive.pipeline.infer import truth
from iidrive.pipeline.recipes import ACCELERATIONS, SHIFTS_M
from iidrive.scoring.planning.sparsedrive import sparsedrive_hits, sparsedrive_yaw

ADDED = torch.tensor(ACCELERATIONS)


def straight(speed_mps: float) -> torch.Tensor:
    return torch.stack([torch.zeros(6), speed_mps * 0.5 * torch.arange(1, 7)], -1)[None]


def test_the_first_profile_is_the_path_and_braking_stops() -> None:
    bend = torch.tensor([[[0.1, 3.0], [0.5, 6.0], [1.5, 9.0], [3.0, 11.5], [5.0, 13.5], [7.5, 15.0]]])
    found = speed_profiles(BasePath.alone(bend), ADDED)
    assert found.shape == (1, len(ADDED), 6, 2)
    torch.testing.assert_close(found[:, 0], bend, atol=1e-5, rtol=0)
    hardest = found[0, -1]
    gone = torch.diff(hardest, dim=0, prepend=torch.zeros(1, 2)).norm(dim=-1)
    assert (gone[-3:] < 1e-2).all()  # 6 m/s² stop a car at 6 m/s within a second or two, and there it stays
    assert abs(float(gone.sum()) - 6.0**2 / 12) < 0.5


def test_no_candidate_is_faster_than_the_limit_and_a_faster_ego_eases_down_to_it() -> None:
    added = torch.tensor([0.0, 2.0, -2.0])

    def speeds(own_mps: float, now_mps: float) -> torch.Tensor:
        found = speed_profiles(BasePath.alone(straight(own_mps)), added, 12.0, torch.tensor([now_mps]))
        return torch.diff(found[0, ..., 1], dim=1, prepend=torch.zeros(3, 1)) / 0.5

    usual = speed_profiles(BasePath.alone(straight(8.0)), added)
    found = speed_profiles(BasePath.alone(straight(8.0)), added, 12.0, torch.tensor([8.0]))
    torch.testing.assert_close(found[:, [0, 2]], usual[:, [0, 2]])  # below the limit nothing changes
    assert speeds(8.0, 8.0)[1, -1] == pytest.approx(12.0, abs=1e-4)
    assert speeds(14.0, 11.0).max() <= 12.0 + 1e-4, "a proposal beyond the limit"
    fast = speeds(14.0, 14.0)
    torch.testing.assert_close(fast[0], torch.tensor([13.725, 13.225, 12.725, 12.225, 12.0, 12.0]), atol=0.03, rtol=0)
    assert (fast[2] < fast[0] + 1e-4).all()
    assert speed_profiles(BasePath.alone(straight(30.0)), added)[0, 0, -1, 1] == pytest.approx(90.0), "without a limit"


def test_a_constant_acceleration_drives_as_far_as_it_should() -> None:
    found = speed_profiles(BasePath.alone(straight(5.0)), torch.tensor([0.0, 2.0, -1.0]))
    assert torch.allclose(found[0, :, -1, 1], torch.tensor([15.0, 15.0 + 9.0, 15.0 - 4.5]), atol=0.2)
    assert (found[..., 0].abs() < 1e-6).all()


def test_who_stands_goes_straight_ahead() -> None:
    found = speed_profiles(BasePath.alone(torch.zeros(1, 6, 2)), torch.tensor([0.0, 1.0, -2.0]))
    assert (found[0, 0] == 0).all()
    assert found[0, 2].abs().max() < 0.04
    assert found[0, 1, -1, 0] == 0
    assert abs(float(found[0, 1, -1, 1]) - 4.5) < 0.2


def test_along_reads_points_of_the_path_and_beyond() -> None:
    corner = torch.tensor([[[0.0, 2.0], [0.0, 4.0], [2.0, 4.0], [4.0, 4.0], [4.0, 4.0], [4.0, 4.0]]])
    found = along(corner, torch.tensor([[[0.0, 1.0, 4.0, 5.0, 8.0]]]))[0, 0]
    assert torch.allclose(found, torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 4.0], [1.0, 4.0], [4.0, 4.0]]))
    assert torch.allclose(along(straight(4.0), torch.tensor([[[14.0]]]))[0, 0], torch.tensor([[0.0, 14.0]]))


def test_shifted_paths_run_beside() -> None:
    found = shifted(straight(10.0), 1.5)[0]
    assert torch.allclose(found[:, 1], straight(10.0)[0, :, 1])
    share = 5 / 12  # after 5 m of the 12 m over which it moves aside
    assert found[:, 0].tolist() == pytest.approx([-1.5 * share**2 * (3 - 2 * share), -1.5 * (10 / 12) ** 2 * (3 - 20 / 12), *[-1.5] * 4])
    slow = shifted(straight(2.0), 1.5)[0]  # 6 m in all: halfway over
    assert float(slow[-1, 0]) == pytest.approx(-0.75)


def test_smoothing_is_the_least_squares_solution() -> None:
    """Compared with the same sum of squares, minimised by a general solver."""
    path, before, weight = np.random.default_rng(0).normal(0, 2, (6, 2)), np.array([-0.2, -2.0]), 3.0

    def squares(flat: np.ndarray) -> np.ndarray:
        x = flat.reshape(6, 2)
        third = np.diff(np.concatenate([before[None], np.zeros((1, 2)), x]), n=3, axis=0)
        return np.concatenate([(x - path).ravel(), weight**0.5 * third.ravel()])

    wanted = least_squares(squares, path.ravel(), xtol=1e-14).x.reshape(6, 2)
    found = smoothed(torch.tensor(path)[None, None], torch.tensor(before)[None], smoothing(weight))[0, 0]
    assert np.allclose(found.numpy(), wanted, atol=1e-5)


def test_smoothing_leaves_what_has_no_jerk() -> None:
    """A car that brakes steadily from before the present on, and one that stands."""
    time = 0.5 * torch.arange(-1, 7)
    gone = 9.0 * time - 1.5 * time.square()
    steady = torch.stack([torch.zeros(8), gone], -1)
    paths = torch.stack([steady[2:], torch.zeros(6, 2)])[:, None]
    before = torch.stack([steady[0], torch.zeros(2)])
    torch.testing.assert_close(smoothed(paths, before, smoothing(10.0)), paths, atol=1e-4, rtol=0)


def test_headings_are_those_of_the_protocol_where_the_path_moves() -> None:
    path = torch.tensor([[[0.1, 3.0], [0.5, 6.0], [1.5, 9.0], [3.0, 11.5], [5.0, 13.5], [7.5, 15.0]]])
    found = headings(path)[0]
    wanted = sparsedrive_yaw(path.numpy())[0]
    assert np.allclose(torch.atan2(found[:, 1], found[:, 0]).numpy(), wanted, atol=1e-6)
    assert torch.equal(headings(torch.zeros(1, 6, 2)), torch.tensor([0.0, 1.0]).expand(1, 6, 2))


def test_a_footprint_spans_the_egos_rectangle() -> None:
    found = footprints(straight(5.0), (9, 5))[0, 0]
    assert found.shape == (45, 2)
    assert torch.allclose(found.amax(0) - found.amin(0), torch.tensor([EGO_SIZE_M[1], EGO_SIZE_M[0]]), atol=1e-5)
    assert torch.allclose(found.mean(0), torch.tensor([0.0, 2.5 + LIDAR_TO_CENTRE_M]), atol=1e-5)
    wide = footprints(straight(5.0), (9, 5), 1.0)[0, 0]
    assert torch.allclose(wide.amax(0) - wide.amin(0), torch.tensor([EGO_SIZE_M[1] + 2, EGO_SIZE_M[0] + 2]), atol=1e-5)


def test_rectangles_meet_as_polygons_do() -> None:
    generator = np.random.default_rng(0)
    n = 400
    centre, other = (torch.from_numpy(generator.uniform(-3, 3, (n, 2))) for _ in range(2))
    angle, turned = (torch.from_numpy(generator.uniform(-4, 4, n)) for _ in range(2))
    size, large = (torch.from_numpy(generator.uniform(0.3, 4, (n, 2))) for _ in range(2))
    forward, ahead = (torch.stack([a.cos(), a.sin()], -1) for a in (angle, turned))
    found = rectangles_meet(centre, forward, other, ahead, size, large).numpy()
    for i in range(n):
        polygons = []
        for middle, yaw, sides in ((centre, angle, size), (other, turned, large)):
            box = shapely.box(*(-sides[i] / 2).tolist(), *(sides[i] / 2).tolist())
            polygons.append(
                shapely.affinity.translate(shapely.affinity.rotate(box, float(yaw[i]), (0, 0), use_radians=True), *middle[i].tolist())
            )
        assert found[i] == polygons[0].intersects(polygons[1])
    assert 50 < found.sum() < n - 50


@pytest.fixture(scope="module")
def source() -> Town:
    return Town(TownConfig(seed=907, train_scenes=0, val_scenes=0, test_scenes=2))


@pytest.mark.slow
def test_labels_agree_with_the_protocol(source: Town) -> None:
    """Candidates of true paths: the exact labels are SparseDrive's collisions, but for boxes that barely touch."""
    tracks = [EgoTrack.of(source.scene(name)) for name in source.scene_names("test")]
    clips = ClipDataset(tracks, ClipSpec(), labels=BoxTargets(source))
    batch = clips.batch(range(len(clips)))
    assert batch.targets.boxes is not None
    assert batch.targets.boxes.shape[1:] == (MOST_BOXES, 7, 5)
    candidates = torch.cat([speed_profiles(BasePath.alone(k * batch.targets.path), ADDED) for k in (1.0, 1.3)], 1)
    found = collisions(candidates, batch.targets, batch.inputs.ego_T_lidar).numpy()
    cases = truth(source, tracks)
    row = {token: k for k, token in enumerate(cases.token)}
    index = np.array([row[token] for token in batch.inputs.tokens])
    use = cases.box_valid & (cases.box_t > 0) & np.isin(cases.box_case, index)
    boxes = cases.box[use]
    wanted = np.zeros_like(found)
    for k in range(candidates.shape[1]):
        path = np.zeros((len(cases.token), 6, 2), np.float32)
        path[index] = candidates[:, k].numpy()
        step = cases.box_case[use].astype(np.int64) * 6 + cases.box_t[use] - 1
        wanted[:, k] = sparsedrive_hits(path, sparsedrive_yaw(path), boxes, np.arange(len(boxes)), step)[index]
    assert wanted.sum() > 50
    assert (found != wanted).sum() <= 0.04 * wanted.sum()


def test_boxes_that_are_not_there_are_not_met() -> None:
    boxes = torch.zeros(1, 1, 7, 5)
    boxes[..., 0], boxes[..., 3:] = 10.0, 2.0
    known = torch.tensor([[[True, True, True, False, True, True, True]]])
    zero = torch.zeros(1, 6)
    targets = Targets(torch.eye(4).expand(1, 6, 4, 4), zero.bool(), torch.zeros(1, 6, 2), zero, boxes=boxes, boxes_known=known)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])  # lidar: x right, y forward
    path = torch.stack([torch.zeros(6), torch.full((6,), 9.0)], -1)[None, None]
    found = collisions(path, targets, turn[None])[0, 0]
    assert found.tolist() == [True, True, False, True, True, True]
    assert not collisions(path * 0.5, targets, turn[None]).any()
    assert not collisions(path, replace(targets, boxes_known=~known), turn[None])[0, 0, [0, 1, 3, 4, 5]].any()


def test_nobody_flees_forwards() -> None:
    """The faster candidate would meet nobody, the unchanged one somebody: braking is worth it, speeding up is not."""
    unsure = torch.tensor([[[0.0] * 6, [-9.0] * 6, [-9.0] * 6]])
    made = Outcomes(unsure, torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    cost = made.cost(Costs(10.0, 20.0), torch.tensor([False, True, False]))
    assert cost[0].tolist() == pytest.approx([50.0, 51.0, 1.0], abs=0.1)


@pytest.mark.slow
def test_the_head_sees_who_stands_in_the_way() -> None:
    """Trained for a moment on made scenes, the head tells a candidate that drives into somebody from one that stops before."""
    torch.manual_seed(0)
    grid = GridSpec((80, 80, 1), (-32.0, -32.0, 0.0), 0.8)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    head = OutcomeHead(16)
    optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
    way = straight(6.0).expand(32, 6, 2)
    candidates = speed_profiles(BasePath.alone(way), ADDED)
    for _ in range(150):
        distance = torch.rand(32) * 25 + 5
        maps = torch.zeros(32, 6, 80, 80)
        boxes = torch.zeros(32, 1, 7, 5)
        boxes[..., 0], boxes[..., 3], boxes[..., 4] = distance[:, None, None], 4.0, 2.0
        for b, d in enumerate(distance.tolist()):
            first, last = int((d - 2 + 32) / 0.8), int((d + 2 + 32) / 0.8)
            maps[b, :, first : last + 1, 39:42] = 1.0
        zero = torch.zeros(32, 6)
        known = torch.ones(32, 1, 7, dtype=torch.bool)
        targets = Targets(torch.eye(4).expand(32, 6, 4, 4), zero.bool(), way, zero, boxes=boxes, boxes_known=known)
        met = collisions(candidates, targets, turn.expand(32, 4, 4)).float()
        found = head(sample(candidates, way, maps, True, grid, turn.expand(32, 4, 4)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found.collision, met)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = (found.collision > 0) == (met > 0.5)
    assert right.float().mean() > 0.95
    cost = found.cost(Costs(20.0, 0.0), ADDED > 0)
    free = ~met.bool().any(-1)
    chosen = cost.argmin(1)
    assert free[torch.arange(32), chosen][free.any(1)].float().mean() > 0.9


def test_a_way_that_leaves_the_road_is_moved_back() -> None:
    """The road ends 1.6 m to the right of the ego's middle; who drives in its middle stays there to the bit."""
    grid = GridSpec((80, 80, 1), (-32.0, -32.0, 0.0), 0.8)
    off_road = torch.zeros(1, 80, 80)
    off_road[:, :, :38] = 1.0  # y < -1.6 in the ego frame
    frame = torch.tensor(EGO_T_LIDAR.matrix, dtype=torch.float32)[None]
    middle = straight(8.0)

    def kept(path: torch.Tensor, road_m: float = 40.0) -> torch.Tensor:
        base = on_the_road(BasePath(path, 2 * path), off_road, grid, frame, SHIFTS_M, road_m)
        torch.testing.assert_close(
            base.line[:, -1] - 2 * path[:, -1], base.path[:, -1] - path[:, -1], atol=0.05, rtol=0
        )  # the line moves too
        return base.path

    assert torch.equal(kept(middle), middle)
    drifting = middle + torch.tensor([0.0, 0.1, 0.3, 0.6, 1.0, 1.4])[None, :, None] * torch.tensor([1.0, 0.0])
    assert float(kept(drifting)[0, -1, 0]) < 0.7
    assert torch.equal(kept(drifting, 0.0), drifting)
    torch.testing.assert_close(kept(drifting * torch.tensor([-1.0, 1.0]))[..., 0], -drifting[..., 0])
