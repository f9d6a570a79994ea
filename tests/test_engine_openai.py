"""The openai engine against a server that misbehaves: over real sockets, in every way that servers do."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from cos_core import prompts
from cos_core.boxtext import BoxGrammar
from cos_core.engines.openai import build
from cos_core.errors import InputError
from cos_core.interfaces import Request

PROFILE = prompts.load_profile("paper")


class Handler(BaseHTTPRequestHandler):
    """Does what the question's first word says; every second time it answers."""

    asked: dict[str, int]
    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"][1]["text"]
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
            time.sleep(1.5)
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
    engine = build("m", server=f"http://127.0.0.1:{server.server_port}/v1", timeout=0.7, pause=0.01, attempts=3)
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
    engine = build("m", server=f"http://127.0.0.1:{server.server_port}/v1")
    image = Image.frombytes("RGB", (5, 4), bytes(range(60)))
    images = {"full": image, "roi": image.crop((0, 0, 2, 2))}
    engine.generate([Request(prompts.dialogue(PROFILE, "q"), images, 4)])
    engine.generate([Request(prompts.dialogue(PROFILE, "q", box_text="[0, 0, 1, 1]"), images, 4)])
    first, second = server.seen  # type: ignore[attr-defined]
    assert second["messages"][:1] == first["messages"]
    assert second["messages"][1] == {"role": "assistant", "content": "[0, 0, 1, 1]"}
    assert [part["type"] for part in second["messages"][2]["content"]] == ["text", "image_url", "text"]
    assert (first["temperature"], first["max_tokens"]) == (0, 4)
    data = base64.b64decode(first["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).tobytes() == image.tobytes()


def test_without_a_server() -> None:
    with pytest.raises(InputError, match="--server"):
        build("m", server="localhost:8000")
    image = Image.new("RGB", (8, 6))
    engine = build("m", server="http://127.0.0.1:9/v1", attempts=1)
    plain = Request(prompts.dialogue(PROFILE, "q"), {"full": image}, 4)
    assert engine.generate([plain])[0].error
    grammar = Request(plain.turns, plain.images, 4, BoxGrammar(PROFILE))
    assert "grammar" in (engine.generate([grammar])[0].error or "")
    assert "'full'" in (engine.generate([Request(plain.turns, {}, 4)])[0].error or "")
