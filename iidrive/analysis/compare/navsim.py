"""Comparison of two score files of NAVSIM (`run_pdm_score.py`): one row per token, with the parts of PDMS or EPDMS.

Spreadsheets write such files again with semicolons or tabs, quotes and decimal commas. These are read, too. Rows that hold averages are left
out; averages are computed again, and compared with those of the file. Rows that are not valid have no score.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from iidrive.analysis.compare.compare import FEWEST_CLUSTERS, two_figures
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.text import aligned, printable, printable_line
from iidrive.core.untrusted.files import decode, read_bytes
from iidrive.scoring import npz
from iidrive.scoring.readers.rows import token_name
from iidrive.scoring.stats import ALPHA, Test, holm, paired, samples_needed

Array = np.ndarray

SCORE = "score"
PARTS: Mapping[str, str] = {
    SCORE: "score",
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "comfort": "C",
    "history_comfort": "HC",
    "two_frame_extended_comfort": "EC",
}
"""Columns that are compared, and their short names. Other columns are ignored."""

_OF_SCORE: Mapping[str, tuple[str, ...]] = {
    "EPDMS (NAVSIM v2)": ("traffic_light_compliance", "lane_keeping", "history_comfort", "two_frame_extended_comfort"),
    "PDMS (NAVSIM v1)": ("comfort",),
}
"""Which score a file holds: the first of which it has a column."""

_SCENE_COLUMNS = ("log_name", "log", "scene")
"""Columns that say which samples belong together. The first that both files have is used."""

_AVERAGES = ("average", "overall", "mean", "extended_pdm_score", "pdm_score")
"""How the token of a row with averages begins."""

_LIMIT = 1 << 27
"""Largest allowed file, bytes: a million rows."""

_AGREES = 1e-4
"""A printed average may differ from the computed one by this."""


@dataclass(frozen=True)
class ScoreFile:
    """The valid rows of a score file.

    `values`: (n,) values in [0, 1] by column. `scene`: columns with names of logs or scenes. `notes`: what was left out.
    """

    name: str
    token: tuple[str, ...]
    values: Mapping[str, Float[Array, "n"]]
    scene: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One compared column: means of A and B, paired test of A - B, and corrected p-value."""

    column: str
    a: float
    b: float
    test: Test
    corrected: float


def is_score_file(path: str | Path) -> bool:
    """Whether a file is a CSV table with the columns `token` and at least one of `PARTS`."""
    path = Path(path)
    if path.suffix not in (".csv", ".tsv") or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.readline(1 << 16).decode("utf-8-sig", "replace")
    cells = {cell.strip('\r\n "') for cell in head.split(_mark_of(head))}
    return "token" in cells and not cells.isdisjoint(PARTS)


def _mark_of(text: str) -> str:
    """The mark between the cells of a table: the one that its first line has most of."""
    head = text.split("\n", 1)[0]
    return max((",", ";", "\t"), key=head.count)


def read_score_file(path: str | Path) -> ScoreFile:
    """Read a score file.

    Raises:
        DataError: naming file and line, for values that are no numbers in [0, 1], rows that do not fit the header, repeated tokens, or a file
            without a valid row.
    """
    where = printable_line(str(path))
    text = decode(read_bytes(path, _LIMIT), where)
    mark = _mark_of(text)
    if mark != ",":
        text = text.replace(",", ".")  # decimal commas
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
    columns, scenes = _columns(rows, where)
    values: dict[str, dict[str, float]] = {}
    scene: dict[str, list[str]] = {name: [] for name in scenes}
    averages: list[float] = []
    failed = 0
    try:
        for row in rows:
            at = f"{where}, line {rows.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{at}: the row has {'more' if None in row else 'fewer'} cells than the header. Write the file again.")
            token = row["token"].strip()
            if token.lower().startswith(_AVERAGES):
                averages += [_number(row, SCORE, at)] * (token.lower() == "average")
                continue
            token_name(token, rows.line_num, where)
            if not _valid(row, at):
                failed += 1
                continue
            if token in values:
                raise DataError(f"{at}: token {printable(token, 40)} is there twice. Keep one row per token.")
            values[token] = {name: _number(row, name, at) for name in columns}
            for name in scenes:
                scene[name].append(row[name].strip())
    except csv.Error as error:
        raise DataError(f"{where}, line {rows.line_num}: not a CSV table ({error}).") from error
    if not values:
        raise DataError(f"{where}: no valid row, so there is nothing to compare.")
    found = {name: np.array([row[name] for row in values.values()]) for name in columns}
    notes = _notes(where, found[SCORE], failed, averages)
    return ScoreFile(str(path), tuple(values), found, {k: tuple(v) for k, v in scene.items()}, notes)


def _columns(rows: csv.DictReader[str], where: str) -> tuple[list[str], list[str]]:
    """Columns with values and columns with scenes that the header names."""
    try:
        header = list(rows.fieldnames or ())
    except csv.Error as error:
        raise DataError(f"{where}, line 1: not a CSV table ({error}).") from error
    if not {SCORE, "token"} <= set(header):
        raise DataError(f"{where}: expected a CSV table with the columns token and {SCORE}, as NAVSIM's run_pdm_score.py writes it.")
    if twice := [name for name in header if header.count(name) > 1]:
        raise DataError(f"{where}: the column {printable(twice[0], 40)} is there twice. Keep one.")
    return [name for name in PARTS if name in header], [name for name in _SCENE_COLUMNS if name in header]


def _valid(row: Mapping[str, str], at: str) -> bool:
    said = row.get("valid", "true").strip().lower()
    if said not in ("true", "1", "false", "0"):
        raise DataError(f"{at}: valid must be True or False; found {printable(row['valid'], 40)}.")
    return said in ("true", "1")


def _number(row: Mapping[str, str], name: str, at: str) -> float:
    try:
        value = float(row[name].strip())
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise DataError(f"{at}: {name} must be a number from 0 to 1; found {printable(row[name], 40)}.")
    return value


def _notes(where: str, score: Array, failed: int, averages: Sequence[float]) -> tuple[str, ...]:
    notes = []
    if failed:
        notes.append(
            f"{where}: {failed} samples failed and have no score. NAVSIM's average leaves them out too, as if they had not been there."
        )
    for printed in averages:
        if abs(printed - float(score.mean())) > _AGREES:
            notes.append(f"{where}: its row of averages says {printed:.4f}, but its rows average to {score.mean():.4f}. The rows are used.")
    return tuple(notes)


def compare_score_files(files: Sequence[str], resamples: int = 9999) -> str:
    """Compare two score files on their common tokens: table, notes and verdict as text.

    The verdict is about the score. The parts are corrected by Holm among themselves.

    Raises:
        ConfigError: for other than two files.
        DataError: if a file cannot be read, or they have no token in common.
    """
    if len(files) != 2:
        raise ConfigError(f"compare takes two sides, A and B; found {len(files)}.")
    a, b = (read_score_file(path) for path in files)
    kinds = [next((kind for kind, own in _OF_SCORE.items() if not file.values.keys().isdisjoint(own)), "") for file in (a, b)]
    if all(kinds) and kinds[0] != kinds[1]:
        raise DataError(
            f"{a.name} holds {kinds[0]} and {b.name} {kinds[1]}, which are different scores. Score both by one version of NAVSIM."
        )
    shared = set(a.token) & set(b.token)
    if not shared:
        raise DataError(f"{a.name} and {b.name} have no token in common; were they run on different splits?")
    token = [t for t in a.token if t in shared]
    rows = [np.array([{t: i for i, t in enumerate(side.token)}[t] for t in token], np.int64) for side in (a, b)]
    notes = [*a.notes, *b.notes]
    for side in (a, b):
        if alone := [t for t in side.token if t not in shared]:
            notes.append(f"{printable_line(side.name)}: {npz.few(alone)} not in the other file; left out.")
    cluster, of = _clusters(a, b, rows[0], token)
    if of == "samples":
        notes.append("Logs are unknown, so samples are treated as independent. Neighbouring samples are not, so p-values are too small.")
    clusters = len(np.unique(cluster))
    if clusters < FEWEST_CLUSTERS:
        notes.append(f"Only {clusters} {of}: no difference can be significant. At least {FEWEST_CLUSTERS} are needed.")
    parts = []
    for name in (name for name in PARTS if name in a.values and name in b.values):
        x, y = a.values[name][rows[0]], b.values[name][rows[1]]
        test = paired(x, y, cluster, resamples)
        parts.append(Part(name, float(x.mean()), float(y.mean()), test, test.p))
    rest = holm([part.test.p for part in parts[1:]])
    parts = [parts[0], *(replace(part, corrected=p) for part, p in zip(parts[1:], rest, strict=True))]
    lines = [
        f"A: {printable_line(a.name)}",
        f"B: {printable_line(b.name)}",
        f"{len(token)} samples in common, of {clusters} {of}; percent, differences are A - B",
    ]
    return "\n".join([*lines, _table(parts), *(f"note: {note}" for note in notes), f"verdict: {_verdict(parts[0], len(token), clusters)}"])


def _clusters(a: ScoreFile, b: ScoreFile, rows: Array, token: Sequence[str]) -> tuple[Array, str]:
    """The group of each sample, and what the groups are."""
    name = next((name for name in _SCENE_COLUMNS if name in a.scene and name in b.scene), None)
    if name is None:
        return np.arange(len(token)), "samples"
    names = np.array(a.scene[name])[rows]
    return np.unique(names, return_inverse=True)[1].reshape(-1), "scenes" if name == "scene" else "logs"


def _table(parts: Sequence[Part]) -> str:
    rows = [["", "A", "B", "difference", "95 % interval", "p", "corrected"]]
    for part in parts:
        low, high = (f"{100 * value:+.2f}" for value in (part.test.low, part.test.high))
        means = [f"{100 * part.a:.2f}", f"{100 * part.b:.2f}", f"{100 * part.test.difference:+.2f}"]
        rows.append([PARTS[part.column], *means, f"{low} … {high}", f"{part.test.p:.4f}", f"{part.corrected:.4f}"])
    return aligned(rows)


def _verdict(score: Part, samples: int, clusters: int) -> str:
    test = score.test
    if score.corrected <= ALPHA and not test.low <= 0 <= test.high:
        kind = "better" if test.difference > 0 else "worse"
        return f"A is {kind} than B in score ({100 * test.difference:+.2f} points, 95 % {100 * test.low:+.2f} to {100 * test.high:+.2f})."
    more, enough = samples_needed(samples, test.difference, test.error), ""
    if more:
        fewest = max(more, samples + 1, -(-samples * FEWEST_CLUSTERS // clusters))
        enough = f"; to show one of the size seen would take about {two_figures(fewest):,} samples"
    return f"A and B: no difference that these data can show in score{enough}."
