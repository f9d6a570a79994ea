"""One annotation job in several processes of this machine: each has its own part, and the parts are merged at the end.

Parts lie beside the store, in `OUT.parts/`. A job that was killed and started again first merges what it finds there, so that
it may go on with another number of workers, or with none. Shards take whole windows (stage.py): the merged store exports the
same bytes as that of one process.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cos_core import manifest, processes
from cos_core.annotate import stage
from cos_core.annotate.config import AnnotateConfig
from cos_core.errors import CosError, FailuresError, InputError
from cos_core.interfaces import Reporter, SilentReporter
from cos_core.locks import FileLock
from cos_core.shard import Shard
from cos_core.store import Store, is_store
from cos_core.store.merge import merge
from cos_core.types import RunManifest


def run(config: AnnotateConfig, reporter: Reporter) -> RunManifest:
    """See annotate.run. Raises what a worker raised; InputError when one was killed. Finished parts stay and are used."""
    folder = parts_folder(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "job.lock", what=config.out):
        begun = manifest.started("annotate", config, seed=config.seed, inputs=_inputs(config))
        _take_in(config.out, folder, reporter)
        if config.workers == 1:
            shutil.rmtree(folder, ignore_errors=True)
            return stage.run(config, reporter)
        made = _in_processes(config, folder, reporter)
        counts = {name: sum(part.counts[name] for part in made) for name in made[0].counts}
        _take_in(config.out, folder, reporter)
        stopped = stage.stops(counts["failed"], config)
        finished = replace(
            begun.finish(counts, "failed" if stopped else "complete", made[0].results), fingerprint=made[0].fingerprint
        )
        manifest.write(manifest.path_for(config.out), finished)
    shutil.rmtree(folder, ignore_errors=True)
    if stopped:
        raise stage.too_many(counts["failed"], config)
    return finished


def parts_folder(out: Path) -> Path:
    """Where the parts of a job lie until they are merged into `out`."""
    return out.with_name(f"{out.name}.parts")


def _inputs(config: AnnotateConfig) -> dict[str, dict[str, Any]]:
    return {"data": manifest.file_input(config.data), "model": {"path": str(config.model)}}


def _take_in(out: Path, folder: Path, reporter: Reporter) -> None:
    """Merges the parts that lie in `folder` into the store `out`, and removes them."""
    # A worker that was killed while it made its store left nothing to keep.
    begun = [path for path in sorted(folder.iterdir()) if is_store(path) and Store.is_begun(path)]
    if begun:
        merge(begun, out, reporter)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@dataclass(slots=True)
class _Worker:
    """One process with its shard: how far it is, and what became of it."""

    shard: Shard
    process: Any
    pipe: Any
    done: int = 0
    total: int = 0
    detail: str = ""
    made: RunManifest | None = None
    error: CosError | None = None


@dataclass(slots=True)
class _Pipe(SilentReporter):
    """A worker's reporter: sends words and progress to the parent."""

    pipe: Any
    sent: tuple[Any, ...] = field(default=())

    def note(self, text: str) -> None:
        self.pipe.send(("note", text))

    def warn(self, text: str) -> None:
        self.pipe.send(("warn", text))

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        self.pipe.send(("progress", (done, total or 0, detail)))


def _in_processes(config: AnnotateConfig, folder: Path, reporter: Reporter) -> list[RunManifest]:
    """The manifests of the parts. When one worker fails the others finish theirs first: nothing they did is lost."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, processes.cores() // config.workers)
    team: list[_Worker] = []
    try:
        for index in range(1, config.workers + 1):
            shard = Shard(index, config.workers)
            ours, theirs = context.Pipe(duplex=False)
            part = replace(
                config,
                out=folder / f"{index}-of-{config.workers}",
                shard=shard,
                workers=1,
                device=_device(config.device, index),
            )
            process = context.Process(target=_work, args=(part, config.out, threads, theirs), daemon=True)
            process.start()
            theirs.close()
            team.append(_Worker(shard, process, ours))
        _listen(team, reporter)
    finally:
        for worker in team:
            worker.process.terminate()
            worker.process.join()
    for worker in team:
        if worker.error is not None:
            raise worker.error
    lost = [worker for worker in team if worker.made is None]
    if lost:
        raise InputError(
            f"worker {', '.join(str(w.shard) for w in lost)} died (exit code {lost[0].process.exitcode}; out of memory?); "
            "what it had finished is kept, and the same command continues"
        )
    return [worker.made for worker in team if worker.made is not None]


def _work(config: AnnotateConfig, out: Path, threads: int, pipe: Any) -> None:
    """A worker's life: its part of the job, then the manifest or the error to the parent."""
    processes.begin_worker(threads)
    try:
        beside = out if is_store(out) else None
        pipe.send(("made", stage.run(config, _Pipe(pipe), beside).to_json()))
    except FailuresError:
        # Its manifest says how many; the whole job decides.
        pipe.send(("made", manifest.read(config.out).to_json()))
    except CosError as error:
        pipe.send(("error", error))
    except KeyboardInterrupt:
        # The terminal sends Ctrl-C to every process; the parent is the one that speaks.
        pass


def _listen(team: Sequence[_Worker], reporter: Reporter) -> None:
    """Passes on what workers say until all have ended; a warning that several give is given once."""
    by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in team}
    told: set[tuple[str, Any]] = set()
    while by_pipe:
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]
            try:
                kind, what = worker.pipe.recv()
            except EOFError:
                del by_pipe[pipe]
                worker.process.join()
                continue
            if kind == "made":
                worker.made = RunManifest.from_json(what)
            elif kind == "error":
                worker.error = what
            elif kind == "progress":
                worker.done, worker.total, worker.detail = what
                _progress(team, reporter)
            elif (kind, what) not in told:
                told.add((kind, what))
                (reporter.warn if kind == "warn" else reporter.note)(what)


def _progress(team: Sequence[_Worker], reporter: Reporter) -> None:
    """The job's progress, once every worker knows its part."""
    if all(worker.total for worker in team):
        done, total = sum(w.done for w in team), sum(w.total for w in team)
        reporter.progress("annotate", done, total, f"{len(team)} workers")


def _device(device: str, index: int) -> str:
    """`cuda:0`, `cuda:1`, ... in turn over the GPUs of this machine; a device with a number, and the CPU, stay as they are."""
    if device not in ("auto", "cuda"):
        return device
    from cos_core.llava import gpus

    count = gpus()
    return f"cuda:{(index - 1) % count}" if count else device
