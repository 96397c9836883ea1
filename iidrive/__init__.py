"""iidrive: an II (intra-inter) occupancy world model, a planner on top of it, and scores that can be believed.

The names below are the ones to start from; each is imported when it is first used, so that `import iidrive` costs nothing:

    cases = iidrive.read_cases("cases.npz")
    mine = iidrive.Predictions(paths, tokens)
    scores = iidrive.score(cases, iidrive.align(cases, mine))
    result = iidrive.compare([iidrive.scored(cases, mine)], [iidrive.scored(cases, iidrive.read_predictions("theirs.npz"))])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iidrive.analysis.compare.compare import compare
    from iidrive.analysis.doctor.repair import diagnose_predictions
    from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
    from iidrive.data.town.source import Town
    from iidrive.pipeline.load import load_agent
    from iidrive.scoring.cases import Predictions, align, read_cases, read_predictions
    from iidrive.scoring.sampled import scored
    from iidrive.scoring.score import score

__version__ = "0.2.0"
__all__ = [
    "NuScenes",
    "NuScenesConfig",
    "Predictions",
    "Town",
    "align",
    "compare",
    "diagnose_predictions",
    "load_agent",
    "read_cases",
    "read_predictions",
    "score",
    "scored",
]


def __getattr__(name: str) -> object:
    """A public name, from the room that has it (PEP 562). Rooms stand in the same order as above."""
    where = {
        "compare": "analysis.compare.compare",
        "diagnose_predictions": "analysis.doctor.repair",
        "NuScenes": "data.nuscenes.source",
        "NuScenesConfig": "data.nuscenes.source",
        "Town": "data.town.source",
        "load_agent": "pipeline.load",
        "Predictions": "scoring.cases",
        "align": "scoring.cases",
        "read_cases": "scoring.cases",
        "read_predictions": "scoring.cases",
        "scored": "scoring.sampled",
        "score": "scoring.score",
    }
    if name not in where:
        raise AttributeError(f"module 'iidrive' has no attribute '{name}'. Public names: {', '.join(__all__)}.")
    return getattr(import_module(f"iidrive.{where[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
