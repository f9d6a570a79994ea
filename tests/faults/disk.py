"""The fault injector: at the k-th durable write of a stage, the process dies, the disk is full, or the write is cut short.

A durable write is what a stage needs the disk for: bytes written to a file, a commit of LMDB, a flush to the disk, a new size, a
rename, a file that a library (torch, safetensors, tokenizers) writes in its own code. Each fault runs in a child forked from a warm parent, so it costs milliseconds; then the same command runs
again in another child, and what lies in the folder is compared with what an undisturbed run leaves.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import gc
import io
import json
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb
from bad.run import run
from bad.table import Row
from bad.world import World, lines, make_world
from tiny_llava import make_checkpoint

from cos_core import manifest
from cos_core.store import Store

FAULTS = ("kill", "full", "short")
LIBRARIES = ("torch", "safetensors", "tokenizers")
DIED = 137
_VOLATILE = re.compile(
    rb'"(?:started|finished|seconds|versions|hardware|created|new|sha256|bytes)": ?(?:"[^"]*"|[\d.e-]+|\{[^{}]*\}),?'
)
"""Times, what hangs on them (the digest of answers that state their seconds), and how much of the work was this call's."""


_RUNNING = re.compile(r"\.\d+\.\d+\.tmp$")
"""What makes the names of two runs' scraps different."""
_TORN = 512
"""Bytes that fit on the disk of a library's file that is cut off."""
_SCRAP = re.compile(r"\..*\.tmp")
"""What a killed process leaves of a file that it had not finished: hidden, never read."""


@dataclass
class Disk:
    """Counts durable writes below `root`; the one numbered `at` (from 1) goes wrong as `fault` says."""

    root: Path
    at: int = 0
    fault: str = "kill"
    count: int = 0
    steps: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def step(self, what: str, name: object, half: Callable[[], object] | None = None, spared: bool = False) -> bool:
        """True when the write to the file `name` is to be done as usual; `half` does half of it."""
        self.count += 1
        self.steps.append(what)
        self.names.append(_RUNNING.sub("", str(name)))
        if self.count < self.at or not self.at or spared:
            return True
        if self.count > self.at:
            # A full disk stays full; the process that was killed is not here.
            if self.fault == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return True
        if self.fault == "kill":
            if what in LIBRARIES:
                # The one kind of write that takes so long that a kill is likely to tear it.
                with contextlib.suppress(Exception):
                    half and half()
            os._exit(DIED)
        if half is not None:
            half()
        if self.fault == "short" and half is not None:
            return False
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def named(self, fd: int) -> Path | None:
        """The file behind a descriptor, when it is one of ours."""
        try:
            path = Path(f"/proc/self/fd/{fd}").readlink()
        except OSError:
            return None
        return path if path.is_relative_to(self.root) else None


class _Commits:
    """LMDB's environment with its commits under the injector: C code writes there, so the whole commit is one step."""

    def __init__(self, environment: Any, disk: Disk) -> None:
        self._environment, self._disk = environment, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    @contextlib.contextmanager
    def begin(self, *arguments: Any, **options: Any) -> Any:
        if not options.get("write"):
            with self._environment.begin(*arguments, **options) as transaction:
                yield transaction
            return
        with self._environment.begin(*arguments, **options) as transaction:
            yield transaction
            try:
                self._disk.step("commit", "data.mdb")
            except OSError as error:
                raise lmdb.DiskError(str(error)) from None

    def open_db(self, *arguments: Any, **options: Any) -> Any:
        return self._environment.open_db(*arguments, **options)


def _natives() -> Iterator[tuple[Any, str, str, Callable[..., Any]]]:
    """The calls of imported libraries that write a whole file in C++ or Rust: (object, name, library, where it finds the path)."""
    if "torch" in sys.modules:
        yield sys.modules["torch"], "save", "torch", lambda _, path, *__, **___: path
    if "safetensors.torch" in sys.modules:
        yield sys.modules["safetensors.torch"], "serialize_file", "safetensors", lambda _, path, **__: path
    if "transformers.tokenization_utils_tokenizers" in sys.modules:
        backend = sys.modules["transformers.tokenization_utils_tokenizers"].TokenizersBackend
        yield backend, "_save_pretrained", "tokenizers", lambda _, save_directory, **__: Path(save_directory) / "tokenizer.json"


def _native(make: Callable[..., Any], library: str, place: Callable[..., Any], disk: Disk) -> Callable[..., Any]:
    """`make` under the injector. The system itself refuses what is too much, so that the library fails as it really does."""

    def made(*arguments: Any, **options: Any) -> Any:
        path = Path(place(*arguments, **options))

        def half() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_TORN, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            make(*arguments, **options)

        if path.is_relative_to(disk.root):
            disk.step(library, path, half)
        return make(*arguments, **options)

    return made


@contextlib.contextmanager
def injected(disk: Disk) -> Any:
    """Puts `disk` under everything that writes."""
    write, fsync, replace, truncate, opened, env = os.write, os.fsync, os.replace, os.ftruncate, io.open, lmdb.open

    def os_write(fd: int, data: Any) -> int:
        name = disk.named(fd)
        if name is None:
            return write(fd, data)
        done = 0

        def half() -> None:
            nonlocal done
            done = write(fd, bytes(data)[: len(data) // 2])

        return write(fd, data) if disk.step("write", name, half) else done

    def os_fsync(fd: int) -> None:
        name = disk.named(fd)
        if name is None or disk.step("fsync", name):
            fsync(fd)

    def os_ftruncate(fd: int, size: int) -> None:
        name = disk.named(fd)
        if name is not None:
            # To cut something off needs no room: only a kill can come between.
            disk.step("truncate", name, spared=disk.fault != "kill")
        truncate(fd, size)

    def rename(source: Any, target: Any, **options: Any) -> None:
        if not Path(target).is_relative_to(disk.root) or disk.step("rename", target):
            replace(source, target, **options)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            sent = 0

            def half() -> None:
                nonlocal sent
                sent = io.FileIO.write(self, bytes(data)[: max(1, len(data) // 2)])

            name = disk.named(self.fileno())
            return io.FileIO.write(self, data) if name is None or disk.step("write", name, half) else sent

    def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wax") and not isinstance(file, int) and Path(file).absolute().is_relative_to(disk.root):
            binary = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
            text = options.get("encoding") or "utf-8"
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding=text, write_through=True)
        return opened(file, mode, buffering, *rest, **options)

    def lmdb_open(path: str, **options: Any) -> Any:
        return _Commits(env(path, **options), disk)

    with contextlib.ExitStack() as stack:
        for where, name, library, place in _natives():
            stack.enter_context(mock.patch.object(where, name, _native(getattr(where, name), library, place, disk)))
        for where, name, new in (
            (os, "write", os_write),
            (os, "fsync", os_fsync),
            (os, "replace", rename),
            (os, "rename", rename),
            (os, "ftruncate", os_ftruncate),
            (io, "open", open_),
            (builtins, "open", open_),
            (lmdb, "open", lmdb_open),
        ):
            stack.enter_context(mock.patch.object(where, name, new))
        yield


@dataclass(frozen=True)
class Stage:
    """`arguments`: the command line that works in a folder; `prepare`: what lies there before it.

    `every`: of many alike writes (a stage that draws dozens of plots) so many are passed over. `kinds`: of each kind of write
    (what, and to what) a full disk comes at the first, other faults at the last.
    """

    name: str
    arguments: Callable[[World, Path], Sequence[Any]]
    prepare: Callable[[World, Path], object] = lambda world, folder: None
    every: int = 1
    kinds: bool = False

    def chosen(self, calm: Disk, fault: str) -> list[tuple[int, str]]:
        """Which of an undisturbed run's writes go wrong, and what each is."""
        # Only a write can be cut short; a cut needs no room.
        possible = {"kill": set(calm.steps), "full": set(calm.steps) - {"truncate"}, "short": {"write"}}[fault]
        steps = [(at, what) for at, what in enumerate(calm.steps, 1) if what in possible]
        if self.kinds:
            order = steps[::-1] if fault == "full" else steps
            steps = sorted({(what, _kind(calm.names[at - 1])): (at, what) for at, what in order}.values())
        return steps[self.every - 1 :: self.every]


def _kind(name: str) -> str:
    """What is at stake in a file of training: the manifest, the log, its curve, a checkpoint, or else the finished model."""
    path = Path(name)
    for whole in (manifest.FILE, "train_log.jsonl", "loss.png"):
        if whole in path.name:
            return whole
    return "checkpoint" if path.parent.name.startswith("checkpoint-") else "model"


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


def _many(world: World, folder: Path) -> None:
    lines(folder / "data.jsonl", *({"question_id": f"q{i}", "image": "ab"[i % 2] + ".png", "text": "q?"} for i in range(5)))


def _exported(world: World, folder: Path) -> None:
    with Store.read(world.store) as store:
        store.export_jsonl(folder / "in.jsonl", failures=True, heats=True)


def _untrained(world: World, folder: Path) -> None:
    if not (world.root / "tiny").exists():
        make_checkpoint(world.root / "tiny", image_size=28, hidden=16, layers=1)


STAGES = [
    Stage(
        "annotate",
        lambda w, f: ["annotate", "--policy", "random", "--model", "m", "--data", w.page / "questions.jsonl", "--images", w.images, "--out", f / "store", "--batch-images", 1],
    ),
    Stage(
        "infer",
        lambda w, f: ["infer", "--engine", "scripted", "--model", "m", "--data", f / "data.jsonl", "--images", w.images, "--out", f / "out.jsonl", "--batch-size", 2],
        _many,
    ),
    Stage("eval", lambda w, f: ["eval", "scenes", "--data", w.page, "--predictions", w.answers, "--out", f / "run", "--latest", f / "latest"]),
    Stage("eval, model", lambda w, f: ["eval", "scenes", "--data", w.page, "--engine", "scripted", "--model", "m", "--roi", "full", "--out", f / "run"]),
    Stage("store export", lambda w, f: ["store", "export", w.store, "--out", f / "out.jsonl", "--failures", "--heats"]),
    Stage("store import", lambda w, f: ["store", "import", f / "in.jsonl", "--out", f / "store"], _exported),
    Stage("store merge", lambda w, f: ["store", "merge", w.store, "--out", f / "store"]),
    Stage("visualize overlay", lambda w, f: ["visualize", "overlay", "--image", w.images / "a.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", f / "o.png"]),
    Stage("visualize stats", lambda w, f: ["visualize", "stats", w.store, "--out", f / "boxes"], every=19),
    Stage("visualize report", lambda w, f: ["visualize", "report", w.run, "--out", f / "r.html"], every=2),
    Stage(
        "train",
        lambda w, f: ["train", "--model", w.root / "tiny", "--data", w.data, "--images", w.images, "--store", w.store, "--out", f / "out", "--batch-size", 1, "--global-batch", 1, "--max-steps", 3, "--save-every", 2, "--device", "cpu"],
        _untrained,
        kinds=True,
    ),
    Stage("visualize export", lambda w, f: ["visualize", "export", w.run, "--format", "lmms-eval", "--out", f / "x.jsonl"]),
]  # fmt: skip
"""Every stage that writes."""


def child(stage: Stage, world: World, folder: Path, disk: Disk) -> tuple[int, str, Disk]:
    """Runs the stage in a forked child: (exit code, what it said, the steps it took)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        told = io.StringIO()
        try:
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


def warm(world: World, folder: Path) -> None:
    """Runs every stage once in this process: the children then find everything imported."""
    for number, stage in enumerate(STAGES):
        own = folder / str(number)
        own.mkdir(parents=True)
        stage.prepare(world, own)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run([str(a) for a in stage.arguments(world, own)])
    # The children share what is there: nothing of it is looked through again for garbage.
    gc.collect()
    gc.freeze()


def storm(stage: Stage, world: World, folder: Path) -> list[Result]:
    """Every fault at every durable write of the stage, each in a new `folder`: settings know where they are."""
    code, said, calm = child(stage, world, fresh(stage, world, folder), Disk(folder))
    if code != 0 or not calm.count:
        raise AssertionError(f"{stage.name} does not run undisturbed: {code} {said}")
    wanted = state(folder)
    return [
        struck(stage, world, folder, Disk(folder, at, fault, steps=[what]), wanted)
        for fault in FAULTS
        for at, what in stage.chosen(calm, fault)
    ]


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


def rows() -> tuple[list[Row], int]:
    """For the document: of each stage and fault, one row a kind of outcome; and the number of faults."""
    made, count = [], 0
    with tempfile.TemporaryDirectory(prefix="cos-faults-") as root:
        world = make_world(Path(root) / "world")
        warm(world, Path(root) / "warm")
        for stage in STAGES:
            groups: dict[tuple[str, str, int], list[Result]] = {}
            for result in storm(stage, world, Path(root) / "work"):
                if not result.same or result.lost or result.again:
                    sys.exit(f"{stage.name}: {result}")
                groups.setdefault((result.fault, result.what, result.code), []).append(result)
                count += 1
            for (fault, what, code), found in groups.items():
                said = found[0].said.strip().splitlines()[-1:] if fault != "kill" else []
                sentence = re.sub(rf"{re.escape(root)}/(work/)?", "", said[0]) if said else "(killed)"
                kept = ", ".join(found[-1].kept[:4]) or "nothing new"
                steps = ", ".join(str(r.step) for r in found[:8]) + (", ..." if len(found) > 8 else "")
                made.append(
                    Row(stage.name, f"{fault} at {what} {steps}", str(code), re.sub(r" in [\d.]+ s", "", sentence)[:160], kept)
                )
    return made, count
