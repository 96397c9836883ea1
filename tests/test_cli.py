"""The commands as a user types them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes

from iidrive.cli.main import COMMANDS, Command, Group, main
from iidrive.scoring.cases import read_cases
from iidrive.scoring.predictions import read_predictions, write_predictions

TOWN = ["--recipe", "tiny", "--recipe.town.train_scenes", "2", "--recipe.town.test_scenes", "1", "--recipe.town.keyframes", "12"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail, in one sentence and without a traceback."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.split())


def test_score_gives_the_public_evaluators_numbers(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "fixtures" / "protocols"
    out, rows = tmp_path / "s.json", tmp_path / "rows.npz"
    main(["score", str(folder / "inputs.npz"), "--protocol", "sparsedrive", "--json", str(out), "--per-sample", str(rows)])
    expected = json.loads((folder / "planning_aggregate.json").read_text())["sparsedrive"]
    assert expected["table"] in capsys.readouterr().out
    found = json.loads(out.read_text())["sparsedrive"]
    assert found["average"] == expected["metric_dict"]
    assert (found["n_scored"], found["n_skipped"]) == (360, 40)
    assert set(found) == {"n_scored", "n_skipped", "per_step", "columns", "average", "events"}
    with np.load(folder / "planning_outputs.npz") as want, np.load(rows) as have:
        for key in ("sparsedrive_gt_col", "sparsedrive_pred_col_raw", "sparsedrive_obj_box_col"):
            np.testing.assert_array_equal(have[key], want[key])
        np.testing.assert_allclose(have["sparsedrive_L2"], want["sparsedrive_L2"], atol=1e-5)


@pytest.mark.slow
def test_evaluate_a_baseline_on_towns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.json"
    main(["evaluate", "constant-velocity", "--data", "town", "--json", str(out), "--run", str(tmp_path / "run"), *TOWN])
    printed = capsys.readouterr().out
    assert "occupancy: labels" in printed
    assert "command: route" in printed
    assert "obj_box_col" in printed
    assert json.loads(out.read_text())["sparsedrive"]["n_scored"] == 6
    predictions = read_predictions(tmp_path / "run" / "predictions-constant-velocity.npz")
    assert predictions.token is not None
    assert len(set(predictions.token)) == 6
    assert {"run.json", "scores.json"} <= {p.name for p in (tmp_path / "run").iterdir()}


@pytest.mark.slow
def test_baselines_on_real_scenes(nuscenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """69 samples of mini_val have a full future, the first keyframe of both scenes included; moving beats standing still."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    l2 = {}
    for name in ("still", "constant-velocity", "ctrv"):
        out = tmp_path / f"{name}.json"
        run = str(tmp_path / name)
        main(
            ["evaluate", name, "--data", "nuscenes", "--root", str(nuscenes_root), "--split", "mini_val", "--json", str(out), "--run", run]
        )
        found = json.loads(out.read_text())
        assert found["sparsedrive"]["n_scored"] == 69
        assert found["about"]["command"] == "oracle"
        l2[name] = found["sparsedrive"]["average"]["L2"]
    assert l2["constant-velocity"] < l2["still"] / 2
    assert l2["ctrv"] < l2["constant-velocity"]


def test_predictions_score_the_same_through_a_file(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = shared / "fixtures" / "protocols" / "inputs.npz"
    with np.load(cases) as file:
        np.savez(tmp_path / "p.npz", pred=file["pred"])
    main(["score", str(cases)])
    alone = capsys.readouterr().out
    main(["score", str(cases), "--predictions", str(tmp_path / "p.npz")])
    assert capsys.readouterr().out == alone


@pytest.mark.slow
def test_nothing_is_written_if_there_is_nothing_to_resume(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for command in (["tokenizer"], ["world", "town-small/tokenizer"], ["planner", "town-small/world"]):
        said = fails(capsys, "train", *command, "--recipe", "tiny", "--run", str(run), "--resume", "on")
        assert f"{run}: no checkpoint to continue from. Use `--resume auto`" in said
        assert not run.exists()


@pytest.mark.slow
def test_errors_are_one_clear_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no checkpoint here" in fails(capsys, "evaluate", str(tmp_path), "--data", "town")
    assert "Did you mean 'constant-velocity'" in fails(capsys, "evaluate", "constant-velocty", "--data", "town")
    assert "nuScenes needs --root" in fails(capsys, "evaluate", "still", "--data", "nuscenes")
    assert "Did you mean 'small'" in fails(capsys, "demo", "--recipe", "smal")
    assert "unknown protocol 'sparsdrive'. Did you mean 'sparsedrive'" in fails(capsys, "score", "x.npz", "--protocol", "sparsdrive")
    assert "nowhere.npz" in fails(capsys, "score", str(tmp_path / "nowhere.npz"))
    assert "unknown split 'tset'" in fails(capsys, "evaluate", "still", "--split", "tset", *TOWN)
    assert str(tmp_path) in fails(capsys, "evaluate", "still", "--data", "nuscenes", "--root", str(tmp_path))


HEAVY = ("torch", "scipy", "matplotlib", "numpy", "jsonargparse")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["nothing"], ["evaluate-all"]])
def test_commands_are_listed_without_heavy_imports(arguments: list[str]) -> None:
    """The modules of a command are imported only when it runs."""
    script = (
        "import sys\nfrom iidrive.cli.main import main\ntry:\n    main(sys.argv[1:])\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[]\n"), done
    assert done.returncode == (0 if "--help" in arguments else 2)


def commands(table: Mapping[str, Command | Group] = COMMANDS) -> list[list[str]]:
    """Every command as it is typed."""
    groups = (
        [[name, *rest] for rest in commands(entry.commands)] if isinstance(entry, Group) else [[name]] for name, entry in table.items()
    )
    return [command for group in groups for command in group]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_the_help_of_a_command_fits_a_screen(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: iidrive {' '.join(command)} [options]")
    assert len(shown.splitlines()) <= 40
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        ["study"],
        ["import"],
        ["export"],
    ],
)
def test_the_help_of_a_group(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: iidrive" in capsys.readouterr().out


def test_ii_is_refused_for_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ctrv has no world model" in fails(capsys, "evaluate", "ctrv", "--test-ii", "on")


@pytest.mark.slow
def test_the_next_command_that_is_printed_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["train", "tokenizer", *TOWN])
    for _ in range(3):
        following = shlex.split(capsys.readouterr().out.split("next: ")[1])
        assert following[0] == "iidrive"
        main(following[1:])
    assert "L2" in capsys.readouterr().out


def test_help_shows_options_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out
    assert "--test-ii {off,on,shared,shuffled,oracle}" in shown
    assert "--test_ii" not in shown
    assert "--recipe.FIELD VALUE" in shown
    assert "iidrive recipes" in shown
    assert "--recipe.train_world" not in shown, "`iidrive recipes` explains the fields"


@pytest.mark.slow
def test_score_takes_the_truth_straight_from_nuscenes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = ["--data", "nuscenes", "--root", str(tiny_nuscenes.make(tmp_path / "nuscenes"))]
    main(["cases", *data, "--out", "c.npz"])
    cases = read_cases("c.npz")
    write_predictions("p.npz", cases.token, cases.true_path() * np.float32(0.9))
    capsys.readouterr()
    main(["score", "c.npz", "--predictions", "p.npz", "--json", "a.json"])
    by_file = capsys.readouterr().out
    main(["score", *data, "--predictions", "p.npz", "--json", "b.json"])
    by_root = capsys.readouterr().out
    assert by_root.endswith(by_file)
    assert by_root.startswith(f"{len(cases)} samples of nuscenes mini_val, ")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()
    main(["score", *data, "--split", "all", "--predictions", "p.npz"])
    main(["score", "--cases=c.npz", "--predictions", "p.npz"])
    for arguments, message in (
        (["score", "--predictions", "p.npz"], "score needs the ground truth"),
        (["score", "c.npz", *data], "given twice"),
        (["score", "c.npz", "p.npz"], "score takes one cases file; found c.npz, p.npz"),
        (["score", "c.npz", "--cases", "c.npz"], "score takes one cases file"),
        (["score", "c.npz", "--root", "nuscenes"], "add --data nuscenes"),
        (["score", "--root", "nuscenes"], "add --data nuscenes"),
        (["score", "c.npz", "--split", "val"], "add --data nuscenes"),
        (["score", "--data", "nuscenes"], "needs --root"),
        (["score", "--data", "nuscenes", "--root", "nowhere"], "nowhere is not a folder"),
        (["score", *data, "--split", "vall"], "unknown split 'vall'"),
        (["score", "nuscenes"], "--data nuscenes --root nuscenes"),
        (["score", "--data", "town"], "iidrive cases --recipe"),
    ):
        assert message in fails(capsys, *arguments), arguments


@pytest.mark.slow
def test_runs_are_compared_without_a_cases_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("constant-velocity", "ctrv"):
        main(["evaluate", name, "--run", name, *TOWN])
    main(["cases", "--out", "c.npz", *TOWN])
    capsys.readouterr()
    main(["compare", "constant-velocity", "ctrv"])
    alone = capsys.readouterr().out
    main(["compare", "constant-velocity", "ctrv", "--cases", "c.npz"])
    assert capsys.readouterr().out == alone
    assert "6 samples in common, of 1 scenes" in alone
    main(["compare", "ctrv/predictions-ctrv.npz", "ctrv/rows-ctrv.npz"])
    assert "are the same" in capsys.readouterr().out
    for arguments in (["doctor", "ctrv"], ["doctor", "ctrv", "--cases", "c.npz"]):
        main(arguments)
        assert "verdict" in capsys.readouterr().out
    Path("ctrv/predictions-ctrv.npz").write_bytes(Path("constant-velocity/predictions-constant-velocity.npz").read_bytes())
    assert "holds the scores of other predictions" in fails(capsys, "compare", "constant-velocity", "ctrv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate ctrv --test-ii maybe", "--test-ii: Expected one of 'off', 'on', 'shared', 'shuffled', 'oracle'. Got value: maybe."),
        ("audit ctrv --samples x", "--samples: Expected int. Got value: x. `iidrive audit --help` lists every option."),
        ("score --data nuscens", "--data: Expected one of '', 'town', 'nuscenes', 'av2'. Got value: nuscens."),
        ("evaluate ctrv --tets-ii on", "unrecognized arguments: --tets-ii. Did you mean --test-ii?"),
        ("score-occupancy a b --truth c", "unrecognized arguments: b."),
        ("compare a b --smaples 3", "unrecognized arguments: --smaples. Did you mean --samples?"),
        ("compare a b --smaples=3", "unrecognized arguments: --smaples. Did you mean --samples?"),
        ("demo --recipe tiny --recipe.town.sed 3", "unrecognized arguments: --recipe.town.sed. Did you mean --recipe.town.seed?"),
        ("demo --recipe.town.seed x", "--recipe.town.seed: Expected int. Got value: x."),
        ("demo --recipe.tokenizer.inter_loss 3", "unrecognized arguments: --recipe.tokenizer.inter_loss."),
        ("train tokenizer --parallel.compile maybe", "--parallel.compile: Expected one of 'on', 'off'. Got value: maybe."),
        ("train tokenizer --allow-mismatch on", "unrecognized arguments: --allow-mismatch."),
        ("demo --split val", "unrecognized arguments: --split."),
        ("cases --occupancy labels", "unrecognized arguments: --occupancy."),
        ("nothing", "unknown command 'nothing'"),
        ("evalaute ctrv", "unknown command 'evalaute'. Did you mean 'evaluate'?"),
        ("train world-model", "unknown command 'world-model'. Did you mean 'world'?"),
        ("--test-ii on", "unknown option '--test-ii'"),
        ("train", "iidrive train needs a command: tokenizer, world, reactions, planner. `iidrive train --help` lists every option."),
        ("evaluate", "`iidrive evaluate --help` lists every option."),
        ("swap", "`iidrive swap --help` lists every option."),
        ("", "`iidrive --help` lists every option."),
    ],
)
def test_wrong_usage_is_one_sentence(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = fails(capsys, *line.split())
    assert found.startswith("iidrive: ")
    assert message in found
    assert "usage:" not in found
