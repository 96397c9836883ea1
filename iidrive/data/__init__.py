"""Sources of scenes, by the name that the command line takes. A new dataset is one file, one line in `SOURCES` and its name in `DataName`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from iidrive.core.errors import ConfigError, unknown
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.source import Source
from iidrive.data.town.source import Town, TownConfig

DataName = Literal["town", "nuscenes"]


@dataclass(frozen=True)
class Data:
    """Which source, and where: `root` is a nuScenes folder; `gts`, `predicted` and `occupancy` choose its occupancy (see NuScenesConfig)."""

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


SOURCES: dict[str, Callable[[Data, TownConfig], Source]] = {
    "town": lambda data, town: Town(town),
    "nuscenes": lambda data, town: NuScenes(NuScenesConfig(data.root, data.version, data.occupancy, data.gts, data.predicted)),
}
"""Name on the command line → what makes the source from the options and the embedded towns' config."""
