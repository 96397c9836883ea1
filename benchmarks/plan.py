"""What a plan costs: without ii, with ii, and beside the six-step roll-out of the world model. Random weights; the cost does not depend on them.

    python benchmarks/plan.py                       # recipes demo and small, full for the roll-out
    python benchmarks/plan.py --recipes tiny --rounds 2

Sixteen candidates everywhere. All cases of a recipe run alternately in one process, `--rounds` times, in batches of 16 samples and of one. Each
number is a median. `read` is the choice alone: sixteen candidates read in a given scene. `per candidate`: each candidate is read in a forecast of its
own, in which others react to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from gpu import agent_of, inputs_of

from iidrive.core.text import aligned
from iidrive.models.planner import Agent
from iidrive.pipeline import recipes
from iidrive.pipeline.recipes import Recipe

CANDIDATES = tuple(float(a) for a in (0, *np.linspace(-6, 2, 15)))
BATCHES = (16, 1)


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if k:  # the first round warms up
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def cases(agent: Agent, size: int, recipe: Recipe) -> dict[str, Callable[[], object]]:
    """The calls for a batch."""
    inputs = inputs_of(recipe, size, torch.device("cpu")).inputs
    seen = agent.forecaster.current_occupancy(inputs)
    base = agent.base_path(inputs, seen)
    scene = agent.scene(inputs, base, True, seen, shared=True)
    return {
        "plan, ii off": lambda: agent.plan(inputs, ii=False),
        "plan, ii on": lambda: agent.plan(inputs, ii=True, shared=True),
        "per candidate": lambda: agent.plan(inputs, ii=True),
        "scene": lambda: agent.scene(inputs, base, True, seen, shared=True),
        "read": lambda: agent.choose(inputs, base, scene, True, seen),
        "roll-out": lambda: agent.forecaster.imagine(inputs, 6),
    }


@torch.no_grad()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="demo,small")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    names = ("plan, ii off", "plan, ii on", "per candidate", "scene", "read", "roll-out")
    header = ["recipe", "batch", *(f"{name}, ms a sample" for name in names), "plans/s, ii on", "plans/s, per candidate", "on / off"]
    header.append("(roll-out + read) / roll-out")
    rows = [header]
    for name in arguments.recipes.split(","):
        recipe = recipes.named(name)
        planner = replace(recipe.planner, accelerations=CANDIDATES, per_candidate=True)
        recipe = replace(recipe, planner=planner, world=replace(recipe.world, reactions=recipe.reactions))
        agent = agent_of(recipe, "float32", torch.device("cpu"))
        for size in BATCHES:
            took = seconds(cases(agent, size, recipe), arguments.rounds)
            each = [f"{1000 * took[key] / size:.1f}" for key in names]
            ratio = f"{(took['roll-out'] + took['read']) / took['roll-out']:.2f}"
            rates = [f"{size / took[key]:.0f}" for key in ("plan, ii on", "per candidate")]
            rows.append([name, str(size), *each, *rates, f"{took['plan, ii on'] / took['plan, ii off']:.2f}", ratio])
    print(f"{torch.get_num_threads()} threads\n{aligned(rows)}")


if __name__ == "__main__":
    main()
