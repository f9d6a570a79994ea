"""The lock between processes: exclusive, and gone with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refusals import refused

import cos_core
from cos_core.errors import LockedError
from cos_core.files import locks
from cos_core.files.locks import FileLock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}
HOLD = """
import sys, time
from pathlib import Path
from cos_core.files.locks import FileLock
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
        with refused(os.getpid(), "store", kind=LockedError):
            second.acquire()
        with refused(kind=LockedError):
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
        with refused(process.pid, kind=LockedError):
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
    with refused(tmp_path / "none" / "lock"):
        FileLock(tmp_path / "none" / "lock").acquire()


def test_locks_taken_again_and_again_leave_nothing_to_do_at_a_fork(tmp_path: Path) -> None:
    for _ in range(50):
        with FileLock(tmp_path / "lock"):
            assert len(locks._HELD) == 1
    assert not locks._HELD


@pytest.mark.parametrize("kind", ["link", "folder", "text", "hard link", "pipe"])
def test_what_is_no_lock_is_neither_followed_nor_emptied(tmp_path: Path, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.lock"
    victim.write_text("12345\n" if kind == "hard link" else "dear all")
    make = {
        "link": lambda: path.symlink_to(victim),
        "folder": path.mkdir,
        "text": lambda: path.write_text("dear all"),
        "hard link": lambda: path.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()
    before = victim.read_bytes(), path.read_bytes() if kind == "text" else b""
    with refused(path):
        FileLock(path).acquire()
    assert (victim.read_bytes(), path.read_bytes() if kind == "text" else b"") == before


def test_a_lock_is_open_to_the_group_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        with FileLock(tmp_path / "lock") as lock:
            assert lock.path.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(old)


def test_two_names_of_one_output_share_its_lock(tmp_path: Path) -> None:
    from cos_core.files.durable_writer import DurableWriter

    real = tmp_path / "answers.jsonl"
    real.write_text("{}\n")
    (tmp_path / "one").symlink_to(real)
    (tmp_path / "hard").hardlink_to(real)
    with DurableWriter(tmp_path / "one"):
        for name in ("answers.jsonl", "hard"):
            with pytest.raises(LockedError):
                DurableWriter(tmp_path / name)


def test_a_folder_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with FileLock(folder / ".lock") as lock:
        lock.check_place()
        folder.rename(tmp_path / "away")
        folder.mkdir()
        with refused(lock.path.parent):
            lock.check_place()
