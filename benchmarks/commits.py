"""Samples per second of the trainings of two checkouts, measured at the same time.

    python benchmarks/commits.py OLD_CHECKOUT NEW_CHECKOUT [--recipe small] [--towns 8] [--rounds 1]

Both checkouts run in this Python environment, side by side and with one thread each unless OMP_NUM_THREADS says otherwise, so other programs slow
both. Each trains a tokenizer, then a world model on
it, then a planner on that, for a few hundred samples each. The speed of a stage is that of its log lines after the first, read from `metrics.jsonl`.
A stage that only one of them has, has one value.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STAGES = {
    "tokenizer": "tokenizer",
    "motion": "world/motion",
    "flow": "world/flow",
    "world": "world",
    "route": "planner/route",
    "planner": "planner",
}
"""Stage → where its metrics are, below the folder of a round."""

SAMPLES = {
    "tokenizer": (240, 40),
    "motion": (12800, 3200),
    "flow": (360, 72),
    "world": (80, 16),
    "route": (1280, 320),
    "planner": (960, 192),
}
"""Stage → samples of the training and between two log lines."""


def run(checkout: Path, folder: Path, recipe: str, towns: int) -> dict[str, float]:
    """Train all stages in a checkout. Returns the samples per second of each stage."""
    code = "".join(file.read_text() for file in (checkout / "iidrive").rglob("*.py"))
    stages = [stage for stage in STAGES if f"train_{stage}" in code]
    fields = [(f"--recipe.train_{stage}", SAMPLES[stage]) for stage in stages]
    sizes = [word for field, (samples, log) in fields for word in (f"{field}.samples={samples}", f"{field}.log_every={log}")]
    options = ["--recipe", recipe, "--recipe.town.train_scenes", str(towns), *sizes]
    for stage, on in (("tokenizer", []), ("world", [folder / "tokenizer"]), ("planner", [folder / "world"])):
        command = [sys.executable, "-m", "iidrive", "train", stage, *map(str, on), *options, "--run", str(folder / stage)]
        found = subprocess.run(command, env=_environment(checkout), capture_output=True, text=True, check=False)
        if found.returncode:
            raise SystemExit(f"{checkout}: {' '.join(command[2:6])} failed:\n{found.stderr[-2000:]}")
    return {stage: _speed(folder / STAGES[stage] / "metrics.jsonl") for stage in stages}


def _environment(checkout: Path) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(checkout)}


def _speed(metrics: Path) -> float:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    speeds = [row["samples_per_s"] for row in rows if "samples_per_s" in row]
    return statistics.median(speeds[1:] or speeds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--towns", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    speeds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
            sides = {side: getattr(options, side).resolve() for side in ("old", "new")}
            runs = {side: pool.submit(run, at, Path(folder) / side, options.recipe, options.towns) for side, at in sides.items()}
            for side, done in runs.items():
                for stage, speed in done.result().items():
                    speeds[stage][side].append(speed)
    print("| samples per second | old | new | new / old |\n|---|---|---|---|")
    for stage, sides in speeds.items():
        old, new = (statistics.median(sides[side]) if sides[side] else None for side in ("old", "new"))
        print(f"| {stage} | {_told(sides['old'])} | {_told(sides['new'])} | {'-' if old is None or new is None else f'{new / old:.2f}'} |")


def _told(speeds: Sequence[float]) -> str:
    return ", ".join(f"{speed:.1f}" for speed in speeds) or "-"


if __name__ == "__main__":
    main()
