"""The full-size models without their shortcuts: `plainly()` replaces them by the formulas of `iidrive.models.plain`.

This is the reference of `model.py`. The published code computes in the same way, and its time depends on the machine: slow matrix products or a fast
convolution change every number in units of another operation.
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
    """Replace every shortcut by its plain formula; weights and results stay the same."""
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
