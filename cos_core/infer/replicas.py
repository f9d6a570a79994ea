"""Questions through models: here, or in several processes with a model each.

Either way the questions go in portions, whole pictures at a time, and the answers come back in the order of the questions: what
a portion's answers are does not depend on who gave them, so neither do the bytes of a run on the number of its devices.
A worker holds a model and maps it over examples; it opens the pictures itself. Who writes stays where the run was started.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import Any

from cos_core import llava, processes
from cos_core.errors import CosError
from cos_core.infer.heat import HeatFinder
from cos_core.infer.passes import TwoPass
from cos_core.infer.pictures import PictureReader
from cos_core.infer.settings import InferConfig, build_engine, finder, setting
from cos_core.interfaces import Engine
from cos_core.types import Example, Prediction

PORTION = 4
"""Batches in a portion, roughly: whole pictures."""
AHEAD = 3
"""Portions a worker that may be dealt out before the first unfinished one is done."""


def devices(config: InferConfig) -> list[str]:
    """Where the model of a run stands, one name a replica. Raises InputError and MissingError as loading does."""
    return llava.devices(config.device) if config.engine == "hf" else [config.device]


def portions(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Examples in runs of about PORTION batches; the questions of one picture, which stand side by side, stay together."""
    found: list[list[Example]] = []
    for _, group in itertools.groupby(examples, key=lambda example: example.image):
        if not found or len(found[-1]) >= PORTION * batch_size:
            found.append([])
        found[-1] += group
    return found


def batches(portion: Sequence[Example], batch_size: int) -> list[Sequence[Example]]:
    """A portion in the fewest batches, all about as large."""
    count = math.ceil(len(portion) / batch_size)
    cuts = [math.ceil(len(portion) * i / count) for i in range(count + 1)]
    return [portion[a:b] for a, b in itertools.pairwise(cuts)]


class Here:
    """Answers with one engine, in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._finder = lru_cache(maxsize=1)(_finder)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def predictions(
        self, config: InferConfig, parts: Sequence[Sequence[Example]], siblings: Mapping[str, Sequence[str]]
    ) -> Iterator[list[Prediction]]:
        """A batch's answers at a time, in order."""
        chain = TwoPass(
            self._engine, setting(config), siblings, finder=self._finder(config.roi, config.model, config.device, config.dtype)
        )
        cut = [batch for part in parts for batch in batches(part, config.batch_size)]
        with PictureReader(config.images, getattr(self._engine, "prepare", None)) as pictures:
            for batch, after in zip(cut, [*cut[1:], []], strict=True):
                yield chain.predict(pictures.beside(batch, after))


def _finder(roi: str, model: Any, device: str, dtype: str) -> HeatFinder | None:
    return finder(InferConfig(model=model, roi=roi, device=device, dtype=dtype))


class Replicas:
    """As Here, in one process a device; they start with the first question and live until `close`.

    Raises, from `predictions`, what loading the model raises, and CosError when a process dies.
    """

    def __init__(self, config: InferConfig, names: Sequence[str]) -> None:
        self._config, self._names = config, list(names)
        self._workers: dict[Any, Any] = {}
        """The process at the other end of each pipe."""

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        for pipe, process in self._workers.items():
            process.terminate()
            process.join()
            pipe.close()
        self._workers.clear()

    def predictions(
        self, config: InferConfig, parts: Sequence[Sequence[Example]], siblings: Mapping[str, Sequence[str]]
    ) -> Iterator[list[Prediction]]:
        """A batch's answers at a time, in order; a worker that is done is dealt the next portion."""
        if not self._workers:
            self._start()
        busy: dict[Any, int] = {}
        try:
            yield from self._dealt(config, parts, siblings, busy)
        finally:
            # Stopped in the middle: what is still under way would answer the next call.
            if busy:
                self.close()

    def _dealt(
        self,
        config: InferConfig,
        parts: Sequence[Sequence[Example]],
        siblings: Mapping[str, Sequence[str]],
        busy: dict[Any, int],
    ) -> Iterator[list[Prediction]]:
        idle: list[Any] = list(self._workers)
        ready: list[list[list[Prediction]]] = [[] for _ in parts]
        done = [False] * len(parts)
        dealt = first = 0
        while first < len(parts):
            while idle and dealt < min(len(parts), first + AHEAD * len(self._workers)):
                asked = {name: siblings[name] for e in parts[dealt] if (name := e.image or "") in siblings}
                self._send(idle[0], (config, parts[dealt], asked))
                busy[idle.pop(0)] = dealt
                dealt += 1
            for pipe in wait(list(busy)):
                answer = self._receive(pipe)
                if isinstance(answer, CosError):
                    raise answer
                if answer is None:
                    done[busy.pop(pipe)] = True
                    idle.append(pipe)
                else:
                    ready[busy[pipe]].append(answer)
            while first < len(parts):
                yield from ready[first]
                ready[first] = []
                if not done[first]:
                    break
                first += 1

    def _start(self) -> None:
        # Forking a process that may hold a CUDA context breaks both.
        context = multiprocessing.get_context("spawn")
        threads = max(1, processes.cores() // len(self._names))
        for name in self._names:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, threads, replace(self._config, device=name)), daemon=True)
            process.start()
            theirs.close()
            self._workers[ours] = process

    def _send(self, pipe: Any, message: Any) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise self._death(pipe) from None

    def _receive(self, pipe: Any) -> Any:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            raise self._death(pipe) from None

    def _death(self, pipe: Any) -> CosError:
        process = self._workers[pipe]
        process.join(timeout=10)
        name = self._names[list(self._workers).index(pipe)]
        return CosError(f"the model's process on {name} died (exit code {process.exitcode}); the same command continues")


def _work(pipe: Connection, threads: int, config: InferConfig) -> None:
    """A worker's life: a model, then portions until the other end is closed; None ends each portion's answers."""
    processes.begin_worker(threads)
    # Ctrl-C reaches the whole group: the run that is told to stop stops its workers. Libraries print; stdout is the run's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr
    here: Here | None = None
    while True:
        try:
            asked, part, siblings = pipe.recv()
        except EOFError:
            return
        try:
            here = here or Here(build_engine(config))
            for answers in here.predictions(replace(asked, device=config.device), [part], siblings):
                pipe.send(answers)
            pipe.send(None)
        except CosError as error:
            pipe.send(error)
        except BrokenPipeError:
            return


def workers(config: InferConfig, engine: Engine | Replicas | None = None) -> Here | Replicas:
    """Who answers: the engine that is given, else one model a device. The caller closes Replicas that it did not give."""
    if isinstance(engine, Replicas):
        return engine
    names = [] if engine else devices(config)
    return Replicas(config, names) if len(names) > 1 else Here(engine or build_engine(config))
