"""The slow way to relevance (CoS Eq. 4-6), kept as an oracle: every attention map is stored and R is a full (N, N) matrix."""

from __future__ import annotations

from typing import Any

import torch


def relevance_matrix(decoder: Any, head: Any, embeddings: torch.Tensor, score: Any, attention_mask: Any = None) -> torch.Tensor:
    """R (batch, N, N) for the scalar `score(head(last hidden states))`, by `torch.autograd.grad` on the maps themselves."""
    maps: list[torch.Tensor] = []

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * scaling
        n = scores.shape[-1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril() if mask is None else mask
        # Eq. 4, in the model's own precision (the library's "eager" rounds float64 maps to float32).
        maps.append(torch.softmax(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min), -1))
        return (maps[-1] @ value).transpose(1, 2), None

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("kept_maps", attention)
    AttentionMaskInterface.register("kept_maps", sdpa_mask)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("kept_maps")
    try:
        leaf = embeddings.detach().requires_grad_(True)
        hidden = decoder(inputs_embeds=leaf, attention_mask=attention_mask, use_cache=False).last_hidden_state
        gradients = torch.autograd.grad(score(head(hidden)), maps)
    finally:
        decoder.set_attn_implementation(before)
    n = embeddings.shape[1]
    relevance = torch.eye(n, dtype=embeddings.dtype).expand(embeddings.shape[0], n, n)
    for a, gradient in zip(maps, gradients, strict=True):
        averaged = (gradient * a).clamp(min=0).mean(1)  # Eq. 5
        relevance = relevance + averaged @ relevance  # Eq. 6
    return relevance.detach()
