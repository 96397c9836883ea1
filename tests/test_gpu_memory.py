"""A GPU without enough memory: every command says what saves memory, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_gpu_training import CONFIG, made, train
from torch import Tensor

from iidrive.cli.main import _out_of_memory, main
from iidrive.core.batch import Batch
from iidrive.core.errors import IIDriveError
from iidrive.models.baselines import EgoMLP
from iidrive.runtime import distributed
from iidrive.runtime.distributed import ProcessGroup
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions
from iidrive.training.parallel import ParallelConfig


def test_out_of_memory_errors_name_options_that_save_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: EgoMLP, batch: Batch, counts: object = None) -> tuple[Tensor, dict[str, Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(EgoMLP, "loss", loss)
    expected = (
        r"too little memory for 4 samples at once.*micro_batch_size 2 \(the same.*activation_checkpointing on.*train_ego_mlp.precision bf16"
    )
    with pytest.raises(IIDriveError, match=expected):
        train(tmp_path, made())
    last = ParallelConfig(activation_checkpointing=True).out_of_memory(replace(CONFIG, precision="bf16"), "world", 1)
    assert last == "the GPU has too little memory for 1 samples at once. Use one of: a GPU with more memory."
    with pytest.raises(torch.OutOfMemoryError), distributed._connected(ProcessGroup(0, 2)):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_out_of_memory_in_a_validation_keeps_the_training(tmp_path: Path) -> None:
    def validate() -> tuple[dict[str, float], str]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    config = replace(CONFIG, validate_every=8)
    with pytest.raises(IIDriveError, match=r"to validate after 8 samples\. The training so far is saved: .*train_ego_mlp.validate_every 0"):
        train(tmp_path / "cut", made(), config, validate=validate)
    assert checkpoint.read_manifest(tmp_path / "cut").samples_seen == 8
    resumed = train(tmp_path / "cut", made(), config, options=RunOptions(resume="on"))
    whole = train(tmp_path / "whole", made(), config)
    one, other = (checkpoint.load_tensors(path, "training.safetensors") for path in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (
            ("train", "tokenizer", "--run", "RUN"),
            "--parallel.micro_batch_size 1 (the same result, slower); --parallel.activation_checkpointing on",
        ),
        (("tokens", "RUN", "--out", "OUT"), "end other programs on this GPU (nvidia-smi lists them); CUDA_VISIBLE_DEVICES= "),
        (("drive", "still"), "--scene NAME (one scene at once); end other programs"),
    ],
)
def test_every_command_out_of_memory_says_what_saves_memory(
    arguments: tuple[str, ...], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planted(*given: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 GiB of which 15.81 MiB is free. Process 7 has"
        )

    monkeypatch.setattr("iidrive.cli.parser.call", planted)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    name = " ".join(arguments[: 2 if arguments[0] == "train" else 1])
    begin = (
        f"iidrive: the GPU has too little memory for `iidrive {name}` (Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 GiB"
    )
    assert told.startswith(begin)
    assert f"15.81 MiB is free). Use one of: {advice}" in told
    assert told.endswith("a GPU with more memory.\n")
    assert _out_of_memory("iidrive audit", torch.OutOfMemoryError("")).startswith(
        "the GPU has too little memory for `iidrive audit`. Use one of: --s"
    )
