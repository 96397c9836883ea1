"""Token caches of scenes, written by a tokenizer."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from iidrive.core.config_io import to_plain
from iidrive.core.scene import Scene
from iidrive.data.clips import EgoTrack, Frames
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache, build
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline.load import LoadedTokenizer, Place, load_tokenizer
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import device
from iidrive.training import checkpoint

Array = np.ndarray
Report = Callable[[str], None]


def tokens_folder(run: Path, tokenizer: Place | LoadedTokenizer, source: Source) -> Path:
    """The folder of a run for tokens, named by tokenizer and data, so that different tokens never share a folder."""
    found = tokenizer.checkpoint if isinstance(tokenizer, LoadedTokenizer) else checkpoint.read(tokenizer)
    identity = json.dumps(to_plain({**source.identity(), "occupancy": source.occupancy_source}), sort_keys=True)
    mark = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return run / "tokens" / f"{found.manifest.fingerprint}-{mark}"


def write_tokens(
    tokenizer: Place | LoadedTokenizer,
    source: Source,
    names: Iterable[str],
    folder: str | Path,
    report: Report = lambda name: None,
    warn: Report = warnings.warn,
    process_group: ProcessGroup | None = None,
) -> TokenCache:
    """Write the token cache of some scenes.

    `report` is called with the name of every finished scene, `warn` with a message for every file that had to be written again. The processes of a
    group share the scenes; the files do not depend on the number of processes.
    """
    process_group, used = process_group or ProcessGroup(), load_tokenizer(tokenizer)
    quantiser, mark = used.model.quantiser, used.checkpoint.manifest.fingerprint
    encode = partial(scene_codes, used.model, source)
    mine = process_group.shard(list(names))
    with process_group.raise_on_all_ranks():
        return build(source, mine, encode, folder, mark, quantiser.config.codes, sum(quantiser.level_cells), report, warn)


@torch.no_grad()
def scene_codes(tokenizer: Tokenizer, source: Source, scene: Scene, rows: range | None = None) -> Array:
    """Codes (T, n) of every keyframe of a scene, or of the keyframes `rows` as if the scene began with the first of them."""
    rows = range(len(scene)) if rows is None else rows
    grids = np.stack([source.occupancy(scene, i, tokenizer.config.grid).semantics for i in rows])
    poses = np.stack([scene.keyframes[i].global_T_ego.matrix for i in rows])
    return tokenizer.tokenize_scene(torch.from_numpy(grids).to(device()), torch.from_numpy(poses).to(device())).numpy(force=True)


def codes_in_memory(tokenizer: Tokenizer, source: Source, tracks: Iterable[EgoTrack]) -> Frames:
    """Codes of whole scenes, computed now and kept in memory."""
    held = {track.name: scene_codes(tokenizer, source, source.scene(track.name)) for track in tracks}
    return lambda name, rows: held[name][rows]


def codes_before(tokenizer: Tokenizer, source: Source, scene: Scene, keyframe: int, past: int) -> Frames:
    """Codes of a keyframe and of the `past` keyframes before it, equal to those of the whole scene.

    Only these keyframes and their history are encoded. For later keyframes the codes of the last encoded keyframe are returned.
    """
    first = max(0, keyframe - past - tokenizer.config.quantiser.history)
    held = scene_codes(tokenizer, source, scene, range(first, keyframe + 1))
    return lambda name, rows: held[np.clip(rows - first, 0, len(held) - 1)]
