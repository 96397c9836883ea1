"""Checkpoints: atomic writing, strict loading, damaged files, lineage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.core.lineage import Lineage
from iidrive.pipeline.recipes import RECIPES, Recipe, named
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest, Parent

MANIFEST = Manifest("world", "bb", {"width": 4}, 8, "code", {"name": "town"}, parents=(Parent("tokenizer", "/there", "aa"),))

ENTRY = {"kind": "tokenizer", "source": "town", "seed": 0, "split": "train"}


def test_round_trip(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    path = checkpoint.save(tmp_path / "checkpoints" / "samples-000000008", MANIFEST, weights, {"x": torch.ones(1)})
    assert checkpoint.find(tmp_path) == path
    found = checkpoint.read_manifest(tmp_path)
    assert sorted(found.files) == ["training.safetensors", "weights.safetensors"]
    assert replace(found, files={}) == MANIFEST
    checkpoint.verify_checksums(path)
    loaded = checkpoint.load_tensors(tmp_path)
    assert all(torch.equal(loaded[k], weights[k]) for k in weights)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    for n in (8, 16):
        checkpoint.save(tmp_path / "checkpoints" / f"samples-{n:09d}", replace(MANIFEST, samples_seen=n), {"a": torch.ones(1)})
    assert checkpoint.read_manifest(tmp_path).samples_seen == 16
    checkpoint.remove(checkpoint.find(tmp_path))
    assert checkpoint.read_manifest(tmp_path).samples_seen == 8


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.find(tmp_path)
    path = checkpoint.save(tmp_path / "c", MANIFEST, {"a": torch.ones(100)})
    file = path / "weights.safetensors"
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: a file of a checkpoint; give its folder, .*c\.$"):
        checkpoint.find(file)
    whole = file.read_bytes()
    file.write_bytes(checkpoint.LFS_POINTER + b".github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: a Git LFS pointer.*git lfs pull"):
        checkpoint.load_tensors(path)
    file.write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: damaged"):
        checkpoint.load_tensors(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged manifest"):
        checkpoint.read_manifest(path)
    (path / "manifest.json").write_text(json.dumps({"kind": "pickle"}))
    with pytest.raises(CheckpointError, match="damaged manifest"):
        checkpoint.read_manifest(path)


def test_what_a_manifest_says_is_sealed(tmp_path: Path) -> None:
    """Data, marks and metrics stand outside the fingerprint, and where a parent lies stands outside the seal."""
    path = checkpoint.save(tmp_path / "c", replace(MANIFEST, marks=("MARK",), metrics={"mIoU": 0.5}), {"a": torch.ones(1)})
    file = path / "manifest.json"
    whole = json.loads(file.read_text())
    for change in (
        {"marks": []},
        {"data": {"name": "nuscenes"}},
        {"metrics": {"mIoU": 0.9}},
        {"about": {"trained_on": []}, "seal": "0" * 16},
    ):
        file.write_text(json.dumps({**whole, **change}))
        with pytest.raises(CheckpointError, match=r"manifest\.json: was changed after it was written"):
            checkpoint.read_manifest(path)
    file.write_text(json.dumps({**whole, "parents": [{**whole["parents"][0], "path": "/elsewhere"}]}))
    assert checkpoint.read_manifest(path).parents[0].path == "/elsewhere"
    file.write_text(json.dumps({key: value for key, value in whole.items() if key != "seal"}))  # as it was before there were seals
    assert checkpoint.read_manifest(path).marks == ("MARK",)
    checkpoint.amend(path, {"IoU": 0.7})
    assert checkpoint.read_manifest(path).metrics == {"mIoU": 0.5, "IoU": 0.7}
    assert "seal" in json.loads(file.read_text())


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("about", {"trained_on": [5]}, "trained_on must be a list of entries"),
        ("about", {"trained_on": [{"source": "town"}]}, "an entry of trained_on has no valid 'kind'"),
        ("about", {"trained_on": [ENTRY | {"seed": [1]}]}, "no valid 'seed'"),
        ("about", {"trained_on": [ENTRY | {"share": "x"}]}, "no valid 'share'"),
        ("about", {"trained_on": [ENTRY | {"scenes": [1]}]}, "scenes of trained_on must be names"),
        ("about", {"changes": [{"samples": 2}]}, "an entry of changes has no valid 'field'"),
        ("about", {"town": [1]}, "town must hold settings"),
        ("data", {"sources": {"a": 1}}, "sources must be a list of entries"),
        ("metrics", {"tokens_mIoU": "0.9"}, "the metric tokens_mIoU must be a number"),
        ("metrics", {"best": {"samples": 8}}, "an entry of metrics has no valid 'name'"),
    ],
)
def test_facts_that_commands_read_have_a_type(part: str, value: dict[str, Any], message: str, tmp_path: Path) -> None:
    """In manifests without a seal too, as older versions wrote them."""
    path = checkpoint.save(tmp_path / "x", MANIFEST, {"a": torch.ones(1)})
    whole = json.loads((path / "manifest.json").read_text())
    del whole["seal"]
    (path / "manifest.json").write_text(json.dumps(whole | {part: value}))
    with pytest.raises(CheckpointError, match=rf"manifest\.json: damaged manifest \(.*{message}"):
        checkpoint.read_manifest(path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_checkpoint_without_a_file_of_weights_is_named(folder: bool, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "x", MANIFEST, {"a": torch.ones(1)})
    (path / "weights.safetensors").unlink()
    if folder:
        (path / "weights.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=rf"weights\.safetensors is {'a folder' if folder else 'missing'}"):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["9" * 5000, "a\0b", ""])
def test_names_that_no_system_allows_are_names_of_nothing(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "x", MANIFEST, {"a": torch.ones(1)})
    assert checkpoint.moved(name, path) == Path(name)
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.find(tmp_path / f"{name}y")


def test_weights_must_match_the_architecture() -> None:
    module = nn.Linear(2, 3)
    with pytest.raises(
        CheckpointError, match=r"missing \(1\): bias; unexpected \(1\): b; of another shape \(1\): weight \(2, 2\) for \(3, 2\)"
    ):
        checkpoint.load_weights(module, {"weight": torch.ones(2, 2), "b": torch.ones(3)}, "here")


def test_fingerprints_follow_weights_architecture_and_parents() -> None:
    weights = {"a": torch.arange(6.0)}
    mark = checkpoint.fingerprint({"w": 1}, weights)
    assert mark == checkpoint.fingerprint({"w": 1}, {"a": torch.arange(6.0)})
    changed = torch.arange(6.0)
    changed[5] += 1e-6
    marks = {
        mark,
        checkpoint.fingerprint({"w": 2}, weights),
        checkpoint.fingerprint({"w": 1}, {"a": changed}),
        checkpoint.fingerprint({"w": 1}, {"b": weights["a"]}),
        checkpoint.fingerprint({"w": 1}, weights, (Parent("tokenizer", "", "zz"),)),
    }
    assert len(marks) == 5


def test_mismatched_parents_are_refused() -> None:
    assert checkpoint.require_parent(MANIFEST, "tokenizer", Lineage("tokenizer", "aa"), "w") == ()
    with pytest.raises(LineageError, match="trained on tokenizer aa, but tokenizer cc was given"):
        checkpoint.require_parent(MANIFEST, "tokenizer", Lineage("tokenizer", "cc"), "w")
    with pytest.raises(CheckpointError, match="names no world"):
        MANIFEST.parent("world")
    with pytest.raises(CheckpointError, match="expected a planner, found a world"):
        checkpoint.require_kind(MANIFEST, "planner", "w")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    recipe = named(name)
    assert from_plain(Recipe, json.loads(json.dumps(to_plain(recipe))), "recipe") == recipe


def test_config_errors_name_the_field() -> None:
    plain = to_plain(named("tiny"))
    with pytest.raises(ConfigError, match="Did you mean 'world'"):
        from_plain(Recipe, {**plain, "wrld": {}}, "r")
    with pytest.raises(ConfigError, match=r"r\.world\.width: expected int, found 'wide'"):
        from_plain(Recipe, {**plain, "world": {**plain["world"], "width": "wide"}}, "r")
    with pytest.raises(ConfigError, match=r"r\.world\.norm"):
        from_plain(Recipe, {**plain, "world": {**plain["world"], "norm": "layer"}}, "r")
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        named("smal")
