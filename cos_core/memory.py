"""Whether memory ran out. Importing this imports no torch."""

from __future__ import annotations

import errno
import re

_WORDS = re.compile(
    r"out of memory|can't allocate memory|Cannot allocate memory|std::bad_alloc"
    r"|CU\w+_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|CUDNN_STATUS_NOT_INITIALIZED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: the system's, torch's on any device, or that of a library behind it."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
