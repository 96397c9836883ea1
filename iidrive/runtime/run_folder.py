"""The run folder: the command and config, the code version and machine, and the results.

RUN/run.json          command, config, versions, data identity, lineage
RUN/metrics.jsonl     one line per logging step
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
    """A run folder. `Run.start` makes it, and the other methods write files into it atomically. Only rank 0 writes."""

    folder: Path
    process_group: ProcessGroup = field(default_factory=ProcessGroup)

    @staticmethod
    def start(folder: str | Path, about: Mapping[str, Any], resume: bool = False, process_group: ProcessGroup | None = None) -> Run:
        """Make the folder and write run.json (run-2.json, run-3.json, … when resumed): `about`, command, time, versions, machine.

        Raises:
            ConfigError: if the folder holds checkpoints and `resume` is false.
        """
        run = Run(Path(folder), process_group or ProcessGroup())
        with run.process_group.raise_on_all_ranks():
            if not resume and any((run.folder / "checkpoints").glob("samples-*")):
                raise ConfigError(
                    f"{run.folder} already holds checkpoints. Continue from them with `--resume on`, or name another run folder."
                )
        run.folder.mkdir(parents=True, exist_ok=True)
        before = len(list(run.folder.glob("run*.json"))) if resume else 0
        name = f"run-{before + 1}.json" if before else "run.json"
        allow_tf32(False)  # a training may enable it for its steps, and notes it
        about = {**about, "processes": run.process_group.size, "environment": environment()}
        run.write_json(name, {"command": shlex.join(sys.argv), "started": now(), **about})
        return run

    def note_tf32(self) -> None:
        """Write whether TF32 is enabled now into the newest run.json or run-N.json, if the folder has one."""
        files = sorted(self.folder.glob("run*.json"), key=lambda path: (len(path.name), path.name))
        if not files or not self.process_group.is_rank_zero:
            return
        try:
            found: Any = parse_json(files[-1].read_text(encoding="utf-8"), str(files[-1]))
        except (DataError, OSError, UnicodeDecodeError):
            return
        if isinstance(found, dict) and isinstance(found.get("environment"), dict):
            self.write_json(files[-1].name, {**found, "environment": {**found["environment"], "tf32": tf32()}})

    def below(self, name: str) -> Run:
        """A run in the subfolder `name`."""
        return Run(self.folder / name, self.process_group)

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file into the run folder."""
        path = self.folder / name
        return atomic.write(path, text) if self.process_group.is_rank_zero else path

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain values as JSON. NaN and infinity become null."""
        return self.write_text(name, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def log(self, values: Mapping[str, float | int]) -> None:
        """Append one line to metrics.jsonl. Raises DataError if it cannot be written, for example on a full disk."""
        if not self.process_group.is_rank_zero:
            return
        path = self.folder / "metrics.jsonl"
        require_regular(path)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(values)) + "\n")
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}). The checkpoints written so far are complete; free some disk space and "
                "continue with `--resume on`."
            ) from None

    def drop_logs_after(self, samples: int) -> None:
        """Remove lines of metrics.jsonl after `samples` samples, and an incomplete last line. A resumed run writes them again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            self.write_text(path.name, "".join(line for line in path.read_text().splitlines(True) if _told(line) <= samples))


def _finite(value: Any) -> Any:
    """Replace NaN and infinity with None; JSON has neither."""
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
    """Current time, UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """Versions and machine, which may explain later why two runs differ."""
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
        "tf32": tf32(),
    }


def code_version() -> str:
    """Git commit of the source, with `+changes` if there are uncommitted changes; the package version outside git."""
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
    """The first GPU if there is one, else the CPU. Also disables TF32."""
    allow_tf32(False)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def allow_tf32(on: bool) -> None:
    """Enable or disable TF32 for float32 matrix products and convolutions on a GPU: factors are rounded to 11 significant bits.

    TF32 is several times as fast. PyTorch's default enables it for convolutions only.
    """
    on = on and torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def tf32() -> dict[str, bool]:
    """Whether TF32 is enabled now, for float32 matrix products and for convolutions. CPUs do not use it."""
    return {"products": bool(torch.backends.cuda.matmul.allow_tf32), "convolutions": bool(torch.backends.cudnn.allow_tf32)}


def repeat_bits(on: bool) -> None:
    """Use only deterministic GPU operations. They are slower. PyTorch raises RuntimeError for an operation that has no deterministic
    version.

    Call this before the first matrix product on the GPU, because cuBLAS reads its setting only once. CPU operations are deterministic
    anyway.
    """
    on = on and torch.cuda.is_available()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if on != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler, which takes a second or two
        torch.use_deterministic_algorithms(on)


def peak_memory_gb() -> float:
    """Peak resident memory of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
