"""The two passes of a question: where to look (CoS Eq. 2), the cut, the answer (CoS Eq. 3).

Knows policies, wording and engines; nothing of files, resuming or command lines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cos_core.dialogue.box_text import BoxGrammar, write_box
from cos_core.dialogue.cropping import FALLBACKS, OnBadBox, region_of
from cos_core.dialogue.prompts import Profile, dialogue
from cos_core.errors import InputError, TransientError
from cos_core.files.images import crop_region
from cos_core.geometry import Box, SquarePad
from cos_core.interfaces import Engine, Policy, Reply, Request
from cos_core.types import BoxStatus, Example, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.infer.relevance_regions import HeatFinder

BoxDecode = Literal["free", "grammar"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides the answers; the rest as in InferConfig.

    `fill`: the colour (RGB) in which the checkpoint pads pictures, and what a crop holds of the padding. `settings`: everything
    that decides, as plain JSON; `fingerprint` is its hash, which a resumed run must share.
    """

    policy: Policy
    profile: Profile
    fill: tuple[int, int, int]
    fingerprint: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_bad_box: OnBadBox = "full"
    max_new_tokens: int = 128
    box_tokens: int = 48
    box_decode: BoxDecode = "free"
    seed: int = 0


@dataclass(slots=True)
class _QuestionState:
    """One question on its way through the two passes."""

    example: Example
    image: Image | None
    error: str | None = None
    transient: bool = False
    box_text: str | None = None
    box: Box | None = None
    status: BoxStatus = "skipped"
    roi: Image | None = None
    answer: str | None = None
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassRequest:
    """A step of a question: one request. Questions whose steps share a key get the reply to the first of them."""

    request: Request
    shared: str | None = None


@dataclass(frozen=True, slots=True)
class Locate:
    """A step of a question: the area of its picture on which a plain answer rests."""

    example: Example
    image: Image
    answer: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The reply to an Ask; `own`: it was computed for this question and not for another one that shares it."""

    reply: Reply
    own: bool = True


Steps = Generator[PassRequest | Locate, Any, None]
"""One question's way through the passes: yields what it needs; is sent a Heard for an Ask, the finder's word for a Locate."""


class TwoPass:
    """Answers questions under one Setting; keeps the box texts of policies that ask once an image.

    What a question goes through stands in `_steps` alone. `predict` takes a batch through it in step, each pass of all
    questions in one call of the engine; `answer` takes one question, and may be called from several threads at once where the
    engine's `generate` may.
    """

    def __init__(
        self,
        engine: Engine,
        setting: Setting,
        siblings: Mapping[str, Sequence[str]] | None = None,
        listen: Callable[[str], None] | None = None,
        finder: HeatFinder | None = None,
    ) -> None:
        """`siblings`: all questions of each image, by its name, for the policy that asks with all of them; `listen` hears the
        answer's text as it comes; `finder` gives the regions instead of the policy, from plain answers.
        """
        self._engine = engine
        self._finder = finder
        self._listen = listen
        self._setting = setting
        self._policy, self._profile = setting.policy, setting.profile
        self._siblings = siblings or {}
        self._shared: dict[str, Future[Reply]] = {}
        """The first-pass replies that questions share, by key; those on their way, too."""
        self._lock = threading.Lock()
        self._finding = threading.Lock()
        self._grammar = BoxGrammar(setting.profile) if setting.box_decode == "grammar" else None

    def predict(self, batch: Sequence[tuple[Example, Image | InputError]]) -> list[Prediction]:
        """One Prediction an example, in order; `seconds` is the batch's wall time divided by its size."""
        start = time.perf_counter()
        work = [_begun(example, image) for example, image in batch]
        waiting = [(steps, step) for steps in map(self._steps, work) if (step := next(steps, None)) is not None]
        while waiting:
            sent = self._taken([step for _, step in waiting])
            waiting = [
                (steps, step)
                for (steps, _), value in zip(waiting, sent, strict=True)
                if (step := _next(steps, value)) is not None
            ]
        seconds = (time.perf_counter() - start) / max(1, len(work))
        return [self._prediction(item, seconds) for item in work]

    def answer(self, example: Example, image: Image | InputError, stopped: Callable[[], bool] = bool) -> Prediction:
        """One question from start to end; between steps it asks whether all is `stopped`, and then goes no further.

        `seconds` is its own wall time. Raises what the engine raises.
        """
        start = time.perf_counter()
        item = _begun(example, image)
        steps = self._steps(item)
        step = next(steps, None)
        while step is not None and not stopped():
            step = _next(steps, self._taken_alone(step))
        return self._prediction(item, time.perf_counter() - start)

    def _taken(self, steps: Sequence[PassRequest | Locate]) -> list[Heard | Box | str | None]:
        """What is sent for each step: one call of the engine for all requests, one of the finder for all areas."""
        asks = [step for step in steps if isinstance(step, PassRequest)]
        first = {step.shared: step for step in reversed(asks) if step.shared is not None and step.shared not in self._shared}
        own = [step for step in asks if step.shared is None or first.get(step.shared) is step]
        requests = [step.request for step in own]
        replies = dict(zip(map(id, own), self._engine.generate(requests), strict=True)) if requests else {}
        shared = {key: known.result() for key, known in self._shared.items()}
        shared |= {key: replies[id(step)] for key, step in first.items()}
        for key, step in first.items():
            if replies[id(step)].error is None:
                self._shared[key] = Future()
                self._shared[key].set_result(replies[id(step)])
        places = [step for step in steps if isinstance(step, Locate)]
        areas = dict(zip(map(id, places), self._find(places), strict=True))
        return [
            areas[id(step)]
            if isinstance(step, Locate)
            else Heard(replies[id(step)])
            if id(step) in replies
            else Heard(shared[step.shared or ""], own=False)
            for step in steps
        ]

    def _taken_alone(self, step: PassRequest | Locate) -> Heard | Box | str | None:
        """What is sent for one step; of several threads whose steps share a key, one asks and the others wait for it."""
        if isinstance(step, Locate):
            return self._find([step])[0]
        if step.shared is None:
            return Heard(self._engine.generate([step.request])[0])
        with self._lock:
            known = self._shared.get(step.shared)
            mine = self._shared[step.shared] = Future() if known is None else known
        if known is not None:
            return Heard(known.result(), own=False)
        try:
            reply = self._engine.generate([step.request])[0]
        except BaseException as error:
            mine.set_exception(error)
            raise
        if reply.error is not None:
            # Those who wait hear it; the next one asks anew.
            with self._lock:
                del self._shared[step.shared]
        mine.set_result(reply)
        return Heard(reply)

    def _find(self, places: Sequence[Locate]) -> list[Box | str | None]:
        if not places or self._finder is None:
            return []
        with self._finding:
            return self._finder.find([(place.example, place.image, place.answer) for place in places])

    def _steps(self, item: _QuestionState) -> Steps:
        """A question's way: where to look, the cut, the answer; ends early with `item.error`."""
        if item.image is None:
            return
        if self._policy.source == "model":
            yield from self._ask_where(item, item.image)
        elif self._finder is not None:
            yield from self._find_box(item, item.image)
        elif self._policy.source in ("fixed", "gold"):
            self._give_box(item, item.image)
        if item.error is None and self._policy.source != "none":
            self._cut(item, item.image)
        if item.error is None:
            yield from self._ask_question(item, item.image)

    def _first_turns(self, example: Example) -> dict[str, Any]:
        """What Inst.1 asks about, as keyword arguments of `dialogue`, the same for both passes."""
        suffix = {"suffix": str(example.meta.get("suffix", ""))}
        if self._policy.asks != "all":
            return {"asks": self._policy.asks, **suffix}
        return {"asks": "all", "all_questions": self._siblings.get(example.image or "", ()), **suffix}

    def _ask_where(self, item: _QuestionState, image: Image) -> Steps:
        """Pass 1 (CoS Eq. 2): the raw text of the box; asked once an image by policies that do not look at the question."""
        turns = dialogue(self._profile, item.example.question, **self._first_turns(item.example))
        request = Request(turns, {"full": image}, self._setting.box_tokens, self._grammar)
        heard: Heard = yield PassRequest(request, None if self._policy.asks == "single" else item.example.image or "")
        if heard.own:
            _count(item, "pass1", heard.reply)
        if heard.reply.error is None:
            item.box_text = heard.reply.text
        else:
            _failed(item, 1, heard.reply)

    def _give_box(self, item: _QuestionState, image: Image) -> None:
        """Instead of pass 1: a given box, written as the model would have written it."""
        try:
            box = self._policy.fixed_box(item.example, self._setting.seed)
        except InputError as error:
            item.error = str(error)
            return
        item.box_text = write_box(SquarePad(*image.size).to_square(box), self._profile)

    def _find_box(self, item: _QuestionState, image: Image) -> Steps:
        """Instead of pass 1: a plain answer, and the area of the picture that it rests on, written as a box."""
        turns = dialogue(self._profile, item.example.question, chain=False)
        heard: Heard = yield PassRequest(Request(turns, {"full": image}, self._setting.max_new_tokens))
        _count(item, "pass1", heard.reply)
        if heard.reply.error is not None:
            _failed(item, 1, heard.reply)
            return
        if not heard.reply.text:
            item.error = "pass 1: the plain answer is empty, there is nothing to explain"
            return
        area: Box | str | None = yield Locate(item.example, image, heard.reply.text)
        if isinstance(area, str):
            item.error = f"pass 1: {area}"
            return
        box = area or FALLBACKS[self._setting.on_bad_box]
        if box is None:
            item.error = "no area of the picture stands out; skipped as asked"
            return
        item.box_text = write_box(SquarePad(*image.size).to_square(box), self._profile)

    def _cut(self, item: _QuestionState, image: Image) -> None:
        """Reads the box text and cuts the region that it names, or that stands in for it, from the picture."""
        text = item.box_text or ""
        region = region_of(text, image.size, self._profile, self._setting.on_bad_box)
        item.box = region.box
        # A given box was not asked for; how it reads says nothing about the model.
        item.status = region.status if self._policy.source == "model" else "skipped"
        if region.area is None:
            item.error = f"no usable box in the first pass ({region.status}): {text[:80]!r}; skipped as asked"
            return
        item.roi = crop_region(image, region.area, self._profile.crop_from, self._setting.fill)

    def _ask_question(self, item: _QuestionState, image: Image) -> Steps:
        """Pass 2 (CoS Eq. 3), or the only pass of the plain dialogue."""
        chain = self._policy.source != "none"
        turns = dialogue(
            self._profile, item.example.question, chain=chain, box_text=item.box_text, **self._first_turns(item.example)
        )
        images = {"full": image} if item.roi is None else {"full": image, "roi": item.roi}
        heard: Heard = yield PassRequest(Request(turns, images, self._setting.max_new_tokens, listen=self._listen))
        _count(item, "pass2" if chain else "pass1", heard.reply)
        if heard.reply.error is None:
            item.answer = heard.reply.text
        else:
            _failed(item, 2 if chain else 1, heard.reply)

    def _prediction(self, item: _QuestionState, seconds: float) -> Prediction:
        return Prediction(
            example_id=item.example.id,
            answer=item.answer,
            box=item.box,
            box_text=item.box_text,
            box_status=item.status,
            policy=self._policy.name,
            profile=self._profile.name,
            question=item.example.question,
            image=item.example.image,
            tokens=item.tokens,
            seconds=round(seconds, 6),
            fingerprint=self._setting.fingerprint,
            error=item.error,
            transient=item.transient,
        )


def _begun(example: Example, image: Image | InputError) -> _QuestionState:
    if isinstance(image, InputError):
        return _QuestionState(example, None, error=str(image), transient=isinstance(image, TransientError))
    return _QuestionState(example, image)


def _failed(item: _QuestionState, number: int, reply: Reply) -> None:
    """The question ends with pass `number`, for which there is no answer."""
    item.error, item.transient = f"pass {number}: {reply.error}", reply.transient


def _next(steps: Steps, value: Heard | Box | str | None) -> PassRequest | Locate | None:
    """The step after what was sent, None when the question is done."""
    try:
        return steps.send(value)
    except StopIteration:
        return None


def _count(item: _QuestionState, which: str, reply: Reply) -> None:
    item.tokens |= {f"{which}_in": reply.tokens_in, f"{which}_out": reply.tokens_out}
    if reply.steps:
        # What was cached depends on the neighbours in the batch; a record holds only what a second run would repeat.
        item.tokens[f"{which}_steps"] = reply.steps
