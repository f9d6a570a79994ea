"""The prompts of a family's own processor, against those of a server: as many tokens and, where they are told, the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.messages import chat_messages
from cos_core.doctor import prompt
from cos_core.doctor.finding import MachineFinding
from cos_core.engines._served import ServedModel
from cos_core.errors import InputError, MissingError
from cos_core.models import pretrained
from cos_core.models import processor as processors
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    from PIL.Image import Image


def findings(
    served: ServedModel, dialogues: Sequence[Sequence[Turn]], images: Mapping[str, Image], seen: Sequence[prompt.Seen]
) -> Iterator[MachineFinding]:
    """Whether the server's prompts of `dialogues` are those that the checkpoint's processor writes here.

    What they differ in is not explained: a chat template of another family can be anything.
    """
    try:
        processor = processors.processor(served.folder or "")
        here = [_ids(served, processor, turns, images) for turns in dialogues]
    except (InputError, MissingError) as error:
        yield MachineFinding("prompt", "warning", f"not compared: {error}")
        return
    mark = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    counts = " and ".join(str(len(ids)) for ids in here)
    if all(_equal(mine, theirs, mark) for mine, theirs in zip(here, seen, strict=True)):
        by_ids = all(each.ids is not None for each in seen)
        proof = "id by id" if by_ids else "by their number: what keeps it can go unseen without /tokenize"
        yield MachineFinding("prompt", "ok", f"{counts} tokens, as the local engine's, {proof}")
        return
    there = " and ".join(str(len(each.ids or ()) if each.count is None else each.count) for each in seen)
    yield MachineFinding(
        "prompt",
        "missing",
        f"the server computes another prompt: {there} tokens there, {counts} here; how they differ is not looked into for "
        f"{served.kind}",
        "serve this folder with its own chat template and picture settings",
    )


def _ids(served: ServedModel, processor: Any, turns: Sequence[Turn], images: Mapping[str, Image]) -> tuple[int, ...]:
    """The ids of a dialogue, picture tokens and all. Raises InputError where the checkpoint's template refuses it."""
    vision = served.vision

    def picture(slot: Slot) -> dict[str, Any]:
        return {"type": "image", "image": images[slot] if vision is None else vision.shown(images[slot])}

    messages = chat_messages(served.dialogue.profile, turns, picture)
    with pretrained.reading(served.folder):
        batch = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return tuple(int(token) for token in batch["input_ids"][0])


def _equal(mine: tuple[int, ...], theirs: prompt.Seen, mark: int) -> bool:
    """Whether a server's report fits `mine`; its ids may have one mark a picture."""
    if theirs.count is not None and theirs.count != len(mine):
        return False
    return theirs.ids in (None, mine) or prompt.collapsed(theirs.ids or (), mark)[0] == prompt.collapsed(mine, mark)[0]
