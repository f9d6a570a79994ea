"""The rules by themselves: what y is, where it is read, and how one layer moves relevance (CoS Eq. 4-6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from cos_core.errors import InputError

TargetKind = Literal["log-odds", "logit", "logprob", "argmax"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """How relevance is computed.

    `target`: the scalar y (see `target_score`); `last_layers`: how many layers, counted from the last, are walked (None: all).
    The rest bounds memory and leaves the result as it is: `stream_layers` keeps the inputs of the layers alone and computes
    each layer again when it is walked, one more forward pass for a fraction of the memory (None: when what would be kept goes
    beyond `activation_bytes`, None for memory.ACTIVATION_BYTES), what its attention gave excepted where that has room there;
    `block`: queries whose attention rows are rebuilt at a time (None: see attention.block_size).
    """

    target: TargetKind = "log-odds"
    last_layers: int | None = None
    stream_layers: bool | None = None
    block: int | None = None
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise InputError(f"unknown relevance target {self.target!r}; one of {', '.join(TARGETS)}")
        for name in ("last_layers", "block", "activation_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    def least(self) -> SweepSettings:
        """The settings with which a sweep takes the least memory."""
        return replace(self, stream_layers=True, activation_bytes=1)


@dataclass(frozen=True, slots=True)
class Readings:
    """Where y is read: for each sequence up to T positions and the token expected there.

    `positions`, `tokens`: (batch, T) integers; `valid`: (batch, T) booleans, False where a sequence has fewer than T.
    Position p predicts the token at p + 1. Every sequence has at least one valid reading.
    """

    positions: torch.Tensor
    tokens: torch.Tensor
    valid: torch.Tensor


def mean_positive(attention: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """CoS Eq. 5: (batch, heads, queries, keys) twice -> Abar (batch, queries, keys); the positive part, then the mean."""
    return (attention * gradient).clamp(min=0).mean(1)


def propagate_rows(rows: torch.Tensor, averaged: torch.Tensor) -> torch.Tensor:
    """CoS Eq. 6 for rows of R, from the last layer down: (batch, rows, n) and Abar (batch, n, n) -> (batch, rows, n)."""
    return rows + rows @ averaged.to(rows.dtype)


def initial_rows(readings: Readings, length: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of R = I where y is read, averaged over a sequence's readings: (batch, 1, length).

    Kept in float32 when the model computes in half precision.
    """
    precision = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    weights = readings.valid.to(precision)
    weights = weights / weights.sum(1, keepdim=True)
    rows = torch.zeros(readings.positions.shape[0], length, dtype=precision, device=readings.positions.device)
    return rows.scatter_add_(1, readings.positions, weights)[:, None]


def target_score(logits: torch.Tensor, readings: Readings, kind: TargetKind) -> torch.Tensor:
    """The scalar y, summed over readings and sequences (whose gradients do not mix): logits (batch, T, vocabulary) -> ().

    "log-odds": the expected token's logit minus the log-sum-exp of all others, that is log p / (1 - p); "logit": the logit
    alone (Chefer et al.); "logprob": log p; "argmax": the logit of the model's own choice, whatever is expected.
    """
    tokens = logits.argmax(-1) if kind == "argmax" else readings.tokens
    scores = logits.gather(2, tokens[..., None])[..., 0]
    if kind == "log-odds":
        others = logits.scatter(2, tokens[..., None], -math.inf)
        scores = scores - others.logsumexp(-1)
    elif kind == "logprob":
        scores = scores - logits.logsumexp(-1)
    return scores.masked_fill(~readings.valid, 0).sum()
