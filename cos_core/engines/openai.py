"""The same dialogues against any OpenAI-compatible server (vLLM, SGLang, `transformers serve`): pictures as data URLs.

What is asked first stands first (picture, Inst.1, box, then the crop): the server's own prefix cache finds the first pass in
the second. A busy or failing server is asked again after a growing pause, and what still fails is a Reply with `error`. What is
sent is what the engine `hf` computes (_messages.py), under the wording and the padding colour of the checkpoint behind the
server; the server's chat template decides the final prompt. A grammar is sent as its regular expression.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cos_core.engines import _served
from cos_core.engines._messages import ServedDialogue
from cos_core.errors import InputError
from cos_core.interfaces import Grammar, Reply, Request
from cos_core.prompts import Profile
from cos_core.web import Client, ServerError

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may do better later."""
REFUSED = ("HTTP 400", "HTTP 404", "HTTP 422")
"""How the reason begins when a server does not take a request as it is."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server is and how patient to be; times in seconds.

    `key`: sent as bearer token; `concurrency`: requests under way at once; `attempts`: how often one is sent at most, after
    pauses of `pause`, twice, four times ... (a server's own Retry-After counts, up to a minute).
    """

    url: str
    model: str
    key: str | None = None
    concurrency: int = 8
    attempts: int = 4
    timeout: float = 120.0
    pause: float = 0.5


class OpenAIEngine:
    """Greedy chat completions; knows no token ids. `generate` may be called from several threads at once.

    `concurrency`: requests that are under way at once at most, whoever calls.
    """

    name = "openai"

    def __init__(self, settings: ServerSettings, dialogue: ServedDialogue) -> None:
        self._settings = settings
        self.dialogue = dialogue
        self.concurrency = settings.concurrency
        self._client = Client(settings.url, settings.key, settings.timeout, settings.concurrency)
        self._free = threading.BoundedSemaphore(settings.concurrency)
        self._keeps_grammars = False
        """Whether a reply has kept to a grammar."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order. What the server does to one request is a Reply with `error`.

        Raises InputError when a grammar is asked for and the server does not know how to keep to one.
        """
        if len(requests) == 1:
            return [self._reply(requests[0])]
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="server") as pool:
            return list(pool.map(self._reply, requests))

    def _reply(self, request: Request) -> Reply:
        try:
            messages = self.dialogue.messages(request.turns, request.images)
        except InputError as error:
            return Reply("", error=str(error))
        plain = {
            "model": self._settings.model,
            "messages": messages,
            "max_tokens": request.max_new_tokens,
            "temperature": 0,
            "stream": False,
        }
        reply, reason = self._asked({**plain, **_grammar_fields(request.grammar)})
        if request.grammar is not None and not self._keeps_grammars and reply is None and reason.startswith(REFUSED):
            # Whether the grammar is to blame is seen by asking without it.
            again, _ = self._asked(plain)
            if again is not None:
                self._cannot(f"it answers {reason}")
        if reply is None:
            return Reply("", error=f"the server gave no answer: {reason}")
        if request.grammar is not None:
            reply = self._checked(reply, request.grammar)
        if request.listen is not None:
            request.listen(reply.text)
        return reply

    def _asked(self, payload: Mapping[str, Any]) -> tuple[Reply | None, str]:
        """The reply, or why there is none after the last attempt."""
        body = json.dumps(payload).encode()
        reason = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                # Waiting takes nobody's place: another question goes meanwhile.
                time.sleep(self._wait(attempt, reason))
            with self._free:
                reply, reason, final = self._send(body)
            if reply is not None or final:
                return reply, reason
        return None, reason

    def _wait(self, attempt: int, reason: str) -> float:
        if "retry after " in reason:
            return min(60.0, float(reason.rpartition(" ")[2]))
        # A little chance keeps many clients from coming back all at once.
        return self._settings.pause * 2.0 ** (attempt - 1) * (1 + 0.25 * random.random())

    def _send(self, body: bytes) -> tuple[Reply | None, str, bool]:
        """(reply, why there is none, whether asking again is useless)."""
        try:
            answer = self._client.post("/chat/completions", body)
        except ServerError as error:
            return None, str(error), False
        if answer.status == 200:
            return _read(answer.body)
        words = answer.body[:200].decode("utf-8", "replace").replace("\n", " ")
        after = answer.headers.get("Retry-After", "")
        if answer.status in AGAIN:
            told = f", retry after {after}" if after.isdecimal() else f" {words}"
            return None, f"HTTP {answer.status}{told}", False
        return None, f"HTTP {answer.status} {words}", True

    def _checked(self, reply: Reply, grammar: Grammar) -> Reply:
        """The reply, if it keeps to the grammar or was cut off; a server that never does is no server for grammars."""
        if re.fullmatch(grammar.pattern, reply.text):
            self._keeps_grammars = True
            return reply
        if not reply.finished:
            return reply
        if not self._keeps_grammars:
            self._cannot(f"it wrote {reply.text[:80]!r}")
        return Reply("", error=f"the server left the grammar: {reply.text[:80]!r}")

    def _cannot(self, why: str) -> None:
        raise InputError(
            f"the server at {self._settings.url} does not keep boxes to a regular expression ({why}); decode boxes freely "
            "(--box-decode free), or serve the model with vLLM or SGLang"
        )


def _grammar_fields(grammar: Grammar | None) -> Mapping[str, Any]:
    """How servers are told a regular expression: vLLM (`structured_outputs`) and SGLang (`regex`)."""
    return {} if grammar is None else {"structured_outputs": {"regex": grammar.pattern}, "regex": grammar.pattern}


def _read(data: bytes) -> tuple[Reply | None, str, bool]:
    try:
        answer = json.loads(data)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        usage = answer.get("usage") or {}
        tokens_in, tokens_out = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None, f"not a chat completion: {data[:80]!r}", False
    if not isinstance(text, str):
        return None, "a chat completion without text", False
    finished = choice.get("finish_reason") != "length"
    return Reply(text.strip(), tokens_in, tokens_out, finished, cached=cached), "", True


def build(
    model: str | os.PathLike[str] = "", *, server: str | None = None, profile: str | Profile | None = None, **options: Any
) -> OpenAIEngine:
    """An engine for the model called `model` on `server` (its address up to /v1), else on $OPENAI_BASE_URL.

    Wording and padding colour are those of the checkpoint's folder, where that is known here (_served.py); `profile` names
    another wording. The key, if any, is $OPENAI_API_KEY. Further options: `concurrency`, `attempts`, `timeout`,
    `pause`. Raises InputError without an http address.
    """
    dialogue = _served.of_model(str(model), server, profile).dialogue
    known = {name: options[name] for name in ("concurrency", "attempts", "timeout", "pause") if options.get(name) is not None}
    return OpenAIEngine(ServerSettings(_served.address(server), str(model), _served.key(), **known), dialogue)
