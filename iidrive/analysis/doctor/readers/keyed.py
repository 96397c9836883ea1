"""Named numbers: `plan_L2_1s:` lines of VAD and similar evaluators, dicts, log lines of mmcv and mmengine, log.json, and `0.1/0.2/0.3` runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from iidrive.analysis.doctor.readers.found import Values
from iidrive.analysis.doctor.readers.names import quantity

_NUMBER = r"[-+]?(?:\d{1,40}\.\d{0,40}|\.\d{1,40}|\d{1,40})(?:[eE][-+]?\d{1,3})?|nan|inf"
_PLAN = re.compile(
    rf"(?<![A-Za-z\d])plan_(?P<row>L2|obj_col|obj_box_col)(?P<kind>_stp3|_single)?_(?P<time>\d(?:\.\d)?s|avg|mean)"
    rf"[\"']?(?P<mark>\s{{0,8}}[:=|]\s{{0,8}}|\s{{1,8}}is\s{{1,8}}|\s{{1,60}})(?:[\w.]{{0,20}}\()?(?P<value>{_NUMBER})(?![\w.])"
)
_NAMED = re.compile(
    rf"(?<![A-Za-z\d_])(?P<row>L2|obj_col|obj_box_col|col|collision)_(?P<time>\d(?:\.\d)?s|avg|mean)[\"']?"
    rf"(?:\s{{0,8}}[:=]\s{{0,8}}(?:[\w.]{{0,20}}\()?|\s{{1,60}}(?=\S{{1,60}}\s{{0,8}}$))(?P<value>{_NUMBER})(?![\w.])"
)
_RANK = re.compile(r"(?<![\d:])\d{1,3}:$")
_MEANS = re.compile(rf"\bavg_(l2|obj_col|obj_box_col|col)(\s{{1,8}}is\s{{1,8}}|\s{{0,8}}[:= ]\s{{0,8}})({_NUMBER})(?![\w.])", re.IGNORECASE)
_AVERAGES = re.compile(
    rf"(?<![A-Za-z0-9_])(obj_col|obj_box_col|L2)(?:_avg|_mean)?[\"']?\s{{0,4}}[:=]\s{{0,4}}(?:[\w.]{{0,20}}\()?\s{{0,4}}({_NUMBER})(%?)(?![\w.])"
)
_COUNTED = re.compile(r"(?:^|[\s,{'\"])gt_[a-z_]{2,20}['\"]?\s{0,4}:\s{0,4}(\d{1,6}\.\d{6,20})")
_RUN = re.compile(r"(?<![\d./])(\d{1,4}(?:\.\d{1,8})?%?(?:\s?/\s?\d{1,4}\.\d{1,8}%?){2,6})\s?(%?)(?![\d/])")
_LIST = re.compile(r"(?<![A-Za-z0-9_])(obj_col|obj_box_col|L2)[\"']?\s{0,4}[:=]\s{0,4}(?:[\w.]{0,20}\()?\[([-+\d.eE, ]{9,300})\]")
_STYLES = re.compile(r"(uniad|st-?p-?3|vad|sparsedrive|occworld|bev-?planner)", re.IGNORECASE)
_STEPS = ("0.5s", "1s", "1.5s", "2s", "2.5s", "3s")
_ANY = "a collision rate that names neither point nor box is read as the box's"
_FAR = 12
"""Largest distance between two lines of one block, in lines."""


def read_plan_lines(lines: Sequence[str]) -> list[Values]:
    """Blocks of `plan_…` values, or of the same names without `plan_`, with each name once.

    SSR's second set (`_stp3_`) and the copies of other ranks are separate blocks.
    """
    open_: dict[str, dict[tuple[str, str], str]] = {}
    span: dict[str, tuple[int, int]] = {}
    style: dict[str, str] = {}
    out: list[Values] = []
    notes: set[str] = set()

    def close(name: str) -> None:
        if len(open_[name]) > 1:
            out.append(Values("plan lines", *span[name], style[name], open_[name], notes=tuple(notes) if style[name] == "named" else ()))
        del open_[name]
        notes.clear()

    for at, line in enumerate(lines):
        means = "avg_" in line
        others = "plan_" not in line and ("L2_" in line or "col_" in line or "collision_" in line)
        if "plan_L2" not in line and "plan_obj" not in line and not means and not others:
            continue
        if '"mode": "train"' in line:
            continue
        found = [(m["kind"] or "", m["row"], m["time"].replace("mean", "avg"), m["value"], _style(m, line)) for m in _PLAN.finditer(line)]
        if means:
            found += [("", _row(m[1]), "avg", m[3], "") for m in _MEANS.finditer(line)]
        for m in _NAMED.finditer(line) if others else ():  # averages without times are read as log lines
            time = m["time"].replace("mean", "avg")
            found.append(("", _row(m["row"]), time, m["value"], "" if time == "avg" else "named"))
            notes |= {_ANY} if m["row"] in ("col", "collision") else set()
        for kind, row, time, value, how in found:
            if kind in open_ and ((row, time) in open_[kind] or at - span[kind][1] > _FAR):
                close(kind)
            if kind not in open_:
                if not how:
                    continue  # averages without values belong to earlier lines
                open_[kind], span[kind], style[kind] = {}, (at, at), "step" if kind else how
            open_[kind][row, time], span[kind] = value, (span[kind][0], at)
    for name in list(open_):
        close(name)
    return sorted(out, key=lambda v: v.first)


def _has_times(line: str) -> bool:
    return "s" in line and any(m["time"] not in ("avg", "mean") for m in _NAMED.finditer(line))


def _row(name: str) -> str:
    return {"l2": "L2", "col": "obj_box_col", "collision": "obj_box_col"}.get(name.lower(), name.lower())


def _style(found: re.Match[str], line: str) -> str:
    if _RANK.search(line[max(0, found.start() - 6) : found.start()]):
        return "bevplanner"
    if found["mark"].strip() == "is":
        return "occworld"
    return "stp3" if found["mark"].startswith(" ") and ":" in found["mark"] else "vad"


def per_sample_means(lines: Sequence[str], first: int) -> list[float]:
    """VAD's `gt_car: 7.101449…` above its planning lines: integer counts divided by the number of samples."""
    return [float(m[1]) for line in lines[max(0, first - 20) : first] for m in _COUNTED.finditer(line[:400])]


def read_logs(lines: Sequence[str]) -> Iterator[Values]:
    """Lines with at least two named averages: `Iter(val) [6019] …, obj_box_col: 0.0013, L2: 0.6360`, log.json, a dict on one or several lines."""
    gathered: dict[tuple[str, str], str] = {}
    first = last = -_FAR
    for at, line in enumerate(lines):
        if "L2" not in line and "obj_" not in line:
            continue
        if '"mode": "train"' in line or "plan_" in line or " events per step" in line or _has_times(line):
            continue
        listed = _lists(line) if "[" in line else {}
        if listed:
            yield Values("dict of lists", at, at, "dict", listed)
            continue
        found = {(m[1], "avg"): m[2] + m[3] for m in _AVERAGES.finditer(line[:8000])}
        if not found:
            continue
        quoted = "'" in line or '"' in line
        if len(found) >= 2:
            form = "log.json" if '"mode"' in line else "dict" if quoted else "log line"
            yield Values(form, at, at, "dict" if form == "dict" else "log", found)
            gathered, first, last = {}, at, at
        elif quoted:  # one name per line: a dict printed on several lines
            if at - last > 2 or not found.keys().isdisjoint(gathered):
                gathered, first = {}, at
            gathered |= found
            last = at
            if len(gathered) == 3 or (len(gathered) == 2 and "}" in line):
                yield Values("dict", first, at, "dict", dict(gathered))
                gathered = {}


def _lists(line: str) -> dict[tuple[str, str], str]:
    """`'L2': [0.35, 0.55, 0.77, 1.04, 1.36, 1.71]`: six steps, optionally followed by an average."""
    cells = {}
    for match in _LIST.finditer(line[:8000]):
        numbers = match[2].replace(",", " ").split()
        if len(numbers) in (6, 7):
            cells |= {(match[1], time): number for time, number in zip((*_STEPS, "avg"), numbers, strict=False)}
    return cells


def read_runs(lines: Sequence[str]) -> Iterator[Values]:
    """Sentences such as `UniAD-style metrics L2 = 0.21/0.61/1.24/0.68 and Collision = 0.00/0.17/0.63/0.27%`."""
    label, first, last = "", 0, 0
    cells: dict[tuple[str, str], str] = {}
    for at, line in enumerate(lines):
        if line.count("/") < 2 or "|" in line or "." not in line:
            continue
        end = 0
        for run in _RUN.finditer(line[:4000]):
            before = line[max(end, run.start() - 120) : run.start()]
            row, end = quantity(before[-40:]), run.end()
            numbers = [part.strip(" %") for part in run[1].split("/")]
            sign = "%" if "%" in run[0] else ""
            if not row or len(numbers) not in (3, 4, 6, 7):
                continue
            named = [m[1].lower() for m in _STYLES.finditer(before)]
            if cells and (named or (row, "1s") in cells or (row, "0.5s") in cells or at - last > 2):
                yield Values("slashes", first, last, "slashes", cells, label)
                cells, label = {}, ""
            if not cells:
                first, label = at, named[-1] if named else ""
            times = [*_STEPS] if len(numbers) > 5 else ["1s", "2s", "3s"]
            times += ["avg"] if len(numbers) in (4, 7) else []
            cells |= {(row, time): text + sign for time, text in zip(times, numbers, strict=True)}
            last = at
    if cells:
        yield Values("slashes", first, last, "slashes", cells, label)
