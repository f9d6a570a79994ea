"""A lock between processes that a dead process cannot hold: `flock` on a small file, released by the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType

from cos_core.errors import InputError, LockedError


class FileLock:
    """`with FileLock(path):` holds the lock file `path`; it never waits.

    The file names the holder's process id for people, is removed on release and means nothing when a killed process leaves it
    behind. A forked child does not inherit the lock. Raises LockedError when another process (or another FileLock of this one)
    holds it, InputError when the file cannot be made. `what` is named in the message instead of the lock file.
    """

    def __init__(self, path: Path, what: Path | None = None) -> None:
        self.path = Path(path)
        self._what = what or self.path
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock now."""
        return self._fd is not None

    def acquire(self) -> None:
        """Takes the lock. Raises LockedError when it is held, by this object too, InputError when its file cannot be made."""
        if self._fd is not None:
            raise LockedError(f"this process is already writing to {self._what}")
        while self._fd is None:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(fd)
                os.close(fd)
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise InputError(f"{self.path} cannot be locked: {error.strerror}; use a local disk") from None
                raise LockedError(f"another process{holder} is writing to {self._what}; wait for it or stop it") from None
            # The last holder may have removed the file between our open and our flock: then we hold a file nobody can see.
            if is_current(fd, self.path):
                self._fd = fd
            else:
                os.close(fd)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        _HELD.add(self)

    def release(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        _HELD.discard(self)
        if is_current(fd, self.path):
            self.path.unlink(missing_ok=True)
        os.close(fd)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputError(f"{self._what} cannot be locked for writing: {error.strerror}") from None

    def _after_fork(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()
"""The locks of this process that are held."""


def _forget_all() -> None:
    """In a forked child: closes its copies of the descriptors. A worker that outlives its parent would keep the locks."""
    for lock in list(_HELD):
        lock._after_fork()
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_all)


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return f" (id {text})" if text.isdigit() else ""


def is_current(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
