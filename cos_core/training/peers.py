"""The processes of one run, which wait for one another as long as it takes.

A collective of torch's process group gives up after its time-out (half an hour) even when everyone is alive and one of them
only writes to a slow disk or examines ten million samples. Whatever is work of the disk or of one process alone is waited for
here, through the store by which the launcher's processes find one another: it is there before the process group, it needs no
GPU, and a process that fails says so in it.
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

_MEETING = timedelta(minutes=30)
"""How long the processes of a run may take to start."""
_PAUSE, _LONGEST_PAUSE = 0.005, 0.25
"""Seconds between two looks, at first and at most."""
_FAREWELL = 5.0
"""Seconds that a process which fails leaves the others to read why: the first may take the store with it."""
_FAILED = "failed"
_RUNS = itertools.count()


class Peers:
    """One process among those of its run. Every process must make the same calls in the same order.

    `store`: a torch.distributed.Store that all share, None for a process alone, which waits for nobody.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._meetings = 0

    @classmethod
    def here(cls, rank: int, size: int) -> Peers:
        """The processes that a launcher (torchrun, deepspeed) started. Raises InputError when they do not find one another."""
        if size == 1:
            return cls(None, 0, 1)
        from torch.distributed import PrefixStore

        return cls(PrefixStore(f"cos/{next(_RUNS)}", _launchers_store(rank, size)), rank, size)

    def wait(self) -> None:
        """Comes back when all are here. Raises CosError when another process has failed."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """What each process brings (anything that JSON holds), by rank, when all are here. Raises as `wait` does."""
        if self._store is None:
            return [value]
        self._meetings += 1
        keys = [f"{self._meetings}/{rank}" for rank in range(self._size)]
        self._store.set(keys[self._rank], json.dumps(value))
        self._until(keys)
        values = [json.loads(self._store.get(key)) for key in keys]
        # The first process, which may hold the store, leaves last: it may end at once.
        if self._rank == 0:
            self._until([f"{key}/left" for key in keys[1:]])
        else:
            self._store.set(f"{keys[self._rank]}/left", b"")
        return values

    def first(self, work: Callable[[], None]) -> None:
        """`work` in the first process while the others wait. What it raises ends them, too, with the same sentence and code."""
        if self._rank == 0:
            try:
                work()
            except BaseException as error:
                self.failed(error)
                raise
        self.wait()

    def failed(self, error: BaseException) -> None:
        """Tells the others, wherever they wait now or later, that this process ends with `error`."""
        if self._store is None:
            return
        told = {"rank": self._rank, "type": type(error).__name__, "text": str(error)}
        others = [f"{_FAILED}/{rank}" for rank in range(self._size) if rank != self._rank]
        until = time.monotonic() + _FAREWELL
        try:
            # The first failure is the cause; what others raise in its wake is not.
            self._store.compare_set(_FAILED, "", json.dumps(told))
            self._store.set(f"{_FAILED}/{self._rank}", b"")
            while time.monotonic() < until and not self._store.check(others):
                time.sleep(_PAUSE)
        except RuntimeError:  # the store went with the process that held it: there is nobody left to be told
            return

    def cause(self) -> CosError | None:
        """What another process ended with, None when none has: a collective that it left says only that somebody is gone."""
        try:
            if self._store is None or not self._store.check([_FAILED]):
                return None
            told = json.loads(self._store.get(_FAILED))
        except RuntimeError:  # so is the store
            return None
        return _error(told) if told["rank"] != self._rank else None

    def _until(self, keys: list[str]) -> None:
        pause = _PAUSE
        while True:
            try:
                if self._store.check(keys):
                    return
                told = self._store.get(_FAILED) if self._store.check([_FAILED]) else None
            except RuntimeError as error:
                raise CosError(f"the first process of the run is gone ({str(error).splitlines()[0][:80]})") from None
            if told is not None:
                self._store.set(f"{_FAILED}/{self._rank}", b"")
                raise _error(json.loads(told))
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@cache
def _launchers_store(rank: int, size: int) -> Any:
    """One for the life of the process: in the first one, without torchrun, the others' connections end with it."""
    from torch.distributed import DistError, rendezvous

    try:
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=_MEETING)))
    except (DistError, ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(f"the {size} processes did not find one another at {where}: {str(error).splitlines()[0]}") from None
    return store


def _error(told: dict[str, Any]) -> CosError:
    """What another process ended with, as this one says it."""
    kind = getattr(errors, told["type"], None)
    if isinstance(kind, type) and issubclass(kind, CosError):
        return kind(f"process {told['rank']} ended: {told['text']}")
    return CosError(f"process {told['rank']} ended with {told['type']}: {told['text']}")
