"""What decides the towns: their config, their splits, and the seed of every scene."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from iidrive.core.errors import ConfigError, DataError

VERSION = 1
"""Raised whenever the same config would give other scenes."""

SPLITS = ("train", "val", "test")
HARD = "hard"
"""A further split: every scene is built for one kind of conflict, each kind in turn."""
ALL_SPLITS = (*SPLITS, HARD)

FACTORS = ("cut_ins", "jaywalkers", "double_parking", "cyclists_beside", "stopped_leaders", "left_turns")
"""Fields that say how often training scenes are hard, in the order of the kinds."""

OUTSIDE = ("train_scenes", "val_scenes", "test_scenes", "hard_scenes", "raster_m", "cached_scenes", "disk_cache", "visible_only")
"""Fields that decide how many scenes there are, how they are kept or how they are painted, but not what is in one of them."""


@dataclass(frozen=True)
class TownConfig:
    """What the town is like: how many scenes a split has, how long they are, and how busy.

    The fractions `cut_ins` to `left_turns` of the train and val scenes are built for that kind of conflict, as the scenes of the split `hard` are.

    Attributes:
        seed: other seeds are other towns.
        train_scenes: scenes of the training split.
        val_scenes: scenes of the validation split.
        test_scenes: scenes of the test split.
        keyframes: keyframes of a scene, at 2 Hz; at most 45.
        traffic: factor on the usual number of vehicles that drive.
        pedestrians: factor on the usual number of pedestrians.
        parked: factor on the usual number of parked vehicles.
        raster_m: cell of the standing world's raster, metres.
        cached_scenes: scenes kept in memory; results do not depend on it.
        disk_cache: whether every scene is kept on disk once it was made; results do not depend on it.
        hard_scenes: scenes of the split hard, in which somebody is in the ego's way.
        cut_ins: fraction of scenes in which a car changes into the ego's lane just ahead.
        jaywalkers: fraction of scenes in which somebody crosses the street away from a crossing.
        double_parking: fraction of scenes in which a car stands in the ego's lane beside parked ones.
        cyclists_beside: fraction of scenes in which the ego comes upon a cyclist.
        stopped_leaders: fraction of scenes in which the car ahead stops.
        left_turns: fraction of scenes in which the ego turns left across oncoming traffic.
        swerves: fraction of the other train scenes in which the ego swerves aside now and then, and comes back.
        lapses: fraction of the same scenes in which it slows down for no reason now and then, and drives on.
        visible_only: whether voxels that are hidden from the LIDAR are unknown, in targets as well as in inputs.

    Raises:
        ConfigError: for counts or sizes that cannot work.
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
            raise ConfigError(f"TownConfig.keyframes must be at most 45 (22 s, as far as routes reach); found {self.keyframes}.")
        for name in ("traffic", "pedestrians", "parked"):
            if not 0 <= getattr(self, name) <= 3:
                raise ConfigError(f"TownConfig.{name} is a factor from 0 to 3; found {getattr(self, name)}.")
        for name in (*FACTORS, "swerves", "lapses"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"TownConfig.{name} is a share of the training scenes, from 0 to 1; found {getattr(self, name)}.")
        if (total := sum(getattr(self, name) for name in FACTORS)) > 1 + 1e-9:
            raise ConfigError(f"a scene has one kind of conflict at most, so {', '.join(FACTORS)} may add up to 1; found {total:g}.")
        if not 0.05 <= self.raster_m <= 1.0:
            raise ConfigError(f"TownConfig.raster_m must lie between 0.05 and 1 m; found {self.raster_m}.")

    def identity(self) -> dict[str, object]:
        """The fields that name the data. Fields that came later are left out at their defaults, so that old names stay."""
        later = {f.name: f.default for f in fields(self) if f.name not in FIRST}
        kept = {k: v for k, v in asdict(self).items() if k not in ("cached_scenes", "disk_cache")}
        return {k: v for k, v in kept.items() if k not in later or v != later[k]}

    def deciding(self) -> dict[str, object]:
        """The fields that decide what is in a scene of a given name."""
        return {k: v for k, v in asdict(self).items() if k not in OUTSIDE}


FIRST = (
    "seed", "train_scenes", "val_scenes", "test_scenes", "keyframes", "traffic", "pedestrians", "parked", "raster_m", "cached_scenes",
)  # fmt: skip
"""Fields of the first version."""


def scene_counts(config: TownConfig) -> dict[str, int]:
    """How many scenes every split has."""
    return dict(zip(ALL_SPLITS, (config.train_scenes, config.val_scenes, config.test_scenes, config.hard_scenes), strict=True))


def scene_seed(config: TownConfig, name: str) -> tuple[int, int, int]:
    """(seed, split number, scene number): what all chance in a scene grows from, different for any two scenes of any two splits.

    Raises:
        DataError: for a name that is not `town-<split>-<number>` with a number that the split holds.
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
