"""The slow way down for LLaVAs whose attention the fused sweep does not know: from the maps that the model itself gives.

Layers are streamed, so the maps of one layer are alive at a time: (batch, heads, n, n), with their gradients.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from cos_core.errors import InputError
from cos_core.relevance.propagation.layers import DecoderPass, Sequences
from cos_core.relevance.propagation.rules import Readings, SweepSettings, initial_rows, mean_positive, propagate_rows
from cos_core.relevance.propagation.sweep import end_gradient, walked_layers
from cos_core.relevance.propagation.tape import implementation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unknown_attention(decoder: PreTrainedModel) -> str | None:
    """Why a decoder's own maps are needed, known beforehand; None where the fused sweep is tried."""
    if not getattr(decoder, "_supports_attention_backend", False):
        return f"{type(decoder).__name__} does not run its attention through the attention interface of transformers"
    if getattr(decoder.config, "attn_logit_softcapping", None):
        return "this model caps its attention scores"
    return None


def sweep_maps(sequences: Sequences, readings: Readings, settings: SweepSettings) -> torch.Tensor:
    """As sweep.sweep, (count, 1, length), from the attention maps of the decoder's "eager" implementation.

    They are what the model multiplies its values by, so windows, caps and biases are in them. Raises InputError when a layer
    gives no map, or one that its output does not depend on.
    """
    decoder, length = sequences.decoder, sequences.length
    with implementation(decoder, "eager"):
        run = DecoderPass(sequences, walked_layers(sequences, settings), streamed=True, tape=None, keep_last=False)
        gradient = end_gradient(run, run.forward(readings.positions), readings, settings)
        rows = initial_rows(readings, length, gradient.dtype)
        for number in run.walked:
            maps: list[torch.Tensor] = []
            with ExitStack() as stack:
                for module in decoder.layers[number].modules():
                    stack.callback(module.register_forward_hook(_keeper(maps, length)).remove)
                piece = run.piece(number)
            if len(maps) != 1:
                raise InputError(f"layer {number} of {type(decoder).__name__} gives {len(maps)} attention maps instead of one")
            passed, by_map = torch.autograd.grad(piece.left, (piece.entered, maps[0]), gradient, allow_unused=True)
            if by_map is None:
                raise InputError(f"the attention maps of {type(decoder).__name__} are not those it computes with")
            rows = propagate_rows(rows, mean_positive(maps[0].detach(), by_map))
            gradient = run.across(number, passed[None])[0]
    return rows


def _keeper(maps: list[torch.Tensor], length: int) -> Any:
    """A hook that keeps what looks like an attention map beside a module's output: (batch, heads, length, length)."""

    def keep(_module: Any, _args: Any, output: Any) -> None:
        for extra in output[1:] if isinstance(output, tuple) else ():
            square = isinstance(extra, torch.Tensor) and extra.ndim == 4 and extra.shape[2:] == (length, length)
            if square and not any(extra is known for known in maps):
                maps.append(extra)

    return keep
