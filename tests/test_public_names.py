"""`import iidrive`: the names to start from, imported when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_cases import random_cases

import iidrive


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, iidrive\nprint(iidrive.__version__, [n for n in ('torch', 'numpy', 'scipy', 'matplotlib') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{iidrive.__version__} []\n"


def test_public_names_match_the_type_checking_block() -> None:
    """The `TYPE_CHECKING` block, `__all__` and `__getattr__` name the same things in the same modules."""
    tree = ast.parse(Path(iidrive.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    told.pop("VERSION", None)
    assert sorted([*told, "__version__"]) == sorted(iidrive.__all__)
    assert len(told) <= 13
    assert {name: getattr(iidrive, name).__module__ for name in told} == told
    assert set(told) <= set(dir(iidrive))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'scor'\. Public names: .*score"):
        iidrive.scor  # noqa: B018


def test_planned_paths_are_scored_and_compared_from_python() -> None:
    """The true paths, and the same moved by a metre to the side: L2 is 0 and 1 m."""
    cases, _ = random_cases(0, 12, 2)
    exact, moved = (iidrive.Predictions(cases.true_path() + np.float32([aside_m, 0]), cases.token) for aside_m in (0, 1))
    scores = [iidrive.score(cases, iidrive.align(cases, paths)) for paths in (exact, moved)]
    assert [round(float(s.average["L2"]), 5) for s in scores] == [0, 1]
    result = iidrive.compare([iidrive.scored(cases, exact)], [iidrive.scored(cases, moved)])
    line = next(line for line in result.lines if line.metric == "L2")
    assert (line.a, line.b) == pytest.approx((0, 1), abs=1e-5)
