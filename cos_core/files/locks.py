"""A lock between processes that a dead process cannot hold: `flock` on a small file, released by the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cos_core.errors import InputError, LockedError

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST = 32
"""Bytes that a lock file holds at most: a process id."""


class FileLock:
    """`with FileLock(path):` holds the lock file `path`; it never waits.

    The file names the holder's process id for people, is removed on release and means nothing when a killed process leaves it
    behind, also one of another user: its mode is 0666 whatever the umask. A link, a folder or a
    file with other content in its place is never followed nor changed. A forked child does not inherit the lock. Raises
    LockedError when another process (or another FileLock of this one) holds it, InputError when the file cannot be made.
    `what` is named in the message instead of the lock file.
    """

    def __init__(self, path: Path, what: Path | None = None) -> None:
        self.path = Path(path)
        self._what = what or self.path
        self._fd: int | None = None
        self._folder: tuple[int, int] | None = None

    @classmethod
    def beside(cls, target: Path) -> FileLock:
        """The lock of an output file or folder: `<target>.lock` beside what the name leads to, so that its links share it."""
        real = Path(os.path.realpath(target))
        return cls(real.with_name(f"{real.name}.lock"), what=target)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock now."""
        return self._fd is not None

    def acquire(self) -> None:
        """Takes the lock. Raises LockedError when it is held, by this object too, InputError when its file cannot be made."""
        if self._fd is not None:
            raise LockedError(f"this process is already writing to {self._what}")
        while self._fd is None:
            fd, writable = self._open()
            try:
                hold(fd, self._what, self.path)
                # The last holder may have removed the file between our open and our flock: other processes lock a new file.
                if not is_current(fd, self.path):
                    os.close(fd)
                elif writable or not self._replaced():
                    self._fd = fd
                else:
                    os.close(fd)
            except BaseException:
                os.close(fd)
                raise
        if writable:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        self._folder = identity(self.path.parent)
        _HELD.add(self)

    def check_place(self) -> None:
        """Raises InputError when the lock's folder was removed or replaced since the lock was taken: its files are gone."""
        if self._fd is not None and identity(self.path.parent) != self._folder:
            raise replaced(self.path.parent)

    def release(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        _HELD.discard(self)
        if is_current(fd, self.path):
            with suppress(OSError):
                self.path.unlink()
        os.close(fd)

    def _replaced(self) -> bool:
        """Whether a lock file that we hold and may only read could be removed, for one of our own."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True

    def _open(self) -> tuple[int, bool]:
        """(descriptor, whether it can be written) of the lock file, made when it is not there."""
        while True:
            for flags in (os.O_RDWR, os.O_RDONLY):
                try:
                    fd = os.open(self.path, flags | _FLAGS)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and flags == os.O_RDWR:
                        continue
                    if error.errno == errno.ENOENT:
                        break
                    raise self._refusal(error) from None
                try:
                    self._check_ours(fd)
                except BaseException:
                    os.close(fd)
                    raise
                return fd, flags == os.O_RDWR
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._refusal(error) from None
            # Whatever the umask: after a kill another user of the folder can take the lock.
            with suppress(OSError):
                os.fchmod(fd, 0o666)
            return fd, True

    def _refusal(self, error: OSError) -> InputError:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            return self._foreign("a folder" if error.errno == errno.EISDIR else "no plain file (a link, a pipe or a device)")
        return InputError(f"{self._what} cannot be locked for writing: {error.strerror}")

    def _foreign(self, what: str) -> InputError:
        return InputError(f"{self._what} cannot be locked: {self.path} is {what} and no lock of cos; move it away")

    def _check_ours(self, fd: int) -> None:
        """Raises InputError for what is no lock file: it would be emptied and removed."""
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise self._foreign("a folder")
        if not stat.S_ISREG(status.st_mode):
            raise self._foreign("no plain file (a link, a pipe or a device)")
        # A power cut may leave NULs in place of the number.
        content = os.pread(fd, _LONGEST + 1, 0).strip(b"\0\n")
        if status.st_nlink > 1 or status.st_size > _LONGEST or not (content.isdigit() or not content):
            raise self._foreign("a file with other content")

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


def hold(fd: int, what: Path, path: Path) -> None:
    """Takes `flock` on an open file, for as long as a descriptor of it is open. Raises LockedError when it is held,
    InputError where the file system has no locks. `what` is written to, `path` is the file."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(f"{path} cannot be locked: {error.strerror}; use a local disk") from None
        raise LockedError(f"another process{_holder(fd)} is writing to {what}; wait for it or stop it") from None


def is_held(path: Path) -> bool:
    """Whether a process, this one included, holds the lock file `path` now."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(fd)
    return False


def _holder(fd: int) -> str:
    try:
        text = os.pread(fd, _LONGEST, 0).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return f" (id {text})" if text.isdigit() else ""


def identity(path: Path) -> tuple[int, int] | None:
    """(device, inode) of the file that a name leads to; None where there is none."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def replaced(what: object) -> InputError:
    """The error of a run whose output `what` was removed or replaced before the run ended."""
    return InputError(f"{what} was removed or replaced while it was written, and what was written is not there; run again")


def is_current(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    here = os.fstat(fd)
    return identity(path) == (here.st_dev, here.st_ino)
