"""Margins: the lead of each token's best candidate over the second, from the local engine, a server, and a table."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from chat_server import Behaviour, serving

from cos_core.dialogue import prompts
from cos_core.engines import hf, openai, scripted
from cos_core.interfaces import Reply, Request, Sampling
from cos_core.miniature import scenes
from cos_core.web.chat_completions import MOST_TOKENS, TokenLead, read


def entry(token: Any, logprob: Any, *top: tuple[Any, Any]) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": logprob,
        "bytes": None,
        "top_logprobs": [{"token": text, "logprob": value, "bytes": None} for text, value in top],
    }


def body(logprobs: Any, text: Any = "red", reason: str = "stop") -> bytes:
    choice = {"message": {"content": text}, "finish_reason": reason, "logprobs": logprobs}
    return json.dumps({"choices": [choice]}).encode()


def table(*entries: Any) -> dict[str, Any]:
    return {"content": list(entries)}


RED = entry("red", -0.1, ("red", -0.1), ("blue", -2.5))


def question(**more: Any) -> Request:
    picture = scenes.draw(scenes.make_scene(random.Random(1)))
    return Request(prompts.dialogue(prompts.load_profile("miniature"), "What is it?"), {"full": picture}, 12, **more)


# --- the table of a server -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "lead"),
    [
        (RED, 2.4),
        (entry("red", -0.1, ("blue", -2.5), ("red", -0.1)), 2.4),  # not sorted
        (entry("red", -0.1, ("blue", -2.5)), 2.4),  # the token itself is not among them
        (entry("teal", -4.0, ("teal", -4.0), ("red", -0.1), ("blue", -2.5)), 2.4),  # a drawn token, as vLLM lists it
        (entry("teal", -4.0, ("red", -0.1), ("blue", -2.5)), 2.4),  # and as OpenAI does
        (entry("teal", -9999.0, ("red", -0.1), ("blue", -2.5)), 2.4),
        (entry("red", -0.1, ("red", -2.5)), 2.4),  # two tokens of one text, of which SGLang names the less likely
        (entry("red", -0.1, ("red", -0.1), ("red", -2.5)), 2.4),
        (entry("red", -0.7, ("red", -0.7), ("blue", -0.7)), 0.0),
        (entry("red", 0, ("red", 0), ("blue", -3)), 3.0),  # whole numbers
        (entry("red", -0.1, ("red", -0.1)), None),  # one candidate
        (entry("red", -0.1), None),
        (entry("red", 0.0, ("red", 0.0), ("blue", -9999.0)), None),  # the second's is not known
        (entry("red", 0.0, ("red", 0.0), ("blue", -3.4e38)), None),
        (entry("red", 0.0, ("red", 0.0), ("blue", -math.inf)), None),
    ],
)
def test_the_lead_of_a_token(one: dict[str, Any], lead: float | None) -> None:
    (found,) = read(body(table(one))).tokens
    assert found == TokenLead(one["token"], None if lead is None else pytest.approx(lead))


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        "none",
        5,
        {},
        {"content": None},
        {"content": {}},
        {"content": "red"},
        table(),
        table(None),
        table([]),
        table("red"),
        table(RED, None),
        table(entry(None, -0.1, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", None, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", "-0.1", ("red", -0.1), ("blue", -2.5))),
        table(entry("red", True, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", math.nan, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", math.inf, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", 10**400, ("red", -0.1), ("blue", -2.5))),
        table(entry("red", -0.1, ("red", math.nan), ("blue", -2.5))),
        table(entry("red", -0.1, (None, -0.1), ("blue", -2.5))),
        table(entry("red", -0.1, ("red", {}), ("blue", -2.5))),
        table({"token": "red", "logprob": -0.1}),
        table({"token": "red", "logprob": -0.1, "top_logprobs": None}),
        table({"token": "red", "logprob": -0.1, "top_logprobs": {"red": -0.1}}),
        table({"token": "red", "logprob": -0.1, "top_logprobs": [None]}),
        table(entry("red", -0.1, *[("red", -0.1 - place) for place in range(500)])),
        table(*[RED] * (MOST_TOKENS + 1)),
        # completions' table, which vLLM once sent for chats
        {"content": None, "tokens": ["red"], "token_logprobs": [-0.1], "top_logprobs": [{"red": -0.1, "blue": -2.5}]},
    ],
)  # fmt: skip
def test_a_table_that_is_none_leaves_the_text(logprobs: Any) -> None:
    completion = read(body(logprobs))
    assert (completion.text, completion.tokens, completion.ends_with_mark) == ("red", (), False)


@pytest.mark.parametrize(
    ("text", "tokens", "ended"),
    [
        ("red", ["red", "</s>"], True),
        ("red", ["red", "<|im_end|>"], True),
        ("red", ["red", ""], True),
        ("red", ["red"], False),
        (" The red car", ["The", "red", "car", "</s>"], True),  # a SentencePiece token alone has no space in front
        (" The red car", ["The", "red", "car"], False),
        ("The red car", ["▁The", "▁red", "▁car", "</s>"], True),
        ("", ["<|im_end|>"], True),
        ("", [], False),
        ("red", ["r", "ed"], False),
        ("red</s>", ["red", "</s>"], False),
    ],
)
def test_the_end_mark_is_told_by_the_text(text: str, tokens: list[str], ended: bool) -> None:
    found = read(body(table(*[entry(token, -0.1, (token, -0.1), ("blue", -2.5)) for token in tokens]), text))
    assert found.ends_with_mark == ended
    assert not read(body(table(*[entry(token, -0.1) for token in tokens]), text, "length")).ends_with_mark


# --- the engine ------------------------------------------------------------------------------------------------------


def asked_of(server: Behaviour, *requests: Request) -> list[Reply]:
    with serving(server) as url:
        return openai.build("m", server=url, profile="miniature", family="llava", attempts=1).generate(requests)


def test_a_servers_margins_are_the_local_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server gives the log-probabilities of the local engine's own logits, the end mark's included."""
    engine = hf.build("miniature", device="cpu", dtype="float32")
    steps: list[torch.Tensor] = []
    real = hf.choices
    monkeypatch.setattr(hf, "choices", lambda rows, logits: steps.append(logits.clone()) or real(rows, logits))
    for wording in ("What is it?", "Where is the red circle?", "What colour?"):
        steps.clear()
        request = replace(question(margins=True), turns=prompts.dialogue(engine.loaded.profile, wording, chain=False))
        (local,) = engine.generate([request])
        entries = []
        for token, logits in zip(local.ids, steps, strict=True):
            chances = logits[0].double().log_softmax(-1)
            text = engine.loaded.tokenizer.decode([token])
            best = [(engine.loaded.tokenizer.decode([int(i)]), float(v)) for v, i in zip(*chances.topk(2), strict=True)]
            entries.append(entry(text, float(chances[token]), *best))
        (served,) = asked_of(Behaviour(text=local.text, logprobs=table(*entries)), request)
        assert (served.error, served.text, served.ended) == (None, local.text, local.ended)
        assert served.margins == pytest.approx(local.margins, abs=1e-4)
        assert served.margin == pytest.approx(local.margin, abs=1e-4)
        assert local.ended


def test_margins_are_asked_for_where_they_are_wanted() -> None:
    server = Behaviour(text="red", logprobs=table(RED))
    plain, with_margins, drawn = asked_of(
        server, question(), question(margins=True), question(margins=True, sampling=Sampling(0.7, 0.9, 5))
    )
    assert (plain.margins, plain.margin) == ((), None)
    assert with_margins.margin == drawn.margin == pytest.approx(2.4)
    bodies = {(body.get("top_logprobs"), body.get("seed")): body for path, body in server.seen if path.endswith("completions")}
    assert set(bodies) == {(None, None), (2, None), (3, 5)}
    assert set(bodies[None, None]) == {"model", "messages", "max_tokens", "temperature", "stream"}
    assert bodies[2, None]["logprobs"] is bodies[3, 5]["logprobs"] is True
    assert bodies[2, None]["temperature"] == 0
    assert (bodies[3, 5]["temperature"], bodies[3, 5]["top_p"]) == (0.7, 0.9)


def test_a_token_without_a_known_lead_is_left_out() -> None:
    """The end mark has one candidate only: it is no part of the margins then."""
    sure = entry("</s>", 0.0, ("</s>", 0.0))
    (reply,) = asked_of(Behaviour(text="red", logprobs=table(RED, sure)), question(margins=True))
    assert (reply.ended, reply.margins, reply.margin) == (False, pytest.approx((2.4,)), pytest.approx(2.4))
    unsure = entry("</s>", -0.5, ("</s>", -0.5), (" car", -0.6))
    (reply,) = asked_of(Behaviour(text="red", logprobs=table(RED, unsure)), question(margins=True))
    assert (reply.ended, reply.margins, reply.margin) == (True, pytest.approx((2.4, 0.1)), pytest.approx(2.4))


@pytest.mark.parametrize(
    "server",
    [
        Behaviour(text="red"),
        Behaviour(text="red", logprobs={"content": [{"token": "red"}]}),
        Behaviour(text="red", logprobs=table(entry("red", 0.0, ("red", 0.0)))),
        Behaviour(text="red", unknown=frozenset({"logprobs"})),
        Behaviour(text="red", unknown=frozenset({"top_logprobs"})),
    ],
)
def test_a_server_without_log_probabilities_fails_the_question_in_a_sentence(server: Behaviour) -> None:
    without, plain = asked_of(server, question(margins=True), question())
    assert (without.text, without.margins, without.transient) == ("", (), False)
    assert "log-probabilities" in str(without.error)
    assert (plain.text, plain.error) == ("red", None)


def test_what_is_refused_for_another_reason_is_not_blamed_on_margins() -> None:
    (reply,) = asked_of(Behaviour(refuses=(400, "too long")), question(margins=True))
    assert "too long" in str(reply.error)
    assert "log-probabilities" not in str(reply.error)


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        (frozenset[str](), [("top_k", "min_p")] * 2),
        (frozenset({"top_k"}), [("top_k", "min_p"), ("generation_config",), ("generation_config",)]),
        (frozenset({"top_k", "generation_config"}), [("top_k", "min_p"), ("generation_config",), (), ()]),
    ],
)
def test_other_cuts_are_switched_off_in_the_servers_words(unknown: frozenset[str], said: list[tuple[str, ...]]) -> None:
    """A default top_k of the checkpoint's would change what is drawn: vLLM's words first, then others until none is refused."""
    server = Behaviour(text="red", unknown=unknown)
    with serving(server) as url:
        engine = openai.build("m", server=url, profile="miniature", family="llava", attempts=1)
        replies = [engine.generate([question(sampling=Sampling(1.0, 0.9, seed))])[0] for seed in range(2)]
    assert [reply.error for reply in replies] == [None, None]
    bodies = [body for path, body in server.seen if path.endswith("completions")]
    words = ("top_k", "min_p", "generation_config")
    assert [tuple(word for word in words if word in body) for body in bodies] == said
    assert [body["seed"] for body in bodies] == [0] * (len(said) - 1) + [1]
    for body in bodies:
        assert body.get("top_k", -1) == -1
        assert json.loads(body.get("generation_config", '{"do_sample": true}'))["do_sample"]


# --- tables and replies ----------------------------------------------------------------------------------------------


def test_scripted_answers_have_the_margins_that_they_are_given() -> None:
    def answer(request: Request) -> str | Reply:
        return Reply("red", margins=(3.0, 0.5), ended=True) if request.sampling is None else "red"

    engine, sampling = scripted.ScriptedEngine(answer), Sampling(1.0, 1.0, 1)
    asked = [question(margins=True), question(margins=True, sampling=sampling), question(sampling=sampling)]
    greedy, drawn, plain = engine.generate(asked)
    assert (greedy.text, greedy.margin) == ("red", 3.0)
    assert "margins" in str(drawn.error)
    assert (plain.text, plain.error) == ("red", None)
    failed = scripted.ScriptedEngine(lambda _: Reply("", error="no")).generate([question(margins=True)])[0]
    assert failed.error == "no"
    table_only = scripted.build(default="red").generate([question(margins=True)])[0]
    assert "margins" in str(table_only.error)


@pytest.mark.parametrize(
    ("margins", "ended", "margin"),
    [
        ((), False, None),
        ((2.0, 0.5, 3.0), False, 0.5),
        ((2.0, 0.5), True, 2.0),
        ((0.5,), True, 0.5),  # nothing but the end mark
        ((math.inf, math.inf), False, math.inf),
    ],
)
def test_the_margin_of_a_reply(margins: tuple[float, ...], ended: bool, margin: float | None) -> None:
    assert Reply("red", margins=margins, ended=ended).margin == margin
