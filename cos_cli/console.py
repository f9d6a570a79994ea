"""The terminal's output: messages and progress on stderr, data on stdout.

A message, and the argument of `emit`, becomes one line; only text.Lines keep their line ends. `Session` carries the
switches that every command shares; `TerminalReporter` and `LineReporter` are the two Reporters. rich is imported only for a
terminal.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from cos_core.files.text import Lines, duration, escaped, escaped_json, message
from cos_core.system.streams import behind

if TYPE_CHECKING:
    from cos_core.interfaces import Reporter
    from cos_core.types import RunManifest

LINE_EVERY_SECONDS = 15.0
"""Off a terminal (a log file, a scheduler) one progress line is written this often, and one at the end."""
DRAW_EVERY_SECONDS = 0.1

C = TypeVar("C")


@dataclass
class Session:
    """The switches of one call of `cos`, set by options and read by commands and by `main`.

    `tree`: all commands, for `cos config` and settings files.
    """

    quiet: bool = False
    traceback: bool = False
    json: bool = False
    tree: Sequence[Any] = ()


@contextmanager
def reporting(session: Session, stream: TextIO | None = None) -> Iterator[Reporter]:
    """The Reporter for `stream` (stderr): a bar on a terminal, occasional lines elsewhere, only warnings when quiet.

    Inside the block, output of libraries goes to `stream` too: stdout is for data, which commands write after the stage.
    """
    stream = stream or sys.stderr
    with redirect_stdout(stream):
        if session.quiet:
            yield QuietReporter(stream)
        elif stream.isatty() and os.environ.get("TERM") != "dumb":
            reporter = TerminalReporter(stream)
            try:
                yield reporter
            finally:
                reporter.close()
        else:
            yield LineReporter(stream)


def run_stage(session: Session, run: Callable[[C, Reporter], RunManifest], config: C, out: object) -> RunManifest:
    """Runs a stage: progress and a sentence at its end on stderr, the manifest on stdout where --json asks for it."""
    from cos_core.files.manifest import summary

    with reporting(session) as reporter:
        manifest = run(config, reporter)
        reporter.note(summary(manifest, out))
    if session.json:
        emit_json(manifest.to_json())
    return manifest


class QuietReporter:
    """Warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def note(self, text: str) -> None: ...

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None: ...

    def warn(self, text: str) -> None:
        _write(self.stream, f"warning: {message(text)}")


class LineReporter:
    """Plain lines, for logs: each note and warning at once, progress every LINE_EVERY_SECONDS and when a stage is done."""

    def __init__(self, stream: TextIO, every: float = LINE_EVERY_SECONDS) -> None:
        self.stream = stream
        self.every = every
        self._pace = Pace()
        self._written = 0.0

    def note(self, text: str) -> None:
        _write(self.stream, message(text))

    def warn(self, text: str) -> None:
        _write(self.stream, f"warning: {message(text)}")

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        now = time.monotonic()
        if self._pace.update(stage, done, now):
            self._written = now
        finished = total is not None and done >= total
        if not finished and now - self._written < self.every:
            return
        self._written = now
        _write(self.stream, escaped(self._pace.line(done, total, detail)))
        if finished:
            # A later call with the same numbers starts a new pace instead of repeating the line.
            self._pace = Pace()


class Pace:
    """The speed of one stage, without the items that an earlier, interrupted run did."""

    def __init__(self) -> None:
        self.stage = ""
        self._first = (0, 0.0)
        self._last = (0, 0.0)

    def update(self, stage: str, done: int, now: float) -> bool:
        """Records the count `done` at the time `now` (seconds). Returns whether a new stage began."""
        began = stage != self.stage or done < self._last[0]
        if began:
            self.stage, self._first = stage, (done, now)
        self._last = (done, now)
        return began

    def rate(self) -> float:
        """Items per second since the stage's first update; 0 when unknown."""
        seconds = self._last[1] - self._first[1]
        return (self._last[0] - self._first[0]) / seconds if seconds > 0 else 0.0

    def line(self, done: int, total: int | None, detail: str) -> str:
        parts = [f"{self.stage} {done}/{total}" if total is not None else f"{self.stage} {done}"]
        rate = self.rate()
        if rate > 0:
            parts.append(f"{rate:.3g}/s")
            if total is not None and done < total:
                parts.append(f"{duration((total - done) / rate)} left")
        return ", ".join([*parts, detail] if detail else parts)


class TerminalReporter:
    """A rich progress bar per stage on stderr, with notes and warnings above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(file=behind(stream), highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._pace = Pace()
        self._task: Any = None
        self._drawn = 0.0

    def note(self, text: str) -> None:
        self._console.print(message(text), markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {message(text)}", markup=False, style="yellow")

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        now = time.monotonic()
        began = self._pace.update(stage, done, now)
        finished = total is not None and done >= total
        if not (began or finished) and now - self._drawn < DRAW_EVERY_SECONDS:
            return
        self._drawn = now
        words = escaped(self._pace.line(done, total, detail)).removeprefix(f"{escaped(stage)} ")
        if began or self._task is None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._progress.start()
            self._task = self._progress.add_task(escaped(stage), total=total, words=words)
        self._progress.update(self._task, completed=done, total=total, words=words)
        if finished:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None
            self._console.print(escaped(self._pace.line(done, total, detail)), markup=False)
            self._pace = Pace()

    def close(self) -> None:
        """Removes the bar from the screen."""
        self._progress.stop()


def emit(text: str) -> None:
    """Data on stdout, one line (several of Lines), flushed so that a closed pipe is noticed here."""
    sys.stdout.write((text if isinstance(text, Lines) else escaped(text)) + "\n")
    sys.stdout.flush()


def emit_text(text: str) -> None:
    """A shipped text (a template, a script) or JSON on stdout, unchanged."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def emit_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout; terminal controls are escaped, and everything but ASCII where stdout is not UTF-8."""
    ascii_only = (sys.stdout.encoding or "ascii").lower().replace("-", "") != "utf8"
    try:
        text = json.dumps(data, ensure_ascii=ascii_only, allow_nan=False, indent=2, default=str)
    except ValueError:
        # Undefined figures are null, as in the files.
        text = json.dumps(_finite(data), ensure_ascii=ascii_only, allow_nan=False, indent=2, default=str)
    emit_text(escaped_json(text))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(rows: Sequence[tuple[str, ...]]) -> Lines:
    """Left-aligned columns two spaces apart, a line a row."""
    shown = [tuple(map(escaped, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*shown, strict=True)]
    return Lines("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown)


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()
