"""The two passes of Chain-of-Spot (CoS Eq. 2-3): ask where to look, cut that region out, answer with both pictures.

    box text = generate(image, Inst.1(question))                                        Eq. 2
    answer   = generate(image, Inst.1(question), box text, crop, Inst.2(question))      Eq. 3

Everything that goes wrong for one question becomes a Prediction with `error`; everything that goes wrong with a box becomes its
`box_status`. Predictions are appended durably in the order of the data, so a killed run continues where it stopped.
Imports no torch itself: the engine does when it is built.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cos_core.data.datasets import paths_of
from cos_core.errors import FailuresError, InputError
from cos_core.files import failures, manifest, outputs, picture_files
from cos_core.files.durable_writer import DurableWriter
from cos_core.infer import answers_file, model_flops
from cos_core.infer.answers_file import AnswerCounts, AnswerLine, FormerAnswers
from cos_core.infer.config import InferConfig
from cos_core.infer.questions import Questions, problems_file, questions
from cos_core.infer.settings import model_fingerprint, note_dtype, note_family, setting
from cos_core.infer.steps import Setting
from cos_core.infer.work import around, portions, start
from cos_core.interfaces import Engine, Reporter, Runner
from cos_core.runners.local import Local
from cos_core.types import Prediction, RunManifest

__all__ = ["check_out", "run", "run_together", "start"]

_FIELDS = ("example_id|answer", "answer", "box_status|fingerprint")
"""What a line of a file of answers holds, at least."""


def run(config: InferConfig, reporter: Reporter, engine: Engine | None = None, workers: Runner | None = None) -> RunManifest:
    """Answers every question of `config.data` into the JSON Lines file `config.out`, and writes its manifest last.

    Questions that `out` already holds are not asked again, but those that failed for a reason outside them
    (Prediction.transient), or, with `retry_failed`, all that failed; the finished file has the order of the data.
    `engine`, or the `workers` that `start` gave, answer instead of what the config names. Counts are those of the whole
    file; bad lines of the data count as failed and are named in `<out>.problems.jsonl`, samples without a picture as skipped.
    Raises InputError for settings or data that cannot be used, CosError when the data changes while the model is loaded,
    LockedError when another run writes `out`, FailuresError once more than `max_failures` items have failed, or when the run as
    a whole failed (see failures.py); what was finished stays.
    """
    (outcome,) = run_together([config], reporter, engine, workers)
    if isinstance(outcome, FailuresError):
        raise outcome
    return outcome


def run_together(
    configs: Sequence[InferConfig], reporter: Reporter, engine: Engine | None = None, workers: Runner | None = None
) -> list[RunManifest | FailuresError]:
    """As `run` for each config, side by side: they differ in how the same model answers the same questions about the same
    pictures, each with an `out` of its own.

    A picture is read once for all of them, and a request that several of them share is sent once; each file is what a run of
    its own would write. The result of each is its manifest, or the error that its run would have raised for failures; when one
    fails too often, all stop there. Raises what `run` raises else, and InputError for two that have the same settings.
    """
    first = configs[0]
    for config in configs:
        if config.out is None or (config.data is None and not (config.images and config.question)):
            raise InputError("a run needs a file of questions (data) and a file for the answers (out)")
        check_out(config.out, config)
    picture_files.check_folder(first.images)
    # Before a model is loaded: faults of the data are reported at once.
    data = questions(first, reporter)
    if workers is not None:
        return _run(configs, data, reporter, workers)
    with start(first, reporter) if engine is None else around(engine, first) as runner:
        return _run(configs, data, reporter, runner)


def check_out(out: Path, config: InferConfig) -> None:
    """Raises InputError when `out` is there and holds something else than predictions, or is what the run reads."""
    model = Path(config.model) if isinstance(config.model, str | Path) else None
    data = paths_of(config.data) if config.data is not None else ()
    outputs.check_file(out, "infer", (*data, config.images, config.image, model), outputs.records_with(*_FIELDS))


def _run(
    configs: Sequence[InferConfig], data: Questions, reporter: Reporter, runner: Runner
) -> list[RunManifest | FailuresError]:
    if configs[0].scale.chosen(list) == "ray":
        # What "auto" means is decided on the machines that run the model.
        dtype = runner.about["dtype"]
        configs = [replace(config, dtype=dtype or config.dtype) for config in configs]
    arms = [_Arm(config, config.out, data, reporter, setting(config)) for config in configs if config.out is not None]
    by_fingerprint = {arm.setting.fingerprint: arm for arm in arms}
    if len(by_fingerprint) < len(arms):
        raise InputError("two of the runs that go together have the same settings")
    started = [arm.started() for arm in arms]
    note_dtype(configs[0], reporter)
    note_family(configs[0], reporter)
    with ExitStack() as stack:
        for arm in arms:
            arm.open(stack)
        _ask(arms, by_fingerprint, data, reporter, runner)
        for arm in arms:
            arm.restore_order()
    outcomes: list[RunManifest | FailuresError] = []
    for arm, clock in zip(arms, started, strict=True):
        outcomes.append(arm.outcome(clock))
    return outcomes


def _ask(arms: Sequence[_Arm], by_fingerprint: Mapping[str, _Arm], data: Questions, reporter: Reporter, runner: Runner) -> None:
    """Writes the answers that the files lack as they come, until more of one arm have failed than may."""
    wanted: dict[str, tuple[int, ...]] = {}
    for number, arm in enumerate(arms):
        for example_id in arm.todo:
            wanted[example_id] = (*wanted.get(example_id, ()), number)
    total, done = len(arms) * len(data.examples), sum(len(data.examples) - len(arm.todo) for arm in arms)
    reporter.progress("infer", done, total)
    if not wanted or any(arm.failed_too_often for arm in arms):
        return
    examples = [example for example in data.examples if example.id in wanted]
    work = portions(
        [arm.config for arm in arms],
        examples,
        data.siblings,
        here=isinstance(runner, Local),
        names=data.pictures,
        arms={example_id: numbers for example_id, numbers in wanted.items() if len(numbers) < len(arms)},
    )
    # Closed at once when the loop is left, so that workers do not go on.
    with closing(runner.map(work)) as batches:
        for number, predictions in enumerate(batches):
            if number == 0:
                for arm in arms:
                    answers_file.write_settings(arm.out, arm.setting)
            for prediction in predictions:
                by_fingerprint[prediction.fingerprint].add(prediction)
            done += len(predictions)
            failed = sum(arm.counts.failed for arm in arms)
            reporter.progress("infer", done, total, f"{failed} failed" if failed else "")
            if any(arm.failed_too_often for arm in arms):
                return


@dataclass(slots=True)
class _Arm:
    """One run of those that go together: its settings, its file and its counts.

    `todo`: the ids of the questions that the file does not answer.
    """

    config: InferConfig
    out: Path
    data: Questions
    reporter: Reporter
    setting: Setting
    counts: AnswerCounts = field(default_factory=AnswerCounts)
    todo: set[str] = field(default_factory=set)
    _writer: DurableWriter | None = None
    _former: FormerAnswers | None = None
    _resumed: bool = False

    @property
    def failed_too_often(self) -> bool:
        return self.counts.exceeds(self.config.max_failures)

    def started(self) -> manifest.Started:
        """Raises CosError when the data is not what was read."""
        config, snapshot = self.config, self.data.snapshot
        if snapshot is not None:
            snapshot.check()
        inputs = {
            "data": manifest.files_input(config.data) if config.data else {"path": str(config.images)},
            "model": {"path": str(config.model), "fingerprint": model_fingerprint(config)},
        }
        if snapshot is not None:
            snapshot.check()
        return manifest.started("infer", config, seed=config.seed, inputs=inputs, settings_fingerprint=self.setting.fingerprint)

    def open(self, stack: ExitStack) -> None:
        """Opens the file of answers until the stack is left, and finds what it does not answer yet."""
        examples = self.data.examples
        self.counts.failed, self.counts.skipped = len(self.data.problems), self.data.text_only
        self._writer = stack.enter_context(DurableWriter(self.out, batch=self.config.batch_size, check=Prediction.from_json))
        answers_file.write_problems(self.out, self.data.problems)
        self._former = FormerAnswers.read(self.out, self.setting, examples)
        answered = self._former.settle(self._writer, self.counts, retry_all=self.config.retry_failed)
        self.todo = {example.id for example in examples if example.id not in answered}
        self._resumed = bool(answered and self.todo)
        self._former.report(self.reporter, len(examples) - len(self.todo), len(examples))
        if self.todo:
            # The old manifest describes a finished file, which this one no longer is.
            manifest.path_for(self.out).unlink(missing_ok=True)

    def add(self, prediction: Prediction) -> None:
        """Writes an answer."""
        if self._writer is not None:
            self._writer.append(prediction.to_json())
        self.counts.add(AnswerLine.of(prediction))
        self.todo.discard(prediction.example_id)

    def restore_order(self) -> None:
        """Puts the file into the order of the data where answers were added to a former run's."""
        if self._resumed and self._former is not None and self._writer is not None:
            self._former.restore_order(self._writer)

    def outcome(self, started: manifest.Started) -> RunManifest | FailuresError:
        """Writes the manifest. The error when the run as a whole failed; for one that stopped since another failed, too."""
        counts, problems = self.counts, self.data.problems
        listed = f"all of them: grep -v '\"error\":null' {shlex.quote(str(self.out))}"
        failed = failures.verdict(
            counts.ok + counts.skipped, counts.failed, self.config.max_failures, counts.reasons, of="questions", listed=listed
        )
        if failed is None and self.todo:
            return FailuresError(f"{self.out} lacks {len(self.todo)} answers: a run beside it had too many failures")
        results: dict[str, Any] = {"settings": self.setting.settings}
        results |= model_flops.recorded(self.config, self.setting, self.data.examples)
        if problems:
            results["problems"] = {"count": len(problems), "file": problems_file(self.out).name}
        finished = started.finish(counts.to_json(), status="complete" if failed is None else "failed", results=results)
        manifest.write(manifest.path_for(self.out), finished)
        answers_file.settings_file(self.out).unlink(missing_ok=True)
        if failed is not None:
            return failed
        if counts.failed and (words := counts.reasons.most()):
            self.reporter.warn(f"{counts.failed} questions failed; {words}; {listed}")
        return finished
