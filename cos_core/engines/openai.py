"""The same dialogues against any OpenAI-compatible server (vLLM, SGLang, `transformers serve`): pictures as data URLs.

What is asked first stands first (picture, Inst.1, box, then the crop): the server's own prefix cache finds the first pass in
the second. A busy or failing server is asked again after a growing pause, and what still fails is a Reply with `error`. What is
sent is what the engine `hf` computes (_messages.py), under the wording and with the pictures of the checkpoint behind the
server; the server's chat template decides the final prompt. A grammar is sent as its regular expression.

Draws are the server's: its temperature, top_p and seed are the request's, and every other cut that it may have from the
checkpoint's generation_config.json is switched off, in the words of the server (WORDS). Margins are read from the
log-probabilities that the server gives (web/chat_completions.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.prompts import Profile
from cos_core.engines import _served
from cos_core.engines._messages import ServedDialogue
from cos_core.errors import InputError
from cos_core.files.text import one_line
from cos_core.interfaces import Engine, Grammar, Reply, Request
from cos_core.models.families import PixelBudget
from cos_core.web import chat_completions as completions
from cos_core.web.client import PAUSES_SECONDS, Client, RetryPolicy, ServerError, payload

if TYPE_CHECKING:
    from PIL.Image import Image

REFUSED = (400, 404, 422)
"""HTTP statuses of a server that does not take a request as it is."""

NO_MARGINS = (
    "the server gives no log-probabilities of tokens, from which margins are read (vLLM and SGLang give them, "
    "`transformers serve` does not)"
)


@dataclass(frozen=True, slots=True)
class Words:
    """What a kind of server is told, beside OpenAI's own words, so that it applies none of its defaults.

    `penalties`: sent with every family but LLaVA-1.5, whose checkpoints name no penalty: servers take generation_config.json
    for their defaults, and a repetition penalty there (1.05 in several published Qwen checkpoints) changes greedy answers.
    `cuts`: sent with what is sampled; a default top_k (1 or 20 in published Qwen checkpoints) would cut or end the draws.
    """

    penalties: Mapping[str, Any]
    cuts: Mapping[str, Any]


NO_FREQUENCY_PENALTY = {"frequency_penalty": 0.0}
"""OpenAI's word, which `transformers serve` takes for repetition_penalty, less 1."""

WORDS = (
    Words({**NO_FREQUENCY_PENALTY, "repetition_penalty": 1.0}, {"top_k": -1, "min_p": 0.0}),
    Words(NO_FREQUENCY_PENALTY, {"generation_config": json.dumps({"do_sample": True, "top_k": 0})}),
    Words(NO_FREQUENCY_PENALTY, {}),
)
"""Of vLLM and SGLang, of `transformers serve`, of OpenAI: each server refuses what only those before it know."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the server is and how patient to be; times in seconds.

    `key`: sent as bearer token; `concurrency`: requests under way at once; `timeout`: what one attempt may take, from the
    connection to the reply's last byte; `attempts`: how often a request is sent at most, after pauses of `pause`, twice, four
    times ... or of what the server's own Retry-After says. All pauses of a request together take at most `pauses`.
    """

    url: str
    model: str
    key: str | None = None
    concurrency: int = 8
    attempts: int = 4
    timeout: float = 120.0
    pause: float = 0.5
    pauses: float = PAUSES_SECONDS


class OpenAIEngine(Engine):
    """Chat completions; knows no token ids. `generate` may be called from several threads at once.

    `concurrency`: requests that are under way at once at most, whoever calls.
    """

    name = "openai"

    def __init__(self, settings: ServerSettings, dialogue: ServedDialogue) -> None:
        self._settings = settings
        self.dialogue = dialogue
        self.concurrency = settings.concurrency
        self._client = Client(settings.url, settings.key, settings.timeout, settings.concurrency)
        self._patience = RetryPolicy(settings.attempts, settings.pause, settings.pauses)
        self._keeps_grammars = False
        """Whether a reply has kept to a grammar."""
        self._words = 0
        """How many of WORDS the server has refused."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order. What the server does to one request is a Reply with `error`, as is a reply without
        log-probabilities where margins are asked for.

        Raises InputError when a grammar is asked for and the server does not know how to keep to one.
        """
        if len(requests) == 1:
            return [self._reply(requests[0])]
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="server") as pool:
            return list(pool.map(self._reply, requests))

    def refuses(self, crop: Image) -> bool:
        vision = self.dialogue.vision
        try:
            return vision is not None and vision.resizes and vision.seen(crop.size) is None
        except InputError:
            return True

    def _reply(self, request: Request) -> Reply:
        try:
            messages = self.dialogue.messages(request.turns, request.images)
        except InputError as error:
            return Reply("", error=str(error))
        plain = {
            "model": self._settings.model,
            "messages": messages,
            "max_tokens": request.max_new_tokens,
            **_choice_fields(request),
            "stream": False,
        }
        asked = {**plain, **_grammar_fields(request.grammar)}
        try:
            reply = self._asked({**asked, **_margin_fields(request)}, request)
        except ServerError as error:
            if request.grammar is not None and not self._keeps_grammars and error.status in REFUSED:
                self._blame(plain, error, request)
            if request.margins and error.status in REFUSED and self._answers(asked, request):
                return Reply("", error=f"{NO_MARGINS}: it answers {error}")
            return Reply("", error=f"the server gave no answer: {error}", transient=error.transient)
        if request.margins and not reply.margins:
            return Reply("", tokens_in=reply.tokens_in, error=f"{NO_MARGINS}: it answers without them")
        if request.grammar is not None:
            reply = self._checked(reply, request.grammar)
        if request.listen is not None:
            request.listen(reply.text)
        return reply

    def _asked(self, fields: Mapping[str, Any], request: Request) -> Reply:
        """The reply to `fields` in the first words that the server does not refuse; it is not asked in those before again.

        Raises ServerError when the last attempt brought no answer either.
        """
        ways = {number: self._extra(WORDS[number], request) for number in range(self._words, len(WORDS))}
        left = [number for number, extra in ways.items() if extra != ways.get(number - 1)]
        while True:
            number = left.pop(0)
            try:
                reply = self._sent({**fields, **ways[number]})
            except ServerError as error:
                if not left or error.status not in REFUSED:
                    raise
            else:
                self._words = max(self._words, number)
                return reply

    def _extra(self, words: Words, request: Request) -> Mapping[str, Any]:
        penalties = {} if self.dialogue.vision is None else words.penalties
        return {**penalties, **({} if request.sampling is None else words.cuts)}

    def _sent(self, fields: Mapping[str, Any]) -> Reply:
        said = self._client.ask("/chat/completions", payload(fields), completions.read, self._patience)
        return Reply(
            said.text.strip(),
            said.tokens_in,
            said.tokens_out,
            said.finished,
            cached=said.cached,
            margins=tuple(token.lead for token in said.tokens if token.lead is not None),
            ended=said.ends_with_mark and said.tokens[-1].lead is not None,
        )

    def _answers(self, fields: Mapping[str, Any], request: Request) -> bool:
        """Whether the server answers what it is asked now."""
        try:
            self._asked(fields, request)
        except ServerError:
            return False
        return True

    def _blame(self, plain: Mapping[str, Any], refusal: ServerError, request: Request) -> None:
        """Raises InputError when the server answers without the grammar what it refused with it."""
        if self._answers({**plain, **_margin_fields(request)}, request):
            self._cannot(f"it answers {refusal}")

    def _checked(self, reply: Reply, grammar: Grammar) -> Reply:
        """The reply, if it keeps to the grammar or was cut off; a server that never does is no server for grammars."""
        if re.fullmatch(grammar.pattern, reply.text):
            self._keeps_grammars = True
            return reply
        if not reply.finished:
            return reply
        if not self._keeps_grammars:
            self._cannot(f"it wrote {one_line(reply.text, 80)!r}")
        return Reply("", error=f"the server left the grammar: {one_line(reply.text, 80)!r}")

    def _cannot(self, why: str) -> None:
        raise InputError(
            f"the server at {self._settings.url} does not keep boxes to a regular expression ({why}); decode boxes freely "
            "(--box-decode free), or serve the model with vLLM or SGLang"
        )


def _choice_fields(request: Request) -> Mapping[str, Any]:
    """How the next token is chosen, in OpenAI's words."""
    if request.sampling is None:
        return {"temperature": 0}
    return {"temperature": request.sampling.temperature, "top_p": request.sampling.top_p, "seed": request.sampling.seed}


def _margin_fields(request: Request) -> Mapping[str, Any]:
    """What the best two log-probabilities of each token are asked for with: vLLM counts a drawn token among the candidates."""
    return {"logprobs": True, "top_logprobs": 2 if request.sampling is None else 3} if request.margins else {}


def _grammar_fields(grammar: Grammar | None) -> Mapping[str, Any]:
    """How servers are told a regular expression: vLLM (`structured_outputs`) and SGLang (`regex`)."""
    return {} if grammar is None else {"structured_outputs": {"regex": grammar.pattern}, "regex": grammar.pattern}


def build(
    model: str | os.PathLike[str] = "",
    *,
    server: str | None = None,
    profile: str | Profile | None = None,
    family: str | None = None,
    budget: PixelBudget | None = None,
    **options: Any,
) -> OpenAIEngine:
    """An engine for the model called `model` on `server` (its address up to /v1), else on $OPENAI_BASE_URL.

    Wording and pictures are those of the checkpoint's folder, where that is known here, else of its `family` (_served.py);
    `profile` names another wording. The key, if any, is $OPENAI_API_KEY. Further options: `concurrency`, `attempts`, `timeout`,
    `pause`. Raises InputError without an http address, and as `_served.of_model`.
    """
    dialogue = _served.of_model(str(model), server, profile, family, budget).dialogue
    names = ("concurrency", "attempts", "timeout", "pause", "pauses")
    known = {name: options[name] for name in names if options.get(name) is not None}
    return OpenAIEngine(ServerSettings(_served.address(server), str(model), _served.key(), **known), dialogue)
