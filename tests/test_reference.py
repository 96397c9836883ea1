"""The five reference runs: their commands, and the results of these commands."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from iidrive.cli.main import main
from iidrive.cli.reference_runs import Setting, Step, steps
from iidrive.cli.reproduce import _do
from iidrive.training.options import StopRequested

SMALL = ("--recipe", "tiny", "--recipe.town.train_scenes", "2", "--recipe.town.test_scenes", "2", "--recipe.town.keyframes", "14")


def lines(name: str, setting: Setting) -> list[str]:
    """The commands as text."""
    return [" ".join(step.arguments) for step in steps(name, setting)]  # pyright: ignore[reportArgumentType]


def test_the_runs_are_what_the_notes_say() -> None:
    setting = Setting(Path("o"), 8, ("--data", "nuscenes", "--root", "n"), ("--recipe", "full"), "a.pth", "b.pth")
    assert lines("r1", setting)[-1] == "evaluate o/own/planner --test-ii off --run o/r1 --data nuscenes --root n"
    assert lines("r2", setting)[-2:] == ["evaluate o/own/planner --test-ii on --run o/r2 --data nuscenes --root n", "compare o/r1 o/r2"]
    assert [line.count("--devices 8") for line in lines("r3", setting)] == [0] * 6 + [1] * 4 + [0]
    assert "import ii-world --stage1 a.pth --stage2 b.pth --out o/published" in lines("r4", setting)
    refused = [step for step in steps("r4", setting) if step.refused]
    assert len(refused) == 1
    assert "--allow-mismatch" not in refused[0].arguments
    assert any("--init o/published/world" in line for line in lines("r5", setting))
    assert lines("r5", setting)[-1].startswith("audit o/r5-trained/planner")
    assert "--recipe.train_world.seed 1" in lines("r4", Setting(Path("o")))[7], "without files, another seed stands in"


def test_the_command_shows_what_it_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("r1", "r5"):
        main(["reproduce", name, "--show", "on", "--out", str(tmp_path / "o"), "--recipe", "tiny"])
        shown = capsys.readouterr().out.replace("\n", " ")
        for line in lines(name, Setting(tmp_path / "o", recipe=("--recipe", "tiny"))):
            assert line.split(" --")[0] in shown
    assert not (tmp_path / "o").exists()


def test_a_stage_uses_as_many_devices_as_divide_its_step() -> None:
    setting = Setting(Path("o"), 8, shares={"tokenizer": 2, "world": 12, "planner": 16})
    assert [setting.devices_of(stage) for stage in ("tokenizer", "world", "planner", "evaluate")] == [2, 6, 8, 8]
    r3 = lines("r3", setting)
    assert r3[6].endswith("--devices 2")
    assert r3[7].endswith("--devices 6")
    assert Setting(Path("o")).devices_of("world") == 0


def test_signals_are_passed_on_to_the_running_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\ntrap 'sleep 0.3; touch {tmp_path}/saved; exit 143' TERM\ntouch {tmp_path}/begun\nwhile :; do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def stop() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    with pytest.raises(StopRequested, match="was stopped") as stopped:
        _do(Step(("train", "tokenizer")), show=False)
    assert stopped.value.status == 143
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_all_five_at_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of every run, in this process; R3 on one device here (test_devices.py has the others)."""
    setting = Setting(tmp_path, 0, (), SMALL)
    done: set[tuple[str, ...]] = set()
    said = ""
    for name in ("r3", "r4", "r5"):  # r3 holds r1 and r2
        for step in steps(name, setting):
            if step.arguments in done:
                continue
            done.add(step.arguments)
            if step.refused:
                with pytest.raises(SystemExit) as stop:
                    main(step.arguments)
                assert stop.value.code == 2
                spoken = capsys.readouterr()
                said += spoken.out
                assert "this world was trained on tokenizer" in spoken.err
            else:
                main(step.arguments)
            assert not step.result or Path(step.result).is_file()
    said += capsys.readouterr().out
    verdicts = [line for line in said.splitlines() if line.startswith("verdict:")]
    assert len(verdicts) == 2, "ii on or off, and the same training done again"
    assert not any("better" in line or "worse" in line for line in verdicts), verdicts
    scores = {name: json.loads((tmp_path / name / "scores.json").read_text()) for name in ("r2", "r3", "r4", "r5")}
    assert scores["r2"]["sparsedrive"] == scores["r3"]["sparsedrive"], "on one device again: the same numbers"
    assert "MISMATCH ALLOWED" in (tmp_path / "r4" / "table-planner.txt").read_text()
    assert "initial world" in scores["r5"]["about"]["lineage"]["chain"]
    assert "clean: no later keyframe" in said, "the audit of R5"
