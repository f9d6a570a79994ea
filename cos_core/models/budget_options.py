"""Options of every stage that shows pictures to a model: how finely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core import options
from cos_core.options import MODEL, option

if TYPE_CHECKING:
    from cos_core.models.families import PixelBudget


def _shown(help: str, high: int) -> Any:
    """An option of the pixel budget."""
    return option(None, help, MODEL, low=1, high=high, shown_default="as the checkpoint says", before=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """The pixel budget, option by option; which of them a checkpoint has, says its family (models/families)."""

    min_pixels: int | None = _shown("Fewest pixels that a picture is shown with (Qwen-VL).", options.SHOWN_PX)
    max_pixels: int | None = _shown("Most pixels that a picture is shown with (Qwen-VL).", options.SHOWN_PX)
    max_tiles: int | None = _shown("Most tiles that a picture is cut into (InternVL, LLaVA-NeXT).", options.TILES)
    longest_edge: int | None = _shown(
        "Longest side of a picture as it is shown, in pixels (Idefics3, SmolVLM, Pixtral).", options.SHOWN_SIDE
    )

    @property
    def pixel_budget(self) -> PixelBudget:
        """How finely pictures are shown. Raises InputError for a floor above its ceiling."""
        from cos_core.models.families import PixelBudget

        return PixelBudget(self.min_pixels, self.max_pixels, self.max_tiles, self.longest_edge)
