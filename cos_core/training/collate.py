"""From items to one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cos_core.dialogue.encoding import IGNORE
from cos_core.models.encoder import Encoder
from cos_core.training.dataset import TrainingItem
from cos_core.training.skipped import Skipped
from cos_core.types import ImageSlot, Turn

CONTENTS = "contents"
"""The key of a batch's BatchContents, which is taken out before the model sees the batch."""


@dataclass(slots=True)
class BatchContents:
    """What a batch holds. `unlearnt`: samples without a label; `squares`: the sum of the squared lengths (attention);
    `image_tokens`: positions at which features of `pictures` stand.

    `fallbacks`: samples whose region is the whole picture because they have none.
    """

    ids: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unlearnt: list[str] = field(default_factory=list)
    tokens: int = 0
    squares: int = 0
    image_tokens: int = 0
    pictures: int = 0
    padding: int = 0
    fallbacks: int = 0


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads on the right to the longest of the batch; runs in the data loading process, on the CPU.

    `stand_in`: the empty picture, and the number of its image tokens, that a batch of text only gets, hidden behind the end of
    its first row, where nothing attends to it. Only needed where every process must run the tower in every step (ZeRO-3).
    """

    encoder: Encoder
    pad_token_id: int
    stand_in: tuple[Any, int] | None = None

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` (batch, length), IGNORE on padding, and what the model takes besides.

        Pictures stand in the order of their slots, row by row, as the model's forward fills image tokens; a batch of text only
        has none, so that no vision pass is spent on it.
        """
        pictures = [picture for item in items for picture in item.pictures]
        hidden = self.stand_in if not pictures else None
        length = max(len(item.encoded) for item in items)
        if hidden is not None:
            length = max(length, len(items[0].encoded) + hidden[1])
        ids = torch.full((len(items), length), self.pad_token_id)
        labels = torch.full((len(items), length), IGNORE)
        mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, item in enumerate(items):
            size = len(item.encoded)
            ids[row, :size] = _tensor(item.encoded.ids)
            labels[row, :size] = _tensor(item.encoded.labels)
            mask[row, :size] = 1
        if hidden is not None:
            start = len(items[0].encoded)
            ids[0, start : start + hidden[1]] = self.encoder.image_token_id
        shown = [hidden[0]] if hidden is not None else pictures
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batch |= self.encoder.token_inputs(ids)
        if shown:
            batch |= self.encoder.tensors(shown)
        batch[CONTENTS] = _contents(items, length, len(pictures), self.encoder.image_token_id)
        return batch


def _tensor(numbers: Sequence[int]) -> torch.Tensor:
    # A tenth of torch.tensor's time, which looks at every number for its type first.
    return torch.from_numpy(np.fromiter(numbers, np.int64, len(numbers)))


def empty_picture(encoder: Encoder) -> tuple[Any, int]:
    """An empty picture and how many image tokens it has."""
    from PIL import Image

    picture = encoder.picture(Image.new("RGB", (32, 32), encoder.fill))
    return picture, encoder.prompt([Turn("user", (ImageSlot("full"),))], lambda _: picture).spans[0].tokens


def _contents(items: Sequence[TrainingItem], length: int, pictures: int, image_token_id: int) -> BatchContents:
    real = [item for item in items if not item.filler]
    sizes = [len(item.encoded) for item in items]
    return BatchContents(
        ids=[item.id for item in real],
        skipped=[skipped for item in items for skipped in item.skipped],
        unlearnt=[item.id for item in real if all(label == IGNORE for label in item.encoded.labels[1:])],
        tokens=sum(sizes),
        squares=sum(size * size for size in sizes),
        image_tokens=sum(item.encoded.ids.count(image_token_id) for item in items),
        pictures=pictures,
        padding=len(items) * length - sum(sizes),
        fallbacks=sum(item.fallback for item in real),
    )
