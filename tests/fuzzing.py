"""Valid inputs of every kind that people bring, changed at random: each ends in the right value or in one clear sentence.

    python tests/fuzzing.py --cases 6000 --seed 1 --keep faulty

prints, for each kind of input, how many were refused, read as before, or read as something else, and the faults. A fault is

    traceback   any exception but an IIDriveError
    hang        more than LONGEST_S
    memory      more than MOST_BYTES more than before
    silent      a change that means nothing was refused or gave another value; one that must be noticed was not; or, where the bytes alone
                do not tell, the value is not what an independent reading of the changed file gives
    code        something of the file ran
    unclear     the sentence does not name the file, spans lines, or is long

tests/test_fuzz.py runs the same, shorter. Changes are drawn from the seed and the kind's name.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from iidrive.core.errors import IIDriveError

Rng = np.random.Generator
Expected = Literal["same", "refused", "same or refused", "any"]
Change = Callable[[bytes, Rng], tuple[bytes, Expected]]
"""A file's bytes, changed, and what may come of them."""

LONGEST_S = 20
LONGEST_SENTENCE = 1500
MOST_BYTES = 600 << 20
WATCHED = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        write: makes a valid one below an empty folder, and returns the file or folder that people would give.
        read: what comes of it, as values that can be compared; raises IIDriveError.
        changes: what is done to one of its files.
        files: a pattern of the files that are changed, below the folder; empty for the file itself.
        agrees: whether a value may be what changed bytes mean, by an independent reading.
        share: how many cases it gets beside the others; less for what is slow to read.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    changes: Sequence[Change]
    files: str = ""
    agrees: Callable[[bytes, Any], bool] = lambda raw, value: True
    share: float = 1.0


@dataclass
class Outcome:
    """Counts of one kind, and its faulty inputs: what was wrong, by which change, and the file."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[str, str, Path | None]] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [self.counts[key] for key in ("cases", "refused", "same", "other", *FAULTS)]
        return "".join(f"{cell:>10}" for cell in cells)


FAULTS = ("traceback", "hang", "memory", "silent", "code", "unclear")


class Hang(BaseException):
    """Raised by the alarm, past every `except Exception`."""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Watch:
    """Notes what a reader must never do. An audit hook cannot be taken away again, so it looks only while `on`."""

    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, _: tuple[Any, ...]) -> None:
        if self.on and event in WATCHED:
            self.seen.append(event)


def run(name: str, kind: Kind, cases: int, seed: int, folder: Path, watch: Watch, keep: Path | None = None) -> Outcome:
    """Change a valid input `cases` times and judge what comes of each. Faulty inputs are copied to `keep`."""
    found = Outcome()
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    whole = kind.write(folder / "whole")
    before = kind.read(whole)
    files = sorted(path for path in whole.rglob(kind.files) if path.is_file()) if kind.files else [whole]
    here = folder / "changed" / whole.relative_to(folder / "whole")
    for i in range(cases):
        if i == 0 or kind.files:
            shutil.rmtree(folder / "changed", ignore_errors=True)
            shutil.copytree(folder / "whole", folder / "changed")
        file = files[int(rng.integers(len(files)))]
        target = folder / "changed" / file.relative_to(folder / "whole")
        change = kind.changes[int(rng.integers(len(kind.changes)))]
        raw, expected = change(file.read_bytes(), rng)
        target.write_bytes(raw)
        found.counts["cases"] += 1
        peak, watch.seen[:] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        faults = _judged(kind, here, raw, before, expected, found.counts, watch, str(folder))
        if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 > MOST_BYTES:
            faults.append(("memory", ""))
        for fault, said in faults:
            found.counts[fault] += 1
            kept = None if keep is None else keep / name / f"{i}-{fault}-{target.name}"
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(raw)
            found.faults.append((f"{fault}: {said}", getattr(change, "__name__", str(change)), kept))
    return found


def _judged(
    kind: Kind, path: Path, raw: bytes, before: Any, expected: Expected, counts: Counter[str], watch: Watch, folder: str
) -> list[tuple[str, str]]:
    """Read one changed input, count what came of it, and return its faults."""
    faults: list[tuple[str, str]] = []
    value, sentence = None, ""
    try:
        with _alarm():
            watch.on = True
            try:
                value = kind.read(path)
            finally:
                watch.on = False
    except IIDriveError as error:
        sentence = str(error)
    except Hang:
        return [("hang", f"more than {LONGEST_S} s")]
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return [("traceback", f"{type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})")]
    if watch.seen:
        faults.append(("code", ", ".join(watch.seen)))
    if sentence:
        counts["refused"] += 1
        if expected == "same":
            faults.append(("silent", f"refused, though nothing was changed that counts: {sentence}"))
        if folder not in sentence or not sentence.isprintable() or len(sentence) > LONGEST_SENTENCE:
            faults.append(("unclear", sentence[:300]))
        return faults
    same = equal(value, before)
    counts["same" if same else "other"] += 1
    if expected == "refused" or (expected != "any" and not same):
        faults.append(("silent", f"expected {expected}, found {'the same' if same else 'another'} value"))
    elif not same and not kind.agrees(raw, value):
        faults.append(("silent", "not the value that an independent reading gives"))
    return faults


def equal(a: Any, b: Any) -> bool:
    """Whether two values of lists, mappings, arrays and plain values are the same, NaN included."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def main() -> None:
    """Run every kind, print the counts, and exit with 1 if there are faults."""
    from fuzz_kinds import kinds

    parser = argparse.ArgumentParser(description="change valid inputs of every kind at random, and judge what comes of them")
    parser.add_argument("--cases", type=int, default=6000, help="inputs in all, shared among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="parts of names, joined by commas; default: all")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the faulty inputs")
    chosen = parser.parse_args()
    marker = Path(tempfile.mkdtemp()) / "ran"
    known = kinds(str(marker))
    names = [name for name in known if not chosen.kinds or any(part in name for part in chosen.kinds.split(","))]
    watch = Watch()
    sys.addaudithook(watch)
    total: Counter[str] = Counter()
    print(f"{'kind':28}" + "".join(f"{key:>10}" for key in ("cases", "refused", "same", "other", *FAULTS)), flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = run(
                name,
                known[name],
                max(1, round(known[name].share * chosen.cases / len(names))),
                chosen.seed,
                Path(folder),
                watch,
                chosen.keep,
            )
        print(f"{name:28}{found}", flush=True)
        for said, change, kept in found.faults[:6]:
            print(f"    {change}: {said}{f'  [{kept}]' if kept else ''}", flush=True)
        total.update(found.counts)
    total["code"] += marker.exists()
    print(f"{'all':28}{Outcome(total)}")
    sys.exit(any(total[fault] for fault in FAULTS))


if __name__ == "__main__":
    main()
