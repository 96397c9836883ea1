"""iidrive: an II (intra-inter) occupancy world model, a planner on top of it, and scores that can be believed.

Start from the names below. Each is imported when it is first used, so `import iidrive` is fast:

    cases = iidrive.read_cases("cases.npz")
    mine = iidrive.Predictions(paths, tokens)
    scores = iidrive.score(cases, iidrive.align(cases, mine))
    result = iidrive.compare([iidrive.scored(cases, mine)], [iidrive.scored(cases, iidrive.read_predictions("theirs.npz"))])
    agent = iidrive.load("runs/planner").model
    leaks = iidrive.audit("runs/planner", iidrive.Town())
    report = iidrive.doctor("train.log")
    print(iidrive.drive("ctrv", iidrive.Town(), scenes=8).text())
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iidrive.core.version import VERSION

if TYPE_CHECKING:
    from iidrive.analysis.compare.compare import compare
    from iidrive.analysis.doctor.doctor import doctor
    from iidrive.analysis.leakage.audit import audit
    from iidrive.data.nuscenes.source import NuScenes
    from iidrive.data.town.source import Town
    from iidrive.pipeline.drive import drive
    from iidrive.pipeline.load import load
    from iidrive.scoring.cases import Predictions, align, read_cases, read_predictions
    from iidrive.scoring.sampled import scored
    from iidrive.scoring.score import score

__version__ = VERSION
__all__ = [
    "NuScenes",
    "Predictions",
    "Town",
    "__version__",
    "align",
    "audit",
    "compare",
    "doctor",
    "drive",
    "load",
    "read_cases",
    "read_predictions",
    "score",
    "scored",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name == "compare":
        from iidrive.analysis.compare import compare as room
    elif name == "doctor":
        from iidrive.analysis.doctor import doctor as room
    elif name == "audit":
        from iidrive.analysis.leakage import audit as room
    elif name == "NuScenes":
        from iidrive.data.nuscenes import source as room
    elif name == "Town":
        from iidrive.data.town import source as room
    elif name == "drive":
        from iidrive.pipeline import drive as room
    elif name == "load":
        from iidrive.pipeline import load as room
    elif name in ("Predictions", "align", "read_cases", "read_predictions"):
        from iidrive.scoring import cases as room
    elif name == "scored":
        from iidrive.scoring import sampled as room
    elif name == "score":
        from iidrive.scoring import score as room
    else:
        raise AttributeError(f"module 'iidrive' has no attribute '{name}'. Public names: {', '.join(__all__)}.")
    return getattr(room, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
