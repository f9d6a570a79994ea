"""One big JSON list or object, read element by element, and files of records in any mixture of lists and lines: never more than
a few MiB of a file are in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from cos_core.errors import InputError
from cos_core.files.data_files import open_data
from cos_core.files.json_window import CHUNK, SHOWN, TOO_LONG, UnusableError, Window
from cos_core.files.jsonl import MAX_RECORD_BYTES, OnProblem, Place, Problem, decode_finite, kind_of, open_input, report, why
from cos_core.files.text import one_line

Placed = tuple[Place, dict[str, Any]]

_PIECE = 2**16


def read_json_list(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number from 1, index from 0, object) of each element of a file that is one JSON list.

    Elements are decoded one by one from a window of a few MiB, so the memory does not grow with the file. An element that is
    not an object is a Problem, and reading goes on; broken JSON is the last Problem, because no further element can be located.
    The text after the list is read as by `Records`.
    """
    records = Records(path, on_problem)
    if records.start not in ("[", ""):
        report(Problem(path, 1, None, "expected a JSON list"), on_problem)
        return
    for place, record in records:
        yield place.line, place.row, record


class Records:
    """The objects of a file, with their places: JSON Lines, JSON lists, or such documents one behind the other.

    Of a file that gzip packed, offsets count what it unpacks to.

    A value that is no object is a Problem, and so is text between documents; reading goes on after it. Broken JSON inside a
    list is the last Problem of the file, because no further element can be located. In a list each element is counted in the
    row, elsewhere each object.
    """

    def __init__(self, path: Path, on_problem: OnProblem | None = None, row: int = 0) -> None:
        """`row`: the number of the first record. Raises InputError when the file cannot be read.

        `start`: the first character that is no space, or "".
        """
        self.path, self.row = path, row
        self._on_problem = on_problem
        with open_data(path) as file:
            self.start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1].decode("latin-1")

    def __iter__(self) -> Iterator[Placed]:
        with open_data(self.path) as file:
            if self.start == "[":
                yield from self._documents(Window(file))
                return
            place = yield from self._lines(file)
            if place is not None:
                file.seek(place.offset)
                yield from self._documents(Window(file, place.line, place.offset))

    def _problem(self, line: int, reason: str) -> None:
        report(Problem(self.path, line, None, reason), self._on_problem)

    def _lines(self, file: BinaryIO) -> Generator[Placed, None, Place | None]:
        """Records that stand on a line each. Returns where a line begins that is no record alone, or None at the end."""
        number = end = 0
        while line := file.readline(_PIECE):
            number += 1
            if len(line) == _PIECE and line[-1:] != b"\n" and not line.startswith(b"["):
                line += file.readline(MAX_RECORD_BYTES + 1 - _PIECE)
            start, end = end, end + len(line)
            if len(line) > MAX_RECORD_BYTES:
                self._problem(number, f"the line is {TOO_LONG}")
                end += _rest_of_line(file, line)
                continue
            text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
            if not text:
                continue
            try:
                record = None if text.startswith(b"[") else decode_finite(text)
            except ValueError as error:
                if _goes_on(text, error):
                    return Place(number, self.row, start, 0)
                self._problem(number, f"not valid JSON: {why(error)}")
                continue
            if isinstance(record, dict):
                yield Place(number, self.row, start, end - start), record
                self.row += 1
            elif text.startswith(b"["):
                return Place(number, self.row, start, 0)
            else:
                self._problem(number, f"expected a JSON object, found {kind_of(record)}")
        return None

    def _documents(self, window: Window) -> Iterator[Placed]:
        """Lists and objects one behind the other."""
        try:
            while True:
                window.skip_space()
                mark = window.peek()
                if mark == "[":
                    if not (yield from self._list(window)):
                        return
                elif mark == "{":
                    yield from self._object(window)
                elif mark:
                    self._between(window)
                else:
                    return
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None

    def _list(self, window: Window) -> Generator[Placed, None, bool]:
        """The objects of a list. Returns False after broken JSON, when nothing after it can be located."""
        window.take(1)
        window.skip_space()
        try:
            while (mark := window.peek()) != "]":
                line, start = window.line, window.offset
                try:
                    value = window.value()
                except UnusableError as error:
                    self._problem(line, f"sample {self.row}: {error}")
                else:
                    if isinstance(value, dict):
                        yield Place(line, self.row, start, window.offset - start), value
                    else:
                        self._problem(line, f"sample {self.row}: expected a JSON object, found {kind_of(value)}")
                self.row += 1
                window.skip_space()
                mark = window.peek()
                if mark == ",":
                    window.take(1)
                    line = window.line
                    window.skip_space()
                    if window.peek() == "]":
                        self._problem(line, "a ',' stands before the end of the list")
                elif mark != "]":
                    raise ValueError(f"expected ',' or ']' after a sample, found {mark!r}" if mark else "the list breaks off")
        except ValueError as error:
            reason = f"sample {self.row}: not valid JSON ({why(error)}); the samples after it cannot be read"
            self._problem(window.line, reason)
            return False
        window.take(1)
        return True

    def _object(self, window: Window) -> Iterator[Placed]:
        line, start = window.line, window.offset
        try:
            value = window.value()
        except UnusableError as error:
            self._problem(line, str(error))
        except ValueError as error:
            self._problem(line, f"not valid JSON: {why(error)}")
            window.skip_line()
        else:
            yield Place(line, self.row, start, window.offset - start), value
            self.row += 1

    def _between(self, window: Window) -> None:
        """Reports text between documents as a Problem, and skips it."""
        line = window.line
        if window.peek() == "\0":
            self._problem(line, f"{window.skip_nuls()} NUL bytes stand here")
        elif (mark := window.peek()) in ",]}":
            window.take(1)
            self._problem(line, f"{mark!r} stands outside of any list")
        else:
            self._problem(line, f"expected a JSON list or object, found {one_line(window.skip_line(), SHOWN)!r}")


def _rest_of_line(file: BinaryIO, line: bytes) -> int:
    """Passes over what is left of a line that begins with `line`; returns how many bytes that were."""
    passed = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(CHUNK)
        passed += len(line)
    return passed


def _goes_on(text: bytes, error: ValueError) -> bool:
    """Whether a line may be the beginning of an object on several, or hold more than one document."""
    if not text.startswith(b"{") or not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg == "Extra data" or error.pos >= len(text.decode("utf-8-sig"))


def read_members(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of each member of a file that is one JSON object, in its order; a key that is there twice may come twice.

    Raises InputError when the file is no JSON object, at the latest at its end.
    """
    with open_input(path) as file:
        window = Window(file)
        try:
            window.skip_space()
            if window.take(1) != "{":
                raise InputError(f"{path} is not a JSON object")
            window.skip_space()
            more = window.peek() != "}"
            while more:
                yield from window.members().items()
                window.skip_space()
                key = window.value(finite=False)
                window.skip_space()
                if not isinstance(key, str) or window.take(1) != ":":
                    raise ValueError("expected a key and ':'")
                window.skip_space()
                yield key, window.value(finite=False)
                window.skip_space()
                more = window.peek() == ","
                window.take(more)
            if window.take(1) != "}":
                raise ValueError("expected ',' or '}' after a member")
            window.skip_space()
            if window.peek():
                raise ValueError("something stands behind the object")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not valid JSON: line {window.line}: {why(error)}") from None


T = TypeVar("T", bound=msgspec.Struct)


def read_listed(path: Path, key: str, shape: type[T], mark: str) -> Iterator[T]:
    """The elements of the list under `key` of a file that is one JSON object, as records of `shape`; a few MiB at a time.

    `mark`: a field that each element has and no object within one. Raises InputError, at the latest at the end of the file,
    when it is no JSON object, has no such list, or an element is of another shape.
    """
    with open_input(path) as file:
        window, has_list = Window(file), False
        try:
            window.skip_space()
            window.expect("{", "the file is not a JSON object")
            window.skip_space()
            more = window.peek() != "}"
            while more:
                name = window.value()
                window.skip_space()
                window.expect(":", "expected a key and ':'")
                window.skip_space()
                if name == key and window.peek() == "[":
                    has_list = True
                    yield from window.elements(key, shape, mark)
                else:
                    window.value()
                window.skip_space()
                more = window.peek() == ","
                window.take(more)
                window.skip_space()
            window.expect("}", "expected ',' or '}' after a member")
            window.skip_space()
            if window.peek():
                raise ValueError("something stands behind the object")
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            where = "" if isinstance(error, msgspec.ValidationError) else f"line {window.line}: "
            raise InputError(f"{path} is not in its official layout: {where}{why(error)}") from None
    if not has_list:
        raise InputError(f"{path} is not in its official layout: it has no list {key!r}")
