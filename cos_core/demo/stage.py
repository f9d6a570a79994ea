"""Runs the steps in worker processes, each as soon as the steps that it needs are done."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from cos_core.demo.config import DemoConfig
from cos_core.demo.steps import Task, plan
from cos_core.errors import CosError, InputError
from cos_core.files import durable
from cos_core.files.locks import FileLock
from cos_core.interfaces import Reporter, SilentReporter
from cos_core.system import worker_process


@dataclass(slots=True)
class _Schedule:
    """The steps by state. `finished_share`: step name -> finished share of a running step, in [0, 1]."""

    waiting: list[Task]
    done: list[Task] = field(default_factory=list)
    running: dict[Future[None], Task] = field(default_factory=dict)
    finished_share: dict[str, float] = field(default_factory=dict)

    def ready(self) -> list[Task]:
        """The waiting steps whose needs are done, in the plan's order."""
        names = {task.name for task in self.done}
        return [task for task in self.waiting if names.issuperset(task.needs)]

    def report(self, reporter: Reporter) -> None:
        """Reports the finished share of all work, in percent, with the running steps."""
        shares = {task.name: self.finished_share.get(task.name, 0.0) for task in self.running.values()}
        total = sum(task.cost for task in (*self.done, *self.running.values(), *self.waiting))
        finished = sum(task.cost for task in self.done) + sum(task.cost * shares[task.name] for task in self.running.values())
        words = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        reporter.progress("demo %", int(100 * finished / total), 100, words)


def run(config: DemoConfig, reporter: Reporter) -> dict[str, Any]:
    """Runs every step that is not done yet; returns the results (also in OUT/results.json).

    Raises InputError when the folder holds a demo with other settings, LockedError when another process works in it.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    with FileLock(config.out / "demo.lock"):
        _check_settings(config)
        _run_steps(config, plan(config), reporter)
        reporter.note("comparing arms and writing the report")
        from cos_core.demo import results

        return results.write(config)


def _check_settings(config: DemoConfig) -> None:
    """Writes the settings into a new folder. Raises InputError for a folder that holds a demo with other settings."""
    settings = {
        "model": config.model,
        "seed": config.seed,
        "test_seed": config.test_seed,
        "quick": config.quick,
        "centre_bias": config.centre_bias,
    }
    path = config.out / "demo.json"
    if path.is_file():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if recorded != settings:
            raise InputError(f"{config.out} holds a demo with other settings ({recorded}); choose another --out or remove it")
        return
    durable.atomic_write(path, json.dumps(settings, indent=2) + "\n")


def _run_steps(config: DemoConfig, tasks: Sequence[Task], reporter: Reporter) -> None:
    import multiprocessing

    schedule = _Schedule(list(tasks))
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    with ProcessPoolExecutor(config.workers, context, _start_worker, (messages,)) as pool:
        try:
            while schedule.waiting or schedule.running:
                for task in schedule.ready()[: config.workers - len(schedule.running)]:
                    schedule.waiting.remove(task)
                    schedule.running[pool.submit(_run_step, task, config)] = task
                finished, _ = wait(schedule.running, timeout=1.0, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    name, share = messages.get()
                    schedule.finished_share[name] = share
                schedule.report(reporter)
                for future in finished:
                    task = schedule.running.pop(future)
                    _raise_failure(task, future)
                    schedule.done.append(task)
        except BaseException:
            # A step keeps what it finished; the next start of the demo continues from there.
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    reporter.progress("demo %", 100, 100)


def _raise_failure(task: Task, future: Future[None]) -> None:
    """Raises what the step raised, and CosError for a worker that died."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        future.result()
    except BrokenProcessPool:
        raise CosError(f"a worker died during {task.name!r} (out of memory?); start the demo again to go on") from None


def _start_worker(messages: Any) -> None:
    """Sets up a worker: one thread (two processes with one thread each are faster than one with two), ends with its parent."""
    worker_process.begin_worker(threads=1)
    _QueueReporter.messages = messages


def _run_step(task: Task, config: DemoConfig) -> None:
    _QueueReporter.task = task.name
    task.work(config, task.argument, _QueueReporter())


class _QueueReporter(SilentReporter):
    """A worker's reporter: sends (step name, finished share) to the parent, at most twice a second."""

    messages: Any = None
    task: str = ""
    _last: float = 0.0

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        now = time.monotonic()
        if total and self.messages is not None and now - self._last > 0.5:
            self._last = now
            self.messages.put((self.task, done / total))
