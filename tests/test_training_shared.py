"""The folder that processes share: filled once, removed by the last one, and never taken over from the dead."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from cos_core.errors import InputError
from cos_core.training import shared_folder


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"cos-{os.getuid()}-{platform.node()}"


def use(started: Any, go: Any, results: Any, seconds: float = 0.3) -> None:
    """Uses the folder until it is told to go, and says who filled it."""

    def fill(place: Path) -> None:
        time.sleep(seconds)
        (place / "who").write_text(str(os.getpid()))

    with shared_folder.folder("x", fill) as place:
        results.put((os.getpid(), int((place / "who").read_text())))
        started.release()
        go.wait()
        assert (place / "who").exists(), "it stays while anybody uses it"


def processes(count: int) -> tuple[list[Any], Any, Any, Any]:
    context = multiprocessing.get_context("fork")
    started, go, results = context.Semaphore(0), context.Event(), context.Queue()
    made = [context.Process(target=use, args=(started, go, results)) for _ in range(count)]
    for process in made:
        process.start()
    for _ in made:
        assert started.acquire(timeout=7200)
    return made, go, results, context


def test_one_of_many_fills_it_and_the_last_removes_it(own_root: Path) -> None:
    made, go, results, _ = processes(5)
    told = [results.get(timeout=7200) for _ in made]
    assert len({filler for _, filler in told}) == 1
    assert told[0][1] in {process for process, _ in told}
    assert stat.S_IMODE(own_root.stat().st_mode) == 0o700
    go.set()
    for process in made:
        process.join(7200)
        assert process.exitcode == 0
    assert list(own_root.iterdir()) == []


def test_a_child_that_lives_on_does_not_hold_it(own_root: Path) -> None:
    with shared_folder.folder("x", lambda place: (place / "a").touch()):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
    assert list(own_root.iterdir()) == []
    child.kill()
    child.join()


def test_what_the_killed_left_is_removed_and_not_used(own_root: Path) -> None:
    made, _, results, _ = processes(2)
    dead = {results.get(timeout=7200)[1] for _ in made}
    for process in made:
        os.kill(process.pid, signal.SIGKILL)
        process.join(7200)
    assert (own_root / "x" / "who").exists()
    with shared_folder.folder("y", lambda place: None):
        assert sorted(path.name for path in own_root.iterdir()) == ["y", "y.lock"]
    made, go, results, _ = processes(1)
    assert results.get(timeout=7200)[1] not in dead
    go.set()
    made[0].join(7200)


def test_when_filling_fails_the_next_one_tries(own_root: Path) -> None:
    def fail(_place: Path) -> None:
        raise InputError("no data")

    with pytest.raises(InputError, match="no data"), shared_folder.folder("x", fail):
        pytest.fail("there is nothing to use")
    assert list(own_root.iterdir()) == []
    with shared_folder.folder("x", lambda place: (place / "a").touch()) as place:
        assert (place / "a").exists()


def test_a_place_that_others_can_write_is_refused(own_root: Path) -> None:
    own_root.mkdir(mode=0o700)
    own_root.chmod(0o777)
    with pytest.raises(InputError, match="TMPDIR"), shared_folder.folder("x", lambda place: None):
        pytest.fail("anybody could have put a table there")
    own_root.rmdir()
    own_root.symlink_to(own_root.parent)
    with pytest.raises(InputError, match="TMPDIR"), shared_folder.folder("x", lambda place: None):
        pytest.fail("a link may lead anywhere")
