"""What the families share whose pictures are bounded by their longest edge."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.models.families import Family, PixelBudget


class LongestEdge(Family):
    """The longer side of a picture is resized to at most `longest_edge` pixels."""

    budget_words: ClassVar[tuple[str, ...]] = ("longest_edge",)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        image_processor.size = {"longest_edge": budget.longest_edge}

    def budget(self, image_processor: Any) -> dict[str, int]:
        return {"longest_edge": int(image_processor.size["longest_edge"])}
