"""stdout and stderr with control characters escaped, also those in the output of libraries.

text.message makes one line of a message; this module is the last place before a terminal and escapes every control.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from cos_core.files.text import escaped_lines

_BAR = re.compile(r"\r|(?:\x1b\[A)+$")


class Screen:
    """A wrapper of a text stream that escapes controls but for line ends and tabs; the rest is the wrapped stream's.

    On a terminal a bar that a library draws may begin with a carriage return, or be a move upwards and nothing else.
    `expendable`: what cannot be written (a full disk under a log, a closed terminal) is lost, and the work goes on.
    """

    def __init__(self, stream: TextIO, *, expendable: bool = False) -> None:
        self.behind = stream
        self._expendable = expendable
        self._terminal = stream.isatty()

    def write(self, text: str) -> int:
        with self._losing():
            drawn = _BAR.match(text) if self._terminal else None
            movement = drawn[0] if drawn else ""
            self.behind.write(movement + escaped_lines(text[len(movement) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._losing():
            self.behind.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self._expendable:
                raise
            # What is still buffered would be tried again when the process ends, and spoil its exit code.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.behind.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


@contextmanager
def guarded() -> Iterator[None]:
    """stdout and stderr as Screens while it lasts; words on stderr are expendable, data on stdout is not."""
    before = sys.stdout, sys.stderr
    guard()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def guard() -> None:
    """stdout and stderr as Screens until the process ends."""
    sys.stdout = _screen(sys.stdout, expendable=False)
    sys.stderr = _screen(sys.stderr, expendable=True)


def _screen(stream: Any, *, expendable: bool) -> Any:
    return stream if isinstance(stream, Screen) else Screen(stream, expendable=expendable)


def behind(stream: TextIO) -> TextIO:
    """The stream itself, for a writer whose own controls are meant (a bar, a picture in colours) and who escapes words."""
    return stream.behind if isinstance(stream, Screen) else stream
