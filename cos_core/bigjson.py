"""One big JSON list or object, read element by element, and files of records in any mixture of lists and lines: never more than
a few MiB of a file are in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from cos_core.errors import InputError
from cos_core.jsonl import (
    MAX_RECORD_BYTES,
    FiniteNumbers,
    OnProblem,
    Place,
    Problem,
    decode,
    decode_finite,
    kind_of,
    open_input,
    report,
    why,
)
from cos_core.text import one_line

Placed = tuple[Place, dict[str, Any]]

_CHUNK = 4 * 2**20
_BEGINNINGS = 64
"""Objects that are tried from the end of a piece on for the one that begins an element."""
_PIECE = 2**16
_SPACE = re.compile(r"[ \t\r\n]*")
_NULS = re.compile(r"\0+")
_IN_VALUE = re.compile(r'"|[\[{]+|[\]}]+')
_IN_STRING = re.compile(r'["\\]')
_SHOWN = 40
"""Characters that are shown of what stands where no record can."""
_TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


def read_json_list(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number from 1, index from 0, object) of each element of a file that is one JSON list.

    Elements are decoded one by one from a window of a few MiB, so the memory does not grow with the file. An element that is
    not an object is a Problem and the rest goes on; after broken JSON nothing more can be told apart, so that Problem is last.
    What stands behind the list is read as `Records` reads it.
    """
    records = Records(path, on_problem)
    if records.start not in ("[", ""):
        report(Problem(path, 1, None, "expected a JSON list"), on_problem)
        return
    for place, record in records:
        yield place.line, place.row, record


class Records:
    """The objects of a file, with their places: JSON Lines, JSON lists, or such documents one behind the other.

    What is no object is a Problem, and so is what stands between documents and is neither list nor object; reading goes on
    behind it. Only inside a list nothing can be told apart after broken JSON: that Problem is the last of the file. In a list
    each element is counted in the row, elsewhere each object.
    """

    def __init__(self, path: Path, on_problem: OnProblem | None = None, row: int = 0) -> None:
        """`row`: the number of the first record. Raises InputError when the file cannot be read.

        `start`: the first character that is no space, or "".
        """
        self.path, self.row = path, row
        self._on_problem = on_problem
        with open_input(path) as file:
            self.start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1].decode("latin-1")

    def __iter__(self) -> Iterator[Placed]:
        with open_input(self.path) as file:
            if self.start == "[":
                yield from self._documents(_Window(file))
                return
            place = yield from self._lines(file)
            if place is not None:
                file.seek(place.offset)
                yield from self._documents(_Window(file, place.line, place.offset))

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
                self._problem(number, f"the line is {_TOO_LONG}")
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

    def _documents(self, window: _Window) -> Iterator[Placed]:
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

    def _list(self, window: _Window) -> Generator[Placed, None, bool]:
        """The objects of a list. Returns False when nothing behind them can be told apart."""
        window.take(1)
        window.skip_space()
        try:
            while (mark := window.peek()) != "]":
                line, start = window.line, window.offset
                try:
                    value = window.value()
                except _UnusableError as error:
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

    def _object(self, window: _Window) -> Iterator[Placed]:
        line, start = window.line, window.offset
        try:
            value = window.value()
        except _UnusableError as error:
            self._problem(line, str(error))
        except ValueError as error:
            self._problem(line, f"not valid JSON: {why(error)}")
            window.skip_line()
        else:
            yield Place(line, self.row, start, window.offset - start), value
            self.row += 1

    def _between(self, window: _Window) -> None:
        """Names what stands where a list or an object should begin, and passes it over."""
        line = window.line
        if window.peek() == "\0":
            self._problem(line, f"{window.skip_nuls()} NUL bytes stand here")
        elif (mark := window.peek()) in ",]}":
            window.take(1)
            self._problem(line, f"{mark!r} stands outside of any list")
        else:
            self._problem(line, f"expected a JSON list or object, found {one_line(window.skip_line(), _SHOWN)!r}")


class _UnusableError(ValueError):
    """One value cannot be used; the window stands behind it."""


def _rest_of_line(file: BinaryIO, line: bytes) -> int:
    """Passes over what is left of a line that begins with `line`; returns how many bytes that were."""
    passed = 0
    while line and not line.endswith(b"\n"):
        line = file.readline(_CHUNK)
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
        window = _Window(file)
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
        window, found = _Window(file), False
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
                    found = True
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
    if not found:
        raise InputError(f"{path} is not in its official layout: it has no list {key!r}")


@contextmanager
def _placed(key: str, before: int) -> Iterator[None]:
    """Gives what is wrong with one of some elements its place in the whole list; `before` stand before them."""
    try:
        yield
    except msgspec.ValidationError as error:
        words = re.sub(r"\$\[(\d+)\]", lambda found: f"$.{key}[{before + int(found[1])}]", str(error).replace("`", ""))
        raise msgspec.ValidationError(words) from None


class _Window:
    """A sliding piece of a UTF-8 text file, with the line and the byte it starts on.

    Bytes that are no UTF-8 stand in it as lone surrogates, so that they cost only the value that they stand in.
    """

    def __init__(self, file: BinaryIO, line: int = 1, offset: int = 0) -> None:
        """`file` stands at the beginning of `line`, `offset` bytes from its own."""
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._numbers = FiniteNumbers()
        self._scan = self._numbers.decoder.raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._indivisible = False
        self.line, self.offset = line, offset
        if offset == 0 and file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            self.offset = len(codecs.BOM_UTF8)
        file.seek(self.offset)

    def _more(self, at_least: int = 0) -> bool:
        """Reads on and drops what is behind. Asking for as much as is unread keeps the rescans of a long sample few."""
        if self._ended:
            return False
        data = self._file.read(max(_CHUNK, at_least))
        if not data:
            # Nothing is moved at the end of the file: the caller's places in the text stay valid.
            self._ended = True
            self._text += self._decode(b"", final=True)
            return False
        self._text = self._text[self._at :] + self._decode(data)
        self._at = 0
        self._indivisible = False
        return True

    def _advance(self, end: int) -> str:
        piece = self._text[self._at : end]
        self.line += piece.count("\n")
        self.offset += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogateescape"))
        self._at = end
        return piece

    def peek(self) -> str:
        while self._at >= len(self._text) and self._more():
            pass
        return self._text[self._at : self._at + 1]

    def take(self, count: int) -> str:
        self.peek()
        return self._advance(self._at + count)

    def skip_space(self) -> None:
        while (mark := self.peek()) and mark in " \t\r\n":
            self._advance(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]

    def skip_nuls(self) -> int:
        """Passes over NULs; returns how many there were."""
        start = self.offset
        while self.peek() == "\0":
            self._advance(_NULS.match(self._text, self._at).end())  # type: ignore[union-attr]
        return self.offset - start

    def skip_line(self) -> str:
        """Passes over the rest of the line; returns its beginning."""
        first = ""
        while self.peek():
            end = self._text.find("\n", self._at)
            piece = self._advance(end if end >= 0 else len(self._text))
            first = first or piece[: 2 * _SHOWN]
            if end >= 0:
                break
        return first

    def value(self, finite: bool = True) -> Any:
        """Decodes one JSON value, reading on while the window ends inside it.

        Raises ValueError when it is broken, and _UnusableError, behind it, when it is too long, nested too deeply, is no UTF-8,
        or (with `finite`) holds a number that no float does.
        """
        while True:
            self._numbers.beyond = None
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                # An error well before the window's end is a real one, save for a string whose end has not been read yet.
                unread = len(self._text) - self._at
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                if cut_off and unread > MAX_RECORD_BYTES:
                    raise self._unusable(_TOO_LONG) from None
                if not cut_off or not self._more(unread):
                    raise
                continue
            except RecursionError:
                raise self._unusable("nested too deeply") from None
            # A number near the end of the window may go on in the next piece ("0." and then "5").
            if not isinstance(value, int | float) or len(self._text) - end >= 32 or not self._more():
                break
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                raise ValueError(f"a number is {_TOO_LONG}")
        long = end - self._at > MAX_RECORD_BYTES
        piece = self._advance(end)
        if long:
            raise _UnusableError(_TOO_LONG)
        if finite and self._numbers.beyond is not None:
            raise _UnusableError(self._numbers.beyond)
        if not (piece.isascii() or _is_unicode(piece)):
            raise _UnusableError("the text is not UTF-8")
        return value

    def _unusable(self, reason: str) -> _UnusableError:
        """Passes over a list, an object or a text by its brackets and quotes alone."""
        depth, in_string = 0, False
        while self.peek():
            match = (_IN_STRING if in_string else _IN_VALUE).search(self._text, self._at)
            if match is None:
                self._advance(len(self._text))
                continue
            marks = match[0]
            closed = min(depth, len(marks)) if marks[0] in "]}" else 0
            self._advance(match.start() + (closed or len(marks)))
            if marks == "\\":
                self.take(1)
            elif marks == '"':
                in_string = not in_string
            else:
                depth += -closed if marks[0] in "]}" else len(marks)
            if depth <= 0 and not in_string:
                break
        return _UnusableError(reason)

    def expect(self, mark: str, otherwise: str) -> None:
        if self.take(1) != mark:
            raise ValueError(otherwise)

    def elements(self, key: str, shape: type[T], mark: str) -> Iterator[T]:
        """The elements of the list `key` that the window stands at, many decoded in one go where one's beginning is found."""
        many, count = msgspec.json.Decoder(list[shape]).decode, 0  # type: ignore[valid-type]
        self.take(1)
        self.skip_space()
        if self.peek() == "]":
            self.take(1)
            return
        while True:
            cut = self._last_beginning(mark)
            if cut:
                piece = self._text[self._at : cut].rstrip(" \t\r\n").removesuffix(",")
                with _placed(key, count):
                    found = many(f"[{piece}]".encode())
                yield from found
                count += len(found)
                self._advance(cut)
                if not self._more():
                    self._indivisible = True
                continue
            with _placed(key, count):
                (one,) = msgspec.convert([self.value()], list[shape])  # type: ignore[valid-type]
            yield one
            count += 1
            self.skip_space()
            after = self.take(1)
            if after == "]":
                return
            if after != ",":
                raise ValueError("expected ',' or ']' after an element")
            self.skip_space()

    def _last_beginning(self, mark: str) -> int:
        """Where in the window the last whole element begins, behind a comma; 0 when that is not to be found."""
        if self._indivisible:
            return 0
        place = len(self._text)
        for _ in range(_BEGINNINGS):
            place = self._text.rfind("{", self._at + 1, place)
            if place < 0:
                break
            if self._text[max(self._at, place - 64) : place].rstrip(" \t\r\n")[-1:] != ",":
                continue
            try:
                element, _ = self._scan(self._text, place)
            except json.JSONDecodeError:
                continue
            if isinstance(element, dict) and mark in element:
                return place
        self._indivisible = True
        return 0

    def members(self) -> dict[str, Any]:
        """Whole members of the object that the window stands in, as many as can be decoded in one go; often none."""
        end = 0 if self._indivisible else self._text.rfind("},", self._at) + 1
        if not end:
            return {}
        try:
            # A text that begins at a member and is whole JSON ends behind one, whatever else its last brace could have been.
            found: dict[str, Any] = decode(b"{" + self._text[self._at : end].encode() + b"}")
        except ValueError:
            # Members of another shape: one by one, until the next piece of the file is read.
            self._indivisible = True
            return {}
        self._advance(end + 1)
        return found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
