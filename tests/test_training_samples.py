"""What training sees of a sample: which tokens are learnt, which question is drawn, what is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from training_world import (
    BOX,
    IMAGE_TOKENS,
    QUESTIONS,
    SIZES,
    collected,
    examples,
    make_world,
    recipe,
    samples,
)

from cos_core.data.released import Square
from cos_core.dialogue.box_text import as_written, read_box, write_box
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.encoding import IGNORE, Encoded, encode
from cos_core.dialogue.prompts import Profile, dialogue, load_profile
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.images import open_image, square_pad
from cos_core.geometry import Box, SquarePad, full_box
from cos_core.store.annotations import Store
from cos_core.training.dataset import CUT_IMAGE, CUT_LABELS, TrainDataset, cut, draw, limit, make_item
from cos_core.training.samples import NO_ANSWER, OTHER_IMAGE
from cos_core.types import Annotation, Example

POLICIES = ("none", "full", "center_crop", "random", "gold", "from_image", "from_questions", "from_single_question")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def supervised(encoded: Encoded, tokenizer: Any) -> list[str]:
    """The texts of the runs of learnt tokens, each without the space that parts it from the role."""
    runs: list[list[int]] = [[]]
    for label in encoded.labels:
        if label == IGNORE:
            runs += [[]] if runs[-1] else []
        else:
            runs[-1].append(label)
    texts = [tokenizer.decode(run) for run in runs if run]
    assert all(text.startswith(" ") for text in texts), "a prompt ends before the space, so the model must write it"
    return [text[1:] for text in texts]


# What the loss sees


@pytest.mark.parametrize("profile", ["paper", "repo-2024", "repo-2024-train", "miniature"])
@pytest.mark.parametrize("extra_turns", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_only_boxes_and_answers_are_learnt(world: Path, policy: str, extra_turns: bool, profile: str) -> None:
    recipe_ = recipe(world, policy, extra_turns=extra_turns, profile=load_profile(profile))
    sample = samples(world, policy)[0]
    item = make_item(sample, 0, recipe_)
    encoded, pictures = item.encoded, item.pictures
    chosen = draw(0, sample.id, 0, 3)
    box_text = write_box(SquarePad(*SIZES[0]).to_square(BOX), recipe_.profile)
    expected = [box_text + "</s>"] if recipe_.policy.source in ("model", "gold") else []
    expected.append(f"{QUESTIONS[chosen][1]} 0</s>")
    if extra_turns:
        expected += [f"{answer} 0</s>" for i, (_, answer) in enumerate(QUESTIONS) if i != chosen]
    assert supervised(encoded, recipe_.encoder.tokenizer) == expected
    assert len(pictures) == (1 if policy == "none" else 2)
    assert encoded.ids.count(recipe_.encoder.image_token_id) == IMAGE_TOKENS * len(pictures)


def test_a_text_only_sample_learns_every_answer_and_has_no_picture(world: Path) -> None:
    recipe_ = recipe(world)
    item = make_item(samples(world, "from_single_question")[-1], 0, recipe_)
    encoded, pictures = item.encoded, item.pictures
    assert supervised(encoded, recipe_.encoder.tokenizer) == ["Hi</s>", "See you</s>"]
    assert pictures == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_training_tokens_start_with_the_tokens_of_both_inference_passes(world: Path, policy: str) -> None:
    recipe_ = recipe(world, policy)
    for sample in samples(world, policy)[:-1]:
        encoded = make_item(sample, 3, recipe_).encoded
        chosen = draw(0, sample.id, 3, 3)
        question = sample.questions[chosen].question
        chain = recipe_.policy.source != "none"
        size = open_image(world / "images", str(sample.image)).size
        asking: dict[str, Any] = {
            "chain": chain,
            "asks": recipe_.policy.asks,
            "all_questions": [q for q, _ in QUESTIONS],
        }
        passes = [dialogue(recipe_.profile, question, **asking)]
        if chain:
            text, _ = as_written(sample.boxes[chosen] or BOX, size, recipe_.profile)
            passes.append(dialogue(recipe_.profile, question, box_text=text, **asking))
        for turns in passes:
            prompt = encode(recipe_.profile, turns, recipe_.encoder.tokenizer, recipe_.encoder.image_token_id, IMAGE_TOKENS)
            assert encoded.ids[: len(prompt)] == prompt.ids
        answer = recipe_.encoder.tokenizer(f" {sample.questions[chosen].answers[0]}</s>", add_special_tokens=False)["input_ids"]
        assert list(encoded.ids[len(prompt) :]) == answer


@pytest.mark.parametrize(("step", "crop_from"), [(None, "image"), (0.1, "image"), (0.25, "canvas")])
def test_the_crop_is_the_crop_of_the_written_box(world: Path, step: float | None, crop_from: str) -> None:
    profile = replace(load_profile("paper"), box_step=step, crop_from=crop_from)
    recipe_ = recipe(world, profile=profile)
    for sample in samples(world, "from_single_question")[:-1]:
        item = make_item(sample, 0, recipe_)
        encoded, (full, roi) = item.encoded, item.pictures
        text = supervised(encoded, recipe_.encoder.tokenizer)[0].removesuffix("</s>")
        written, status = read_box(text, profile)
        assert status == "ok"
        assert written is not None
        assert roi.tobytes() == crop_region(full, written, profile.crop_from, recipe_.encoder.fill).tobytes()


@given(
    st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.001, 1), st.floats(0.001, 1)),
    st.sampled_from([(61, 47), (31, 71), (97, 97)]),
    st.sampled_from([None, 0.05, 0.1, 0.25]),
)
def test_every_box_survives_being_written(
    numbers: tuple[float, float, float, float], size: tuple[int, int], step: float | None
) -> None:
    profile: Profile = replace(load_profile("paper"), box_step=step)
    x, y, w, h = numbers
    box = Box(x, y, min(1.0, x + w), min(1.0, y + h))
    text, written = as_written(box, size, profile)
    square = SquarePad(*size).to_square(box)
    unit = step or 0.001
    assert read_box(text, profile) == (written, "ok")
    assert all(abs(a - b) <= unit * 1.01 for a, b in zip(square.corners, written.corners, strict=True))


def test_cutting_keeps_images_whole_and_something_to_learn() -> None:
    image = 9
    encoded = Encoded((1, image, image, 5, 6, 7), (IGNORE, IGNORE, IGNORE, IGNORE, 6, 7), ("full",))
    assert cut(encoded, 6, image) == encoded
    assert cut(encoded, 5, image).labels == (IGNORE, IGNORE, IGNORE, IGNORE, 6)
    with pytest.raises(InputError, match=CUT_LABELS):
        cut(encoded, 4, image)
    with pytest.raises(InputError, match=CUT_IMAGE):
        cut(encoded, 2, image)
    # An image that would fall away whole is cut too.
    late = Encoded((1, 5, image), (IGNORE, 5, IGNORE), ("full",))
    with pytest.raises(InputError, match=CUT_IMAGE):
        cut(late, 2, image)


# Which question


def test_draw_is_a_pure_function_with_fixed_values() -> None:
    assert [draw(0, "s0", epoch, 3) for epoch in range(8)] == [draw(0, "s0", epoch, 3) for epoch in range(8)]
    assert {draw(0, "s0", epoch, 3) for epoch in range(40)} == {0, 1, 2}
    assert draw(7, "x", 2, 1) == 0
    counts = Counter(draw(1, f"s{i}", 0, 4) for i in range(4000))
    assert all(900 < n < 1100 for n in counts.values())
    with pytest.raises(InputError):
        draw(0, "s", 0, 0)


def test_items_depend_on_the_key_alone(world: Path) -> None:
    data = samples(world, "from_single_question")
    forwards, backwards = TrainDataset(data, recipe(world)), TrainDataset(data, recipe(world))
    keys = range(3 * len(data))
    first = {key: forwards[key].encoded for key in keys}
    assert first == {key: backwards[key].encoded for key in reversed(keys)}
    assert len({first[key] for key in keys if key % len(data) == 0}) > 1, "epochs draw different questions"


def test_a_filler_is_its_sample_without_labels(world: Path) -> None:
    data = TrainDataset(samples(world, "from_single_question"), recipe(world))
    item, filler = data[2], data[-3]
    assert filler.filler
    assert filler.encoded.ids == item.encoded.ids
    assert set(filler.encoded.labels) == {IGNORE}


# What is left out


def test_questions_without_box_or_answer_are_named(world: Path) -> None:
    made = [
        Example("a#q0", "d", "0.png", "q", ("a",), meta={"sample": "a"}),
        Example("a#q1", "d", "0.png", "q", (), meta={"sample": "a"}),
        Example("b#q0", "d", "1.png", "q", ("a",), meta={"sample": "b"}),
        Example("c#q0", "d", "2.png", "q", ("a",), meta={"sample": "c"}),
        Example("d#q0", "d", "3.png", "q", ("a",), meta={"sample": "d"}),
        Example("t#q0", "d", None, "q", ("a",), meta={"sample": "t"}),
    ]
    with Store.create_or_resume(world / "gaps", "f", {}) as store:
        store.put_many([Annotation("a#q0", BOX, 1.0, "p", "f"), Annotation("c#q0", None, 0.0, "p", "f", reason="no relevance")])
        store.put_many([Annotation("a#q1", BOX, 1.0, "p", "f"), Annotation("d#q0", BOX, 1.0, "p", "f", image="other.png")])
        store.put_failures([("b#q0", "the image is torn")])
        policy = plug.load("policies", "from_single_question")
        left_out, whole = (collected(made, policy, store, how) for how in ("skip", "full"))
    lacking = [("b#q0", "annotating failed: the image is torn"), ("c#q0", "no relevance")]
    for found in (left_out, whole):
        assert [(s.id, s.reason) for s in found.lacking] == lacking
        assert found.region_questions == 5, "all questions about pictures"
    assert [(s.id, s.usable) for s in left_out.samples] == [("a", (0,)), ("t", (0,))]
    assert [(s.id, s.reason) for s in left_out.skipped] == [("a#q1", NO_ANSWER), *lacking, ("d#q0", OTHER_IMAGE)]
    assert [(s.id, s.usable, s.fallbacks) for s in whole.samples] == [
        ("a", (0,), ()),
        ("b", (0,), (0,)),
        ("c", (0,), (0,)),
        ("t", (0,), ()),
    ]
    assert [(s.id, s.reason) for s in whole.skipped] == [("a#q1", NO_ANSWER), ("d#q0", OTHER_IMAGE)]
    without_gold = collected(made, plug.load("policies", "gold"), None)
    assert {s.id for s in without_gold.skipped} == {"a#q0", "a#q1", "b#q0", "c#q0", "d#q0"}
    assert (without_gold.lacking, without_gold.region_questions) == ([], 0)


@pytest.mark.parametrize("crop_from", ["image", "canvas"])
def test_a_question_without_a_region_sees_the_whole_picture(world: Path, crop_from: str) -> None:
    recipe_ = recipe(world, profile=replace(load_profile("paper"), crop_from=crop_from))
    with Store.create_or_resume(world / f"empty-{crop_from}", "f", {}) as store:
        data = collected(examples(world), recipe_.policy, store).samples
    assert [sample.fallbacks for sample in data] == [(0, 1, 2)] * len(SIZES) + [()]
    items = TrainDataset(data, recipe_)
    for key, size in enumerate(SIZES):
        item = items[key]
        assert supervised(item.encoded, recipe_.encoder.tokenizer)[0] == "[0.000, 0.000, 1.000, 1.000]</s>"
        full, roi = item.pictures
        assert full.size == size
        assert roi.tobytes() == (full if crop_from == "image" else square_pad(full, recipe_.encoder.fill)).tobytes()
        assert item.fallback
    assert not items[len(SIZES)].fallback, "a text has no region to lack"


def test_the_end_of_a_long_answer_is_cut_and_the_rest_learnt(world: Path) -> None:
    recipe_ = recipe(world)
    sample = samples(world, "from_single_question")[0]
    whole = make_item(sample, 0, recipe_).encoded
    shorter = make_item(sample, 0, replace(recipe_, max_length=len(whole) - 3))
    cut_off, pictures = shorter.encoded, shorter.pictures
    box, answer = supervised(whole, recipe_.encoder.tokenizer)
    # The end mark and two letters, one byte a token.
    assert supervised(cut_off, recipe_.encoder.tokenizer) == [box, answer.removesuffix("</s>")[:-2]]
    assert len(pictures) == 2


def test_a_broken_image_is_replaced_and_named(world: Path) -> None:
    data = samples(world, "from_single_question")
    broken = replace(data[1], questions=tuple(structs.replace(q, image="nowhere.png") for q in data[1].questions))
    found = TrainDataset([data[0], broken, data[2]], recipe(world))
    item = found[1]
    assert item.encoded in [found[0].encoded, found[2].encoded]
    assert [s.id for s in item.skipped] == [broken.id]
    assert found[1].encoded == item.encoded
    with pytest.raises(InputError, match=r"1 samples in a row cannot be trained on; the first, s1: .*nowhere\.png"):
        TrainDataset([broken], recipe(world))[0]


def test_the_released_length_limit_counts_a_picture_as_one_token(world: Path) -> None:
    """The released collator keeps 2048 token ids, of which each picture is one; its model widens them afterwards."""
    mark, width = 7, 576
    made = recipe(world, image_token_id=mark, image_tokens=width, max_length=2048, max_length_counts="text")

    def encoded(words: int, places: tuple[int, ...]) -> Encoded:
        """`words` tokens of text, a picture in front of each of those at `places`."""
        ids: list[int] = []
        for word in range(words):
            ids += [mark] * width if word in places else []
            ids.append(9)
        return Encoded(tuple(ids), tuple(-100 if i == mark else i for i in ids), ("full", "roi")[: len(places)])

    # 2048 + 575 for each picture: no picture, the whole one, and its region.
    for places, most in (((), 2048), ((1,), 2623), ((1, 40), 3198)):
        sample = encoded(5000, places)
        assert limit(sample, made) == most
        kept = cut(sample, limit(sample, made), mark)
        assert len(kept) == most
        assert kept.ids.count(9) == 2048 - len(places), "text and one token a picture make 2048"
        assert limit(sample, replace(made, max_length_counts="positions")) == 2048
    # The last of 2048 tokens may be a picture, the next one may not.
    whole = encoded(5000, (1, 2046))
    assert len(cut(whole, limit(whole, made), mark)) == 3198
    beyond = encoded(5000, (1, 2047))
    with pytest.raises(InputError, match=CUT_IMAGE):
        cut(beyond, limit(beyond, made), mark)


@pytest.mark.parametrize("on_no_region", ["full", "skip"])
def test_a_region_outside_the_picture_is_treated_as_a_missing_one(world: Path, on_no_region: str) -> None:
    sample = samples(world, "from_single_question")[0]
    away = replace(sample, boxes=tuple(Square(9e3, 9e3, 50.0) for _ in sample.boxes))
    made = replace(recipe(world), on_no_region=on_no_region)
    if on_no_region == "skip":
        with pytest.raises(InputError, match=r"its region \(top 9000, left 9000, side 50\) lies outside the \d+x\d+ picture"):
            make_item(away, 0, made)
        return
    item = make_item(away, 0, made)
    whole = make_item(replace(sample, boxes=tuple(full_box("square") for _ in sample.boxes)), 0, made)
    assert item.encoded == whole.encoded
    assert [p.tobytes() for p in item.pictures] == [p.tobytes() for p in whole.pictures]
    assert (item.fallback, whole.fallback) == (True, False)
