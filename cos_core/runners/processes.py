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
from cos_core.runners._dealer import Dealer, Died, Done, Ready, Refused, Said, versions
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
        process = context.Process(target=_live, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._members[place] = (ours, process)

    def send(self, place: int, portion: Any) -> None:
        try:
            self._members[place][0].send(portion)
        except OSError:
            # Its death is heard next.
            return

    def listen(self) -> list[tuple[int, Said]]:
        by_pipe: dict[Any, int] = {pipe: place for place, (pipe, _) in self._members.items()}
        return [(by_pipe[pipe], self._said(by_pipe[pipe])) for pipe in wait(list(by_pipe))]

    def _said(self, place: int) -> Said:
        pipe, process = self._members[place]
        try:
            said: Said = pipe.recv()
        except (EOFError, OSError):
            pipe.close()
            process.join(timeout=10)
            del self._members[place]
            return Died(f"on {self._devices[place]} died (exit code {process.exitcode})")
        return said

    def close(self) -> None:
        for pipe, process in self._members.values():
            process.terminate()
            process.join()
            pipe.close()
        self._members.clear()


def _live(pipe: Connection, threads: int, job: Job, device: str, sharers: int) -> None:
    """A worker's life: started, then portions until the other end is closed. `sharers`: workers that were given the device."""
    worker_process.begin_worker(threads)
    memory.share_device(sharers)
    # Ctrl-C reaches the whole group: the run that is told to stop stops its workers. Libraries print; stdout is the run's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    streams.guard()
    sys.stdout = sys.stderr
    inbox = _Inbox(pipe)
    try:
        worker = job.start(device)
        inbox.expect = getattr(worker, "expect", None)
        pipe.send(Ready({**worker.about, "versions": versions()}))
        while (message := inbox.portions.get()) is not None:
            pipe.send(Done(list(worker.work([message[0]]))))
    except CosError as error:
        pipe.send(Refused(error))
    except BrokenPipeError:
        return


class _Inbox:
    """Portions as they come, each in a tuple, None at the end; `expect` hears of each before it can be taken.

    They are read at once, in a thread, so that a large portion never stops the sender, nor a large result both.
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
    given = [names[i % len(names)] for i in range(count)]
    return Dealer(job, ProcessTeam(job, given), reporter)
