"""Sources of scenes, by the name that the command line takes. A new dataset is one file, one line in `SOURCES` and its name in `DataName`."""

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
    """Which source, and where: `root` is a folder of nuScenes or Argoverse 2.

    `version`, `gts`, `predicted` and `occupancy` choose among what nuScenes has (see NuScenesConfig).
    """

    name: DataName = "town"
    root: str = ""
    version: str = ""
    occupancy: Literal["auto", "labels", "derived", "predicted"] = "auto"
    gts: str = ""
    predicted: str = ""

    def open(self, town: TownConfig) -> Source:
        """The source. Raises ConfigError for an unknown name and for what the source itself refuses."""
        if self.name not in SOURCES:
            raise ConfigError(unknown("data source", self.name, SOURCES))
        return SOURCES[self.name](self, town)


def _av2(data: Data) -> AV2:
    """Argoverse 2. Raises ConfigError for options that only nuScenes has."""
    given = [f"--{name}" for name in ("version", "gts", "predicted") if getattr(data, name)]
    if data.occupancy not in ("auto", "derived"):
        given.append(f"--occupancy {data.occupancy}")
    if given:
        raise ConfigError(f"{', '.join(given)}: Argoverse 2 has one version and no occupancy but what is derived; leave it out.")
    return AV2(AV2Config(data.root))


SOURCES: dict[str, Callable[[Data, TownConfig], Source]] = {
    "town": lambda data, town: Town(town),
    "nuscenes": lambda data, town: NuScenes(NuScenesConfig(data.root, data.version, data.occupancy, data.gts, data.predicted)),
    "av2": lambda data, town: _av2(data),
}
"""Name on the command line → what makes the source from the options and the embedded towns' config."""
