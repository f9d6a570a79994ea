"""A loopback server that speaks OpenAI's protocol: its prompts come from a real chat template and a real tokenizer."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cos_core.engines import _served


@dataclass
class Behaviour:
    """What the server does.

    `template`: its chat template, "" for none; `folder`: where its tokenizer is; `special`: whether that adds its start token;
    `image_tokens`: positions of one picture; `tokenize`: whether POST /tokenize shows the ids ("placeholders": one a picture);
    `models`: what GET /models lists, None when it is not answered; `key`: the one it asks for; `images`: how many it takes;
    `refuses`: (HTTP status, words) for every chat completion; `unknown`: fields that it takes for an error; `silent`: whether
    it keeps the token counts to itself; `logprobs`: what stands beside the text where log-probabilities are asked for.
    """

    template: str = ""
    folder: str = ""
    special: bool = True
    image_tokens: int = 16
    tokenize: str | None = None
    models: list[dict[str, Any]] | None = field(default_factory=lambda: [{"id": "served", "object": "model"}])
    key: str | None = None
    images: int = 9
    refuses: tuple[int, str] | None = None
    unknown: frozenset[str] = frozenset()
    silent: bool = False
    logprobs: Any = None
    text: str = "[0.250, 0.250, 0.750, 0.750]"
    seen: list[tuple[str, Any]] = field(default_factory=list)


@cache
def tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def prompt(behaviour: Behaviour, messages: list[dict[str, Any]], image_tokens: int) -> list[int]:
    """The token ids that the template makes of messages."""
    parts = [
        {"role": m["role"], "content": [{**p, "type": "image"} if p["type"] == "image_url" else p for p in m["content"]]}
        for m in messages
    ]
    text = tokenizer(behaviour.folder).apply_chat_template(
        parts, chat_template=behaviour.template, tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(behaviour.folder)(text, add_special_tokens=behaviour.special)["input_ids"]
    mark = tokenizer(behaviour.folder).convert_tokens_to_ids("<image>")
    return [i for token in ids for i in [token] * (image_tokens if token == mark else 1)]


class Handler(BaseHTTPRequestHandler):
    @property
    def behaviour(self) -> Behaviour:
        return self.server.behaviour  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        self.behaviour.seen.append((self.path, None))
        if self.path != "/v1/models" or self.behaviour.models is None:
            self.answer(404, {"detail": "Not Found"})
        elif self.allowed():
            self.answer(200, {"object": "list", "data": self.behaviour.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.behaviour.seen.append((self.path, body))
        how = self.behaviour
        if not self.allowed():
            return
        pictures = sum(part["type"] == "image_url" for m in body["messages"] for part in m["content"])
        if self.path == "/tokenize" and how.tokenize:
            ids = prompt(how, body["messages"], 1 if how.tokenize == "placeholders" else how.image_tokens)
            self.answer(200, {"count": len(ids), "max_model_len": 1024, "tokens": ids})
        elif self.path != "/v1/chat/completions":
            self.answer(404, {"detail": "Not Found"})
        elif how.refuses:
            self.answer(how.refuses[0], {"error": {"message": how.refuses[1], "code": how.refuses[0]}})
        elif odd := how.unknown & set(body):
            self.answer(422, {"detail": f"Unexpected fields in the request: {odd}"})
        elif pictures > how.images:
            self.answer(
                400, {"error": {"message": f"At most {how.images} image(s) may be provided in one prompt.", "code": 400}}
            )
        else:
            usage = {"prompt_tokens": len(prompt(how, body["messages"], how.image_tokens)) if how.template else 9}
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": how.text}, "finish_reason": "stop"}
            choice |= {"logprobs": how.logprobs} if body.get("logprobs") else {}
            self.answer(200, {"choices": [choice]} | ({} if how.silent else {"usage": usage | {"completion_tokens": 1}}))

    def allowed(self) -> bool:
        if self.behaviour.key is None or self.headers.get("Authorization") == f"Bearer {self.behaviour.key}":
            return True
        self.answer(401, {"error": "Unauthorized"})
        return False

    def answer(self, code: int, data: Any) -> None:
        payload = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(behaviour: Behaviour, port: int = 0) -> Iterator[str]:
    """The address of the server, up to /v1; `port` 0: a free one."""
    # Another server may have had this port before.
    _served._root.cache_clear()
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.behaviour = behaviour  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
