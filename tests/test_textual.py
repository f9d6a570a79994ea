"""Models without a dialogue (BLIP-2, InstructBLIP, IDEFICS) on tiny random checkpoints, against the library's own generate."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image

from cos_cli import main
from cos_core.dialogue import prompts
from cos_core.engines._plain import PlainEngine
from cos_core.engines.hf import build
from cos_core.errors import InputError
from cos_core.interfaces import Request, Sampling
from cos_core.models import loading, textual
from cos_core.models.wording import resolved_profile
from cos_core.scoring.answers import SHORT_ANSWER

POPE = Path(__file__).parent / "golden" / "pope"
QUESTIONS = ("what", "how many are there in all, and which of them stand to the left?", "colour?")
SHORT = "Question: {} Short answer:"
BUDGET = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in built:
            habits = {"repetition_penalty": 1.4, "num_beams": 3}
            built[name] = tiny_families.build(name, tmp_path_factory.mktemp(name), generation_config=habits)
        return built[name]

    return of


@pytest.fixture(scope="module")
def engine(folder: Callable[[str], Path]) -> Callable[[str], PlainEngine]:
    engines: dict[str, PlainEngine] = {}

    def of(name: str) -> PlainEngine:
        if name not in engines:
            found = build(folder(name), device="cpu", dtype="float32")
            assert isinstance(found, PlainEngine)
            engines[name] = found
        return engines[name]

    return of


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


PICTURES = (picture(1, (120, 80)), picture(2, (40, 61)))


def asked(profile: prompts.Profile, questions: Sequence[str] = QUESTIONS) -> list[Request]:
    return [
        Request(prompts.dialogue(profile, question, chain=False), {"full": PICTURES[number % 2]}, BUDGET - number % 3)
        for number, question in enumerate(questions)
    ]


def by_hand(name: str, where: Path) -> list[list[int]]:
    """Greedy answers by the library's model and processor, each question alone, with the prompts written out here."""
    from transformers import AutoModelForImageTextToText, GenerationConfig

    processor = tiny_families.by_hand(name)
    model = AutoModelForImageTextToText.from_pretrained(where).eval()
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    vocabulary = processor.tokenizer.get_vocab()
    ids = []
    for number, question in enumerate(QUESTIONS):
        image = PICTURES[number % 2]
        if name == "idefics":
            before = "Instruction: provide an answer to the question. Use the image to answer.\nImage:"
            inputs = processor(text=[[before, image, f"Question: {question} Answer:"]], return_tensors="pt")
            ends = [
                vocabulary["</s>"],
                vocabulary["\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"],
            ]  # how byte tokens write a line break
        else:
            inputs = processor(images=image, text=SHORT.format(question), return_tensors="pt")
            ends = [vocabulary["</s>"]]
        said = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=BUDGET - number % 3,
            eos_token_id=ends,
            suppress_tokens=[number for word, number in vocabulary.items() if "image" in word],
        )
        ids.append(said[0, inputs["input_ids"].shape[1] :].tolist())
    return ids


@pytest.mark.parametrize("name", tiny_families.PEERS)
def test_batched_alone_and_by_the_library_are_one(
    folder: Callable[[str], Path], engine: Callable[[str], PlainEngine], name: str
) -> None:
    requests = asked(engine(name).loaded.profile, [f"{QUESTIONS[0]}\n{SHORT_ANSWER}", *QUESTIONS[1:]])
    together = engine(name).generate(requests)
    assert [reply.error for reply in together] == [None] * len(QUESTIONS)
    assert together == [engine(name).generate([request])[0] for request in requests]
    assert [list(reply.ids) for reply in together] == by_hand(name, folder(name))
    swapped = [Request(request.turns, {"full": PICTURES[number % 2 - 1]}, BUDGET) for number, request in enumerate(requests)]
    assert all(one.ids != other.ids for one, other in zip(together, engine(name).generate(swapped), strict=True))


@pytest.mark.parametrize("name", tiny_families.PEERS)
def test_answers_are_drawn_by_their_seeds(engine: Callable[[str], PlainEngine], name: str) -> None:
    requests = [replace(one, sampling=Sampling(1.5, 0.95, 3)) for one in asked(engine(name).loaded.profile)]
    requests.append(replace(requests[0], sampling=Sampling(1.5, 0.95, 4)))
    together = engine(name).generate(requests)
    assert [reply.ids for reply in together] == [engine(name).generate([one])[0].ids for one in requests]
    assert together[0].ids != together[3].ids
    assert all(reply.margin is not None and reply.margin >= 0 for reply in together)


@pytest.mark.parametrize("name", tiny_families.PEERS)
def test_what_cannot_be_asked_is_refused(engine: Callable[[str], PlainEngine], name: str) -> None:
    profile = engine(name).loaded.profile
    two = prompts.dialogue(profile, "what", box_text="[0.1, 0.2, 0.3, 0.4]")
    (good,) = asked(profile, ["what"])
    bad = [
        Request(two, {"full": PICTURES[0], "roi": PICTURES[1]}, BUDGET),
        *asked(profile, ["is <image> red?"]),
        Request(good.turns, {}, BUDGET),
        Request(good.turns, good.images, 10_000),
    ]
    replies = engine(name).generate([*bad, good])
    assert all(reply.error and not reply.text for reply in replies[:-1])
    assert "one picture" in str(replies[0].error)
    assert replies[-1] == engine(name).generate([good])[0]


def test_a_question_is_no_address_to_fetch(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """IDEFICS' processor takes a text that is an address for a picture; the shipped wording has spaces, others may not."""
    from transformers import IdeficsImageProcessorPil

    def fetch(_self: Any, images: Any) -> Any:
        assert not isinstance(images, str), "fetched"
        return images

    monkeypatch.setattr(IdeficsImageProcessorPil, "fetch_images", fetch)
    bare = prompts.load_profile("idefics-instruct")
    found = build(folder("idefics"), profile=bare, device="cpu", dtype="float32")
    replies = found.generate(asked(bare, ["https://example.org/a.png", "what"]))
    assert "address" in str(replies[0].error)
    assert replies[1].error is None


def test_a_question_longer_than_the_query_transformer_reads(engine: Callable[[str], PlainEngine]) -> None:
    loaded = engine("instructblip").loaded
    most = loaded.model.config.qformer_config.max_position_embeddings
    fits = most - len(SHORT.format("")) - 1  # one token a byte, and the start token
    replies = engine("instructblip").generate(asked(loaded.profile, ["a" * fits, "a" * (fits + 1)]))
    assert replies[0].error is None
    assert "query transformer" in str(replies[1].error)


def test_the_profile_is_the_family_s_own(folder: Callable[[str], Path], tmp_path: Path) -> None:
    profiles = {name: resolved_profile(folder(name)).name for name in tiny_families.PEERS}
    assert profiles == {"blip_2": "short-answer", "instructblip": "short-answer", "idefics": "idefics"}
    assert resolved_profile(folder("idefics"), "idefics-instruct").turn_end == "<end_of_utterance>"
    with pytest.raises(InputError, match="short-answer"):
        textual.load(folder("blip_2"), profile="chat", device="cpu")


def test_an_encoder_and_a_decoder(tmp_path: Path) -> None:
    """BLIP-2 with Flan-T5, whose answers begin with a token of their own."""
    from transformers import AutoModelForImageTextToText, Blip2Config

    parts = tiny_families.BUILDERS["blip_2"](tiny_families.SHAPES["usual"])
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "initializer_factor": 6.0}
    tokens = {"vocab_size": len(parts.tokenizer), "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = Blip2Config(**{**parts.config.to_dict(), "text_config": {"model_type": "t5", **sizes, **tokens}})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tiny_families.save_processor(parts, tmp_path)
    found = build(tmp_path, device="cpu", dtype="float32")
    requests = asked(found.loaded.profile)
    replies = found.generate(requests)
    assert replies == [found.generate([request])[0] for request in requests]
    processor = tiny_families.by_hand("blip_2")
    for number, (question, reply) in enumerate(zip(QUESTIONS, replies, strict=True)):
        inputs = processor(images=PICTURES[number % 2], text=SHORT.format(question), return_tensors="pt")
        said = model.generate(**inputs, do_sample=False, max_new_tokens=BUDGET - number, suppress_tokens=[3])
        assert list(reply.ids) == said[0, 1:].tolist()


def test_the_profile_s_end_mark_ends_an_answer(folder: Callable[[str], Path]) -> None:
    stops = {
        name: textual.load(folder("idefics"), profile=name, device="cpu").stop_ids for name in ("idefics", "idefics-instruct")
    }
    vocabulary = tiny_families.by_hand("idefics").tokenizer.get_vocab()
    assert stops["idefics-instruct"] == {vocabulary["</s>"], vocabulary["<end_of_utterance>"]}
    assert stops["idefics"] == {vocabulary["</s>"], vocabulary["\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}"]}


def test_a_folder_is_looked_at_before_it_is_asked(folder: Callable[[str], Path], tmp_path: Path) -> None:
    loading.check(folder("blip_2"), pictures=1)
    with pytest.raises(InputError, match="one picture"):
        loading.check(folder("blip_2"), pictures=2)
    for file in folder("blip_2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    del settings["num_query_tokens"]
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="num_query_tokens"):
        textual.load(tmp_path, device="cpu")


@pytest.mark.parametrize("name", tiny_families.PEERS)
def test_the_commands_answer_and_score(folder: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rows = [json.loads(line) for line in (POPE / "llava_pope_test.jsonl").read_text().splitlines()]
    for number, image in enumerate(sorted({row["image"] for row in rows})):
        picture(number, (60 + number, 50)).save(pictures / image)
    (tmp_path / "pope").mkdir()
    for file in POPE.rglob("*"):
        if file.is_file():
            target = tmp_path / "pope" / file.relative_to(POPE)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "pope" / "val2014").symlink_to(pictures)
    model = ["--model", str(folder(name)), "--device", "cpu", "--max-new-tokens", "4", "--quiet"]
    out = tmp_path / "run"
    assert (
        main.run(["eval", "pope", "--data", str(tmp_path / "pope"), *model, "--roi", "none", "--out", str(out), "--limit", "8"])
        == 0
    )
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 8
    assert all(row["error"] is None and row["box_status"] == "skipped" for row in predictions)
    asking = ["infer", *model, "--image", str(next(iter(sorted(pictures.iterdir())))), "--question", "What is it?"]
    assert main.run([*asking, "--roi", "none"]) == 0
    assert main.run(asking) == 3
