"""docs/scale.md: its tables are what the script prints, and what was counted on the models still holds."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    """`benchmarks/scale.py`."""
    from pathlib import Path

    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        importlib.import_module("gpu")  # which counting needs
        return importlib.import_module("scale")


@pytest.mark.slow
def test_the_page_has_the_tables(scale: ModuleType) -> None:
    page = scale.PAGE.read_text()
    assert page[page.index(scale.BEGIN) + len(scale.BEGIN) : page.index(scale.END)].strip() == scale.text(), (
        "python benchmarks/scale.py --write"
    )


@pytest.mark.slow
def test_what_was_counted_still_holds(scale: ModuleType) -> None:
    for stage, found in scale.counted().items():
        before = scale.COUNTED[stage]
        assert found.weights == before.weights, stage
        assert found.flop == pytest.approx(before.flop, rel=0.02), stage
        assert found.operations == pytest.approx(before.operations, rel=0.15), stage


@pytest.mark.slow
def test_a_step_adds_up(scale: ModuleType) -> None:
    """The batch is the recipe's up to 64 GPUs; the sum is a ring's; who loads faster than it is read is not waited for."""
    step = scale.step_on("tokenizer", 16)
    assert step.samples == 4
    assert step.arithmetic_s == pytest.approx(4 * 1182.4e9 / 67e12)
    assert step.sum_s == pytest.approx(30 / 16 * 4 * 20_211_040 / 50e9 + 30 * 5e-6)
    assert step.seconds == pytest.approx(step.arithmetic_s + step.sum_s)
    assert scale.step_on("world", 16).seconds == pytest.approx(8220 * 5e-6 + scale.step_on("world", 16).sum_s)
    assert [scale.step_on("world", gpus).samples for gpus in (64, 512)] == [1, 1]
    assert scale.hours("flow", 128) < scale.hours("flow", 64)
    assert scale.waiting("world", 8, 1, steps=200) == pytest.approx(1, abs=1e-6)
    slow = scale.waiting("tokenizer", 8, 1, "bf16", steps=200)
    own = scale.step_on("tokenizer", 8, "bf16").seconds
    assert slow * own >= 0.9 * 8 * scale.MEASURED.load_s["tokenizer"], "one worker cannot be faster than it loads"
