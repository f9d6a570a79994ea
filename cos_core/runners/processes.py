"""Several workers as processes of this machine: one a GPU, or one a share of the cores."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from cos_core.errors import CosError
from cos_core.interfaces import Job, Reporter, Runner
from cos_core.runners._config import RunnerConfig
from cos_core.runners._dealer import Dealer, Died, Done, Ready, Refused, WorkerEvent, versions
from cos_core.system import memory, streams, worker_process


class ProcessTeam:
    """A Team of spawned processes, one a device; a device may be named several times."""

    def __init__(self, job: Job, devices: Sequence[str]) -> None:
        self._job, self._devices = job, list(devices)
        self.size = len(self._devices)
        self._members: dict[int, tuple[Connection, Any]] = {}
        """Pipe and process by place."""

    def begin(self, place: int) -> None:
        # Forking a process that may hold a CUDA context breaks both.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads, device = max(1, worker_process.cores() // self.size), self._devices[place]
        arguments = (theirs, threads, self._job, device, self._devices.count(device))
        process = context.Process(target=_run_worker, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._members[place] = (ours, process)

    def send(self, place: int, portion: Any) -> None:
        try:
            self._members[place][0].send(portion)
        except OSError:
            return  # it is dead; `listen` reports that next

    def listen(self) -> list[tuple[int, WorkerEvent]]:
        by_pipe: dict[Any, int] = {pipe: place for place, (pipe, _) in self._members.items()}
        return [(by_pipe[pipe], self._received(by_pipe[pipe])) for pipe in wait(list(by_pipe))]

    def _received(self, place: int) -> WorkerEvent:
        pipe, process = self._members[place]
        try:
            event: WorkerEvent = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            process.join(timeout=10)
            del self._members[place]
            return Died(f"on {self._devices[place]} died (exit code {process.exitcode})")
        return event

    def close(self) -> None:
        for pipe, process in self._members.values():
            process.terminate()
            process.join()
            pipe.close()
        self._members.clear()


def _run_worker(pipe: Connection, threads: int, job: Job, device: str, sharers: int) -> None:
    """A worker process: starts, then does portions until the other end is closed. `sharers`: workers on the same device."""
    worker_process.begin_worker(threads)
    memory.share_device(sharers)
    # Ctrl-C reaches the whole group; the run stops its workers itself. Libraries print; stdout is the run's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    streams.guard()
    sys.stdout = sys.stderr
    inbox = _Inbox(pipe)
    try:
        worker = job.start(device)
        inbox.expect = worker.expect
        pipe.send(Ready({**worker.about, "versions": versions()}))
        while (message := inbox.portions.get()) is not None:
            pipe.send(Done(list(worker.work([message[0]]))))
    except CosError as error:
        pipe.send(Refused(error))
    except BrokenPipeError:
        return


class _Inbox:
    """Portions as they come, each in a tuple, None at the end; `expect` is called with each before it can be taken.

    A thread reads them at once, so that a large portion never blocks the sender, nor a large result both sides.
    """

    def __init__(self, pipe: Connection) -> None:
        self.portions: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.expect: Callable[[Any], None] | None = None
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: Connection) -> None:
        while True:
            try:
                portion = pipe.recv()
            except (EOFError, OSError):
                self.portions.put(None)
                return
            if self.expect is not None:
                self.expect(portion)
            self.portions.put((portion,))


def build(config: RunnerConfig, job: Job, device: str, devices: Callable[[], Sequence[str]], reporter: Reporter) -> Runner:
    names = devices()
    count = config.workers or len(names)
    if "cpu" not in names:
        # A second process on a GPU would hold the model a second time: all work for a GPU goes through one.
        names = list(dict.fromkeys(names))
        if count > len(names):
            reporter.note(f"one worker a GPU: {count} were asked for, {len(names)} hold a model each, with all of its memory")
        count = min(count, len(names))
    return Dealer(job, ProcessTeam(job, [names[i % len(names)] for i in range(count)]), reporter)
