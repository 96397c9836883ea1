"""How a planner with and without ii bears worse inputs: missing columns, wrong distances, hidden road users, late plans. A table and a curve.

    python benchmarks/robustness.py town-small --out runs/robustness          # 24 val towns, about forty minutes on one core
    python benchmarks/robustness.py town-small --scenes 2 --levels 1          # a first look

Each condition is one `iidrive drive PLANNER --split val` in a folder of its own below --out; existing ones are not driven again. Numbers are means
over scenes with 95 % intervals (bootstrap over scenes).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from iidrive.cli.main import main as iidrive
from iidrive.core.text import aligned

CURVES: dict[str, tuple[tuple[float, tuple[str, ...]], ...]] = {
    "columns dropped, %": ((20, ("--drop", "0.2")), (50, ("--drop", "0.5"))),
    "error of distance, %": ((3, ("--depth-error", "0.03")), (10, ("--depth-error", "0.1"))),
    "plans late, s": ((0.3, ("--delay-s", "0.3")), (0.5, ("--delay-s", "0.5"))),
    "hidden road users unknown": ((1, ("--recipe.town.visible_only", "true")),),
}
"""Title of each kind of disturbance → its levels and their options. Level 0 is the undisturbed drive."""

ARMS = ("planner, ii off", "planner, ii on")


def driven(planner: str, scenes: int, folder: Path, options: tuple[str, ...]) -> dict[str, Any]:
    """The rows of drive.json of one condition."""
    if not (folder / "drive.json").is_file():
        iidrive(["drive", planner, "--split", "val", "--scenes", str(scenes), "--baselines", "off", "--run", str(folder), *options])
    return json.loads((folder / "drive.json").read_text())["rows"]


def main() -> None:
    """Drive, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("planner")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--levels", type=int, default=2, help="levels per kind of disturbance")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    given = parser.parse_args()
    usual = driven(given.planner, given.scenes, given.out / "usual", ())
    curves = {title: [(0.0, usual)] for title in CURVES}
    for title, levels in CURVES.items():
        for level, options in levels[: given.levels]:
            name = f"{title.split(',')[0].replace(' ', '-')}-{level:g}"
            curves[title].append((level, driven(given.planner, given.scenes, given.out / name, options)))
    lines = [["", "ii", "EPDMS", "EP", "at-fault collisions", "per km", "departures", "km"]]
    for title, points in curves.items():
        for level, rows in points if title == next(iter(curves)) else points[1:]:
            what = f"{title} {level:g}" if level else "as it is"
            lines += [[what if arm == ARMS[0] else "", arm.split()[-1], *_cells(rows[arm])] for arm in ARMS]
    print(aligned(lines))
    _draw({title: points for title, points in curves.items() if len(CURVES[title]) > 1}, given.out / "robustness.png")


def _cells(row: dict[str, Any]) -> list[str]:
    def between(interval: list[float], scale: float, digits: int) -> str:
        return f"[{scale * interval[0]:.{digits}f}, {scale * interval[1]:.{digits}f}]"

    rate, interval = row["at_fault_collisions_per_km"], row["at_fault_collisions_per_km_interval"]
    return [
        f"{100 * row['epdms']:.1f} {between(row['epdms_interval'], 100, 0)}",
        f"{100 * row['parts']['EP']:.1f} {between(row['parts_intervals']['EP'], 100, 0)}",
        str(row["at_fault_collisions"]),
        "-" if rate is None else f"{rate:.2f} {between(interval, 1, 2)}",
        str(row["departures"]),
        f"{row['km']:.2f}",
    ]


def _draw(curves: dict[str, list[tuple[float, dict[str, Any]]]], path: Path) -> None:
    """EPDMS by level of disturbance, one panel per kind."""
    figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 2.8), sharey=True, layout="constrained")
    for axis, (title, points) in zip(axes, curves.items(), strict=True):
        for arm, colour in zip(ARMS, ("tab:orange", "tab:blue"), strict=True):
            at = [level for level, _ in points]
            mean = [100 * rows[arm]["epdms"] for _, rows in points]
            low, high = ([100 * rows[arm]["epdms_interval"][k] for _, rows in points] for k in (0, 1))
            axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(at, mean, "o-", color=colour, label=arm.removeprefix("planner, "))
        axis.set_xlabel(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("EPDMS, %")
    axes[0].set_ylim(0, 100)
    axes[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
