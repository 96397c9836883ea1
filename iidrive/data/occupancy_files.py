"""Occupancy files in the layouts of other code bases, found by sample token. `occupancy_grids.py` reads them.

Layouts: `<scene>/<token>/labels.npz` (or `pred.npz`, or a single file of any name), `<scene>/<token>.npz`, `<token>.npz`. npy files are
found too. Numbered files (`<scene>/12.npz`) have the sample token `scene/12`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iidrive.core.errors import DataError
from iidrive.core.text import printable

Role = Literal["predicted", "labels"]

_WHOLE_NAMES = ("labels", "pred")
_DEEPEST = 3
MOST_FILES = 1 << 20


@dataclass(frozen=True)
class OccFile:
    """The file of one sample. `scene` is empty if the layout has no scene names."""

    path: Path
    token: str
    scene: str = ""


def listed(folder: Path, role: Role) -> dict[str, OccFile]:
    """Find occupancy files: sample token → file, sorted by scene and token. `folder` may also be a single file.

    Raises:
        DataError: if there are no files, a sample has two files, or a sample's folder holds several files of unknown names.
    """
    if folder.is_file():
        alone = _file(folder)
        return {alone.token: alone}
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected a folder with <scene>/<sample token>/labels.npz.")
    found: dict[str, OccFile] = {}
    for one in sorted(_walk(folder, folder, role, 1), key=lambda f: (f.scene, f.token)):
        if one.token in found:
            places = [printable(f.scene or str(f.path.relative_to(folder))) for f in (found[one.token], one)]
            raise DataError(f"{folder}: sample {printable(one.token)} has two files, in {places[0]} and in {places[1]}; remove one.")
        found[one.token] = one
        if len(found) > MOST_FILES:
            raise DataError(f"{folder}: more than {MOST_FILES} files; give a folder that holds only the occupancy.")
    if not found:
        inside = ", ".join(printable(p.name, 40) for p in sorted(folder.iterdir())[:6]) or "nothing"
        deeper = next(folder.glob("*/*/*/labels.np[yz]"), None)
        hint = f" Did you mean {deeper.parents[2]}?" if deeper else ""
        raise DataError(f"{folder}: no <scene>/<sample token>/labels.npz or <sample token>.npz in it; found {inside}.{hint}")
    return found


def scenes_of(files: Mapping[str, OccFile]) -> tuple[str, ...]:
    """Scene names of the files, without repeats; empty if the layout has none."""
    return tuple(dict.fromkeys(file.scene for file in files.values() if file.scene))


def _walk(folder: Path, root: Path, role: Role, depth: int) -> list[OccFile]:
    try:
        inside = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}).") from error
    files = [entry for entry in inside if entry.suffix in (".npz", ".npy") and entry.is_file()]
    found: list[OccFile] = []
    named = [file for file in files if file.stem in _WHOLE_NAMES]
    if len(named) > 1 and role == "labels":
        named = [file for file in named if file.stem == "labels"] or named
    if len(named) > 1:
        raise DataError(f"{folder}: holds {' and '.join(file.name for file in named)}, so it is unclear which is the prediction; keep one.")
    if named:
        found.append(_file(named[0]) if folder == root else OccFile(named[0], folder.name, folder.parent.name if depth > 2 else ""))
    elif depth > 2 and len(files) == 1 and len(files[0].stem) < len(folder.name):
        # <scene>/<token>/anything.npz; in <folder>/<scene>/<token>.npz the file, a token, has the longer name
        found.append(OccFile(files[0], folder.name, folder.parent.name))
    else:
        scene = "" if folder == root else folder.name
        found += [OccFile(file, f"{scene}/{file.stem}" if scene and _counts(file.stem) else file.stem, scene) for file in files]
    if depth < _DEEPEST and not named:
        for entry in inside:
            if entry.is_dir():
                found += _walk(entry, root, role, depth + 1)
    return found


def _file(path: Path) -> OccFile:
    """The entry of a single file: its token is its name, or its folder's name for `labels.npz` and `pred.npz`."""
    whole = path.stem in _WHOLE_NAMES
    return OccFile(path, path.absolute().parent.name if whole else path.stem, path.absolute().parents[1].name if whole else "")


def _counts(stem: str) -> bool:
    return stem.isdecimal() and len(stem) < 8
