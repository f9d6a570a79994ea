"""Generation by the library alone: its own processor writes each batch, and its own `generate` answers it.

The slow reference for what hf.py does cleverly (tests compare the two), and the way for models that hf.py cannot run: nothing
is kept from one dialogue for another, every picture is encoded anew, and a batch runs until its last row has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import torch
import transformers

from cos_core.dialogue.messages import IMAGE_MARK, Message, chat_messages
from cos_core.engines._batch import NOT_A_NUMBER, Texts, token_bytes, usual_budget
from cos_core.engines._constrain import TokenGrammar, TokenGrammars
from cos_core.engines._sampling import Draws, drawn, draws_of
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.interfaces import Engine, Grammar, Reply, Request
from cos_core.models import pretrained
from cos_core.models.devices import placed
from cos_core.models.general import GeneralModel
from cos_core.models.textual import TextualModel
from cos_core.system import memory
from cos_core.types import ImageSlot, Slot

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 8
"""Dialogues that run together at most."""


@dataclass(slots=True)
class _Job:
    """A request that can be run, and what has been generated for it."""

    place: int
    request: Request
    slots: tuple[Slot, ...]
    grammar: TokenGrammar | None
    tokens_in: int = 0
    ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    lead: float = math.nan
    """Of the token that is being chosen."""
    steps: int = 0
    cached: int = 0
    streamed: int = 0
    """Characters of the text that `request.listen` has been called with; they are not repeated when the job is run again."""
    done: bool = False
    failure: str | None = None
    draws: Draws | None = field(init=False)

    def __post_init__(self) -> None:
        self.draws = draws_of(self.request)

    def restart(self) -> None:
        self.ids, self.margins, self.steps, self.tokens_in, self.done, self.failure = [], [], 0, 0, False, None
        self.draws = draws_of(self.request)


class _Inputs(Protocol):
    """How dialogues become what `generate` takes."""

    def check(self, request: Request) -> None:
        """Raises InputError for a dialogue that cannot be run."""

    def tensors(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What `generate` takes for dialogues of equally many pictures, padded on the left.

        Raises what a processor raises over a picture or a text that it does not take.
        """


class TextInputs(_Inputs):
    """Questions in plain text as tensors (textual.py)."""

    def __init__(self, loaded: TextualModel) -> None:
        self._loaded = loaded

    def check(self, request: Request) -> None:
        self._loaded.check(request.turns)

    def tensors(self, requests: Sequence[Request]) -> dict[str, Any]:
        return self._loaded.tensors([(request.turns, request.images) for request in requests])


class TemplateInputs(_Inputs):
    """Dialogues as tensors, by the processor's own `apply_chat_template`."""

    def __init__(self, loaded: GeneralModel) -> None:
        self._loaded = loaded
        tokenizer = loaded.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # any will do: the mask hides it

    def check(self, request: Request) -> None:
        """Raises InputError for text with an image mark, and where the chat template refuses the dialogue."""
        loaded = self._loaded
        messages = self._messages(request)
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        pictures = sum(part["type"] == "image" for message in messages for part in message["content"])
        if loaded.rendered(messages).count(loaded.processor.image_token) != pictures or any(
            loaded.image_token_id in loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        ):
            raise InputError(IMAGE_MARK)

    def tensors(self, requests: Sequence[Request]) -> dict[str, Any]:
        batch = self._loaded.processor.apply_chat_template(
            [self._messages(request) for request in requests],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        return dict(batch)

    def _messages(self, request: Request) -> list[Message]:
        return chat_messages(
            self._loaded.profile, request.turns, lambda slot: {"type": "image", "image": self._shown(request.images[slot])}
        )

    def _shown(self, image: Image) -> Image:
        return images.square_pad(image, self._loaded.fill) if self._loaded.family.pads_to_square else image


class PlainEngine(Engine):
    """Turns dialogues into text with one loaded model, by `transformers`' own `generate`. For use from one thread at a time.

    `kv_budget`: bytes that keys and values of a batch may take, as for HfEngine.
    """

    name = "hf"

    def __init__(self, loaded: GeneralModel | TextualModel, *, kv_budget: int | None = None) -> None:
        self.loaded = loaded
        self._inputs: _Inputs = TextInputs(loaded) if isinstance(loaded, TextualModel) else TemplateInputs(loaded)
        self._texts = Texts(loaded)
        self._grammars: TokenGrammars | None = None
        self._token_bytes = token_bytes(loaded.model.config.get_text_config(), loaded.model.dtype)
        self.kv_budget = kv_budget or usual_budget(loaded.device)
        self.rows = memory.Allowance()
        """How many rows a batch may have, once memory has run out for more."""

    def without_reuse(self) -> PlainEngine:
        """The engine itself: it keeps nothing."""
        return self

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; `error` where one cannot be run (see HfEngine), and the others are answered."""
        replies: dict[int, Reply] = {}
        todo: list[_Job] = []
        for place, request in enumerate(requests):
            try:
                todo.append(self._job(place, request))
            except InputError as error:
                replies[place] = Reply("", error=str(error))
        todo.sort(key=lambda job: len(job.slots))
        while todo:
            part = self._alike(todo)
            try:
                self._run(part)
                self.rows.fitted(len(part))
            except (RuntimeError, MemoryError, OSError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                reason = memory.reason(error)
                memory.let_go(error)
                self.rows.ran_out(len(part))
                for job in part:
                    job.restart()
                if len(part) > 1:
                    continue
                failure = f"out of memory for a single request: {reason}"
                replies[part[0].place] = Reply("", tokens_in=part[0].tokens_in, error=failure, transient=True)
            replies |= {job.place: self._texts.reply(job) for job in part if job.place not in replies}
            todo = todo[len(part) :]
        return [replies[place] for place in range(len(requests))]

    def _alike(self, jobs: Sequence[_Job]) -> Sequence[_Job]:
        """The first jobs that may run together: with equally many pictures, within the allowance."""
        pictures = len(jobs[0].slots)
        most = min(ROWS, self.rows.limit or ROWS)
        return list(takewhile(lambda job: len(job.slots) == pictures, jobs[:most]))

    def _job(self, place: int, request: Request) -> _Job:
        slots = tuple(part.slot for turn in request.turns for part in turn.parts if isinstance(part, ImageSlot))
        missing = [slot for slot in slots if slot not in request.images]
        if missing:
            raise InputError(f"the dialogue shows a picture {missing[0]!r} that the request does not hold")
        self._inputs.check(request)
        return _Job(place, request, slots, self._grammar(request.grammar))

    def _grammar(self, grammar: Grammar | None) -> TokenGrammar | None:
        if grammar is None:
            return None
        if isinstance(self.loaded, TextualModel):
            raise InputError(f"{self.loaded.family.name} is asked one question in plain text, which no grammar goes with")
        if self._grammars is None:
            self._grammars = TokenGrammars(self.loaded, self.loaded.device)
        return self._grammars.of(grammar)

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Answers jobs together; one whose pictures the processor does not take, or that is too long, fails alone."""
        try:
            tensors = self._inputs.tensors([job.request for job in jobs])
        except Exception as error:  # processors declare no errors: any can come of a picture
            if memory.is_out_of_memory(error):
                raise
            if len(jobs) == 1:
                reason = f"the processor of {self.loaded.name} refuses the dialogue: {pretrained.quoted(error)}"
                jobs[0].failure = str(error) if isinstance(error, InputError) else reason
                return
            for part in memory.halves(jobs):
                self._run(part)
            return
        for job, length in zip(jobs, tensors["attention_mask"].sum(1).tolist(), strict=True):
            job.tokens_in = int(length)
            job.failure = self._too_long(job)
        columns = max(job.tokens_in + job.request.max_new_tokens for job in jobs)
        if not any(job.failure for job in jobs) and (
            len(jobs) == 1 or len(jobs) * columns * self._token_bytes <= self.kv_budget
        ):
            self._generate(jobs, tensors)
        elif len(jobs) > 1:
            for part in memory.halves(jobs):
                self._run(part)

    def _too_long(self, job: _Job) -> str | None:
        """Why the job cannot be run: it exceeds the model's context, or the budget; None where it fits."""
        new = job.request.max_new_tokens
        if job.tokens_in + new > self.loaded.context:
            return f"{job.tokens_in} tokens and {new} new ones exceed the model's context of {self.loaded.context}"
        size = (job.tokens_in + new) * self._token_bytes
        if size > self.kv_budget:
            return (
                f"one dialogue needs {size / 2**20:.0f} MiB of keys and values, "
                f"more than the budget of {self.kv_budget / 2**20:.0f} MiB (--kv-budget)"
            )
        return None

    def _generate(self, jobs: Sequence[_Job], tensors: dict[str, Any]) -> None:
        model = self.loaded.model
        settings = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max(job.request.max_new_tokens for job in jobs),
            eos_token_id=sorted(self.loaded.stop_ids) or None,
            pad_token_id=self.loaded.tokenizer.pad_token_id or 0,
            suppress_tokens=list(self.loaded.unused_rows) or None,
        )
        with torch.inference_mode():
            model.generate(
                **{name: placed(model, value) for name, value in tensors.items()},
                generation_config=settings,
                logits_processor=transformers.LogitsProcessorList([_Choices(jobs, model.dtype)]),
                stopping_criteria=transformers.StoppingCriteriaList([_Ends(self, jobs)]),
            )

    def heard(self, job: _Job, token: int) -> None:
        """Takes note of a job's next token: its text is passed on, and it ends with an end mark or its budget."""
        job.ids.append(token)
        job.margins.append(job.lead)
        if job.failure is None:
            self._texts.pass_on(job)
        job.done = job.failure is not None or self._texts.has_ended(job) or len(job.ids) >= job.request.max_new_tokens


class _Choices(transformers.LogitsProcessor):
    """Looks at the scores before `generate` takes the best: the margins, what is drawn, and what a grammar lets through."""

    def __init__(self, jobs: Sequence[_Job], dtype: torch.dtype) -> None:
        self._jobs, self._computed_in = jobs, str(dtype).removeprefix("torch.")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best = scores.float().topk(2, dim=-1).values.tolist()
        for row, (job, (first, second)) in enumerate(zip(self._jobs, best, strict=True)):
            if job.done:
                continue
            if not math.isfinite(first):
                job.failure = f"{NOT_A_NUMBER} in {self._computed_in}"
                job.steps += 1
                scores[row] = 0
            elif job.grammar is None:
                job.lead = first - second
                job.steps += 1
                if job.draws is not None:
                    _leave(scores[row], int(drawn(scores[row : row + 1], [job.draws])))
            else:
                self._by_grammar(job, job.grammar, scores[row])
        return scores

    def _by_grammar(self, job: _Job, grammar: TokenGrammar, scores: torch.Tensor) -> None:
        """Leaves one token of a job's `scores` (vocabulary,): the only one possible, the likeliest that is, or a drawn one."""
        forced = grammar.forced(job.ids)
        if forced:
            token, job.lead = forced[0], math.inf
        else:
            values, order = scores[grammar.candidates].float().sort(descending=True, stable=True)
            ranked: list[float] = values.tolist()
            drawn_order = None if job.draws is None else job.draws.order(ranked)
            token, job.lead = grammar.choose(job.ids, order.tolist(), ranked, drawn_order)
            job.steps += 1
        _leave(scores, token)


def _leave(scores: torch.Tensor, token: int) -> None:
    """Leaves one token of `scores` (vocabulary,)."""
    scores.fill_(-math.inf)
    scores[token] = 0


class _Ends(transformers.StoppingCriteria):
    """Hands each row's next token to the engine and says which rows have ended."""

    def __init__(self, engine: PlainEngine, jobs: Sequence[_Job]) -> None:
        self._engine, self._jobs = engine, jobs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        for job, token in zip(self._jobs, input_ids[:, -1].tolist(), strict=True):
            if not job.done:
                self._engine.heard(job, token)
        return torch.tensor([job.done for job in self._jobs], device=input_ids.device)
