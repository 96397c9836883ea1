"""Conversion between the parameter names of the published weights (github lzzzzzm/II-World) and ours. Values are not changed.

A table row pairs a prefix of a published name with a prefix of ours. The rest of the name (`.weight`, `.0.bias`) is kept. `#` is a number
that both share. `~` is a number that the other side counts from the end: the published decoder stores its levels finest first but runs them
coarsest first. The first matching row is used.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from iidrive.core.errors import CheckpointError
from iidrive.models.states import State, refuse

Table = tuple[tuple[str, str], ...]

STARTED = "quantiser.started"
_MOTION_TIME = "motion_time"

TOKENIZER: Table = (
    ("class_embeds.weight", "classes"),
    ("vq.embedding.weight", "quantiser.codebook"),
    ("vq.quant_conv", "quantiser.before"),
    ("vq.post_quant_conv", "quantiser.after"),
    ("vq.recover_scale_conv.#", "quantiser.scale_convs.#"),
    ("vq.recover_time_conv.#", "quantiser.time_convs.#"),
    ("encoder.down.#.block.#.nin_shortcut", "encoder.levels.#.blocks.#.shortcut"),
    ("encoder.down.#.block.#", "encoder.levels.#.blocks.#"),
    ("encoder.down.#.attn.#.proj_out", "encoder.levels.#.attentions.#.out"),
    ("encoder.down.#.attn.#", "encoder.levels.#.attentions.#"),
    ("encoder.down.#.downsample.conv", "encoder.levels.#.resample"),
    ("decoder.up.~.block.#.nin_shortcut", "decoder.levels.~.blocks.#.shortcut"),
    ("decoder.up.~.block.#", "decoder.levels.~.blocks.#"),
    ("decoder.up.~.attn.#.proj_out", "decoder.levels.~.attentions.#.out"),
    ("decoder.up.~.attn.#", "decoder.levels.~.attentions.#"),
    ("decoder.up.~.upsample.conv", "decoder.levels.~.resample.1"),
    *(
        (f"{half}.{theirs}", f"{half}.{ours}")
        for half in ("encoder", "decoder")
        for theirs, ours in (
            ("conv_in", "conv_in"),
            ("mid.block_1", "middle.0"),
            ("mid.attn_1.proj_out", "middle.1.out"),
            ("mid.attn_1", "middle.1"),
            ("mid.block_2", "middle.2"),
            ("norm_out", "out.0"),
            ("conv_out", "out.2"),
        )
    ),
)
"""Names of stage 1 (tokenizer): (published, ours)."""

WORLD: Table = (
    ("pose_encoder.pose_time_embedding", _MOTION_TIME),
    ("pose_encoder.plan_input", "motion_embed"),
    ("pose_encoder.plan_encoder", "plan_query"),
    *(
        (f"transformer.{theirs}.layers.#.attentions.0.{a}", f"{ours}.#.attention.{b}")
        for theirs, ours in (("intra_encoder", "intra"), ("inter_decoder", "inter"))
        for a, b in (("sampling_offsets", "offsets"), ("attention_weights", "weights"), ("value_proj", "value"), ("output_proj", "out"))
    ),
    ("transformer.intra_encoder.layers.#.attentions.1.plan_attn", "intra.#.plan_attention"),
    ("transformer.intra_encoder.layers.#.attentions.1.plan_out", "intra.#.plan_mlp"),
    ("transformer.intra_encoder.layers.#.convs.0.conv1", "intra.#.conv1"),
    ("transformer.intra_encoder.layers.#.convs.0.conv2", "intra.#.conv2"),
    ("transformer.intra_encoder.layers.#.convs.0.bn1", "intra.#.norm1"),
    ("transformer.intra_encoder.layers.#.convs.0.bn2", "intra.#.norm2"),
    ("transformer.intra_encoder.layers.#.convs.0.downsample", "intra.#.skip"),
    ("transformer.intra_encoder.layers.#.norms", "intra.#.norms"),
    ("transformer.intra_encoder.layers.#.plan_norms", "intra.#.plan_norms"),
    ("transformer.inter_decoder.layers.#.attentions.1.history_fusion", "inter.#.join"),
    ("transformer.inter_decoder.layers.#.attentions.1.output_proj", "inter.#.mix"),
    ("transformer.inter_decoder.layers.#.ffns.0.layers.0.0", "inter.#.feed_forward.0"),
    ("transformer.inter_decoder.layers.#.ffns.0.layers.1", "inter.#.feed_forward.2"),
    ("transformer.inter_decoder.layers.#.norms", "inter.#.norms"),
    ("transformer.positional_encoding.row_embed.weight", "row"),
    ("transformer.positional_encoding.col_embed.weight", "column"),
    ("transformer.temporal_embedding.weight", "time"),
    ("transformer.u_net.recover_convs", "fuse"),
    ("transformer.plan_embed", "condition"),
    ("transformer.plan_translation_output", "plan_head"),
)
"""Names of stage 2 (world model): (published, ours), without the tokenizer nested under `vqvae.`."""


def tokenizer_from_published(state: State) -> dict[str, Tensor]:
    """Convert a published tokenizer's state dict to ours. Raises CheckpointError, listing unknown names."""
    renamed = _renamed(state, TOKENIZER)
    renamed[STARTED] = torch.tensor(True)
    return renamed


def tokenizer_to_published(state: State) -> dict[str, Tensor]:
    """Convert our tokenizer's state dict to the published names. Raises CheckpointError if its codebook has not been initialised."""
    if STARTED in state and not bool(state[STARTED]):
        raise CheckpointError("this tokenizer's codebook has not been initialised yet: train it for at least one step before exporting it.")
    return _renamed({k: v for k, v in state.items() if k != STARTED}, _turned(TOKENIZER))


def world_from_published(state: State) -> dict[str, Tensor]:
    """Convert a published world model's state dict, without the nested tokenizer (see `nested`), to ours.

    Raises CheckpointError as above.
    """
    renamed = _renamed(state, WORLD)
    if _MOTION_TIME in renamed:
        renamed[_MOTION_TIME] = renamed[_MOTION_TIME].flatten(0, 1)
    return renamed


def world_to_published(state: State) -> dict[str, Tensor]:
    """Convert our world model's state dict to the published names.

    Raises CheckpointError for parts that the published model does not have.
    """
    return _renamed({k: v[None] if k == _MOTION_TIME else v for k, v in state.items()}, _turned(WORLD))


def nested(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a published world model's state dict into its own and that of its nested tokenizer (empty if none), under published names."""
    prefix = "vqvae."
    own = {k: v for k, v in state.items() if not k.startswith(prefix)}
    return own, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _turned(table: Table) -> Table:
    return tuple((ours, theirs) for theirs, ours in table)


def _renamed(state: State, table: Table) -> dict[str, Tensor]:
    rules = [(re.compile(a.replace(".", r"\.").replace("#", r"(\d+)").replace("~", r"(\d+)") + r"(?=\.|$)"), a, b) for a, b in table]
    last: dict[str, int] = {}
    fits: dict[str, tuple[re.Match[str], str, str]] = {}
    for name in state:
        for pattern, before, after in rules:
            if match := pattern.match(name):
                fits[name] = match, before, after
                if "~" in before:
                    stem = before[: before.index("~")]
                    last[stem] = max(last.get(stem, 0), int(match[1]))
                break
    refuse("names of the published model", {"unexpected": [name for name in state if name not in fits]})
    renamed: dict[str, Tensor] = {}
    for name, (match, before, after) in fits.items():
        numbers = list(match.groups())
        if "~" in before:
            numbers[0] = str(last[before[: before.index("~")]] - int(numbers[0]))
        parts = re.split("[#~]", after)
        made = parts[0] + "".join(n + part for n, part in zip(numbers, parts[1:], strict=True))
        renamed[made + name[match.end() :]] = state[name]
    return renamed
