"""A Job without a model, for the tests of runners: a portion is a list of numbers, its one result the list of their squares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.interfaces import Worker


@dataclass(frozen=True)
class ToyJob:
    """`poison`: the number that kills its worker, always; `once`: a number that kills the first worker that sees it, which
    leaves a file in `folder`; `stillborn`: workers die before they begin; `refuse`: the number that is an InputError."""

    folder: Path
    poison: int | None = None
    once: int | None = None
    refuse: int | None = None
    stillborn: bool = False
    fails: str | None = None
    large: int = 0

    def start(self, device: str) -> ToyWorker:
        if self.stillborn:
            os._exit(9)
        if self.fails:
            raise InputError(self.fails)
        (self.folder / f"worker-{os.getpid()}").touch()
        return ToyWorker(self)

    def split(self, portion: Sequence[int]) -> list[Sequence[int]]:
        half = (len(portion) + 1) // 2
        return [part for part in (portion[:half], portion[half:]) if part]

    def lost(self, portion: Sequence[int], why: str) -> list[Any]:
        return [f"{number}: {why}" for number in portion]


class ToyWorker(Worker):
    about: Mapping[str, Any] = {"fingerprint": "f"}

    def __init__(self, job: ToyJob) -> None:
        self._job = job

    def work(self, portions: Iterable[Sequence[int]]) -> Iterator[list[Any]]:
        for portion in portions:
            yield [self._square(number) for number in portion]

    def _square(self, number: int) -> Any:
        job = self._job
        if number == job.refuse:
            raise InputError(f"{number} cannot be used")
        if number == job.once and not (job.folder / "once").exists():
            (job.folder / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == job.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number if not job.large else b"%d" % number * job.large
