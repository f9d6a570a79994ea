"""What of `cos` works with a checkpoint, how its family writes a box, and how finely it shows a picture: for people and for
docs.

Files and the processor are asked, no weights are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.dialogue.box_text import write_box
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.geometry import Box, in_frame
from cos_core.models import families, general, general_probe, loading, pretrained, textual
from cos_core.models import processor as processors
from cos_core.models.families import Family
from cos_core.types import Turn

SIZES = ((336, 336), (1280, 720), (3000, 2000))
"""Pictures, in pixels, of which the tokens are counted."""
EXAMPLE = (640, 480)
"""The picture that the example of a box is in, whose box is its lower middle: from a quarter to three quarters, and from half
down."""
_SYSTEM, _QUESTION = "cos-system", "cos-question"
"""Texts that no template writes by itself."""

Works = dict[str, str | bool]


def works(where: Path, config: Mapping[str, Any]) -> Works:
    """Whether each part of `cos` works with a checkpoint of the general class: True, or the sentence that says why not.

    Raises InputError where there is no processor that takes pictures, and what `general_check.facts` raises.
    """
    family = families.of_config(config)
    answer: str | bool = True
    annotate: str | bool = True
    two: str | bool = "it cannot be asked"
    reuse: str | bool = two
    if family.text_profile:
        try:
            textual.check_pictures(family, 2)
        except InputError as error:
            two = str(error)
        reuse = "one pass has nothing to continue"
    else:
        try:
            general_probe.check_dialogue(where)
        except InputError as error:
            answer = str(error)
        else:
            two = general_probe.dialogues(where).one_picture or True
            reuse = f"computed from its start, because {family.not_continued}" if family.not_continued else True
            if not family.name:
                reuse = "found out when it is loaded, since its family has no file in cos"
    try:
        loading.check_grids(where)
    except InputError as error:
        annotate = str(error)
    return {
        "answer": answer,
        "two_passes": two,
        "reuse": reuse,
        "annotate": annotate,
        "train": _trained(where, family, two),
    }


def _trained(where: Path, family: Family, two_passes: str | bool) -> str | bool:
    """Whether a checkpoint can learn dialogues of two passes, or why not."""
    if family.not_trained:
        return family.not_trained
    if two_passes is not True:
        return two_passes
    asked, said = (Turn("user", ("Where?",)), Turn("assistant", ("Here.",), learn=True))
    try:
        general.encoder_of(str(where)).encode([asked, said, asked, said], _no_picture)
    except InputError as error:
        return str(error)
    return True


def _no_picture(slot: str) -> Any:
    raise AssertionError(f"a dialogue of words asks for the picture {slot!r}")


def boxes(profile: Profile, family: Family, image_processor: Any = None) -> dict[str, Any]:
    """How boxes are written under a profile: frame, unit, order, an example and where the family's way is documented."""
    style = profile.boxes
    seen = family.resized(image_processor, *EXAMPLE) if style.unit == "pixel" and image_processor is not None else EXAMPLE
    box = Box(0.25, 0.5, 0.75, 1.0, "image")
    shown = in_frame(box, style.frame, EXAMPLE)
    source = family.boxes_source if style == family.boxes else ""
    return {
        "frame": "the picture" if style.frame == "image" else "the padded square",
        "unit": UNITS[style.unit],
        "order": " ".join(style.places),
        "example": write_box(shown, profile, seen),
        "example_of": f"{' '.join(f'{side:g}' for side in box.corners)} in a picture of {EXAMPLE[0]} x {EXAMPLE[1]}",
        "source": source or None,
    }


UNITS = {
    "fraction": "fraction",
    "thousandth": "thousandth",
    "1024th": "1024th",
    "pixel": "pixel of the resized picture",
}


def asked(where: Path, profile: Profile, family: Family) -> dict[str, Any]:
    """How a checkpoint is asked, by the folder's own processor: `boxes`, the pixel `budget`, `tokens` of a picture in three
    sizes, and the chat `template`, its SHA-256 and the system text that it writes by itself. Raises InputError."""
    processor = processors.processor(where)
    with pretrained.reading(where):
        counts = {f"{width} x {height}": general_probe.tokens(processor, 1, (width, height)) for width, height in SIZES}
        budget = family.budget(processor.image_processor)
        written = boxes(profile, family, processor.image_processor)
    text = general_probe.template_of(processor)
    return {
        "boxes": written,
        "budget": {families.option(word): value for word, value in budget.items()},
        "tokens": counts,
        "template": {"sha256": hashlib.sha256(text.encode()).hexdigest(), "system": own_system_text(processor) or None},
    }


def own_system_text(processor: Any) -> str:
    """What a chat template says to the model when no system text is given; empty where it says nothing."""
    user = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}
    system = {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]}
    bare = _rendered(processor, [user]).partition(_QUESTION)[0]
    given = _rendered(processor, [system, user]).partition(_QUESTION)[0]
    if _SYSTEM in given:
        before, _, behind = given.partition(_SYSTEM)
        inside = bare.startswith(before) and bare.endswith(behind) and len(bare) >= len(before) + len(behind)
        return bare[len(before) : len(bare) - len(behind)].strip() if inside else ""
    for token in processor.tokenizer.all_special_tokens:
        bare = bare.replace(token, " ")
    return bare.strip() if len(bare.split()) >= 4 else ""


def _rendered(processor: Any, turns: list[dict[str, Any]]) -> str:
    try:
        return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template is a program of the checkpoint's; one that refuses a system turn has no text to show
        return ""
