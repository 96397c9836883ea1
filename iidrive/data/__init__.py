"""Data sources by their command-line names. To add a dataset, write its package and add its name to `DataName` and `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from iidrive.core.errors import ConfigError, unknown
from iidrive.data.av2.source import AV2, AV2Config
from iidrive.data.joint import Joint, named_values
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.source import Source
from iidrive.data.town.source import Town, TownConfig

DataName = Literal["town", "nuscenes", "av2"]
Occupancy = Literal["auto", "labels", "derived", "predicted"]


@dataclass(frozen=True)
class Data:
    """Data options of the command line.

    Attributes:
        name: the data source.
        root: folder of nuScenes or Argoverse 2.
        version: nuScenes version (see `NuScenesConfig`; so are the next three).
        occupancy: where nuScenes' occupancy comes from.
        gts: folder of Occ3D labels.
        predicted: folder of predicted occupancy.
    """

    name: DataName = "town"
    root: str = ""
    version: str = ""
    occupancy: Occupancy = "auto"
    gts: str = ""
    predicted: str = ""

    def open(self, town: TownConfig) -> Source:
        """Open the source. `town` configures the synthetic town. Raises ConfigError for an unknown name or unsuitable options."""
        if self.name not in SOURCES:
            raise ConfigError(unknown("data source", self.name, SOURCES))
        return SOURCES[self.name](self, town)


def parse(data: str, **options: str) -> tuple[Data, ...]:
    """Parse the sources of a command line (`town,nuscenes`), with the options of each.

    An option of one source is its value. For several it is `NAME=VALUE,…`; a value without a name is for the only source besides the towns,
    which take no options.

    Raises:
        ConfigError: for an unknown source or a value that an option does not take, or if it is not clear whose a value is.
    """
    names = data.split(",")
    for name in names:
        if name not in SOURCES:
            raise ConfigError(unknown("data source", name, SOURCES))
    given = {option: _by_source(option, value, names) for option, value in options.items()}
    found = []
    for name in names:
        own = {option: values[name] for option, values in given.items() if name in values}
        if own.get("occupancy", "auto") not in get_args(Occupancy):
            raise ConfigError(unknown("occupancy", own["occupancy"], get_args(Occupancy)))
        found.append(Data(name, **own))  # pyright: ignore[reportArgumentType]
    return tuple(found)


def _by_source(option: str, value: str, names: Sequence[str]) -> dict[str, str]:
    """Value of an option for each of the sources."""
    if len(names) == 1:
        return {names[0]: value} if value else {}
    given = named_values(option, value, names)
    if given is None:
        takers = [name for name in names if name != "town"]
        if len(takers) > 1:
            raise ConfigError(
                f"--{option} {value}: there are several sources, so say whose it is, as in --{option} {','.join(f'{n}=…' for n in takers)}."
            )
        return dict.fromkeys(takers, value)
    if "town" in given:
        raise ConfigError(f"--{option} {value}: towns take no --{option}; leave town={given['town']} out.")
    return given


def opened(sources: Sequence[Data], town: TownConfig) -> Source:
    """Open the source, or several as one. Raises ConfigError as each of them does, or for two with the same name."""
    made = [data.open(town) for data in sources]
    return made[0] if len(made) == 1 else Joint(made)


def _av2(data: Data) -> AV2:
    """Open Argoverse 2. Raises ConfigError for options that only nuScenes has."""
    given = [f"--{name}" for name in ("version", "predicted") if getattr(data, name)]
    if data.occupancy not in ("auto", "derived"):
        given.append(f"--occupancy {data.occupancy}")
    if given:
        raise ConfigError(
            f"{', '.join(given)}: not options of Argoverse 2, which has one version and only derived occupancy; leave them out."
        )
    return AV2(AV2Config(data.root, gts=data.gts))


SOURCES: dict[str, Callable[[Data, TownConfig], Source]] = {
    "town": lambda data, town: Town(town),
    "nuscenes": lambda data, town: NuScenes(NuScenesConfig(data.root, data.version, data.occupancy, data.gts, data.predicted)),
    "av2": lambda data, town: _av2(data),
}
"""Command-line name → function that opens the source, given the data options and the config of the synthetic town."""
