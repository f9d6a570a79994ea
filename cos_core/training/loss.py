"""A training loss without the rows of the vocabulary that no answer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cos_core.models.vocabulary import without_rows


def mask_rows(model: Any, rows: Sequence[int]) -> None:
    """Makes the model's own cross-entropy give the `rows` of its vocabulary no probability.

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
        masked = without_rows(logits, index.to(logits.device))
        result: torch.Tensor = plain(logits=masked, labels=labels, vocab_size=vocab_size, **options)
        return result

    model.loss_function = loss
