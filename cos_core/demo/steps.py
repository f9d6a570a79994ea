"""The steps of the demo: each runs in a worker process, and its stage skips what an earlier run finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cos_core.demo.config import ARMS, LABELS, START, Arm, DemoConfig, arm, models
from cos_core.errors import FailuresError
from cos_core.files import deciding, manifest
from cos_core.interfaces import Reporter
from cos_core.types import RunManifest

if TYPE_CHECKING:
    from cos_core.infer import InferConfig


@dataclass(frozen=True, slots=True)
class Task:
    """One step of the demo: `work(config, argument, reporter)` in a worker process, once all of `needs` are done."""

    name: str
    work: Callable[[DemoConfig, str, Reporter], None]
    argument: str = ""
    needs: tuple[str, ...] = ()
    cost: int = 1
    """Rough work, relative to the other steps, for the progress."""


def make_scenes(config: DemoConfig, split: str, reporter: Reporter) -> None:
    """Draws one split. Nothing else in this project uses the test seed."""
    from cos_core.miniature.scenes import write_dataset

    out = config.out / "scenes" / split
    seed = config.seed + 1 if split == "train" else config.test_seed
    count = config.size.train_scenes if split == "train" else config.size.test_scenes
    # The scenes of a split have one seed, and no model.
    drawn = {"count": count, "questions": config.size.questions}
    instead = {"quick": drawn, "seed": {"seed": seed}, "test_seed": {}, "model": {}}
    settings = deciding.settings(config, instead)
    fingerprint = manifest.fingerprint(settings)
    file = out / manifest.FILE
    if file.is_file() and manifest.read(file).fingerprint == fingerprint:
        return
    write_dataset(out, count, seed, config.size.questions, config.centre_bias)
    counts = {"ok": count, "failed": 0, "skipped": 0}
    manifest.write(
        file, RunManifest("scenes", "complete", settings, fingerprint, counts, seed=seed, versions=manifest.versions())
    )


def annotate(config: DemoConfig, policy: str, reporter: Reporter) -> None:
    from cos_core.annotate import AnnotateConfig, run

    train = config.out / "scenes" / "train"
    run(
        AnnotateConfig(
            data=train / "questions.jsonl",
            images=train / "images",
            model=config.model,
            out=config.labels(policy),
            policy=policy,
            seed=config.seed,
            batch_images=16,
        ),
        reporter,
    )


def train(config: DemoConfig, name: str, reporter: Reporter) -> None:
    from cos_core.training import TrainConfig, run

    this, size, data = arm(name), config.size, config.out / "scenes" / "train"
    run(
        TrainConfig(
            data=data / "questions.jsonl",
            images=data / "images",
            model=config.model,
            out=Path(config.checkpoint(this)),
            store=config.labels(this.labels) if this.labels else None,
            policy=this.policy,
            learning_rate=size.learning_rate,
            warmup_ratio=0.05,
            batch_size=size.batch,
            global_batch=size.batch,
            max_steps=size.steps,
            seed=config.seed,
        ),
        reporter,
    )


def infer(config: DemoConfig, name: str, reporter: Reporter) -> None:
    """Answers in every arm of the model called `name`, side by side: its arms share pictures and first passes."""
    from cos_core.infer.stage import run_together

    outcomes = run_together([_answering(config, each) for each in models()[name]], reporter)
    for outcome in outcomes:
        if isinstance(outcome, FailuresError):
            raise outcome


def _answering(config: DemoConfig, this: Arm) -> InferConfig:
    from cos_core.infer import InferConfig

    data = config.out / "scenes" / "test"
    config.predictions(this).parent.mkdir(parents=True, exist_ok=True)
    return InferConfig(
        model=config.checkpoint(this),
        out=config.predictions(this),
        data=data / "questions.jsonl",
        images=data / "images",
        roi=this.policy,
        batch_size=64,
        box_decode=this.box_decode,
        crop=this.crop,
        max_new_tokens=12,
        seed=config.seed,
    )


def score(config: DemoConfig, name: str, reporter: Reporter) -> None:
    from cos_core.evaluate import EvalConfig, run

    this = arm(name)
    run(
        EvalConfig(
            benchmark="scenes",
            data=config.out / "scenes" / "test",
            predictions=config.predictions(this),
            out=config.scores(this),
        ),
        reporter,
    )


def plan(config: DemoConfig) -> list[Task]:
    """Every step with its needs, in the order in which free workers start them."""
    tasks = [Task("scenes train", make_scenes, "train"), Task("scenes test", make_scenes, "test")]
    for policy in LABELS:
        cost = 1 if policy in ("random", "gold") else 40
        tasks.append(Task(f"annotate {policy}", annotate, policy, ("scenes train",), cost))
    for row in ARMS:
        if row.trained and row.weights is None:
            needs = ("scenes train", *([f"annotate {row.labels}"] if row.labels else []))
            tasks.append(Task(f"train {row.name}", train, row.name, needs, 25))
    for name, rows in models().items():
        weights = [] if name == START else [f"train {name}"]
        tasks.append(Task(f"infer {name}", infer, name, (*weights, "scenes test"), 5 * len(rows)))
        tasks += [Task(f"score {row.name}", score, row.name, (f"infer {name}",)) for row in rows]
    return tasks
