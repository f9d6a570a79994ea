"""Chat completions: the text, the token counts and the log-probabilities of a server's reply."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from cos_core.files.jsonl import decode
from cos_core.web.client import ServerError

_PARSING = threading.Lock()
"""One body is parsed at a time: hostile JSON takes fifty times its own size in memory."""
_MOST = 2**53

MOST_TOKENS = 2**16
"""Entries of a table of log-probabilities that are read; a longer one is taken for none."""

_MOST_CANDIDATES = 64
"""Candidates of one token that are read: servers give those asked for, and the token itself."""

_IMPOSSIBLE = -9999.0
"""What OpenAI and vLLM write for a log-probability that they do not know, or of minus infinity."""

_SAME = 1e-4
"""Log-probabilities of one token's text that are no further apart are those of one token, listed twice."""


@dataclass(frozen=True, slots=True)
class TokenLead:
    """One token of a reply: its text as the server writes it, and by how much the best candidate's log-probability exceeds the
    second's; None where the server names fewer than two."""

    text: str
    lead: float | None


@dataclass(frozen=True, slots=True)
class Completion:
    """`text`: any Unicode, lone surrogates too, unchanged.

    `model`: the name of the model that answered, "" where the reply has none; `tokens_in`, `tokens_out`, `cached`: the server's
    counts, 0 where it has none; `finished`: False for a text that was cut off at the most tokens. `tokens`: the reply's tokens,
    where the server gives their log-probabilities, else empty.
    """

    text: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    finished: bool = True
    tokens: tuple[TokenLead, ...] = ()

    @property
    def ends_with_mark(self) -> bool:
        """Whether the last of `tokens` is an end mark: the others alone write the text. Servers list it or not, and write it
        as they like ("</s>", "<|im_end|>", ""). Spaces do not count: a token of SentencePiece loses its own when it stands
        alone."""
        written = "".join(token.text for token in self.tokens[:-1])
        return self.finished and bool(self.tokens) and _squeezed(written) == _squeezed(self.text)


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
            _tokens(_object(choice.get("logprobs")).get("content")),
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


def _tokens(content: Any) -> tuple[TokenLead, ...]:
    """The table of log-probabilities `choices[0].logprobs.content`; empty for what is none."""
    if not isinstance(content, list) or len(content) > MOST_TOKENS:
        return ()
    tokens = [_token(entry) for entry in content]
    return tuple(token for token in tokens if token is not None) if None not in tokens else ()


def _token(entry: Any) -> TokenLead | None:
    """One entry of the table: {"token", "logprob", "top_logprobs": [{"token", "logprob"}, ...]}; None for what is none.

    The candidates need not be sorted, nor hold the token itself. SGLang keys them by their text, so that of two with one text
    the likelier can be missing: the token's own log-probability takes its place.
    """
    own, top = _scored(entry), _object(entry).get("top_logprobs")
    if own is None or not isinstance(top, list) or len(top) > _MOST_CANDIDATES:
        return None
    candidates = [scored for each in top if (scored := _scored(each)) is not None]
    if len(candidates) != len(top):
        return None
    if not any(text == own[0] and abs(value - own[1]) <= _SAME for text, value in candidates):
        candidates.append(own)
    values = sorted((value for _, value in candidates if value > _IMPOSSIBLE), reverse=True)
    return TokenLead(own[0], values[0] - values[1] if len(values) > 1 else None)


def _scored(entry: Any) -> tuple[str, float] | None:
    """A token's text and its log-probability, at most 0 but for rounding; minus infinity and the like become `_IMPOSSIBLE`."""
    text, value = _object(entry).get("token"), _object(entry).get("logprob")
    if not isinstance(text, str) or not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return (text, float(max(value, _IMPOSSIBLE))) if value < 1 else None


def _squeezed(text: str) -> str:
    """A text without its spaces, those that SentencePiece writes as a block included."""
    return "".join(text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").split())
