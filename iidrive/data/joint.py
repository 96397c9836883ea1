"""Several sources combined into one, so that a training can mix their samples in its batches. Each scene is read by its own source.

A split of several sources is written as on the command line: `town=train,nuscenes=mini_train`. A split without names applies to every source.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import CommandSource, GridSpec, OccGrid, OccSource, Scene
from iidrive.data.clips import EgoTrack, Mixture
from iidrive.data.scene_lists import is_list
from iidrive.data.source import Source

Part = Literal["train", "val", "test"]


class Joint:
    """A `Source` of the scenes of several sources, source after source.

    Raises:
        ConfigError: if there are fewer than two sources, or two of one name.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        names = [source.name for source in sources]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"several sources must be two or more of different names; found {', '.join(names)}.")
        self.sources = tuple(sources)
        self._of: dict[str, Source] = {}

    @property
    def name(self) -> str:
        """The names of the sources, as in `town+nuscenes`."""
        return "+".join(source.name for source in self.sources)

    @property
    def command_source(self) -> CommandSource:
        """`oracle` if the commands of any source are."""
        return "oracle" if any(source.command_source == "oracle" for source in self.sources) else "route"

    @property
    def occupancy_source(self) -> OccSource:
        """The weakest of the sources' occupancy sources, in the order labels, derived, predicted."""
        held = {source.occupancy_source for source in self.sources}
        return "predicted" if "predicted" in held else "derived" if "derived" in held else "labels"

    def identity(self) -> dict[str, object]:
        """The identity of every source, with its own occupancy and commands."""
        each = [
            {"source": source.name, **source.identity(), "occupancy": source.occupancy_source, "command": source.command_source}
            for source in self.sources
        ]
        return {"name": self.name, "sources": each}

    def missing(self) -> tuple[str, ...]:
        """What each source lacks, with its name."""
        return tuple(f"{source.name}: {sentence}" for source in self.sources for sentence in source.missing())

    def usual_split(self, part: Part) -> str:
        """The usual split of every source, as in `town=train,nuscenes=mini_train`."""
        return self.completed("", part)

    def completed(self, split: str, part: Part) -> str:
        """The split, with the usual split added for every source that it does not name. Raises ConfigError as `values_by_source` does."""
        given = values_by_source("split", split, [source.name for source in self.sources])
        return ",".join(f"{source.name}={given.get(source.name) or source.usual_split(part)}" for source in self.sources)

    def splits(self, split: str) -> tuple[tuple[Source, str], ...]:
        """Each source with its own split.

        Raises:
            ConfigError: if a source is left out, for a file of scene names without the name of its source, or as `values_by_source` does.
        """
        names = [source.name for source in self.sources]
        given = values_by_source("split", split, names)
        if is_list(split) or len(given) < len(names):
            raise ConfigError(f"--split {split}: give every source its split, as in --split {','.join(f'{name}=SPLIT' for name in names)}.")
        return tuple((source, given[source.name]) for source in self.sources)

    def scene_names(self, split: str) -> tuple[str, ...]:
        """The scene names of every source's split, source after source.

        Raises:
            ConfigError: as `splits` and the sources do.
            DataError: as the sources do, or if two sources have a scene of one name.
        """
        return tuple(name for source, own in self.splits(split) for name in self._add(source, own))

    def _add(self, source: Source, split: str) -> tuple[str, ...]:
        """The scene names of a source's split. Records that the scenes belong to it."""
        names = source.scene_names(split)
        for name in names:
            if self._of.setdefault(name, source) is not source:
                raise DataError(
                    f"scene {name} is in {self._of[name].name} and in {source.name}; scenes of one training need different names."
                )
        return names

    def source_of(self, scene: str) -> Source:
        """The source of a scene. Raises DataError for a scene that is neither in a split requested so far nor in a usual split."""
        if scene not in self._of:
            for source in self.sources:
                for split in {source.usual_split(part) for part in ("train", "val", "test")}:
                    with suppress(ConfigError, DataError):  # not every copy has every split
                        self._add(source, split)
        if scene not in self._of:
            raise DataError(f"{self.name}: {unknown('scene', scene, self._of)}")
        return self._of[scene]

    def prepare(self, names: Sequence[str]) -> None:
        """Prepare the scenes, each by its own source."""
        for source in self.sources:
            source.prepare([name for name in names if self.source_of(name) is source])

    def scene(self, name: str) -> Scene:
        """One scene, from its own source."""
        return self.source_of(name).scene(name)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Occupancy of one keyframe, from the scene's own source."""
        return self.source_of(scene.name).occupancy(scene, index, spec)


def parts_of(source: Source) -> tuple[Source, ...]:
    """The sources that a source consists of: itself, or several."""
    return source.sources if isinstance(source, Joint) else (source,)


def splits_of(source: Source, split: str) -> tuple[tuple[Source, str], ...]:
    """Each source that a source consists of, with its own split."""
    return source.splits(split) if isinstance(source, Joint) else ((source, split),)


def tracks_of(source: Source, part: Source, tracks: Sequence[EgoTrack]) -> list[EgoTrack]:
    """The tracks of `part`, one of the sources that `source` consists of."""
    return [track for track in tracks if not isinstance(source, Joint) or source.source_of(track.name) is part]


def mixture(source: Source, tracks: Sequence[EgoTrack], shares: Mapping[str, float]) -> Mixture | None:
    """How a training draws samples from several sources; None for a single source. `shares` are relative; empty: proportional to the sizes.

    Raises:
        ConfigError: if `shares` names other sources than those of `source`.
    """
    if not isinstance(source, Joint):
        return None
    names = [part.name for part in source.sources]
    if shares and set(shares) != set(names):
        raise ConfigError(
            f"recipe.shares has {', '.join(shares)}, but the data are {', '.join(names)}: give each of these a share "
            f"({' '.join(f'--recipe.shares.{name} 1' for name in names)}), or none."
        )
    number = {part.name: k for k, part in enumerate(source.sources)}
    of_track = tuple(number[source.source_of(track.name).name] for track in tracks)
    return Mixture(tuple(names), of_track, tuple(shares[name] for name in names) if shares else ())


def values_by_source(option: str, text: str, names: Sequence[str]) -> dict[str, str]:
    """Parse the values of an option for several sources. A value without a name applies to all of them. Raises ConfigError as `named_values`."""
    named = named_values(option, text, names)
    return dict.fromkeys(names, text) if named is None else named


def named_values(option: str, text: str, names: Sequence[str]) -> dict[str, str] | None:
    """Parse values with the names of their sources, as in `nuscenes=PATH,av2=PATH`. None for a value without a name.

    Raises:
        ConfigError: for a source that is not in `names`, appears twice, or has no value.
    """
    if not text:
        return {}
    pieces = re.split(r"(?:^|,)([a-z0-9_]+)=", text)
    if len(pieces) == 1:
        return None
    if pieces[0]:
        raise ConfigError(f"--{option} {text}: {pieces[0]} has no source's name before it; expected NAME=VALUE,NAME=VALUE.")
    given: dict[str, str] = {}
    for name, value in zip(pieces[1::2], pieces[2::2], strict=True):
        if name not in names:
            raise ConfigError(f"--{option} {text}: {unknown('source', name, names)}")
        if name in given or not value:
            raise ConfigError(f"--{option} {text}: {name} needs one value; found {'two' if name in given else 'none'}.")
        given[name] = value
    return given
