"""Shipped weights: found by name, described, and included in the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from iidrive.cli.main import main
from iidrive.core.errors import CheckpointError
from iidrive.data.town.source import Town, TownConfig
from iidrive.pipeline import recipes
from iidrive.pipeline.baselines import baseline
from iidrive.pipeline.load import LoadedAgent, load
from iidrive.pipeline.testset import TestSet, about_line
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint, shipped

KINDS = {"town-small": "planner", "town-small/ego-mlp": "ego-mlp", "town-small/tokenizer": "tokenizer", "town-small/world": "world"}
SMALL = ["--recipe.town.test_scenes", "1", "--recipe.town.keyframes", "16"]


def test_every_name_is_a_whole_checkpoint_that_fits_its_parents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert {name: checkpoint.read_manifest(name).kind for name in shipped.names()} == KINDS
    for name in KINDS:
        checkpoint.verify_checksums(checkpoint.find(name))
    agent = load("town-small")
    assert isinstance(agent, LoadedAgent)
    assert not agent.manifest.marks
    assert [str(parent.path) for parent in agent.manifest.parents if parent.path] == ["town-small/tokenizer", "town-small/world"]


def test_the_shipped_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped.FOLDER.rglob("*") if path.is_file()) < 8e6


def test_a_folder_of_the_same_name_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("town-small").mkdir()
    assert shipped.place("town-small") is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.find("town-small")
    assert shipped.place("town-large") is None


def test_weights_are_listed_with_the_commands_that_made_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["weights"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in KINDS)
    main(["weights", "town-small"])
    card = capsys.readouterr().out
    for command in checkpoint.read_manifest("town-small").about["made_by"]:
        assert command in card
    with pytest.raises(SystemExit):
        main(["weights", "town-smal"])
    assert "town-small" in capsys.readouterr().err
    main(["lineage", "town-small"])
    assert "town-small/world" in capsys.readouterr().out


@pytest.mark.slow
def test_no_test_scene_trained_them(tmp_path: Path) -> None:
    town = Town(recipes.small().town)
    for split, marked in (("test", False), ("hard", False), ("val", False), ("train", True)):
        on = TestSet(town, split, Run(tmp_path), town.scene_names(split)[:1])
        assert bool(on.marks(checkpoint.read_manifest("town-small"))) == marked


def test_tables_name_the_seed_of_other_towns() -> None:
    """On these, `town-small` was not chosen."""
    assert about_line(Town(TownConfig(seed=913)), "test").startswith("data: town test of seed 913 ·")
    assert about_line(Town(TownConfig()), "test").startswith("data: town test ·")


def test_the_shipped_ego_mlp_replaces_the_same_training(tmp_path: Path) -> None:
    recipe = recipes.small()
    more = Town(TownConfig(**{**vars(recipe.town), "test_scenes": 60}))
    assert (
        baseline("ego-mlp", recipe, more, "train", Run(tmp_path)).lineage.fingerprint
        == checkpoint.read_manifest("town-small/ego-mlp").fingerprint
    )
    assert not list(tmp_path.iterdir())
    tiny = recipes.tiny()
    made = baseline("ego-mlp", tiny, Town(TownConfig(train_scenes=1, keyframes=14)), "train", Run.start(tmp_path / "own", {}))
    assert made.lineage.fingerprint != checkpoint.read_manifest("town-small/ego-mlp").fingerprint


@pytest.mark.slow
def test_the_demo_compares_shipped_and_trained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    main(["demo", "--out", str(out), *SMALL])
    printed = capsys.readouterr().out
    for row in ("still", "ego-mlp", "town-small, ii off", "town-small, ii on", "transport", "town's driver", "iidrive demo --train"):
        assert row in printed
    scores = json.loads((out / "scores.json").read_text())
    assert set(scores["planning"]) >= {"town-small, ii off", "town-small, ii on"}
    assert set(scores["drive"]["rows"]) == {"town's driver", "planner, ii off", "planner, ii on"}
    assert (out / "pictures" / "drive-town-test-00000.png").is_file()
    assert "drive-town-test-00000.png" in (out / "index.html").read_text()
    main(["demo", "--out", str(out), "--recipe", "tiny", "--recipe.town.train_scenes", "2", *SMALL])
    together = capsys.readouterr().out
    assert "planner, ii on" in together
    assert "town-small, ii on" in together


@pytest.mark.slow
def test_a_wheel_is_installed_elsewhere_and_runs_the_demo(tmp_path: Path) -> None:
    """In an environment of its own, outside the checkout. Only the dependencies come from here."""
    root, env, work = Path(__file__).parents[1], tmp_path / "env", tmp_path / "work"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 8e6
    names = zipfile.ZipFile(wheel).namelist()
    for name in KINDS:
        folder = name if "/" in name else f"{name}/planner"
        assert f"iidrive/weights/{folder}/weights.safetensors" in names
    assert "iidrive/weights/town-small/README.md" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    python = str(env / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # pip would find the checkout there, and install nothing
    subprocess.run(install, check=True, env=clean, capture_output=True)
    (site,) = (env / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work.mkdir()
    where = subprocess.run([python, "-c", "import iidrive; print(iidrive.__file__)"], check=True, cwd=work, env=clean, capture_output=True)
    assert Path(where.stdout.decode().strip()).is_relative_to(site)
    found = subprocess.run([str(env / "bin" / "iidrive"), "demo", *SMALL], check=True, cwd=work, env=clean, capture_output=True, text=True)
    assert "town-small, ii on" in found.stdout
    assert (work / "runs" / "demo" / "index.html").is_file()
