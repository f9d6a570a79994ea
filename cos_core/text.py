"""Text that comes from outside: files are read within a bound, and words from data are shown so that they can do no harm."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from cos_core.errors import InputError
from cos_core.jsonl import open_input

MAX_TEXT_BYTES = 64 * 2**20
"""A text file that is read whole (settings, question lists, hostfiles) and is longer than this is taken for something else."""

SHOWN = 200
"""Characters of a text from data that a message shows."""

_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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


def one_line(text: object, limit: int = SHOWN) -> str:
    """`text` on one line for a message, a table or a log: line ends, controls, bidirectional marks and lone surrogates escaped
    as Python writes them, and cut after `limit` characters with "…" for the rest."""
    words = str(text)
    cut = words if len(words) <= limit else words[: limit - 1] + "…"
    return cut if cut.isascii() and cut.isprintable() else "".join(map(_shown, cut))


def _shown(character: str) -> str:
    harmless = unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp", "Cn") and character not in _BIDIRECTIONAL
    return character if harmless else character.encode("unicode_escape").decode("ascii")
