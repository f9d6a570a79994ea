"""What a run says while it works: lines in a log, a bar on a terminal, warnings always, and its end in one line."""

from __future__ import annotations

import io
import json
import logging
import math
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cos_cli.console import LineReporter, Pace, QuietReporter, Session, columns, emit, emit_json, reporting
from cos_core.files.manifest import summary
from cos_core.files.text import Lines, duration
from cos_core.system.streams import Screen, guarded
from cos_core.types import RunManifest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, every=0.0)
    reporter.note("begin")
    reporter.warn("a torn picture")
    for done in (10, 11, 20):
        reporter.progress("annotate", done, 20, "2 failed")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["begin", "warning: a torn picture"]
    assert lines[2] == "annotate 10/20, 2 failed"
    assert lines[3].startswith("annotate 11/20, ")
    assert " left, 2 failed" in lines[3]
    assert lines[-1].startswith("annotate 20/20, ")


def test_lines_are_occasional() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream, every=3600.0)
    for done in range(1001):
        reporter.progress("infer", done, 1000)
    assert len(stream.getvalue().splitlines()) == 1


def test_what_libraries_print_is_not_data(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(Session()):
        print("chatter")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "chatter\n"


def test_quiet_keeps_warnings() -> None:
    stream = io.StringIO()
    with reporting(Session(quiet=True), stream) as reporter:
        reporter.note("no")
        reporter.progress("x", 1, 1)
        reporter.warn("yes")
    assert isinstance(reporter, QuietReporter)
    assert stream.getvalue() == "warning: yes\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with reporting(Session(), stream) as reporter:
        reporter.progress("infer", 0, 3)
        reporter.warn("[bold]torn[/bold]")
        for done in (1, 2, 3):
            reporter.progress("infer", done, 3, "[x]")
        reporter.progress("export", 1, None)
    said = stream.getvalue()
    assert "warning: [bold]torn[/bold]" in said
    assert "infer 3/3" in said


def test_the_rate_leaves_out_what_was_there_before() -> None:
    pace = Pace()
    assert pace.update("infer", 500, 10.0)
    assert not pace.update("infer", 510, 15.0)
    assert pace.rate() == 2.0
    assert pace.line(510, 1000, "") == "infer 510/1000, 2/s, 4 min 05 s left"
    assert pace.update("export", 0, 16.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0.0 s"), (0.2, "0.2 s"), (42.4, "42 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


HOSTILE = "a.jpg\ncos: done, all well\r\x1b[2J\x9b31m\x7f\u202e\u2028\ud800\x00"


def harmless(said: str, lines: int) -> bool:
    """So many lines, and nothing in them that a terminal obeys."""
    obeyed = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]"
    return said.count("\n") == lines and not re.search(obeyed, said)


@pytest.mark.parametrize("make", [QuietReporter, LineReporter])
def test_words_of_data_are_one_line_in_a_log(make: Callable[[io.StringIO], QuietReporter | LineReporter]) -> None:
    stream = io.StringIO()
    reporter = make(stream)
    reporter.warn(f"there is no image {HOSTILE}")
    assert harmless(stream.getvalue(), 1)
    reporter.note(HOSTILE)
    reporter.progress(HOSTILE, 1, 1, HOSTILE)
    assert harmless(stream.getvalue(), 1 if make is QuietReporter else 3)


def test_words_of_data_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with reporting(Session(), stream) as reporter:
        reporter.warn(f"[bold]{HOSTILE}")
        reporter.note(HOSTILE)
        reporter.progress(HOSTILE, 0, 2, HOSTILE)
        reporter.progress(HOSTILE, 2, 2, HOSTILE)
    assert "\x1b[2J" not in stream.getvalue()
    assert not any(line.startswith("cos: done") for line in stream.getvalue().splitlines())


def test_a_message_of_several_lines_is_made_of_lines() -> None:
    stream = io.StringIO()
    LineReporter(stream).note(Lines(["give one of", Lines(["  a", f"  {HOSTILE}"])]))
    assert harmless(stream.getvalue(), 3)
    assert pickle.loads(pickle.dumps(Lines(["a", "b\nc"]))) == "a\nb\\nc"


def test_data_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    emit(HOSTILE)
    emit(columns([("id", HOSTILE), (HOSTILE, "")]))
    assert harmless(capsys.readouterr().out, 3)
    emit_json({HOSTILE: [HOSTILE, math.nan]})
    said = capsys.readouterr().out
    assert harmless(said, 6)
    assert json.loads(said) == {HOSTILE: [HOSTILE, None]}


def test_screens_let_nothing_through_that_others_write(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        print(HOSTILE)
        # pytest keeps what is logged, and could not send half a character to its other processes.
        logging.getLogger("some.library").warning(HOSTILE.encode("utf-8", "ignore").decode())
        sys.stderr.writelines([HOSTILE, "\tand a tab\n"])
        with guarded():
            print("once more", file=sys.stderr)
    out, err = capsys.readouterr()
    assert harmless(out, 2)
    assert "\\x1b[2J" in err
    assert harmless(err.replace("\t", ""), err.count("\n"))
    assert not isinstance(sys.stdout, Screen)


def test_a_bar_of_a_library_moves_on_a_terminal_only() -> None:
    for stream, moves in ((Terminal(), True), (io.StringIO(), False)):
        screen = Screen(stream)
        for text in ("\r 40% of a\rb", "\x1b[A\x1b[A", "\x1b[A\x1b[2J"):
            screen.write(text)
        assert ("\r 40%" in stream.getvalue(), stream.getvalue().count("\x1b[A")) == ((True, 2) if moves else (False, 0))
        assert "\x1b[2J" not in stream.getvalue()
        assert stream.getvalue().count("\r") == int(moves)


def test_a_full_disk_under_the_log_does_not_end_the_work() -> None:
    with Path("/dev/full").open("w") as full:
        log = Screen(full, expendable=True)
        log.write("words\n")
        log.flush()
        log.write("more\n")
        log.flush()
    with pytest.raises(OSError, match="space"):
        Screen(io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)).write("data\n")


def test_summary_of_a_manifest() -> None:
    manifest = RunManifest("infer", "complete", {}, "f", {"ok": 3, "failed": 0, "skipped": 0, "box_ok": 3}, seconds=61.0)
    assert summary(manifest, "x.jsonl") == "infer complete: 3 ok, 0 failed, 3 box_ok in 1 min 01 s -> x.jsonl"
