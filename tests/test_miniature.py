"""The miniature checkpoint: ordinary layout, real tokenizer, and able to do what the demo needs of it."""

import json
import random
import subprocess
import sys
from pathlib import Path

import miniature_lessons as lessons
import numpy as np
import pytest
import torch
from miniature_tokenizer import make_tokenizer, phrases
from PIL import Image

from cos_core.dialogue.encoding import IGNORE
from cos_core.dialogue.prompts import FULL, dialogue, load_profile
from cos_core.files import assets
from cos_core.miniature import scenes
from cos_core.models import llava
from cos_core.types import Turn

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def mini() -> llava.Llava:
    return llava.load("miniature", device="cpu")


@pytest.fixture(scope="module")
def teacher(mini: llava.Llava) -> lessons.Teacher:
    return lessons.Teacher(mini.profile, mini.tokenizer, mini.image_token_id, mini.image_tokens, 40)


def test_shipped_checkpoint_is_small_and_says_how_it_was_made():
    folder = assets.miniature_checkpoint()
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10_000_000
    record = json.loads((folder / "pretrain.json").read_text())
    assert record["command"].startswith("python scripts/pretrain_miniature.py")
    assert record["plan"]["seed"] == 0
    assert {"torch", "transformers"} <= set(record["versions"])
    stages = [json.loads(line)["stage"] for line in (folder / "pretrain_log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["tower", "align", "talk"]


def test_it_is_a_llava_with_its_own_profile(mini: llava.Llava):
    assert type(mini.model).__name__ == "LlavaForConditionalGeneration"
    assert mini.profile.name == "miniature"
    assert mini.image_tokens == 25
    assert mini.fill == (140, 140, 140)


def test_any_text_survives_the_tokenizer(mini: llava.Llava):
    for text in ("What digit is on the red circle?", "Où est l'étoile ★? 東京", "a  b\n\tc", "[0.125, 0.250, 0.375, 0.500]"):
        ids = mini.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert mini.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_box_is_four_tokens_and_each_instruction_a_few(mini: llava.Llava):
    turns = dialogue(mini.profile, "What digit is on the red circle?", box_text="[0.125, 0.250, 0.375, 0.500]", answer="7")
    encoded = mini.encode(turns)
    learnt = [i for i in encoded.labels if i != IGNORE]
    assert mini.tokenizer.convert_ids_to_tokens(learnt) == [" [0.125,", " 0.250,", " 0.375,", " 0.500]", "</s>", " 7", "</s>"]
    assert len(encoded) == 2 * 25 + 22


def test_phrases_are_tokens_of_their_own():
    profile = load_profile("miniature")
    tokenizer = make_tokenizer(profile)
    for phrase in phrases(profile):
        assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1, phrase


def test_lessons_shrink_pictures_as_the_processor_does(mini: llava.Llava):
    picture = scenes.draw(scenes.make_scene(random.Random(4)))
    pixels = mini.pixels([picture])[0].permute(1, 2, 0)
    mean, std = torch.tensor(mini.image_processor.image_mean), torch.tensor(mini.image_processor.image_std)
    shrunk = np.asarray(picture.resize((40, 40), Image.Resampling.BICUBIC))
    assert torch.allclose(pixels * std + mean, torch.from_numpy(shrunk.copy()).float() / 255, atol=1e-5)


def test_patch_labels_name_what_stands_under_a_patch():
    thing = scenes.Thing("green", "square", "4", 0.5, 0.5, 0.1)
    labels = lessons.patch_labels([thing], grid=5, lines=16)
    assert labels[:, 2, 2].tolist() == [1, 1, 4, 6, 10]
    assert labels[:, 0, 0].tolist() == [8, 4, 10, 17, 17]
    assert int((labels[0] == 1).sum()) == 1


def test_lessons_on_whole_scenes_never_ask_for_a_digit(teacher: lessons.Teacher):
    rng = random.Random(2)
    kinds = {kind for _ in range(60) for lesson in (teacher.place(rng), teacher.fact(rng)) for kind, _ in lesson.kinds}
    assert kinds == {"caption", "where", "where-shape", "relation", "shape", "colour", "count"}


def _answers(mini: llava.Llava, views: list[lessons.LessonView], questions: list[str]) -> list[str]:
    turns = [(Turn("user", (FULL, "\n" + q)),) for q in questions]
    rows = [mini.encode(t).ids for t in turns]
    found = []
    for row, view in zip(rows, views, strict=True):
        pixels = mini.pixels([Image.fromarray(view.pixels)])
        with torch.no_grad():
            logits = mini.model(input_ids=torch.tensor([row]), pixel_values=pixels).logits[0, -1]
        found.append(mini.tokenizer.decode([int(logits.argmax())]).strip())
    return found


def test_it_reads_digits_in_a_crop_and_not_in_the_whole_scene(mini: llava.Llava):
    """What Chain-of-Spot lives on. Margins are wide: chance is 0.1."""
    rng = random.Random("reading")
    close, wide, questions, truth = [], [], [], []
    for _ in range(80):
        scene = scenes.make_scene(rng)
        thing = rng.choice(scene.things)
        close.append(lessons.close_view(scene, scenes.draw(scene), thing, rng, 40))
        wide.append(lessons.wide_view(scene, 40))
        questions.append(f"What digit is on the {thing.name}?")
        truth.append(thing.digit)

    def accuracy(views: list[lessons.LessonView]) -> float:
        return float(np.mean([a == t for a, t in zip(_answers(mini, views, questions), truth, strict=True)]))

    assert accuracy(close) > 0.75
    assert accuracy(wide) < 0.4


def test_pretraining_runs_from_random_weights_to_a_checkpoint_that_loads(tmp_path: Path):
    """The whole script on a few steps; the shipped checkpoint took the same path with all of them."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "pretrain_miniature.py"),
        "--out",
        str(tmp_path),
        "--seed",
        "3",
        "--scale",
        "0.002",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=7200)
    made = llava.load(tmp_path, device="cpu")
    assert made.profile.name == "miniature"
    record = json.loads((tmp_path / "pretrain.json").read_text())
    assert record["plan"]["seed"] == 3
    assert record["plan"]["tower_steps"] == 2
