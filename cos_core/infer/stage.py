"""The two passes of Chain-of-Spot (CoS Eq. 2-3): ask where to look, cut that region out, answer with both pictures.

    box text = generate(image, Inst.1(question))                                        Eq. 2
    answer   = generate(image, Inst.1(question), box text, crop, Inst.2(question))      Eq. 3

Everything that goes wrong for one question becomes a Prediction with `error`; everything that goes wrong with a box becomes its
`box_status`. Predictions are appended durably in the order of the data, so a killed run continues where it stopped.
Imports no torch itself: the engine does when it is built.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cos_core.data.datasets import paths_of
from cos_core.errors import InputError
from cos_core.files import failures, manifest, outputs, picture_files
from cos_core.files.durable_writer import DurableWriter
from cos_core.infer import answers_file
from cos_core.infer.answers_file import AnswerCounts, AnswerLine, FormerAnswers
from cos_core.infer.config import InferConfig
from cos_core.infer.passes import Setting
from cos_core.infer.questions import Questions, problems_file, questions
from cos_core.infer.settings import model_fingerprint, note_dtype, note_family, setting
from cos_core.infer.work import around, portions, start
from cos_core.interfaces import Engine, Reporter, Runner
from cos_core.runners.local import Local
from cos_core.types import Example, Prediction, RunManifest

__all__ = ["check_out", "run", "start"]

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
    if config.out is None or (config.data is None and not (config.images and config.question)):
        raise InputError("a run needs a file of questions (data) and a file for the answers (out)")
    check_out(config.out, config)
    picture_files.check_folder(config.images)
    # Before a model is loaded: faults of the data are reported at once.
    data = questions(config, reporter)
    if workers is not None:
        return _run(config, config.out, data, reporter, workers)
    with start(config, reporter) if engine is None else around(engine, config) as runner:
        return _run(config, config.out, data, reporter, runner)


def check_out(out: Path, config: InferConfig) -> None:
    """Raises InputError when `out` is there and holds something else than predictions, or is what the run reads."""
    model = Path(config.model) if isinstance(config.model, str | Path) else None
    data = paths_of(config.data) if config.data is not None else ()
    outputs.check_file(out, "infer", (*data, config.images, config.image, model), outputs.records_with(*_FIELDS))


def _run(config: InferConfig, out: Path, data: Questions, reporter: Reporter, runner: Runner) -> RunManifest:
    if config.scale.chosen(list) == "ray":
        # What "auto" means is decided on the machines that run the model.
        config = replace(config, dtype=runner.about["dtype"] or config.dtype)
    run = _Run(config, out, data, reporter, setting(config))
    started = run.started()
    note_dtype(config, reporter)
    note_family(config, reporter)
    run.answer(runner)
    return run.finish(started)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: its settings, its data and its counts."""

    config: InferConfig
    out: Path
    data: Questions
    reporter: Reporter
    setting: Setting
    counts: AnswerCounts = field(default_factory=AnswerCounts)

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

    def answer(self, runner: Runner) -> None:
        """Asks what the file does not answer yet."""
        config, examples = self.config, self.data.examples
        self.counts.failed, self.counts.skipped = len(self.data.problems), self.data.text_only
        with DurableWriter(self.out, batch=config.batch_size, check=Prediction.from_json) as writer:
            answers_file.write_problems(self.out, self.data.problems)
            former = FormerAnswers.read(self.out, self.setting, examples)
            answered = former.settle(writer, self.counts, retry_all=config.retry_failed)
            todo = [example for example in examples if example.id not in answered]
            done = len(examples) - len(todo)
            former.report(self.reporter, done, len(examples))
            self.reporter.progress("infer", done, len(examples))
            if todo:
                # The old manifest describes a finished file, which this one no longer is.
                manifest.path_for(self.out).unlink(missing_ok=True)
            if todo and not self.counts.exceeds(config.max_failures):
                self._ask(todo, runner, writer)
            if answered and todo:
                former.restore_order(writer)

    def _ask(self, todo: Sequence[Example], runner: Runner, writer: DurableWriter) -> None:
        """Writes the answers to `todo` as they come, until more have failed than may."""
        work = portions(self.config, todo, self.data.siblings, here=isinstance(runner, Local))
        total = len(self.data.examples)
        done = total - len(todo)
        # Closed at once when the loop is left, so that workers do not go on.
        with closing(runner.map(work)) as batches:
            for number, predictions in enumerate(batches):
                if number == 0:
                    answers_file.write_settings(self.out, self.setting)
                for prediction in predictions:
                    writer.append(prediction.to_json())
                    self.counts.add(AnswerLine.of(prediction))
                done += len(predictions)
                self.reporter.progress("infer", done, total, self.counts.words())
                if self.counts.exceeds(self.config.max_failures):
                    return

    def finish(self, started: manifest.Started) -> RunManifest:
        """Writes the manifest. Raises FailuresError when the run as a whole failed."""
        counts, problems = self.counts, self.data.problems
        listed = f"all of them: grep -v '\"error\":null' {shlex.quote(str(self.out))}"
        failed = failures.verdict(
            counts.ok + counts.skipped, counts.failed, self.config.max_failures, counts.reasons, of="questions", listed=listed
        )
        results: dict[str, Any] = {"settings": self.setting.settings}
        if problems:
            results["problems"] = {"count": len(problems), "file": problems_file(self.out).name}
        finished = started.finish(counts.to_json(), status="complete" if failed is None else "failed", results=results)
        manifest.write(manifest.path_for(self.out), finished)
        answers_file.settings_file(self.out).unlink(missing_ok=True)
        if failed is not None:
            raise failed
        if counts.failed and (words := counts.reasons.most()):
            self.reporter.warn(f"{counts.failed} questions failed; {words}; {listed}")
        return finished
