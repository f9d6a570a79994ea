"""Loading any checkpoint that `cos` can ask.

LLaVA-1.5 has a fast path of its own, models without a dialogue are asked in plain text, every other family is of the general
class.
"""

from __future__ import annotations

from pathlib import Path

from cos_core.dialogue.prompts import Profile
from cos_core.files.text import one_line
from cos_core.models import checkpoint_files as files
from cos_core.models import families, general, general_check, general_probe, hub, llava, textual
from cos_core.models import processor as processors
from cos_core.models.families import PixelBudget
from cos_core.models.layout import check as layout_check
from cos_core.models.loaded import LoadedModel
from cos_core.models.textual import TextualModel


def check(where: str | Path, *, pictures: int) -> None:
    """Looks at a checkpoint's folder before anything is built from it, for dialogues of so many pictures.

    Raises what `load` raises for its files, and InputError where a dialogue shows fewer pictures.
    """
    if not general.serves(str(where)):
        layout_check.check(where)
        return
    family = _family(where)
    if family.text_profile:
        general_check.check(where)
        textual.check_pictures(family, pictures)
    else:
        general_probe.check_dialogue(where, pictures=pictures)


def check_grids(where: str | Path, budget: PixelBudget | None = None) -> None:
    """Looks at a checkpoint's folder before relevance is mapped to pictures with it.

    Raises what `load` raises for its files, and InputError where its image tokens look at no known part of the picture.
    """
    if not general.serves(str(where)):
        layout_check.check(where)
        families.of_type("llava").set_budget(None, budget or PixelBudget())
        return
    family = _family(where)
    if family.text_profile:
        general_check.check(where)
        family.grids(None, None, general_probe.SIZE)
    else:
        general.encoder_of(str(where), budget=budget).grids(general_probe.SIZE)


def remark(where: str | Path) -> str | None:
    """What a user should know of how a checkpoint's family is run, a sentence; None where there is nothing to say."""
    if not general.serves(str(where)):
        return None
    config = files.settings(Path(where), files.CONFIG) or {}
    family, kind = families.of_config(config), one_line(config.get("model_type"), 60)
    if not family.name:
        return (
            f"{kind} is a family without a file in cos: it is tried on two small pictures once it is loaded, and where cos's "
            "way is not equal to its own, every dialogue is computed from its start"
        )
    anew = f"pass 2 is computed from its start, because {family.not_continuable}" if family.not_continuable else ""
    dated = "strftime_now" in (processors.chat_template(Path(where)) or "")
    date = "its chat template writes today's date, so that answers of two days may differ" if dated else ""
    said = "; ".join(filter(None, (family.second_view_change, anew, date)))
    return f"{family.name}: {said}" if said else None


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    budget: PixelBudget | None = None,
) -> LoadedModel | TextualModel:
    """Loads a checkpoint for inference. Raises what `llava.load` and `general.load` raise."""
    where = hub.resolve(model)
    if not general.serves(where):
        if budget is not None:
            families.of_type("llava").set_budget(None, budget)
        return llava.load(model, profile=profile, device=device, dtype=dtype, attention=attention)
    read = textual.load if _family(where).text_profile else general.load
    return read(model, profile=profile, device=device, dtype=dtype, attention=attention, budget=budget)


def _family(folder: str | Path) -> families.Family:
    return families.of_config(files.settings(Path(folder), files.CONFIG) or {})
