"""Answers from a table instead of a model: for tests, dry runs and wiring checks. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.jsonl import decode
from cos_core.interfaces import Engine, Reply, Request
from cos_core.types import ImageSlot

Answer = Callable[[Request], "str | Reply"]


def last_user_text(request: Request) -> str:
    """The last turn's text with every picture written as `<image>`: what a table is keyed by."""
    return "".join("<image>" if isinstance(part, ImageSlot) else part for part in request.turns[-1].parts)


class ScriptedEngine(Engine):
    """Looks the last user turn up in a table, or asks a function; an unknown text is answered with `default`, or fails.

    A function sees the request's `sampling` and answers with a Reply where there are margins; a table has one answer to a text.
    """

    name = "scripted"

    def __init__(self, table: Mapping[str, str] | Answer, default: str | None = None) -> None:
        self._table = table
        self._default = default

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; token counts are counts of words."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        text = last_user_text(request)
        answer = self._table(request) if callable(self._table) else self._table.get(text, self._default)
        if answer is None:
            return Reply("", error=f"the scripted engine has no answer to {text[:80]!r}")
        if request.margins and not (isinstance(answer, Reply) and (answer.margins or answer.error)):
            return Reply("", error=f"the scripted engine has no margins for its answer to {text[:80]!r}")
        if isinstance(answer, Reply):
            return answer
        if request.listen is not None:
            request.listen(answer)
        return Reply(answer, tokens_in=len(text.split()), tokens_out=len(answer.split()))


def build(
    model: str | Path | None = None,
    *,
    table: Mapping[str, str] | Answer | None = None,
    default: str | None = None,
    **_unused: Any,
) -> ScriptedEngine:
    """An engine from `table`, or from the JSON object in the file `model`; device, dtype and profile mean nothing to it.

    Without either, every answer is `default` (itself the empty text when not given). Raises InputError for an unreadable file.
    """
    if table is None and model is not None and Path(model).suffix == ".json":
        table = _read_table(Path(model))
    if table is None:
        return ScriptedEngine({}, default if default is not None else "")
    return ScriptedEngine(table, default)


def _read_table(path: Path) -> dict[str, str]:
    try:
        data = decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"the answer table {path} cannot be read: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(v, str) for v in data.values()):
        raise InputError(f"the answer table {path} must be a JSON object of texts")
    return data
