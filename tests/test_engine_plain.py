"""The plain engine, which is the library alone, against the fast one on tiny random checkpoints of every family."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny_families
import torch
from PIL import Image

from cos_core.dialogue import prompts
from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.engines._batch import token_bytes
from cos_core.engines._plain import PlainEngine
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Request
from cos_core.models import general

QUESTIONS = ("what", "how many are there in all, and which of them stand to the left?", "colour?")
BOX = "[0.100, 0.200, 0.300, 0.400]"

Load = Callable[[str], general.GeneralModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    models: dict[str, general.GeneralModel] = {}

    def loaded(name: str) -> general.GeneralModel:
        if name not in models:
            folder = tiny_families.build(name, tmp_path_factory.mktemp(name), generation_config={"repetition_penalty": 1.4})
            models[name] = general.load(folder, device="cpu", dtype="float32")
        return models[name]

    return loaded


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


def requests(loaded: general.GeneralModel, budget: int = 9) -> list[Request]:
    """Dialogues of one and of two pictures in turn, of unlike lengths, some about one picture."""
    wholes = [picture(1, (120, 80)), picture(2, (40, 61))]
    found = []
    for number, question in enumerate(QUESTIONS):
        whole = wholes[number % 2]
        found.append(Request(prompts.dialogue(loaded.profile, question, chain=False), {"full": whole}, budget - number))
        turns = prompts.dialogue(loaded.profile, question, box_text=BOX)
        found.append(Request(turns, {"full": whole, "roi": whole.crop((3, 3, 31, 37))}, budget))
    return found


@pytest.mark.parametrize("name", tiny_families.WITH_DIALOGUE)
def test_the_fast_engine_answers_as_the_library_does(load: Load, name: str) -> None:
    loaded = load(name)
    asked = requests(loaded)
    plain = PlainEngine(loaded).generate(asked)
    assert [reply.error for reply in plain] == [None] * len(asked)
    for fast in (HfEngine(loaded).generate(asked), HfEngine(loaded, reuse=False).generate(asked)):
        assert fast == plain  # text, tokens in and out, finished
        assert [reply.ids for reply in fast] == [reply.ids for reply in plain]
        assert [reply.steps for reply in fast] == [reply.steps for reply in plain]
        for one, other in zip(fast, plain, strict=True):
            assert one.margins == pytest.approx(other.margins, abs=1e-4)


def test_a_request_that_cannot_be_run_fails_alone(load: Load) -> None:
    loaded = load("qwen2_vl")
    whole = picture(1, (120, 80))

    def ask(question: str, image: Image.Image = whole, budget: int = 5) -> Request:
        return Request(prompts.dialogue(loaded.profile, question, chain=False), {"full": image}, budget)

    good = [ask("what"), ask("which one")]
    bad = {
        "image mark": ask(f"is {loaded.processor.image_token} red?"),
        "does not hold": Request(good[0].turns, {"roi": whole}, 5),
        "refuses the dialogue": ask("what", picture(2, (5000, 2))),  # an aspect ratio that Qwen's processor does not take
        "model's context": ask("what", budget=loaded.context),
    }
    engine = PlainEngine(loaded)
    replies = engine.generate([good[0], *bad.values(), good[1]])
    assert [replies[0], replies[-1]] == engine.generate(good)
    for words, reply in zip(bad, replies[1:-1], strict=True):
        assert words in str(reply.error)
        assert (reply.text, reply.ids, reply.transient) == ("", (), False)


def test_memory_that_runs_out_halves_a_batch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llava_next")
    asked = requests(loaded)
    expected = PlainEngine(loaded).generate(asked)
    heard: list[str] = []
    asked[0] = replace(asked[0], listen=heard.append)
    most, sizes, forward = 1, [], loaded.model.forward

    @functools.wraps(forward)
    def limited(*args: object, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **inputs)

    monkeypatch.setattr(loaded.model, "forward", limited)
    engine = PlainEngine(loaded)
    assert engine.generate(asked) == expected
    assert "".join(heard).strip() == expected[0].text
    assert sizes[:3] == [3, 2, 1]
    most = 0
    replies = engine.generate(asked[:2])
    assert [reply.transient for reply in replies] == [True, True]
    assert all("out of memory" in str(reply.error) for reply in replies)


def test_a_budget_of_keys_and_values_bounds_a_batch(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load("llava_next")
    asked = [request for request in requests(loaded) if len(request.images) == 1]
    expected = PlainEngine(loaded).generate(asked)
    longest = max(reply.tokens_in + request.max_new_tokens for reply, request in zip(expected, asked, strict=True))
    column = token_bytes(loaded.model.config.get_text_config(), torch.float32)
    sizes, generate = [], loaded.model.generate
    monkeypatch.setattr(
        loaded.model, "generate", lambda **inputs: (sizes.append(len(inputs["input_ids"])), generate(**inputs))[1]
    )
    assert PlainEngine(loaded, kv_budget=2 * longest * column).generate(asked) == expected
    assert sizes == [2, 1]
    assert all("--kv-budget" in str(reply.error) for reply in PlainEngine(loaded, kv_budget=column).generate(asked))


def test_pieces_of_a_text_are_passed_on(load: Load) -> None:
    loaded, heard = load("idefics3"), list[str]()
    asked = requests(loaded)
    reply = PlainEngine(loaded).generate([asked[1], replace(asked[0], listen=heard.append)])[1]
    assert len(heard) > 1
    # Half a character may be the last thing that is written; it is never passed on.
    assert "".join(heard).strip() == reply.text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_rows_that_stand_for_no_text_never_come_out(load: Load) -> None:
    loaded = load("gemma3")
    asked = requests(loaded)
    first = {reply.ids[0] for reply in PlainEngine(loaded).generate(asked)}
    fewer = replace(loaded, unused_rows=(*loaded.unused_rows, *first))
    plain, fast = PlainEngine(fewer).generate(asked), HfEngine(fewer).generate(asked)
    assert [reply.ids for reply in plain] == [reply.ids for reply in fast]
    assert not first & {token for reply in plain for token in reply.ids}


def test_a_grammar_holds(load: Load) -> None:
    loaded = load("llava_next")
    grammar = BoxGrammar(loaded.profile)
    asked = [replace(request, grammar=grammar, max_new_tokens=48) for request in requests(loaded)[::2]]
    plain, fast = PlainEngine(loaded).generate(asked), HfEngine(loaded).generate(asked)
    assert plain == fast
    assert [(reply.ids, reply.steps) for reply in plain] == [(reply.ids, reply.steps) for reply in fast]
    assert all(reply.finished and not grammar.follows(reply.text) and grammar.viable(reply.text) for reply in plain)
    for one, other in zip(plain, fast, strict=True):
        assert one.margins == pytest.approx(other.margins, abs=1e-4)


def test_numbers_that_are_none_are_said(load: Load) -> None:
    loaded = load("mistral3")
    weight = loaded.model.lm_head.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        (reply,) = PlainEngine(loaded).generate(requests(loaded)[:1])
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert reply.text == ""
    assert "not a number" in str(reply.error)
