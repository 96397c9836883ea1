"""Import and export of published II-World files: lossless, strict, and without running code of the files."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iidrive.cli.main import main
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.models.iiworld import keys as iiworld_keys
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import published_file, recipes
from iidrive.pipeline.convert_iiworld import export_ii_world, import_ii_world
from iidrive.pipeline.load import load_forecaster
from iidrive.training import checkpoint

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    """Random weights of the published architecture under published names: tokenizer, world model."""
    torch.manual_seed(0)
    recipe = recipes.published()
    tokenizer = iiworld_keys.tokenizer_to_published(Tokenizer(recipe.tokenizer).state_dict())
    world = iiworld_keys.world_to_published(WorldModel(recipe.world, recipe.tokenizer.cells(), recipe.tokenizer.grid).state_dict())
    return {k: v.clone() for k, v in tokenizer.items()}, {k: v.clone() for k, v in world.items()}


def read_published(path: str | Path) -> State:
    return published_file.read_published(path).state


def saved(path: Path, value: object) -> str:
    torch.save(value, path)
    return str(path)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


def nested(world: State, tokenizer: State) -> State:
    return world | {f"vqvae.{k}": v for k, v in tokenizer.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bare", "state_dict", "module", "ema"])
def test_import_and_export_are_bit_exact(states: tuple[State, State], tmp_path: Path, form: str) -> None:
    tokenizer, world = states
    wrap = {
        "bare": lambda s: s,
        "state_dict": lambda s: {"meta": {"epoch": 24}, "state_dict": s},
        "module": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        "ema": lambda s: {"iter": 1999, "updates": 12559, "state_dict": s},
    }[form]
    one, two = saved(tmp_path / "1.pth", wrap(tokenizer)), saved(tmp_path / "2.pth", wrap(nested(world, tokenizer)))
    import_ii_world(one, two, tmp_path / "in")
    export_ii_world(tmp_path / "in", str(tmp_path / "out1.pth"), str(tmp_path / "out2.pth"))
    assert same(read_published(tmp_path / "out1.pth"), tokenizer)
    assert same(read_published(tmp_path / "out2.pth"), nested(world, tokenizer))


@pytest.mark.slow
def test_stages_are_imported_separately_and_stay_linked(states: tuple[State, State], tmp_path: Path) -> None:
    tokenizer, world = states
    one, two = saved(tmp_path / "1.pth", tokenizer), saved(tmp_path / "2.pth", world)
    assert [p.parents[1].name for p in import_ii_world(one, "", tmp_path / "a")] == ["tokenizer"]
    assert [p.parents[1].name for p in import_ii_world("", two, tmp_path / "b")] == ["world"]
    import_ii_world(one, two, tmp_path / "c")
    loaded = load_forecaster(tmp_path / "c" / "world")
    assert loaded.manifest.parent("tokenizer").fingerprint == checkpoint.read_manifest(tmp_path / "a" / "tokenizer").fingerprint
    assert torch.equal(loaded.model.tokenizer.classes, tokenizer["class_embeds.weight"])
    with pytest.raises(CheckpointError, match="names no tokenizer"):
        load_forecaster(tmp_path / "b" / "world")
    export_ii_world(tmp_path / "b", "", str(tmp_path / "out.pth"))
    assert same(read_published(tmp_path / "out.pth"), world)


@pytest.mark.slow
def test_a_world_model_brings_its_own_tokenizer_and_refuses_another(states: tuple[State, State], tmp_path: Path) -> None:
    tokenizer, world = states
    two = saved(tmp_path / "2.pth", nested(world, tokenizer))
    assert len(import_ii_world("", two, tmp_path / "a")) == 2
    other = saved(tmp_path / "1.pth", tokenizer | {"class_embeds.weight": tokenizer["class_embeds.weight"] + 1})
    with pytest.raises(LineageError, match=r"another tokenizer .* class_embeds\.weight"):
        import_ii_world(other, two, tmp_path / "b")


@pytest.mark.slow
def test_names_that_do_not_fit_are_listed(states: tuple[State, State], tmp_path: Path) -> None:
    """With the names of the published file, and before anything is written."""
    tokenizer, world = states
    lacking = {k: v for k, v in tokenizer.items() if k != "vq.embedding.weight"}
    with pytest.raises(CheckpointError, match=r"1\.pth.*missing \(1\): vq\.embedding\.weight"):
        import_ii_world(saved(tmp_path / "1.pth", lacking), "", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"unexpected.*backbone\.conv"):
        import_ii_world(saved(tmp_path / "1.pth", tokenizer | {"backbone.conv": torch.zeros(1)}), "", tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"of another shape \(1\): class_embeds\.weight \(17, 16\)"):
        import_ii_world(saved(tmp_path / "1.pth", tokenizer | {"class_embeds.weight": torch.zeros(17, 16)}), "", tmp_path / "a")
    one = saved(tmp_path / "1.pth", tokenizer)
    gone = next(iter(world))
    two = saved(tmp_path / "2.pth", {k: v for k, v in world.items() if k != gone} | {"left": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"2\.pth.*missing \(1\): {gone}; unexpected \(1\): left"):
        import_ii_world(one, two, tmp_path / "a")
    assert not (tmp_path / "a").exists()


class Trap:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap-was-sprung"),)  # type: ignore[return-value]


def test_a_file_with_code_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_published(saved(tmp_path / "1.pth", {"state_dict": {"a": torch.zeros(1)}, "optimizer": Trap()}))
    (tmp_path / "2.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        read_published(tmp_path / "2.pth")
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"hello\n", b"no pickle at all", b"PK\x03\x04 cut short"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"1\.pth"):
        read_published(tmp_path / "1.pth")


@pytest.mark.slow
def test_invalid_weights_are_named(states: tuple[State, State], tmp_path: Path) -> None:
    name, weight = "class_embeds.weight", states[0]["class_embeds.weight"]
    for value in (weight.to_sparse(), weight.to(torch.complex64), weight.to("meta")):
        with pytest.raises(CheckpointError, match=name):
            import_ii_world(saved(tmp_path / "1.pth", states[0] | {name: value}), "", tmp_path / "a")
    with pytest.raises(CheckpointError, match=rf"of another dtype \(1\): {name} torch.int64"):
        import_ii_world(saved(tmp_path / "1.pth", states[0] | {name: weight.long()}), "", tmp_path / "a")
    with pytest.raises(CheckpointError, match="found a dict of optimizer"):
        read_published(saved(tmp_path / "1.pth", {"optimizer": {"lr": 1e-4}}))


@pytest.mark.slow
def test_tensors_that_share_storage_are_imported(states: tuple[State, State], tmp_path: Path) -> None:
    first, second = "encoder.mid.block_1.norm1.weight", "encoder.mid.block_1.norm1.bias"
    tied = states[0] | {second: states[0][first]}
    import_ii_world(saved(tmp_path / "1.pth", tied), "", tmp_path / "a")
    export_ii_world(tmp_path / "a", str(tmp_path / "out.pth"), "")
    assert same(read_published(tmp_path / "out.pth"), tied)


@pytest.mark.slow
def test_only_matching_stages_are_exported(states: tuple[State, State], tmp_path: Path) -> None:
    tokenizer, world = states
    import_ii_world("", saved(tmp_path / "2.pth", nested(world, tokenizer)), tmp_path / "a")
    other = tokenizer | {"class_embeds.weight": tokenizer["class_embeds.weight"] + 1}
    import_ii_world(saved(tmp_path / "1.pth", other), "", tmp_path / "b")
    out = tmp_path / "out.pth"
    with pytest.raises(ConfigError, match="both stages would be written"):
        export_ii_world(tmp_path / "a", str(out), str(out))
    shutil.rmtree(tmp_path / "a" / "tokenizer")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        export_ii_world(tmp_path / "a", "", str(out))
    shutil.copytree(tmp_path / "b" / "tokenizer", tmp_path / "a" / "tokenizer")
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        export_ii_world(tmp_path / "a", "", str(out))
    weights = checkpoint.find(tmp_path / "b" / "tokenizer") / "weights.safetensors"
    changed = load_file(weights)
    save_file(changed | {"classes": changed["classes"] + 1}, weights)
    with pytest.raises(LineageError, match="a file was changed"):
        export_ii_world(tmp_path / "b", str(out), "")
    assert not out.exists()


@pytest.mark.slow
def test_missing_inputs_and_outputs_are_refused(states: tuple[State, State], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to import"):
        import_ii_world("", "", tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        import_ii_world(str(tmp_path / "none.pth"), "", tmp_path)
    one = saved(tmp_path / "1.pth", states[0])
    import_ii_world(one, "", tmp_path / "a")
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        import_ii_world(one, "", tmp_path / "a")


@pytest.mark.slow
def test_the_commands(states: tuple[State, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = saved(tmp_path / "1.pth", states[0])
    main(["import", "ii-world", "--stage1", one, "--out", str(tmp_path / "in")])
    assert "tokenizer" in capsys.readouterr().out
    main(["export", "ii-world", str(tmp_path / "in"), "--stage1", str(tmp_path / "out.pth")])
    assert same(read_published(tmp_path / "out.pth"), states[0])
