"""Reuse changes no answer: the two passes with and without the store of prefixes, one by one and batched."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import make_checkpoint

from cos_core.dialogue import prompts
from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import read_box
from cos_core.engines._batch import choices
from cos_core.engines._prefix import Match, PrefixStore
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Reply, Request
from cos_core.models import llava
from cos_core.models.vocabulary import unused_rows

PROFILE = prompts.load_profile("paper")
BRIEF = replace(PROFILE, system="", inst1='{image}\n"{question}", where?', inst2='See {image}\n. "{question}"')
"""A byte is a token here: fewer words, less time."""
WORDS = ("what", "which", "colour", "digit", "shape", "is", "left", "right", "of", "the", "red", "blue", "circle", "picture")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> llava.Llava:
    torch.set_num_threads(1)
    return llava.load(make_checkpoint(tmp_path_factory.mktemp("tiny"), num_key_value_heads=2), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> llava.Llava:
    torch.set_num_threads(1)
    shape: dict[str, Any] = {"image_size": 28, "hidden": 32, "layers": 32, "num_attention_heads": 2}
    where = make_checkpoint(tmp_path_factory.mktemp("deep"), **shape, initializer_range=0.3)
    return llava.load(where, device="cpu", dtype="float32", profile=BRIEF)


def pictures(count: int) -> list[Image.Image]:
    dice = random.Random(3)
    return [Image.frombytes("RGB", (40 + i % 7, 31), dice.randbytes(3 * (40 + i % 7) * 31)) for i in range(count)]


def questions(count: int) -> list[str]:
    dice = random.Random(5)
    return [" ".join(dice.choices(WORDS, k=dice.randint(1, 6))) for _ in range(count)]


def both_passes(
    engine: HfEngine,
    asked: Sequence[tuple[Image.Image, str]],
    batch: int,
    grammar: BoxGrammar | None = None,
    kept: list[list[Request]] | None = None,
) -> tuple[list[Reply], list[Reply]]:
    """Pass 1, then pass 2 with whatever pass 1 wrote (tokenised anew) and a fixed crop, `batch` questions at a time."""
    firsts: list[Reply] = []
    seconds: list[Reply] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        budget = 30 if grammar else 4
        where = [Request(prompts.dialogue(engine.llava.profile, q), {"full": image}, budget, grammar) for image, q in part]
        first = engine.generate(where)
        crops = [image.crop((2, 2, 20, 20)) for image, _ in part]
        what = [
            Request(prompts.dialogue(engine.llava.profile, q, box_text=reply.text), {"full": image, "roi": crop}, 3)
            for (image, q), reply, crop in zip(part, first, crops, strict=True)
        ]
        second = engine.generate(what)
        for keep, requests in zip(kept or (), (where, what), strict=False):
            keep += requests
        firsts += first
        seconds += second
    assert all(reply.error is None for reply in firsts + seconds)
    return firsts, seconds


def flips(ours: Sequence[Reply], theirs: Sequence[Reply]) -> list[float]:
    """The margin at the first difference of every reply that differs."""
    found = []
    for a, b in zip(ours, theirs, strict=True):
        if a.ids != b.ids:
            common = next(i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=False)) if x != y)
            found.append(min(a.margins[common], b.margins[common]))
    return found


def compare(model: llava.Llava, count: int, a_picture: int) -> tuple[list[Reply], list[Reply]]:
    """One by one without reuse against batches with reuse; a question whose first passes differ is compared no further."""
    asked = list(zip([p for p in pictures(count // a_picture) for _ in range(a_picture)], questions(count), strict=True))
    alone = both_passes(HfEngine(model, reuse=False), asked, 1)
    together = both_passes(HfEngine(model), asked, 16)
    for ours, theirs in zip(together, alone, strict=True):
        assert all(margin < 1e-4 for margin in flips(ours, theirs)), flips(ours, theirs)
    assert not any(reply.cached for part in alone for reply in part)
    return together


def test_reuse_and_batches_change_no_answer(tiny: llava.Llava) -> None:
    first, second = compare(tiny, 48, 4)
    assert len({reply.ids for reply in second}) > 20, "the questions must not all have one answer, or the test shows nothing"
    # All questions share their picture's beginning; every second pass continues the first, to where its text is cut anew.
    assert sum(reply.cached >= 16 for reply in first) == 48
    assert all(b.cached >= a.tokens_in for a, b in zip(first, second, strict=True))


def greedy_flips(model: llava.Llava, asked: Sequence[Request], replies: Sequence[Reply]) -> list[float]:
    """How far each reply's first token that is not the likeliest one lies behind it, by the model's forward over everything.

    Without a cache, a mask, or this project's loop; only dialogues of one length stand together. Given the tokens before it,
    each token must be the arg max, which is what decoding one by one from the start would give.
    """
    found, features_of = [], {}
    encoded = [model.encode(request.turns) for request in asked]
    rows = [
        (each.ids, [request.images[slot] for slot in each.slots], reply.ids)
        for each, request, reply in zip(encoded, asked, replies, strict=True)
    ]
    rows.sort(key=lambda row: (len(row[0]), len(row[2])))
    with torch.inference_mode():
        for (_, count), group in itertools.groupby(rows, key=lambda row: (len(row[0]), len(row[2]))):
            ids, images, chosen = zip(*group, strict=True)
            shown = [image for row in images for image in row]
            for image in shown:
                if id(image) not in features_of:
                    features_of[id(image)] = model.features([model.picture(image)])[0]
            features = torch.cat([features_of[id(image)] for image in shown])
            written = model.model.get_input_embeddings()(torch.tensor(chosen)[:, :-1])
            whole = torch.cat([model.embed(torch.tensor(ids), features), written], dim=1)
            logits = model.model(inputs_embeds=whole, logits_to_keep=count).logits
            logits[..., list(unused_rows(model.tokenizer, model.image_token_id, logits.shape[-1]))] = -torch.inf
            behind = logits.max(-1).values - logits.gather(-1, torch.tensor(chosen)[..., None])[..., 0]  # (rows, count)
            found += [next(value for value in row if value > 0) for row in behind.tolist() if any(row)]
    return found


@pytest.mark.slow
def test_reuse_changes_no_answer_of_a_deep_model(deep: llava.Llava) -> None:
    asked = list(zip([p for p in pictures(125) for _ in range(4)], questions(500), strict=True))
    kept: list[list[Request]] = [[], []]
    first, second = both_passes(HfEngine(deep), asked, 50, kept=kept)
    assert all(reply.cached >= 4 for reply in second)
    assert len({reply.ids for reply in first}) > 50
    assert len({reply.ids for reply in second}) > 50, "the questions must not all have one answer, or the test shows nothing"
    found = greedy_flips(deep, kept[0], first) + greedy_flips(deep, kept[1], second)
    print(f"{len(found)} of 1000 replies of 500 questions differ, by {found}")
    assert max(found, default=0.0) < 1e-4


def test_by_grammar_every_box_reads_in_half_the_steps(tiny: llava.Llava) -> None:
    asked = list(zip(pictures(12), questions(12), strict=True))
    for profile in (PROFILE, replace(PROFILE, box_step=0.0625), prompts.load_profile("repo-2024")):
        grammar = BoxGrammar(profile)
        first, second = both_passes(HfEngine(tiny), asked, 12, grammar)
        assert [read_box(reply.text, profile)[1] for reply in first] == ["ok"] * 12
        assert all(reply.finished for reply in first)
        free = 1 + max(len(tiny.tokenizer(reply.text, add_special_tokens=False)["input_ids"]) for reply in first)
        assert max(reply.steps for reply in first) <= 0.6 * free
        # Box and prompt come back token for token: all that pass 1 ran is continued; forced tokens at its end were never run.
        assert all(b.cached >= a.tokens_in + a.tokens_out - 8 for a, b in zip(first, second, strict=True))
        alone, _ = both_passes(HfEngine(tiny, reuse=False), asked, 1, grammar)
        assert all(margin < 1e-4 for margin in flips(first, alone))


def test_one_transfer_a_step_chooses_as_row_by_row(tiny: llava.Llava, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a grammar, with one and with another, some finished, against logits looked up row by row."""
    dice = torch.Generator().manual_seed(11)
    engine, image = HfEngine(tiny), pictures(1)[0]
    grammars = [None, BoxGrammar(PROFILE), BoxGrammar(prompts.load_profile("repo-2024"))]
    turns = prompts.dialogue(PROFILE, "what")
    jobs = [engine._job(i, Request(turns, {"full": image}, 30, grammars[i % 3])) for i in range(12)]
    jobs[4].done = jobs[9].done = True
    transfers: list[torch.Tensor] = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transfers.append(self) or real(self))
    for dtype in (torch.float32, torch.bfloat16):  # of these, many are equal
        logits = torch.randn(12, len(tiny.tokenizer), generator=dice).to(dtype)
        found = choices(jobs, logits)
        assert len(transfers) == 1
        transfers.clear()
        for job, row, chosen in zip(jobs, logits, found, strict=True):
            if job.done:
                assert chosen is None
            elif job.grammar is None:
                first, second = row.float().topk(2).values.tolist()
                assert chosen == (int(row.argmax()), first - second)
            else:
                scores, order = row[job.grammar.candidates].float().sort(descending=True, stable=True)
                assert chosen == job.grammar.choose(job.ids, order.tolist(), scores.tolist())
    assert len({id(job.grammar.index) for job in jobs if job.grammar}) == 2, "a grammar's candidates are a tensor once"


def test_where_the_text_comes_back_in_other_tokens_the_rest_is_computed(tiny: llava.Llava) -> None:
    image, engine = pictures(1)[0], HfEngine(tiny)
    turns = prompts.dialogue(PROFILE, "what")
    reply = engine.generate([Request(turns, {"full": image}, 9)])[0]
    crop = image.crop((1, 1, 9, 9))
    other = Request(prompts.dialogue(PROFILE, "what", box_text=f"{reply.text[:2]}?!"), {"full": image, "roi": crop}, 5)
    again = engine.generate([other])[0]
    assert reply.tokens_in <= again.cached < reply.tokens_in + 9
    assert again.ids == HfEngine(tiny, reuse=False).generate([other])[0].ids


def test_the_budget_holds_and_changes_no_answer(tiny: llava.Llava) -> None:
    asked = list(zip([p for p in pictures(4) for _ in range(4)], questions(16), strict=True))
    expected = both_passes(HfEngine(tiny), asked, 16)
    token = HfEngine(tiny)._token_bytes
    engine = HfEngine(tiny, kv_budget=900 * token)
    got = both_passes(engine, asked, 16)
    assert engine.kv_peak <= 900 * token
    for ours, theirs in zip(got, expected, strict=True):
        assert all(margin < 1e-4 for margin in flips(ours, theirs))
    refused = HfEngine(tiny, kv_budget=100 * token).generate(
        [Request(prompts.dialogue(PROFILE, "q"), {"full": asked[0][0]}, 4)]
    )
    assert "--kv-budget" in (refused[0].error or "")


def test_what_belongs_to_a_picture_goes_with_it(tiny: llava.Llava) -> None:
    engine, image = HfEngine(tiny), pictures(1)[0]
    engine.prepare([image])
    engine.generate([Request(prompts.dialogue(PROFILE, "what"), {"full": image}, 2)])
    assert engine._store.held > 0
    del image
    assert engine._store.held == 0
    assert engine._store._entries == []
    assert len(engine._features) == 0


def test_pieces_are_heard_as_they_come(tiny: llava.Llava) -> None:
    heard: list[str] = []
    image = pictures(1)[0]
    reply = HfEngine(tiny).generate([Request(prompts.dialogue(PROFILE, "what"), {"full": image}, 12, listen=heard.append)])[0]
    assert "".join(heard).strip() == reply.text[: len("".join(heard).strip())]


def layers(length: int, value: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One layer, one head, two numbers wide: 16 bytes a position."""
    return [(torch.full((1, length, 2), value), torch.full((1, length, 2), -value))]


def test_the_store_by_hand() -> None:
    store = PrefixStore(limit=160)
    a = np.array([1, 2, 3, 4, 5])
    assert store.match(a).length == 0
    store.add(a, Match(), layers(5, 1.0), [0])
    assert store.held == 80
    assert store.match(a).length == 4, "the last position's logits must be computed"
    longer = np.array([1, 2, 3, 9, 9, 9])
    found = store.match(longer)
    assert found.length == 3
    store.add(longer, found, layers(3, 2.0), [0, 1])
    again = store.match(np.array([1, 2, 3, 9, 9, 9, 7]))
    assert again.length == 6
    assert again.prefix is not None
    keys = torch.cat([k for k, _ in again.prefix.segments(0, 5)], dim=1)
    assert keys[0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]
    # 48 bytes more would exceed the limit: the leaf goes first, though its parent is older.
    store.add(np.array([8, 8, 8]), Match(), layers(3, 3.0), [2])
    assert store.held == 128
    assert store.match(longer).length == 3
    store.add(np.array([7] * 11), Match(), layers(11, 3.0), [2])
    assert store.match(np.array([7] * 12)).length == 0, "what does not fit at all is not kept"
    store.forget(0)
    assert store.match(a).length == 0
    assert store.held == 48
    store.add(np.array([1, 2, 3, 4, 5, 6, 7]), Match(again.prefix, 6), layers(1, 4.0), [0])
    assert store.held == 48, "a continuation of what was dropped would keep it alive, uncounted"
