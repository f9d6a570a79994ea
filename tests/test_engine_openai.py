"""The openai engine against a server that misbehaves: over real sockets, in every way that servers do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from cos_core.dialogue import prompts
from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.engines.openai import OpenAIEngine, build
from cos_core.errors import InputError
from cos_core.interfaces import Request

PROFILE = prompts.load_profile("paper")


class Handler(BaseHTTPRequestHandler):
    """Does what the question's first word says; every second time it answers."""

    asked: dict[str, int]
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][1]["content"][1]["text"]
        self.server.seen.append(body)  # type: ignore[attr-defined]
        count = self.server.asked[text] = self.server.asked.get(text, 0) + 1  # type: ignore[attr-defined]
        word = next((w for w in ("busy", "broken", "refused", "drops", "hangs", "nonsense", "never") if w in text), "")
        if word == "never" or (word and count == 1):
            self.misbehave(word)
        else:
            self.answer(200, {"choices": [{"message": {"content": " red "}, "finish_reason": "stop"}],
                              "usage": {"prompt_tokens": 9, "completion_tokens": 2}})  # fmt: skip

    def misbehave(self, word: str) -> None:
        if word == "drops":
            self.close_connection = True
        elif word == "hangs":
            time.sleep(6)
        elif word == "nonsense":
            self.answer(200, ["what?"])
        else:
            code = {"busy": 429, "broken": 500, "refused": 400, "never": 503}[word]
            self.answer(code, {"error": word}, {"Retry-After": "0"} if word == "busy" else {})

    def answer(self, code: int, data: Any, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(data).encode()
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(payload))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.asked, made.seen = {}, []  # type: ignore[attr-defined]
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_every_item_ends_as_answered_or_failed_with_a_reason(server: ThreadingHTTPServer) -> None:
    engine = build("m", family="llava", server=f"http://127.0.0.1:{server.server_port}/v1", timeout=4, pause=0.01, attempts=3)
    words = ["fine", "busy", "broken", "drops", "hangs", "nonsense", "refused", "never"]
    image = Image.new("RGB", (8, 6), "red")
    replies = engine.generate([Request(prompts.dialogue(PROFILE, w), {"full": image}, 4) for w in words])
    assert [r.text for r in replies] == ["red"] * 6 + ["", ""]
    assert replies[0].tokens_in == 9
    assert "HTTP 400" in (replies[6].error or ""), "what the server refuses is not asked again"
    assert "HTTP 503" in (replies[7].error or "")
    asked = {key.split('"')[1]: count for key, count in server.asked.items()}  # type: ignore[attr-defined]
    assert asked == dict.fromkeys(words[1:6], 2) | {"fine": 1, "refused": 1, "never": 3}


def test_the_second_pass_begins_as_the_first(server: ThreadingHTTPServer) -> None:
    engine = build("m", family="llava", server=f"http://127.0.0.1:{server.server_port}/v1")
    image = Image.frombytes("RGB", (4, 5), bytes(range(60)))
    images = {"full": image, "roi": image.crop((0, 0, 2, 2))}
    engine.generate([Request(prompts.dialogue(PROFILE, "q"), images, 4)])
    engine.generate([Request(prompts.dialogue(PROFILE, "q", box_text="[0, 0, 1, 1]"), images, 4)])
    first, second = server.seen  # type: ignore[attr-defined]
    assert second["messages"][:2] == first["messages"]
    assert (first["temperature"], first["max_tokens"]) == (0, 4)


def test_without_a_server() -> None:
    with pytest.raises(InputError, match="--server"):
        build("m", server="localhost:8000")
    image = Image.new("RGB", (8, 6))
    engine = build("m", family="llava", server="http://127.0.0.1:9/v1", attempts=1)
    plain = Request(prompts.dialogue(PROFILE, "q"), {"full": image}, 4)
    assert engine.generate([plain])[0].error
    assert "'full'" in (engine.generate([Request(plain.turns, {}, 4)])[0].error or "")


GRAMMAR = BoxGrammar(PROFILE)


class Grammars(Handler):
    """A server that knows a way of telling it a regular expression, or says what it says all the same."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)  # type: ignore[attr-defined]
        code, text, reason = self.server.says  # type: ignore[attr-defined]
        if reason == "grammar" and "regex" not in body:
            code = 200  # what it does not take is the grammar alone
        self.answer(code, {"choices": [{"message": {"content": text}, "finish_reason": reason}]})


def grammar_request(budget: int = 48) -> Request:
    return Request(prompts.dialogue(PROFILE, "q"), {"full": Image.new("RGB", (8, 6))}, budget, GRAMMAR)


def serving(server: ThreadingHTTPServer, *says: object) -> OpenAIEngine:
    server.RequestHandlerClass, server.says = Grammars, says  # type: ignore[attr-defined]
    return build("m", family="llava", server=f"http://127.0.0.1:{server.server_port}/v1", attempts=1)


def test_a_grammar_is_sent_as_servers_know_it(server: ThreadingHTTPServer) -> None:
    reply = serving(server, 200, "[0.100, 0.200, 0.300, 0.400]", "stop").generate([grammar_request()])[0]
    assert (reply.error, reply.text) == (None, "[0.100, 0.200, 0.300, 0.400]")
    (body,) = server.seen  # type: ignore[attr-defined]
    assert body["structured_outputs"] == {"regex": body["regex"]} == {"regex": GRAMMAR.pattern}


def test_without_a_grammar_nothing_is_said_of_one(server: ThreadingHTTPServer) -> None:
    serving(server, 200, "red", "stop").generate([replace(grammar_request(), grammar=None)])
    assert not {"structured_outputs", "regex"} & set(server.seen[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "says",
    [
        (200, "The region is in the middle.", "stop"),
        (200, "[0.1, 0.2, 0.3, 0.4]", "stop"),
        (400, "structured_outputs is not supported", "grammar"),
        (422, "unexpected keys: regex", "grammar"),
    ],
)
def test_a_server_that_knows_no_grammars_ends_the_run_in_a_sentence(server: ThreadingHTTPServer, says: tuple[object]) -> None:
    with pytest.raises(InputError, match="--box-decode free"):
        serving(server, *says).generate([grammar_request()])


@pytest.mark.parametrize("code", [400, 404, 422])
def test_what_is_refused_with_and_without_a_grammar_is_not_the_grammars_fault(server: ThreadingHTTPServer, code: int) -> None:
    reply = serving(server, code, "no such model", "").generate([grammar_request()])[0]
    assert f"HTTP {code}" in (reply.error or "")


def test_a_text_that_was_cut_off_proves_nothing(server: ThreadingHTTPServer) -> None:
    reply = serving(server, 200, "[0.100, 0.2", "length").generate([grammar_request(4)])[0]
    assert (reply.error, reply.finished) == (None, False)


def test_a_server_that_leaves_the_grammar_once_fails_that_question(server: ThreadingHTTPServer) -> None:
    engine = serving(server, 200, "[0.100, 0.200, 0.300, 0.400]", "stop")
    engine.generate([grammar_request()])
    server.says = (200, "somewhere", "stop")  # type: ignore[attr-defined]
    assert "somewhere" in (engine.generate([grammar_request()])[0].error or "")


def test_never_more_requests_than_allowed_whoever_asks(server: ThreadingHTTPServer) -> None:
    class Slow(Handler):
        lock = threading.Lock()
        now = most = 0
        addresses: set[object]

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with Slow.lock:
                Slow.now += 1
                Slow.most = max(Slow.most, Slow.now)
                Slow.addresses.add(self.client_address)
            time.sleep(0.02)
            with Slow.lock:
                Slow.now -= 1
            self.answer(200, {"choices": [{"message": {"content": "red"}, "finish_reason": "stop"}]})

        protocol_version = "HTTP/1.1"

    Slow.addresses = set()
    server.RequestHandlerClass = Slow
    engine = build("m", family="llava", server=f"http://127.0.0.1:{server.server_port}/v1", concurrency=3)
    assert engine.concurrency == 3
    request = replace(grammar_request(), grammar=None)
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: engine.generate([request])[0], range(36)))
    assert [r.text for r in replies] == ["red"] * 36
    assert Slow.most <= 3
    assert len(Slow.addresses) <= 3, "connections are used again"
