"""How `cos train` hands its command line to DeepSpeed's launcher, and how a stop reaches its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cos_cli import launcher


def test_each_process_gets_the_command_without_the_launchers_words() -> None:
    given = ["train", "--data", "d", "--processes", "8", "--hostfile=h", "--deepspeed", "zero3", "--check", "full"]
    assert launcher._arguments(given) == ["train", "--data", "d", "--deepspeed", "zero3", "--check", "full", "--check", "off"]


def test_a_process_under_a_launcher_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert launcher.wanted(2, None)
    assert launcher.wanted(None, Path("hosts"))
    assert not launcher.wanted(None, None)
    monkeypatch.setenv("RANK", "0")
    assert not launcher.wanted(2, None)


def test_a_signal_becomes_a_stop_file_and_the_code_is_kept(tmp_path: Path) -> None:
    """The child stands for the launcher: it waits for the file and then fails as an interrupted run does."""
    stop = tmp_path / "out" / ".stop"
    child = (
        "import os, pathlib, signal, sys, time\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        f"while not pathlib.Path({str(stop)!r}).exists(): time.sleep(0.02)\n"
        "sys.exit(130)"
    )
    runner = (
        "import sys; from pathlib import Path; from cos_cli import launcher\n"
        f"print(launcher._wait([sys.executable, '-c', {child!r}], {{}}, Path({str(stop)!r})), flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", runner], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "(130, True)"
    assert stop.exists()


def test_a_failing_process_gives_its_code(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    environment = dict(os.environ)
    start = time.monotonic()
    assert launcher._wait([sys.executable, "-c", "raise SystemExit(3)"], environment, tmp_path / ".stop") == (3, False)
    assert time.monotonic() - start < 60
    assert signal.getsignal(signal.SIGTERM) is before
