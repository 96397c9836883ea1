"""Scores as text: each evaluator's own output, and all protocols side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.core.text import ruled
from iidrive.scoring.protocols import Protocol, protocol_named
from iidrive.scoring.score import Scores

NUSCENES_VAL_SAMPLES = 5119
NUSCENES_VAL_OBJ_COL = (38, 35, 32, 30, 31, 30)
"""Collisions of the true path at each step on nuScenes val. They do not depend on the model, so they are a checksum of the evaluation set."""

_HORIZONS = ("1s", "2s", "3s")


def format_table(scores: Scores) -> str:
    """Row names and columns in a ruled grid, as the protocols with a grid print it."""
    return grid(scores, protocol_named(scores.protocol))


def format_together(scores: Sequence[Scores]) -> str:
    """Several protocols side by side, with an explanation of each."""
    return together(scores, [protocol_named(one.protocol) for one in scores])


def format_scores(scores: Scores) -> str:
    """Everything printed for one run: the evaluator's own output, event counts, skipped samples, checksum."""
    lines = [own_shape(scores, protocol_named(scores.protocol))]
    for name, count in scores.events.items():
        lines.append(f"{name} events per step, of {scores.n_scored} samples: {' '.join(str(k) for k in count.tolist())}")
    lines.append(samples_sentence(scores))
    if scores.protocol == "sparsedrive":
        lines.append(checksum_sentence(scores))
    return "\n".join([*lines, scores.note] if scores.note else lines)


def samples_sentence(scores: Scores) -> str:
    """The numbers of scored and skipped samples, with the reason."""
    if scores.n_skipped == 0:
        return f"scored {scores.n_scored} samples; skipped none."
    return f"scored {scores.n_scored} samples; skipped {scores.n_skipped}: the scene ends before {STEP_S * FUTURE_STEPS:.1f} s."


def checksum_sentence(scores: Scores) -> str:
    """Whether SparseDrive's obj_col row equals that of nuScenes val. The row does not depend on the model."""
    if "obj_col" not in scores.events:
        return "checksum: none, because there is no obj_col row without boxes."
    found = tuple(scores.events["obj_col"].tolist())
    known = f"{', '.join(str(k) for k in NUSCENES_VAL_OBJ_COL)} of {NUSCENES_VAL_SAMPLES}"
    if scores.n_scored != NUSCENES_VAL_SAMPLES:
        return (
            f"checksum: {scores.n_scored} samples were scored and nuScenes val has {NUSCENES_VAL_SAMPLES}: this is another set, "
            "so its obj_col row cannot be checked."
        )
    if found == NUSCENES_VAL_OBJ_COL:
        return f"checksum: the obj_col row is that of nuScenes val ({known}): the ground truth is complete and unchanged."
    return (
        f"checksum: {NUSCENES_VAL_SAMPLES} samples as in nuScenes val, but obj_col has {', '.join(str(k) for k in found)} events "
        f"where nuScenes val has {known}: paths and boxes are mis-paired or the data was changed; do not compare this table with others."
    )


def own_shape(scores: Scores, protocol: Protocol) -> str:
    """The lines that the evaluator itself prints."""
    columns = {name: [_or_dash(v) for v in value.tolist()] for name, value in scores.columns.items()}
    average = {name: _or_dash(value) for name, value in scores.average.items()}
    each = [(name, h, columns[name][i]) for name in protocol.rows for i, h in enumerate(_HORIZONS)] if len(protocol.columns) == 3 else []
    if protocol.layout == "sparsedrive":
        summary = [f"{name}: {_cell(scores, name, value)}" for name, value in scores.average.items() if name != "obj_col"]
        return "\n".join(
            [grid(scores, protocol), *summary, repr({name: None if value == "-" else value for name, value in average.items()})]
        )
    if protocol.layout == "uniad":
        return grid(scores, protocol, title="uniad's definition planning metrics")
    if protocol.layout == "stp3":
        return "\n".join(f"plan_{name}_{h} : {columns[name][i]}" for i, h in enumerate(_HORIZONS) for name in protocol.rows)
    if protocol.layout == "vad":
        lines = [f"plan_{name}_{h}:{value}" for name, h, value in each]
        return "\n".join(["-------------- Planning --------------", *lines, "fut_valid_flag:1.0"])
    if protocol.layout == "occworld":
        means = [f"avg_{name.lower()} is {average[name]}" for name in protocol.rows]
        return "\n".join([*(f"plan_{name}_{h} is {value}" for name, h, value in each), *means])
    lines = [f"0:plan_{name}_{h}:{value}" for name, h, value in each]
    return "\n".join([*lines, f"avg_l2 {average['L2']}, avg_col {average['obj_box_col']}"])


def grid(scores: Scores, protocol: Protocol, title: str = "") -> str:
    """Row names and columns in a ruled grid. SparseDrive's grid has percent and a column of averages; UniAD's has neither."""
    own = protocol.layout == "sparsedrive"
    lines = [["metrics", *protocol.columns, *(["avg"] if own else [])]]
    for name, columns in scores.columns.items():
        values = [*columns.tolist(), *([scores.average[name]] if own else [])]
        lines.append([name, *(_cell(scores, name, value) if own else _decimals(value, 4) for value in values)])
    table = ruled(lines, _centred)
    if not title:
        return table
    inner = table.index("\n") - 2
    return "\n".join(["+" + "-" * inner + "+", "|" + _centred(f" {title} ", inner) + "|", table])


def together(scores: Sequence[Scores], protocols: Sequence[Protocol]) -> str:
    """One line per protocol: samples, L2 and obj_box_col at 1, 2, 3 s and their mean. An explanation of each protocol follows."""
    head = ["protocol", "N", *(f"L2 {h} (m)" for h in (*_HORIZONS, "avg")), *(f"col {h} (%)" for h in (*_HORIZONS, "avg"))]
    lines = [head]
    for one, protocol in zip(scores, protocols, strict=True):
        cells = [one.protocol, str(one.n_scored)]
        for name, scale, digits in (("L2", 1, 4), ("obj_box_col", 100, 3)):
            values = [*(one.columns[name][i] for i in protocol.averaged), one.average[name]]
            cells += [_decimals(scale * float(value), digits) for value in values]
        lines.append(cells)
    text = [
        "col is obj_box_col: the planned box collides and the true one does not. Never compare two lines: they measure different things."
    ]
    for protocol in protocols:
        words = (
            ("frame", protocol.frame),
            ("obstacles", protocol.obstacles),
            ("box", protocol.ego_box),
            ("heading", protocol.heading),
            ("averaging", protocol.meaning),
            ("N", protocol.samples),
        )
        text += [protocol.name, *(f"  {what:<10}{sentence}" for what, sentence in words)]
    return "\n".join([ruled(lines, _centred), *text])


def _cell(scores: Scores, name: str, value: float) -> str:
    return f"{value * 100:.3f}%" if name in scores.events else _decimals(value, 4)


def _decimals(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _or_dash(value: float) -> float | str:
    return "-" if math.isnan(value) else value


def _centred(text: str, width: int) -> str:
    """`text` centred as in the evaluators' table printer: an odd space goes to the right of texts of odd length, to the left of even ones."""
    spare = width - len(text)
    left = spare // 2 + (spare % 2) * (len(text) % 2 == 0)
    return " " * left + text + " " * (spare - left)
