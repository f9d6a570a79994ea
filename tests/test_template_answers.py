"""What is learnt of a dialogue that a chat template writes, on tiny checkpoints with the templates of published ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
from PIL import Image
from test_encoding import llama_like

from cos_core.dialogue import prompts
from cos_core.dialogue.encoding import IGNORE, Encoded
from cos_core.errors import InputError
from cos_core.models import general
from cos_core.models.general_encoder import GeneralEncoder
from cos_core.types import Turn

Checkpoint = Callable[..., Path]
TRAINED = tuple(name for name in tiny_families.WITH_DIALOGUE if name != "paligemma")
BOX, ANSWER, QUESTION = "[0.100, 0.200, 0.300, 0.400]", "a red dôor 東", "what is it?"
PICTURES = {"full": Image.linear_gradient("L").resize((120, 80)).convert("RGB"), "roi": Image.new("RGB", (40, 61), "red")}
SPACED = {"llava", "llava_next", "idefics3", "smolvlm"}
"""Families whose prompts end with the role alone: the blank behind it is the answer's."""


def encoded(encoder: GeneralEncoder, turns: Sequence[Turn]) -> Encoded:
    return encoder.encode(turns, lambda slot: encoder.picture(PICTURES[slot], encoder.variant(2)))


def learnt(encoder: GeneralEncoder, result: Encoded) -> list[str]:
    """The text of each run of labels."""
    runs: list[list[int]] = [[]]
    for label in result.labels:
        if label != IGNORE:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [encoder.tokenizer.decode(run) for run in runs if run]


def asked(encoder: GeneralEncoder, turns: Sequence[Turn]) -> tuple[int, ...]:
    """The ids of a prompt, its pictures shown as in a dialogue of two."""
    return encoder.prompt(turns, lambda slot: encoder.picture(PICTURES[slot], encoder.variant(2))).ids


def dialogue(encoder: GeneralEncoder, **options: Any) -> tuple[Turn, ...]:
    return prompts.dialogue(encoder.profile, QUESTION, **{"box_text": BOX, "answer": ANSWER, **options})


@pytest.mark.parametrize("name", TRAINED)
def test_boxes_and_answers_are_learnt_behind_the_prompts_of_inference(tiny_checkpoint: Checkpoint, name: str) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint(name)))
    result = encoded(encoder, dialogue(encoder, extra_turns=[("where?", "here")]))
    gap = " " if name in SPACED else ""
    end = "<end_of_turn>" if name == "gemma3" else encoder.tokenizer.eos_token
    assert learnt(encoder, result) == [f"{gap}{text}{end}" for text in (BOX, ANSWER, "here")]
    first = prompts.dialogue(encoder.profile, QUESTION)
    second = prompts.dialogue(encoder.profile, QUESTION, box_text=BOX)
    for turns in (first, second):
        prompt = asked(encoder, turns)
        if name == "llava_onevision" and turns is second:
            # A prompt of its template has a blank behind the assistant of the first answer, which is not learnt so.
            blank = encoder.tokenizer.encode(" ")[0]
            place = next(place for place, pair in enumerate(zip(prompt, result.ids, strict=False)) if pair[0] != pair[1])
            assert prompt[place] == blank
            prompt = prompt[:place] + prompt[place + 1 :]
        assert result.ids[: len(prompt)] == prompt
        assert result.labels[len(prompt) - 1] == IGNORE
        assert result.labels[len(prompt)] != IGNORE
    given = encoded(encoder, dialogue(encoder, learn_box=False))
    assert learnt(encoder, given) == [f"{gap}{ANSWER}{end}"]
    text = encoded(encoder, prompts.text_dialogue([("Hello", "Hi"), ("Bye", "See you")]))
    assert learnt(encoder, text) == [f"{gap}Hi{end}", f"{gap}See you{end}"]
    assert text.slots == ()


def test_an_answer_without_an_end_mark_learns_to_end(tiny_checkpoint: Checkpoint) -> None:
    """The token that the template goes on with keeps its place; at the end of the dialogue the end token is put there."""
    encoder = general.encoder_of(str(tiny_checkpoint("llava_next")))
    result = encoded(encoder, dialogue(encoder))
    eos = encoder.tokenizer.eos_token_id
    first = result.labels.index(eos)
    assert encoder.tokenizer.decode(result.ids[first]) == " "
    assert (result.ids[-1], result.labels[-1]) == (eos, eos)
    assert result.labels.count(eos) == 2
    assert result.ids.count(eos) == 1
    assert any("no end mark" in remark for remark in encoder.remarks)
    assert general.encoder_of(str(tiny_checkpoint("qwen2_vl"))).remarks == []


def with_template(encoder: GeneralEncoder, *changes: tuple[str, str]) -> GeneralEncoder:
    processor = copy.copy(encoder.processor)
    for before, after in changes:
        assert before in processor.chat_template
        processor.chat_template = processor.chat_template.replace(before, after)
    return replace(encoder, processor=processor)


CONTENT = "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
REPLY = "<|im_start|>assistant\n{% endif %}"


def test_templates_that_change_earlier_answers_are_refused(tiny_checkpoint: Checkpoint) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_vl")))
    for changes in (
        # Earlier answers are left out, or shortened; a prompt begins with a thought that no finished answer has.
        [(CONTENT, "{% elif message.role == 'user' or message == messages[-1] %}{{ content['text'] }}{% endif %}")],
        [(CONTENT, CONTENT.replace("{{ content['text'] }}", "{{ content['text'] if message == messages[-1] else 'x' }}"))],
        [(REPLY, "<|im_start|>assistant\n<think>\n\n{% endif %}")],
        [(REPLY, "<|im_start|>helper\n{% endif %}")],
        [(CONTENT, CONTENT.replace("{{ content['text'] }}", "{{ content['text'] | upper }}"))],
    ):
        other = with_template(encoder, *changes)
        with pytest.raises(InputError, match="as a continuation"):
            encoded(other, dialogue(other))


def test_what_a_template_writes_of_itself_in_front_of_an_answer_is_learnt(tiny_checkpoint: Checkpoint) -> None:
    """What a prompt does not hold, the model has to write; other white space is that of the prompt; texts may be stripped."""
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_vl")))
    opened = "<|im_start|>{{ message['role'] }}\n"
    for changes, gap, remarks in (
        ([(REPLY, "<|im_start|>assistant{% endif %}")], "\n", 0),
        ([(REPLY, "<|im_start|>assistant\n\n{% endif %}")], "", 1),
        ([(REPLY, "<|im_start|>assistant \n{% endif %}"), (opened, "<|im_start|>{{ message['role'] }}  ")], "", 1),
        ([(CONTENT, CONTENT.replace("content['text']", "content['text'] | trim"))], "", 0),
    ):
        other = with_template(encoder, *changes)
        result = encoded(other, dialogue(other))
        assert learnt(other, result) == [f"{gap}{BOX}<|im_end|>", f"{gap}{ANSWER}<|im_end|>"]
        assert len(other.remarks) == remarks
        prompt = asked(other, prompts.dialogue(other.profile, QUESTION))
        assert result.ids[: len(prompt)] == prompt


def test_answers_that_break_the_dialogue_are_refused_alone(tiny_checkpoint: Checkpoint) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_vl")))
    for answer, words in (
        ("red<|im_end|>", "ends answers"),
        ("a <|image_pad|>", "image mark"),
        ("half \ud800", "half a"),
        ("x" * 2**21, "too long"),
    ):
        with pytest.raises(InputError, match=words):
            encoded(encoder, dialogue(encoder, answer=answer))
    # A question may hold what it likes, but for the image mark; white space of an answer is learnt as it is.
    assert learnt(encoder, encoded(encoder, dialogue(encoder, answer=" red\n")))[-1] == " red\n<|im_end|>"


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_characters_in_bytes_and_spaces_of_the_tokenizers_own(tiny_checkpoint: Checkpoint, scheme: str) -> None:
    """As Llama's tokenizers: a character without a piece is several tokens, and a space is put in front of a text."""
    encoder = general.encoder_of(str(tiny_checkpoint("llava_next")))
    processor = copy.copy(encoder.processor)
    processor.tokenizer = llama_like(scheme)
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    other = replace(encoder, processor=processor, image_token_id=mark)
    result = encoded(other, dialogue(other))
    assert [text.strip() for text in learnt(other, result)] == [f"{BOX}</s>", f"{ANSWER}</s>"]
    assert result.ids[0] == processor.tokenizer.bos_token_id
    assert result.ids.count(processor.tokenizer.bos_token_id) == 1
    for turns in (prompts.dialogue(other.profile, QUESTION), prompts.dialogue(other.profile, QUESTION, box_text=BOX)):
        prompt = asked(other, turns)
        assert result.ids[: len(prompt)] == prompt
        assert result.labels[len(prompt)] != IGNORE


def test_a_token_of_prompt_and_answer_is_refused(tiny_checkpoint: Checkpoint) -> None:
    """Its first part would stand in the prompt of inference as another token."""
    from cos_core.models.template_answers import Answer, label

    with pytest.raises(InputError, match="white space"):
        label([1, 2, 3], [IGNORE] * 3, [(0, 2), (2, 5), (5, 7)], Answer(3, 7, 7), frozenset({9}), None)
