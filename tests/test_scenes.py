"""The miniature's scenes: exact gold, one answer a question, the same bytes from the same seed."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from cos_core.data.datasets import read_examples
from cos_core.errors import InputError
from cos_core.miniature import scenes
from cos_core.miniature.scenes import COLOURS, Scene, SceneQuestion, Thing

RED = Thing("red", "circle", "7", 0.25, 0.25, 0.1)
BLUE = Thing("blue", "square", "3", 0.75, 0.5, 0.1)
TWO = Scene((RED, BLUE), 230)


def test_gold_region_of_one_thing_is_its_box_with_the_margin():
    box = scenes.gold_box(TWO, SceneQuestion("What digit is on the red circle?", "7", "reading", (0,)))
    assert box.corners == pytest.approx((0.125, 0.125, 0.375, 0.375))


def test_gold_region_of_a_relation_holds_both_things():
    box = scenes.gold_box(TWO, SceneQuestion("Is the red circle left of the blue square?", "yes", "relation", (0, 1)))
    assert box.corners == pytest.approx((0.125, 0.125, 0.875, 0.625))


def test_gold_region_of_a_whole_scene_question_is_the_scene():
    assert scenes.gold_box(TWO, SceneQuestion("How many objects are there?", "2", "scene", ())).corners == (0, 0, 1, 1)


def test_relations_hold_as_drawn():
    answers = {q.text: q.answer for q in scenes.questions(TWO, "relation")}
    assert answers["Is the red circle left of the blue square?"] == "yes"
    assert answers["Is the blue square left of the red circle?"] == "no"
    assert answers["Is the blue square below the red circle?"] == "yes"
    assert answers["Is the red circle below the blue square?"] == "no"


def test_colour_is_asked_only_of_a_shape_that_stands_alone():
    twin = Scene((RED, BLUE, Thing("green", "circle", "1", 0.5, 0.8, 0.1)), 230)
    assert [q.text for q in scenes.questions(twin, "colour")] == ["What colour is the square?"]


def test_unknown_kind_is_an_input_error():
    with pytest.raises(InputError, match="unknown kind of question 'smell'"):
        scenes.questions(TWO, "smell")


def test_picture_shows_the_colour_beside_the_digit_and_the_white_digit():
    picture = scenes.draw(TWO)
    assert picture.size == (scenes.SIDE, scenes.SIDE)
    x, y, r = (round(v * scenes.SIDE) for v in (RED.x, RED.y, RED.r))
    assert picture.getpixel((x - r + 4, y)) == COLOURS["red"]
    column = [picture.getpixel((x, y + dy)) for dy in range(-18, 19)]
    assert (255, 255, 255) in column
    assert picture.getpixel((2, 2)) == (230, 230, 230)


def test_digits_vanish_at_the_encoders_size_but_not_in_a_crop():
    """The premise: two scenes that differ in one digit differ clearly in the crop, hardly in the whole picture at 40 px."""
    other = Scene((Thing("red", "circle", "1", 0.25, 0.25, 0.1), BLUE), 230)
    box = scenes.thing_box(RED).pixels(scenes.SIDE, scenes.SIDE)

    def difference(cut: bool) -> float:
        views = [
            (scenes.draw(s).crop(box) if cut else scenes.draw(s)).resize((40, 40), Image.Resampling.BICUBIC)
            for s in (TWO, other)
        ]
        pixels = [list(v.convert("L").get_flattened_data()) for v in views]
        return sum(abs(a - b) > 40 for a, b in zip(*pixels, strict=True))

    assert difference(cut=False) <= 8
    assert difference(cut=True) >= 60


def test_centre_bias_asks_about_the_most_central_thing():
    rng = random.Random(3)
    hits = {0.0: 0, 1.0: 0}
    for bias in hits:
        for _ in range(200):
            scene = scenes.make_scene(rng)
            question = scenes.ask(scene, rng, 1, bias)[0]
            central = min(scene.things, key=lambda t: (t.x - 0.5) ** 2 + (t.y - 0.5) ** 2)
            hits[bias] += not question.about or scene.things[question.about[0]] is central
    assert hits[1.0] == 200
    assert hits[0.0] < 100


def test_kinds_are_asked_in_their_shares():
    rng = random.Random(5)
    asked = [scenes.ask(scenes.make_scene(rng), rng, 1)[0].kind for _ in range(2000)]
    assert 0.66 < asked.count("reading") / 2000 < 0.76
    assert all(asked.count(kind) > 60 for kind in scenes.KINDS)


def test_dataset_is_the_same_bytes_again_and_reads_as_examples(tmp_path: Path):
    first = scenes.write_dataset(tmp_path / "a", 4, seed=9, per_image=3)
    again = scenes.write_dataset(tmp_path / "b", 4, seed=9, per_image=3)
    assert first.read_bytes() == again.read_bytes()
    name = json.loads(first.read_text().splitlines()[0])["image"]
    assert (tmp_path / "a" / "images" / name).read_bytes() == (tmp_path / "b" / "images" / name).read_bytes()
    examples = list(read_examples(first))
    assert len(examples) == 12
    assert len({e.id for e in examples}) == 12
    assert all(e.answers and e.gold and e.meta["kind"] in scenes.KINDS for e in examples)
    assert len({(e.image, e.question) for e in examples}) == 12
