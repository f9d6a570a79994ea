"""Workers as Ray actors, on a running cluster or on one that is started for the run (extra `scale`).

Ray places them, reports deaths, and carries portions and results; dealing, order and repetition are in _dealer.py.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from cos_core.errors import CosError, InputError, MissingError
from cos_core.interfaces import Job, Reporter, Runner
from cos_core.runners._config import RunnerConfig
from cos_core.runners._dealer import Dealer, Died, Done, Ready, Refused, WorkerEvent, versions
from cos_core.system import memory, worker_process
from cos_core.system.extras import install

CONNECT_SECONDS = 10.0
"""Time in which a cluster's address must answer."""
PATIENCE_SECONDS = 1800.0
"""Time without one living worker after which a run gives up: a queue, or a model that takes this long to load."""
_NOTE_SECONDS = 30.0
"""Time between two notes that the run still waits."""


class Member:
    """What lives in an actor: a worker, started by the first call."""

    def __init__(self, job: Job, device: str, folder: str, feeders: int, sharers: int) -> None:
        self._job, self._device, self._folder = job, device, folder
        self._feeders, self._sharers = feeders, sharers
        self._worker: Any = None

    def start(self) -> WorkerEvent:
        worker_process.begin_worker(1, self._feeders)
        memory.share_device(self._sharers)
        # Relative paths mean what they mean where the run was started; the job reports what is missing there.
        with suppress(OSError):
            os.chdir(self._folder)
        try:
            self._worker = self._job.start(self._device)
            return Ready({**self._worker.about, "versions": versions()}, _here())
        except CosError as error:
            return Refused(error, _here(), versions())

    def work(self, portion: Any) -> WorkerEvent:
        try:
            return Done(list(self._worker.work([portion])))
        except CosError as error:
            return Refused(error, _here())


def _here() -> str:
    return f"on {socket.gethostname()} (process {os.getpid()})"


class RayTeam:
    """A Team of actors: with GPUs one each, without one CPU each, spread over the nodes."""

    def __init__(self, job: Job, device: str, config: RunnerConfig, reporter: Reporter) -> None:
        self._ray = _package()
        self._job, self._device, self._reporter = job, device, reporter
        self._connected_here = not self._ray.is_initialized()
        if self._connected_here:
            _connect(self._ray, config)
        try:
            self.size, self._options = self._room(config)
        except CosError:
            self._disconnect()
            raise
        self._actors: dict[int, Any] = {}
        self._places: dict[Any, int] = {}
        """What each reference, in the order of asking, is an answer of."""
        self._living: set[int] = set()

    def _room(self, config: RunnerConfig) -> tuple[int, dict[str, Any]]:
        """(workers, what each needs). Raises MissingError when the cluster has no such room."""
        has = self._ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        if self._device.startswith("cuda") and not gpus:
            raise MissingError("the Ray cluster has no GPU; start its nodes with GPUs, or give --device cpu")
        on_gpus = gpus > 0 and self._device != "cpu"
        if on_gpus:
            self._device = "cuda"
        elif self._device == "auto":
            self._device = "cpu"
        room = gpus if on_gpus else int(has.get("CPU", 0))
        nodes = sum(1 for node in self._ray.nodes() if node["Alive"])
        count = config.workers or (gpus if on_gpus else min(nodes, room))
        if not room:
            raise MissingError("the Ray cluster has no free kind of place for a worker: neither a GPU nor a CPU")
        if count > room:
            what = "GPUs" if on_gpus else "CPUs"
            self._reporter.warn(f"{count} workers asked for, and the cluster has {room} {what}; {room} are started")
        cores = int(has.get("CPU", 0))
        # Ray gives a GPU to one actor alone; its memory is the actor's, and so is its share of the cluster's cores.
        self._feeders = max(1, cores // gpus) if on_gpus else 1
        hosts = sum(1 for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
        self._sharers = 1 if on_gpus else math.ceil(min(count, room) / max(1, hosts))
        needs = {"num_cpus": 0 if on_gpus else 1, "num_gpus": 1 if on_gpus else 0, "scheduling_strategy": "SPREAD"}
        return min(count, room), needs

    def begin(self, place: int) -> None:
        actor = (
            self._ray.remote(Member)
            .options(max_restarts=0, **self._options)
            .remote(self._job, self._device, str(Path.cwd()), self._feeders, self._sharers)
        )
        self._actors[place] = actor
        self._places[actor.start.remote()] = place

    def send(self, place: int, portion: Any) -> None:
        self._places[self._actors[place].work.remote(portion)] = place

    def listen(self) -> list[tuple[int, WorkerEvent]]:
        start = noted = time.monotonic()
        while True:
            ready, _ = self._ray.wait(list(self._places), num_returns=1, timeout=1.0)
            if ready:
                break
            now = time.monotonic()
            if not self._living and now - noted > _NOTE_SECONDS:
                noted = now
                self._reporter.note("waiting for the cluster to start a worker")
            if not self._living and now - start > PATIENCE_SECONDS:
                raise MissingError(f"no worker started on the Ray cluster in {PATIENCE_SECONDS / 60:.0f} minutes")
        # Everything else that is there already, in the order of asking: an actor answers in it too.
        ready, _ = self._ray.wait(list(self._places), num_returns=len(self._places), timeout=0)
        answered = set(ready)
        events: list[tuple[int, WorkerEvent]] = []
        for reference in [r for r in self._places if r in answered]:
            place = self._places.pop(reference, None)
            if place is not None:
                events.append((place, self._event(reference, place)))
        return events

    def _event(self, reference: Any, place: int) -> WorkerEvent:
        errors = self._ray.exceptions
        try:
            event: WorkerEvent = self._ray.get(reference)
        except (errors.RayActorError, errors.RayTaskError, errors.RaySystemError, errors.ObjectLostError) as error:
            for other in [r for r, other_place in self._places.items() if other_place == place]:
                del self._places[other]
            self._living.discard(place)
            self._ray.kill(self._actors.pop(place))
            return Died(f"died ({_reason(error)})")
        if isinstance(event, Ready):
            self._living.add(place)
        return event

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._places.clear()
        self._living.clear()

    def end(self) -> None:
        """As `close`, and leaves the cluster."""
        self.close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connected_here:
            self._ray.shutdown()


def _reason(error: BaseException) -> str:
    """What Ray's report says of a death, in a few words."""
    text = " ".join(str(error).split())
    for mark in ("Worker exit detail: ", "its node has died", "node died"):
        if mark in text:
            return text.partition(mark)[2].split(". ")[0][:160] if mark.endswith(": ") else "its node died"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].strip()[:200]


class OnRay(Dealer):
    """A Dealer that leaves the cluster when it is closed for good."""

    def __init__(self, job: Job, team: RayTeam, reporter: Reporter) -> None:
        super().__init__(job, team, reporter)
        self._cluster = team
        # Ray reports deaths on stdout, which is the run's.
        self._redirected = redirect_stdout(sys.stderr)

    def __enter__(self) -> OnRay:
        self._redirected.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
        self._cluster.end()
        self._redirected.__exit__(None, None, None)


def build(config: RunnerConfig, job: Job, device: str, devices: Callable[[], Sequence[str]], reporter: Reporter) -> Runner:
    """Raises MissingError without Ray or when the address does not answer, InputError for a cluster of other versions."""
    return OnRay(job, RayTeam(job, device, config, reporter), reporter)


def _package() -> Any:
    # No usage report is sent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingError(f"the runner 'ray' needs Ray; install it: {install('scale')}") from None
    return ray


def _connect(ray: Any, config: RunnerConfig) -> None:
    address = config.ray_address
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        count = config.workers or worker_process.cores()
        options: dict[str, Any] = {"address": "local", "num_cpus": count, "include_dashboard": False}
    else:
        _check_address(address)
        options = {"address": address}
    try:
        with _restored_signal():
            ray.init(**options, **quiet)
    except (ConnectionError, TimeoutError) as error:
        why = str(error).splitlines()[0]
        hint = "`ray status` there tells; if it was started with a token, set RAY_AUTH_MODE=token"
        raise MissingError(f"there is no Ray cluster at {address}: {why}; {hint}") from None
    except RuntimeError as error:
        if "ersion mismatch" in str(error):
            words = " ".join(str(error).split())
            raise InputError(f"the Ray cluster at {address} has other versions than this machine: {words[:300]}") from None
        raise MissingError(f"Ray cannot be started: {str(error).splitlines()[0][:200]}") from None
    except ValueError as error:
        raise InputError(f"the Ray address {address!r} cannot be used: {str(error).splitlines()[0][:200]}") from None


def _check_address(address: str) -> None:
    """Raises InputError for an address that is none, MissingError where nothing listens.

    Ray itself tries for a long time there, and may end the process.
    """
    if address in ("auto", "local") or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"a Ray address is HOST:PORT (or 'auto' for this machine's cluster), got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MissingError(f"there is no Ray cluster at {address}: {error}; `ray status` there tells") from None


@contextmanager
def _restored_signal() -> Iterator[None]:
    """Ray takes SIGTERM for itself; the run's own way to end stays."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
    except ValueError:  # not the main thread: nothing was changed
        return
