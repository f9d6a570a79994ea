"""`cos demo`: the paper in small, end to end, on two CPU cores.

Scenes are made and annotated; the rows of CoS Table 3a are trained from one checkpoint with the same number of steps and answer
the same held-out questions. Every step leaves finished files: killed and started again, the demo goes on where it was.
This file composes the stages; what happens in each is in its own module.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cos_core import manifest
from cos_core.errors import CosError, InputError
from cos_core.interfaces import Reporter, SilentReporter
from cos_core.locks import FileLock


@dataclass(frozen=True, slots=True)
class Size:
    """How much work: scenes to train on, optimisation steps, scenes to test on, questions on each scene."""

    train_scenes: int
    steps: int
    test_scenes: int
    batch: int = 16
    questions: int = 3
    learning_rate: float = 1e-3


FULL = Size(train_scenes=3200, steps=200, test_scenes=400)
QUICK = Size(train_scenes=160, steps=10, test_scenes=20)


@dataclass(frozen=True, slots=True)
class Arm:
    """One row of the table: a policy, the labels it is trained on, and the policy it answers with (its own unless said)."""

    name: str
    title: str
    policy: str
    labels: str | None = None
    weights: str | None = None
    """The arm whose trained weights are used; None: trained for this arm."""


ARMS = (
    Arm("none", "no Chain-of-Spot", "none"),
    Arm("center_crop", "centre crop", "center_crop"),
    Arm("from_image", "from image", "from_image", labels="from_image"),
    Arm("from_questions", "from questions", "from_questions", labels="from_questions"),
    Arm("from_single_question", "Chain-of-Spot (single question)", "from_single_question", labels="from_single_question"),
    Arm("random_labels", "control: labels are random regions", "from_single_question", labels="random"),
    Arm("gold_labels", "reference: labels are gold regions", "from_single_question", labels="gold"),
    Arm("gold_regions", "upper line: gold regions when answering", "gold", weights="from_single_question"),
)
MAIN, BASE, CENTRE = "from_single_question", "none", "center_crop"
LABELS = ("from_single_question", "from_questions", "from_image", "random", "gold")


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Where and how. `model` is the checkpoint that every arm starts from; `jobs` processes run at a time, one core each."""

    out: Path
    model: str = "miniature"
    seed: int = 0
    test_seed: int = 2026
    quick: bool = False
    centre_bias: float = 0.0
    jobs: int = 0

    @property
    def size(self) -> Size:
        return QUICK if self.quick else FULL

    @property
    def workers(self) -> int:
        return self.jobs or max(1, min(len(os.sched_getaffinity(0)), 8))

    def labels(self, policy: str) -> Path:
        return self.out / "labels" / policy

    def weights(self, arm: Arm) -> Path:
        return self.out / "models" / (arm.weights or arm.name)

    def predictions(self, arm: Arm) -> Path:
        return self.out / "answers" / f"{arm.name}.jsonl"

    def scores(self, arm: Arm) -> Path:
        return self.out / "scores" / arm.name


@dataclass(frozen=True, slots=True)
class Task:
    """One step of the demo: `work(config, argument)` in a worker process, once all of `needs` are done."""

    name: str
    work: Callable[[DemoConfig, str], None]
    argument: str = ""
    needs: tuple[str, ...] = ()


# --- the steps; each runs in a worker process and is skipped by its stage when its output is complete ---


def make_scenes(config: DemoConfig, split: str) -> None:
    """Draws one split. The test seed is not used for anything else in this project."""
    from cos_core.miniature.scenes import write_dataset

    out = config.out / "scenes" / split
    seed = config.seed + 1 if split == "train" else config.test_seed
    count = config.size.train_scenes if split == "train" else config.size.test_scenes
    settings = {"seed": seed, "count": count, "questions": config.size.questions, "centre_bias": config.centre_bias}
    print_of = manifest.fingerprint(settings)
    done = out / manifest.MANIFEST
    if done.is_file() and manifest.read(done).fingerprint == print_of:
        return
    write_dataset(out, count, seed, config.size.questions, config.centre_bias)
    from cos_core.types import RunManifest

    counts = {"ok": count, "failed": 0, "skipped": 0}
    manifest.write(done, RunManifest("scenes", "complete", settings, print_of, counts, seed=seed, versions=manifest.versions()))


def annotate(config: DemoConfig, policy: str) -> None:
    from cos_core import annotate as stage

    train = config.out / "scenes" / "train"
    stage.run(
        stage.AnnotateConfig(
            data=train / "questions.jsonl",
            images=train / "images",
            model=config.model,
            out=config.labels(policy),
            policy=policy,
            seed=config.seed,
            batch_images=16,
        ),
        _Teller(),
    )


def train(config: DemoConfig, name: str) -> None:
    from cos_core.training import TrainConfig, run

    arm, size, data = _arm(name), config.size, config.out / "scenes" / "train"
    run(
        TrainConfig(
            data=data / "questions.jsonl",
            images=data / "images",
            model=config.model,
            out=config.weights(arm),
            store=config.labels(arm.labels) if arm.labels else None,
            policy=arm.policy,
            learning_rate=size.learning_rate,
            warmup_ratio=0.05,
            batch_size=size.batch,
            global_batch=size.batch,
            max_steps=size.steps,
            seed=config.seed,
        ),
        _Teller(),
    )


def infer(config: DemoConfig, name: str) -> None:
    from cos_core import infer as stage

    arm, data = _arm(name), config.out / "scenes" / "test"
    config.predictions(arm).parent.mkdir(parents=True, exist_ok=True)
    stage.run(
        stage.InferConfig(
            model=str(config.weights(arm)),
            out=config.predictions(arm),
            data=data / "questions.jsonl",
            images=data / "images",
            roi=arm.policy,
            batch_size=64,
            max_new_tokens=12,
            seed=config.seed,
        ),
        _Teller(),
    )


def score(config: DemoConfig, name: str) -> None:
    from cos_core import evaluate as stage

    arm = _arm(name)
    stage.run(
        stage.EvalConfig(
            benchmark="scenes",
            data=config.out / "scenes" / "test",
            predictions=config.predictions(arm),
            out=config.scores(arm),
        ),
        _Teller(),
    )


def plan(config: DemoConfig) -> list[Task]:
    """Every step with what it waits for, in the order in which free workers should take them."""
    tasks = [Task("scenes train", make_scenes, "train"), Task("scenes test", make_scenes, "test")]
    tasks += [Task(f"annotate {p}", annotate, p, ("scenes train",)) for p in LABELS]
    for arm in ARMS:
        if arm.weights is None:
            needs = ("scenes train", *([f"annotate {arm.labels}"] if arm.labels else []))
            tasks.append(Task(f"train {arm.name}", train, arm.name, needs))
        tasks.append(Task(f"infer {arm.name}", infer, arm.name, (f"train {arm.weights or arm.name}", "scenes test")))
        tasks.append(Task(f"score {arm.name}", score, arm.name, (f"infer {arm.name}",)))
    return tasks


# --- running them ---


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
        from cos_cli import demo_report

        return demo_report.write(config)


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
    shares: dict[str, str] = {}
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
                now = ", ".join(f"{t.name}{shares.get(t.name, '')}" for t in board.running.values())
                reporter.progress("demo", len(board.done), len(tasks), now)
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
    reporter.progress("demo", len(tasks), len(tasks))


def _result(task: Task, future: Future[None]) -> None:
    from concurrent.futures.process import BrokenProcessPool

    try:
        future.result()
    except BrokenProcessPool:
        raise CosError(f"a worker died during {task.name!r} (out of memory?); start the demo again to go on") from None


def _start_worker(told: Any) -> None:
    """One core a worker (two processes with one thread each beat one with two); a worker ends with its parent."""
    import multiprocessing
    import threading

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)
    _Teller.told = told
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _do(task: Task, config: DemoConfig) -> None:
    _Teller.task = task.name
    task.work(config, task.argument)


class _Teller(SilentReporter):
    """A worker's reporter: tells the parent, twice a second at most, how far its one running task is."""

    told: Any = None
    task: str = ""
    _last: float = 0.0

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        now = time.monotonic()
        if total and self.told is not None and now - self._last > 0.5:
            self._last = now
            self.told.put((self.task, f" {100 * done // total} %"))


def _arm(name: str) -> Arm:
    return next(a for a in ARMS if a.name == name)


def settings(config: DemoConfig) -> Mapping[str, Any]:
    """What a reader of the report needs to run it again."""
    size = config.size
    return {
        "start checkpoint": config.model,
        "training scenes": size.train_scenes,
        "optimisation steps": size.steps,
        "batch": size.batch,
        "learning rate": size.learning_rate,
        "test scenes": size.test_scenes,
        "questions on a scene": size.questions,
        "seed": config.seed,
        "test seed": config.test_seed,
        "centre bias": config.centre_bias,
    }
