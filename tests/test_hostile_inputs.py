"""Every bad input of tests/bad: the exit code, one sentence that names the file, nothing written or read elsewhere.

Then what needs a process of its own: streams that are closed or full, locales, no HOME, a folder that vanished, Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from bad import cases, recorded
from bad.run import Outcome, call, warm
from bad.world import Case, World, lines, make_world

from cos_cli import main

CASES = cases()
RECORDED = {(row.family, row.name): row for row in recorded.read(recorded.INPUTS, recorded.InputRow)}
DOCUMENTED = {0, 2, 3, 4, 5, 6, 75, 130, 141}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("bad") / "world")


@pytest.fixture(scope="module", autouse=True)
def _unharmed(world: World) -> object:
    """What the cases share is at the end what it was at the beginning."""
    before = everything(world.root)
    yield
    assert everything(world.root) == before


def everything(root: Path) -> dict[str, bytes | None]:
    # LMDB's table of readers is the only file that reading changes.
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*")) if p.name != "lock.mdb"}


@pytest.fixture(scope="module")
def loaded(world: World) -> None:
    warm(world)


def params() -> list[object]:
    return [pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.slow else []) for case in CASES]


@pytest.mark.parametrize("case", params())
def test_a_bad_input_is_one_sentence(case: Case, world: World, request: pytest.FixtureRequest) -> None:
    if case.slow:
        request.getfixturevalue("loaded")
    folder = world.root.parent / f"case-{CASES.index(case)}"
    folder.mkdir()
    check(case, call(case, world, folder), world, folder)


def check(case: Case, outcome: Outcome, world: World, folder: Path) -> None:
    assert outcome.code == case.code, outcome.err
    assert outcome.code in DOCUMENTED
    assert "Traceback" not in outcome.err
    assert case.fact in outcome.err
    assert case.names in outcome.err
    sentences = [line for line in outcome.err.splitlines() if line.startswith("cos: ")]
    if case.code in (3, 4, 5, 6):
        assert sentences == outcome.err.splitlines()[-1:], "one sentence, and it is the last line"
        assert len(sentences[0]) < 4000 + len(str(folder))
    else:
        assert sentences == []
    assert "\x1b" not in outcome.err
    assert recorded.InputRow.of(case, outcome) == RECORDED[case.family, case.name], "`make faults` records what is meant to be"
    assert outcome.strayed(folder) == []
    assert outcome.peeped(world, folder) == []
    assert not (folder / "trapped").exists(), "a pickle was run"
    assert not [name for name in outcome.kept if name.endswith(".tmp") or name.startswith("tmp/")], "scraps are left"


def test_they_are_many_and_distinct() -> None:
    assert len(CASES) >= 200
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []


def test_every_case_is_recorded() -> None:
    rows = recorded.read(recorded.INPUTS, recorded.InputRow)
    assert [(row.family, row.name, row.code) for row in rows] == [(c.family, c.name, str(c.code)) for c in CASES]


def test_the_page_of_exit_codes_states_the_counts() -> None:
    faults = sum(int(row.times) for row in recorded.read(recorded.FAULTS, recorded.FaultRow))
    page = (Path(__file__).parents[1] / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    assert f"{len(CASES)} bad inputs" in page
    assert f"{faults:,} injected faults" in page


# --- processes ---

START = [sys.executable, "-m", "cos_cli"]


def cos(*arguments: object, **more: object) -> subprocess.CompletedProcess[bytes]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60, "check": False, **more}
    return subprocess.run([*START, *map(str, arguments)], **given)  # type: ignore[call-overload, no-any-return]


def environment(**changes: str | None) -> dict[str, str]:
    kept = {**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[1]), **changes}
    return {name: value for name, value in kept.items() if value is not None}


@pytest.mark.parametrize("stream", ["closed", "full"])
def test_stdout_that_takes_nothing(world: World, stream: str) -> None:
    words = ["store", "info", world.store]
    if stream == "closed":
        done = subprocess.run(
            ["sh", "-c", '"$@" >&-', "sh", *START, *map(str, words)],
            env=environment(),
            capture_output=True,
            timeout=7200,
            check=False,
        )
    else:
        with Path("/dev/full").open("wb") as full:
            done = cos(*words, stdout=full, env=environment())
    # Who closes it wants nothing of it; a full disk loses what was wanted.
    assert done.returncode == (0 if stream == "closed" else 3)
    assert done.stderr.count(b"\n") == (0 if stream == "closed" else 1), done.stderr


PLACES = {
    "no HOME": {"HOME": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None},
    "a HOME that is not there": {"HOME": "/nowhere/at/all"},
    "no TMPDIR": {"TMPDIR": "/nowhere/at/all"},
    "the C locale": {"LC_ALL": "C", "LANG": None, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "an ASCII terminal": {"PYTHONIOENCODING": "ascii"},
    "a Latin-1 terminal": {"PYTHONIOENCODING": "latin-1"},
    "a terminal one column wide": {"COLUMNS": "1", "LINES": "1"},
    "a terminal of words": {"COLUMNS": "wide", "TERM": "unheard-of"},
    "no environment": dict.fromkeys(os.environ),
}


@pytest.mark.parametrize("place", PLACES)
def test_odd_places(world: World, tmp_path: Path, place: str) -> None:
    """A job with letters from everywhere: done, or refused in a sentence; what it writes is UTF-8."""
    name = "Zoë-日本-\U0001f600"
    data = lines(
        tmp_path / "data.jsonl", json.dumps({"question_id": name, "image": "a.png", "text": "où?"}, ensure_ascii=False)
    )
    out = tmp_path / f"{name}.jsonl"
    job = ["infer", "--engine", "scripted", "--model", "m", "--data", data, "--images", world.images, "--out", out, "--json"]
    done = cos(*job, env=environment(**PLACES[place]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["example_id"] == name
    assert json.loads(done.stdout)["counts"]["ok"] == 1
    missing = cos("store", "info", tmp_path / name, env=environment(**PLACES[place]), cwd=tmp_path)
    assert missing.returncode == 3
    assert missing.stderr.count(b"\n") == 1
    assert missing.stderr.startswith(b"cos: there is no store at ")


def test_a_working_folder_that_vanished(world: World, tmp_path: Path) -> None:
    words = [*START, "store", "info", str(world.store)]
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *words],
        cwd=gone,
        env=environment(),
        capture_output=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_disk_without_room(world: World, tmp_path: Path) -> None:
    """`ulimit -f 0`: every write of a byte fails, as on a full disk."""
    words = [*START, "store", "export", str(world.store), "--out", str(tmp_path / "out.jsonl")]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *words], env=environment(), capture_output=True, timeout=7200, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_goes_back(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    words = ["annotate", "--policy", "random", "--model", "m", "--data", world.data, "--images", world.images]
    assert main.run([*map(str, words), "--out", str(tmp_path / "store")]) == 0
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["seconds"] >= 0


@pytest.mark.slow
def test_ctrl_c_at_any_time(world: World, tmp_path: Path) -> None:
    """Whenever it comes: 130 and one sentence (or the end, when it came too late), and the same command ends the job."""
    data = lines(
        tmp_path / "data.jsonl", *({"question_id": i, "image": "ab"[i % 2] + ".png", "text": "q"} for i in range(3000))
    )
    whole = None
    for number, wait in enumerate([0.15, 0.25, 0.35, 0.45, 0.6, 0.8, 1.0]):
        out = tmp_path / f"{number}.jsonl"
        job = ["infer", "--engine", "scripted", "--model", "m", "--data", data, "--images", world.images, "--out", out, "-q"]
        running = subprocess.Popen([*START, *map(str, job)], stderr=subprocess.PIPE, env=environment())
        time.sleep(wait)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=7200)[1]
        # While Python is still finding the program nobody but Python can say anything, and it dies of the signal in its way.
        assert running.returncode in (0, 130, -signal.SIGINT), said
        # In a callback of Python's own, during an import, Python ignores the signal and says so; the job goes on to its end.
        ignored = b"Exception ignored in" in said and running.returncode == 0
        assert running.returncode == -signal.SIGINT or ignored or b"Traceback" not in said
        assert cos(*job, env=environment()).returncode == 0
        rows = [{**json.loads(line), "seconds": 0} for line in out.read_text().splitlines()]
        whole = whole or rows
        assert rows == whole


@pytest.mark.slow
def test_ten_thousand_small_files(world: World, tmp_path: Path) -> None:
    picture = (world.images / "a.png").read_bytes()
    (tmp_path / "images").mkdir()
    for i in range(10_000):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture)
    words = [
        "infer",
        "--engine",
        "scripted",
        "--model",
        "m",
        "--images",
        tmp_path / "images",
        "--question",
        "q?",
        "--roi",
        "none",
    ]
    assert main.run([*map(str, words), "--out", str(tmp_path / "out.jsonl"), "-q"]) == 0
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 10_000
