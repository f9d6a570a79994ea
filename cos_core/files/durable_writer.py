"""A writer of JSON Lines whose records survive a killed process, and a power cut but for the last batch."""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cos_core.errors import InputError
from cos_core.files.durable import atomic_file, check_output, sync_folder
from cos_core.files.jsonl import Problem, decode, encode_line, placed_lines
from cos_core.files.locks import FileLock, hold, is_current, replaced


class DurableWriter:
    """Appends records to a JSON Lines file.

    Each record reaches the operating system at once (a killed process loses nothing) and the disk every `batch` records and at
    the end (a power cut loses at most `batch`). On opening, a torn last line is cut off, and a last line without line end gets
    one, if every record before it passes `check`, which raises InputError for a record of another kind: a file of another
    program stays as it is. One writer at a time, under any name of the file. Raises LockedError when another live process
    writes it, InputError when it cannot be written (after a full disk the earlier records are whole), or when it was removed
    or replaced before a flush. An error inside the `with` block removes a file that was new and is empty.
    """

    def __init__(self, path: Path, batch: int = 64, check: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        if batch < 1:
            raise InputError(f"a batch needs at least one record, got {batch}")
        self.path = Path(path)
        self.batch = batch
        self._check = check
        check_output(self.path)
        self._new_folders = [folder for folder in (self.path.parent, *self.path.parent.parents) if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path.parent} cannot be made: {error.strerror}") from None
        self._new = not self.path.exists()
        self._lock = FileLock.beside(self.path)
        self._lock.acquire()
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            self._lock.release()
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
        self._open = True
        self._size = 0
        self._pending = 0
        _WRITERS.add(self)
        try:
            # The file itself is locked, too: two names may be links that cannot be resolved.
            hold(self._fd, self.path, self.path)
            self._repair()
        except OSError as error:
            self._shut()
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
        except BaseException:
            self._discard()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record as one line. Raises InputError when it is not JSON (NaN included) or the disk refuses it."""
        if not self._open:
            raise InputError(f"{self.path} is already closed for writing")
        try:
            line = encode_line(record)
        except (TypeError, ValueError) as error:
            raise InputError(f"a record for {self.path} cannot be written as JSON: {error}") from None
        self._write(line)
        self._pending += 1
        if self._pending >= self.batch:
            self.flush()

    def flush(self) -> None:
        """Waits until everything appended is on the disk. Raises InputError when the disk refuses, or when the file was removed
        or replaced meanwhile."""
        if self._pending:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
            self._check_place()
            self._pending = 0

    def keep(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Replaces the file by these lines of its own, (offset, length in bytes), in this order, in one step."""
        self.flush()
        with atomic_file(self.path) as file:
            with suppress(OSError):
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._fd).st_mode))
            for offset, length in pieces:
                line = os.pread(self._fd, length, offset)
                file.write(line if line.endswith(b"\n") else line + b"\n")
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.close(self._fd)
        self._fd = fd
        hold(self._fd, self.path, self.path)
        self._size = os.fstat(self._fd).st_size

    def _check_place(self) -> None:
        if not is_current(self._fd, self.path):
            raise replaced(self.path)

    def close(self) -> None:
        """Flushes and releases the lock; a second call does nothing. Raises InputError as `flush`."""
        if self._open:
            try:
                self.flush()
                self._check_place()
            finally:
                self._shut()

    def _shut(self) -> None:
        self._open = False
        _WRITERS.discard(self)
        os.close(self._fd)
        self._lock.release()

    def _discard(self) -> None:
        """Closes, and removes a file and folders that this writer made and that are empty."""
        if self._new and os.fstat(self._fd).st_size == 0 and is_current(self._fd, self.path):
            with suppress(OSError):
                self.path.unlink()
        self._shut()
        if self._new:
            with suppress(OSError):
                for folder in self._new_folders:
                    folder.rmdir()

    def _after_fork(self) -> None:
        """In a forked child: closes its copy of the descriptor, which would keep the file locked after the writer's end."""
        if self._open:
            self._open = False
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            # Cut off half a line while its beginning is known; a later run would take it for a torn record.
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise InputError(f"{self.path} cannot be written: {error.strerror}; free the disk and run again") from None
        self._size += len(data)

    def _repair(self) -> None:
        self._size = os.fstat(self._fd).st_size
        if self._size == 0:
            sync_folder(self.path.parent)
            return
        tail = self._last_line()
        if tail.endswith(b"\n"):
            return
        try:
            record = decode(tail)
        except ValueError:
            record = None
        self._refuse_foreign(tail, record)
        if isinstance(record, dict):
            self._write(b"\n")
        else:
            self._size -= len(tail)
            os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)

    def _refuse_foreign(self, tail: bytes, record: Any) -> None:
        """Raises InputError when the file holds records of another program; its end is then not repaired."""
        torn = tail.strip(b"\0 ")[:2]
        whole = self._size - len(tail)
        odd: list[Problem] = []
        try:
            if not isinstance(record, dict) and not b'{"'.startswith(torn):
                raise InputError("its last line is no record")
            if self._check is not None:
                for place, row in placed_lines(self.path, odd.append):
                    if place.offset < whole or isinstance(record, dict):
                        self._check(row)
                if len(odd) > (not isinstance(record, dict)):
                    raise InputError(str(odd[0]))
        except InputError as error:
            raise InputError(f"{self.path} was not written by this command and is left as it is: {error}") from None

    def _last_line(self) -> bytes:
        tail, start = b"", self._size
        while start > 0:
            step = min(start, 65536)
            start -= step
            tail = os.pread(self._fd, step, start) + tail
            cut = tail.rfind(b"\n", 0, len(tail) - 1)
            if cut >= 0:
                return tail[cut + 1 :]
        return tail

    def __enter__(self) -> DurableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and self._open and self._pending == 0 and self._new and self._size == 0:
            self._discard()
        elif error is None:
            self.close()
        elif self._open:
            try:
                self.flush()
            finally:
                self._shut()


_WRITERS: weakref.WeakSet[DurableWriter] = weakref.WeakSet()


def _forget_writers() -> None:
    for writer in list(_WRITERS):
        writer._after_fork()
    _WRITERS.clear()


os.register_at_fork(after_in_child=_forget_writers)
