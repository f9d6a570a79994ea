"""What a run says while it works: lines in a log, a bar on a terminal, warnings always, and its end in one line."""

from __future__ import annotations

import io

import pytest

from cos_cli.console import LineReporter, Pace, QuietReporter, Session, clean, duration, reporting, summary
from cos_core.types import RunManifest


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
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

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


def test_clean_keeps_words_of_any_language() -> None:
    assert clean("où? 在哪里\n\t") == "où? 在哪里\n\t"
    assert clean("a\x1b[31mb\x07\u202e") == "a\ufffd[31mb\ufffd\ufffd"


def test_summary_of_a_manifest() -> None:
    manifest = RunManifest("infer", "complete", {}, "f", {"ok": 3, "failed": 0, "skipped": 0, "box_ok": 3}, seconds=61.0)
    assert summary(manifest, "x.jsonl") == "infer complete: 3 ok, 0 failed, 3 box_ok in 1 min 01 s -> x.jsonl"
