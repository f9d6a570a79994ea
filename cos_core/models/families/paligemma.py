"""PaliGemma: pictures first, one prompt, which is read both ways; boxes by tokens of their own, y first."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families._one_size import OneSize
from cos_core.models.families._pieces import patches
from cos_core.models.grids import Grid


class PaliGemma(OneSize):
    name: ClassVar[str] = "PaliGemma"
    boxes: ClassVar[BoxStyle] = BoxStyle("image", "1024th", "y0x0y1x1", "<loc{y0}><loc{x0}><loc{y1}><loc{x1}>", 0)
    boxes_source: ClassVar[str] = "ai.google.dev/gemma/docs/paligemma"
    not_continuable: ClassVar[str] = "its prompt is read in both directions, so that a longer one changes what stands before"
    first_position: ClassVar[int] = 1
    needs_token_types: ClassVar[bool] = True
    replies_behind: ClassVar[bool] = True

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """One grid over the whole picture."""
        return (Grid(*patches(config)),)

    def layout(self, text: str, processor: Any) -> str:
        """The start token stands behind the last picture, a line break at the end."""
        mark: str = processor.image_token
        end = text.rfind(mark) + len(mark)
        return text[:end] + processor.tokenizer.bos_token + text[end:] + "\n"

    def token_types(self, is_image: Any, replied: Any = None) -> Any:
        """All of a prompt is its prefix (0), pictures and text alike; what is replied (1) is read in one direction."""
        return is_image * 0 if replied is None else replied.to(is_image.dtype)


def build() -> PaliGemma:
    return PaliGemma()
