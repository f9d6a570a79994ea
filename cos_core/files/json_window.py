"""A sliding piece of a big JSON text: its values are decoded one by one, and never more than a few MiB of it are in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import msgspec

from cos_core.files.jsonl import MAX_RECORD_BYTES, FiniteNumbers, decode
from cos_core.files.text import is_encodable

CHUNK = 4 * 2**20
"""Bytes that are read at a time."""

SHOWN = 40
"""Most characters that a message shows of text between records."""

TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"

_BEGINNINGS = 64
"""Objects that are tried from the end of a piece on for the one that begins an element."""
_SPACE = re.compile(r"[ \t\r\n]*")
_NULS = re.compile(r"\0+")
_IN_VALUE = re.compile(r'"|[\[{]+|[\]}]+')
_IN_STRING = re.compile(r'["\\]')

T = TypeVar("T", bound=msgspec.Struct)


class UnusableError(ValueError):
    """One value cannot be used; the window is past it."""


@contextmanager
def _placed(key: str, before: int) -> Iterator[None]:
    """Numbers the element in a validation error by its place in the whole list; `before`: elements before the decoded ones."""
    try:
        yield
    except msgspec.ValidationError as error:
        words = re.sub(r"\$\[(\d+)\]", lambda match: f"$.{key}[{before + int(match[1])}]", str(error).replace("`", ""))
        raise msgspec.ValidationError(words) from None


class Window:
    """A sliding piece of a UTF-8 text file, with the line and the byte it starts on.

    Bytes that are not UTF-8 become lone surrogates, so that only the value that contains them is lost.
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
        data = self._file.read(max(CHUNK, at_least))
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
            first = first or piece[: 2 * SHOWN]
            if end >= 0:
                break
        return first

    def value(self, finite: bool = True) -> Any:
        """Decodes one JSON value, reading on while the window ends inside it.

        Raises ValueError when it is broken, and UnusableError, behind it, when it is too long, nested too deeply, is no UTF-8,
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
                    raise self._unusable(TOO_LONG) from None
                if not cut_off or not self._more(unread):
                    raise
                continue
            except RecursionError:
                raise self._unusable("nested too deeply") from None
            # A number near the end of the window may go on in the next piece ("0." and then "5").
            if not isinstance(value, int | float) or len(self._text) - end >= 32 or not self._more():
                break
            if len(self._text) - self._at > MAX_RECORD_BYTES:
                raise ValueError(f"a number is {TOO_LONG}")
        long = end - self._at > MAX_RECORD_BYTES
        piece = self._advance(end)
        if long:
            raise UnusableError(TOO_LONG)
        if finite and self._numbers.beyond is not None:
            raise UnusableError(self._numbers.beyond)
        if not (piece.isascii() or is_encodable(piece)):
            raise UnusableError("the text is not UTF-8")
        return value

    def _unusable(self, reason: str) -> UnusableError:
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
        return UnusableError(reason)

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
                    batch = many(f"[{piece}]".encode())
                yield from batch
                count += len(batch)
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
        """Whole members of the object at the window's position, as many as can be decoded in one go; often none."""
        end = 0 if self._indivisible else self._text.rfind("},", self._at) + 1
        if not end:
            return {}
        try:
            # A text that begins at a member and is whole JSON ends behind one, whatever else its last brace could have been.
            members: dict[str, Any] = decode(b"{" + self._text[self._at : end].encode() + b"}")
        except ValueError:
            # Members of another shape: one by one, until the next piece of the file is read.
            self._indivisible = True
            return {}
        self._advance(end + 1)
        return members
