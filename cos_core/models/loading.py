"""Loading any checkpoint that `cos` can ask: LLaVA-1.5 by its own fast path, every other family by the general class."""

from __future__ import annotations

from pathlib import Path

from cos_core.dialogue.prompts import Profile
from cos_core.models import general, general_check, hub, llava
from cos_core.models.families import PixelBudget
from cos_core.models.layout import check as layout_check
from cos_core.models.loaded import LoadedModel


def check(where: str | Path) -> None:
    """Looks at a checkpoint's folder before anything is built from it. Raises what `load` raises for its files."""
    if general.serves(str(where)):
        general_check.check(where)
    else:
        layout_check.check(where)


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    budget: PixelBudget | None = None,
) -> LoadedModel:
    """Loads a checkpoint for inference. Raises what `llava.load` and `general.load` raise."""
    if general.serves(hub.resolve(model)):
        return general.load(model, profile=profile, device=device, dtype=dtype, attention=attention, budget=budget)
    return llava.load(model, profile=profile, device=device, dtype=dtype, attention=attention)
