"""The loss of the reaction net: the cross entropy of its forecast in branches of recorded scenes.

Tokenizer and all other parts of the world model are frozen.

Shapes: B branches, S future steps, X, Y cells of the occupancy flow.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iidrive.core.batch import Batch
from iidrive.models.forecast import Forecaster
from iidrive.models.losses import Counts, masked_mean


class ReactionLearner(nn.Module):
    """A world model whose reaction net is trained, with its tokenizer."""

    def __init__(self, forecaster: Forecaster) -> None:
        super().__init__()
        assert forecaster.world.reactions is not None
        self.forecaster, self.net = forecaster.eval().requires_grad_(False), forecaster.world.reactions.requires_grad_(True)

    def train(self, mode: bool = True) -> ReactionLearner:
        """Set the mode of the reaction net. All other parts stay in eval mode."""
        super().train(mode)
        self.forecaster.eval()
        self.net.train(mode)
        return self

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time."""
        return self.forecaster.compute_modules()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of branches of a batch."""
        command = batch.inputs.command
        return {"branches": command.new_full((), len(command))}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """100 times the binary cross entropy over cells, summed over the steps of each branch."""
        part = masked_mean(self.entropies(batch)[1].sum(), (counts or self.counts(batch))["branches"])
        return part, {"reaction": part}

    def entropies(self, batch: Batch) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
        """100 times the binary cross entropy over cells, summed over the steps of each branch, without the reaction net and with it."""
        inputs, targets = batch.inputs, batch.targets
        assert targets.driven is not None
        assert targets.taken is not None
        flow = self.forecaster.occupancy_flow(inputs)
        reacting = self.net.of(flow, targets.driven[:, None], inputs.ego_T_lidar)[:, 0]
        truth = targets.taken[:, 1:].to(reacting.dtype)
        return _entropy(flow.taken[:, 1:], truth), _entropy(reacting, truth)


def _entropy(logits: Float[Tensor, "B S X Y"], truth: Float[Tensor, "B S X Y"]) -> Float[Tensor, "B"]:
    return 100 * F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((2, 3)).sum(1)
