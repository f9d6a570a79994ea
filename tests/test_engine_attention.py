"""The engine's attention on a CPU equals the textbook's: every query over every key, masked, in float64."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny_llava import make_checkpoint

from cos_core.engines._attention import NAME, attend, cpu_attention
from cos_core.models import llava


def textbook(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    scores = (query.double() @ key.transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 131), (3, 3), (3, 31), (5, 31), (257, 257), (263, 607)])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_textbook(key_heads: int, queries: int, keys: int, padded: bool) -> None:
    torch.manual_seed(3)
    query = torch.randn(3, queries, 6, 11).transpose(1, 2)
    # Keys and values stand in a buffer that is longer than they are.
    key, value = (torch.randn(3, key_heads, keys + 13, 11)[:, :, :keys] for _ in range(2))
    causal = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
    mask = causal.repeat(3, 1, 1, 1)
    if padded:
        mask[1, :, :, : (keys - queries) // 2] = False
    given = mask if padded or 1 < queries < keys else None  # where transformers leaves it out
    found = attend(query, key, value, given, 0.37)
    assert torch.allclose(found.double(), textbook(query, key, value, mask, 0.37), atol=2e-6)


@pytest.mark.parametrize("queries", [1, 2, 131])
def test_a_query_that_may_look_nowhere_is_finite(queries: int) -> None:
    """What stands in padding is multiplied by zero later, and zero times NaN is NaN."""
    query, key, value = torch.randn(1, 2, queries, 5), torch.randn(1, 2, 131, 5), torch.randn(1, 2, 131, 5)
    mask = torch.zeros(1, 1, queries, 131, dtype=torch.bool)
    assert attend(query, key, value, mask, 1.0).isfinite().all()


def test_stands_in_for_sdpa_only_and_only_for_a_while(tmp_path_factory: pytest.TempPathFactory) -> None:
    where = make_checkpoint(tmp_path_factory.mktemp("tiny"))
    for attention, inside in (("sdpa", NAME), ("eager", "eager")):
        decoder = llava.load(where, device="cpu", dtype="float32", attention=attention).model.model.language_model
        with contextlib.suppress(KeyError), cpu_attention(decoder):
            assert decoder.config._attn_implementation == inside
            raise KeyError
        assert decoder.config._attn_implementation == attention
    half = llava.load(where, device="cpu", dtype="bfloat16").model.model.language_model
    with cpu_attention(half):
        assert half.config._attn_implementation == "sdpa"
