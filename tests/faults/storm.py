"""Every fault of every stage: what the command said and kept, and what the same command leaves when it runs again.

Each run is a child forked from a warm parent, so it costs milliseconds. What lies in the folder after the second run is
compared with what an undisturbed run leaves.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

from bad.recorded import FaultRow, listing
from bad.run import run
from bad.world import World, make_world

from cos_cli.main import BAD_INPUT, INTERRUPTED
from cos_core.files import manifest
from cos_core.store.annotations import Store
from faults.disk import DIED, FAULTS, Disk, injected
from faults.stages import STAGES, Stage

_VOLATILE = re.compile(
    rb'"(?:started|finished|seconds|versions|hardware|created|new|sha256|bytes)": ?(?:"[^"]*"|[\d.e-]+|\{[^{}]*\}),?'
)
"""Times, what hangs on them (the digest of answers that state their seconds), and how much of the work was this call's."""


_SCRAP = re.compile(r"\..*\.tmp")
"""What a killed process leaves of a file that it had not finished: hidden, never read."""


@dataclass(frozen=True)
class Result:
    """`code`, `said` of the call with the fault; `kept`: the files between; `again`, `then`: of the second call the same."""

    step: int
    what: str
    fault: str
    code: int
    said: str
    kept: list[str]
    again: int
    then: str
    same: bool
    lost: bool

    def wrong(self, stage: Stage) -> str | None:
        """What is not as it must be, None when all is."""
        interrupted = {INTERRUPTED, 0} if stage.may_finish else {INTERRUPTED}
        codes = {"kill": {DIED}, "interrupt": interrupted}.get(self.fault, {0, BAD_INPUT})
        scraps = [name for name in self.kept if _SCRAP.fullmatch(name.rpartition("/")[2])]
        found = {
            f"exit code {self.code}, expected {sorted(codes)}": self.code not in codes,
            "a traceback": "Traceback" in self.said,
            "no sentence": self.code in (BAD_INPUT, INTERRUPTED) and not self.said.splitlines()[-1].startswith("cos: "),
            "scraps are left": self.fault != "kill" and bool(scraps),
            "something finished is lost": self.lost,
            f"exit code {self.again} of the second run": self.again != 0,
            "the second run leaves something else": not self.same,
        }
        return next((what for what, there in found.items() if there), None)


def child(stage: Stage, world: World, folder: Path, disk: Disk) -> tuple[int, str, Disk]:
    """Runs the stage in a forked child: (exit code, what it said, the steps it took)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        told = io.StringIO()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            os.environ["PATH"] = ""  # no git to ask for the commit
            if "torch" in sys.modules:
                # The parent's pool of threads did not come along, and would be waited for.
                sys.modules["torch"].set_num_threads(1)
            # What a manifest says of packages is the same for all, and half of a child's time.
            same = mock.patch.object(manifest, "versions", dict)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told), same, injected(disk):
                code = run([str(a) for a in stage.arguments(world, folder)])
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(json.dumps([told.getvalue(), disk.steps, disk.names]).encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said, steps, names = json.loads(text) if text else ("", [], [])
    return code, said, Disk(disk.root, disk.at, disk.fault, len(steps), steps, names)


def state(folder: Path) -> dict[str, bytes]:
    """What a finished folder says: files without times, stores as their export, links as where they lead."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if _SCRAP.fullmatch(path.name):
            continue
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.name == "data.mdb":
            out = folder.with_name(folder.name + ".export")
            with Store.read(path.parent) as store:
                store.export_jsonl(out, failures=True, heats=True)
            found[name] = out.read_bytes()
            out.unlink()
        elif path.is_file() and path.name not in ("lock.mdb", "writer.lock"):
            data = path.read_bytes().replace(str(folder).encode(), b"HERE")
            found[name] = _VOLATILE.sub(b"", data) if path.suffix in (".json", ".jsonl", ".html") else data
    return found


def finished(folder: Path) -> int:
    """Answers and annotations that stand there whole."""
    count = 0
    for path in folder.rglob("*.jsonl"):
        if path.name in ("out.jsonl", "predictions.jsonl"):
            count += path.read_bytes().count(b"\n")
    for path in folder.rglob("data.mdb"):
        if path.stat().st_size and Store.is_begun(path.parent):
            with Store.read(path.parent) as store:
                count += store.info()["annotations"]
    return count


def warm(world: World, folder: Path, stages: Iterable[Stage]) -> None:
    """Runs each of the stages once in this process: the children then find everything imported."""
    for stage in stages:
        own = fresh(stage, world, folder / stage.name)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
            code = run([str(a) for a in stage.arguments(world, own)])
        if code != 0:
            raise AssertionError(f"{stage.name} does not run undisturbed: {code} {told.getvalue()}")
    # The children share what is there: nothing of it is looked through again for garbage.
    gc.collect()
    gc.freeze()


def storm(stage: Stage, world: World, folder: Path, *, all_of_them: bool) -> tuple[list[Result], int]:
    """Faults at durable writes of the stage, each in a new `folder`: settings know where they are.

    `all_of_them`, or the stage's own sample; how many there could be is returned beside.
    """
    code, said, calm = child(stage, world, fresh(stage, world, folder), Disk(folder))
    if code != 0 or not calm.count:
        raise AssertionError(f"{stage.name} does not run undisturbed: {code} {said}")
    wanted = state(folder)
    choose = stage.possible if all_of_them else stage.sample
    results = [
        struck(stage, world, folder, Disk(folder, at, fault, steps=[what]), wanted)
        for fault in FAULTS
        for at, what in choose(calm, fault)
    ]
    return results, sum(len(stage.possible(calm, fault)) for fault in FAULTS)


@contextlib.contextmanager
def process_without_torch(world: World, folder: Path) -> Iterator[ProcessPoolExecutor]:
    """A process for `storm_of`, warm for the stages that need no torch: forking it takes a third of what a fork with torch does."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _warm_without_torch, (world, folder)) as process:
        yield process


def _warm_without_torch(world: World, folder: Path) -> None:
    warm(world, folder, [stage for stage in STAGES if not stage.torch])
    if "torch" in sys.modules:
        raise AssertionError("a stage that is said to need no torch has imported it")


def storm_of(number: int, world: World, folder: Path) -> tuple[list[Result], int]:
    """The storm over a stage's own sample, the stage known by its number, for it cannot be pickled."""
    return storm(STAGES[number], world, folder, all_of_them=False)


def fresh(stage: Stage, world: World, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage.prepare(world, folder)
    return folder


def struck(stage: Stage, world: World, folder: Path, disk: Disk, wanted: dict[str, bytes]) -> Result:
    """The stage with one fault, and once more without."""
    (what,) = disk.steps
    before = set(fresh(stage, world, folder).rglob("*"))
    code, said, _ = child(stage, world, folder, Disk(folder, disk.at, disk.fault))
    kept = sorted(
        re.sub(r"\.\d+\.\d+\.tmp$", ".tmp", str(p.relative_to(folder)))
        for p in folder.rglob("*")
        if p.is_file() and p not in before
    )
    there = finished(folder)
    again, words, _ = child(stage, world, folder, Disk(folder))
    same, lost = state(folder) == wanted, finished(folder) < there
    return Result(disk.at, what, disk.fault, code, said, kept, again, words, same, lost)


def rows(names: Sequence[str] = ()) -> list[FaultRow]:
    """All faults of all stages, or of those named."""
    chosen = [number for number, stage in enumerate(STAGES) if stage.name in names or not names]
    with tempfile.TemporaryDirectory(prefix="cos-faults-") as root:
        world = make_world(Path(root) / "world")
        warm(world, Path(root) / "warm", [STAGES[number] for number in chosen])
        # Forked from here, so that what is warm is warm there; a stage is known by its number, as in `storm_of`.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
            of_stages = pool.map(partial(_rows_of, world, Path(root)), chosen)
            return [row for rows in of_stages for row in rows]


def _rows_of(world: World, root: Path, number: int) -> list[FaultRow]:
    stage, folder = STAGES[number], root / f"work{number}"
    results = storm(stage, world, folder, all_of_them=True)[0]
    for result in results:
        if what := result.wrong(stage):
            raise AssertionError(f"{stage.name}: {what}: {result}")
    return summary(stage, results)


def summary(stage: Stage, results: Sequence[Result]) -> list[FaultRow]:
    """A row for each fault at each kind of write with each exit code."""
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.fault, result.what, result.code), []).append(result)
    return [
        FaultRow(stage.name, fault, at, str(code), str(len(group)), listing(group[-1].kept))
        for (fault, at, code), group in groups.items()
    ]
