"""Training: what the loss sees, which question an epoch draws, what is skipped, and runs that repeat, resume and refuse."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_llava import byte_tokenizer, make_checkpoint

from cos_core import manifest, plug, training
from cos_core.boxtext import read_box, write_box
from cos_core.datasets import read_examples
from cos_core.encoding import IGNORE, Encoded, encode
from cos_core.errors import CosError, InputError, MissingError
from cos_core.geometry import Box, SquarePad
from cos_core.images import crop_region, open_image
from cos_core.interfaces import SilentReporter
from cos_core.jsonl import read_lines
from cos_core.prompts import Profile, dialogue, load_profile
from cos_core.store import Store
from cos_core.training import TrainConfig
from cos_core.training.data import (
    CUT_IMAGE,
    CUT_LABELS,
    NO_ANNOTATION,
    NO_ANSWER,
    Recipe,
    Sample,
    TrainData,
    as_written,
    collect,
    cut,
    draw,
    make_item,
)
from cos_core.types import Annotation, Example

IMAGE_TOKENS = 16
SIZES = ((61, 47), (53, 53), (31, 71), (89, 43))
POLICIES = ("none", "full", "center_crop", "random", "gold", "from_image", "from_questions", "from_single_question")
BOX = Box(0.25, 0.125, 0.5, 0.75)
QUESTIONS = (("What is it?", "a cup"), ("Which colour?", "red"), ("Is it full?", "no"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a conversation file (three questions a picture, one text-only sample), a store, a checkpoint."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    records: list[dict[str, Any]] = []
    for i, size in enumerate(SIZES):
        image = Image.linear_gradient("L").resize(size).convert("RGB")
        image.putpixel((i, i), (255, 0, 0))
        image.save(root / "images" / f"{i}.png")
        turns = [
            {"from": who, "value": text}
            for q, (question, answer) in enumerate(QUESTIONS)
            for who, text in (("human", ("<image>\n" if q == 0 else "") + question), ("gpt", f"{answer} {i}"))
        ]
        meta = [{"gold": list(BOX.corners)} for _ in QUESTIONS]
        records.append({"id": f"s{i}", "image": f"{i}.png", "conversations": turns, "meta": meta})
    text = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    text += [{"from": "human", "value": "Bye"}, {"from": "gpt", "value": "See you"}]
    records.append({"id": "words", "conversations": text})
    (root / "data.json").write_text(json.dumps(records))
    with Store.create_or_resume(root / "store", "f", {}) as store:
        store.put_many(Annotation(e.id, BOX, 1.0, "from_single_question", "f") for e in examples(root) if e.image is not None)
    make_checkpoint(root / "model")
    return root


def examples(world: Path) -> list[Example]:
    return list(read_examples(world / "data.json", text_only="keep"))


def recipe(world: Path, policy: str = "from_single_question", **changes: Any) -> Recipe:
    tokenizer = byte_tokenizer()
    made = Recipe(
        policy=plug.load("policies", policy),
        profile=load_profile("paper"),
        tokenizer=tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_tokens=IMAGE_TOKENS,
        fill=(122, 116, 104),
        images=world / "images",
    )
    return replace(made, **changes)


def samples(world: Path, policy: str) -> list[Sample]:
    with Store.read(world / "store") as store:
        found, skipped = collect(examples(world), plug.load("policies", policy), store, 0)
    assert skipped == []
    return found


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


def config(world: Path, out: Path, **changes: Any) -> TrainConfig:
    made = TrainConfig(
        data=world / "data.json",
        images=world / "images",
        model=str(world / "model"),
        out=out,
        store=world / "store",
        learning_rate=1e-3,
        batch_size=2,
        global_batch=None,
        max_steps=4,
        device="cpu",
        max_faults=9,
    )
    return replace(made, **changes)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [record for _, record in read_lines(out / "train_log.jsonl")]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


# What the loss sees


@pytest.mark.parametrize("profile", ["paper", "repo-2024"])
@pytest.mark.parametrize("extra_turns", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_only_boxes_and_answers_are_learnt(world: Path, policy: str, extra_turns: bool, profile: str) -> None:
    recipe_ = recipe(world, policy, extra_turns=extra_turns, profile=load_profile(profile))
    sample = samples(world, policy)[0]
    encoded, pictures = make_item(sample, 0, recipe_)
    chosen = draw(0, sample.id, 0, 3)
    box_text = write_box(SquarePad(*SIZES[0]).to_square(BOX), recipe_.profile)
    expected = [box_text + "</s>"] if recipe_.policy.source in ("model", "gold") else []
    expected.append(f"{QUESTIONS[chosen][1]} 0</s>")
    if extra_turns:
        expected += [f"{answer} 0</s>" for i, (_, answer) in enumerate(QUESTIONS) if i != chosen]
    assert supervised(encoded, recipe_.tokenizer) == expected
    assert len(pictures) == (1 if policy == "none" else 2)
    assert encoded.ids.count(recipe_.image_token_id) == IMAGE_TOKENS * len(pictures)


def test_a_text_only_sample_learns_every_answer_and_has_no_picture(world: Path) -> None:
    recipe_ = recipe(world)
    encoded, pictures = make_item(samples(world, "from_single_question")[-1], 0, recipe_)
    assert supervised(encoded, recipe_.tokenizer) == ["Hi</s>", "See you</s>"]
    assert pictures == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_training_tokens_start_with_the_tokens_of_both_inference_passes(world: Path, policy: str) -> None:
    recipe_ = recipe(world, policy)
    for sample in samples(world, policy)[:-1]:
        encoded, _ = make_item(sample, 3, recipe_)
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
            text, _ = as_written(sample.boxes[chosen] or BOX, SquarePad(*size), recipe_.profile)
            passes.append(dialogue(recipe_.profile, question, box_text=text, **asking))
        for turns in passes:
            prompt = encode(recipe_.profile, turns, recipe_.tokenizer, recipe_.image_token_id, IMAGE_TOKENS)
            assert encoded.ids[: len(prompt)] == prompt.ids
        answer = recipe_.tokenizer(f" {sample.questions[chosen].answers[0]}</s>", add_special_tokens=False)["input_ids"]
        assert list(encoded.ids[len(prompt) :]) == answer


@pytest.mark.parametrize(("step", "crop_from"), [(None, "image"), (0.1, "image"), (0.25, "canvas")])
def test_the_crop_is_the_crop_of_the_written_box(world: Path, step: float | None, crop_from: str) -> None:
    profile = replace(load_profile("paper"), box_step=step, crop_from=crop_from)
    recipe_ = recipe(world, profile=profile)
    for sample in samples(world, "from_single_question")[:-1]:
        encoded, (full, roi) = make_item(sample, 0, recipe_)
        text = supervised(encoded, recipe_.tokenizer)[0].removesuffix("</s>")
        written, status = read_box(text, profile)
        assert status == "ok"
        assert written is not None
        assert roi.tobytes() == crop_region(full, written, profile.crop_from, recipe_.fill).tobytes()


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
    text, written = as_written(box, SquarePad(*size), profile)
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
    forwards, backwards = TrainData(data, recipe(world)), TrainData(data, recipe(world))
    keys = range(3 * len(data))
    first = {key: forwards[key].encoded for key in keys}
    assert first == {key: backwards[key].encoded for key in reversed(keys)}
    assert len({first[key] for key in keys if key % len(data) == 0}) > 1, "epochs draw different questions"


def test_a_permutation_an_epoch() -> None:
    from cos_core.training.order import Cut, Order

    order = Order(100, 3, Cut(1, 1, 1))
    first = list(order)
    order.epoch = 1
    second = list(order)
    assert sorted(first) == list(range(100))
    assert sorted(second) == list(range(100, 200))
    assert [k - 100 for k in second] != first
    assert list(Order(100, 3, Cut(1, 1, 1))) == first
    assert list(Order(100, 4, Cut(1, 1, 1))) != first


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_depends_on_the_global_batch_alone(grouped: bool) -> None:
    """Eight samples a step on one device or on four: the same in every step, sorted inside it; fillers only at the end."""
    from cos_core.training.order import Cut, Order

    def length(index: int, _epoch: int) -> int:
        return 100 + index * 37 % 50

    one, four = Cut(2, 2, 8), Cut(2, 8, 8)
    alone = list(Order(45, 0, one, length, grouped))
    together = list(Order(45, 0, four, length, grouped))
    assert sorted(alone) == list(range(45))
    assert together[:45] == alone
    assert len(together) == len(Order(45, 0, four, length, grouped)) == 48
    assert all(key < 0 and 0 <= -key - 1 < 45 for key in together[45:])
    steps = [[length(key, 0) for key in alone[i : i + 8]] for i in range(0, 45, 8)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    plain = list(Order(45, 0, one))
    if not grouped:
        assert [set(alone[i : i + 8]) for i in range(0, 45, 8)] == [set(plain[i : i + 8]) for i in range(0, 45, 8)]
    else:
        spread = sum(max(step) - min(step) for step in steps)
        unsorted = [[length(key, 0) for key in plain[i : i + 8]] for i in range(0, 45, 8)]
        assert spread < sum(max(step) - min(step) for step in unsorted)


def test_a_filler_is_its_sample_without_labels(world: Path) -> None:
    data = TrainData(samples(world, "from_single_question"), recipe(world))
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
        Example("t#q0", "d", None, "q", ("a",), meta={"sample": "t"}),
    ]
    with Store.create_or_resume(world / "gaps", "f", {}) as store:
        store.put_many([Annotation("a#q0", BOX, 1.0, "p", "f"), Annotation("c#q0", None, 0.0, "p", "f", reason="no relevance")])
        store.put_failure("b#q0", "the image is torn")
        found, skipped = collect(made, plug.load("policies", "from_single_question"), store, 0)
    assert [(s.id, s.usable) for s in found] == [("a", (0,)), ("t", (0,))]
    assert [(s.id, s.reason) for s in skipped] == [
        ("a#q1", NO_ANSWER),
        ("b#q0", "annotating failed: the image is torn"),
        ("c#q0", "no relevance"),
    ]
    _, without_gold = collect(made, plug.load("policies", "gold"), None, 0)
    assert {s.id for s in without_gold} == {"a#q0", "a#q1", "b#q0", "c#q0"}


def test_a_broken_image_is_replaced_and_named(world: Path) -> None:
    data = samples(world, "from_single_question")
    broken = replace(data[1], questions=tuple(replace(q, image="nowhere.png") for q in data[1].questions))
    found = TrainData([data[0], broken, data[2]], recipe(world))
    item = found[1]
    assert item.encoded in [found[0].encoded, found[2].encoded]
    assert [s.id for s in item.skipped] == [broken.id]
    assert found[1].encoded == item.encoded
    with pytest.raises(InputError, match=r"1 samples in a row cannot be trained on; the first, s1: .*nowhere\.png"):
        TrainData([broken], recipe(world))[0]


# Batches


def test_batches_are_padded_on_the_right(world: Path) -> None:
    from cos_core import llava
    from cos_core.training.collate import Collator

    model = llava.load(world / "model", device="cpu")
    data = TrainData(samples(world, "from_single_question"), recipe(world))
    collate = Collator(model.image_processor, 0, model.fill)
    items = [data[0], data[4], data[2]]
    batch = collate(items)
    for row, item in enumerate(items):
        size = len(item.encoded)
        assert batch["input_ids"][row, :size].tolist() == list(item.encoded.ids)
        assert batch["labels"][row, :size].tolist() == list(item.encoded.labels)
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (batch["input_ids"].shape[1] - size)
        assert set(batch["labels"][row, size:].tolist()) <= {IGNORE}
    assert batch["pixel_values"].equal(model.pixels([p for item in items for p in item.pictures]))
    assert "pixel_values" not in collate([data[4]])
    assert batch["about"].pictures == 4
    assert batch["about"].tokens == sum(len(item.encoded) for item in items)
    # ZeRO-3 needs a picture in every batch: one stands behind the text, where nothing attends to it.
    stand_in = replace(collate, stand_in=(model.image_token_id, IMAGE_TOKENS))([data[4]])
    assert stand_in["pixel_values"].shape[0] == 1
    assert int((stand_in["input_ids"] == model.image_token_id).sum()) == IMAGE_TOKENS
    assert not stand_in["attention_mask"][stand_in["input_ids"] == model.image_token_id].any()
    assert "pixel_values" in batch


def test_quick_pixels_are_the_processors_to_the_bit() -> None:
    import numpy as np
    from transformers import CLIPImageProcessorPil

    from cos_core.images import square_pad
    from cos_core.llava import processed

    random = np.random.default_rng(0)
    sizes = [(97, 61), (61, 97), (53, 53), (500, 3), (3, 500), (336, 200), (1001, 337), (1, 1), (2, 1)]
    pictures = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    fill = (122, 116, 104)
    for size in (56, 336):
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
        )
        plain = processor([square_pad(picture, fill) for picture in pictures], return_tensors="pt")["pixel_values"]
        assert processed(processor, pictures, fill).equal(plain)


# Whole runs


@pytest.fixture(scope="module")
def trained(world: Path) -> Path:
    training.run(config(world, world / "trained"), SilentReporter())
    return world / "trained"


def test_frozen_weights_stay_and_the_others_move(world: Path, trained: Path) -> None:
    before, after = weights(world / "model"), weights(trained)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        frozen = "vision_tower" in name or "multi_modal_projector" in name
        assert tensor.equal(after[name]) == frozen, name


def test_the_projector_moves_when_asked(world: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "out", train_projector=True, max_steps=2), SilentReporter())
    before, after = weights(world / "model"), weights(tmp_path / "out")
    for name, tensor in before.items():
        assert tensor.equal(after[name]) == ("vision_tower" in name), name


def test_the_checkpoint_loads_as_any_other(trained: Path) -> None:
    from transformers import AutoProcessor

    from cos_core import llava

    model = llava.load(trained, device="cpu")
    assert model.profile == load_profile("paper")
    assert model.model.config.text_config.use_cache
    assert json.loads((trained / "config.json").read_text()).get("use_cache", True)
    assert model.image_tokens == IMAGE_TOKENS
    processor = AutoProcessor.from_pretrained(trained, backend="pil")
    ids = processor(images=Image.new("RGB", (56, 56)), text="<image> hi")["input_ids"]
    assert sum(i == model.image_token_id for i in ids[0]) == IMAGE_TOKENS


def test_the_run_is_recorded(world: Path, trained: Path) -> None:
    done = manifest.read(trained)
    assert done.status == "complete"
    assert done.counts == {"ok": 5, "failed": 0, "skipped": 0}
    assert done.inputs.keys() == {"data", "model", "store"}
    log = log_of(trained)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert done.results["steps"] == 4
    assert done.results["first_loss"] == log[0]["loss"]
    assert not (trained / "checkpoints").exists()


def test_two_runs_have_the_same_losses(world: Path, trained: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "again"), SilentReporter())
    assert [r["loss"] for r in log_of(tmp_path / "again")] == [r["loss"] for r in log_of(trained)]
    again, first = weights(tmp_path / "again"), weights(trained)
    assert all(again[name].equal(first[name]) for name in first)


def test_workers_and_accumulation_change_nothing(world: Path, tmp_path: Path) -> None:
    training.run(config(world, tmp_path / "one", batch_size=4, max_steps=3), SilentReporter())
    parts = config(world, tmp_path / "parts", batch_size=2, global_batch=4, max_steps=3, workers=2)
    training.run(parts, SilentReporter())
    whole, cut_up = log_of(tmp_path / "one"), log_of(tmp_path / "parts")
    assert [r["loss"] for r in cut_up] == pytest.approx([r["loss"] for r in whole], rel=1e-4)
    assert manifest.read(tmp_path / "one").fingerprint == manifest.read(tmp_path / "parts").fingerprint


def test_a_finished_run_is_not_repeated_and_other_settings_are_refused(world: Path, trained: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    done = training.run(config(world, trained), SilentReporter())
    assert done == manifest.read(trained)
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before
    with pytest.raises(InputError, match=r"other settings \(learning_rate differ"):
        training.run(config(world, trained, learning_rate=1e-4), SilentReporter())
    with pytest.raises(InputError, match="did not write"):
        training.run(config(world, world / "model"), SilentReporter())


FIRST_TEN = [6.13460, 6.36527, 5.54565, 4.87779, 4.23660, 3.93777, 3.55748, 3.75161, 3.76143, 3.76826]


def test_the_first_ten_losses_are_fixed(world: Path, tmp_path: Path) -> None:
    done = training.run(config(world, tmp_path / "out", max_steps=10), SilentReporter())
    assert [r["loss"] for r in log_of(tmp_path / "out")] == pytest.approx(FIRST_TEN, rel=1e-3)
    assert done.results["processes"] == 1


class Interrupt(SilentReporter):
    """Stops the run as Ctrl-C would, after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        if done == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_weights(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())
    records[1]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    data = tmp_path / "data.json"
    whole = config(world, tmp_path / "whole", data=data, epochs=3, max_steps=None, save_every=2)
    training.run(whole, SilentReporter())
    torn = replace(whole, out=tmp_path / "torn")
    with pytest.raises(KeyboardInterrupt):
        training.run(torn, Interrupt(8))
    assert not (torn.out / manifest.FILE).exists()
    training.run(torn, SilentReporter())
    assert [r["step"] for r in log_of(torn.out)] == list(range(1, 10))
    assert [r["loss"] for r in log_of(torn.out)] == [r["loss"] for r in log_of(whole.out)]
    assert manifest.read(torn.out).counts == manifest.read(whole.out).counts == {"ok": 4, "failed": 1, "skipped": 0}
    assert (torn.out / "skipped.jsonl").read_text() == (whole.out / "skipped.jsonl").read_text()
    one, two = weights(whole.out), weights(torn.out)
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_a_signal_leaves_a_whole_checkpoint(world: Path, tmp_path: Path, number: signal.Signals | None) -> None:
    """None: the file that a launcher puts down instead of a signal."""

    class Signal(SilentReporter):
        def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
            if stage == "train" and done == 2 and number is None:
                (tmp_path / "out" / ".stop").touch()
            elif stage == "train" and done == 2 and number is not None:
                os.kill(os.getpid(), number)

    from cos_core.training import checkpoints

    made = config(world, tmp_path / "out", max_steps=6)
    with pytest.raises(KeyboardInterrupt):
        training.run(made, Signal())
    last = checkpoints.last_whole(tmp_path / "out" / "checkpoints")
    assert last is not None
    assert checkpoints.step_of(last) == 3, "the step at hand is finished"
    handlers = (signal.SIG_DFL, signal.default_int_handler)
    assert number is None or signal.getsignal(number) in handlers, "handlers are put back"
    assert not (tmp_path / "out" / ".stop").exists()
    torn = tmp_path / "out" / "checkpoints" / "checkpoint-5"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    assert checkpoints.last_whole(torn.parent) == last, "a torn checkpoint does not count"
    training.run(made, SilentReporter())
    assert [r["step"] for r in log_of(tmp_path / "out")] == list(range(1, 7))
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_checkpoints_by_time(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cos_core.training import checkpoints

    marked: list[int] = []
    whole = checkpoints.mark_whole

    def mark(folder: Path, processes: int) -> None:
        whole(folder, processes)
        marked.append(checkpoints.step_of(folder))

    monkeypatch.setattr(checkpoints, "mark_whole", mark)
    training.run(config(world, tmp_path / "out", save_minutes=1e-6, max_steps=3), SilentReporter())
    assert marked == [1, 2, 3]


def test_lora_learns_adapters_and_merges_them(world: Path, tmp_path: Path) -> None:
    done = training.run(config(world, tmp_path / "out", lora=4, max_steps=2), SilentReporter())
    before, after = weights(world / "model"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed
    assert all("language_model" in name and "_proj" in name for name in changed)
    assert done.results["trained_weights"] < 20_000
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_bill_needs_no_model(world: Path, tmp_path: Path) -> None:
    ears = Ears()
    made = config(world, tmp_path / "out", dry_run=True, max_steps=None, epochs=2, global_batch=4, deepspeed="zero3")
    bill = training.run(made, ears).results["bill"]
    assert bill["steps"] == 4, "5 samples, 4 a step, 2 epochs"
    assert bill["samples"] == 5
    assert bill["pictures"] == 8
    data = TrainData(samples(world, "from_single_question"), recipe(world))
    exact = sum(len(data[key].encoded) for key in range(5))
    assert bill["tokens"] == pytest.approx(exact, rel=0.02)
    assert bill["hours"] > 0
    assert "A100 at 40 %" in bill["hours_from"]
    assert not (tmp_path / "out").exists()
    two = training.run(replace(made, processes=2, batch_size=1), Ears()).results["bill"]
    assert two["steps"] == 4, "the same global batch on two devices"
    assert "2 x A100" in two["hours_from"]
    assert two["hours"] == pytest.approx(bill["hours"] / 2)


def test_the_probe_takes_real_steps(world: Path, tmp_path: Path) -> None:
    from cos_core.training import parts, plan

    made = config(world, tmp_path / "out", dry_run=True)
    assert plan._probe(made, parts.light(made, plug.load("policies", made.policy)), SilentReporter()) > 0
    assert not (tmp_path / "out").exists()


class Ears(SilentReporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_missing_annotations_and_broken_images_are_counted(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())
    records[1]["image"] = "gone.png"
    (tmp_path / "data.json").write_text(json.dumps([*records, {"id": "odd"}]))
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        store.put_many(Annotation(e.id, BOX, 1.0, "p", "f") for e in examples(world) if e.image and e.id != "s0#q1")
    ears = Ears()
    made = config(world, tmp_path / "out", data=tmp_path / "data.json", store=tmp_path / "store")
    done = training.run(replace(made, max_steps=None), ears)
    assert done.counts == {"ok": 4, "failed": 2, "skipped": 1}
    named = {record["id"]: record["reason"] for _, record in read_lines(tmp_path / "out" / "skipped.jsonl")}
    assert named.keys() == {"s0#q1", "s1", ""}
    assert "data.json:" in named[""]
    assert named["s0#q1"] == NO_ANNOTATION
    assert "gone.png" in named["s1"]
    assert any(NO_ANNOTATION in warning for warning in ears.warnings)


def test_bfloat16_arithmetic_keeps_float32_weights(world: Path, tmp_path: Path, trained: Path) -> None:
    training.run(config(world, tmp_path / "out", dtype="bfloat16"), SilentReporter())
    after = weights(tmp_path / "out")
    assert {str(tensor.dtype) for tensor in after.values()} == {"torch.float32"}
    assert log_of(tmp_path / "out")[0]["loss"] == pytest.approx(log_of(trained)[0]["loss"], rel=0.02)


def test_nothing_is_written_to_stdout(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    training.run(config(world, tmp_path / "out", max_steps=1), SilentReporter())
    assert capfd.readouterr().out == ""


def test_text_only_data_spends_no_vision_pass(world: Path, tmp_path: Path) -> None:
    records = json.loads((world / "data.json").read_text())[-1:]
    (tmp_path / "data.json").write_text(json.dumps(records))
    done = training.run(config(world, tmp_path / "out", data=tmp_path / "data.json", max_steps=1), SilentReporter())
    assert done.counts["ok"] == 1


def test_impossible_settings_are_refused(world: Path, tmp_path: Path) -> None:
    for wrong in (
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"warmup_ratio": 1.0},
        {"dtype": "float16"},
        {"device": "cuda:1"},
        {"workers": -1},
        {"weight_decay": -1.0},
        {"save_minutes": 0.0},
        {"qlora": True},
        {"max_faults": -1},
        {"seed": -1},
    ):
        with pytest.raises(InputError):
            config(world, tmp_path / "out", **wrong)
    with pytest.raises(InputError, match="not a multiple"):
        training.run(config(world, tmp_path / "out", global_batch=3), SilentReporter())
    with pytest.raises(InputError, match="give the store"):
        training.run(config(world, tmp_path / "out", store=None), SilentReporter())
    with pytest.raises(InputError, match="no folder of images"):
        training.run(config(world, tmp_path / "out", images=tmp_path / "nowhere"), SilentReporter())
    with pytest.raises(InputError, match="deepspeed is zero2, zero3, zero3_offload or a"):
        training.run(config(world, tmp_path / "out", deepspeed="zero9"), SilentReporter())
    if importlib.util.find_spec("wandb") is None:
        with pytest.raises(MissingError, match="'wandb'"):
            training.run(config(world, tmp_path / "out", report_to="wandb"), SilentReporter())
    assert not (tmp_path / "out" / "run.json").exists(), "a run that never began takes no directory"
    with pytest.raises(InputError, match="cannot be trained on"):
        training.run(config(world, tmp_path / "short", max_length=8), SilentReporter())


def test_a_loss_that_is_no_number_stops_the_run(world: Path, tmp_path: Path) -> None:
    with pytest.raises(CosError, match="the loss became"):
        training.run(config(world, tmp_path / "out", learning_rate=1e30, warmup_ratio=0.0, max_steps=9), SilentReporter())


def test_guards_name_the_samples(world: Path) -> None:
    from cos_core.training.collate import Contents
    from cos_core.training.flops import Size
    from cos_core.training.order import Cut, Order
    from cos_core.training.watch import Station, StopRequest, Watch

    class Trainer:
        contents = (Contents(ids=["a", "b"]), Contents(ids=["c"]))
        skipped: dict[str, str] = {}  # noqa: RUF012

    station = Station(world, SilentReporter(), None, Size(1, 0, 0, 0, 1, 1, 1, 1), None, None)
    watch = Watch(Order(1, 0, Cut(1, 1, 1)), station, StopRequest())
    watch.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(CosError, match=r"exactly 0 at step 3.* \(samples of this step: a, b, c\)"):
        watch._guard(0.0, 1.0, 3)
    with pytest.raises(CosError, match="became nan at step 4"):
        watch._guard(float("nan"), 1.0, 4)
    for step in range(3):
        watch._guard(1.0, float("inf"), step)
    watch._guard(1.0, 1.0, 3)
    for step in range(4, 7):
        watch._guard(1.0, float("inf"), step)
    with pytest.raises(CosError, match="not finite for 4 steps up to step 7"):
        watch._guard(1.0, float("inf"), 7)


def test_a_batch_with_nothing_to_learn_stops_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cos_core.training import data as data_module

    monkeypatch.setattr(data_module, "cut", lambda encoded, *_: replace(encoded, labels=(IGNORE,) * len(encoded)))
    with pytest.raises(CosError, match=r"nothing of these samples would be learnt.*: s\d|words"):
        training.run(config(world, tmp_path / "out", max_steps=1, check="off"), SilentReporter())


def test_the_defaults_are_the_papers() -> None:
    made = TrainConfig(Path("d"), Path("i"), "m", Path("o"))
    assert (made.epochs, made.learning_rate, made.warmup_ratio, made.weight_decay) == (1, 2e-5, 0.03, 0.0)
    assert (made.global_batch, made.max_length, made.extra_turns, made.train_projector) == (1024, 2048, False, False)
    assert made.accumulation(8) == 8


def test_the_shipped_settings_are_settings() -> None:
    """The paper's file says what the defaults are; the released one names where the two differ."""
    import tomllib

    from cos_core import assets
    from cos_core.training.engine import deepspeed_settings, stage_of

    places = {"data": Path("d"), "images": Path("i"), "out": Path("o"), "store": Path("s")}
    made = {}
    for name in ("paper", "released"):
        settings = tomllib.loads(assets.template("config", f"train-{name}.toml").read_text())["train"]
        made[name] = TrainConfig(**places, **settings)
    paper, released = made["paper"], made["released"]
    assert replace(paper, deepspeed=None) == TrainConfig(**places, model="llava-hf/llava-1.5-7b-hf")
    assert (released.global_batch, released.extra_turns, released.train_projector) == (128, True, True)
    assert load_profile(str(released.profile)).inst1.count("where")
    stages = {
        name: stage_of(deepspeed_settings(replace(paper, deepspeed=name))) for name in ("zero2", "zero3", "zero3_offload")
    }
    assert stages == {"zero2": 2, "zero3": 3, "zero3_offload": 3}


def test_importing_the_stage_loads_no_torch() -> None:
    code = "import sys, cos_core.training; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
