"""Memory for users of a model: the bytes that this process may use, and smaller parts when memory runs out.

Importing this imports no torch, so stages that may run without a model can import it, too.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WORDS = re.compile(
    r"""
      out\ of\ memory                               # torch on CUDA, HIP, XPU and MPS; CUDA's own words; NCCL's "Cuda failure 2"
    | can't\ allocate\ memory                       # torch's allocator for CPUs
    | not\ enough\ memory:\ you\ tried\ to\ allocate   # the same on Windows
    | Cannot\ allocate\ memory                      # the system's words for ENOMEM, wherever they are quoted
    | std::bad_alloc
    | CU\w+_STATUS_(\w+_)?ALLOC(ATION)?_FAILED      # cuBLAS, cuSOLVER, cuSPARSE; cuDNN 8; HOST_ and DEVICE_ in cuDNN 9
    | CU(BLAS|SOLVER|SPARSE)_STATUS_NOT_INITIALIZED\W+when\ calling\W+\w+Create   # a handle takes memory of its own
    | CUDNN_STATUS_NOT_INITIALIZED
    | (GET|FIND)\ was\ unable\ to\ find\ an\ engine   # torch lets a convolution's plans fail one by one for want of workspace
    | could\ not\ create\ a\ (primitive|memory)      # oneDNN on a CPU, which gives no reason
    | [Ff]ailed\ to\ (CUDA\ )?c(m)?alloc            # NCCL
    """,
    re.VERBOSE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: the system's, torch's on any device, or that of a library behind it.

    torch raises OutOfMemoryError when its own allocator finds no room. Libraries that allocate for themselves (cuBLAS and cuDNN
    for handles and workspaces, NCCL for buffers) raise RuntimeErrors that quote a status. CUDNN_STATUS_NOT_SUPPORTED and
    CUBLAS_STATUS_EXECUTION_FAILED have other causes and are not counted.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def reason(error: BaseException) -> str:
    """The exception's first line as a part of one sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(". ")


def let_go(error: BaseException) -> None:
    """Frees what an exception keeps alive, the locals of every frame that it left, and gives unused GPU memory back.

    To be called where it was caught; `error` keeps its message. Without it tensors of the failed attempt live as long as the
    traceback does, and those in reference cycles until the next collection.
    """
    known: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in known:
        known.add(id(current))
        traceback.clear_frames(current.__traceback__)
        current.__traceback__ = None
        current = current.__cause__ or current.__context__
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@dataclass(slots=True)
class Allowance:
    """How much goes through a model at once: halved when memory runs out for it, doubled again once smaller parts fitted.

    `limit`: None until memory has run out; then a number of rows, or whatever its user counts. `patience`: how many parts that
    fill more than half of the limit must fit before twice as much is tried; doubled each time that this fails, since a failure
    costs its work.
    """

    limit: int | None = None
    patience: int = 4
    _fitted: int = 0
    _untried: bool = False

    def ran_out(self, size: int) -> None:
        """Memory ran out for a part of this size."""
        if self._untried:
            self.patience *= 2
        self.limit, self._fitted, self._untried = max(1, (size + 1) // 2), 0, False

    def fitted(self, size: int) -> None:
        """Memory was enough for a part of this size. A part of at most half the limit is not counted."""
        if self.limit is None or 2 * size <= self.limit:
            return
        self._fitted += 1
        self._untried = False
        if self._fitted >= self.patience:
            self.limit, self._fitted, self._untried = 2 * self.limit, 0, True


def in_parts(items: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]], most: int, allowance: Allowance) -> list[R]:
    """The results of `run` for all items, at most `most` items at a time, fewer where memory runs out or has run out before.

    Raises the out-of-memory error of `run` when memory runs out for one item alone.
    """
    results: list[R] = []
    while len(results) < len(items):
        part = items[len(results) : len(results) + min(most, allowance.limit or most)]
        try:
            results += run(part)
            allowance.fitted(len(part))
        except (RuntimeError, MemoryError, OSError) as error:
            if len(part) < 2 or not is_out_of_memory(error):
                raise
            let_go(error)
            allowance.ran_out(len(part))
    return results


def halves(items: Sequence[T]) -> list[Sequence[T]]:
    """The items in two parts, the first at most one longer; fewer than two items are not divided."""
    middle = (len(items) + 1) // 2
    return [part for part in (items[:middle], items[middle:]) if part]


# --- how much there is ---

_sharers = 1


def share_device(processes: int) -> None:
    """To be called when a worker process starts: how many processes of this run, itself included, use its device."""
    global _sharers
    _sharers = max(1, processes)


def available(device: Any) -> int:
    """Bytes that this process may still allocate on a torch device (or "cpu"): its share where several workers use it.

    On a GPU what is free, what torch holds without using it included; of n workers each may have taken an n-th of the whole in
    all. On a CPU an n-th of what the system could give without swapping, within the limit of a container (cgroup v2).
    """
    if getattr(device, "type", str(device)) != "cuda":
        return _system_memory() // _sharers
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    room = free + torch.cuda.memory_reserved(device) - allocated
    return max(0, room if _sharers == 1 else min(room, total // _sharers - allocated))


def _system_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        room = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        return min(room, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container of this kind, or one without a limit ("max")
        return room
