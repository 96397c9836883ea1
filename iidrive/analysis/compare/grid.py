"""The 2×2 grid of train-ii × test-ii, and its comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iidrive.analysis.compare.compare import METRICS, Comparison, amount, compare, seeds_agree, verdict_sentence
from iidrive.analysis.doctor.printed import WEIGHTS
from iidrive.core.errors import ConfigError
from iidrive.core.text import text_row
from iidrive.scoring.sampled import Sampled
from iidrive.scoring.stats import holm


def format_grid(cells: Sequence[Sampled], resamples: int = 9999) -> str:
    """The 2×2 grid of train-ii × test-ii as text, and the comparison of each row and column. Files with the same cell are seeds of it.

    Raises:
        ConfigError: if a file does not state its cell, or fewer than two cells are given.
    """
    found: dict[tuple[str, str], list[Sampled]] = {}
    for cell in cells:
        key = (str(cell.about.get("train_ii", "")), str(cell.about.get("test_ii", "")))
        if key[0] not in ("on", "off") or key[1] not in ("on", "off"):
            raise ConfigError(
                f"{cell.name} does not state train_ii and test_ii (on or off) in its meta; write predictions with `iidrive evaluate`, or pass "
                "{'train_ii': 'on', 'test_ii': 'off'} to write_predictions."
            )
        found.setdefault(key, []).append(cell)
    if len(found) < 2:
        raise ConfigError("a grid needs at least two different cells of train-ii × test-ii.")
    widths = (16, 28, 28)
    out = [text_row(["", "test-ii off", "test-ii on"], widths)]
    for train in ("off", "on"):
        shown = [_cell(found.get((train, test), [])) for test in ("off", "on")]
        out.append(text_row([f"train-ii {train}", *shown], widths))
    out.append("(L2 avg in metres, obj_box_col avg)")
    pairs = [((train, "on"), (train, "off")) for train in ("off", "on")] + [(("on", test), ("off", test)) for test in ("off", "on")]
    results: list[Comparison] = []
    notes: dict[str, None] = {}
    for one, two in pairs:
        if one in found and two in found:
            label = tuple(f"train-ii {c[0]}/test-ii {c[1]}" for c in (one, two))
            results.append(compare(found[one], found[two], (label[0], label[1]), resamples))
            notes |= dict.fromkeys(results[-1].notes)
    out += _verdicts(results)
    if ("off", "on") in found:
        notes["With train-ii off, the ii branch is never trained, so test-ii on should give the same result as off."] = None
    return "\n".join([*out, *(f"note: {note}" for note in notes)])


def _verdicts(results: Sequence[Comparison]) -> list[str]:
    """One sentence per pair, corrected for all pairs and both metrics together."""
    flat = [line for r in results for line in r.lines[: len(METRICS)]]
    corrected = holm([line.test.p for line in flat])
    out = []
    for i, result in enumerate(results):
        lines = [replace(line, corrected=corrected[len(METRICS) * i + j]) for j, line in enumerate(result.lines[: len(METRICS)])]
        words: dict[str, list[str]] = {"better": [], "worse": []}
        same = []
        for line in lines:
            if line.differs and seeds_agree(*result.seeds[line.metric]):
                words["better" if line.test.difference < 0 else "worse"].append(f"{line.metric} ({amount(line.metric, line.test)})")
            else:
                same.append(line.metric)
        out.append(verdict_sentence(words, same, [], (result.a, result.b)))
    return out


def _cell(seeds: Sequence[Sampled]) -> str:
    if not seeds:
        return "–"
    l2 = float(np.mean([(s.L2 @ (WEIGHTS / 36)).mean() for s in seeds]))
    col = float(np.mean([(s.hit @ (WEIGHTS / 36)).mean() for s in seeds]))
    return f"{l2:.4f}  {100 * col:.3f}%"
