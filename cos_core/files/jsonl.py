"""JSON Lines: a reader that names the line it cannot use, and a writer whose lines survive the process.

Knows nothing of what the lines mean. The reader's counterpart for one big JSON list or object is bigjson.py.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from cos_core.errors import InputError
from cos_core.files.atomic import atomic_file, check_output, sync_folder
from cos_core.files.atomic import utf8 as utf8
from cos_core.files.locks import FileLock, hold, is_current

MAX_RECORD_BYTES = 64 * 2**20
"""A line or list element longer than this is taken for a broken file, not for a record."""


_INTEGER_DIGITS = 308
"""A whole number of more digits is beyond every float."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing in a file that cannot be used: where, of which example (when known), and why."""

    path: Path
    line: int | None
    example_id: str | None
    reason: str

    @property
    def key(self) -> str:
        """The file's name and the line: under it the problem is recorded. Its example's id may be another record's, too."""
        return self.path.name if self.line is None else f"{self.path.name}:{self.line}"

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line is not None else str(self.path)
        return f"{where}: {self.reason}" + (f" (id {self.example_id!r})" if self.example_id else "")


class Place(NamedTuple):
    """Where a record stands in its file: line from 1, row from 0 among the records, offset and length in bytes."""

    line: int
    row: int
    offset: int
    length: int


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""What a file begins with that Git LFS has not fetched."""
OnProblem = Callable[[Problem], None]


def report(problem: Problem, on_problem: OnProblem | None) -> None:
    """Hands the problem over; without anybody to take it, raises it as an InputError."""
    if on_problem is None:
        raise InputError(str(problem))
    on_problem(problem)


def open_input(path: Path) -> BufferedReader:
    """The file, open for reading bytes. Raises InputError when it is not there, is no file, or may not be read.

    A pipe is refused: inputs are read more than once, and opening one waits for its writer.
    """
    try:
        kind = Path(path).stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise InputError(f"{path} cannot be read: it is not a file (a pipe cannot be read twice)")
        with ExitStack() as stack:
            file = stack.enter_context(Path(path).open("rb"))
            if file.peek(len(LFS_POINTER)).startswith(LFS_POINTER):
                raise InputError(f"{path} is a pointer of Git LFS, and the file itself is not here; 'git lfs pull' fetches it")
            stack.pop_all()
            return file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def decode(data: bytes) -> Any:
    """The value of a JSON text, as `json.loads` gives it, in a third of the time.

    What the quick reader refuses the standard library decides: it takes NaN, and says where a text goes wrong. Raises
    ValueError: not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except _REFUSED:
        return _thorough(data, json.loads)


def decode_finite(data: bytes) -> Any:
    """`decode` for a record of a data set: NaN, Infinity and numbers too large for a float are a ValueError, too."""
    try:
        return msgspec.json.decode(data)
    except _REFUSED:
        numbers = FiniteNumbers()
        value = _thorough(data, numbers.decoder.decode)
        if numbers.beyond is not None:
            raise ValueError(numbers.beyond) from None
        return value


_REFUSED = (msgspec.MsgspecError, ValueError, RecursionError)


def _thorough(data: bytes, decoder: Callable[[str], Any]) -> Any:
    try:
        # As text: given bytes, it would guess at UTF-16.
        return decoder(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("the text is not UTF-8") from None


class FiniteNumbers:
    """A JSON decoder that reads on over a number that no float holds, and the reason why what it read cannot be used.

    `beyond`: None, or that reason; to be set back to None before the next text.
    """

    def __init__(self) -> None:
        self.beyond: str | None = None
        self.decoder = json.JSONDecoder(parse_float=self._float, parse_int=self._int, parse_constant=self._constant)

    def _float(self, text: str) -> float:
        value = float(text)
        if value in (math.inf, -math.inf):
            self._note(text)
        return value

    def _int(self, text: str) -> int | float:
        if len(text) > _INTEGER_DIGITS:
            self._note(text)
            return math.inf
        return int(text)

    def _constant(self, text: str) -> float:
        self.beyond = self.beyond or f"{text} is no number that JSON has"
        return float(text)

    def _note(self, text: str) -> None:
        self.beyond = self.beyond or f"the number {text[:12]}{'...' if len(text) > 12 else ''} is beyond what can be held"


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One record as one line. Raises TypeError or ValueError for what is not JSON (NaN included).

    Half a character (a lone surrogate) is kept as JSON's escape of it, `\\ud800`, which `decode` reads.
    """
    return utf8(json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))) + b"\n"


def read_lines(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line; blank lines are passed over.

    A line that is not a JSON object (a torn last line too) is a Problem and the rest goes on; without `on_problem` the first
    one raises InputError, as does a file that cannot be opened.
    """
    for place, record in placed_lines(path, on_problem):
        yield place.line, record


def placed_lines(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """`read_lines`, with the whole place of each object; lines that hold none are not counted in its row."""
    index = 0
    for number, start, length, line in raw_lines(path, on_problem):
        record = object_of(path, number, line, on_problem)
        if record is not None:
            yield Place(number, index, start, length), record
            index += 1


def raw_lines(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[int, int, int, bytes]]:
    """(number from 1, offset, length in the file, bytes) of each line that is not blank; the first without a byte order mark.

    A line that is too long is a Problem, and the last.
    """
    with open_input(path) as file:
        number = end = 0
        while line := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            start, end = end, end + len(line)
            if len(line) > MAX_RECORD_BYTES:
                report(Problem(path, number, None, f"the line is longer than {MAX_RECORD_BYTES >> 20} MiB"), on_problem)
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, start, end - start, line


def object_of(path: Path, number: int, line: bytes, on_problem: OnProblem | None = None) -> dict[str, Any] | None:
    """The JSON object of a line; None, and a Problem, where it holds none."""
    try:
        record = decode(line)
    except ValueError as error:
        report(Problem(path, number, None, f"not valid JSON: {why(error)}"), on_problem)
        return None
    if isinstance(record, dict):
        return record
    report(Problem(path, number, None, f"expected a JSON object, found {kind_of(record)}"), on_problem)
    return None


class DurableWriter:
    """Appends records to a JSON Lines file so that nothing appended is lost.

    Each record reaches the operating system at once (a killed process loses nothing) and the disk every `batch` records and at
    the end (a power cut loses at most `batch`). A torn last line, left by an earlier power cut or full disk, is cut off on
    opening; a last line that only lacks its line end gets one, but only where every record before it passes `check`, which
    raises InputError for a record that is not of this file's kind: what another program wrote is left as it is. One writer at
    a time, whatever name of the file it goes by: raises LockedError when another live process writes it, InputError when it
    cannot be written (a full disk: what stood before stays whole), or when its name no longer leads to it at a flush.
    As a context manager that is left by an error it takes away a file that it made and wrote nothing to.
    """

    def __init__(self, path: Path, batch: int = 64, check: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        if batch < 1:
            raise InputError(f"a batch needs at least one record, got {batch}")
        self.path = Path(path)
        self.batch = batch
        self._check = check
        check_output(self.path)
        self._made = [folder for folder in (self.path.parent, *self.path.parent.parents) if not folder.exists()]
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
            # By the file itself, too: two names may be links that nobody can resolve.
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
            raise InputError(
                f"{self.path} was removed or replaced while it was written, and what was written is not there; run again"
            )

    def close(self) -> None:
        """Flushes and gives the lock back; harmless when repeated. Raises InputError as `flush`."""
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
        """Closes; a file and folders that are of our making and empty vanish."""
        if self._new and os.fstat(self._fd).st_size == 0 and is_current(self._fd, self.path):
            with suppress(OSError):
                self.path.unlink()
        self._shut()
        if self._new:
            with suppress(OSError):
                for folder in self._made:
                    folder.rmdir()

    def _after_fork(self) -> None:
        """In a forked child: its copy of the descriptor would keep the file locked when the writer is gone."""
        if self._open:
            self._open = False
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            # Half a line would be taken for a torn one; cut it off while we know where it began.
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
        """Raises InputError when the file is not one of our records, so that its end is not ours to mend."""
        torn = tail.strip(b"\0 ")[:2]
        whole = self._size - len(tail)
        odd: list[Problem] = []
        try:
            if not isinstance(record, dict) and not b'{"'.startswith(torn):
                raise InputError("its last line is no record")
            if self._check is not None:
                for place, found in placed_lines(self.path, odd.append):
                    if place.offset < whole or isinstance(record, dict):
                        self._check(found)
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


def why(error: Exception) -> str:
    """What is wrong with a JSON text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "the text is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def kind_of(value: object) -> str:
    """What a JSON value is, in a few words."""
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
