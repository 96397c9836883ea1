"""Weight files of other tools: every naming scheme gives the same tensors, and choices are reported."""

from __future__ import annotations

import argparse
import collections
import datetime
import subprocess
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import fails
from torch import Tensor

from iidrive.cli.main import main
from iidrive.core.errors import CheckpointError
from iidrive.models.iiworld import keys as iiworld_keys
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.convert_iiworld import import_ii_world
from iidrive.pipeline.published_file import read_published
from iidrive.training import checkpoint

State = dict[str, Tensor]
KNOWN = ("encoder.conv_in.weight", "encoder.mid.attn_1.proj_out.bias", "vqvae.encoder.conv_in.weight", "norm.num_batches_tracked")
BASE: State = {name: torch.arange(4.0) + 10 * k for k, name in enumerate(KNOWN[:3])} | {KNOWN[3]: torch.tensor(5)}
EMA: State = {name: BASE[name] + 0.5 for name in KNOWN[:3]}
NOT_AVERAGED: State = {KNOWN[3]: BASE[KNOWN[3]]}


def renamed(change: Callable[[str], str], state: State = BASE) -> State:
    return {change(name): value for name, value in state.items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def saved(path: Path, value: object, **how: Any) -> Path:
    torch.save(value, path, **how)
    return path


FORMS: dict[str, Any] = {
    "bare": BASE,
    "state_dict": {"state_dict": BASE, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
    "model": {"model": BASE, "epoch": 3},
    "model_state_dict": {"model_state_dict": BASE, "optimizer_state_dict": {}},
    "deepspeed": {"module": BASE, "global_steps": 7},
    "nested containers": {"model": {"state_dict": BASE}, "iter": 1},
    "beside numbers": {**BASE, "epoch": 3, "name": "x", "score": np.float64(0.5)},
    "ddp": renamed(lambda n: f"module.{n}"),
    "compiled": renamed(lambda n: f"_orig_mod.{n}"),
    "ddp of compiled": renamed(lambda n: f"module._orig_mod.{n}"),
    "compiled ddp": renamed(lambda n: f"_orig_mod.module.{n}"),
    "lightning": {"state_dict": renamed(lambda n: f"model.{n}"), "pytorch-lightning_version": "2.4", "callbacks": {}},
    "lightning, compiled": {"state_dict": renamed(lambda n: f"model._orig_mod.{n}")},
    "part of it wrapped": renamed(lambda n: f"module.{n}" if n.startswith("encoder") else n),
    "wrapped inside": renamed(lambda n: n.replace("encoder.", "encoder.module.").replace("attn_1.", "attn_1._orig_mod.")),
    "fsdp": renamed(lambda n: f"_fsdp_wrapped_module.{n.replace('mid.', 'mid._checkpoint_wrapped_module.')}"),
    "the same twice": {**BASE, "module.encoder.conv_in.weight": BASE["encoder.conv_in.weight"].clone()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_naming_scheme_gives_the_same_model(form: str, tmp_path: Path) -> None:
    found = read_published(saved(tmp_path / "w.pth", FORMS[form]), KNOWN)
    assert same(found.state, BASE)
    assert not found.notes
    assert not found.averaged


def test_old_files_and_safetensors(tmp_path: Path) -> None:
    assert same(read_published(saved(tmp_path / "w.pth", {"state_dict": BASE}, _use_new_zipfile_serialization=False), KNOWN).state, BASE)
    save_file(renamed(lambda n: f"module.{n}"), tmp_path / "w.safetensors")
    assert same(read_published(tmp_path / "w.safetensors", KNOWN).state, BASE)
    eight = {"state_dict": {name: value.to(torch.float8_e4m3fn) for name, value in EMA.items()}}
    assert same(read_published(saved(tmp_path / "8.pth", eight), KNOWN).state, eight["state_dict"])
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match=r"script\.pt: a TorchScript program"):
        read_published(tmp_path / "script.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a file of weights"):
        read_published(tmp_path / "bad.safetensors")


BESIDE: dict[str, Any] = {
    "mmcv": {"state_dict": BASE | renamed(lambda n: "ema_" + n.replace(".", "_"), EMA)},
    "mmcv, ddp": {"state_dict": BASE | renamed(lambda n: "ema_module_" + n.replace(".", "_"), EMA)},
    "mmengine": {"state_dict": BASE, "ema_state_dict": renamed(lambda n: f"module.{n}", EMA) | {"steps": torch.tensor(9)}},
    "timm": {"state_dict": BASE, "state_dict_ema": EMA},
    "model_ema": {"model": BASE, "model_ema": {"module": EMA, "decay": 0.999}},
    "without dots": {
        "state_dict": BASE
        | renamed(lambda n: "model_ema." + n.replace(".", ""), EMA)
        | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(3)}
    },
    "ema_model": {
        "state_dict": renamed(lambda n: f"online_model.{n}")
        | renamed(lambda n: f"ema_model.{n}", EMA)
        | {"ema_model.steps": torch.tensor(1)}
    },
}


@pytest.mark.parametrize("form", BESIDE)
def test_an_average_beside_the_weights_is_reported_and_can_be_chosen(form: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", BESIDE[form])
    for choice in ("", "off"):
        found = read_published(path, KNOWN, choice)
        assert same(found.state, BASE)
        assert not found.averaged
        assert "the file also has a moving average (EMA) of 3 tensors: --ema on uses it" in found.notes[0]
    found = read_published(path, KNOWN, "on")
    assert found.averaged
    assert same(found.state, EMA | NOT_AVERAGED)
    assert "1 tensors have no moving average; used their weights" in found.notes[1]


@pytest.mark.parametrize("value", [{"ema": EMA}, renamed(lambda n: f"module.{n}", EMA) | {"n_averaged": torch.tensor(9)}])
def test_an_average_alone_is_used_and_reported(value: object, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", value)
    for choice in ("", "on"):
        found = read_published(path, KNOWN, choice)
        assert found.averaged
        assert same(found.state, EMA)
        assert "used the moving average (EMA) of 3 tensors" in found.notes[0]
    with pytest.raises(CheckpointError, match="only a moving average of the weights"):
        read_published(path, KNOWN, "off")


def test_missing_or_ambiguous_weights_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", BASE)
    with pytest.raises(CheckpointError, match=r"w\.pth: holds no moving average"):
        read_published(path, KNOWN, "on")
    for value, message in (
        ({"model": BASE, "net": EMA}, r"holds weights under several keys \(model, net\)"),
        ({"state_dict": BASE, "ema": EMA, "model_ema": EMA}, "holds a moving average under several keys"),
        ({**BASE, "module.encoder.conv_in.weight": torch.zeros(4)}, "both mean encoder.conv_in.weight, but their values differ"),
        ({"state_dict": {name: value.numpy() for name, value in BASE.items()}}, r"its weights are not tensors \(NumPy arrays\?\)"),
        ({"state_dict": BASE | {"encoder.conv_in.weight": torch.tensor([1.0, float("nan")])}}, r"1 tensors hold NaN or infinity \(encoder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_published(saved(path, value), KNOWN)


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [
        ("lightning_fabric.utilities.data", "AttributeDict", dict),
        ("pytorch_lightning.utilities.parsing", "AttributeDict", dict),
        ("omegaconf.dictconfig", "DictConfig", object),
    ],
)
def test_configs_of_frameworks_stand_beside_weights(
    module: str, name: str, base: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = types.ModuleType(module)
    config = type(name, (base,), {"__module__": module})
    setattr(made, name, config)
    for parent in (module.split(".")[0], module.rpartition(".")[0]):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, made)
    value = config()
    value.lr = 0.1
    path = saved(tmp_path / "m.ckpt", {"state_dict": renamed(lambda n: f"model.{n}"), "hyper_parameters": value, "id": uuid.uuid4()})
    assert same(read_published(path, KNOWN).state, BASE)


def test_a_file_is_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    save_file(BASE, tmp_path / "m.pth", metadata={"format": "pt"})
    saved(tmp_path / "m.safetensors", BASE)
    for name in ("m.pth", "m.safetensors"):
        assert same(read_published(tmp_path / name, KNOWN).state, BASE)


def test_what_stands_beside_the_weights_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's scalars and arrays, containers and a library's objects in `meta`; of the library nothing need be installed."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = buffer  # type: ignore[attr-defined]
    log = buffer()
    log.history = np.arange(3.0)  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    meta = {
        "best": np.float64(0.4),
        "step": np.int64(3),
        "good": np.bool_(True),
        "array": np.arange(6.0).reshape(2, 3),
        "table": collections.defaultdict(list, {"a": [1]}),
        "queue": collections.deque([1, 2]),
        "set": {1, 2},
        "range": range(3),
        "chain": collections.ChainMap({"a": 1}),
        "ordered": collections.OrderedDict(a=1),
        "args": argparse.Namespace(lr=1e-4, out=Path("x")),
        "when": datetime.datetime(2025, 8, 1),
        "log": log,
    }
    paths = [
        saved(tmp_path / f"{old}.pth", {"meta": meta, "state_dict": BASE}, _use_new_zipfile_serialization=old) for old in (True, False)
    ]
    monkeypatch.undo()
    for path in paths:
        assert same(read_published(path, KNOWN).state, BASE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "a web page, not weights"),
        (b"\n<HTML>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\x1f\x8b\x08 packed", "a compressed archive"),
        (b"", "an empty file"),
    ],
)
def test_other_kinds_of_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "w.pth")
    np.savez(tmp_path / "w.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"a zip archive that holds a\.npy"):
        read_published(tmp_path / "w.npz")
    with pytest.raises(CheckpointError, match="a folder, not a file"):
        read_published(tmp_path)


@pytest.fixture(scope="module")
def stages() -> tuple[State, State]:
    """Random weights of the published architecture under published names: tokenizer, world model."""
    torch.manual_seed(0)
    recipe = recipes.published()
    tokenizer = iiworld_keys.tokenizer_to_published(Tokenizer(recipe.tokenizer).state_dict())
    world = iiworld_keys.world_to_published(WorldModel(recipe.world, recipe.tokenizer.cells(), recipe.tokenizer.grid).state_dict())
    return {k: v.clone() for k, v in tokenizer.items()}, {k: v.clone() for k, v in world.items()}


@pytest.mark.slow
def test_a_file_of_the_other_stage_is_refused(stages: tuple[State, State], tmp_path: Path) -> None:
    one, two = saved(tmp_path / "1.pth", renamed(lambda n: f"module.{n}", stages[0])), saved(tmp_path / "2.pth", stages[1])
    inside = saved(tmp_path / "3.pth", stages[1] | renamed(lambda n: f"vqvae.{n}", stages[0]))
    alone = saved(tmp_path / "4.pth", renamed(lambda n: f"vqvae.{n}", stages[0]))
    ours = saved(tmp_path / "5.pth", iiworld_keys.tokenizer_from_published(stages[0]))
    for first, second, message in (
        ("", one, r"1\.pth: this is a stage 1 file \(the scene tokenizer\): give it with --stage1\.$"),
        (two, "", r"2\.pth: this is a stage 2 file \(the world model\): give it with --stage2\.$"),
        (inside, "", r"3\.pth: this is a stage 2 file \(the world model, and its tokenizer in it\)"),
        (alone, "", r"4\.pth: its tokenizer is nested"),
        (ours, "", r"5\.pth: these weights have iidrive's own names"),
    ):
        with pytest.raises(CheckpointError, match=message):
            import_ii_world(str(first), str(second), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_half_precision_and_another_codebook(stages: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision gives the same numbers, rounded; the number of codes is taken from the file and reported."""
    codebook = torch.randn(300, 128)
    state = {name: value.to(torch.bfloat16) for name, value in stages[0].items()} | {"vq.embedding.weight": codebook.half()}
    path = saved(tmp_path / "1.pth", {"model": renamed(lambda n: f"_orig_mod.module.{n}", state)})
    main(["import", "ii-world", "--stage1", str(path), "--out", str(tmp_path / "in")])
    assert "note: " + str(path) + ": its codebook has 300 codes (published: 512)." in capsys.readouterr().out.replace("\n", "")
    found = checkpoint.read(tmp_path / "in" / "tokenizer")
    assert found.manifest.architecture["quantiser"]["codes"] == 300
    weights = found.weights()
    assert torch.equal(weights["quantiser.codebook"], codebook.half())
    name = "encoder.conv_in.weight"
    assert torch.equal(weights[name].float(), stages[0][name].bfloat16().float())
    assert torch.equal(weights[name].float(), state[name].float())


@pytest.mark.slow
def test_the_command_can_choose_the_ema(stages: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average = {name: value + 1 for name, value in stages[0].items()}
    path = saved(tmp_path / "1.pth", {"state_dict": stages[0] | renamed(lambda n: "ema_" + n.replace(".", "_"), average)})
    command = ["import", "ii-world", "--stage1", str(path), "--out"]
    main([*command, str(tmp_path / "a"), "--ema", "on"])
    assert "used the moving average (EMA) of 308 tensors, not the weights beside it" in capsys.readouterr().out.replace("\n", " ")
    found = checkpoint.read(tmp_path / "a" / "tokenizer")
    assert torch.equal(found.weights()["classes"], average["class_embeds.weight"])
    assert found.manifest.about["ema"] is True
    main([*command, str(tmp_path / "b")])
    assert torch.equal(checkpoint.read(tmp_path / "b" / "tokenizer").weights()["classes"], stages[0]["class_embeds.weight"])
    path = saved(tmp_path / "2.pth", stages[0])
    assert "Convert II-World's weights (.pth) with `iidrive import ii-world`" in fails(capsys, "evaluate", str(path))
    assert "holds no moving average" in fails(capsys, *command[:3], str(path), "--ema", "on", "--out", str(tmp_path / "c"))


# ------------------------------------------------------------------------------------------------------------------ from the field

_MAKE = """
import runpy, sys, types
import iidrive, iidrive.models
from iidrive.models.iiworld import keys
from iidrive.pipeline import recipes
iidrive.models.upstream = sys.modules["iidrive.models.upstream"] = keys
iidrive.recipes = types.SimpleNamespace(published=recipes.tiny)
script, sys.argv = sys.argv[1], ["make.py", sys.argv[2]]
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.slow
def test_inputs_of_the_field(shared: Path, tmp_path: Path) -> None:
    """What mmcv, mmengine, DDP, torch.compile and EMA hooks left: one set of numbers, or what the file is. The same script, with a small model."""
    make = shared / "fixtures" / "field" / "ckpt" / "make.py"
    subprocess.run([sys.executable, "-c", _MAKE, str(make), str(tmp_path)], check=True)
    base = torch.load(tmp_path / "c01_mmcv.pth", weights_only=True)["state_dict"]
    known = tuple(base)
    for name in ("c01_mmcv", "c02_best_score", "c03_emahook", "c04_mmengine", "c05_compiled", "c05b_module_some", "c05c_model_prefix"):
        assert same(read_published(tmp_path / f"{name}.pth", known).state, base), name
    for name in ("c07_model_key", "c08_old_format"):
        assert same(read_published(tmp_path / f"{name}.pth", known).state, base), name
    found = read_published(tmp_path / "c03_emahook.pth", known, "on")
    assert found.averaged
    assert same(found.state, base)  # the script's average is the weights
    half = read_published(tmp_path / "c09_half.pth", known).state
    assert all(torch.equal(half[name], value.half() if value.is_floating_point() else value) for name, value in base.items())
    assert read_published(tmp_path / "c06_codes1024.pth", known).state["vq.embedding.weight"].shape[0] == 1024
    assert read_published(tmp_path / "c12_extra_loss.pth", known).state.keys() - base.keys() == {"focal_loss.weight", "num_batches_tracked"}
    for name, message in (("c10_html", "a web page, not weights"), ("c11_cut", "not a file of weights, or damaged")):
        with pytest.raises(CheckpointError, match=message):
            read_published(tmp_path / f"{name}.pth", known)
    with pytest.raises(CheckpointError, match=r"have more values than the file holds \(strides of 0\)"):
        read_published(shared / "fixtures" / "field" / "fuzz" / "t23-pth-stride-0.pth")


@pytest.mark.parametrize("end", [0.3, 0.6, 0.9, 0.99])
def test_a_zip_of_weights_that_was_cut_is_one_sentence(end: float, tmp_path: Path) -> None:
    whole = saved(tmp_path / "m.pth", {"state_dict": BASE}).read_bytes()
    marked = bytearray(whole)
    marked[whole.rindex(b"PK\x01\x02")] ^= 1  # the archive's list of files
    for content in (whole[: int(end * len(whole))], bytes(marked)):
        (tmp_path / "m.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a file of weights, or damaged"):
            read_published(tmp_path / "m.pth", KNOWN)
