"""Starting several processes with --devices, torchrun on one or two nodes, and SLURM: same weights, and clear messages after a signal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iidrive.core.errors import ConfigError
from iidrive.runtime.distributed import join, started
from iidrive.training import checkpoint

PYTHON = [sys.executable, "-m"]
TRAIN = ["iidrive", "train", "tokenizer", "--recipe", "tiny", "--recipe.town.train_scenes", "2", "--recipe.town.keyframes", "14"]
TRAIN += ["--recipe.train_tokenizer.samples", "8", "--recipe.train_tokenizer.save_every", "2"]


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(*commands: list[str], **variables: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Run commands at the same time, each with its own values of some environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))} | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            command, env=environment | {k: v[i] for k, v in variables.items()}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i, command in enumerate(commands)
    ]
    out = [process.communicate(timeout=300) for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, *texts) for p, texts in zip(processes, out, strict=True)]


@pytest.mark.slow
def test_every_way_to_start_two_processes_gives_the_same_weights(tmp_path: Path) -> None:
    torchrun = [*PYTHON, "torch.distributed.run"]
    port = free_port()
    nodes = [
        *torchrun,
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{port}",
        "--rdzv-id",
        "x",
    ]
    ends = [
        *run([*PYTHON, *TRAIN, "--out", str(tmp_path / "devices"), "--devices", "2"]),
        *run([*torchrun, "--nproc-per-node", "2", "-m", *TRAIN, "--out", str(tmp_path / "torchrun")]),
        *run(*[[*nodes, "-m", *TRAIN, "--out", str(tmp_path / "nodes")]] * 2),
        *run(
            *[[*PYTHON, *TRAIN, "--out", str(tmp_path / "slurm")]] * 2,
            SLURM_PROCID=["0", "1"],
            SLURM_LOCALID=["0", "0"],
            SLURM_NODEID=["0", "1"],
            SLURM_NTASKS=["2", "2"],
            SLURM_NTASKS_PER_NODE=["1", "1"],
            SLURM_NNODES=["2", "2"],
            SLURM_JOB_NAME=["train", "train"],
            SLURM_JOB_ID=["1", "1"],
            SLURM_NODELIST=["127.0.0.1", "127.0.0.1"],
            MASTER_ADDR=["127.0.0.1", "127.0.0.1"],
            MASTER_PORT=[str(free_port())] * 2,
        ),
    ]
    assert [end.returncode for end in ends] == [0] * 6, [end.stderr[-2000:] for end in ends]
    marks = {name: checkpoint.read_manifest(tmp_path / name).fingerprint for name in ("devices", "torchrun", "nodes", "slurm")}
    assert len(set(marks.values())) == 1, marks
    assert sum(end.stdout.count("next: iidrive train world") for end in ends) == 4, "one process per job prints"


@pytest.mark.slow
def test_a_stopped_job_saves_and_a_killed_process_is_named(tmp_path: Path) -> None:
    long = [*PYTHON, *TRAIN, "--recipe.train_tokenizer.samples", "4000", "--devices", "2", "--out"]
    for name, status, said in (("stopped", 143, "stopped by SIGTERM after"), ("killed", 137, "was killed by SIGKILL")):
        task = subprocess.Popen([*long, str(tmp_path / name)], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        limit = time.monotonic() + 120
        while not checkpoint.newest_first(tmp_path / name) and time.monotonic() < limit:
            time.sleep(0.05)
        if name == "stopped":
            task.send_signal(signal.SIGTERM)
        else:
            ranks = subprocess.run(["pgrep", "-P", str(task.pid)], capture_output=True, text=True, check=True).stdout.split()
            os.kill(int(ranks[-1]), signal.SIGKILL)
        _, errors = task.communicate(timeout=120)
        assert task.returncode == status, errors
        assert errors.count(said) == 1, errors
        checkpoint.verify_checksums(checkpoint.find(tmp_path / name))


def test_devices_must_match_the_number_of_started_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert started() == (4, 2)
    with pytest.raises(ConfigError, match=r"--devices 2, but torchrun or SLURM started 4 processes per machine"):
        join(2)
