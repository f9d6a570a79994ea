"""Chat completions: the text and the token counts of a server's reply."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from cos_core.files.jsonl import decode
from cos_core.web.client import ServerError

_PARSING = threading.Lock()
"""One body is parsed at a time: hostile JSON takes fifty times its own size in memory."""
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Completion:
    """`text`: any Unicode, lone surrogates too, unchanged.

    `model`: the name of the model that answered, "" where the reply has none; `tokens_in`, `tokens_out`, `cached`: the server's
    counts, 0 where it has none; `finished`: False for a text that was cut off at the most tokens.
    """

    text: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    finished: bool = True


def read(body: bytes) -> Completion:
    """The first choice of a chat completion. Raises ServerError for a body that is none, or one without text."""
    with _PARSING:
        try:
            data = decode(body)
            choice = data["choices"][0]
            content = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            raise ServerError(f"not a chat completion: {body[:80]!r}") from None
        text = _text(content)
        if text is None:
            # A refusal or a call of a tool: the same request would have the same reply.
            raise ServerError("a chat completion without text", again=False, transient=False)
        usage, model = _object(data.get("usage")), data.get("model")
        return Completion(
            text,
            model if isinstance(model, str) else "",
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
            choice.get("finish_reason") != "length",
        )


def _text(content: Any) -> str | None:
    """The content's text: itself, or that of its parts."""
    if isinstance(content, list) and content:
        parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "".join(parts) if len(parts) == len(content) else None
    return content if isinstance(content, str) else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    """A number of tokens; 0 for what is none."""
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST
    return int(value) if valid else 0
