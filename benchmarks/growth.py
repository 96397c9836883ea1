"""What more towns and more training would buy: the movers IoU of world models, and the collisions of one planner that reads their forecasts.

    python benchmarks/growth.py WORLD_RUN... [--planner town-small] [--split val] [--scenes 24]

The planner is the same for all world models, and was trained on its own one. All world models must have its tokenizer. Each run folder must still
hold the trainings of its parts (`RUN/flow`), whose samples the table shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from iidrive.training import checkpoint

COLUMNS = (
    "towns",
    "samples of the flow",
    "movers IoU % at 1 s",
    "2 s",
    "3 s",
    "mIoU % at 1 s",
    "2 s",
    "3 s",
    "collision events, ii on",
    "L2 avg, m",
)


def measured(planner: str, world: Path, split: str, scenes: int) -> dict[str, Any]:
    """The scores of `iidrive evaluate` for a planner with ii on, on top of a world model."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scores.json"
        data = ["--split", split, f"--recipe.town.{split}_scenes", str(scenes)]
        models = [planner, "--world", str(world), "--allow-mismatch", "on", "--test-ii", "on"]
        command = [sys.executable, "-m", "iidrive", "evaluate", *models, *data, "--run", folder, "--json", str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(target.read_text())


def row(planner: str, world: Path, split: str, scenes: int) -> list[str]:
    """A line of the table."""
    towns = checkpoint.read(world).manifest.data["train_scenes"]
    flow = checkpoint.read(world / "flow").manifest.samples_seen
    scores = measured(planner, world, split, scenes)
    forecast, plans = scores["forecast"]["rows"]["world model"], scores["sparsedrive"]
    shares = [f"{100 * value:.1f}" for name in ("movers_IoU", "mIoU") for value in forecast[name][1:]]
    return [str(towns), f"{flow:,}", *shares, str(sum(plans["events"]["obj_box_col"])), f"{plans['average']['L2']:.3f}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("worlds", nargs="+", type=Path)
    parser.add_argument("--planner", default="town-small")
    parser.add_argument("--split", default="val")
    parser.add_argument("--scenes", type=int, default=24)
    options = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for world in options.worlds:
        print("| " + " | ".join(row(options.planner, world, options.split, options.scenes)) + " |", flush=True)


if __name__ == "__main__":
    main()
