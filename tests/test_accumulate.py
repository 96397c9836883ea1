"""Scores accumulated batch by batch equal those of one batch, for any batches, order and number of processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.multiprocessing as multiprocessing
from make_cases import along, make_cases, random_cases

from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.accumulate import PlanningScore, batch_cases
from iidrive.scoring.cases import Cases
from iidrive.scoring.score import score, to_json

NAMES = ("sparsedrive", "uniad", "vad", "occworld")


def part(cases: Cases, rows: np.ndarray) -> Cases:
    """Some of the samples, as a batch of its own."""
    new = np.full(len(cases), -1)
    new[rows] = np.arange(len(rows))
    keep = new[cases.box_case] >= 0
    fields = {name: getattr(cases, name)[keep] for name in ("box_t", "box_agent", "box_label", "box_valid", "box")}
    return replace(
        cases,
        gt_ego_fut_offsets=cases.gt_ego_fut_offsets[rows],
        gt_ego_fut_masks=cases.gt_ego_fut_masks[rows],
        box_case=new[cases.box_case[keep]],
        token=tuple(cases.token[i] for i in rows),
        **fields,
    )


def collected(cases: Cases, path: np.ndarray, batches: list[np.ndarray]) -> PlanningScore:
    out = PlanningScore(NAMES)
    for rows in batches:
        out.update(part(cases, rows), path[rows])
    return out


@pytest.fixture(scope="module")
def town() -> tuple[Cases, np.ndarray]:
    cases, path = random_cases(7, n=12, boxes_per_step=5)
    return replace(cases, gt_ego_fut_masks=cases.gt_ego_fut_masks | (np.arange(12) < 4)[:, None]), path


def test_batches_and_processes_do_not_matter(town: tuple[Cases, np.ndarray]) -> None:
    cases, path = town
    order = np.random.default_rng(0).permutation(12)
    whole = collected(cases, path, [np.arange(12)]).compute()
    # The last batch repeats two samples, as a distributed sampler does to fill up.
    ranks = [collected(cases, path, [order[:5], order[5:7]]), collected(cases, path, [order[7:], order[:2]])]
    merged = PlanningScore(NAMES).merge(ranks)
    assert len(merged) == 12
    for name, found in merged.compute().items():
        assert json.dumps(to_json(found)) == json.dumps(to_json(whole[name]))
        one_piece = score(cases, path, name)
        assert {k: v.tolist() for k, v in found.events.items()} == {k: v.tolist() for k, v in one_piece.events.items()}
        assert found.average["L2"] == pytest.approx(one_piece.average["L2"], rel=1e-6)


def test_reset_and_no_samples(town: tuple[Cases, np.ndarray]) -> None:
    cases, path = town
    metric = collected(cases, path, [np.arange(12)])
    metric.reset()
    assert len(metric) == 0
    with pytest.raises(DataError, match="call update before compute"):
        metric.compute()
    assert metric.gather() is metric


def test_invalid_updates_are_refused(town: tuple[Cases, np.ndarray]) -> None:
    cases, path = town
    with pytest.raises(ConfigError, match="Did you mean 'vad'"):
        PlanningScore("vadd")
    metric = PlanningScore()
    with pytest.raises(DataError, match="by their tokens"):
        metric.update(replace(cases, own_tokens=False), path)
    metric.update(cases, path)
    metric.update(cases, path + 1)
    with pytest.raises(DataError, match=r"came twice with different plans"):
        metric.compute()
    with pytest.raises(DataError, match="cannot be merged"):
        metric.merge([PlanningScore("vad")])


def test_a_batch_of_plain_lists() -> None:
    forward, car = along((0.0, 1.0)), np.array([[0.0, 5.0, 0.0, 1.0, 1.0, 1.0, 0.0]])
    none = np.zeros((0, 7))
    offsets = np.stack([np.diff(forward, axis=0, prepend=np.zeros((1, 2)))] * 2)
    cases = batch_cases(["a", "b"], offsets, np.ones((2, 6)), [[none, car, none, none, none, none], [none] * 6])
    expected = make_cases([forward] * 2, [(0, 2, tuple(car[0]))])
    assert score(cases, cases.true_path()).events["obj_col"].tolist() == score(expected, expected.true_path()).events["obj_col"].tolist()
    with pytest.raises(DataError, match="sample a: expected 7 lists"):
        batch_cases(["a"], offsets[:1], np.ones((1, 6)), [[none] * 6], now=True)
    with pytest.raises(DataError, match="labels must have one entry per box"):
        batch_cases(["a"], offsets[:1], np.ones((1, 6)), [[car] * 6], labels=[[[0, 1]] * 6])


def _process(rank: int, folder: str) -> None:
    import torch.distributed as distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    cases, path = random_cases(3, n=6, boxes_per_step=3)
    cases = replace(cases, gt_ego_fut_masks=np.ones((6, 6), bool))
    rows = np.arange(6)[rank::2]
    found = collected(cases, path, [rows]).gather().compute()
    whole = collected(cases, path, [np.arange(6)]).compute()
    for name, one in found.items():
        assert json.dumps(to_json(one)) == json.dumps(to_json(whole[name]))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_gather(tmp_path: Path) -> None:
    multiprocessing.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="spawn")
