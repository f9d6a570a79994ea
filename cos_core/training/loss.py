"""The loss of a model whose vocabulary has rows that no answer holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch


def leave_out(model: Any, rows: Sequence[int]) -> None:
    """Has the model's own cross-entropy give the `rows` of its vocabulary no probability.

    The layout of `transformers` has a row for the picture's mark (and some that pad the vocabulary); the original LLaVA has
    none, and its softmax runs over the words alone. So does the loss here, with equal gradients for all other rows. Liger's
    fused loss never has the logits and counts all rows.
    """
    if not rows:
        return
    plain = model.loss_function
    index = torch.tensor(list(rows))

    def loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **options: Any) -> torch.Tensor:
        # In place: logits are the largest activation of all, and nothing else of a training step reads them.
        spoken = logits.index_fill_(-1, index.to(logits.device), -math.inf)
        result: torch.Tensor = plain(logits=spoken, labels=labels, vocab_size=vocab_size, **options)
        return result

    model.loss_function = loss
