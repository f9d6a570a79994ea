"""Where the answers of a dialogue stand in the text that a chat template writes, and which of its tokens are learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cos_core.errors import InputError
from cos_core.types import Turn

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Where an answer stands in a dialogue's text, in characters.

    `start`: the end of the prompt that asks for it; `end`: behind its last word; `stop`: behind what the template adds to it.
    """

    start: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class TemplateParts:
    """What a chat template writes around an answer.

    `role`: between question and answer in a prompt; `gap`: what the model must write before the answer's first word, a space in
    some templates; `behind`: what follows the answer. `white_space`: whether a finished dialogue has other white space in front
    of an answer than a prompt ends with.
    """

    role: str = ""
    gap: str = ""
    behind: str = ""
    white_space: bool = False


_QUESTION, _ANSWER = "cos-question", "cos-answer"
"""Texts that no template writes by itself."""


def template_parts(processor: Any) -> TemplateParts:
    """What a processor's chat template writes around an answer."""
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", _QUESTION), ("assistant", _ANSWER))
    ]
    asked = str(processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
    answered = str(processor.apply_chat_template(turns, tokenize=False))
    before, _, behind = answered.rpartition(_ANSWER)
    continued = before.startswith(asked)
    return TemplateParts(
        role=asked.rpartition(_QUESTION)[2],
        gap=before.removeprefix(asked) if continued else "",
        behind=behind,
        white_space=not continued and before.rstrip() == asked.rstrip(),
    )


def placed(
    rendered: Callable[[Messages], str], messages: Messages, turns: Sequence[Turn], parts: TemplateParts
) -> tuple[str, list[Answer]] | None:
    """The text of a dialogue with each answer of turns with `learn` behind the text of its prompt, and where these stand.

    `rendered` gives the template's text of messages. Where a finished dialogue has other white space in front of an answer than
    its prompt ends with, it gets the prompt's. None where the template does not write an answer as a continuation of what
    stands before it.
    """
    text = rendered(messages)
    answers: list[Answer] = []
    result, done = "", 0
    for place, turn in enumerate(turns, len(messages) - len(turns)):
        if turn.role == "user" or not turn.learn:
            continue
        before, after = rendered(messages[:place]), rendered(messages[: place + 1])
        head = _head(after, "".join(part for part in turn.parts if isinstance(part, str)), parts.behind)
        if head is None or not text.startswith(after):
            return None
        if head.startswith(before):
            result, done = result + text[done : len(before)], len(before)
        elif head.rstrip() == before.rstrip():
            kept = len(before.rstrip())
            result, done = result + text[done:kept] + before[kept:], len(head)
        else:
            return None
        stop = len(result) + len(after) - done
        answers.append(Answer(len(result), stop - len(parts.behind), stop))
    return result + text[done:], answers


def _head(after: str, said: str, behind: str) -> str | None:
    """What stands in front of a dialogue's last answer, which may have been stripped; None where it is not there."""
    if not after.endswith(behind):
        return None
    body = after[: len(after) - len(behind)]
    words = next((words for words in (said, said.rstrip(), said.lstrip(), said.strip()) if body.endswith(words)), None)
    return None if words is None else body[: len(body) - len(words)]


def label(
    ids: list[int],
    labels: list[int],
    offsets: Sequence[tuple[int, int]],
    answer: Answer,
    end_ids: frozenset[int],
    end: int | None,
) -> None:
    """Labels the tokens of an answer and its end, in place; `offsets`: the characters [start, end) of each token.

    `end_ids`: the ids that end an answer; `end`: None where the template writes one of them behind each answer. Else it is the
    label behind the answer's last token, whatever the template writes there; at the end of the dialogue it is put there itself.
    Raises InputError for an answer that holds one of `end_ids`, and where a token belongs to an answer and to its prompt.
    """
    inside = [
        place
        for place, (low, high) in enumerate(offsets)
        # Tokens without characters are pieces of a character, or a space that the tokenizer puts there by itself.
        if low < answer.stop and (high > answer.start or low == high >= answer.start)
    ]
    if inside and offsets[inside[0]][0] < answer.start:
        raise InputError(
            "an answer begins with white space that the tokenizer joins with the end of the prompt; take it out of the text"
        )
    words = [place for place in inside if offsets[place][0] < answer.end]
    if any(ids[place] in end_ids for place in words):
        raise InputError("an answer holds the token that ends answers; take it out of the text")
    if end is None:
        ends = next((number for number, place in enumerate(inside) if ids[place] in end_ids), len(inside))
        words = inside[: ends + 1]
    for place in words:
        labels[place] = ids[place]
    if end is None:
        return
    behind = next((place for place, (low, _) in enumerate(offsets) if low >= answer.end), len(ids))
    if behind == len(ids):
        ids.append(end)
        labels.append(end)
    else:
        labels[behind] = end
