"""Data sources by their command-line names. To add a dataset, write its package and add its name to `DataName` and `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from iidrive.core.errors import ConfigError, unknown
from iidrive.data.av2.source import AV2, AV2Config
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.source import Source
from iidrive.data.town.source import Town, TownConfig

DataName = Literal["town", "nuscenes", "av2"]


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
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto"
    gts: str = ""
    predicted: str = ""

    def open(self, town: TownConfig) -> Source:
        """Open the source. `town` configures the synthetic town. Raises ConfigError for an unknown name or unsuitable options."""
        if self.name not in SOURCES:
            raise ConfigError(unknown("data source", self.name, SOURCES))
        return SOURCES[self.name](self, town)


def _av2(data: Data) -> AV2:
    """Open Argoverse 2. Raises ConfigError for options that only nuScenes has."""
    given = [f"--{name}" for name in ("version", "gts", "predicted") if getattr(data, name)]
    if data.occupancy not in ("auto", "derived"):
        given.append(f"--occupancy {data.occupancy}")
    if given:
        raise ConfigError(
            f"{', '.join(given)}: not options of Argoverse 2, which has one version and only derived occupancy; leave them out."
        )
    return AV2(AV2Config(data.root))


SOURCES: dict[str, Callable[[Data, TownConfig], Source]] = {
    "town": lambda data, town: Town(town),
    "nuscenes": lambda data, town: NuScenes(NuScenesConfig(data.root, data.version, data.occupancy, data.gts, data.predicted)),
    "av2": lambda data, town: _av2(data),
}
"""Command-line name → function that opens the source, given the data options and the config of the synthetic town."""
