"""The rows of a model's vocabulary: which of them the tokenizer uses, and logits without the others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError
from cos_core.files.text import one_line
from cos_core.models import pretrained

if TYPE_CHECKING:
    import torch


def check_tokens(where: str, tokenizer: Any, rows: int) -> None:
    """Raises InputError for a tokenizer that has tokens beyond the `rows` of the embedding."""
    with pretrained.reading(where):
        token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if number >= rows:
        raise InputError(
            f"cannot load the checkpoint {where}: its tokenizer gives {one_line(token, 60)!r} the id {number}, and the "
            f"vocabulary has {rows} rows; is it the tokenizer of another model?"
        )


def unused_rows(tokenizer: Any, image_token_id: int, rows: int) -> tuple[int, ...]:
    """The rows of a vocabulary that stand for no text: the picture's mark, and what pads the vocabulary beyond the tokenizer.

    An original checkpoint has none of them. They are there in the layout of `transformers`, trained or copied from others, and
    an answer that holds one has no text: it is never generated, and takes no share of the probability in training.
    """
    spoken = set(tokenizer.get_vocab().values()) - {image_token_id}
    return tuple(row for row in range(rows) if row not in spoken)


def without_rows(logits: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Logits (..., vocabulary) in which the `rows` have no probability, changed in place; None: as they are."""
    return logits if rows is None else logits.index_fill_(-1, rows, -math.inf)
