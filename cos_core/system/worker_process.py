"""The start of every worker process: it ends with its parent, and uses its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


_FEEDERS_AT_MOST = 8
_feeders: int | None = None


def begin_worker(threads: int, feeders: int | None = None) -> None:
    """To be called first in a spawned process, before anything imports torch or numpy's libraries.

    `threads` is what one worker may use, unless the environment says it already; `feeders`: see `feeders` below, None for as
    many.
    """
    global _feeders
    _feeders = feeders or threads
    for name in _THREADS:
        os.environ.setdefault(name, str(threads))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def feeders() -> int:
    """Threads that may read and cut pictures beside this process's model: its share of the cores, eight at most."""
    return max(1, min(_FEEDERS_AT_MOST, _feeders or cores()))


def _end_with(parent: Any) -> None:
    # A killed parent cannot ask the worker to stop; committed results are on the disk.
    parent.join()
    os._exit(1)
