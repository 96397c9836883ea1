"""Config, splits and scene seeds of the synthetic town."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from iidrive.core.errors import ConfigError, DataError

VERSION = 1
"""Version of the scenes. Increase it when the same config gives other scenes."""

SPLITS = ("train", "val", "test")
HARD = "hard"
"""Name of a fourth split. Each of its scenes is built around a conflict, cycling through the kinds."""
ALL_SPLITS = (*SPLITS, HARD)

FACTORS = ("cut_ins", "jaywalkers", "double_parking", "cyclists_beside", "stopped_leaders", "left_turns")
"""Fields with the fractions of training scenes that have a conflict, in the order of the kinds."""

OUTSIDE = ("train_scenes", "val_scenes", "test_scenes", "hard_scenes", "raster_m", "cached_scenes", "disk_cache", "visible_only")
"""Fields that do not change the content of a scene: numbers of scenes, caching, rasterisation."""


@dataclass(frozen=True)
class TownConfig:
    """Settings of the synthetic town.

    The fractions `cut_ins` to `left_turns` of the train and val scenes are built around that kind of conflict, as the scenes of the split
    `hard` are.

    Attributes:
        seed: seed of the towns.
        train_scenes: number of training scenes.
        val_scenes: number of validation scenes.
        test_scenes: number of test scenes.
        keyframes: keyframes per scene, at 2 Hz; at most 45.
        traffic: factor on the default number of driving vehicles, 0 to 3.
        pedestrians: factor on the default number of pedestrians, 0 to 3.
        parked: factor on the default number of parked vehicles, 0 to 3.
        raster_m: cell size of the raster of static objects, metres.
        cached_scenes: scenes kept in memory; results do not depend on it.
        disk_cache: cache generated scenes on disk; results do not depend on it.
        hard_scenes: number of scenes of the split hard, in which a road user is in the ego's way.
        cut_ins: fraction of scenes in which a car cuts in just ahead of the ego.
        jaywalkers: fraction of scenes in which a pedestrian crosses the street away from a crossing.
        double_parking: fraction of scenes in which a double-parked car blocks the ego's lane.
        cyclists_beside: fraction of scenes in which the ego must pass a cyclist.
        stopped_leaders: fraction of scenes in which the car ahead stops.
        left_turns: fraction of scenes in which the ego turns left across oncoming traffic.
        swerves: fraction of train scenes without a conflict in which the ego swerves from time to time.
        lapses: fraction of train scenes without a conflict in which the ego slows down for no reason from time to time.
        visible_only: mark voxels that are hidden from the LIDAR as unknown, in targets and inputs.

    Raises:
        ConfigError: for a value out of range.
    """

    seed: int = 0
    train_scenes: int = 300
    val_scenes: int = 50
    test_scenes: int = 50
    keyframes: int = 41
    traffic: float = 1.0
    pedestrians: float = 1.0
    parked: float = 1.0
    raster_m: float = 0.25
    cached_scenes: int = 256
    disk_cache: bool = True
    hard_scenes: int = 60
    cut_ins: float = 0.0
    jaywalkers: float = 0.0
    double_parking: float = 0.0
    cyclists_beside: float = 0.0
    stopped_leaders: float = 0.0
    left_turns: float = 0.0
    swerves: float = 0.0
    lapses: float = 0.0
    visible_only: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("train_scenes", 0),
            ("val_scenes", 0),
            ("test_scenes", 0),
            ("hard_scenes", 0),
            ("keyframes", 2),
            ("cached_scenes", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"TownConfig.{name} must be at least {least}; found {getattr(self, name)}.")
        if self.keyframes > 45:
            raise ConfigError(f"TownConfig.keyframes must be at most 45 (22 s, the length of routes); found {self.keyframes}.")
        for name in ("traffic", "pedestrians", "parked"):
            if not 0 <= getattr(self, name) <= 3:
                raise ConfigError(f"TownConfig.{name} must be a factor from 0 to 3; found {getattr(self, name)}.")
        for name in (*FACTORS, "swerves", "lapses"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"TownConfig.{name} must be a fraction of the training scenes, from 0 to 1; found {getattr(self, name)}.")
        if (total := sum(getattr(self, name) for name in FACTORS)) > 1 + 1e-9:
            raise ConfigError(
                f"a scene has at most one kind of conflict, so {', '.join(FACTORS)} must not add up to more than 1; found {total:g}."
            )
        if not 0.05 <= self.raster_m <= 1.0:
            raise ConfigError(f"TownConfig.raster_m must be from 0.05 to 1 m; found {self.raster_m}.")

    def identity(self) -> dict[str, object]:
        """The fields that identify the data.

        Fields added after version 1 are left out at their defaults, so that old identities stay valid.
        """
        later = {f.name: f.default for f in fields(self) if f.name not in FIRST}
        kept = {k: v for k, v in asdict(self).items() if k not in ("cached_scenes", "disk_cache")}
        return {k: v for k, v in kept.items() if k not in later or v != later[k]}

    def deciding(self) -> dict[str, object]:
        """The fields that decide the content of a scene."""
        return {k: v for k, v in asdict(self).items() if k not in OUTSIDE}


FIRST = (
    "seed", "train_scenes", "val_scenes", "test_scenes", "keyframes", "traffic", "pedestrians", "parked", "raster_m", "cached_scenes",
)  # fmt: skip
"""Fields of the first version."""


def scene_counts(config: TownConfig) -> dict[str, int]:
    """Number of scenes of each split."""
    return dict(zip(ALL_SPLITS, (config.train_scenes, config.val_scenes, config.test_scenes, config.hard_scenes), strict=True))


def scene_seed(config: TownConfig, name: str) -> tuple[int, int, int]:
    """Seed of a scene: (seed, split number, scene number). It differs between all scenes of all splits.

    Raises:
        DataError: for a name that is not `town-<split>-<number>`, or a number that the split does not have.
    """
    parts = name.split("-")
    counts = scene_counts(config)
    good = (
        len(parts) == 3
        and parts[0] == "town"
        and parts[1] in ALL_SPLITS
        and len(parts[2]) == 5
        and parts[2].isascii()
        and parts[2].isdigit()
    )
    if not good or int(parts[2]) >= counts[parts[1]]:
        held = ", ".join(f"{count} {split}" for split, count in counts.items())
        raise DataError(f"the town has no scene '{name}'; names are like town-train-00000, and this town holds {held} scenes.")
    return config.seed, ALL_SPLITS.index(parts[1]), int(parts[2])
