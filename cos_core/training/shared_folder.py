"""A temporary folder that processes of one machine share: the first process fills it, the last one removes it.

Processes of one user find each other by the folder's name alone, before a process group exists and with any launcher. Each of
them holds a shared lock while it uses the folder. A folder whose processes were killed is never used again; the next process
removes it.
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
"""A file that is written when the folder is filled."""


@contextmanager
def folder(name: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """The folder `name`, filled by `fill` in one of the processes that ask for it at the same time; the others wait for it.

    Lies below the system's temporary folder (TMPDIR). Raises what `fill` raises, InputError when the place cannot be used.
    """
    root = _root()
    _remove_abandoned(root)
    place = root / name
    with _system_errors(place):
        lock = _acquired(place, fill)
    try:
        yield place
    finally:
        _release(place, lock)


def _root() -> Path:
    """A folder that only this user can write to, for this machine: TMPDIR may be shared by machines whose locks do not meet."""
    root = Path(tempfile.gettempdir()) / f"cos-{os.getuid()}-{platform.node()}"
    with _system_errors(root):
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InputError(f"{root} is not a folder that only this user can write; remove it, or name another place by TMPDIR")
    return root


def _acquired(place: Path, fill: Callable[[Path], None]) -> int:
    """The descriptor of a shared lock on the filled folder."""
    while True:
        lock = os.open(_lock_of(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _try_exclusive(lock):
                if is_current(lock, _lock_of(place)):
                    _fill_first(place, lock, fill)
            else:
                # Waits for the process that fills it.
                fcntl.flock(lock, fcntl.LOCK_SH)
            # The process that filled it may have failed or been the last to leave; then this lock file is gone, too.
            if is_current(lock, _lock_of(place)) and (place / _DONE).exists():
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _fill_first(place: Path, lock: int, fill: Callable[[Path], None]) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o700)
    try:
        fill(place)
        (place / _DONE).touch()
    except BaseException:
        _remove(place)
        raise
    # Another process may take the lock in between and fill the folder again, with the same; then this one waits for it.
    fcntl.flock(lock, fcntl.LOCK_SH)


def _release(place: Path, lock: int) -> None:
    """Removes the folder when no other process uses it, and closes the lock."""
    if _try_exclusive(lock) and is_current(lock, _lock_of(place)):
        _remove(place)
    os.close(lock)


def _remove_abandoned(root: Path) -> None:
    """Removes the folders of processes that were killed."""
    for path in root.glob("*.lock"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            _release(path.with_suffix(""), lock)


def _try_exclusive(lock: int) -> bool:
    """Takes the lock exclusively; False when another process holds it."""
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
