"""The kinds of input that `fuzzing` changes: how a valid one is written, and what is read from it.

Planned paths are joined to cases by token, so a path that is lost, doubled or renamed cannot pass for a shorter list.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_changes as change
import fuzz_maps
import numpy as np
import tiny_nuscenes
import torch
import yaml
from fuzzing import Change, Kind, equal
from make_cases import along, make_cases, random_cases
from make_tables import print_table
from safetensors.torch import save_file

from iidrive.analysis.compare.navsim import read_score_file
from iidrive.analysis.doctor.doctor import doctor
from iidrive.analysis.doctor.printed import read_tables
from iidrive.analysis.lineage_of import describe, trace
from iidrive.cli.parser import read_recipe
from iidrive.core.class_tables import OCC3D, read_table
from iidrive.core.classes import OCC_CLASSES
from iidrive.core.config_io import to_plain
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.occupancy_grids import read_grids
from iidrive.data.scene_lists import read_list
from iidrive.pipeline import recipes
from iidrive.pipeline.published_file import read_published
from iidrive.scoring.cases import FARTHEST_M, read_cases, write_cases
from iidrive.scoring.predictions import align, write_predictions
from iidrive.scoring.protocols import PROTOCOLS
from iidrive.scoring.readers import read_paths, read_tokens
from iidrive.scoring.sampled import read_runs
from iidrive.scoring.score import score, score_possible, write_per_sample
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest, Parent

TOKENS = ("sample0", "sample1", "sample2")
PATHS = np.stack([along((0.1 * i, 1.0)) for i in range(3)])
CAR = (0.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.1)
CASES = make_cases(list(PATHS), [(0, 1, CAR), (1, 2, CAR)])
CHANGE = {"samples": 2, "field": "learning_rate", "from": 1e-3, "to": 1e-4}
LEFT_OUT = ("token", "scene", "pred", "lidar_pose", "ego_pose")
"""Arrays that a cases file need not have."""
EGO_FRAME = ("stp3", "admlp", "bevplanner")
"""Protocols that need the ego's poses."""
NAMES = ("encoder.conv.weight", "encoder.conv.bias", "norm.running_mean")


def kinds(marker: str) -> dict[str, Kind]:
    """Every kind. Files that hold code would touch `marker`."""
    return {**_paths(marker), **_arrays(marker), **_texts(), **_recipes(marker), **_weights(marker), **_folders()}


# ------------------------------------------------------------------------------------------------------------ planned paths


def _joined(path: Path) -> Any:
    found = read_paths(path).predictions
    assert np.abs(found.trajectory).max() <= FARTHEST_M
    return align(CASES, found)


def _listed(path: Path) -> Any:
    return align(CASES, read_paths(path, path.with_name("tokens.txt")).predictions)


def _table() -> dict[str, Any]:
    return {t: torch.tensor(p) if t == "sample0" else p for t, p in zip(TOKENS, PATHS, strict=True)}


def _lists() -> dict[str, Any]:
    return dict(zip(TOKENS, PATHS.tolist(), strict=True))


def _dumped(value: Any) -> Callable[[Path], Path]:
    return lambda folder: _written(folder / ("r.json" if isinstance(value, str) else "r.pkl"), value)


def _written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else pickle.dumps(value, 4))
    path.with_name("tokens.txt").write_text("\n".join(TOKENS) + "\n")
    return path


def _vad() -> dict[str, Any]:
    offsets = np.diff(PATHS, axis=1, prepend=0)
    command = [[[[0.0, 1.0, 0.0]]]]
    plans = {t: [np.stack([o * 0.5, o, o * 2]).tolist(), command] for t, o in zip(TOKENS, offsets, strict=True)}
    return {"meta": {"use_lidar": False}, "results": {}, "plan_results": plans}


def _answers() -> str:
    text = {t: "Plan:\n[" + ", ".join(f"({x:.3f},{y:.3f})" for x, y in p) + "]" for t, p in zip(TOKENS, PATHS, strict=True)}
    return json.dumps(text)


class _Plain(pickle.Unpickler):
    """An independent reading of pickles that hold plain values and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything but what makes an array."""
        if module.split(".")[0] in ("numpy", "collections") and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "scalar",
            "_frombuffer",
            "OrderedDict",
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(name)


def _agrees(load: Callable[[bytes], Any]) -> Callable[[bytes, Any], bool]:
    """Whether a table by token, loaded by another reader, holds the joined paths."""

    def agrees(raw: bytes, value: Any) -> bool:
        table = load(raw)
        rows = [np.asarray(table[token], np.float64).reshape(-1, np.shape(table[token])[-1]) for token in TOKENS]
        rows = [(row[1:] if len(row) == 7 else row)[:, :2] for row in rows]
        return equal(np.stack(rows).astype(np.float32), value)

    return agrees


def _paths(marker: str) -> dict[str, Kind]:
    boxes = [{"token": t, "planning_traj": p[None].tolist()} for t, p in zip(TOKENS, PATHS, strict=True)]
    lines = "\n".join(json.dumps({"token": t, "trajectory": p.tolist()}) for t, p in zip(TOKENS, PATHS, strict=True))
    pickles = (change.any_bytes, change.pickle_same, change.pickle_absurd, change.pickle_code(marker))
    jsons = (change.any_bytes, change.json_same, change.json_absurd, change.json_twice)
    npz: tuple[Change, ...] = (change.sealed_bytes, change.npz_same(marker), change.npz_absurd, change.npz_code(marker), change.npz_headers)
    unpickled = _agrees(lambda raw: _Plain(io.BytesIO(raw)).load())

    def own(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_predictions(folder / "r.npz", TOKENS, PATHS, {"seed": 1})
        return folder / "r.npz"

    def npy(folder: Path) -> Path:
        path = _written(folder / "r.npy", None)
        np.save(path, PATHS)
        return path

    def torch_file(folder: Path) -> Path:
        folder.mkdir(parents=True)
        torch.save({t: torch.tensor(p) for t, p in zip(TOKENS, PATHS, strict=True)}, folder / "r.pth")
        return folder / "r.pth"

    return {
        "paths: own npz": Kind(own, _joined, npz),
        "paths: table pickle": Kind(_dumped(_table()), _joined, (change.any_bytes, change.pickle_same, change.pickle_code(marker))),
        "paths: lists pickle": Kind(_dumped(_lists()), _joined, pickles, agrees=unpickled),
        "paths: UniAD pickle": Kind(_dumped({"bbox_results": boxes, "occ": {}}), _joined, pickles),
        "paths: VAD pickle": Kind(_dumped(_vad()), _joined, pickles),
        "paths: SparseDrive pickle": Kind(_dumped([{"img_bbox": {"final_planning": p.tolist()}} for p in PATHS]), _listed, pickles),
        "paths: torch.save": Kind(torch_file, _joined, (change.any_bytes,)),
        "paths: npy": Kind(
            npy, _listed, (change.any_bytes,), agrees=_agrees(lambda raw: dict(zip(TOKENS, np.load(io.BytesIO(raw)), strict=True)))
        ),
        "paths: JSON": Kind(_dumped(json.dumps(_lists())), _joined, jsons, agrees=_agrees(json.loads)),
        "paths: submission": Kind(_dumped(json.dumps({"meta": {}, "results": _lists()})), _joined, jsons),
        "paths: JSON lines": Kind(_dumped(lines), _joined, (change.any_bytes,)),
        "paths: answers": Kind(_dumped(_answers()), _joined, jsons),
        "tokens: text": Kind(lambda folder: _written(folder / "r.pkl", 0).with_name("tokens.txt"), read_tokens, (change.any_bytes,)),
    }


# ------------------------------------------------------------------------------------------------------------------- arrays


def _scored(path: Path) -> dict[str, Any]:
    """What cases say and their scores. A protocol that lacks data is left out."""
    cases = read_cases(path)
    path = cases.true_path() + np.float32(0.4)
    found, _ = score_possible(cases, np.where(np.isfinite(path), path, np.float32(0)), tuple(PROTOCOLS))  # without a future it may hold NaN
    own = {"token": cases.token if cases.own_tokens else None, "scene": cases.scene}
    own |= {"pred": None if cases.pred is None else cases.pred[cases.full]}  # others may hold NaN
    return {name: value for name, value in own.items() if value is not None} | {one.protocol: one.average for one in found}


def _rows(path: Path) -> Any:
    (run,) = read_runs(str(path), None)
    return [run.token, run.L2, run.hit, run.gt_col, run.scene, run.marks]


def _whole_rows() -> list[Any]:
    found = score(CASES, CASES.true_path() + np.float32(0.4)).steps
    return [CASES.token, found.per_step["L2"].astype(np.float64), *(found.per_step[name] for name in ("obj_box_col", "obj_col"))]


def _grid() -> np.ndarray:
    grid = np.full((200, 200, 16), 17, np.uint8)
    for label in range(17):
        grid[10 * label : 10 * label + 6, 50:120, :3] = label
    return grid


def _arrays(marker: str) -> dict[str, Kind]:
    npz: tuple[Change, ...] = (change.sealed_bytes, change.npz_same(marker), change.npz_absurd, change.npz_code(marker), change.npz_headers)

    made, plans = random_cases(3, 8, 3)
    pose = np.concatenate([np.zeros((8, 1, 3)), np.concatenate([plans, np.zeros((8, 6, 1))], 2)], 1)
    made = replace(made, scene=tuple("aaabbbcc"), pred=plans, lidar_pose=pose, ego_pose=pose)

    def cases(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_cases(folder / "cases.npz", made)
        return folder / "cases.npz"

    def less(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        arrays = change.opened(raw)
        del arrays[LEFT_OUT[int(rng.integers(len(LEFT_OUT)))]]
        return change.packed(arrays, bool(rng.integers(2))), "any"

    def cases_absurd(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        out, expected = change.npz_absurd(raw, rng)
        lost = set(LEFT_OUT) - set(change.opened(out))
        return out, "any" if lost else expected

    def cases_agree(raw: bytes, value: dict[str, Any]) -> bool:
        """Whether what is there is what the whole file says, and all that the arrays allow is there."""
        lost = set(LEFT_OUT) - set(change.opened(raw))
        silent = lost | (set(EGO_FRAME) if lost & {"lidar_pose", "ego_pose"} else set())
        return equal(value, {name: one for name, one in whole_cases().items() if name not in silent})

    @cache
    def whole_cases() -> dict[str, Any]:
        said = {"token": made.token, "scene": made.scene, "pred": plans[made.full]}
        return said | {one: score(made, made.true_path() + np.float32(0.4), one).average for one in PROTOCOLS}

    def rows(folder: Path) -> Path:
        folder.mkdir(parents=True)
        write_per_sample(folder / "rows.npz", score(CASES, CASES.true_path() + np.float32(0.4), "sparsedrive"), scene=("a", "a", "b"))
        return folder / "rows.npz"

    def occupancy(folder: Path) -> Path:
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "labels.npz", semantics=_grid(), mask_camera=np.ones((200, 200, 16), np.uint8))
        return folder / "labels.npz"

    def rows_less(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        out, expected = change.npz_absurd(raw, rng)
        return out, expected if "scene" in change.opened(out) else "any"

    def rows_agree_whole(raw: bytes, value: list[Any]) -> bool:
        return (value[-2] is None) is ("scene" not in change.opened(raw)) and equal(value[:-2], _whole_rows())

    def sparse(folder: Path) -> Path:
        folder.mkdir(parents=True)
        place = np.argwhere(_grid() != 17)[::100]
        np.savez(folder / "rows.npz", semantics=np.c_[place, _grid()[tuple(place.T)]].astype(np.float32))
        return folder / "rows.npz"

    def rows_absurd(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        return change.npz_absurd(raw, rng)[0], "any"  # a row fewer is another grid

    def rows_agree(raw: bytes, value: Any) -> bool:
        rows = change.opened(raw)["semantics"]
        return value[0][(0, *rows[:, :3].astype(int).T)].tolist() == rows[:, 3].tolist() and int((value[0] != 17).sum()) == len(rows)

    def grids(path: Path) -> Any:
        found = read_grids(path, "labels", OCC3D)
        return [found.labels, found.mask]

    def classes(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "classes.txt").write_text("\n".join(OCC_CLASSES))
        return folder / "classes.txt"

    return {
        "cases": Kind(cases, _scored, (*npz[:2], cases_absurd, less, *npz[3:]), agrees=cases_agree),
        "scores by sample": Kind(rows, _rows, (*npz[:2], rows_less, *npz[3:]), agrees=rows_agree_whole),
        "occupancy: npz": Kind(
            occupancy, grids, (change.sealed_bytes, change.npz_same(marker), change.npz_code(marker), change.npz_headers)
        ),
        "occupancy: rows": Kind(sparse, grids, (*npz[:2], rows_absurd, *npz[3:]), agrees=rows_agree),
        "class table": Kind(classes, lambda path: dict(read_table(str(path)).numbers), (change.any_bytes,)),
    }


# ------------------------------------------------------------------------------------------------------------- tables, logs

VAD = "".join(f"plan_{name}_{k}s:{value}\n" for k in (1, 2, 3) for name, value in (("L2", 0.41 + 0.3 * k), ("obj_box_col", 0.0013 * k)))
MARKDOWN = "| method | L2 (m) 1s | 2s | 3s | Avg. | Col. (%) 1s | 2s | 3s | Avg. |\n|---|---|---|---|---|---|---|---|---|\n"
MARKDOWN += (
    "| Ours | 0.41 | 0.70 | 1.05 | 0.72 | 0.07 | 0.17 | 0.41 | 0.22 |\n| Theirs | 0.44 | 0.80 | 1.15 | 0.80 | 0.10 | 0.20 | 0.49 | 0.26 |\n"
)
LATEX = r"Ours & 0.41 & 0.70 & 1.05 & 0.72 & 0.07 & 0.17 & 0.41 & 0.22 \\" + "\n"
LATEX = "\\begin{tabular}{lcccc}\nMethod & \\multicolumn{4}{c}{L2 (m)} & \\multicolumn{4}{c}{Collision (\\%)} \\\\\n" + (
    " & 1s & 2s & 3s & Avg. & 1s & 2s & 3s & Avg. \\\\\n" + LATEX + "\\end{tabular}\n"
)
LOG = '{"mode": "val", "epoch": 4, "iter": 81, "lr": 0.0001, "obj_box_col": 0.0013, "L2": 0.636}\n' * 2
HTML = "<table><tr><td>metrics</td><td>1.0s</td><td>2.0s</td><td>3.0s</td></tr>" + (
    "<tr><td>L2</td><td>0.41</td><td>0.70</td><td>1.05</td></tr><tr><td>obj_box_col</td><td>0.07%</td><td>0.17%</td><td>0.41%</td></tr></table>\n"
)


NAVSIM = "token,log_name,valid,no_at_fault_collisions,drivable_area_compliance,ego_progress,comfort,score\n" + "".join(
    f"{k:04x}c1,log-{k // 3},True,{float(k % 4 > 0)},1.0,{0.5 + k / 20},1.0,{float(k % 4 > 0) * (0.5 + k / 20)}\n" for k in range(8)
)


def _numbers(path: Path) -> Any:
    """What tables hold, without where they stand in the text; the findings are made too."""
    tables = read_tables(path)
    doctor(path)
    return [
        [t.times_s, {name: [row.columns, row.average] for name, row in t.rows.items()}, dict(t.averages), t.events, t.n] for t in tables
    ]


def _printed(raw: bytes, value: Any) -> bool:
    """Whether every number of a table stands in its text, as it is or in percent."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", raw.decode("utf-8", "replace")).replace("\\", "")
    numbers = {float(n) for form in (text, text.replace(",", ".")) for n in re.findall(r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", form)}
    known = np.array(sorted(numbers | {0.0}))

    def stands(one: float | None) -> bool:
        if one is None or not np.isfinite(one):
            return True
        return any(bool(np.isclose(known, abs(scaled), rtol=1e-6, atol=1e-12).any()) for scaled in (one, 100 * one))

    return all(
        stands(one) for _, rows, averages, *_ in value for one in [*(v for c, a in rows.values() for v in (*c, a)), *averages.values()]
    )


def _texts() -> dict[str, Kind]:
    forms = {"SparseDrive": print_table(), "VAD": VAD, "Markdown": MARKDOWN, "LaTeX": LATEX, "HTML": HTML, "log.json": LOG}
    found = {
        f"table: {name}": Kind(
            lambda folder, text=text: _text(folder / "notes.txt", text),
            _numbers,
            (change.any_bytes,) if name == "log.json" else (change.any_bytes, change.text_same),
            agrees=_printed,
        )
        for name, text in forms.items()
    }
    found["NAVSIM's scores"] = Kind(
        lambda folder: _text(folder / "scores.csv", NAVSIM),
        _navsim,
        (change.any_bytes, change.csv_same, change.csv_absurd),
        agrees=_said(_navsim_says),
    )
    found["scene list"] = Kind(
        lambda folder: _text(folder / "list.json", '["scene-0103", "scene-0916"]'),
        lambda path: read_list(str(path)),
        (change.any_bytes, change.json_twice),
        agrees=lambda raw, value: not raw.lstrip().startswith(b"[") or list(value) == json.loads(raw),
    )
    return found


def _navsim(path: Path) -> Any:
    found = read_score_file(path)
    rows = zip(found.token, *found.scene.values(), *(value.tolist() for value in found.values.values()), strict=True)
    return [list(found.values), {row[0]: list(row[1:]) for row in rows}]


def _navsim_says(raw: bytes, value: Any) -> bool:
    """Whether every valid row of the table, read without a CSV reader, is there with its numbers."""
    head, *rows = [[cell.strip().strip('"') for cell in line.split(",")] for line in raw.decode("utf-8-sig").splitlines() if line.strip()]
    names, found = value
    told = [dict(zip(head, row, strict=True)) for row in rows]
    told = [row for row in told if not row["token"].lower().startswith(("average", "mean", "overall"))]
    said = {
        row["token"]: [*(row[n] for n in head if n == "log_name"), *(float(row[n]) for n in names)]
        for row in told
        if row["valid"].lower() in ("true", "1")
    }
    return said == found


def _text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------------- recipes and weights


def _recipes(marker: str) -> dict[str, Kind]:
    def recipe(path: Path) -> Any:
        return to_plain(read_recipe(str(path)))

    def agrees(raw: bytes, value: Any) -> bool:
        return _within(yaml.safe_load(raw) or {}, value)

    changes = (change.any_bytes, change.yaml_same, change.yaml_absurd, change.yaml_code(marker))
    return {
        "recipe": Kind(
            lambda folder: _text(folder / "r.yaml", yaml.safe_dump(to_plain(recipes.tiny()))), recipe, changes, agrees=agrees, share=0.3
        )
    }


def _within(given: Any, value: Any) -> bool:
    """Whether all that is given stands in a value."""
    if isinstance(given, Mapping):
        return isinstance(value, Mapping) and all(key in value and _within(inner, value[key]) for key, inner in given.items())
    if isinstance(given, list | tuple) and isinstance(value, list | tuple):
        return len(given) == len(value) and all(_within(a, b) for a, b in zip(given, value, strict=True))
    return given == value or (isinstance(given, str) and isinstance(value, int | float) and float(given) == value)


def _weights(marker: str) -> dict[str, Kind]:
    state = {name: torch.arange(24.0).reshape(4, 6) + k for k, name in enumerate(NAMES)}

    def published(suffix: str) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            folder.mkdir(parents=True)
            path = folder / f"m.{suffix}"
            if suffix == "safetensors":
                save_file(state, path)
            elif suffix == "pth":
                torch.save({"state_dict": state, "meta": {"epoch": 3, "score": np.float64(0.5)}}, path)
            else:
                torch.save(state, path, _use_new_zipfile_serialization=False)
            return path

        return write

    def plain(path: Path) -> Any:
        found = read_published(path, NAMES)
        assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in found.state.values())
        return {name: tensor.float().numpy() for name, tensor in sorted(found.state.items())}

    def own(folder: Path) -> Path:
        weights = {name: tensor.clone() for name, tensor in state.items()}
        architecture, parents = {"width": 4}, (Parent("tokenizer", "/there", "aa"),)
        about = {"trained_on": [{"kind": "world", "source": "town", "seed": 0, "split": "train"}], "changes": [CHANGE]}
        mark = checkpoint.fingerprint(architecture, weights, parents)
        manifest = Manifest(
            "world", mark, architecture, 8, "code", {"name": "town"}, {"batch": 2}, {"mIoU": 0.5}, about, parents, ("MARK",)
        )
        return checkpoint.save(folder / "run" / "checkpoints" / "samples-000000008", manifest, weights)

    def loaded(path: Path) -> Any:
        for lineage in trace(path):
            assert describe(lineage).replace("\n", "").isprintable()
        found = checkpoint.read(path)
        said = to_plain(found.manifest) | {
            "parents": [parent.fingerprint for parent in found.manifest.parents]
        }  # where they lie may change
        return [said, {name: tensor.numpy() for name, tensor in sorted(found.weights().items())}]

    def unsealed(path: Path) -> Path:
        whole = json.loads((path / "manifest.json").read_text())
        del whole["seal"]
        (path / "manifest.json").write_text(json.dumps(whole))
        return path

    def told(path: Path) -> Any:
        """What `iidrive lineage` prints, which must be there after every change that is not refused."""
        (lineage,) = trace(path)
        said = describe(lineage)
        assert said.replace("\n", "").isprintable()
        return said.replace(str(path), "").split("\n")

    def manifest_absurd(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        return change.json_absurd(raw, rng)[0], "any"  # without a seal, what it says is believed

    def manifest_agrees(raw: bytes, value: Any) -> bool:
        tree = json.loads(raw)
        about = tree.get("about", {})
        count = len(about.get("trained_on", [])) + len(about.get("changes", [])) + len(tree.get("marks", [])) + len(tree.get("parents", []))
        return len(value) <= 1 + count and tree["kind"] in value[0]

    return {
        "weights: torch": Kind(published("pth"), plain, (change.any_bytes, _torch_code(marker))),
        "weights: torch, old": Kind(published("old"), plain, (change.any_bytes,)),
        "weights: safetensors": Kind(published("safetensors"), plain, (change.any_bytes,)),
        "checkpoint: weights": Kind(own, loaded, (change.sealed_bytes,), "weights.safetensors"),
        "checkpoint: unsealed manifest": Kind(
            lambda folder: unsealed(own(folder)), told, (change.json_same, manifest_absurd), "manifest.json", manifest_agrees
        ),
        "checkpoint: manifest": Kind(own, loaded, (change.json_same, change.json_absurd, change.sealed_bytes), "manifest.json"),
    }


def _torch_code(marker: str) -> Change:
    """Weights beside an object that would run."""

    def torch_code(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        out = io.BytesIO()
        torch.save({"state_dict": {NAMES[0]: torch.ones(2)}, "hook": change.Touch(marker)}, out)
        return out.getvalue(), "refused"

    return torch_code


# ------------------------------------------------------------------------------------------------------------------ folders


def _strict(raw: bytes, value: Any) -> bool:
    json.loads(raw)
    return True


def _said(says: Callable[[bytes, Any], bool]) -> Callable[[bytes, Any], bool]:
    """`says`, which finds nothing in a file that it cannot read."""

    def said(raw: bytes, value: Any) -> bool:
        try:
            return says(raw, value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return False

    return said


def _folders() -> dict[str, Kind]:
    def nuscenes(path: Path) -> Any:
        shutil.rmtree(path.parent / "cache", ignore_errors=True)
        source = NuScenes(NuScenesConfig(str(path), cache=str(path.parent / "cache")))
        return [_scene(source.scene(name)) for name in source.scene_names("all")]

    def twice(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        return change.json_twice(raw, rng)[0], "same or refused"  # not every file is read

    jsons = (change.any_bytes, change.json_same, change.json_absurd, twice)

    def map_absurd(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        return change.json_absurd(raw, rng)[0], "any"  # a lane fewer is another map

    def swept(path: Path) -> Any:
        source = NuScenes(NuScenesConfig(str(path), cache=str(path.parent / "cache")))
        found = [sweep for name in source.scene_names("all") for sweep in source.sweeps(source.scene(name), 1)]
        assert all(np.isfinite(sweep.points_m).all() and np.abs(sweep.points_m).max(initial=0) < 2e7 for sweep in found)
        return [[sweep.timestamp_us, sweep.points_m, sweep.origin_m] for sweep in found]

    def with_sweeps(folder: Path) -> Path:
        root = tiny_nuscenes.make(folder / "nuscenes", keyframes=3)
        tiny_nuscenes.lay_sweeps(root, np.array([[1.0, 10.0, -0.5], [0.0, 6.0, 0.5]]), 3)
        return root

    maps = (change.any_bytes, change.json_same, map_absurd, twice)
    found = {
        "nuScenes: tables": Kind(
            lambda folder: tiny_nuscenes.make(folder / "nuscenes", keyframes=4), nuscenes, jsons, "v1.0-mini/*.json", _strict
        ),
        "nuScenes: map": Kind(
            lambda folder: tiny_nuscenes.make(folder / "nuscenes", keyframes=2),
            nuscenes,
            maps,
            "tinytown.json",
            _said(fuzz_maps.nuscenes_says),
        ),
        "nuScenes: sweeps": Kind(with_sweeps, swept, (change.any_bytes,), "samples/scene*"),
        "nuScenes: tables of sweeps": Kind(with_sweeps, swept, jsons, "v1.0-mini/[cs]*.json", _strict),
    }
    try:
        import tiny_av2
        from pyarrow import feather

        from iidrive.data.av2.source import AV2, AV2Config
    except ImportError:
        return found

    def av2(path: Path) -> Any:
        shutil.rmtree(path.parent / "cache", ignore_errors=True)
        source = AV2(AV2Config(str(path), cache=str(path.parent / "cache")))
        return [_scene(source.scene(name)) for name in source.scene_names("val")]

    def columns_absurd(raw: bytes, rng: np.random.Generator) -> tuple[bytes, Any]:
        """A column of another type, left out, or with one value that nothing can mean."""
        import pyarrow

        columns = feather.read_table(io.BytesIO(raw)).to_pydict()
        name = list(columns)[int(rng.integers(len(columns)))]
        values, action = columns[name], rng.random()
        if action < 0.2:
            del columns[name]
        elif action < 0.4:
            columns[name] = [str(value) if not isinstance(value, str) else 5 for value in values]
        else:
            odd: list[Any] = [None, "", "y" * 300] if isinstance(values[0], str) else [None, type(values[0])(-(1 << 62))]
            odd += [float("nan"), float("inf"), 1e300] if isinstance(values[0], float) else []
            values[int(rng.integers(len(values)))] = odd[int(rng.integers(len(odd)))]
        out = io.BytesIO()
        feather.write_feather(pyarrow.table(columns), out)
        return out.getvalue(), "same or refused"

    def make(folder: Path) -> Path:
        return tiny_av2.make(folder / "av2", {"val": ("log-b",)}, moments=41)

    found["AV2: tables"] = Kind(make, av2, (change.any_bytes, columns_absurd), "*.feather")
    found["AV2: map"] = Kind(make, av2, maps, "log_map*.json", _said(fuzz_maps.av2_says))
    return found


def _scene(scene: Any) -> Any:
    frames = [
        [k.token, k.timestamp_us, k.global_T_ego.matrix, k.boxes.centre_m, k.boxes.size_m, k.boxes.yaw_rad, k.boxes.label, k.boxes.track]
        for k in scene.keyframes
    ]
    assert all(np.isfinite(np.asarray(value)).all() for frame in frames for value in frame[2:6])
    return [scene.name, frames, fuzz_maps.plain(scene)]
