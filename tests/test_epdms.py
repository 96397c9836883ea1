"""EPDMS: every part for drives with hand-computed values, and contacts compared with polygons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from driven import CAR, CENTRELINE, others, road, rollout, straight, street

from iidrive.core.errors import DataError
from iidrive.core.scene import VectorMap
from iidrive.scoring.driving.comfort import comfortable
from iidrive.scoring.driving.contacts import contacts
from iidrive.scoring.driving.epdms import PARTS, DriveScore, score_drive
from iidrive.scoring.driving.parts import stations
from iidrive.scoring.driving.rollout import Ego, Road, Rollout
from iidrive.scoring.driving.summary import Difference, Row, parts_table, rates, text
from iidrive.scoring.stats import ratio_interval

FREE = rollout(straight())


def scored(drive: Rollout, on: Road | None = None, expert: Rollout | None = FREE) -> DriveScore:
    return score_drive(drive, on or road(), expert)


def test_a_free_drive_along_the_lane_is_perfect_and_lists_missing_parts() -> None:
    score = scored(FREE)
    assert score.parts == {"NC": 1, "DAC": 1, "DDC": 1, "TLC": None, "EP": 1, "TTC": 1, "LK": 1, "HC": 1, "EC": None}
    assert set(score.absent) == {"TLC", "EC"}
    assert set(score.parts) == set(PARTS)
    assert score.epdms == 1
    assert score.finished
    assert score.kilometres == pytest.approx(0.04)
    assert score.progress_m == pytest.approx([20, 20])


def test_weights() -> None:
    # only progress fails: (5 TTC + 2 LK + 2 HC) of (5 + 5 + 2 + 2), and half of EP
    slow = scored(rollout(straight(speed=2.5)))
    assert slow.parts["EP"] == pytest.approx(0.5)
    assert slow.epdms == pytest.approx((5 + 2 + 2 + 2.5) / 14)


def test_without_progress_of_the_reference_none_is_required() -> None:
    waits = rollout(straight(speed=1.0))  # 4 m in a window: less than 5 m
    assert scored(rollout(straight(speed=0.0)), expert=waits).parts["EP"] == 1


def hits(ego: Ego, *who, on: Road | None = None):
    return contacts(ego, others(len(ego.yaw_rad), *who), on or road())


def test_who_is_at_fault() -> None:
    moments = 81
    ahead = np.stack([np.linspace(20, 28, moments), np.zeros(moments)], -1)
    behind = np.stack([np.linspace(-20, 40, moments), np.zeros(moments)], -1)
    crossing = np.stack([np.full(moments, 20.0), np.linspace(-20, 12, moments)], -1)
    into_side = np.stack([5.0 * 0.1 * np.arange(moments) + 1.0, np.linspace(-12, 4, moments)], -1)
    stands, drives = straight(speed=0.0), straight()
    assert [(c.kind, c.at_fault) for c in hits(drives, ((15.0, 0.0), 0.0, CAR, True))] == [("other stands", True)]
    assert [(c.kind, c.at_fault) for c in hits(drives, (ahead, 0.0, CAR, True))] == [("front", True)]
    assert [(c.kind, c.at_fault) for c in hits(drives, (behind, 0.0, CAR, True))] == [("from behind", False)]
    assert [(c.kind, c.at_fault) for c in hits(stands, (behind, 0.0, CAR, True))] == [("ego stands", False)]
    assert [(c.kind, c.at_fault) for c in hits(straight(speed=3.0), (crossing, np.pi / 2, CAR, True))] == [("front", True)]
    assert [(c.kind, c.at_fault) for c in hits(drives, (into_side, np.pi / 2, (1.0, 1.0), True))] == [("side", False)]
    astride = straight(y=1.75)  # in both lanes
    raised = into_side + np.array([0.0, 1.75])
    assert [(c.kind, c.at_fault) for c in hits(astride, (raised, np.pi / 2, (1.0, 1.0), True))] == [("side", True)]
    assert [(c.kind, c.at_fault) for c in hits(drives, ((1.44, 0.0), 0.0, CAR, True))] == [("at the start", False)]


@pytest.mark.slow
def test_contacts_equal_those_of_polygons() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        moments = 30
        yaw = np.cumsum(rng.normal(0, 0.1, moments))
        ego = Ego(np.cumsum(rng.normal(0.3, 0.3, (moments, 2)), 0), yaw, rng.uniform(0, 5, moments))
        paths = np.cumsum(rng.normal(0, 0.4, (moments, 6, 2)), 0) + rng.uniform(-12, 12, (6, 2))
        around = others(moments, *((paths[:, i], rng.uniform(-3, 3), tuple(rng.uniform(0.5, 6, 2)), True) for i in range(6)))
        expected = {}
        for t in range(moments):
            turn, centre = ego.yaw_rad[t], ego.xy_m[t] + 1.44 * np.array([np.cos(ego.yaw_rad[t]), np.sin(ego.yaw_rad[t])])
            own = _rectangle(centre, 4.084, 1.85, turn)
            for i in range(6):
                other = _rectangle(around.centre_m[t, i], *around.size_m[i], around.yaw_rad[t, i])
                if own.intersects(other):
                    expected.setdefault(i, t)
        assert {c.other: c.moment for c in contacts(ego, around, None)} == expected


def _rectangle(centre, length: float, width: float, yaw: float) -> shapely.Polygon:
    box = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return shapely.affinity.translate(shapely.affinity.rotate(box, yaw, origin=(0, 0), use_radians=True), *centre)


def test_nc_is_zero_after_an_agent_collision_and_half_after_an_object_collision() -> None:
    into_car, into_cone = (rollout(straight(), others(81, ((30.0, 0.0), 0.0, CAR, agent))) for agent in (True, False))
    assert scored(into_car).multipliers["NC"] == 0
    assert scored(into_car).epdms == 0
    assert scored(into_cone).multipliers["NC"] == 0.5
    assert scored(into_cone).at_fault == 1
    assert not scored(into_cone).finished


def test_a_corner_beside_the_road_fails_the_drivable_area_and_the_centre_beside_it_leaves_the_road() -> None:
    over_the_edge = scored(rollout(straight(y=-1.0)))
    assert over_the_edge.multipliers["DAC"] == 0
    assert over_the_edge.off_road is None
    assert over_the_edge.finished
    beside = scored(rollout(straight(y=np.where(np.arange(81) >= 40, -2.0, 0.0))))
    assert beside.off_road == 40
    assert not beside.finished


def test_driving_against_the_traffic() -> None:
    def direction(oncoming_moments: int) -> float:
        y = np.where(np.arange(81) < oncoming_moments, 3.5, 0.0)
        return scored(rollout(straight(y=y))).multipliers["DDC"]

    assert direction(4) == 1  # 3 hops of 0.5 m; the hop back into the lane ends there
    assert direction(6) == 0.5  # 2.5 m
    assert direction(40) == 0.5  # the largest sum over one second is 5 m
    assert scored(rollout(straight(speed=8.0, y=3.5))).multipliers["DDC"] == 0
    assert scored(rollout(straight(speed=8.0, y=3.5)), road(junction_from_m=-49.0)).multipliers["DDC"] == 1


def test_time_to_collision() -> None:
    # the front is 3.482 m ahead of the rear axle, which rolls at 5 m/s up to 32.5 m: pushed on for 0.9 s the front reaches 40.48 m
    standing = others(81, ((41.0 + CAR[0] / 2, 0.0), 0.0, CAR, True))
    speed = np.where(np.arange(81) < 66, 5.0, 0.0)
    score = scored(rollout(straight(speed=speed), standing))
    assert score.windows["TTC"].tolist() == [1, 1]
    nearer = others(81, ((39.5 + CAR[0] / 2, 0.0), 0.0, CAR, True))
    assert scored(rollout(straight(speed=speed), nearer)).windows["TTC"].tolist() == [1, 0]
    beside = others(81, ((20.0, 2.6), 0.0, CAR, True))
    assert scored(rollout(straight(), beside)).windows["TTC"].tolist() == [1, 1]


def test_lane_keeping_ignores_junctions() -> None:
    y = np.where((np.arange(81) >= 45) & (np.arange(81) < 66), 0.6, 0.0)
    assert scored(rollout(straight(y=y))).windows["LK"].tolist() == [1, 0]
    shorter = np.where((np.arange(81) >= 45) & (np.arange(81) < 64), 0.6, 0.0)
    assert scored(rollout(straight(y=shorter))).windows["LK"].tolist() == [1, 1]
    assert scored(rollout(straight(y=y)), road(junction_from_m=20.0)).windows["LK"].tolist() == [1, 1]


def test_hard_braking_is_not_comfortable() -> None:
    brakes = np.clip(8.0 - 0.5 * (np.arange(81) - 60), 0, 8.0)  # 5 m/s² from 6 s on
    assert scored(rollout(straight(speed=brakes))).windows["HC"].tolist() == [1, 0]
    gentle = np.clip(8.0 - 0.15 * np.maximum(np.arange(81) - 20, 0), 0, 8.0)
    assert scored(rollout(straight(speed=gentle))).windows["HC"].tolist() == [1, 1]


def before(speed: np.ndarray) -> Ego:
    """A past on the lane with these speeds, whose next state would be at x = 0."""
    return Ego(np.stack([-0.1 * np.cumsum(speed[::-1])[::-1], np.zeros(len(speed))], -1), np.zeros(len(speed)), speed)


def test_a_jerk_across_the_start_is_not_comfortable() -> None:
    speeds_up = 5.0 - 0.2 * np.arange(15, 0, -1)  # 2 m/s²
    brakes = np.clip(5.0 - 0.3 * np.arange(81), 0.5, 5.0)  # 3 m/s², from the first step on
    drive = rollout(straight(speed=brakes))
    assert scored(drive).windows["HC"].tolist() == [1, 1]
    assert comfortable(rollout(before(speeds_up))).all()
    assert scored(replace(drive, past=before(speeds_up))).windows["HC"].tolist() == [0, 1]
    turned = replace(drive, ego=straight(), past=replace(before(np.full(15, 5.0)), yaw_rad=np.full(15, -0.5)))
    assert scored(turned).windows["HC"].tolist() == [0, 1]


def test_a_past_at_constant_speed_changes_no_comfort() -> None:
    late = np.clip(8.0 - 0.5 * (np.arange(81) - 60), 0, 8.0)
    for speed, wanted in ((np.full(81, 8.0), [1, 1]), (late, [1, 0])):
        drive = rollout(straight(speed=speed))
        alike = replace(drive, past=before(np.full(15, 8.0)))
        assert scored(drive).windows["HC"].tolist() == scored(alike).windows["HC"].tolist() == wanted
        assert comfortable(alike).tolist() == comfortable(drive).tolist()
        assert scored(alike).epdms == scored(drive).epdms


def test_an_uncomfortable_past_counts_in_the_first_window() -> None:
    braked = before(np.concatenate([12.0 - 0.7 * np.arange(10), np.full(5, 5.0)]))
    drive = replace(FREE, past=braked)
    assert scored(drive).windows["HC"].tolist() == [0, 1]
    assert {k: v for k, v in scored(drive).parts.items() if k != "HC"} == {k: v for k, v in scored(FREE).parts.items() if k != "HC"}
    short = rollout(straight(seconds=0.5))
    assert comfortable(short).all()
    assert not comfortable(replace(short, past=braked)).all(), "past and drive together are longer than 1.5 s"


def planned(speeds: list[float]) -> Rollout:
    drive = straight(seconds=0.5 * len(speeds))
    return Rollout(
        "made", drive, others(len(drive.yaw_rad)), np.array(speeds)[:, None] * np.ones(30), np.zeros((len(speeds), 31)), len(drive.yaw_rad)
    )


def test_plans_that_contradict_each_other_are_not_comfortable() -> None:
    assert scored(planned([5.0] * 16)).windows["EC"].tolist() == [1, 1]
    speeding_up = planned([5.0] * 16)
    speeding_up.plan_speed_mps[10] += 1.0 * 0.1 * np.arange(30)  # plan 10 alone means to accelerate by 1 m/s²
    # plans made after 0.5 s .. 4 s and 4.5 s .. 7.5 s; the 10th and the 11th of the second window's seven differ from the one before
    assert scored(speeding_up).windows["EC"] == pytest.approx([1, 5 / 7])


def test_a_window_that_was_not_driven_counts_as_zero() -> None:
    ended = rollout(straight(seconds=6.0), planned=81)
    score = scored(ended)
    assert all(values[1] == 0 for name, values in score.windows.items() if name != "EP")
    assert score.windows["EP"] == pytest.approx([1, 0.5])
    assert not score.finished


def test_the_expert_filter_ignores_parts_that_the_expert_fails_too() -> None:
    cuts = rollout(straight(y=-1.0))
    both = scored(cuts)
    assert both.epdms == 0
    assert both.forgiving(both) == 1
    assert both.forgiving(scored(FREE)) == 0
    braking = scored(rollout(straight(speed=np.clip(8.0 - 0.5 * (np.arange(81) - 60), 0, 8.0))))
    assert scored(FREE).forgiving(braking) == scored(FREE).epdms
    assert braking.forgiving(braking) > braking.epdms


def test_parts_are_absent_with_a_reason_without_lanes() -> None:
    bare = Road.of(VectorMap({"drivable_area": street().layers["drivable_area"]}))
    score = score_drive(FREE, bare, FREE)
    assert [name for name, value in score.parts.items() if value is None] == ["DDC", "TLC", "EP", "LK", "EC"]
    assert all(score.absent[name] for name in ("DDC", "TLC", "EP", "LK", "EC"))
    assert score_drive(FREE, None, FREE).parts["DAC"] is None
    with pytest.raises(DataError, match="two time steps"):
        score_drive(rollout(straight(seconds=0.0)), bare)


def test_stations_follow_a_line_that_crosses_itself() -> None:
    loop = np.array([[0, 0], [20, 0], [20, 20], [10, 20], [10, -20]], float)
    way = np.array([[5, 0.5], [9, 0.5], [19, 1], [20.5, 19], [11, 19], [10.5, 2], [10, -5]], float)
    along, _ = stations(way, loop)
    assert along == pytest.approx([5, 9, 19, 39, 49, 68, 75], abs=1.6)
    assert (np.diff(along) > 0).all()
    there_and_back = np.array([[0, 0], [40, 0], [40, 0.2], [0, 0.2]], float)
    assert stations(np.array([[5.0, 0.2], [10.0, 0.2]]), there_and_back)[0] == pytest.approx([5, 10])
    assert stations(np.array([[5.0, 0.5]]), CENTRELINE)[1] == pytest.approx([0.5])


def row(name: str, drives: list[Rollout]) -> Row:
    drives = [replace(drive, name=f"scene-{k}") for k, drive in enumerate(drives)]
    return Row(name, tuple(scored(d) for d in drives), tuple(scored(replace(FREE, name=d.name)) for d in drives))


def test_rows_have_rates_and_none_at_zero_km() -> None:
    crash = rollout(straight(), others(81, ((30.0, 0.0), 0.0, CAR, True)))
    found = row("two", [FREE, crash]).to_json()
    assert found["scenes"] == 2
    assert found["km"] == pytest.approx(0.08)
    assert found["at_fault_collisions"] == 1
    assert found["at_fault_collisions_per_km"] == pytest.approx(12.5)
    assert found["epdms"] == 0.5
    assert found["finished"] == 0.5
    assert found["parts"]["TLC"] is None
    assert found["absent"]["TLC"]
    low, high = found["epdms_interval"]
    assert (low, high) == (0, 1)
    standing = row("still", [rollout(straight(speed=0.0))])
    assert standing.to_json()["interventions_per_km"] is None
    assert " - " in text([standing]).splitlines()[1]
    with pytest.raises(DataError, match="same scenes"):
        Row("x", (scored(FREE),), ())


def test_rows_have_intervals_of_parts_and_rates() -> None:
    crash = rollout(straight(), others(81, ((30.0, 0.0), 0.0, CAR, True)))
    found = row("two", [FREE, crash]).to_json()
    assert found["parts_intervals"]["NC"] == (0, 1)
    assert found["parts_intervals"]["DAC"] == (1, 1)
    assert list(found["parts_intervals"]) == [name for name, value in found["parts"].items() if value is not None]
    # of two scenes with 40 m each, one has a contact: draws have 0, 1 or 2 contacts in 80 m
    assert found["at_fault_collisions_per_km_interval"] == pytest.approx((0, 25))
    assert found["departures_per_km_interval"] == (0, 0)
    assert found["interventions_per_km_interval"] == pytest.approx((0, 25))
    standing = row("still", [rollout(straight(speed=0.0))])
    assert standing.to_json()["interventions_per_km_interval"] is None
    assert rates([standing])[1] == ["still", "-", "-", "-", "-"]
    assert rates([row("two", [FREE, crash])])[1] == ["two", "12.50", "0.00-25.00", "0.00", "0.00-0.00"]
    assert "12.50  0.00-25.00" in text([row("two", [FREE, crash])], per_km=True)
    assert "12.50  0.00-25.00" not in text([row("two", [FREE, crash])])


def test_intervals_of_a_part_are_over_the_drives_that_have_it() -> None:
    calm, contradicts = planned([5.0] * 16), planned([5.0] * 16)
    contradicts.plan_speed_mps[10] += 0.1 * np.arange(30)
    drives = [replace(planned([5.0]), planned_moments=81), calm, contradicts]  # the first has no EC
    found = row("planner", drives).parts_intervals()["EC"]
    assert found == row("planner", drives[1:]).parts_intervals()["EC"] == pytest.approx((6 / 7, 1))
    # drives of one scene are one cluster: nothing can be drawn
    scores = row("planner", drives[1:]).scores
    assert Row("one", scores, scores, ("a", "a")).parts_intervals()["EC"] == pytest.approx((13 / 14, 13 / 14))


def test_seeds_of_an_arm_are_one_row_whose_scenes_stay_one_unit() -> None:
    turn = rollout(straight(speed=2.5))
    seeds = [row(f"arm, seed {k}", [replace(FREE, name="a"), replace(turn, name="b")]) for k in range(3)]
    both = Row.of_seeds("arm", seeds)
    one, all_ = seeds[0].to_json(), both.to_json()
    assert (all_["scenes"], all_["drives"]) == (2, 6)
    assert all_["km"] == pytest.approx(3 * one["km"])
    assert all_["parts"] == pytest.approx(one["parts"])
    assert all_["epdms_interval"] == pytest.approx(one["epdms_interval"]), "three equal seeds say no more than one"
    assert [line[:1] + line[4:6] for line in parts_table([both])] == [["percent", "TLC", "EP"], ["arm", "-", "75.0 [50.0, 100.0]"]]


def test_intervals_of_ratios_divide_the_sums_of_whole_clusters() -> None:
    count, amount, cluster = np.array([1.0, 0.0, 3.0, 2.0]), np.array([0.1, 0.5, 0.4, 1.0]), np.array([0, 0, 1, 2])
    # each of the 27 draws of three clusters has more than 2.5 %: the interval is from the smallest to the largest ratio
    assert ratio_interval(count, amount, cluster) == pytest.approx((1 / 0.6, 3 / 0.4))
    assert ratio_interval(count, amount, np.zeros(4, int)) == pytest.approx((3, 3))
    assert ratio_interval(np.zeros(4), amount, cluster) == (0, 0)
    # a draw of the scene without distance alone has no ratio
    assert ratio_interval(np.array([1.0, 1.0]), np.array([0.0, 1.0]), np.arange(2)) == pytest.approx((1, 2))


def test_a_part_that_some_drives_lack_is_said_with_the_reason_and_their_number() -> None:
    ended = replace(planned([5.0]), planned_moments=81, ended="off road")
    drives = [planned([5.0] * 16), planned([5.0] * 16), ended]
    found = row("planner", drives)
    assert found.scores[2].absent["EC"] == "the drive ended before its second plan"
    assert found.to_json()["absent"] == {
        "TLC": "this source has no traffic lights",
        "EC": "the drive ended before its second plan in 1 of 3 drives",
    }
    assert found.to_json()["parts"]["EC"] == 1
    assert found.absent() == {**found.absent(), **row("planner", drives[::-1]).absent()}, "the order of the drives does not matter"
    assert "left out, EC: the drive ended before its second plan in 1 of 3 drives (planner)" in text([found, row("free", [FREE] * 3)])
    assert row("ended", [ended]).absent()["EC"] == "the drive ended before its second plan"
    assert row("free", [FREE]).absent()["EC"] == "this driver makes no plans"


@pytest.mark.slow
def test_differences_are_paired_by_scene() -> None:
    crash = rollout(straight(), others(81, ((30.0, 0.0), 0.0, CAR, True)))
    worse = Difference.of(row("a", [FREE] * 6), row("b", [crash] * 6))
    assert worse.epdms.difference == -1
    assert worse.at_fault.difference == 1
    assert worse.epdms.p == pytest.approx(2 / 2**6)
    assert "b against a" in worse.sentence()
    other = replace(FREE, name="another")
    with pytest.raises(DataError, match="different scenes"):
        Difference.of(row("a", [FREE]), Row("b", (scored(other),), (scored(other),)))
