"""The processes of one run: waiting for one another without a time-out, and passing on errors.

A collective of torch's process group fails after its time-out (half an hour) even when all processes are alive and one of them
writes to a slow disk or checks ten million samples. Waiting for a disk and for work of one process is done here, through
the store by which the launcher's processes find one another: it exists before the process group, it needs no GPU, and a process
that fails writes its error there.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from cos_core import errors
from cos_core.errors import CosError, InputError

_START_TIMEOUT = timedelta(minutes=30)
"""How long the processes of a run may take to start."""
_PAUSE, _LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two looks, at first and at most."""
_NOTICE_SECONDS = 5.0
"""Seconds that a failing process waits for the others to read its error: the store may end with the process."""
_FAILED = "failed"
_RUNS = itertools.count()


class Ranks:
    """One process among those of its run. Every process must make the same calls in the same order.

    `store`: a torch.distributed.Store that all share; None for a single process, which never waits.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._meetings = 0

    @classmethod
    def of_launcher(cls, rank: int, size: int) -> Ranks:
        """The processes that a launcher (torchrun, deepspeed) started. Raises InputError when they do not find one another."""
        if size == 1:
            return cls(None, 0, 1)
        from torch.distributed import PrefixStore

        return cls(PrefixStore(f"cos/{next(_RUNS)}", _launchers_store(rank, size)), rank, size)

    def wait(self) -> None:
        """Returns when all processes have called it. Raises CosError when another process has failed."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of each process (anything that JSON holds), by rank, once all have called it. Raises as `wait` does."""
        if self._store is None:
            return [value]
        self._meetings += 1
        keys = [f"{self._meetings}/{rank}" for rank in range(self._size)]
        self._store.set(keys[self._rank], json.dumps(value))
        self._until(keys)
        values = [json.loads(self._store.get(key)) for key in keys]
        # The first process may hold the store, so it returns last: it may end at once.
        if self._rank == 0:
            self._until([f"{key}/left" for key in keys[1:]])
        else:
            self._store.set(f"{keys[self._rank]}/left", b"")
        return values

    def first(self, work: Callable[[], object]) -> None:
        """Runs `work` in the first process while the others wait. Its error is raised in all, with equal message and code."""
        if self._rank == 0:
            try:
                work()
            except BaseException as error:
                self.failed(error)
                raise
        self.wait()

    def failed(self, error: BaseException) -> None:
        """Makes the others raise `error`, wherever they wait now or later, because this process ends with it."""
        if self._store is None:
            return
        failure = {"rank": self._rank, "type": type(error).__name__, "text": str(error)}
        others = [f"{_FAILED}/{rank}" for rank in range(self._size) if rank != self._rank]
        until = time.monotonic() + _NOTICE_SECONDS
        try:
            # The first failure is the cause; the others follow from it.
            self._store.compare_set(_FAILED, "", json.dumps(failure))
            self._store.set(f"{_FAILED}/{self._rank}", b"")
            while time.monotonic() < until and not self._store.check(others):
                time.sleep(_PAUSE)
        except RuntimeError:  # the store ended with the process that held it, and with it the others
            return

    def cause(self) -> CosError | None:
        """The error of another process, None without one. A collective that a process left reports only a lost connection."""
        try:
            if self._store is None or not self._store.check([_FAILED]):
                return None
            failure = json.loads(self._store.get(_FAILED))
        except RuntimeError:  # the store ended, too
            return None
        return _as_error(failure) if failure["rank"] != self._rank else None

    def _until(self, keys: list[str]) -> None:
        pause = _PAUSE
        while True:
            try:
                if self._store.check(keys):
                    return
                failure = self._store.get(_FAILED) if self._store.check([_FAILED]) else None
            except RuntimeError as error:
                raise CosError(f"the first process of the run is gone ({str(error).splitlines()[0][:80]})") from None
            if failure is not None:
                self._store.set(f"{_FAILED}/{self._rank}", b"")
                raise _as_error(json.loads(failure))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@cache
def _launchers_store(rank: int, size: int) -> Any:
    """One for the life of the process: without torchrun the first process serves it, and the connections end with it."""
    from torch.distributed import DistError, rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=_START_TIMEOUT)))
    except (DistError, ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(f"the {size} processes did not find one another at {where}: {str(error).splitlines()[0]}") from None
    return store


def _as_error(failure: dict[str, Any]) -> CosError:
    """The error of another process as one of this process."""
    kind = getattr(errors, failure["type"], None)
    if isinstance(kind, type) and issubclass(kind, CosError):
        return kind(f"process {failure['rank']} ended: {failure['text']}")
    return CosError(f"process {failure['rank']} ended with {failure['type']}: {failure['text']}")
