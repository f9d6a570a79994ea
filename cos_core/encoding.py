"""From a dialogue to token ids and loss labels: one function for training and inference.

Text between image slots is tokenised in one piece per stretch and the repeated start mark is dropped, as LLaVA's own
`tokenizer_image_token` does (upstream §7); each image slot becomes `image_tokens` copies of the image token.
Knows tokenizers by their call signature only; imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cos_core.errors import InputError
from cos_core.prompts import Profile
from cos_core.types import ImageSlot, Slot, Turn

IGNORE = -100
"""The label that cross-entropy leaves out."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with one label each (IGNORE where the loss does not look) and the image slots in order of appearance."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)


def render(profile: Profile, turns: Sequence[Turn]) -> list[tuple[str, bool] | ImageSlot]:
    """The dialogue as stretches: (text, learnt) pairs and image slots, in order.

    A dialogue whose last turn is the user's ends with the assistant's role, ready for generation. A learnt stretch is an
    assistant's text with its end mark, as LLaVA supervises it.
    """
    pieces: list[tuple[str, bool] | ImageSlot] = [(profile.system, False)]
    for turn in turns:
        if turn.role == "user":
            pieces.append((profile.user, False))
            pieces += [p if isinstance(p, ImageSlot) else (p, False) for p in turn.parts]
            pieces.append((profile.assistant, False))
        else:
            text = "".join(p for p in turn.parts if isinstance(p, str))
            # The space after the role is not learnt, but stays in front of the answer for the tokenizer.
            pieces += [(" ", False), (text + profile.turn_end, turn.learn)]
    return pieces


def encode(profile: Profile, turns: Sequence[Turn], tokenizer: Any, image_token_id: int, image_tokens: int) -> Encoded:
    """Token ids, labels and slots of a dialogue.

    `tokenizer`: a fast Hugging Face tokenizer (character offsets are needed for exact labels); `image_tokens`: how many
    positions one picture takes (576 for LLaVA-1.5). A token is learnt when it reaches into a learnt stretch. Raises InputError
    for a tokenizer without offsets and for text that holds the image token's own mark.
    """
    ids: list[int] = []
    labels: list[int] = []
    slots: list[Slot] = []
    stretch: list[tuple[str, bool]] = []

    def flush() -> None:
        if stretch:
            new_ids, new_labels = _encode_text(stretch, tokenizer, first=not ids)
            if image_token_id in new_ids:
                raise InputError("a question or answer holds the image mark; take it out of the text")
            ids.extend(new_ids)
            labels.extend(new_labels)
            stretch.clear()

    for piece in render(profile, turns):
        if isinstance(piece, ImageSlot):
            flush()
            slots.append(piece.slot)
            ids.extend([image_token_id] * image_tokens)
            labels.extend([IGNORE] * image_tokens)
        else:
            stretch.append(piece)
    flush()
    return Encoded(tuple(ids), tuple(labels), tuple(slots))


def _encode_text(stretch: Sequence[tuple[str, bool]], tokenizer: Any, first: bool) -> tuple[list[int], list[int]]:
    text = "".join(t for t, _ in stretch)
    learnt: list[tuple[int, int]] = []
    at = 0
    for piece, learn in stretch:
        if learn:
            learnt.append((at, at + len(piece)))
        at += len(piece)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("the checkpoint's tokenizer has no fast version; save it again with a current transformers")
    # split_special_tokens stays False: the end mark in the profile must become the end token.
    out = tokenizer(text, return_offsets_mapping=True, add_special_tokens=first)
    ids, labels = [], []
    for token, (start, end) in zip(out["input_ids"], out["offset_mapping"], strict=True):
        ids.append(int(token))
        inside = any(end > low and start < high and end > start for low, high in learnt)
        labels.append(int(token) if inside else IGNORE)
    return ids, labels
