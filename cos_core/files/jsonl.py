"""JSON and JSON Lines: decoding, and a reader that reports the lines it cannot use by file and number.

big_json.py reads one big list or object, durable_writer.py appends to JSON Lines.
"""

from __future__ import annotations

import codecs
import json
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cos_core.errors import InputError
from cos_core.files.durable import utf8

MAX_RECORD_BYTES = 64 * 2**20
"""Longest line or list element; a longer one means a broken file."""

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
        """The file's name and the line: the problem's id in records (an example's id may be another record's, too)."""
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
"""First bytes of a file that Git LFS has not fetched."""
OnProblem = Callable[[Problem], None]


def report(problem: Problem, on_problem: OnProblem | None) -> None:
    """Calls `on_problem` with the problem; without `on_problem` raises it as an InputError."""
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


def why(error: Exception) -> str:
    """The reason of a JSON decoding error, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "the text is not UTF-8"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]


def kind_of(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")
