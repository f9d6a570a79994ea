"""From items to one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cos_core.dialogue.encoding import IGNORE
from cos_core.models.pixels import processed
from cos_core.training.dataset import TrainingItem
from cos_core.training.skipped import Skipped

if TYPE_CHECKING:
    from PIL.Image import Image

CONTENTS = "contents"
"""The key of a batch's BatchContents, which is taken out before the model sees the batch."""


@dataclass(slots=True)
class BatchContents:
    """What a batch holds. `unlearnt`: samples without a label; `squares`: the sum of the squared lengths (attention).

    `fallbacks`: samples whose region is the whole picture because they have none.
    """

    ids: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    unlearnt: list[str] = field(default_factory=list)
    tokens: int = 0
    squares: int = 0
    pictures: int = 0
    padding: int = 0
    fallbacks: int = 0


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads on the right to the longest of the batch; runs in the data loading process, on the CPU.

    `image_processor`: the checkpoint's own; `fill`: the colour that pads a picture to a square. `stand_in` (image token id and
    tokens a picture): a batch of text only gets one grey picture, hidden behind the end of its first row, where nothing attends
    to it. Only needed where every process must run the vision tower in every step (ZeRO-3).
    """

    image_processor: Any
    pad_token_id: int
    fill: tuple[int, int, int]
    stand_in: tuple[int, int] | None = None

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` (batch, length), IGNORE on padding; `pixel_values` (pictures, 3, side, side).

        Pictures stand in the order of their slots, row by row, as the model's forward fills image tokens; a batch of text only
        has no `pixel_values`, so that no vision pass is spent on it.
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
            ids[0, start : start + hidden[1]] = hidden[0]
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if pictures:
            batch["pixel_values"] = self._pixels(pictures)
        elif hidden is not None:
            batch["pixel_values"] = self._pixels([_grey(self.fill)])
        batch[CONTENTS] = _contents(items, length, len(pictures))
        return batch

    def _pixels(self, pictures: Sequence[Image]) -> torch.Tensor:
        return processed(self.image_processor, pictures, self.fill)


def _tensor(numbers: Sequence[int]) -> torch.Tensor:
    # A tenth of torch.tensor's time, which looks at every number for its type first.
    return torch.from_numpy(np.fromiter(numbers, np.int64, len(numbers)))


def _grey(fill: tuple[int, int, int]) -> Image:
    from PIL import Image

    return Image.new("RGB", (32, 32), fill)


def _contents(items: Sequence[TrainingItem], length: int, pictures: int) -> BatchContents:
    real = [item for item in items if not item.filler]
    sizes = [len(item.encoded) for item in items]
    return BatchContents(
        ids=[item.id for item in real],
        skipped=[skipped for item in items for skipped in item.skipped],
        unlearnt=[item.id for item in real if all(label == IGNORE for label in item.encoded.labels[1:])],
        tokens=sum(sizes),
        squares=sum(size * size for size in sizes),
        pictures=pictures,
        padding=len(items) * length - sum(sizes),
        fallbacks=sum(item.fallback for item in real),
    )
