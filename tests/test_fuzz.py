"""Inputs of every kind, changed at random: the right value or one clear sentence, in bounded time and memory, and nothing of a file runs.

What is counted as a fault, and how a long run is started by hand, stands in `fuzzing`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_kinds import kinds
from fuzzing import Kind, Watch, equal, run

KINDS = kinds("/nowhere/ran")
CASES = 36


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """One for all kinds: an audit hook cannot be taken away again."""
    found = Watch()
    sys.addaudithook(found)
    yield found
    found.on = False


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "recipe" else name for name in KINDS])
def test_changed_inputs_end_in_a_sentence_or_the_right_value(name: str, watch: Watch, tmp_path: Path) -> None:
    kind = kinds(str(tmp_path / "ran"))[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(name, kind, max(4, round(CASES * kind.share)), 20, tmp_path, watch)
    assert not found.faults, "\n".join(f"{change}: {said}" for said, change, _ in found.faults)
    assert found.counts["refused"] + found.counts["same"] > 0
    assert not (tmp_path / "ran").exists()


FAULTY = {
    "traceback": lambda path: {}["x"],
    "silent": lambda path: len(path.read_bytes()),
    "code": lambda path: subprocess.run(["true"], check=True).returncode,
}


MAPS = [
    ("nuScenes: map", "tinytown.json", b'"y": 57', b'"y": 56'),
    ("nuScenes: map", "tinytown.json", b'"segment_length": [0.0, 10.0', b'"segment_length": [0.0, 25.0'),
    ("AV2: map", "log_map*.json", b'"successors": [11]', b'"successors": []'),
    ("AV2: map", "log_map*.json", b'"lane_type": "BIKE"', b'"lane_type": "BUS"'),
    ("AV2: map", "log_map*.json", b"DOUBLE_SOLID_YELLOW", b"SOLID_WHITE"),
]


@pytest.mark.parametrize("fault", FAULTY)
def test_faults_are_seen(fault: str, watch: Watch, tmp_path: Path) -> None:
    """A reader with a fault is found out: the test above can fail."""

    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / "x").write_bytes(b"whole")
        return folder / "x"

    kind = Kind(write, lambda path: 5 if path.read_bytes() == b"whole" else FAULTY[fault](path), (lambda raw, rng: (raw + b"!", "same"),))
    assert run(fault, kind, 3, 0, tmp_path, watch).counts[fault] == 3


@pytest.mark.parametrize(("name", "file", "old", "new"), MAPS)
def test_a_map_that_says_something_else_is_seen(name: str, file: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    """The independent readings agree with the map that was read, and not with another one."""
    kind = KINDS[name]
    whole = kind.write(tmp_path)
    value, raw = kind.read(whole), next(whole.rglob(file)).read_bytes()
    assert kind.agrees(raw, value)
    assert old in raw
    assert not kind.agrees(raw.replace(old, new), value)


def test_values_are_compared_whole() -> None:
    assert equal({"a": [1, float("nan")]}, {"a": [1, float("nan")]})
    assert not equal({"a": 1}, {"a": True})
    assert not equal([1.0], [1])


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
