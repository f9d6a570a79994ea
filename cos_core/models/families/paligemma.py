"""PaliGemma: pictures first, one prompt, which is read both ways; boxes by tokens of their own, y first."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families._one_size import OneSize


class PaliGemma(OneSize):
    name: ClassVar[str] = "PaliGemma"
    boxes: ClassVar[BoxStyle] = BoxStyle("image", "1024th", "y0x0y1x1", "<loc{y0}><loc{x0}><loc{y1}><loc{x1}>", 0)
    boxes_source: ClassVar[str] = "ai.google.dev/gemma/docs/paligemma"
    not_continuable: ClassVar[str] = "its prompt is read in both directions, so that a longer one changes what stands before"
    first_position: ClassVar[int] = 1
    needs_token_types: ClassVar[bool] = True

    def layout(self, text: str, processor: Any) -> str:
        """The start token stands behind the last picture, a line break at the end."""
        mark: str = processor.image_token
        end = text.rfind(mark) + len(mark)
        return text[:end] + processor.tokenizer.bos_token + text[end:] + "\n"

    def token_types(self, is_image: Any) -> Any:
        """All of a prompt is its prefix (0), pictures and text alike."""
        return is_image * 0


def build() -> PaliGemma:
    return PaliGemma()
