"""The slow way to relevance (CoS Eq. 4-6), kept as an oracle: every attention map is stored and R is a full (N, N) matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def relevance_matrix(decoder: Any, head: Any, embeddings: torch.Tensor, score: Any, attention_mask: Any = None) -> torch.Tensor:
    """R (batch, N, N) for the scalar `score(head(last hidden states))` of a decoder alone."""

    def logits() -> torch.Tensor:
        out = decoder(inputs_embeds=embeddings.detach(), attention_mask=attention_mask, use_cache=False)
        return head(out.last_hidden_state)  # type: ignore[no-any-return]

    return whole_matrix(decoder, logits, score)


def whole_matrix(decoder: Any, logits: Callable[[], torch.Tensor], score: Any) -> torch.Tensor:
    """R (batch, N, N) for the scalar `score(logits())`, by `torch.autograd.grad` on the maps themselves.

    `logits`: runs a whole model with this decoder.
    """
    with kept_maps(decoder) as maps:
        gradients = torch.autograd.grad(score(logits()), maps)
    batch, _, n, _ = maps[0].shape
    relevance = torch.eye(n, dtype=maps[0].dtype).expand(batch, n, n)
    for a, gradient in zip(maps, gradients, strict=True):
        averaged = (gradient * a).clamp(min=0).mean(1)  # Eq. 5
        relevance = relevance + averaged @ relevance  # Eq. 6
    return relevance.detach()


@contextmanager
def kept_maps(decoder: Any) -> Iterator[list[torch.Tensor]]:
    """The maps (batch, heads, n, n) of all layers that run inside, in the decoder's own precision, with their graph."""
    maps: list[torch.Tensor] = []

    def attention(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **options: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        n = scores.shape[-1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask
        # Eq. 4, in the model's own precision (the library's "eager" rounds float64 maps to float32).
        maps.append(torch.softmax(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min), -1))
        return (maps[-1] @ value).transpose(1, 2), None

    def leaf(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args:
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_(True)}
        return (args[0].detach().requires_grad_(True), *args[1:]), kwargs

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("kept_maps", attention)
    AttentionMaskInterface.register("kept_maps", sdpa_mask)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("kept_maps")
    handle = decoder.layers[0].register_forward_pre_hook(leaf, with_kwargs=True)
    try:
        with torch.enable_grad():
            yield maps
    finally:
        handle.remove()
        decoder.set_attn_implementation(before)
