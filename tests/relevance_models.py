"""What the tests of relevance share: small decoders, inputs, the sweep, and the kept N x N reference."""

from __future__ import annotations

from typing import Any

import torch
from reference.relevance_reference import relevance_matrix

from cos_core.relevance import propagation
from cos_core.relevance.propagation import Readings, Sequences, SweepSettings


def make_decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 56, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 3}
    llama = LlamaConfig(**{**sizes, "vocab_size": 53, "intermediate_size": 61, "initializer_range": 0.2, **config})
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama).to(dtype).eval().requires_grad_(False)


def make_input(model: Any, batch: int, length: int, count: int, seed: int = 1) -> tuple[torch.Tensor, Readings]:
    generator = torch.Generator().manual_seed(seed)
    dtype = model.lm_head.weight.dtype
    embeddings = torch.randn(batch, length, model.config.hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    positions = torch.stack([torch.randperm(length - 1, generator=generator)[:count] + 1 for _ in range(batch)])
    tokens = torch.randint(0, model.config.vocab_size, (batch, count), generator=generator)
    return embeddings, Readings(positions, tokens, torch.ones(batch, count, dtype=torch.bool))


def sequences(model: Any, embeddings: torch.Tensor, mask: torch.Tensor | None = None) -> Sequences:
    """Embeddings (batch, length, hidden) as a small decoder runs them; `mask`: (batch, length), 0 for padding."""

    def run(cache: Any) -> torch.Tensor:
        out = model(inputs_embeds=embeddings, attention_mask=mask, past_key_values=cache, use_cache=False)
        return out.logits  # type: ignore[no-any-return]

    return Sequences(model, *embeddings.shape[:2], run)


def swept(
    model: Any,
    embeddings: torch.Tensor,
    readings: Readings,
    settings: SweepSettings,
    rows: Any = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    with propagation.relevance_attention(model.model):
        return propagation.sweep(sequences(model, embeddings, mask), readings, settings, rows)


def continued(
    model: Any, prefix: torch.Tensor, suffixes: torch.Tensor, readings: Readings, settings: SweepSettings
) -> torch.Tensor:
    with propagation.relevance_attention(model.model):
        return propagation.sweep_continuations(sequences(model, prefix), sequences(model, suffixes), readings, settings)


def reference(
    model: Any,
    embeddings: torch.Tensor,
    readings: Readings,
    target: propagation.TargetKind,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    def score(logits: torch.Tensor) -> torch.Tensor:
        index = readings.positions[..., None].expand(-1, -1, logits.shape[-1])
        return propagation.target_score(logits.gather(1, index), readings, target)

    return relevance_matrix(model.model, model.lm_head, embeddings, score, mask)


def mean_rows(matrix: torch.Tensor, readings: Readings) -> torch.Tensor:
    return propagation.initial_rows(readings, matrix.shape[-1], matrix.dtype) @ matrix
