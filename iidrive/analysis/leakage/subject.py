"""What is audited: a pipeline from a source to a model's outputs, for baselines, checkpoints and your own models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from iidrive.analysis.leakage.counterfactual import real_name
from iidrive.analysis.leakage.findings import Answers
from iidrive.core.batch import Batch
from iidrive.core.errors import ConfigError
from iidrive.core.scene import GridSpec
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, Frames, OccupancyFrames, keyframes
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.baselines import KINEMATIC
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline.infer import HORIZON_STEPS
from iidrive.pipeline.load import load_agent, load_ego_mlp, load_forecaster
from iidrive.pipeline.tokens import scene_codes
from iidrive.runtime.run_folder import device
from iidrive.training import checkpoint, shipped

Array = np.ndarray

Hook = Callable[[Batch], Batch]
"""Changes a batch before the model gets it."""
Sample = tuple[str, int]
"""Scene name and keyframe index."""


def unchanged(batch: Batch) -> Batch:
    """The hook that returns the batch as it is."""
    return batch


@dataclass
class View:
    """The data that a model is given: a source, the source that its tokens are made from, and a `hook` that changes the batch.

    `stored`: whether tokens may come from a cache, which is wrong if the tokens' source is changed. `codes`: tokens already computed, by scene.
    """

    source: Source
    tokens: Source
    hook: Hook = unchanged
    stored: bool = True
    codes: dict[str, Array] = field(default_factory=dict, compare=False)


Subject = Callable[[View, Sequence[Sample]], Answers]
"""A whole pipeline, from a source to the outputs at some keyframes, computed as one batch."""
Make = Callable[[], Subject]
"""Creates a fresh pipeline without any state."""


@dataclass(frozen=True)
class Pipeline:
    """A subject made from a model: clips of a source → batch → outputs. `wrap` may wrap another source around the given one."""

    answer: Callable[[Batch], Mapping[str, torch.Tensor]]
    encode: Callable[[Source, str], Array] | None = None
    cache: Frames | None = None
    occupancy: GridSpec | None = None
    wrap: Callable[[Source], Source] = lambda source: source

    def __call__(self, view: View, samples: Sequence[Sample]) -> Answers:
        """Outputs at `samples`, computed as one batch."""
        source = self.wrap(view.source)
        tracks = [EgoTrack.of(source.scene(name)) for name in dict.fromkeys(name for name, _ in samples)]
        place = {real_name(track.name): i for i, track in enumerate(tracks)}
        frames = OccupancyFrames(source, self.occupancy, keyframes(tracks)) if self.occupancy else None
        codes = self._codes(view) if self.encode or self.cache else None
        clips = ClipDataset(tracks, ClipSpec(full_future=False), frames, codes, future=True)
        rows = {sample: row for row, sample in enumerate(clips.samples)}
        batch = view.hook(clips.batch([rows[place[real_name(name)], index] for name, index in samples]))
        answers = self.answer(batch.to(device()))
        return {k: v.numpy(force=True).copy() for k, v in answers.items()}

    def _codes(self, view: View) -> Frames:
        def codes(name: str, indices: Array) -> Array:
            name = real_name(name)
            if self.cache is not None and view.stored:
                return self.cache(name, indices)
            assert self.encode is not None
            if name not in view.codes:
                view.codes[name] = self.encode(self.wrap(view.tokens), name)
            return view.codes[name][indices]

        return codes


def tokenizing(tokenizer: Tokenizer) -> Callable[[Source, str], Array]:
    """A function (source, scene name) → tokens of all keyframes, as `iidrive tokens` computes them."""
    return lambda source, name: scene_codes(tokenizer, source, source.scene(name))


def of_checkpoint(path: str, test_ii: bool = False, tokens: str = "") -> Make:
    """A factory for a baseline by name, or for the planner, world model or ego-status MLP of a checkpoint. `tokens` is a token cache to use.

    Raises:
        ConfigError: for a tokenizer, which predicts nothing, and for a path that is neither a baseline nor a checkpoint.
    """
    if path in KINEMATIC:
        plan = KINEMATIC[path]
        return lambda: Pipeline(lambda batch: {"plan": plan(batch.inputs)})
    if not shipped.exists(path):
        raise ConfigError(
            f"{path}: neither a checkpoint nor one of {', '.join(KINEMATIC)}. Give the run folder of a planner or world model."
        )
    found = checkpoint.read(path)
    kind = found.manifest.kind
    if kind == "ego-mlp":
        mlp = load_ego_mlp(found)

        def fresh_mlp() -> Pipeline:
            own = copy.deepcopy(mlp)
            return Pipeline(lambda batch: {"plan": own.plan(batch.inputs)})

        return fresh_mlp
    if kind not in ("planner", "world"):
        raise ConfigError(f"{path} is a {kind}, which neither plans nor forecasts. Audit a planner or a world model.")
    agent = load_agent(found).model if kind == "planner" else None
    forecaster = agent.forecaster if agent is not None else load_forecaster(found).model
    encode = tokenizing(forecaster.tokenizer)
    cache = TokenCache(tokens) if tokens else None

    def make() -> Pipeline:
        if agent is None:
            own = copy.deepcopy(forecaster)
            return Pipeline(lambda batch: forecast(own, batch), encode, cache)
        fresh = copy.deepcopy(agent)
        return Pipeline(lambda batch: {**planned(fresh, batch, test_ii), **forecast(fresh.forecaster, batch)}, encode, cache)

    return make


def planned(agent: Agent, batch: Batch, ii: bool) -> dict[str, torch.Tensor]:
    """The plan, and the cost of every candidate: a leak may change costs without changing the choice."""
    if not agent.planner.config.accelerations:
        return {"plan": agent.plan(batch.inputs, ii)}
    choice = agent.choice(batch.inputs, ii)
    return {"plan": choice.best(), "cost": choice.cost_m}


def forecast(forecaster: Forecaster, batch: Batch) -> dict[str, torch.Tensor]:
    """Labels 0 to 3 s ahead, and the predicted latents, motion and (with an occupancy flow) probabilities."""
    labels, imagined = forecaster.forecast(batch.inputs, HORIZON_STEPS)
    found = {"forecast": labels, "latents": imagined.latents, "motion": imagined.now_T_frame}
    return found if imagined.flow is None else {**found, "taken": imagined.flow.taken}
