"""What a checkpoint's processor makes of dialogues of one and of two pictures, tried before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.models import checkpoint_files as files
from cos_core.models import pretrained
from cos_core.models import processor as processors
from cos_core.models.general_check import facts

SIZE = (96, 72)
"""Pixels of the pictures that are tried."""


@dataclass(frozen=True, slots=True)
class Dialogues:
    """How a checkpoint can be asked.

    `template`: its chat template, empty where it has none; `one_picture`: why a dialogue shows one picture only, a sentence
    without its end; empty where it shows two.
    """

    template: str
    one_picture: str


def check_dialogue(where: str | Path, *, pictures: int = 1, weights: bool = True) -> None:
    """Raises InputError where a dialogue of so many pictures cannot be held with the checkpoint, besides what `facts`
    raises. `weights`: as there."""
    folder = Path(where)
    facts(folder, weights=weights)
    found = dialogues(folder)
    if not found.template:
        raise InputError(
            f"the checkpoint {folder} has no chat template, and cos asks families other than LLaVA-1.5 through theirs; put the "
            "one that its family was trained with into the folder, as chat_template.jinja"
        )
    if pictures > 1 and found.one_picture:
        raise InputError(f"{found.one_picture}; Chain-of-Spot shows two in a dialogue: ask it with --roi none")


def dialogues(where: str | Path) -> Dialogues:
    """What a folder's processor makes of two pictures. Raises InputError where there is no processor that takes pictures."""
    return _dialogues(Path(where), files.state(Path(where)))


@lru_cache(maxsize=8)
def _dialogues(folder: Path, _state: object) -> Dialogues:
    processor = processors.processor(folder)
    template = template_of(processor)
    if not template:
        return Dialogues("", "")
    return Dialogues(template, _one_picture(folder, processor))


def template_of(processor: Any) -> str:
    """The chat template that a processor asks by; the one named "default" where it has several."""
    template = processor.chat_template
    return str(template.get("default", "") if isinstance(template, dict) else template or "")


def _one_picture(folder: Path, processor: Any) -> str:
    """Why a dialogue shows one picture only, or nothing. Raises InputError where it shows none."""
    if not isinstance(getattr(processor, "image_token", None), str):
        raise InputError(
            f"the {type(processor).__name__} of {folder} has no mark for a picture, so that cos cannot say where one stands in "
            "a dialogue; take a model of another family"
        )
    with pretrained.reading(folder):
        one = tokens(processor, 1)
    try:
        two = tokens(processor, 2)
    except Exception as error:  # templates and processors can raise anything
        return f"{folder} shows one picture in a dialogue ({pretrained.quoted(error)})"
    # LLaVA-OneVision shows two in fewer tokens than one, and three in more than two.
    if two <= one and tokens(processor, 3) <= two:
        return f"{folder} shows one picture in a dialogue (two pictures take {two} tokens, and one takes {one})"
    return ""


def tokens(processor: Any, pictures: int, size: tuple[int, int] = SIZE) -> int:
    """Image tokens of a dialogue that shows so many pictures of `size`; ValueError where its template leaves one out."""
    from PIL import Image

    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    for _ in range(pictures - 1):
        turns += [{"role": "assistant", "content": [{"type": "text", "text": "Here."}]}, turns[0]]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    marks = text.count(processor.image_token)
    if marks != pictures:
        raise ValueError(f"its chat template writes {marks} pictures where the dialogue has {pictures}")
    shown = Image.new("RGB", size, (90, 120, 30))
    batch = processor(text=[text], images=[[shown] * pictures], return_tensors="pt")
    # Aya Vision's mark is another word than its image tokens.
    token = getattr(processor, "image_token_id", None)
    if token is None:
        token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return int((batch["input_ids"] == token).sum())
