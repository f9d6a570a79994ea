"""Profiles, and dialogues whose bytes are the same in training and inference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cos_core.dialogue.encoding import render
from cos_core.dialogue.prompts import (
    BoxStyle,
    Profile,
    break_after_image,
    checkpoint_profile,
    dialogue,
    load_profile,
    profile_names,
    text_dialogue,
)
from cos_core.errors import InputError
from cos_core.models.layout.template import chat_template
from cos_core.types import ImageSlot, Turn

PAPER, RELEASED = load_profile("paper"), load_profile("repo-2024")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def text_of(profile: Profile, turns: tuple[Turn, ...]) -> str:
    """The dialogue as one text, image slots in angle brackets."""
    return "".join(f"<{p.slot}>" if isinstance(p, ImageSlot) else p[0] for p in render(profile, turns))


def test_the_papers_dialogue_word_for_word() -> None:
    turns = dialogue(PAPER, "What is on the sign?", box_text="[0.1, 0.2, 0.3, 0.4]", answer="Stop")
    assert text_of(PAPER, turns) == (
        SYSTEM + 'USER: <full>\nTo answer the question: "What is on the sign?", where is the region of interest in the image?'
        " ASSISTANT: [0.1, 0.2, 0.3, 0.4]</s>USER: The region of interest in the image is <roi>\n. Answer the question: "
        '"What is on the sign?" ASSISTANT: Stop</s>'
    )


def test_the_released_code_asks_what_at_inference() -> None:
    assert text_of(RELEASED, dialogue(RELEASED, "Q?")) == (
        SYSTEM + 'USER: <full>\nTo answer the question: "Q?", what is the region of interest in the image? ASSISTANT:'
    )


def test_the_plain_dialogue_is_llavas() -> None:
    assert text_of(PAPER, dialogue(PAPER, "Q?", chain=False, answer="A")) == SYSTEM + "USER: <full>\nQ? ASSISTANT: A</s>"
    assert (
        text_of(PAPER, text_dialogue([("a", "b"), ("c", "d")])) == SYSTEM + "USER: a ASSISTANT: b</s>USER: c ASSISTANT: d</s>"
    )


WITH_ROLES = [name for name in profile_names() if load_profile(name).roles == "profile"]

questions = st.text(max_size=30) | st.sampled_from(["{question}", "{image}", "{", '"', "a\nb", "}{", "\\1", "%s"])


@settings(deadline=None)
@given(
    st.sampled_from(WITH_ROLES),
    questions,
    st.text(max_size=20),
    st.text(max_size=20),
    st.sampled_from(["single", "all", "image"]),
    st.lists(questions, max_size=3),
    st.lists(st.tuples(questions, st.text(max_size=9)), max_size=2),
)
def test_training_begins_with_what_inference_sees(
    name: str, question: str, box_text: str, answer: str, asks: str, others: list[str], extra: list[tuple[str, str]]
) -> None:
    profile = load_profile(name)
    options = {"asks": asks, "all_questions": others}
    first = text_of(profile, dialogue(profile, question, **options))  # type: ignore[arg-type]
    second = text_of(profile, dialogue(profile, question, box_text=box_text, **options))  # type: ignore[arg-type]
    train = text_of(profile, dialogue(profile, question, box_text=box_text, answer=answer, extra_turns=extra, **options))  # type: ignore[arg-type]
    assert second.startswith(f"{first} {box_text}{profile.turn_end}")
    assert train.startswith(f"{second} {answer}{profile.turn_end}")
    if not extra:
        assert train == f"{second} {answer}{profile.turn_end}"
    assert (train.count("<full>"), train.count("<roi>")) >= (1, 1)
    plain = text_of(profile, dialogue(profile, question, chain=False))
    assert text_of(profile, dialogue(profile, question, chain=False, answer=answer)) == f"{plain} {answer}{profile.turn_end}"
    assert question in second
    assert question in plain


def test_what_the_loss_sees() -> None:
    def learnt(turns: tuple[Turn, ...]) -> list[tuple[str | ImageSlot, ...]]:
        return [turn.parts for turn in turns if turn.learn]

    assert learnt(dialogue(PAPER, "q", box_text="[b]", answer="a")) == [("[b]",), ("a",)]
    assert learnt(dialogue(PAPER, "q", box_text="[b]", answer="a", learn_box=False)) == [("a",)]
    assert learnt(dialogue(PAPER, "q", box_text="[b]", answer="a", extra_turns=[("r", "c"), ("s", "d")])) == [
        ("[b]",),
        ("a",),
        ("c",),
        ("d",),
    ]
    with pytest.raises(InputError):
        Turn("user", ("q",), learn=True)


def test_further_turns_are_announced_once() -> None:
    text = text_of(PAPER, dialogue(PAPER, "q", box_text="[b]", answer="a", extra_turns=[("r", "c"), ("s", "d")]))
    announced = "Now answer the following questions based on the raw image: "
    assert text.endswith(f"USER: {announced}r ASSISTANT: c</s>USER: s ASSISTANT: d</s>")
    assert text.count(announced) == 1


def test_inst1_asks_about_one_all_or_the_image() -> None:
    def first(asks: str) -> str:
        return text_of(PAPER, dialogue(PAPER, "q?", asks=asks, all_questions=("q?", "r?")))  # type: ignore[arg-type]

    assert 'question: "q?", where' in first("single")
    assert 'questions: "q? r?", where' in first("all")
    assert first("image").endswith("USER: <full>\nWhere is the region of interest in the image? ASSISTANT:")


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_loads_and_round_trips(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inst3": "x"}, "unknown key 'inst3'"),
        ({"inst1": "no image {question}"}, "inst1 must hold {image} exactly once"),
        ({"inst2": "{image}"}, "inst2 must hold {question} exactly once"),
        ({"inst1": 3}, ""),
        ({"box_order": "yxyx"}, "unknown box_order"),
        ({"box_decimals": 0}, "box_decimals must be 1 to 6"),
        ({"box_decimals": "3"}, ""),
        ({"box_step": 0.0}, "box_step must lie in"),
        ({"crop_from": "screen"}, "unknown crop_from"),
        ({"roles": "server"}, "unknown roles"),
        ({"roles": "template"}, "leave user"),
        ({"box": "mine"}, "unknown box"),
        ({"box": "family", "box_decimals": 2}, "leave out"),
        ({"box": "family", "box_unit": "pixel"}, "box_decimals"),
        ({"box_frame": "canvas"}, "unknown box_frame"),
        ({"box_unit": "metre"}, "unknown box_unit"),
        ({"box_unit": "pixel"}, "box_decimals must be 0"),
        ({"box_unit": 3}, "must be a text"),
        ({"box_unit": "thousandth", "box_decimals": 0, "box_step": 0.1}, "box_step goes with fractions"),
        ({"box_unit": "thousandth", "box_decimals": 0, "box_reader": "released"}, "bracketed fractions only"),
        ({"box_text": "<{x0},{y0},{x1},{y1}>", "box_reader": "released"}, "bracketed fractions only"),
        ({"box_frame": "image", "crop_from": "canvas"}, "frame 'square'"),
        ({"box_text": "{x0} {y0} {x1}"}, "once each"),
        ({"box_text": "{x0} {y0} {x1} {y1} {x1}"}, "once each"),
        ({"box_text": "{y0} {x0} {y1} {x1}"}, "in this order"),
        ({"box_text": "{x0}{y0} {x1} {y1}"}, "between its numbers"),
        ({"box_text": "{x0} {y0} {x1} -{y1}"}, "beside a number"),
        ({"box_text": "{x0}. {y0} {x1} {y1}"}, "beside a number"),
        ({"box_text": "1{x0} {y0} {x1} {y1}"}, "beside a number"),
    ],
)
def test_broken_profiles_are_refused(change: dict, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**PAPER.to_json(), **change}))
    with pytest.raises(InputError) as caught:
        load_profile(str(path))
    assert words in str(caught.value)


def test_profiles_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("name = ")
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "y.json").write_text('{"name": "y"}')
    for name in (
        "none",
        str(tmp_path / "none.toml"),
        str(tmp_path / "x.toml"),
        str(tmp_path / "x.json"),
        str(tmp_path / "y.json"),
    ):
        with pytest.raises(InputError):
            load_profile(name)


def test_a_checkpoint_carries_its_own_profile(tmp_path: Path) -> None:
    assert checkpoint_profile(tmp_path) == PAPER
    assert checkpoint_profile(None) == PAPER
    own = replace(PAPER, name="own", box_decimals=2)
    (tmp_path / "cos_profile.json").write_text(json.dumps(own.to_json()))
    assert checkpoint_profile(tmp_path) == own
    # The wording can be another; how text after the end mark is tokenised stays the checkpoint's.
    assert checkpoint_profile(tmp_path, "repo-2024") == replace(RELEASED, after_end=own.after_end)
    assert checkpoint_profile(None, "repo-2024") == RELEASED


def test_a_format_kept_apart_stands_where_the_profile_says() -> None:
    turns = dialogue(PAPER, "Q?", box_text="B", suffix="\nOne letter.")
    assert text_of(PAPER, turns).count('"Q?\nOne letter."') == 2
    assert text_of(PAPER, turns).endswith('"Q?\nOne letter." ASSISTANT:')
    released = text_of(RELEASED, dialogue(RELEASED, "Q?", box_text="B", suffix="\nOne letter."))
    assert released.count('"Q?"') == 2
    assert released.endswith('Answer the question: "Q?"\nOne letter. ASSISTANT:')
    plain = text_of(RELEASED, dialogue(RELEASED, "Q?", chain=False, suffix="\nOne letter."))
    assert plain.endswith("<full>\nQ?\nOne letter. ASSISTANT:")


# --- any checkpoint with a chat template --------------------------------------------------------------------------------

CHAT = load_profile("chat")
PIXELS = BoxStyle("image", "pixel", text='{"bbox_2d": [{x0}, {y0}, {x1}, {y1}]}', decimals=0)


def test_old_profiles_are_written_as_they_were() -> None:
    """Fingerprints and the files beside weights are made of this."""
    keys = "name system user assistant turn_end plain inst1 inst1_all inst1_image inst2 box_order box_decimals box_pad_zeros"
    keys += " box_step crop_from extra_turn_prefix box_reader after_end suffix"
    for name in WITH_ROLES:
        if load_profile(name).box == "profile":  # those of models without a dialogue came later
            assert list(load_profile(name).to_json()) == keys.split()
    assert set(CHAT.to_json()) - set(keys.split()) == {"roles", "box"}
    assert set(CHAT.with_boxes(PIXELS).to_json()) - set(keys.split()) == {"roles", "box_frame", "box_unit", "box_text"}


def test_a_wording_that_asks_for_a_format_itself_leaves_the_benchmarks_request_out() -> None:
    profile = load_profile("short-answer")
    request = "\nAnswer the question using a single word or phrase."
    expected = (Turn("user", (ImageSlot("full"), "Question: Is it red? Short answer:")),)
    assert dialogue(profile, f"Is it red?{request}", chain=False) == expected
    assert dialogue(profile, "Is it red?", suffix=request, chain=False) == expected
    other = "\nAnswer with the option's letter from the given choices directly."
    (turn,) = dialogue(profile, f"Is it red?{other}", chain=False)
    assert turn.parts[1] == f"Question: Is it red?{other} Short answer:"


def test_the_chat_profile_has_the_papers_words_and_no_roles() -> None:
    for key in ("plain", "inst1", "inst1_all", "inst1_image", "inst2", "extra_turn_prefix"):
        # What stands behind a picture is the template's affair.
        assert getattr(CHAT, key) == getattr(PAPER, key).replace("{image}\n", "{image}")
    assert (CHAT.system, CHAT.user, CHAT.assistant, CHAT.turn_end) == ("", "", "", "")
    with pytest.raises(InputError, match="chat template"):
        render(CHAT, dialogue(CHAT, "q"))
    with pytest.raises(InputError, match="chat template"):
        chat_template(CHAT, "<image>", start=True)
    assert break_after_image(PAPER)
    assert not break_after_image(CHAT), "a template that is not made of the profile adds no line break"


def test_a_familys_boxes_take_the_place_of_the_profiles() -> None:
    resolved = CHAT.with_boxes(PIXELS)
    assert (resolved.box, resolved.boxes, resolved.inst1) == ("profile", PIXELS, CHAT.inst1)
    assert Profile.from_json(json.loads(json.dumps(resolved.to_json()))) == resolved
    assert resolved.with_boxes(BoxStyle()) is resolved, "a writing that is settled stays, whatever the family"
    assert PAPER.with_boxes(PIXELS) is PAPER
    assert CHAT.with_boxes(PAPER.boxes).boxes == PAPER.boxes
    for change in ({"box_step": 0.1}, {"box_reader": "released"}, {"crop_from": "canvas"}):
        with pytest.raises(InputError, match="chat"):
            replace(CHAT, **change).with_boxes(PIXELS)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": "canvas"},
        {"unit": "inch"},
        {"order": "x0y0"},
        {"unit": "pixel"},
        {"decimals": 0},
        {"decimals": 7},
        {"decimals": True},
        {"text": 4},
        {"text": "[{x0}, {y0}, {x1}]"},
        {"text": "[{x0}{y0}, {x1}, {y1}]"},
        {"text": "[{x0}, {y0}, {x1}, {y1}0]"},
    ],
)
def test_a_style_that_cannot_be_read_back_is_refused(change: dict) -> None:
    with pytest.raises(InputError):
        BoxStyle(**change)


def test_what_stands_around_the_numbers() -> None:
    assert PIXELS.literals == ['{"bbox_2d": [', ", ", ", ", ", ", "]}"]
    assert BoxStyle().literals == ["[", ", ", ", ", ", ", "]"]
    loc = BoxStyle("image", "1024th", "y0x0y1x1", "<loc{y0}><loc{x0}><loc{y1}><loc{x1}>", 0)
    assert (loc.places, loc.literals) == (["y0", "x0", "y1", "x1"], ["<loc", "><loc", "><loc", "><loc", ">"])
