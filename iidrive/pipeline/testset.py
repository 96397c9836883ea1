"""The scenes that models are tested on: their ground truth, whether a model was trained on them, and how tables name the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from iidrive.core.config_io import from_plain
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.lineage import TRAINED_HERE, Lineage, joined
from iidrive.data.clips import EgoTrack, read_tracks
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.data.town.source import TownConfig
from iidrive.pipeline import infer
from iidrive.pipeline.load import LoadedTokenizer
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.scoring.cases import Cases
from iidrive.training.checkpoint import Checkpoint, Manifest

COMMANDS = {"route": "route (known at the time)", "oracle": "oracle (derived from the true future)"}


@dataclass(frozen=True)
class TestSet:
    """The test scenes (all of a split, or those in `names`), and the run folder for results. Scenes and their ground truth are read once.

    `pdm`: whether plans are also followed for 3 s and scored by EPDMS.
    """

    __test__ = False  # tells pytest that this is not a test class

    source: Source
    split: str
    run: Run
    names: tuple[str, ...] = ()
    pdm: bool = False

    @cached_property
    def tracks(self) -> list[EgoTrack]:
        """The scenes' ego tracks."""
        return read_tracks(self.source, self.names or self.source.scene_names(self.split))

    @cached_property
    def cases(self) -> Cases:
        """The ground truth for scoring plans."""
        return infer.truth(self.source, self.tracks)

    @property
    def data(self) -> dict[str, object]:
        """What decides the content of the scenes: their source's identity, without the number of scenes in each split."""
        return {key: value for key, value in self.source.identity().items() if not key.endswith("_scenes")}

    def marks(self, manifest: Manifest) -> tuple[str, ...]:
        """A mark if the model, or a stage below it, was trained on some of these scenes; else empty."""
        return trained_here(manifest, self.source, [track.name for track in self.tracks])

    def judged(self, found: Checkpoint) -> Lineage:
        """The lineage of a checkpoint, including the mark of `marks`."""
        return replace(found.lineage, marks=joined(found.lineage.marks, self.marks(found.manifest)))

    @property
    def about(self) -> dict[str, Any]:
        """Properties of the test data that are reported with every result."""
        return {"split": self.split, "occupancy": self.source.occupancy_source, "command": self.source.command_source}

    def tokens(self, tokenizer: LoadedTokenizer) -> TokenCache:
        """The token cache of the test scenes, in the run folder."""
        names = [track.name for track in self.tracks]
        with counting("tokens", len(names), self.run.process_group) as tick:
            folder = tokens_folder(self.run.folder, tokenizer, self.source)
            return write_tokens(tokenizer, self.source, names, folder, tick, process_group=self.run.process_group)


def trained_here(manifest: Manifest, source: Source, names: Sequence[str]) -> tuple[str, ...]:
    """A mark if the model, or a stage below it, was trained on one of the scenes `names` of a source; else empty."""
    here, seed = set(names), source.identity().get("seed")
    kinds = [entry["kind"] for entry in manifest.trained_on if entry["seed"] == seed and here & set(_scenes_of(entry, source))]
    return (f"{TRAINED_HERE}: {', '.join(dict.fromkeys(kinds))}",) if kinds else ()


def _scenes_of(entry: Mapping[str, Any], source: Source) -> tuple[str, ...]:
    """The scenes of a source in one training entry of a manifest; empty if the entry is about other data."""
    if entry["source"] != source.name:
        return ()
    if "scenes" in entry:  # the split was a file of scene names
        return tuple(entry["scenes"])
    try:
        return source.scene_names(entry["split"])
    except (ConfigError, DataError):  # this version has no such split
        return ()


def trained_on(manifest: Manifest) -> str:
    """A description of a checkpoint's training data: source, split, occupancy and command."""
    data = manifest.data
    if "sources" in data:
        own = {entry["source"]: entry["split"] for entry in manifest.trained_on if entry["kind"] == manifest.kind}
        return " + ".join(
            f"{one['source']} {own.get(one['source'])}, occupancy {one['occupancy']}, command {one['command']}" for one in data["sources"]
        )
    return f"{data.get('name', data.get('source'))} {data.get('split')}, occupancy {data.get('occupancy')}, command {data.get('command')}"


def town_of(manifest: Manifest, wanted: TownConfig, given: Sequence[str] = ()) -> TownConfig:
    """The town config to test a checkpoint with: the config it was trained with, except the fields in `given`, which come from `wanted`."""
    plain = manifest.about.get("town")
    if not plain:
        return wanted
    return replace(from_plain(TownConfig, plain, "the checkpoint's towns"), **{name: getattr(wanted, name) for name in given})


def about_line(source: Source, split: str, extra: Mapping[str, object] | None = None) -> str:
    """The line above every table: data, split, seed of towns unless it is 0, source of occupancy and of commands."""
    seed = source.identity().get("seed")
    parts = {
        "data": f"{source.name} {split}{f' of seed {seed}' if seed else ''}",
        "occupancy": source.occupancy_source,
        "command": COMMANDS[source.command_source],
        **(extra or {}),
    }
    return " · ".join(f"{k}: {v}" for k, v in parts.items())
