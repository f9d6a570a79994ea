"""Untrusted text: bounded reading of files, and escaping of text from data in messages and pages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files.jsonl import open_input

MAX_TEXT_BYTES = 64 * 2**20
"""A text file that is read whole (settings, question lists, hostfiles) is at most this long."""

SHOWN = 200
"""Characters of a text from data that a message shows."""

MESSAGE = 4000
"""Characters of a whole message (a note, a warning, an error) that a person is shown."""

# Characters that control a terminal or an editor, or that no output can encode: C0 and C1 controls, DEL, line and paragraph
# separators, the marks of writing direction, lone surrogates.
_OBEYED = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_UNSAFE = re.compile(f"[{_OBEYED}]")
_UNSAFE_BUT_LINES = re.compile(rf"(?![\n\t])[{_OBEYED}]")
_UNSAFE_IN_PAGES = re.compile(rf"(?![\n\t\r])[{_OBEYED}]")


class Lines(str):
    """A text of several lines, made of parts: the only one whose line ends a message or an output keeps.

    Each part is one line and is escaped, unless it is Lines itself.
    """

    def __new__(cls, parts: Iterable[object] = ()) -> Lines:
        return super().__new__(cls, "\n".join(part if isinstance(part, Lines) else escaped(part) for part in parts))

    def __getnewargs__(self) -> tuple[list[str]]:  # type: ignore[override]
        return (self.split("\n"),)


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A whole text file, UTF-8, without its byte order mark.

    Raises InputError when it is not there, is no regular file (a pipe, a device), is longer than `limit` bytes, is no UTF-8, or
    holds a NUL.
    """
    with open_input(path) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise InputError(f"{path} is larger than {limit >> 20} MiB, which no such file is")
    if b"\0" in data:
        raise InputError(f"{path} is no text: it holds NUL bytes (saved as UTF-16? save it as UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def escaped(text: object) -> str:
    """`text` on one line: line ends, other terminal controls and lone surrogates as Python's escapes."""
    return _UNSAFE.sub(_python, str(text))


def escaped_lines(text: str) -> str:
    """As `escaped`, but line ends and tabs stay."""
    return _UNSAFE_BUT_LINES.sub(_python, text)


def escaped_json(text: str) -> str:
    """An equal JSON text, with terminal controls inside its strings as \\uXXXX."""
    return _UNSAFE_BUT_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: object, limit: int = SHOWN) -> str:
    """`escaped`, cut after `limit` characters with "…" for the rest: words from data in a message, a table or a log."""
    words = str(text)
    return escaped(words if len(words) <= limit else words[: limit - 1] + "…")


def printable(text: str) -> str:
    """`text` for a page, a picture or a table, its line ends and tabs kept: U+FFFD for whatever else `escaped` escapes."""
    return _UNSAFE_IN_PAGES.sub("\ufffd", text)


def message(text: str) -> str:
    """A whole message as it is shown: Lines as they are, anything else on one line of bounded length."""
    return text if isinstance(text, Lines) else one_line(text, MESSAGE)


def words_of(error: BaseException) -> str:
    """An exception's message, escaped; see `message`."""
    argument = error.args[0] if len(error.args) == 1 else None
    return argument if isinstance(argument, Lines) else message(str(error))


def _python(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold `text`: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def first_line(error: BaseException) -> str:
    """The first line of an exception of another library, for a message."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
