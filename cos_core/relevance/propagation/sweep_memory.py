"""How much memory a sweep takes, by arithmetic: what decides on batches and on streaming.

The same on every machine on which ACTIVATION_BYTES can be had, and so are the batches, which decide the last bits of a sum. A
`config` is a whole model's or its language model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cos_core.relevance.propagation.rules import SweepSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ACTIVATION_BYTES = 2**32
"""Activations that a sweep may keep before its layers are streamed: 4 GiB, on top of the weights, where there is room."""
LEAST_BYTES = 2**26
_SPARE = 1.25
"""What must be available for each byte of activations: blocks of attention, gradients and logits stand beside them."""

_VECTORS = 10
_WIDE_VECTORS = 3
"""What autograd keeps of a layer, a token: two norms and their inputs, queries, keys, values and the attention's output in
vectors of the hidden size; gate, its activation and the other branch in vectors of the MLP's."""


def activation_bytes(room: int) -> int:
    """What a sweep may keep where `room` bytes are to be had: ACTIVATION_BYTES, else its largest half, quarter... that fits."""
    allowed = ACTIVATION_BYTES
    while allowed > LEAST_BYTES and allowed * _SPARE > room:
        allowed //= 2
    return allowed


def wanted_bytes() -> int:
    """What must be available so that a sweep may keep ACTIVATION_BYTES."""
    return int(ACTIVATION_BYTES * _SPARE)


def layer_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """What one token of one layer takes while the layer's graph is alive."""
    config = config.get_text_config()
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", 4 * hidden))
    return (_VECTORS * hidden + _WIDE_VECTORS * wide) * dtype.itemsize


def token_bytes(config: PreTrainedConfig, dtype: torch.dtype, settings: SweepSettings, streamed: bool) -> int:
    """What one token takes over the layers walked: their graphs, or when streamed their inputs and one graph."""
    config = config.get_text_config()
    layers = int(config.num_hidden_layers)
    walked = min(settings.last_layers or layers, layers)
    if streamed:
        return walked * int(config.hidden_size) * dtype.itemsize + layer_bytes(config, dtype)
    return walked * layer_bytes(config, dtype)


def streams(config: PreTrainedConfig, dtype: torch.dtype, settings: SweepSettings, tokens: int) -> bool:
    """Whether a sweep over `tokens` positions in all streams its layers: `stream_layers`, or when the graph is too large."""
    if settings.stream_layers is not None:
        return settings.stream_layers
    return tokens * token_bytes(config, dtype, settings, streamed=False) > _allowed(settings)


def keeps_outputs(config: PreTrainedConfig, dtype: torch.dtype, settings: SweepSettings, tokens: int) -> bool:
    """Whether a streamed sweep has room for what every layer's attention gave, too, which is then not computed again."""
    text = config.get_text_config()
    heads, layers = int(text.num_attention_heads), int(text.num_hidden_layers)
    width = heads * int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    output = min(settings.last_layers or layers, layers) * width * dtype.itemsize
    return tokens * (token_bytes(config, dtype, settings, streamed=True) + output) <= _allowed(settings)


def sweep_bytes(config: PreTrainedConfig, dtype: torch.dtype, settings: SweepSettings, tokens: int) -> int:
    """What a sweep over `tokens` positions keeps, streamed only with `stream_layers`; for `tokens_per_call`."""
    return tokens * token_bytes(config, dtype, settings, streamed=bool(settings.stream_layers))


def _allowed(settings: SweepSettings) -> int:
    return settings.activation_bytes or ACTIVATION_BYTES


def tokens_per_call(config: PreTrainedConfig, dtype: torch.dtype, settings: SweepSettings, most: int) -> int:
    """How many tokens one sweep may hold so that its activations stay within what is allowed; between 1 and `most`."""
    a_token = token_bytes(config, dtype, settings, streamed=bool(settings.stream_layers))
    return max(1, min(most, _allowed(settings) // a_token))
