"""Every family end to end: two passes and one by `cos infer`, two benchmarks by `cos eval`, against the library by hand.

The checkpoints carry a repetition penalty, which a greedy answer must not feel. "By hand" is the processor's own tensors for
the whole dialogue and a full forward for every new token, without a cache, a batch or this project's prompts, positions and
features.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image
from two_passes import QUIET, comparable, questions, stored

from cos_cli import main
from cos_core.dialogue import prompts
from cos_core.engines._plain import PlainEngine
from cos_core.engines.hf import HfEngine
from cos_core.errors import FailuresError, InputError
from cos_core.infer import InferConfig, run
from cos_core.infer.stage import run_together
from cos_core.interfaces import Reply, Request
from cos_core.models import general
from cos_core.models.processor import processor
from cos_core.types import ImageSlot

Build = Callable[..., Path]
PENALTY = {"repetition_penalty": 1.6}
FAST = ("llava_next", "qwen2_5_vl", "gemma3")
"""Checked in every run: a family of tiles, one with positions of three axes, one with sliding windows; the others are slow."""
KNOWN = (*tiny_families.WITH_DIALOGUE, *tiny_families.HELD_OUT)
ANEW = ("llava_onevision", "paligemma", "mllama")
"""Families whose second pass cannot continue the first: it shows another first picture, its prompt is read both ways, or its
pictures are no part of the sequence."""
UNLIKE = ("llava", "idefics3", "mllama")
"""Not loaded by the general class, or named already, or without a prompt of its own (the library writes Mllama's)."""
BUDGETS = (6, 9)
"""Tokens of an answer and of a box."""
PICTURES = {"wide.png": (120, 80), "tall.png": (40, 61), "small.png": (17, 31)}
ASKED = [
    ("a", "wide.png", "What colour is it?"),
    ("b", "wide.png", "How many are there, and which of them stand to the left of the door?"),
    ("c", "tall.png", "Is it red?"),
    ("d", "small.png", "Where?"),
]


def checkpoints(*names: str) -> list[Any]:
    return [
        pytest.param(name, shape, marks=[] if name in FAST and shape == "usual" else pytest.mark.slow, id=f"{name}-{shape}")
        for shape in ("usual", "other")
        for name in names
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed, (name, size) in enumerate(PICTURES.items()):
        Image.frombytes("RGB", (5, 4), random.Random(seed).randbytes(60)).resize(size, Image.Resampling.BICUBIC).save(
            folder / name
        )
    return folder


@dataclass
class Asked:
    """What the engine was asked and answered."""

    requests: list[Request] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    kept, generate = Asked(), {cls: cls.generate for cls in (HfEngine, PlainEngine)}

    def recorded(engine: HfEngine | PlainEngine, requests: list[Request]) -> list[Reply]:
        replies = generate[type(engine)](engine, requests)
        if requests[0].max_new_tokens not in BUDGETS:
            return replies  # a family without a file is tried when it is loaded
        kept.requests += requests
        kept.replies += replies
        return replies

    for cls in generate:
        monkeypatch.setattr(cls, "generate", recorded)
    return kept


@pytest.fixture
def config(tmp_path: Path, pictures: Path) -> InferConfig:
    """Boxes of random models cannot be read; the second picture is then the centre crop."""
    return InferConfig(
        model="none",
        data=questions(tmp_path, ASKED), images=pictures, out=tmp_path / "out.jsonl", device="cpu", dtype="float32",
        batch_size=3, max_new_tokens=BUDGETS[0], box_tokens=BUDGETS[1], on_bad_box="center",
    )  # fmt: skip


def messages(request: Request) -> list[dict[str, Any]]:
    """A dialogue as a chat template takes it."""
    found = []
    for turn in request.turns:
        content: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, ImageSlot):
                content.append({"type": "image", "image": request.images[part.slot]})
            else:
                content.append({"type": "text", "text": part})
        found.append({"role": turn.role, "content": content})
    return found


class ByHand:
    """A checkpoint asked with the library alone."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self.processor = processor(folder)
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        # An answer shows no picture, and says nothing that the tokenizer has no word for.
        rows = set(range(self.model.get_output_embeddings().out_features))
        spoken = set(self.processor.tokenizer.get_vocab().values()) - {self.model.config.image_token_id}
        self.wordless = sorted(rows - spoken)

    def tensors(self, request: Request) -> dict[str, torch.Tensor]:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        tensors = dict(self.processor.apply_chat_template(messages(request), **options))
        tensors.pop("labels", None)
        return tensors

    def greedy(self, request: Request) -> tuple[list[int], list[float]]:
        """The likeliest token after the other, and how far the second likeliest lay behind each."""
        tensors, ids, margins = self.tensors(request), [], []
        # PaliGemma's tokens of an answer are of another type than those of its prompt.
        new = {"attention_mask": 1, "token_type_ids": int(type(self.processor).__name__ == "PaliGemmaProcessor")}
        with torch.inference_mode():
            while len(ids) < request.max_new_tokens and not self.ends & set(ids):
                if hasattr(self.model.base_model, "rope_deltas"):
                    self.model.base_model.rope_deltas = None
                logits = self.model(**tensors, use_cache=False).logits[0, -1]
                logits[self.wordless] = -torch.inf
                first, second = logits.topk(2).values.tolist()
                ids.append(int(logits.argmax()))
                margins.append(first - second)
                for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
                    if name in tensors:
                        last = torch.tensor([[ids[-1] if name == "input_ids" else new.get(name, 0)]])
                        tensors[name] = torch.cat([tensors[name], last], dim=1)
                if (mask := tensors.get("cross_attention_mask")) is not None:
                    tensors["cross_attention_mask"] = torch.cat([mask, mask[:, -1:]], dim=1)
        return ids, margins

    def penalised(self, request: Request) -> list[int]:
        """What `generate` answers with the checkpoint's own settings."""
        tensors = self.tensors(request)
        with torch.inference_mode():
            whole = self.model.generate(**tensors, max_new_tokens=request.max_new_tokens, do_sample=False)
        return [int(i) for i in whole[0, tensors["input_ids"].shape[1] :]]


@pytest.mark.parametrize(("name", "shape"), checkpoints(*KNOWN))
def test_two_passes_and_one(
    name: str, shape: str, tiny_checkpoint: Build, config: InferConfig, tmp_path: Path, asked: Asked
) -> None:
    folder = tiny_checkpoint(name, shape=shape, generation_config=PENALTY)
    assert json.loads((folder / "generation_config.json").read_text())["repetition_penalty"] == 1.6
    config = replace(config, model=folder)
    one = replace(config, roi="none", out=tmp_path / "none.jsonl")
    for each in (config, one):
        assert run(each, QUIET).counts["ok"] == len(ASKED)
    requests, replies = asked.requests, asked.replies
    assert sorted(len(request.images) for request in requests) == [1] * 8 + [2] * 4
    assert len({reply.ids for reply in replies}) >= 8, "answers depend on picture and question, or the test shows nothing"

    check_reuse(name, requests, replies)

    # Question after question, each dialogue from its start
    asked.requests, asked.replies = [], []
    for place, each in enumerate((config, one)):
        alone = replace(each, batch_size=1, reuse=False, out=tmp_path / f"alone{place}.jsonl")
        run(alone, QUIET)
        assert comparable(alone.out) == comparable(each.out)
    anew = dict(zip((request.turns for request in asked.requests), asked.replies, strict=True))
    for request, reply in zip(requests, replies, strict=True):
        assert reply.ids == anew[request.turns].ids
        assert reply.margins == pytest.approx(anew[request.turns].margins, abs=1e-4)
        assert anew[request.turns].cached == 0

    if name == "llava":
        return  # cos pads its pictures to squares where the library cuts their sides off; test_engine_hf.py has it by hand
    by_hand = ByHand(folder)
    for request, reply in zip(requests, replies, strict=True):
        ids, margins = by_hand.greedy(request)
        assert list(reply.ids) == ids
        assert reply.margins == pytest.approx(margins, abs=1e-4)
        assert reply.tokens_in == by_hand.tensors(request)["input_ids"].shape[1]
    assert any(by_hand.penalised(request) != list(reply.ids) for request, reply in zip(requests, replies, strict=True))


def check_reuse(name: str, requests: list[Request], replies: list[Reply]) -> None:
    """The second pass continues the first, or nothing but the words in front of its pictures."""
    all_of = list(zip(requests, replies, strict=True))
    for second, reply in all_of:
        if len(second.images) == 2:
            first = next(r for q, r in all_of if len(q.images) == 1 and q.turns[0] == second.turns[0])
            if name not in ANEW:
                assert reply.cached >= first.tokens_in
            elif sum(len(q.images) == 2 and q.images["full"] is second.images["full"] for q in requests) == 1:
                assert reply.cached < 16


ARMS = {
    "region": {},
    **{content: {"crop": content} for content in ("black", "noise", "swap", "absent")},
    "unboxed": {"box_text": "none"},
    "blurred": {"global_scale": 0.3},
}


@pytest.mark.parametrize(("name", "shape"), [each for each in checkpoints(*KNOWN) if each.id.endswith("usual")])
def test_arms_that_take_something_away(
    name: str, shape: str, tiny_checkpoint: Build, config: InferConfig, tmp_path: Path, asked: Asked
) -> None:
    folder = tiny_checkpoint(name, shape=shape)
    arms = [replace(config, model=folder, out=tmp_path / f"{arm}.jsonl", **settings) for arm, settings in ARMS.items()]
    assert all(not isinstance(outcome, FailuresError) for outcome in run_together(arms, QUIET))
    tokens = {arm: [each.tokens["pass2_in"] for each in stored(tmp_path / f"{arm}.jsonl")] for arm in ARMS}
    for arm in ("black", "noise", "swap"):
        assert tokens[arm] == tokens["region"], "a control has the tokens of what it is compared with"
    if name != "llava_onevision":  # it shows a picture by itself in tiles, and two pictures without
        assert all(absent < region for absent, region in zip(tokens["absent"], tokens["region"], strict=True))
    if name == "llava":
        return
    by_hand = ByHand(folder)
    for request, reply in zip(asked.requests, asked.replies, strict=True):
        assert reply.tokens_in == by_hand.tensors(request)["input_ids"].shape[1]
        shown = [part.slot for turn in request.turns for part in turn.parts if isinstance(part, ImageSlot)]
        if (len(request.turns) == 3 and shown == ["full"]) or (len(request.turns) == 1 and shown == ["full", "roi"]):
            assert list(reply.ids) == by_hand.greedy(request)[0]


@pytest.mark.parametrize(("name", "shape"), checkpoints(*KNOWN, *tiny_families.PEERS))
def test_two_benchmarks(
    name: str, shape: str, tiny_checkpoint: Build, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for folder in (data / "scenes" / "images", data / "pope" / "val2014"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(pictures)
    rows = [{"id": i, "dataset": "scenes", "image": p, "question": q, "answers": ["red"]} for i, p, q in ASKED]
    (data / "scenes" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "pope" / "coco").mkdir()
    for category in ("adversarial", "popular", "random"):
        labels = [
            {"question_id": 1 + place, "image": picture, "text": f"Is there a {category} cat in the image?", "label": label}
            for place, (picture, label) in enumerate((("wide.png", "yes"), ("tall.png", "no")))
        ]
        (data / "pope" / "coco" / f"coco_pope_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in labels))
    arms = ("none",) if name in tiny_families.PEERS else ("none", "model")
    words = f"scenes pope --data {data} --model {tiny_checkpoint(name, shape=shape)} --out {tmp_path / 'out'}"
    words += f" --roi {','.join(arms)} --max-new-tokens 4 --box-tokens 6 --device cpu --follow-links --json -q"
    assert main.run(["eval", *words.split()]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["arm"], r["benchmark"]) for r in runs] == [(a, b) for a in arms for b in ("scenes", "pope")]
    for r, count in zip(runs, (4, 6) * len(arms), strict=True):
        folder = tmp_path / "out" / (r["arm"] if len(arms) > 1 else "") / r["benchmark"]
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["counts"]["ok"] == manifest["counts"]["total"] == count
        answers = stored(folder / "predictions.jsonl")
        assert len(answers) == count
        assert not any(answer.error for answer in answers)


@pytest.mark.parametrize("shape", ["usual", pytest.param("other", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", tiny_families.PEERS)
def test_peers_answer_in_one_pass(name: str, shape: str, tiny_checkpoint: Build, config: InferConfig, tmp_path: Path) -> None:
    config = replace(config, model=tiny_checkpoint(name, shape=shape, generation_config=PENALTY), roi="none")
    assert run(config, QUIET).counts["ok"] == len(ASKED)
    alone = replace(config, batch_size=1, out=tmp_path / "alone.jsonl")
    run(alone, QUIET)
    assert comparable(alone.out) == comparable(config.out)
    free = replace(config, model=tiny_checkpoint(name, shape=shape), out=tmp_path / "free.jsonl")
    run(free, QUIET)
    assert [p.answer for p in stored(free.out)] == [p.answer for p in stored(config.out)]
    assert len({p.answer for p in stored(config.out)}) > 1


@pytest.mark.parametrize("name", [*tiny_families.PEERS, *tiny_families.REFUSED])
def test_models_that_cannot_be_asked_twice_are_an_input_error(name: str, tiny_checkpoint: Build, config: InferConfig) -> None:
    """Three without a dialogue, one whose processor breaks over a picture."""
    with pytest.raises(InputError):
        run(replace(config, model=tiny_checkpoint(name)), QUIET)


@pytest.mark.parametrize("name", ["idefics3", *(pytest.param(n, marks=pytest.mark.slow) for n in KNOWN if n not in UNLIKE)])
def test_second_pass_after_a_first_without_words(name: str, tiny_checkpoint: Build) -> None:
    """Templates look into the turn (Idefics3's asks what it begins with)."""
    folder = tiny_checkpoint(name)
    loaded, wide, tall = (
        general.load(folder, device="cpu", dtype="float32"),
        Image.new("RGB", (60, 40)),
        Image.new("RGB", (30, 41)),
    )
    request = Request(prompts.dialogue(loaded.profile, "What?", box_text=""), {"full": wide, "roi": tall}, 1)
    ids = loaded.prompt(request.turns, lambda slot: loaded.picture(request.images[slot], loaded.variant(2))).ids
    assert list(ids) == ByHand(folder).tensors(request)["input_ids"][0].tolist()


@pytest.mark.parametrize("name", ["mistral3", *(pytest.param(n, marks=pytest.mark.slow) for n in KNOWN if n != "mistral3")])
def test_pictures_of_a_few_pixels(name: str, tiny_checkpoint: Build, config: InferConfig, tmp_path: Path) -> None:
    """A crop can be as small; Mistral 3 shows it as one token. A line of 900 pixels fails alone, where it does."""
    folder, sizes = tmp_path / "few", {"five": (5, 5), "one": (1, 1), "line": (900, 1)}
    folder.mkdir()
    for key, size in sizes.items():
        Image.new("RGB", size, "red").save(folder / f"{key}.png")
    data = questions(tmp_path, [(key, f"{key}.png", "What?") for key in sizes], "few.jsonl")
    run(replace(config, model=tiny_checkpoint(name), data=data, images=folder), QUIET)
    assert {p.example_id for p in stored(config.out) if p.error} <= {"line"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_half_precision(name: str, tiny_checkpoint: Build, config: InferConfig) -> None:
    """As checkpoints are published; a picture's features and masks must have the weights' type."""
    folder = tiny_checkpoint(name, bfloat16=True)
    assert run(replace(config, model=folder, dtype="auto"), QUIET).counts["ok"] == len(ASKED)
