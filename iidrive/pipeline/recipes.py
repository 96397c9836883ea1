"""Recipes: complete named configs of models and trainings.

`tiny` is for tests. `demo` trains in about ten minutes on two cores, `small` in about three hours. `full` is the published size, and `published` the
same with the arithmetic of the published code. Every field can be overridden on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import get_args

from iidrive.core.errors import ConfigError, unknown
from iidrive.core.scene import GridSpec
from iidrive.core.text import printable
from iidrive.data.town.source import TownConfig
from iidrive.models.baselines import EgoMLPConfig
from iidrive.models.iiworld.quirks import Quirk
from iidrive.models.occupancy_flow import FlowConfig
from iidrive.models.planner import PlannerConfig
from iidrive.models.quantise import QuantiserConfig
from iidrive.models.reactions import ReactionConfig
from iidrive.models.route import RouteConfig
from iidrive.models.tokenizer import TokenizerConfig
from iidrive.models.world import WorldConfig
from iidrive.training.optim import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Everything a run needs besides the data.

    Attributes:
        name: name of the recipe in reports.
        tokenizer: stage 1, the scene tokenizer.
        world: stage 2, the world model.
        reactions: the world model's reaction net, for planners with a forecast for each candidate.
        planner: the planner on top of the world model.
        ego_mlp: the baseline `ego-mlp`.
        train_tokenizer: how the tokenizer is trained.
        train_motion: how the world model's motion prior is trained, before the world model.
        train_flow: how the world model's occupancy flow is trained, before the world model.
        train_world: how the world model is trained.
        train_reactions: how a reaction net is trained on a finished world model.
        train_route: how the planner's route head is trained, before the planner.
        train_planner: how the planner is trained.
        train_ego_mlp: how `ego-mlp` is trained.
        town: the synthetic towns, if the data are towns.
        clip_frames: keyframes per clip in the tokenizer's training.
        shares: fraction of the samples from each source, relative to the others, if the data are several sources; {}: proportional to their sizes.
    """

    name: str = "small"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    reactions: ReactionConfig = field(default_factory=lambda: ReactionConfig(16))
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    ego_mlp: EgoMLPConfig = field(default_factory=EgoMLPConfig)
    train_tokenizer: TrainConfig = field(default_factory=TrainConfig)
    train_motion: TrainConfig = field(default_factory=TrainConfig)
    train_flow: TrainConfig = field(default_factory=TrainConfig)
    train_world: TrainConfig = field(default_factory=TrainConfig)
    train_reactions: TrainConfig = field(default_factory=TrainConfig)
    train_route: TrainConfig = field(default_factory=TrainConfig)
    train_planner: TrainConfig = field(default_factory=TrainConfig)
    train_ego_mlp: TrainConfig = field(default_factory=TrainConfig)
    town: TownConfig = field(default_factory=TownConfig)
    clip_frames: int = 5
    shares: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < float("inf"):
                raise ConfigError(
                    f"shares.{name} must be a number above 0; found {printable(share)}. Leave a source without a share out of --data."
                )
        width = self.tokenizer.latent_width
        if not self.world.width == self.planner.latent_width == width:
            raise ConfigError(
                f"the world model's width and the planner's latent_width must be the tokenizer's latent width {width}; "
                f"found {self.world.width} and {self.planner.latent_width}."
            )


ACCELERATIONS = (0.0, -0.5, 0.5, -1.0, 1.0, -2.0, 2.0, -3.0, -4.0, -6.0)
"""Accelerations of the candidates relative to the plan's own speed, m/s², in order of magnitude."""

SHIFTS_M = (0.0, 0.3, -0.3, 0.6, -0.6, 1.0, -1.0, 1.5, -1.5)
"""Lateral shifts of the proposal that are tried to keep to the road; left is positive."""

COARSE_GRID = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
"""64 x 64 x 6.4 m around the ego in voxels of 0.8 m: Occ3D's grid, downsampled by two and cropped."""


def small() -> Recipe:
    """A small model that trains on two cores in about three hours, mostly for the world model and the planner."""
    quantiser = QuantiserConfig(codes=512, width=32)
    tokenizer = TokenizerConfig(
        grid=COARSE_GRID,
        class_width=8,
        base_width=16,
        multipliers=(1, 2),
        blocks=(1, 1),
        attention=(False, False),
        middle_attention=False,
        groups=8,
        quantiser=quantiser,
        voxel_loss="balanced",
        voxel_weight=1.0,
        prior=0.25,
        lovasz_bins=256,
    )
    world = WorldConfig(
        width=32,
        strides=(1, 2, 2),
        decoder_layers=2,
        feed_forward=64,
        voxel_weight=0.3,
        trajectory_weight=0.3,
        rotation_weight=10.0,
        flow=FlowConfig(width=32),
    )
    planner = PlannerConfig(
        latent_width=32,
        width=48,
        ii_fraction=0.25,
        accelerations=ACCELERATIONS,
        shifts_m=SHIFTS_M,
        collision_m=40.0,
        overlap_m=80.0,
        smooth=3.0,
        quality_width=32,
        route=RouteConfig(points=12),
    )
    base = TrainConfig(weight_decay=1e-2, max_grad_norm=1.0, ema_decay=0.995, ema_warmup_steps=100.0)
    return Recipe(
        "small",
        tokenizer,
        world,
        ReactionConfig(16),
        planner,
        EgoMLPConfig(),
        replace(base, samples=9000, batch=2, learning_rate=4e-3, warmup=100, log_every=200, save_every=4000),
        replace(base, samples=102400, batch=64, learning_rate=1e-3, warmup=1280, log_every=6400, save_every=51200, ema_decay=0.99),
        replace(base, samples=36_000, batch=6, learning_rate=2e-3, warmup=300, log_every=600, save_every=6000),
        replace(base, samples=5600, batch=2, learning_rate=1e-3, warmup=100, log_every=80, save_every=1600),
        replace(base, samples=24_000, batch=8, learning_rate=2e-3, warmup=320, log_every=800, save_every=8000),
        replace(base, samples=48_000, batch=16, learning_rate=1e-3, warmup=640, log_every=1600, save_every=8000),
        replace(base, samples=96_000, batch=16, learning_rate=1e-3, warmup=640, log_every=1600, save_every=8000),
        replace(base, samples=102400, batch=64, learning_rate=1e-3, warmup=1280, log_every=6400, save_every=51200, ema_decay=0.99),
        TownConfig(train_scenes=220, test_scenes=24, swerves=0.75, lapses=0.75),
    )


def demo() -> Recipe:
    """The small models, trained for about ten minutes."""
    r = small()
    return replace(
        r,
        name="demo",
        planner=replace(r.planner, route=RouteConfig()),
        train_tokenizer=replace(r.train_tokenizer, samples=3000),
        train_motion=replace(r.train_motion, samples=64000),
        train_flow=replace(r.train_flow, samples=6000, batch=4, log_every=600),
        train_reactions=replace(r.train_reactions, samples=4800),
        train_world=replace(r.train_world, samples=160, log_every=20),
        train_planner=replace(r.train_planner, samples=1280, log_every=160, save_every=1280),
        train_ego_mlp=replace(r.train_ego_mlp, samples=64000),
        town=replace(r.town, train_scenes=32, test_scenes=5, swerves=0.0, lapses=0.0),
    )


def tiny() -> Recipe:
    """Seconds, not quality: for tests."""
    r = small()
    quantiser = replace(r.tokenizer.quantiser, codes=32, width=16)
    tokenizer = replace(
        r.tokenizer, grid=GridSpec((32, 32, 4), (-25.6, -25.6, -1.6), 1.6), class_width=4, base_width=8, quantiser=quantiser
    )
    brief = TrainConfig(samples=16, batch=4, warmup=4, learning_rate=1e-3, ema_decay=0.9, ema_warmup_steps=2.0, log_every=4, save_every=8)
    return replace(
        r,
        name="tiny",
        tokenizer=tokenizer,
        world=replace(
            r.world, width=16, heads=4, decoder_layers=1, feed_forward=32, plan_width=16, prior_width=16, flow=FlowConfig(width=8, lifted=4)
        ),
        planner=replace(r.planner, latent_width=16, width=16, proposals=3, route=RouteConfig(points=8, width=16, refinements=1)),
        ego_mlp=EgoMLPConfig(hidden=16),
        train_tokenizer=replace(brief, batch=2),
        train_motion=brief,
        train_flow=brief,
        train_reactions=brief,
        train_world=brief,
        train_route=brief,
        train_planner=brief,
        train_ego_mlp=brief,
        town=replace(r.town, train_scenes=16, test_scenes=4, swerves=0.0, lapses=0.0),
        clip_frames=3,
    )


def full() -> Recipe:
    """The published size and schedule: 200x200x16 voxels, 512 codes of width 128, 50x50 cells."""
    stage1 = TrainConfig(
        samples=24 * 1999 * 64,
        batch=64,
        learning_rate=5e-4,
        warmup=200 * 64,
        schedule="step",
        step_at=20 / 24,
        log_every=3200,
        save_every=127_936,
        micro_batch=2,
    )
    return Recipe(
        "full",
        TokenizerConfig(mirror="clip"),
        WorldConfig(flow=FlowConfig(width=64)),
        ReactionConfig(32),
        PlannerConfig(
            accelerations=ACCELERATIONS,
            shifts_m=SHIFTS_M,
            collision_m=40.0,
            overlap_m=80.0,
            smooth=3.0,
            quality_width=32,
            route=RouteConfig(points=12, width=64),
        ),
        train_tokenizer=stage1,
        train_motion=replace(stage1, samples=256_000, learning_rate=1e-3, save_every=128_000, micro_batch=0),
        train_flow=replace(stage1, samples=12 * 1999 * 64, learning_rate=1e-3, micro_batch=16),
        train_reactions=replace(stage1, samples=12 * 1999 * 64, learning_rate=1e-3, micro_batch=16),
        train_world=replace(stage1, samples=48 * 1999 * 64, learning_rate=1e-3, step_at=36 / 48, micro_batch=8),
        train_route=replace(stage1, samples=12 * 1999 * 64, learning_rate=5e-4, micro_batch=16),
        train_planner=replace(stage1, samples=12 * 1999 * 64, learning_rate=5e-4, micro_batch=16),
        train_ego_mlp=replace(stage1, samples=128_000, learning_rate=1e-3, save_every=64_000, micro_batch=0),
    )


def published() -> Recipe:
    """`full` with the arithmetic of the published code, including its quirks: to use its weights, or to compare with it.

    One difference remains: it trains on clips of five frames in random order, while the published code streams scenes frame by frame.
    """
    r = full()
    quantiser = replace(r.tokenizer.quantiser, inter="past", project_past=False, inter_loss=False, codebook_start="uniform")
    tokenizer = replace(r.tokenizer, quantiser=quantiser, warp="stream", cell_points="corner", mirror="frame", stale_mirror=True)
    world = replace(
        r.world, norm="batch", align="none", residual="none", motion="map", quirks=get_args(Quirk), start="xavier", flow=FlowConfig()
    )
    train_tokenizer, train_world = (replace(t, ema_initial_steps=10_560, group=8) for t in (r.train_tokenizer, r.train_world))
    return replace(
        r,
        name="published",
        tokenizer=tokenizer,
        world=world,
        planner=PlannerConfig(),
        train_tokenizer=train_tokenizer,
        train_world=train_world,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"tiny": tiny, "demo": demo, "small": small, "full": full, "published": published}
"""Recipes by their command-line name."""


def is_file(text: str) -> bool:
    """Whether a recipe argument is a file name rather than a name in `RECIPES`."""
    return text.endswith((".yaml", ".yml", ".json"))


def named(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError for an unknown name, suggesting the nearest known one."""
    if name not in RECIPES:
        raise ConfigError(unknown("recipe", name, RECIPES))
    return RECIPES[name]()
