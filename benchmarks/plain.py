"""The full-size models without their shortcuts: `plainly()` puts the formulas of `iidrive.models.plain` in their place.

It is the yardstick of `model.py`. The published code computes like this too, and what it takes depends on the machine: a processor on
which torch's matrix products are slow, or one convolution fast, moves every number that is told in units of something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch import nn

from iidrive.models import losses, plain, tokenizer, world
from iidrive.models.cpu.convolve import EnlargedConv
from iidrive.models.cpu.products import Linear
from iidrive.models.layers import CellAttention, CellGrid, DeformableAttention
from iidrive.models.norm import Norm
from iidrive.models.quantise import ResidualQuantiser
from iidrive.models.world import InterDecoder


@contextmanager
def plainly() -> Iterator[None]:
    """Every shortcut is replaced by what it is short for; weights and results stay."""
    with ExitStack() as stack:
        for owner, name, instead in (
            (tokenizer, "convolve_columns", plain.convolve_columns),
            (EnlargedConv, "forward", plain.enlarged_conv),
            (Norm, "forward", plain.norm),
            (CellAttention, "forward", plain.cell_attention),
            (ResidualQuantiser, "nearest", plain.nearest),
            (losses, "focal_sum", plain.focal_sum),
            (losses, "lovasz_of_classes", plain.lovasz_of_classes),
            (CellGrid, "read", plain.read),
            (Linear, "forward", nn.Linear.forward),
            (DeformableAttention, "forward", plain.deformable_attention),
            (world, "attend", plain.attend),
            (InterDecoder, "forward", plain.inter_decoder),
        ):
            stack.enter_context(patch.object(owner, name, instead))
        yield
