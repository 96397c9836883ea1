"""Focal and Lovász losses, compared with slow plain implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from iidrive.models import plain
from iidrive.models.losses import distance_weight, focal, lovasz, lovasz_by_frame, presence_weights, voxel_counts


def slow_lovasz(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Algorithm 1 of Berman et al. 2018, element by element."""
    p = logits.softmax(-1).numpy()
    total = []
    for c in sorted(set(labels.tolist())):
        truth = labels.numpy() == c
        errors = np.abs(truth - p[:, c])
        order = np.argsort(-errors)
        value, before = 0.0, 0.0
        for k in range(len(order)):
            worst = order[: k + 1]
            wrong_true, wrong_false = truth[worst].sum(), (~truth[worst]).sum()
            jaccard = 1 - (truth.sum() - wrong_true) / (truth.sum() + wrong_false)
            value += errors[order[k]] * (jaccard - before)
            before = jaccard
        total.append(value)
    return float(np.mean(total))


def test_lovasz_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (60,), generator=generator).to(torch.uint8)
    assert abs(lovasz(logits, labels).item() - slow_lovasz(logits, labels)) < 1e-9


def test_histogram_lovasz_and_its_gradient_are_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4000, 6, generator=generator)
    labels = torch.randint(0, 6, (4000,), generator=generator).to(torch.uint8)
    exact, near = values.clone().requires_grad_(), values.clone().requires_grad_()
    a, b = lovasz(exact, labels), lovasz(near, labels, bins=1024)
    a.backward()
    b.backward()
    assert abs(a.item() - b.item()) < 1 / 1024
    assert exact.grad is not None
    assert near.grad is not None
    assert torch.cosine_similarity(exact.grad.flatten(), near.grad.flatten(), dim=0) > 0.999


def test_gradients_equal_those_of_the_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (3 * torch.randn(90, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 5, (90,), generator=generator).to(torch.uint8)
    weight = torch.rand(90, generator=generator, dtype=torch.float64)
    plain_focal = plain.focal_sum(logits, labels.long(), weight, 0.25, 2.0) / len(labels)
    plain_lovasz = plain.lovasz_of_classes(logits, labels.long(), 0)
    gradient = torch.autograd.grad(plain_lovasz, logits, retain_graph=True)[0]
    for mine, formula in ((focal(logits, labels, weight), plain_focal), (lovasz(logits, labels), plain_lovasz)):
        torch.testing.assert_close(mine, formula)
        torch.testing.assert_close(torch.autograd.grad(2 * mine, logits)[0], torch.autograd.grad(2 * formula, logits)[0])
    single = logits.detach().float().requires_grad_()
    found = torch.autograd.grad(lovasz(single, labels), single)[0]
    torch.testing.assert_close(found, gradient.float(), atol=1e-7, rtol=1e-4)


def test_unknown_voxels_do_not_count() -> None:
    logits = torch.randn(30, 18, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 18, (30,), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    unknown = torch.cat([labels, torch.full((10,), 255, dtype=torch.uint8)])
    padded = torch.cat([logits, torch.randn(10, 18)])
    ones = torch.ones(30)
    torch.testing.assert_close(focal(logits, labels, ones), focal(padded, unknown, torch.ones(40)))
    for bins in (0, 64):
        torch.testing.assert_close(lovasz(logits, labels, bins), lovasz(padded, unknown, bins))
    assert lovasz(logits, torch.full((30,), 255, dtype=torch.uint8)).item() == 0


def test_weighted_classes_are_summed() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 4, (60,), generator=generator).to(torch.uint8)
    by_class = [torch.tensor([float(k == c) for k in range(5)]).tolist() for c in range(5)]
    each = [lovasz(logits, labels, 0, tuple(one)) for one in by_class]
    assert each[4].item() == 0, "no voxel holds it"
    torch.testing.assert_close(torch.stack(each[:4]).mean(), lovasz(logits, labels))
    weights = (0.1, 0.2, 0.5, 1.5, 3.0)
    (slow,) = torch.autograd.grad(sum(w * one for w, one in zip(weights, each, strict=True)), logits)
    (fast,) = torch.autograd.grad(lovasz(logits, labels, 0, weights), logits)
    torch.testing.assert_close(fast, slow)


def test_classes_in_few_frames_weigh_more() -> None:
    assert presence_weights(np.array([100, 50, 5, 0]), 100) == (0.333333, 0.666667, 3.333333, 0.0)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    logits = torch.randn(4, 30, 18, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.randint(0, 18, (4, 30), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    labels[1] = 255
    labels[2, :20] = 255
    counts = voxel_counts(labels)
    assert {k: int(v) for k, v in counts.items()} == {"voxels": 70, "frames": 3}
    rows = torch.arange(4).split([1, 3])
    ones = torch.ones(4, 30)
    torch.testing.assert_close(
        sum(focal(logits[r], labels[r], ones[r], counts["voxels"]) for r in rows), focal(logits, labels, ones), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        sum(lovasz_by_frame(logits[r], labels[r], 0, counts["frames"]) for r in rows), lovasz_by_frame(logits, labels), rtol=1e-12, atol=0
    )
    assert lovasz_by_frame(logits[:1], labels[:1]).item() == lovasz(logits[0], labels[0]).item()


def test_absent_classes_give_finite_gradients() -> None:
    logits = torch.randn(20, 18, requires_grad=True)
    lovasz(logits, torch.zeros(20, dtype=torch.uint8), bins=32).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("bins", [0, 64])
def test_nan_logits_give_a_nan_loss(bins: int) -> None:
    logits = torch.full((4, 4, 4, 18), torch.nan, requires_grad=True)
    loss = lovasz(logits, torch.zeros(4, 4, 4, dtype=torch.uint8), bins)
    loss.backward()
    assert loss.isnan()


def test_focal_by_hand() -> None:
    logits = torch.zeros(1, 2)
    weight = torch.full((1,), 2.0)
    expected = 2 * np.log(2) * 0.25 * (0.25 + 0.75)
    assert abs(focal(logits, torch.zeros(1, dtype=torch.uint8), weight).item() - expected) < 1e-6


def test_distance_weight_runs_from_one_to_two() -> None:
    weight = distance_weight((8, 8), torch.device("cpu"))
    assert weight.max() == 2
    assert weight[4, 4] == 1
