"""Many questions at once against an engine that can answer them so: no question's second pass waits for another question.

A thread takes a question from its picture to its answer. The engine bounds the requests under way; some more threads than that
decode pictures meanwhile. Predictions come back in the order of the questions.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cos_core.errors import InputError
from cos_core.files.images import ImageSource
from cos_core.infer.passes import Question, TwoPass
from cos_core.types import Example, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

AHEAD = 8
"""Questions that may be begun or finished before the oldest unfinished one, for each request under way."""


class SharedPictures:
    """Pictures of a source, each opened once while questions about it are under way, by the first of their threads."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._open: dict[str, tuple[Future[Image | InputError], int]] = {}
        """Pictures by name, with how many questions hold them."""

    @contextmanager
    def held(self, name: str) -> Iterator[Image | InputError]:
        """The picture, or why there is none; dropped when no question holds it."""
        with self._lock:
            known = self._open.get(name)
            image, holders = known or (Future(), 0)
            self._open[name] = (image, holders + 1)
        try:
            if known is None:
                self._read(name, image)
            yield image.result()
        finally:
            with self._lock:
                image, holders = self._open.pop(name)
                if holders > 1:
                    self._open[name] = (image, holders - 1)

    def _read(self, name: str, image: Future[Image | InputError]) -> None:
        try:
            image.set_result(self._source.open(name))
        except InputError as error:
            image.set_result(error)
        except BaseException as error:
            # The threads that wait for the picture raise it, too.
            image.set_exception(error)


@dataclass(frozen=True, slots=True)
class QuestionPlan:
    """A question, where its pictures come from, and the rest as in passes.Question; `other`: the name of a second picture."""

    example: Example
    pictures: SharedPictures
    other: str | None = None
    arms: tuple[int, ...] | None = None

    def answered(self, chain: TwoPass, stopped: Callable[[], bool]) -> list[Prediction]:
        """Its predictions, with its pictures held meanwhile."""
        with self.pictures.held(self.example.image or "") as image:
            if self.other is None:
                return chain.answer(Question(self.example, image, None, self.arms), stopped)
            with self.pictures.held(self.other) as other:
                return chain.answer(Question(self.example, image, (self.other, other), self.arms), stopped)


def side_by_side(chain: TwoPass, questions: Iterable[QuestionPlan], at_once: int) -> Iterator[list[Prediction]]:
    """The predictions of one question after another; `at_once`: how many requests the engine has under way.

    Questions are read no further ahead than AHEAD times `at_once`. Closed in the middle, the iterator begins no further request
    and waits for none that is under way. Raises what the engine raises.
    """
    tasks: queue.SimpleQueue[tuple[Future[list[Prediction]], QuestionPlan] | None] = queue.SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        while (task := tasks.get()) is not None and not stop.is_set():
            done, question = task
            try:
                done.set_result(question.answered(chain, stop.is_set))
            except BaseException as error:
                done.set_exception(error)

    threads = at_once + max(2, at_once // 4)
    for number in range(threads):
        # Daemons: a run that stops does not wait for a server that is silent.
        threading.Thread(target=work, name=f"question-{number}", daemon=True).start()
    waiting: deque[Future[list[Prediction]]] = deque()
    try:
        for question in questions:
            waiting.append(Future())
            tasks.put((waiting[-1], question))
            while waiting and (waiting[0].done() or len(waiting) >= AHEAD * at_once):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        stop.set()
        for _ in range(threads):
            tasks.put(None)
