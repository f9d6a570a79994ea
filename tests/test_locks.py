"""The lock between processes: exclusive, and gone with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cos_core
from cos_core import locks
from cos_core.errors import InputError, LockedError
from cos_core.locks import FileLock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}
HOLD = """
import sys, time
from pathlib import Path
from cos_core.locks import FileLock
with FileLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_exclusive_released_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path, what=tmp_path / "store")
    with first:
        assert first.held
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(LockedError, match=f"id {os.getpid()}.*store"):
            second.acquire()
        with pytest.raises(LockedError, match="already"):
            first.acquire()
    assert not first.held
    assert not path.exists()
    with second:
        assert second.held
    second.release()


def test_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), FileLock(tmp_path / "lock"):
        raise ValueError("inside")
    with FileLock(tmp_path / "lock"):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"id {process.pid}"):
            FileLock(path).acquire()
        process.send_signal(signal.SIGKILL)
    assert path.exists(), "the file stays, and means nothing"
    with FileLock(path) as lock:
        assert lock.held


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        lock.release()
        with FileLock(path) as again:
            assert again.held
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_removed_file_is_not_mistaken_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path):
        path.unlink()
        with FileLock(path) as newer:
            assert newer.held
        assert not path.exists()
    assert not path.exists()


def test_no_place_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be locked"):
        FileLock(tmp_path / "none" / "lock").acquire()


def test_locks_taken_again_and_again_leave_nothing_to_do_at_a_fork(tmp_path: Path) -> None:
    for _ in range(50):
        with FileLock(tmp_path / "lock"):
            assert len(locks._HELD) == 1
    assert not locks._HELD
