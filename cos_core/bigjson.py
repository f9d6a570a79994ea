"""One big JSON list or object, read element by element: never more than a few MiB of it are in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cos_core.errors import InputError
from cos_core.jsonl import MAX_RECORD_BYTES, OnProblem, Place, Problem, decode, kind_of, open_input, report, why

_CHUNK = 4 * 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_list(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(line number from 1, index from 0, object) of each element of a file that is one JSON list.

    Elements are decoded one by one from a window of a few MiB, so the memory does not grow with the file. An element that is
    not an object is a Problem and the rest goes on; after broken JSON nothing more can be told apart, so that Problem is last.
    """
    for place, record in placed_elements(path, on_problem):
        yield place.line, place.row, record


def placed_elements(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """`read_json_list`, with the whole place of each object; every element is counted in its row."""
    with open_input(path) as file:
        window = _Window(file)
        index = 0
        try:
            window.skip_space()
            if window.take(1) != "[":
                report(Problem(path, window.line, None, "expected a JSON list"), on_problem)
                return
            window.skip_space()
            if window.peek() == "]":
                return
            while True:
                line, start = window.line, window.offset
                value = window.value()
                if isinstance(value, dict):
                    yield Place(line, index, start, window.offset - start), value
                else:
                    reason = f"sample {index}: expected a JSON object, found {kind_of(value)}"
                    report(Problem(path, line, None, reason), on_problem)
                index += 1
                window.skip_space()
                mark = window.take(1)
                if mark == "]":
                    return
                if mark != ",":
                    raise ValueError(f"expected ',' or ']' after a sample, found {mark!r}" if mark else "the list breaks off")
                window.skip_space()
        except (ValueError, RecursionError) as error:
            reason = f"sample {index}: not valid JSON ({why(error)}); the samples after it cannot be read"
            report(Problem(path, window.line, None, reason), on_problem)


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
                key = window.value()
                window.skip_space()
                if not isinstance(key, str) or window.take(1) != ":":
                    raise ValueError("expected a key and ':'")
                window.skip_space()
                yield key, window.value()
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


class _Window:
    """A sliding piece of a UTF-8 text file, with the line and the byte it starts on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._indivisible = False
        self.line = 1
        self.offset = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
        file.seek(0)

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
        self.offset += len(piece) if piece.isascii() else len(piece.encode())
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

    def value(self) -> Any:
        """Decodes one JSON value, reading on while the window ends inside it. Raises ValueError when it is broken."""
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                # An error well before the window's end is a real one, save for a string whose end has not been read yet.
                unread = len(self._text) - self._at
                cut_off = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                if not cut_off or unread > MAX_RECORD_BYTES or not self._more(unread):
                    raise
                continue
            # A number near the end of the window may go on in the next piece ("0." and then "5").
            if not isinstance(value, int | float) or len(self._text) - end >= 32 or not self._more():
                self._advance(end)
                return value

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
