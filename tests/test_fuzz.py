"""Valid files with bytes changed: either the right number or one clear sentence, in bounded memory, and nothing of a file runs."""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from make_cases import along, make_cases

from iidrive.core.config_io import to_plain
from iidrive.core.errors import IIDriveError
from iidrive.core.untrusted.yaml_text import read_yaml
from iidrive.pipeline import recipes
from iidrive.scoring.cases import FARTHEST_M, read_cases, write_cases
from iidrive.scoring.predictions import write_predictions
from iidrive.scoring.readers import read_paths
from iidrive.scoring.score import score

TOKENS = ("a", "b", "c")
PATHS = np.stack([along((0.1 * i, 1.0)) for i in range(3)])
CAR = (0.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.1)
ROUNDS = 250
MOST_BYTES = 256 << 20


def table() -> dict[str, Any]:
    return {t: torch.tensor(p) if t == "a" else p for t, p in zip(TOKENS, PATHS, strict=True)}


def write_yaml(path: Path) -> None:
    path.write_text(yaml.safe_dump(to_plain(recipes.tiny())))


def check_paths(path: Path) -> None:
    found = read_paths(path).predictions
    assert found.trajectory.shape[1:] == (6, 2)
    assert np.abs(found.trajectory).max() <= FARTHEST_M


def check_cases(path: Path) -> None:
    cases = read_cases(path)
    found = score(cases, cases.true_path())
    assert np.isfinite(found.average["L2"])


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "own.npz": (lambda f: write_predictions(f, TOKENS, PATHS, {"seed": 1}), check_paths),
    "table.pkl": (lambda f: f.write_bytes(pickle.dumps(table(), 4)), check_paths),
    "old.pkl": (lambda f: f.write_bytes(pickle.dumps(dict(zip(TOKENS, PATHS.tolist(), strict=True)), 0)), check_paths),
    "torch.pth": (lambda f: torch.save({t: torch.tensor(p) for t, p in zip(TOKENS, PATHS, strict=True)}, f), check_paths),
    "table.json": (lambda f: f.write_text(json.dumps(dict(zip(TOKENS, PATHS.tolist(), strict=True)))), check_paths),
    "cases.npz": (lambda f: write_cases(f, make_cases(list(PATHS), [(0, 1, CAR), (1, 2, CAR)])), check_cases),
    "recipe.yaml": (write_yaml, read_yaml),
}


def changed(whole: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one to four changes: flipped, replaced, cut, doubled, or a piece moved elsewhere."""
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(raw)))
        kind = int(rng.integers(0, 6))
        piece = slice(at, at + int(rng.integers(1, 12)))
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            raw[at] = int(rng.choice([0, 0xFF, 0x28, 0x5B, 0x7B, 0x2E, 0x72, 0x8F, 0x96]))
        elif kind == 2:
            del raw[piece]
        elif kind == 3:
            raw[at:at] = raw[piece]
        elif kind == 4:
            to = int(rng.integers(0, len(raw)))
            raw[to:to] = raw[piece]
        else:
            raw[piece] = rng.bytes(8)
        raw = raw or bytearray(b"\0")
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_end_in_a_sentence_or_a_number(kind: str, tmp_path: Path) -> None:
    write, check = KINDS[kind]
    write(tmp_path / kind)
    check(tmp_path / kind)
    whole, rng = (tmp_path / kind).read_bytes(), np.random.default_rng(list(KINDS).index(kind))
    told: list[tuple[Path, str]] = []
    tracemalloc.start()
    try:
        for i in range(ROUNDS):
            path = tmp_path / f"{i}-{kind}"
            path.write_bytes(changed(whole, rng))
            tracemalloc.reset_peak()
            try:
                check(path)
            except IIDriveError as error:
                told.append((path, str(error)))
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
            path.unlink()
    finally:
        tracemalloc.stop()
    assert len(told) > ROUNDS // 10
    for path, sentence in told:
        assert str(path) in sentence
        assert "\n" not in sentence
        assert len(sentence) < 1500


def test_damaged_pickles_stay_within_an_address_space(tmp_path: Path) -> None:
    """The same in a process that may not have more than 4 GiB of addresses, with files that ask for much."""
    asks = [
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x02]q\x00(h\x00h\x00eh\x00a.",
        b"\x80\x02]q\x00K\x01a" + b"".join(b"]q%c(" % i + (b"h%c" % (i - 1)) * 10 + b"e" for i in range(1, 12)) + b".",
        b"\x80\x02c_codecs\nencode\nq\x00(X\x00\x00\x10\x00" + b"x" * (1 << 20) + b"q\x01" + b"0" + b"h\x00h\x01\x85R" * 5000 + b"t.",
    ]
    for i, content in enumerate(asks):
        (tmp_path / f"{i}.pkl").write_bytes(content)
    program = (
        "import sys; from pathlib import Path; from iidrive.core.errors import IIDriveError; from iidrive.scoring.readers import read_paths\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.pkl')):\n"
        "    try: read_paths(path)\n"
        "    except IIDriveError: print('told')\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.stdout.split() == ["told"] * len(asks), done.stderr
