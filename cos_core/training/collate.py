"""From items to one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cos_core.encoding import IGNORE
from cos_core.images import square_pad
from cos_core.training.data import Item

if TYPE_CHECKING:
    from PIL.Image import Image

SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads on the right to the longest of the batch; runs in the data loading process, on the CPU.

    `image_processor`: the checkpoint's own; `fill`: the colour that pads a picture to a square.
    """

    image_processor: Any
    pad_token_id: int
    fill: tuple[int, int, int]

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """`input_ids`, `attention_mask`, `labels` (batch, length), IGNORE on padding; `pixel_values` (pictures, 3, side, side).

        Pictures stand in the order of their slots, row by row, as the model's forward fills image tokens; a batch of text only
        has no `pixel_values`, so that no vision pass is spent on it. `skipped` lists what was replaced (taken out before the
        model sees the batch).
        """
        length = max(len(item.encoded) for item in items)
        ids = torch.full((len(items), length), self.pad_token_id)
        labels = torch.full((len(items), length), IGNORE)
        mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, item in enumerate(items):
            size = len(item.encoded)
            ids[row, :size] = torch.tensor(item.encoded.ids)
            labels[row, :size] = torch.tensor(item.encoded.labels)
            mask[row, :size] = 1
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        pictures = [picture for item in items for picture in item.pictures]
        if pictures:
            batch["pixel_values"] = self._pixels(pictures)
        batch[SKIPPED] = [skipped for item in items for skipped in item.skipped]
        return batch

    def _pixels(self, pictures: Sequence[Image]) -> torch.Tensor:
        squares = [square_pad(picture, self.fill) for picture in pictures]
        pixels: torch.Tensor = self.image_processor(squares, return_tensors="pt")["pixel_values"]
        return pixels
