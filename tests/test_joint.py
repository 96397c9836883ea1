"""Several sources in one training: which sample comes when, what mixed batches hold, and what the models say they were trained on."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_scene import straight_scene
from tiny_av2 import make as make_av2
from tiny_nuscenes import edit, make
from together import run_together, start

from iidrive.analysis import lineage_of
from iidrive.cli.main import main
from iidrive.core.classes import OCC_CLASSES
from iidrive.core.errors import CheckpointError, ConfigError, DataError, LineageError
from iidrive.data import Data, opened, parse
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, Mixture, OccupancyFrames, keyframes, read_tracks
from iidrive.data.joint import Joint, mixture, tracks_of, values_by_source
from iidrive.data.source import Source
from iidrive.pipeline import recipes, token_check
from iidrive.pipeline.manifests import start_from
from iidrive.pipeline.testset import trained_here, trained_on
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.pipeline.train import class_counts, train_ego_mlp, train_planner, train_tokenizer, train_world
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions

TOWN = replace(recipes.tiny().town, train_scenes=2, test_scenes=1, keyframes=12)
RECIPE = replace(recipes.tiny(), town=TOWN, shares={"town": 1.0, "nuscenes": 3.0})
SPLIT = "town=train,nuscenes=all"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny scenes of nuScenes, as `opened_in` reads them."""
    return make(tmp_path_factory.mktemp("joint"), keyframes=12)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def opened_in(folder: Path) -> Source:
    """Two tiny towns and two tiny scenes of nuScenes."""
    return opened((Data(), Data("nuscenes", str(folder))), TOWN)


@pytest.fixture(scope="module")
def joint(folder: Path) -> Source:
    return opened_in(folder)


@cache
def straight(length: int, name: str) -> EgoTrack:
    return replace(EgoTrack.of(straight_scene(length)), name=name)


def mixed(shares: tuple[float, ...] = ()) -> ClipDataset:
    """6 samples of source a in rows 0 to 5, then 2 of source b."""
    return ClipDataset([straight(12, "a"), straight(8, "b")], ClipSpec(past=1), mixture=Mixture(("a", "b"), (0, 1), shares))


def test_shares_are_kept_in_every_pass() -> None:
    """3 to 1 of 8 samples: 6 of a and 2 of b; 1 to 1: 4 of each, so that b's two samples come twice a pass and a's six take a pass and a half."""
    assert mixed((3.0, 1.0)).drawn == (6, 2)
    even = mixed((1.0, 1.0))
    assert even.drawn == (4, 4)
    rows = even.order(seed=5, start=0, count=24)
    for k in range(3):
        found = Counter(rows[8 * k : 8 * k + 8].tolist())
        assert found[6] == found[7] == 2
    assert sorted(row for row in rows.tolist() if row < 6) == sorted([0, 1, 2, 3, 4, 5] * 2), "12 draws: each of the six samples twice"
    of_a = [row for row in rows.tolist() if row < 6]
    assert sorted(of_a[:6]) == list(range(6)), "none a second time before all came once"


def test_without_shares_every_sample_comes_once_a_pass() -> None:
    rows = mixed().order(seed=1, start=0, count=16)
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(8))
    assert not np.array_equal(rows[:8], rows[8:])


@pytest.mark.parametrize("shares", [(), (1.0, 1.0), (1.0, 5.0)])
def test_the_order_follows_from_seed_and_place_alone(shares: tuple[float, ...]) -> None:
    whole = mixed(shares).order(3, 0, 48)
    for size in (1, 3, 8):
        pieces = np.concatenate([mixed(shares).order(3, first, size) for first in range(0, 48, size)])
        np.testing.assert_array_equal(pieces, whole)
    assert not np.array_equal(mixed(shares).order(4, 0, 48), whole)


def test_a_small_share_is_not_lost() -> None:
    """The rest after whole numbers goes where it is missed most; a source with a share has one sample of a pass at least."""
    assert Mixture(("a", "b"), (), (1e-6, 1.0)).drawn((50, 50)) == (1, 99)
    assert Mixture(("a", "b", "c"), (), (1.0, 1.0, 1.0)).drawn((4, 3, 3)) == (4, 3, 3)
    assert Mixture(("a", "b", "c"), (), (1.0, 1.0, 1e-9)).drawn((1, 1, 1)) == (1, 1, 1)


def test_one_source_has_the_order_it_always_had() -> None:
    alone = ClipDataset([straight(12, "a")], ClipSpec(past=1))
    expected = np.concatenate([np.random.default_rng([9, k]).permutation(6) for k in (0, 1)])
    np.testing.assert_array_equal(alone.order(9, 0, 12), expected)


def test_a_source_without_samples_is_named() -> None:
    with pytest.raises(DataError, match="no sample of b fits"):
        ClipDataset([straight(12, "a"), straight(4, "b")], ClipSpec(past=1), mixture=Mixture(("a", "b"), (0, 1)))


def test_splits_of_several_sources(joint: Source) -> None:
    assert isinstance(joint, Joint)
    assert joint.usual_split("train") == "town=train,nuscenes=mini_train"
    assert joint.completed("nuscenes=all", "train") == SPLIT
    assert joint.scene_names(SPLIT) == ("town-train-00000", "town-train-00001", "scene-0103", "scene-0916")
    with pytest.raises(ConfigError, match="town: unknown split 'mini_val'"):
        joint.scene_names("mini_val")
    with pytest.raises(ConfigError, match=r"give every source its split, as in --split town=SPLIT,nuscenes=SPLIT"):
        joint.scene_names("town=train")
    with pytest.raises(ConfigError, match=r"unknown source 'nuscene'\. Did you mean 'nuscenes'"):
        joint.scene_names("town=train,nuscene=all")
    with pytest.raises(DataError, match="unknown scene 'scene-9'"):
        joint.scene("scene-9")


def test_the_weakest_stands_for_all_and_each_says_its_own(joint: Source) -> None:
    assert (joint.name, joint.command_source, joint.occupancy_source) == ("town+nuscenes", "oracle", "derived")
    sources: Any = json.loads(json.dumps(joint.identity()))["sources"]
    assert [(one["source"], one["occupancy"], one["command"]) for one in sources] == [
        ("town", "labels", "route"),
        ("nuscenes", "derived", "oracle"),
    ]
    assert all(sentence.startswith("nuscenes: ") for sentence in joint.missing())


def test_a_mixed_batch_holds_what_each_source_gives(joint: Source) -> None:
    """Fields of a sample are those that its source alone would give; a moment after a scene's end has nothing that is known."""
    tracks = read_tracks(joint, SPLIT)
    spec = RECIPE.tokenizer.grid
    frames, labels = OccupancyFrames(joint, spec, keyframes(tracks)), FlowTargets(joint, spec)
    clips = ClipDataset(tracks, ClipSpec(full_future=False), frames, future=True, labels=labels, mixture=mixture(joint, tracks, {}))
    assert list(map(len, clips.groups)) == [24, 24]
    batch = clips.batch([3, 27, 35])
    for k, row in enumerate((3, 27, 35)):
        track, index = clips.samples[row]
        source = joint.sources[row // 24]  # pyright: ignore[reportAttributeAccessIssue]
        scene = source.scene(tracks[track].name)
        assert batch.inputs.occupancy is not None
        np.testing.assert_array_equal(batch.inputs.occupancy[k, -1], source.occupancy(scene, index, spec).semantics)
        assert batch.inputs.command[k] == scene.keyframes[index].command.index
        assert batch.inputs.tokens[k] == scene.keyframes[index].token
    assert batch.targets.flow_m is not None
    assert batch.targets.taken is not None
    assert batch.targets.taken[1].any()
    assert batch.targets.flow_m[1].isfinite().any()
    assert batch.targets.valid[2].tolist() == [False] * 6, "the last keyframe of its scene"
    assert not batch.targets.flow_m[2].isfinite().any()


def test_a_mixed_batch_keeps_what_is_unknown(folder: Path) -> None:
    """Towns that show only what the lidar sees, beside scenes whose grids hold no unknown voxel."""
    joint = opened((Data(), Data("nuscenes", str(folder))), replace(TOWN, visible_only=True))
    tracks = read_tracks(joint, SPLIT)
    clips = ClipDataset(tracks, ClipSpec(past=0), OccupancyFrames(joint, RECIPE.tokenizer.grid, keyframes(tracks)))
    occupancy = clips.batch([0, len(clips) - 1]).inputs.occupancy
    assert occupancy is not None
    assert [bool((one == 255).any()) for one in occupancy] == [True, False]
    counts = class_counts(joint, tracks, RECIPE.tokenizer.grid, 4)
    known = (occupancy[0] != 255).sum()
    assert counts.shape[1] == len(OCC_CLASSES)
    assert counts[0].sum() <= known.item() < occupancy[0].numel(), "what is unknown counts as no class"


def test_classes_are_counted_by_shares(joint: Source) -> None:
    tracks = read_tracks(joint, SPLIT)
    spec = RECIPE.tokenizer.grid
    found = class_counts(joint, tracks, spec, 8, {"town": 1.0, "nuscenes": 3.0})
    town, nuscenes = joint.sources  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(found[:2], class_counts(town, tracks_of(joint, town, tracks), spec, 2))
    np.testing.assert_array_equal(found[2:], class_counts(nuscenes, tracks_of(joint, nuscenes, tracks), spec, 6))


@pytest.mark.slow
def test_a_source_without_boxes_teaches_nothing_about_what_moves(tmp_path: Path) -> None:
    root = make(tmp_path / "n", keyframes=12)
    for table in ("sample_annotation", "instance"):
        edit(root, table, lambda records: records.clear())
    source = opened_in(root)
    tokenizer = train_tokenizer(replace(RECIPE, train_tokenizer=_brief("tokenizer", 2)), source, SPLIT, Run.start(tmp_path / "t", {}))
    cache = write_tokens(tokenizer, source, source.scene_names(SPLIT), tmp_path / "tokens")
    with pytest.raises(DataError, match=r"nuscenes: none of the 2 scenes has boxes.*--recipe.world.flow.width 0"):
        train_world(RECIPE, tokenizer, cache, source, SPLIT, Run.start(tmp_path / "w", {}))


def _brief(stage: str, samples: int, **more: Any) -> Any:
    return replace(getattr(RECIPE, f"train_{stage}"), samples=samples, batch=2, save_every=2, log_every=2, **more)


SHORT = replace(RECIPE, train_tokenizer=_brief("tokenizer", 8))


def trained(folder: Path, data: Path, stop_at: int | None = None, resume: str = "off", delay_s: float = 0.0) -> Path:
    """The tokenizer of both sources, in this process."""
    real = checkpoint.save_file

    def slow_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
        real(tensors, path)
        time.sleep(delay_s)

    checkpoint.save_file = slow_save if delay_s else real
    options = RunOptions(resume=resume, stop_at=stop_at)  # pyright: ignore[reportArgumentType]
    return train_tokenizer(SHORT, opened_in(data), SPLIT, Run.start(folder, {}, resume != "off"), options)


def all_weights(path: Path) -> dict[str, torch.Tensor]:
    return {**checkpoint.load_tensors(path), **checkpoint.load_tensors(path, "training.safetensors")}


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, folder: Path) -> None:
    straight_on = trained(tmp_path / "straight", folder)
    process = start(trained, tmp_path / "killed", folder, None, "auto", 0.3)
    while not checkpoint.newest_first(tmp_path / "killed") and process.is_alive():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert checkpoint.read_manifest(tmp_path / "killed").samples_seen < 8
    one, other = all_weights(straight_on), all_weights(trained(tmp_path / "killed", folder, None, "on"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def together(process_group: ProcessGroup, folder: Path, data: Path) -> None:
    """Two steps of eight samples in double precision."""
    recipe = replace(RECIPE, train_tokenizer=replace(_brief("tokenizer", 16), batch=8, precision="64"))
    source = opened_in(data)
    started = Run.start(folder / str(process_group.size), {}, process_group=process_group)
    train_tokenizer(recipe, source, SPLIT, started, RunOptions(process_group))


@pytest.mark.slow
def test_one_two_or_eight_processes_give_the_same(tmp_path: Path, folder: Path) -> None:
    for size in (1, 2, 8):
        run_together(size, together, tmp_path, folder)
    alone = checkpoint.load_tensors(tmp_path / "1", "training.safetensors")
    for size in (2, 8):
        found = checkpoint.load_tensors(tmp_path / str(size), "training.safetensors")
        for key in (key for key in alone if key.startswith("module.")):
            torch.testing.assert_close(found[key], alone[key], rtol=1e-7, atol=1e-9)


def test_another_share_is_another_training(tmp_path: Path, joint: Source) -> None:
    train_ego_mlp(RECIPE, joint, SPLIT, Run.start(tmp_path, {}), RunOptions(stop_at=4))
    other = replace(RECIPE, shares={"town": 1.0, "nuscenes": 1.0})
    with pytest.raises(CheckpointError, match=r"data differs: shares was .*3.0.*is .*1.0"):
        train_ego_mlp(other, joint, SPLIT, Run(tmp_path), RunOptions(resume="on"))
    some = replace(RECIPE, shares={"town": 1.0})
    with pytest.raises(ConfigError, match=r"recipe.shares has town, but the data are town, nuscenes.*--recipe.shares.nuscenes 1"):
        train_ego_mlp(some, joint, SPLIT, Run.start(tmp_path / "b", {}))


def test_every_source_stands_in_manifest_and_lineage(tmp_path: Path, joint: Source, folder: Path) -> None:
    path = train_ego_mlp(RECIPE, joint, SPLIT, Run.start(tmp_path, {}))
    manifest = checkpoint.read_manifest(path)
    assert manifest.data["shares"] == {"town": 1.0, "nuscenes": 3.0}
    assert manifest.trained_on == (
        {"kind": "ego-mlp", "source": "town", "seed": 0, "split": "train", "occupancy": "labels", "command": "route", "share": 1.0},
        {"kind": "ego-mlp", "source": "nuscenes", "seed": None, "split": "all", "occupancy": "derived", "command": "oracle", "share": 3.0},
    )
    told = lineage_of.describe(lineage_of.trace(path)[0])
    assert "  ego-mlp trained on town train, seed 0, share 1, labels, route\n" in told
    assert told.endswith("  ego-mlp trained on nuscenes all, share 3, derived, oracle")
    assert trained_on(manifest) == "town train, occupancy labels, command route + nuscenes all, occupancy derived, command oracle"
    nuscenes = Data("nuscenes", str(folder)).open(TOWN)
    assert trained_here(manifest, nuscenes, ["scene-0103"]) == ("TRAINED ON THESE SCENES: ego-mlp",)
    assert trained_here(manifest, Data().open(TOWN), ["town-train-00001"]) == ("TRAINED ON THESE SCENES: ego-mlp",)
    assert trained_here(manifest, Data().open(TOWN), ["town-test-00000"]) == ()


@pytest.mark.slow
def test_all_stages_and_each_sources_numbers(tmp_path: Path, joint: Source) -> None:
    """Validation names both sources, and stage 1 keeps its reconstruction of each, which the 0 s test of one source alone is held against."""
    checked = {
        f"train_{stage}": replace(getattr(RECIPE, f"train_{stage}"), samples=4, batch=2, validate_every=4, validate_scenes=1)
        for stage in ("tokenizer", "world", "planner")
    }
    recipe = replace(RECIPE, **checked)
    tokenizer = train_tokenizer(recipe, joint, SPLIT, Run.start(tmp_path / "t", {}))
    metrics = checkpoint.read_manifest(tokenizer).metrics
    names = [f"validation_{name}" for name in ("mean_mIoU", "town_mIoU", "nuscenes_mIoU")]
    mean, town, nuscenes = (metrics[name] for name in names)
    assert mean == pytest.approx((town + nuscenes) / 2)
    assert {f"{token_check.RECORD}_{name}" for name in ("town", "nuscenes")} < metrics.keys()
    cache = write_tokens(tokenizer, joint, joint.scene_names(SPLIT), tokens_folder(tmp_path, tokenizer, joint))
    world = train_world(recipe, tokenizer, cache, joint, SPLIT, Run.start(tmp_path / "w", {}))
    assert {"validation_town_mIoU", "validation_nuscenes_mIoU"} < checkpoint.read_manifest(world).metrics.keys()
    planner = train_planner(recipe, world, cache, joint, SPLIT, Run.start(tmp_path / "p", {}), True)
    found = checkpoint.read_manifest(planner)
    assert {"validation_town_minus_L2", "validation_nuscenes_minus_L2"} < found.metrics.keys()
    assert Counter((one["kind"], one["source"]) for one in found.trained_on) == Counter(
        (kind, name) for kind in ("tokenizer", "world", "planner") for name in ("town", "nuscenes")
    )
    text = (tmp_path / "t" / "validation-000000004.txt").read_text()
    assert text.startswith("town\nreconstruction mIoU")
    assert "\n\nnuscenes\nreconstruction mIoU" in text


# --------------------------------------------------------------------------------------------------------- the command line


def test_options_by_source() -> None:
    assert values_by_source("root", "a=/x,b=/y,z", ["a", "b"]) == {"a": "/x", "b": "/y,z"}
    assert parse("nuscenes", root="/a=b,c") == (Data("nuscenes", "/a=b,c"),), "one source: the value as it is"
    assert parse("town,nuscenes", root="/n") == (Data(), Data("nuscenes", "/n"))
    assert parse("nuscenes,av2", root="av2=/a,nuscenes=/n", occupancy="nuscenes=labels") == (
        Data("nuscenes", "/n", occupancy="labels"),
        Data("av2", "/a"),
    )


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("town,nuscens", {}, "unknown data source 'nuscens'. Did you mean 'nuscenes'"),
        ("nuscenes,av2", {"root": "/n"}, "say whose it is, as in --root nuscenes=…,av2=…"),
        ("town,nuscenes", {"root": "nuscene=/n"}, "unknown source 'nuscene'. Did you mean 'nuscenes'"),
        ("town,nuscenes", {"root": "nuscenes=/n,nuscenes=/m"}, "nuscenes needs one value; found two"),
        ("town,nuscenes", {"root": "nuscenes="}, "nuscenes needs one value; found none"),
        ("town,nuscenes", {"root": "/m,nuscenes=/n"}, "/m has no source's name before it"),
        ("town,nuscenes", {"root": "town=/t"}, "towns take no --root"),
        ("town,nuscenes", {"occupancy": "nuscenes=label"}, "unknown occupancy 'label'. Did you mean 'labels'"),
    ],
)
def test_what_is_not_clear_is_one_sentence(data: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as stop:
        parse(data, **options)
    assert message in str(stop.value)


def test_the_same_source_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="two or more of different names; found town, town"):
        opened((Data(), Data()), TOWN)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_commands_take_several_sources_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    make(Path("n"), keyframes=12)
    make_av2(Path("a"))
    data = ["--data", "town,nuscenes,av2", "--root", "nuscenes=n,av2=a", "--split", "nuscenes=all"]
    few = [f"--recipe.train_{stage}.samples=4" for stage in ("tokenizer", "motion", "flow", "world", "planner")]
    towns = ["--recipe.town.train_scenes=2", "--recipe.town.test_scenes=1", "--recipe.town.keyframes=12"]
    main(
        [
            "train",
            "tokenizer",
            *data,
            "--recipe=tiny",
            *few,
            *towns,
            "--recipe.shares.town=2",
            "--recipe.shares.nuscenes=1",
            "--recipe.shares.av2=1",
        ]
    )
    told = capsys.readouterr().out
    assert [shlex.split(line)[4:] for line in told.splitlines() if line.startswith("evaluate:")] == [
        ["--recipe=runs/tokenizer/recipe.json"],
        ["--data=nuscenes", "--root=n", "--recipe=runs/tokenizer/recipe.json"],
        ["--data=av2", "--root=a", "--recipe=runs/tokenizer/recipe.json"],
    ]
    following = shlex.split(told.split("next: ")[1])
    main([*following[1:], "--split=nuscenes=all"])
    following = shlex.split(capsys.readouterr().out.split("next: ")[1])
    main([*following[1:], "--split=nuscenes=all"])
    main(["lineage", "runs/planner"])
    assert "planner trained on av2 train, share 1, derived, oracle" in capsys.readouterr().out
    main(["evaluate", "runs/world", "--data", "nuscenes", "--root", "n", "--split", "all"])
    assert "TRAINED ON THESE SCENES: tokenizer, world" in capsys.readouterr().out
    assert "only training and `iidrive tokens` take several sources" in fails(capsys, "evaluate", "ctrv", *data)
    assert "shares.town must be a number above 0" in fails(capsys, "train", "tokenizer", *data, "--recipe.shares.town=0", "--out=x")


# ------------------------------------------------------------------------------------------------------------- fine-tuning


@pytest.mark.slow
def test_the_weights_that_come_with_iidrive_can_be_tuned_on_real_data(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage after stage from `town-small`, whose name stands for the model of each stage."""
    monkeypatch.chdir(tmp_path)
    few = [f"--recipe.train_{stage}.samples={count}" for stage, count in (("tokenizer", 2), ("world", 6), ("planner", 16))]
    data = ["--data", "nuscenes", "--root", str(folder), "--split", "all", "--init", "town-small", *few]
    main(["train", "tokenizer", *data])
    main(["train", "world", "runs/tokenizer", *data])
    main(["train", "planner", "runs/world", *data])
    told = " ".join(capsys.readouterr().out.split())
    assert "MISMATCH" not in told
    for kind in ("tokenizer", "world", "planner"):
        origin = checkpoint.read_manifest("town-small" if kind == "planner" else f"town-small/{kind}").fingerprint
        manifest = checkpoint.read_manifest(Path("runs") / kind)
        assert [one.fingerprint for one in manifest.origins] == [origin]
        assert {one["source"] for one in manifest.trained_on} == {"town", "nuscenes"}
        assert manifest.marks == ()


def test_a_model_of_another_tokenizer_is_still_refused() -> None:
    """A world model that was trained on a tokenizer which the one in use does not descend from."""
    world = checkpoint.read("town-small/world")
    other = replace(world.manifest, parents=(replace(world.manifest.parent("tokenizer"), fingerprint="0" * 16),))
    with pytest.raises(LineageError, match="was trained on tokenizer"):
        start_from("town-small", torch.nn.Linear(1, 1), other)
    fine_tuned_from = (world.manifest.parent("tokenizer"),)
    with pytest.raises(CheckpointError, match="missing"):  # the lineage fits now; these weights do not fit a linear layer
        start_from("town-small", torch.nn.Linear(1, 1), other, False, fine_tuned_from)
