"""Attention of a decoder on a CPU, faster than torch's kernel where that is at its weakest.

Few queries a row go through a product made for many there; here they are multiplied from the side of the keys. Of what lies
behind a query the kernel skips whole steps of 512 keys only; here it gets a block of queries at a time, and the keys that the
last of them sees. Stands in `transformers`' AttentionInterface while an engine runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "cos_cpu"
FEW = 4
"""Queries a row up to which plain products are faster than the kernel."""
BLOCK = 192
"""Queries that go through the kernel together; with fewer it takes them in smaller portions, which is slower."""


@contextlib.contextmanager
def cpu_attention(decoder: Any) -> Iterator[None]:
    """Lets a decoder that computes "sdpa" in float32 on a CPU do it by `attend`; any other stays as it is."""
    before = decoder.config._attn_implementation
    able = before == "sdpa" and getattr(decoder, "_supports_attention_backend", False)
    if not able or decoder.device.type != "cpu" or decoder.dtype is not torch.float32:
        yield
        return
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # without one of this name transformers would build no mask at all
    decoder.set_attn_implementation(NAME)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Causal attention of the last n of m positions: query (rows, heads, n, d), key and value (rows, key heads, m, d).

    `mask`: (rows, 1, n, m), True where a query may look; it lies within the causal one, which None stands for. A query that may
    look nowhere gets any finite numbers. Returns (rows, heads, n, d).
    """
    rows, heads, n, width = query.shape
    groups, m = heads // key.shape[1], key.shape[2]
    if n == 1 or (n <= FEW and mask is not None):
        # Heads that share a key stand beside each other as queries of it: (rows, key heads, groups * n, d).
        folded = (query.contiguous() * scale).view(rows, -1, groups * n, width)
        scores = (key @ folded.transpose(2, 3)).transpose(2, 3).reshape(rows, heads, n, m)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (scores.softmax(-1).view(rows, -1, groups * n, m) @ value).view(rows, heads, n, width)
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    found = torch.empty_like(query)
    for start in range(0, n, BLOCK):
        end = min(start + BLOCK, n)
        seen = m - n + end
        if mask is not None:
            part = mask[:, :, start:end, :seen]
        else:
            part = torch.ones(end - start, seen, dtype=torch.bool).tril(m - n + start)
        found[:, :, start:end] = scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], attn_mask=part, scale=scale
        )
    return found


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    plain = attention_mask is None or attention_mask.dtype is torch.bool
    if not plain or scaling is None or any(kwargs.get(name) is not None for name in ("softcap", "position_bias")):
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
