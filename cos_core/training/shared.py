"""A temporary folder that processes of one machine share: the first to come fills it, the last to go removes it.

Processes of one user find each other by the folder's name alone, before a process group exists and whatever launched them. A
lock that each of them holds says whether anybody is left: a folder whose users were killed is never used again, and the next
process that comes here removes it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files.locks import is_current

_DONE = "done"
"""A file that is made when the folder is filled."""


@contextmanager
def folder(name: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """The folder `name`, filled by `fill` in one of the processes that ask for it at the same time; the others wait for it.

    Lies below the system's temporary folder (TMPDIR). Raises what `fill` raises, InputError when the place cannot be used.
    """
    root = _root()
    _sweep(root)
    place = root / name
    with _system_errors(place):
        lock = _joined(place, fill)
    try:
        yield place
    finally:
        _left(place, lock)


def _root() -> Path:
    """A folder of this user's own, which nobody else can put anything into.

    Of this machine's own, too: TMPDIR may lie on a file system of several, where a lock need not reach the others.
    """
    root = Path(tempfile.gettempdir()) / f"cos-{os.getuid()}-{platform.node()}"
    with _system_errors(root):
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(f"{root} is not a folder that only this user can write; remove it, or name another place by TMPDIR")
    return root


def _joined(place: Path, fill: Callable[[Path], None]) -> int:
    """The descriptor of a lock held together with all others that use the filled folder."""
    while True:
        lock = os.open(_lock_of(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _alone(lock):
                if is_current(lock, _lock_of(place)):
                    _filled(place, lock, fill)
            else:
                # Waits for the process that fills it.
                fcntl.flock(lock, fcntl.LOCK_SH)
            # Whoever was to fill it may have failed, or been the last to go: then this lock file is gone, too.
            if is_current(lock, _lock_of(place)) and (place / _DONE).exists():
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _filled(place: Path, lock: int, fill: Callable[[Path], None]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        fill(place)
        (place / _DONE).touch()
    except BaseException:
        _remove(place)
        raise
    # Another process may come between the two locks and fill it anew, with the same; then this one waits for it.
    fcntl.flock(lock, fcntl.LOCK_SH)


def _left(place: Path, lock: int) -> None:
    """Removes the folder when nobody else uses it."""
    if _alone(lock) and is_current(lock, _lock_of(place)):
        _remove(place)
    os.close(lock)


def _sweep(root: Path) -> None:
    """Removes what killed processes left behind."""
    for path in root.glob("*.lock"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            _left(path.with_suffix(""), lock)


def _alone(lock: int) -> bool:
    """Takes the lock for this process alone, if no other holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    _lock_of(place).unlink(missing_ok=True)


def _lock_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.lock")


@contextmanager
def _system_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{place} cannot be used: {error.strerror}; TMPDIR names another place") from None
