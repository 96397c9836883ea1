"""The run folder: what was asked for, with which code and on which machine, and what came out.

RUN/run.json          command, config, versions, data identity, lineage
RUN/metrics.jsonl     one line a logging step
RUN/*.txt, *.json     tables
RUN/checkpoints/      see training/checkpoint.py
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.untrusted.files import require_regular
from iidrive.core.untrusted.json_text import parse_json
from iidrive.core.version import VERSION
from iidrive.runtime import atomic
from iidrive.runtime.distributed import ProcessGroup


@dataclass(frozen=True)
class Run:
    """A folder that explains itself. `Run.start` makes it; the methods add to it, each file whole or absent.

    Of several processes rank 0 writes.
    """

    folder: Path
    process_group: ProcessGroup = field(default_factory=ProcessGroup)

    @staticmethod
    def start(folder: str | Path, about: Mapping[str, Any], resume: bool = False, process_group: ProcessGroup | None = None) -> Run:
        """Make the folder and write run.json (run-2.json and on when it is resumed): `about`, the command, the time, versions, the machine.

        Raises:
            ConfigError: if the folder holds checkpoints and is not to be resumed.
        """
        run = Run(Path(folder), process_group or ProcessGroup())
        with run.process_group.raise_on_all_ranks():
            if not resume and any((run.folder / "checkpoints").glob("samples-*")):
                raise ConfigError(
                    f"{run.folder} already holds checkpoints. Go on from them with `--resume on`, or name another run folder."
                )
        run.folder.mkdir(parents=True, exist_ok=True)
        before = len(list(run.folder.glob("run*.json"))) if resume else 0
        name = f"run-{before + 1}.json" if before else "run.json"
        about = {**about, "processes": run.process_group.size, "environment": environment()}
        run.write_json(name, {"command": shlex.join(sys.argv), "started": now(), **about})
        return run

    def below(self, name: str) -> Run:
        """A run in a folder of its own inside this one."""
        return Run(self.folder / name, self.process_group)

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file of the run atomically."""
        path = self.folder / name
        return atomic.write(path, text) if self.process_group.is_rank_zero else path

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain values as JSON; numbers that are not finite as null."""
        return self.write_text(name, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def log(self, values: Mapping[str, float | int]) -> None:
        """Append one line to metrics.jsonl. Raises DataError if it cannot be written, as on a full disk."""
        if not self.process_group.is_rank_zero:
            return
        path = self.folder / "metrics.jsonl"
        require_regular(path)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(values)) + "\n")
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}). Checkpoints written so far are whole; make room and go on with `--resume on`."
            ) from None

    def forget_after(self, samples: int) -> None:
        """Drop lines of metrics.jsonl that tell of more samples than were kept, and one that was cut short: they will be written again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            self.write_text(path.name, "".join(line for line in path.read_text().splitlines(True) if _told(line) <= samples))


def _finite(value: Any) -> Any:
    """Plain values with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(line: str) -> float:
    try:
        return parse_json(line, "a line")["samples"] if line.endswith("\n") else float("inf")
    except (DataError, KeyError, TypeError):
        return float("inf")


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and machine: enough to know later why two runs differ."""
    import numpy

    return {
        "iidrive": VERSION,
        "code": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def code_version() -> str:
    """The git commit of the source, with `+changes` when the tree differs; the package version outside git."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return VERSION
    return commit + ("+changes" if dirty else "")


def device() -> torch.device:
    """Where models run: the first GPU, or the CPU. There float32 is float32 until `allow_tf32` says otherwise."""
    allow_tf32(False)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def allow_tf32(on: bool) -> None:
    """Whether a GPU rounds what float32 products and convolutions multiply to 11 significant bits (TF32), which is several times as fast.

    torch by itself does so for convolutions alone.
    """
    on = on and torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def repeat_bits(on: bool) -> None:
    """Whether a GPU takes only operations that give the same bits every time. They are slower; torch raises RuntimeError where it has none.

    To be called before a GPU multiplies its first matrices, whose library reads its setting then. A CPU has the same bits anyway.
    """
    on = on and torch.cuda.is_available()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)


def peak_memory_gb() -> float:
    """The largest resident size of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
