"""How many positions of a dialogue are text, and not those of its pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from cos_core.models.encoder import Encoder
from cos_core.types import ImageSlot, Turn

USUAL_SIZE = (640, 480)
"""(width, height) in pixels of a picture whose size is not known: that of most pictures of COCO."""

TextTokens = Callable[[Sequence[Turn]], int]
"""How many positions a dialogue has without its pictures."""


def text_tokens(encoder: Encoder) -> TextTokens:
    """Counts the positions of a dialogue without those of its pictures: an empty one stands for each."""
    from PIL import Image

    empty = functools.cache(lambda variant: encoder.picture(Image.new("RGB", USUAL_SIZE, encoder.fill), variant))

    def count(turns: Sequence[Turn]) -> int:
        pictures = sum(isinstance(part, ImageSlot) for turn in turns for part in turn.parts)
        encoded = encoder.encode(turns, lambda _: empty(encoder.variant(pictures)))
        return len(encoded) - (pictures * encoder.picture_tokens(USUAL_SIZE, pictures) if pictures else 0)

    return count
