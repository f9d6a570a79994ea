"""Runs the steps in worker processes, each as soon as what it waits for is done."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from cos_cli.demo.arms import DemoConfig
from cos_cli.demo.steps import Task, plan
from cos_core.errors import CosError, InputError
from cos_core.files import manifest
from cos_core.files.locks import FileLock
from cos_core.interfaces import Reporter, SilentReporter
from cos_core.system import worker_process


@dataclass(slots=True)
class _Board:
    """What is done, running and waiting."""

    waiting: list[Task]
    done: set[str] = field(default_factory=set)
    running: dict[Future[None], Task] = field(default_factory=dict)

    def ready(self) -> list[Task]:
        return [t for t in self.waiting if self.done.issuperset(t.needs)]


def run(config: DemoConfig, reporter: Reporter) -> dict[str, Any]:
    """Runs every step that is not done yet; returns the results (also in OUT/results.json).

    Raises InputError when the folder holds a demo with other settings, LockedError when another process works in it.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    with FileLock(config.out / "demo.lock"):
        _claim(config)
        _work(config, plan(config), reporter)
        reporter.note("comparing arms and writing the report")
        from cos_cli.demo import results

        return results.write(config)


def _claim(config: DemoConfig) -> None:
    """Settings are written once; a folder that was made with others is refused, so that nothing is mixed."""
    mine = {
        "model": config.model,
        "seed": config.seed,
        "test_seed": config.test_seed,
        "quick": config.quick,
        "centre_bias": config.centre_bias,
    }
    path = config.out / "demo.json"
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs != mine:
            raise InputError(f"{config.out} holds a demo with other settings ({theirs}); choose another --out or remove it")
        return
    manifest.atomic_write(path, json.dumps(mine, indent=2) + "\n")


def _work(config: DemoConfig, tasks: Sequence[Task], reporter: Reporter) -> None:
    import multiprocessing

    board = _Board(list(tasks))
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    shares: dict[str, float] = {}
    costs = {task.name: task.cost for task in tasks}
    with ProcessPoolExecutor(config.workers, context, _start_worker, (told,)) as pool:
        try:
            while board.waiting or board.running:
                for task in board.ready()[: config.workers - len(board.running)]:
                    board.waiting.remove(task)
                    board.running[pool.submit(_do, task, config)] = task
                finished, _ = wait(board.running, timeout=1.0, return_when=FIRST_COMPLETED)
                while not told.empty():
                    name, share = told.get()
                    shares[name] = share
                parts = {t.name: shares.get(t.name, 0.0) for t in board.running.values()}
                spent = sum(costs[name] for name in board.done) + sum(costs[name] * share for name, share in parts.items())
                percent = int(100 * spent / sum(costs.values()))
                reporter.progress("demo %", percent, 100, ", ".join(f"{name} {share:.0%}" for name, share in parts.items()))
                for future in finished:
                    task = board.running.pop(future)
                    _result(task, future)
                    board.done.add(task.name)
        except BaseException:
            # Steps keep what they finished; a restart goes on from there.
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reporter.progress("demo %", 100, 100)


def _result(task: Task, future: Future[None]) -> None:
    from concurrent.futures.process import BrokenProcessPool

    try:
        future.result()
    except BrokenProcessPool:
        raise CosError(f"a worker died during {task.name!r} (out of memory?); start the demo again to go on") from None


def _start_worker(told: Any) -> None:
    """One core a worker (two processes with one thread each beat one with two); a worker ends with its parent."""
    worker_process.begin_worker(threads=1)
    _Teller.told = told


def _do(task: Task, config: DemoConfig) -> None:
    _Teller.task = task.name
    task.work(config, task.argument, _Teller())


class _Teller(SilentReporter):
    """A worker's reporter: tells the parent, twice a second at most, how far its one running task is."""

    told: Any = None
    task: str = ""
    _last: float = 0.0

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        now = time.monotonic()
        if total and self.told is not None and now - self._last > 0.5:
            self._last = now
            self.told.put((self.task, done / total))
