"""The two passes of a question: where to look (CoS Eq. 2), the cut, the answer (CoS Eq. 3).

Knows policies, wording and engines; nothing of files, resuming or command lines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import with_marks, write_box
from cos_core.dialogue.cropping import FALLBACKS, CropSettings, Region, fallback_region
from cos_core.dialogue.prompts import Profile, dialogue
from cos_core.errors import InputError, TransientError
from cos_core.geometry import Box, full_box, in_frame
from cos_core.interfaces import Engine, Policy, Reply, Request
from cos_core.types import USABLE_BOXES, BoxDecode, BoxStatus, Example, OnBadBox, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.infer.relevance_regions import HeatFinder


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides the answers; the rest as in InferConfig.

    `fill`: the colour (RGB) in which the checkpoint pads pictures, and what a crop holds of the padding. `settings`: everything
    that decides, as plain JSON; `fingerprint` is its hash, which a resumed run must share. `seen`: the size (width, height in
    pixels) at which the model sees a picture of a given size, for profiles whose boxes are in pixels.
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
    seen: Callable[[tuple[int, int]], tuple[int, int]] | None = None

    @property
    def crops(self) -> CropSettings:
        """How regions are cut."""
        return CropSettings(self.profile, self.fill, self.on_bad_box)

    def seen_of(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """The size at which the model sees a picture, where boxes are in its pixels; None where no box depends on it.

        Raises InputError for a picture that the model cannot be shown.
        """
        return self.seen(size) if self.seen is not None and self.profile.box_unit == "pixel" else None

    def grammar(self, seen: tuple[int, int] | None) -> BoxGrammar | None:
        """The texts that the first pass may write about a picture, one object for all pictures that share them; None: any."""
        return _grammar(self.profile, seen) if self.box_decode == "grammar" else None

    def check_boxes(self) -> None:
        """Raises InputError where boxes cannot be written under this profile, or not by grammar."""
        if self.policy.source != "none":
            seen = self.seen_of((64, 64))  # of any picture: what is refused is the same for all
            write_box(full_box(self.profile.box_frame), self.profile, seen)
            self.grammar(seen)


@lru_cache(maxsize=64)
def _grammar(profile: Profile, seen: tuple[int, int] | None) -> BoxGrammar:
    return BoxGrammar(profile, seen)


@dataclass(slots=True)
class _QuestionState:
    """One question on its way through the two passes."""

    example: Example
    image: Image | None
    seen: tuple[int, int] | None = None
    error: str | None = None
    transient: bool = False
    box_text: str | None = None
    box: Box | None = None
    status: BoxStatus = "skipped"
    crop: Image | None = None
    answer: str | None = None
    tokens: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassRequest:
    """A step of a question: one request. Steps with the same `shared` key get the reply to the first of them."""

    request: Request
    shared: str | None = None


@dataclass(frozen=True, slots=True)
class Locate:
    """A step of a question: the area of its picture on which a plain answer rests."""

    example: Example
    image: Image
    answer: str


@dataclass(frozen=True, slots=True)
class PassReply:
    """The reply to a PassRequest; `first`: it was computed for this question, not for another one that shares it."""

    reply: Reply
    first: bool = True


Step = PassRequest | Locate
StepResult = PassReply | Box | str | None
"""A PassReply for a PassRequest; for a Locate the area, None when nothing stands out, or a text that says what failed."""
Steps = Generator[Step, Any, None]
"""One question's way through the passes: yields each Step and is sent its StepResult."""


class TwoPass:
    """Answers questions under one Setting; keeps the box texts of policies that ask once an image.

    The order of a question's steps stands in `_steps` alone. `predict` takes a batch of questions through them together, each
    step of all questions in one call of the engine; `answer` takes one question, and may be called from several threads at once
    where the engine's `generate` may.
    """

    def __init__(
        self,
        engine: Engine,
        setting: Setting,
        siblings: Mapping[str, Sequence[str]] | None = None,
        listen: Callable[[str], None] | None = None,
        finder: HeatFinder | None = None,
    ) -> None:
        """`siblings`: all questions of each image, by its name, for the policy that asks with all of them; `listen` is called
        with each new piece of an answer; `finder` gives the regions instead of the policy, from plain answers.

        Raises InputError where boxes cannot be written as the setting asks.
        """
        setting.check_boxes()
        self._engine = engine
        self._finder = finder
        self._listen = listen
        self._setting, self._crops = setting, setting.crops
        self._policy, self._profile = setting.policy, setting.profile
        self._siblings = siblings or {}
        self._shared: dict[str, Future[Reply]] = {}
        """The first-pass replies that questions share, by key, finished or not."""
        self._shared_lock = threading.Lock()
        self._finder_lock = threading.Lock()

    def predict(self, batch: Sequence[tuple[Example, Image | InputError]]) -> list[Prediction]:
        """One Prediction an example, in order; `seconds` is the batch's wall time divided by its size."""
        start = time.perf_counter()
        states = [_initial_state(example, image) for example, image in batch]
        waiting = [(steps, step) for steps in map(self._steps, states) if (step := next(steps, None)) is not None]
        while waiting:
            results = self._results([step for _, step in waiting])
            waiting = [
                (steps, step)
                for (steps, _), result in zip(waiting, results, strict=True)
                if (step := _next(steps, result)) is not None
            ]
        seconds = (time.perf_counter() - start) / max(1, len(states))
        return [_prediction(state, self._setting, seconds) for state in states]

    def answer(self, example: Example, image: Image | InputError, stopped: Callable[[], bool] = bool) -> Prediction:
        """One question from start to end; takes no further step once `stopped()` is true.

        `seconds` is its own wall time. Raises what the engine raises.
        """
        start = time.perf_counter()
        state = _initial_state(example, image)
        steps = self._steps(state)
        step = next(steps, None)
        while step is not None and not stopped():
            step = _next(steps, self._result(step))
        return _prediction(state, self._setting, time.perf_counter() - start)

    def _results(self, steps: Sequence[Step]) -> list[StepResult]:
        """The result of each step: one call of the engine for all requests, one of the finder for all areas."""
        requests = [step for step in steps if isinstance(step, PassRequest)]
        leaders: dict[str, PassRequest] = {}
        """The request that is sent for each key that has no reply yet."""
        for step in requests:
            if step.shared is not None and step.shared not in self._shared:
                leaders.setdefault(step.shared, step)
        sent = [step for step in requests if step.shared is None or leaders.get(step.shared) is step]
        replies = self._engine.generate([step.request for step in sent]) if sent else []
        results: dict[int, StepResult] = {id(step): PassReply(reply) for step, reply in zip(sent, replies, strict=True)}
        by_key = {key: future.result() for key, future in self._shared.items()}
        for step, reply in zip(sent, replies, strict=True):
            if step.shared is not None:
                by_key[step.shared] = reply
                if reply.error is None:
                    self._shared[step.shared] = Future()
                    self._shared[step.shared].set_result(reply)
        places = [step for step in steps if isinstance(step, Locate)]
        results |= zip(map(id, places), self._find(places), strict=True)
        for step in requests:
            if id(step) not in results:
                results[id(step)] = PassReply(by_key[step.shared or ""], first=False)
        return [results[id(step)] for step in steps]

    def _result(self, step: Step) -> StepResult:
        """The result of one step; of several threads whose steps share a key, one asks the engine and the others wait."""
        if isinstance(step, Locate):
            return self._find([step])[0]
        if step.shared is None:
            return PassReply(self._engine.generate([step.request])[0])
        with self._shared_lock:
            known = self._shared.get(step.shared)
            if known is None:
                future = self._shared[step.shared] = Future()
        if known is not None:
            return PassReply(known.result(), first=False)
        try:
            reply = self._engine.generate([step.request])[0]
        except BaseException as error:
            future.set_exception(error)
            raise
        if reply.error is not None:
            # The threads that wait get this reply; the next question asks anew.
            with self._shared_lock:
                del self._shared[step.shared]
        future.set_result(reply)
        return PassReply(reply)

    def _find(self, places: Sequence[Locate]) -> list[Box | str | None]:
        if not places or self._finder is None:
            return []
        with self._finder_lock:
            return self._finder.find([(place.example, place.image, place.answer) for place in places])

    def _steps(self, state: _QuestionState) -> Steps:
        """A question's way: where to look, the crop, the answer; ends early with `state.error`."""
        if state.image is None:
            return
        if self._policy.source != "none":
            try:
                state.seen = self._setting.seen_of(state.image.size)
            except InputError as error:
                state.error = str(error)
                return
        if self._policy.source == "model":
            yield from self._ask_where(state, state.image)
        elif self._finder is not None:
            yield from self._find_box(state, state.image)
        elif self._policy.source in ("fixed", "gold"):
            self._use_fixed_box(state, state.image)
        if state.error is None:
            yield from self._ask_question(state, state.image)

    def _first_turns(self, example: Example) -> dict[str, Any]:
        """What Inst.1 asks about, as keyword arguments of `dialogue`, the same for both passes."""
        suffix = {"suffix": example.suffix or ""}
        if self._policy.asks != "all":
            return {"asks": self._policy.asks, **suffix}
        return {"asks": "all", "all_questions": self._siblings.get(example.image or "", ()), **suffix}

    def _ask_where(self, state: _QuestionState, image: Image) -> Steps:
        """Pass 1 (CoS Eq. 2): the text of the box; asked once an image by policies that do not look at the question."""
        turns = dialogue(self._profile, state.example.question, **self._first_turns(state.example))
        request = Request(turns, {"full": image}, self._setting.box_tokens, self._setting.grammar(state.seen))
        key = None if self._policy.asks == "single" else state.example.image or ""
        answered: PassReply = yield PassRequest(request, key)
        if answered.first:
            _count(state, "pass1", answered.reply)
        if answered.reply.error is not None:
            _fail(state, 1, answered.reply)
            return
        state.box_text = with_marks(answered.reply.text, self._profile)
        region = self._crops.region(state.box_text, image, state.seen)
        state.status = region.status
        self._crop(state, image, region)

    def _use_fixed_box(self, state: _QuestionState, image: Image) -> None:
        """Instead of pass 1: the policy's box."""
        try:
            box = self._policy.fixed_box(state.example, self._setting.seed)
        except InputError as error:
            state.error = str(error)
            return
        self._look_at(state, image, box)

    def _find_box(self, state: _QuestionState, image: Image) -> Steps:
        """Instead of pass 1: a plain answer, and the area of the picture that it rests on."""
        turns = dialogue(self._profile, state.example.question, chain=False)
        answered: PassReply = yield PassRequest(Request(turns, {"full": image}, self._setting.max_new_tokens))
        _count(state, "pass1", answered.reply)
        if answered.reply.error is not None:
            _fail(state, 1, answered.reply)
            return
        if not answered.reply.text:
            state.error = "pass 1: the plain answer is empty, there is nothing to explain"
            return
        area: Box | str | None = yield Locate(state.example, image, answered.reply.text)
        if isinstance(area, str):
            state.error = f"pass 1: {area}"
            return
        box = area or FALLBACKS[self._setting.on_bad_box]
        if box is None:
            state.error = "no area of the picture stands out; skipped as asked"
            return
        self._look_at(state, image, box)

    def _look_at(self, state: _QuestionState, image: Image, box: Box) -> None:
        """Takes a box that the model did not write, as the model would have written it: rounded as its text is.

        The status stays "skipped": it says nothing about the model.
        """
        state.box_text = write_box(in_frame(box, self._profile.box_frame, image.size), self._profile, state.seen)
        self._crop(state, image, self._crops.region(state.box_text, image, state.seen))

    def _crop(self, state: _QuestionState, image: Image, region: Region) -> None:
        """Cuts the region that the box text names, or that stands in for it, from the picture."""
        state.box = region.box
        if region.area is None:
            text = (state.box_text or "")[:80]
            state.error = f"no usable box in the first pass ({region.status}): {text!r}; skipped as asked"
            return
        state.crop = self._crops.cut(image, region.area)
        if state.status in USABLE_BOXES and self._engine.refuses(state.crop):
            # As good as no area: no model can be shown a line of pixels.
            state.status = "degenerate"
            self._crop(state, image, fallback_region("degenerate", self._setting.on_bad_box))

    def _ask_question(self, state: _QuestionState, image: Image) -> Steps:
        """Pass 2 (CoS Eq. 3), or the only pass of the plain dialogue."""
        chain = self._policy.source != "none"
        turns = dialogue(
            self._profile, state.example.question, chain=chain, box_text=state.box_text, **self._first_turns(state.example)
        )
        images = {"full": image} if state.crop is None else {"full": image, "roi": state.crop}
        answered: PassReply = yield PassRequest(Request(turns, images, self._setting.max_new_tokens, listen=self._listen))
        _count(state, "pass2" if chain else "pass1", answered.reply)
        if answered.reply.error is None:
            state.answer = answered.reply.text
        else:
            _fail(state, 2 if chain else 1, answered.reply)


def _prediction(state: _QuestionState, setting: Setting, seconds: float = 0.0) -> Prediction:
    return Prediction(
        example_id=state.example.id,
        answer=state.answer,
        box=state.box,
        box_text=state.box_text,
        box_status=state.status,
        policy=setting.policy.name,
        profile=setting.profile.name,
        question=state.example.question,
        image=state.example.image,
        tokens=state.tokens,
        seconds=round(seconds, 6),
        fingerprint=setting.fingerprint,
        error=state.error,
        transient=state.transient,
    )


def failed_prediction(example: Example, setting: Setting, why: str) -> Prediction:
    """The record of a question that was never answered."""
    return _prediction(_QuestionState(example, None, error=why), setting)


def _initial_state(example: Example, image: Image | InputError) -> _QuestionState:
    if isinstance(image, InputError):
        return _QuestionState(example, None, error=str(image), transient=isinstance(image, TransientError))
    return _QuestionState(example, image)


def _fail(state: _QuestionState, number: int, reply: Reply) -> None:
    """The question ends with pass `number`, which gave no answer."""
    state.error, state.transient = f"pass {number}: {reply.error}", reply.transient


def _next(steps: Steps, result: StepResult) -> Step | None:
    """The step after the one with this result, None when the question is done."""
    try:
        return steps.send(result)
    except StopIteration:
        return None


def _count(state: _QuestionState, name: str, reply: Reply) -> None:
    state.tokens |= {f"{name}_in": reply.tokens_in, f"{name}_out": reply.tokens_out}
    if reply.steps:
        # What was cached depends on the neighbours in the batch; a record holds only what a second run would repeat.
        state.tokens[f"{name}_steps"] = reply.steps
