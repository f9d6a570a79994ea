"""A dialogue as chat messages, the form in which chat templates and servers take it.

What the template adds is left to it: the roles, the assistant's end mark, and the line break behind a picture where the wording
has one behind every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cos_core.dialogue.prompts import Profile, break_after_image
from cos_core.types import ImageSlot, Slot, Turn

IMAGE_MARK = "a question or answer holds the image mark, which stands for a picture only; take it out of the text"
"""The sentence for text that a processor would take for a picture."""

Message = dict[str, Any]
"""One entry of `messages`: a role and its content, in parts."""


def chat_messages(profile: Profile, turns: Sequence[Turn], picture: Callable[[Slot], Message]) -> list[Message]:
    """The messages of a dialogue; `picture` gives the part that shows a slot.

    The profile's system text comes first, save where it has none; then the template's own stands.
    """
    system = profile.system.strip()
    # Content is given in parts throughout: templates that read parts find nothing in a plain text.
    head: list[Message] = [{"role": "system", "content": [text_part(system)]}] if system else []
    behind = "\n" if break_after_image(profile) else ""
    return [*head, *(_message(turn, behind, picture) for turn in turns)]


def text_part(text: str) -> Message:
    """A part of a message's content."""
    return {"type": "text", "text": text}


def _message(turn: Turn, behind: str, picture: Callable[[Slot], Message]) -> Message:
    content: list[Message] = []
    after_image = False
    for part in turn.parts:
        if isinstance(part, ImageSlot):
            content.append(picture(part.slot))
        elif text := part.removeprefix(behind) if after_image else part:
            content.append(text_part(text))
        after_image = isinstance(part, ImageSlot)
    # Templates ask what a turn begins with (Idefics3's), and a first pass may have written nothing.
    return {"role": turn.role, "content": content or [text_part("")]}
