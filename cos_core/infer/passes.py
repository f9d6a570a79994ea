"""The two passes of many questions (CoS Eq. 2-3), in one arm or several, with one engine.

steps.py knows the way of one question; here its steps meet the engine. Nothing here knows of files, resuming or command lines.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cos_core.dialogue.crop_content import degraded
from cos_core.errors import InputError
from cos_core.infer.steps import (
    Locate,
    PassReply,
    PassRequest,
    QuestionState,
    QuestionSteps,
    Setting,
    Step,
    StepResult,
    Steps,
    initial_state,
    prediction_of,
)
from cos_core.interfaces import Engine, Reply
from cos_core.types import Box, Example, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.infer.relevance_regions import HeatFinder


class Question(NamedTuple):
    """A question with its picture, or the reason for having none.

    `other`: another question's picture with its name, for swapped regions; `arms`: the settings, by number, under which it is
    to be answered; None: all.
    """

    example: Example
    image: Image | InputError
    other: tuple[str, Image | InputError] | None = None
    arms: tuple[int, ...] | None = None


@dataclass(slots=True)
class _Walk:
    """One question, or one sample of it, in one arm: its state, and its steps from there on."""

    state: QuestionState
    steps: Steps


class TwoPass:
    """Answers questions under one Setting or several; keeps the box texts of policies that ask once an image.

    `predict` takes a batch of questions through their steps together, each step of all questions, arms and samples in one call
    of the engine; `answer` takes one question, and may be called from several threads at once where the engine's `generate`
    may. A request that several arms of a question share is sent once; each arm's record is that of a run of its own.
    """

    def __init__(
        self,
        engine: Engine,
        setting: Setting | Sequence[Setting],
        siblings: Mapping[str, Sequence[str]] | None = None,
        listen: Callable[[str], None] | None = None,
        finder: HeatFinder | None = None,
    ) -> None:
        """`siblings`: all questions of each image, by its name, for the policy that asks with all of them; `listen` is called
        with each new piece of an answer; `finder` gives the regions of policies without boxes of their own, from plain answers.

        Raises InputError where a setting cannot be.
        """
        self._engine = engine
        self._finder = finder
        settings = [setting] if isinstance(setting, Setting) else setting
        self._arms = [self._steps(each, siblings or {}, listen) for each in settings]
        self._views = _Views()
        self._by_picture: dict[Hashable, Future[Reply]] = {}
        """The first-pass replies that questions of a picture share, by key, finished or not."""
        self._shared_lock = threading.Lock()
        self._finder_lock = threading.Lock()

    def _steps(
        self, setting: Setting, siblings: Mapping[str, Sequence[str]], listen: Callable[[str], None] | None
    ) -> QuestionSteps:
        finds = self._finder is not None and setting.policy.fixed_box is None
        return QuestionSteps(setting, siblings, listen, finds, self._engine.refuses)

    def predict(self, batch: Sequence[Question | tuple[Example, Image | InputError]]) -> list[Prediction]:
        """A Prediction for each arm of each question, in order; `seconds` is the batch's wall time divided by their number."""
        start = time.perf_counter()
        walks = [self._walks(Question(*each)) for each in batch]
        in_arms: dict[Hashable, Reply] = {}
        waiting = [
            (walk, step)
            for of_question in walks
            for _, of_arm in of_question
            for walk in of_arm
            if (step := next(walk.steps, None)) is not None
        ]
        while waiting:
            results = self._results([step for _, step in waiting], in_arms)
            waiting = [
                (walk, step)
                for (walk, _), result in zip(waiting, results, strict=True)
                if (step := _next(walk.steps, result)) is not None
            ]
        seconds = (time.perf_counter() - start) / max(1, sum(map(len, walks)))
        return [self._prediction(number, of_arm, seconds) for of_question in walks for number, of_arm in of_question]

    def answer(self, question: Question, stopped: Callable[[], bool] = bool) -> list[Prediction]:
        """One question from start to end, in each of its arms; takes no further step once `stopped()` is true.

        `seconds` is an arm's own wall time. Raises what the engine raises.
        """
        in_arms: dict[Hashable, Reply] = {}
        predictions = []
        for number, walks in self._walks(question):
            start = time.perf_counter()
            for walk in walks:
                step = next(walk.steps, None)
                while step is not None and not stopped():
                    step = _next(walk.steps, self._result(step, in_arms))
            predictions.append(self._prediction(number, walks, time.perf_counter() - start))
        return predictions

    def views(self, image: Image) -> Iterator[Image]:
        """The whole picture as each arm shows it, each once."""
        scales = dict.fromkeys(arm.setting.global_scale for arm in self._arms)
        return (self._views.of(image, scale) for scale in scales)

    def _walks(self, question: Question) -> list[tuple[int, list[_Walk]]]:
        """For each arm of the question its number, and the walk of each sample."""
        numbers = range(len(self._arms)) if question.arms is None else question.arms
        return [(number, list(self._samples(question, self._arms[number]))) for number in numbers]

    def _samples(self, question: Question, arm: QuestionSteps) -> Iterator[_Walk]:
        example, image, setting = question.example, question.image, arm.setting
        view = None if isinstance(image, InputError) else self._views.of(image, setting.global_scale)
        for sample in range(setting.samples):
            state = initial_state(example, image, view, other=question.other, sample=sample)
            yield _Walk(state, arm.steps(state))

    def _prediction(self, number: int, walks: Sequence[_Walk], seconds: float) -> Prediction:
        return prediction_of([walk.state for walk in walks], self._arms[number].setting, seconds)

    def _results(self, steps: Sequence[Step], in_arms: dict[Hashable, Reply]) -> list[StepResult]:
        """The result of each step: one call of the engine for all requests, one of the finder for all areas.

        `in_arms`: the replies that the arms of these questions share; those of this call are added.
        """
        requests = [step for step in steps if isinstance(step, PassRequest)]
        known = {key: future.result() for key, future in self._by_picture.items()} | in_arms
        leaders: dict[Hashable, PassRequest] = {}
        """The request that is sent for each key that has no reply yet."""
        for step in requests:
            if step.shared is not None and step.shared not in known:
                leaders.setdefault(step.shared, step)
        sent = [step for step in requests if step.shared is None or leaders.get(step.shared) is step]
        replies = self._engine.generate([step.request for step in sent]) if sent else []
        results: dict[int, StepResult] = {id(step): PassReply(reply) for step, reply in zip(sent, replies, strict=True)}
        for step, reply in zip(sent, replies, strict=True):
            if step.shared is not None:
                known[step.shared] = reply
                if not step.per_picture:
                    in_arms[step.shared] = reply
                elif reply.error is None:
                    self._by_picture[step.shared] = Future()
                    self._by_picture[step.shared].set_result(reply)
        places = [step for step in steps if isinstance(step, Locate)]
        results |= zip(map(id, places), self._find(places), strict=True)
        for step in requests:
            if id(step) not in results:
                results[id(step)] = PassReply(known[step.shared], first=False)
        return [results[id(step)] for step in steps]

    def _result(self, step: Step, in_arms: dict[Hashable, Reply]) -> StepResult:
        """The result of one step; of several threads whose steps share a picture's key, one asks the engine and the others
        wait."""
        if isinstance(step, Locate):
            return self._find([step])[0]
        if step.shared is None or not step.per_picture:
            if step.shared in in_arms:
                return PassReply(in_arms[step.shared], first=False)
            reply = self._engine.generate([step.request])[0]
            if step.shared is not None:
                in_arms[step.shared] = reply
            return PassReply(reply)
        with self._shared_lock:
            known = self._by_picture.get(step.shared)
            if known is None:
                future = self._by_picture[step.shared] = Future()
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
                del self._by_picture[step.shared]
        future.set_result(reply)
        return PassReply(reply)

    def _find(self, places: Sequence[Locate]) -> list[Box | str | None]:
        if not places or self._finder is None:
            return []
        with self._finder_lock:
            return self._finder.find([(place.example, place.image, place.answer) for place in places])


class _Views:
    """Whole pictures as models are shown them, each made once and kept as long as its picture. For use from several threads."""

    def __init__(self) -> None:
        self._views: dict[tuple[int, float], Image] = {}
        self._lock = threading.Lock()

    def of(self, image: Image, scale: float) -> Image:
        """`image` at `scale` (crop_content.degraded); at 1 the picture itself."""
        if scale == 1:
            return image
        key = (id(image), scale)
        with self._lock:
            if key not in self._views:
                self._views[key] = degraded(image, scale)
                weakref.finalize(image, self._views.pop, key, None)
            return self._views[key]


def _next(steps: Steps, result: StepResult) -> Step | None:
    """The step after the one with this result, None when the question is done."""
    try:
        return steps.send(result)
    except StopIteration:
        return None
