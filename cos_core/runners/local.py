"""One worker, in this process: every portion in one stream, so that the next one's pictures are opened meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from cos_core.interfaces import Job, Reporter, Runner, Worker
from cos_core.runners._config import RunnerConfig


class Local:
    """A Runner around the worker that `start` gives, which is called when it is first needed."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self._start = start

    @cached_property
    def _worker(self) -> Worker:
        return self._start()

    @property
    def about(self) -> Mapping[str, Any]:
        return self._worker.about

    def map(self, portions: Iterable[Any]) -> Generator[Any]:
        yield from self._worker.work(portions)

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_error: object) -> None: ...


def build(config: RunnerConfig, job: Job, device: str, devices: Callable[[], Sequence[str]], reporter: Reporter) -> Runner:
    return Local(lambda: job.start(devices()[0]))
