"""The same dialogues against any OpenAI-compatible server (vLLM, SGLang, `transformers serve`): pictures as data URLs.

What is asked first stands first (picture, Inst.1, box, then the crop): the server's own prefix cache finds the first pass in
the second. Requests of one call run side by side; a busy or failing server is asked again after a growing pause, and what still
fails is a Reply with `error`. The server's chat template decides the final prompt: system prompt and roles of the profile are
sent as such, wherever the picture stands inside a turn.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cos_core.errors import InputError
from cos_core.interfaces import Reply, Request
from cos_core.types import ImageSlot, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Answers of a server that may do better later."""


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
    """Greedy chat completions; knows no token ids, and cannot promise a grammar."""

    name = "openai"

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; never raises for what the server does."""
        with ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="server") as pool:
            return list(pool.map(self._reply, requests))

    def _reply(self, request: Request) -> Reply:
        if request.grammar is not None:
            return Reply("", error="this server is not asked for grammars; decode boxes freely")
        missing = [p.slot for t in request.turns for p in t.parts if isinstance(p, ImageSlot) and p.slot not in request.images]
        if missing:
            return Reply("", error=f"the dialogue shows a picture {missing[0]!r} that the request does not hold")
        body = json.dumps(
            {
                "model": self._settings.model,
                "messages": [_message(turn, request.images) for turn in request.turns],
                "max_tokens": request.max_new_tokens,
                "temperature": 0,
                "stream": False,
            }
        ).encode()
        reason = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                time.sleep(self._wait(attempt, reason))
            answer, reason, final = self._send(body)
            if answer is not None:
                if request.listen is not None:
                    request.listen(answer.text)
                return answer
            if final:
                break
        return Reply("", error=f"the server gave no answer: {reason}")

    def _wait(self, attempt: int, reason: str) -> float:
        if "retry after " in reason:
            return min(60.0, float(reason.rpartition(" ")[2]))
        # A little chance keeps many clients from coming back all at once.
        return self._settings.pause * 2.0 ** (attempt - 1) * (1 + 0.25 * random.random())

    def _send(self, body: bytes) -> tuple[Reply | None, str, bool]:
        """(reply, why there is none, whether asking again is useless)."""
        request = urllib.request.Request(
            self._settings.url.rstrip("/") + "/chat/completions", body, {"Content-Type": "application/json"}
        )
        if self._settings.key:
            request.add_header("Authorization", f"Bearer {self._settings.key}")
        try:
            with urllib.request.urlopen(request, timeout=self._settings.timeout) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            with error:
                words = error.read(200).decode("utf-8", "replace").replace("\n", " ")
                after = error.headers.get("Retry-After", "")
            if error.code not in AGAIN:
                return None, f"HTTP {error.code} {words}", True
            return None, f"HTTP {error.code}" + (f", retry after {after}" if after.isdecimal() else f" {words}"), False
        except (OSError, http.client.HTTPException) as error:
            # URLError, refused and dropped connections and time-outs are OSErrors.
            return None, str(error) or type(error).__name__, False
        return _read(data)


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


def _message(turn: Turn, images: Any) -> dict[str, Any]:
    if turn.role == "assistant":
        return {"role": "assistant", "content": "".join(p for p in turn.parts if isinstance(p, str))}
    content: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ImageSlot):
            content.append({"type": "image_url", "image_url": {"url": data_url(images[part.slot])}})
        elif part.strip("\n"):
            # LLaVA's templates put the line break behind a picture themselves.
            content.append({"type": "text", "text": part.removeprefix("\n")})
    return {"role": "user", "content": content}


def data_url(image: Image) -> str:
    """The picture as PNG, so that every server sees the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def build(model: str | os.PathLike[str] = "", *, server: str | None = None, **options: Any) -> OpenAIEngine:
    """An engine for the model called `model` on `server` (its address up to /v1), else on $OPENAI_BASE_URL.

    The key, if any, is $OPENAI_API_KEY. Further options: `concurrency`, `attempts`, `timeout`, `pause`. Raises InputError
    without an http address.
    """
    url = server or os.environ.get("OPENAI_BASE_URL", "")
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError("the engine 'openai' needs the server's address: --server http://localhost:8000/v1")
    known = {name: options[name] for name in ("concurrency", "attempts", "timeout", "pause") if options.get(name) is not None}
    return OpenAIEngine(ServerSettings(url, str(model), os.environ.get("OPENAI_API_KEY") or None, **known))
