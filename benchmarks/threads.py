"""Training on a quiet and on a busy machine: with one thread per core, and with as many threads as iidrive chooses.

    python benchmarks/threads.py [--recipe small] [--seconds 10]

Each case is a process of its own that repeats a training step of every stage for some seconds. The neighbour is a process that computes without a
pause. Cases take turns, twice, and the better of both is shown, in steps per second; then each case divided by one thread per core on a quiet
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from gpu import agent_of, inputs_of, measured, train_steps

from iidrive.core.text import aligned
from iidrive.pipeline import recipes
from iidrive.runtime import threads

STAGES = ("train tokenizer", "train world", "train planner")
CASES = tuple(product(("quiet", "busy"), ("one per core", "chosen")))


def child(recipe_name: str, how: str, seconds: float) -> None:
    """Measure all stages in this process; print the number of threads and steps per second as JSON."""
    if how == "chosen":
        threads.use(0)
    else:
        torch.set_num_threads(os.cpu_count() or 1)
    recipe, place = recipes.named(recipe_name), torch.device("cpu")
    agent, batch = agent_of(recipe, "float32", place), inputs_of(recipe, 2, place)
    found = {case: measured(case, "float32", 2, 1, step, seconds).per_second for case, step in train_steps(agent, recipe, batch)}
    print(json.dumps({"threads": torch.get_num_threads(), **found}))


@contextmanager
def neighbour(load: str) -> Iterator[None]:
    """A busy process beside, if `load` is busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if load == "busy" else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--seconds", type=float, default=10.0, help="per stage and case")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.recipe, given.child, given.seconds)
        return
    clean = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    best: dict[tuple[str, str], dict[str, float]] = {}
    for load, how in CASES * 2:
        with neighbour(load):
            command = [sys.executable, __file__, "--child", how, "--recipe", given.recipe, "--seconds", str(given.seconds)]
            told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout)
        before = best.setdefault((load, how), told)
        best[load, how] = {key: max(value, before[key]) for key, value in told.items()}
    rows = [["machine", "threads", *(f"{stage}, steps/s" for stage in STAGES), *(f"{stage}, ratio" for stage in STAGES)]]
    whole = best["quiet", "one per core"]
    for (load, how), found in best.items():
        rates = [f"{found[stage]:.2f}" for stage in STAGES]
        rows.append([load, f"{how}: {found['threads']:.0f}", *rates, *(f"{found[stage] / whole[stage]:.2f}" for stage in STAGES)])
    print(aligned(rows))


if __name__ == "__main__":
    main()
