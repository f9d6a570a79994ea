"""Several benchmarks, several arms, one model: what `cos eval` does once its options are read.

Everything is decided from files, so that the same call goes on where a former one was stopped: questions that are answered are
not asked again, and a score is written only for a whole set of answers (or, recorded answers, with what is missing named).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cos_core import options
from cos_core.benchmarks import _files
from cos_core.errors import FailuresError, InputError, RegressionError, TimeUpError, UndefinedError
from cos_core.evaluate import EvalConfig, answers_file, gate_run, importing
from cos_core.evaluate import stage as evaluate
from cos_core.files import durable, manifest, outputs, plug
from cos_core.files.locks import FileLock, identity
from cos_core.files.picture_files import check_folder
from cos_core.infer import InferConfig
from cos_core.infer import stage as infer
from cos_core.infer.arms import Arm
from cos_core.interfaces import Benchmark, BenchmarkData, Reporter, Runner
from cos_core.scoring import gate_curve, samples
from cos_core.suite import gates
from cos_core.suite.config import Part, SuiteConfig
from cos_core.suite.scored import Scored
from cos_core.types import Example

ANSWERS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Suite:
    """One call: its settings, and a message for each run in which most questions failed."""

    config: SuiteConfig
    arms: Sequence[Arm]
    failed: list[str] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.config.data or Path()

    @property
    def limit(self) -> int | None:
        return self.config.scoring.limit

    def root(self, name: str) -> Path:
        """A benchmark's folder below `data`, else `data` itself (_files.home)."""
        return _files.home(self.data, plug.short(name), plug.load("benchmarks", name))

    def folder(self, name: str, arm: str) -> Path | None:
        """Where one benchmark's run of one arm lies: `out` itself when there is only one."""
        config = self.config
        if config.out is None:
            return None
        pieces = [arm] if len(self.arms) > 1 else []
        pieces += [plug.short(name)] if len(config.benchmarks) > 1 or len(self.arms) > 1 else []
        return config.out.joinpath(*pieces)


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The scored benchmarks, the failed checks, and a message for each run in which most questions failed."""

    runs: list[Scored]
    missed: gates.Missed
    failed: list[str]

    def conclude(self) -> None:
        """Raises FailuresError, RegressionError or UndefinedError, the first that applies; nothing when all is well."""
        dead = [scored for scored in self.runs if not scored.manifest.counts.get("ok")]
        if dead and dead[0].manifest.results.get("beside", {}).get("ungraded"):
            raise FailuresError(f"no grade of {dead[0].benchmark} could be read from what the judge replied; there is no score")
        if dead:
            first = f"{dead[0].benchmark}{f' ({dead[0].arm})' if dead[0].arm else ''}"
            raise FailuresError(
                f"not one question of {first} was answered: all {dead[0].manifest.counts.get('total')} failed"
                + (f"; {self.failed[0]}" if self.failed else "")
            )
        if self.failed:
            raise FailuresError(self.failed[0])
        unclear = f"undefined: {'; '.join(self.missed.undefined)}" if self.missed.undefined else ""
        if self.missed.worse:
            raise RegressionError(f"worse than allowed: {'; '.join(self.missed.worse)}{f'; {unclear}' if unclear else ''}")
        if unclear:
            raise UndefinedError(unclear)


@dataclass(slots=True)
class _Loaded:
    name: str
    benchmark: Benchmark
    data: BenchmarkData


def run(config: SuiteConfig, reporter: Reporter, arms: Sequence[Arm] | None = None) -> SuiteResult:
    """Answers, scores and checks limits and baseline; nothing is scored when one part of several was answered.

    `arms`: the ways to answer instead of those that `config` names, each with a folder of its name in `out`.
    With a limit the first questions of each benchmark are answered and scored, and the score is marked as partial.
    Raises InputError before anything is run when a benchmark's files cannot be used, TimeUpError when `max_runtime` is over.
    """
    limits = gates.parsed_limits(config.fail_under)
    suite = Suite(config, config.arms if arms is None else arms)
    runs = _run(suite, reporter)
    below = gates.below(runs, limits)
    against = gates.against(runs, config.baseline, reporter) if config.baseline and runs else gates.Missed([], [])
    missed = gates.Missed([*below.worse, *against.worse], [*below.undefined, *against.undefined])
    whole = bool(runs) and not suite.failed and all(scored.manifest.counts.get("ok") for scored in runs)
    if whole and config.latest is not None and config.out is not None:
        gates.link(config.latest, config.out)
    return SuiteResult(runs, missed, suite.failed)


def _run(suite: Suite, reporter: Reporter) -> list[Scored]:
    config = suite.config
    with _locked(config):
        reporter = Until(reporter, config.max_runtime) if config.max_runtime is not None else reporter
        benchmarks = [_load(suite, name, reporter) for name in config.benchmarks]
        for loaded in benchmarks:
            _check_places(suite, loaded)
        if config.model is not None:
            for loaded in benchmarks:
                if any(example.image is not None for example in loaded.data.examples):
                    check_folder(loaded.data.image_root)
            settings = options.widened(InferConfig, config.answering, model=config.model)
            with infer.start(settings, reporter) as workers:
                for loaded in benchmarks:
                    _answer(suite, loaded, settings, workers, reporter)
        if config.part is not None and config.part.number is not None:
            return []
        return [_score(suite, loaded, arm.name, reporter) for arm in suite.arms for loaded in benchmarks]


_PROBLEMS_SHOWN = 5


def _load(suite: Suite, name: str, reporter: Reporter) -> _Loaded:
    root = suite.root(name)
    benchmark, data = evaluate.load(name, root, suite.config.scoring.split, suite.config.scoring.scorer)
    evaluate.check_data(benchmark, data, root, reporter)
    if suite.config.model is not None:
        if suite.limit is None and (usual := evaluate.other_count(benchmark, data)) is not None:
            reporter.warn(
                f"{data.name} {data.split} has {len(data.examples):,} questions here, {usual:,} in the official files"
            )
        problems = benchmark.unpack(root) or ()
        for words in problems[:_PROBLEMS_SHOWN]:
            reporter.warn(words)
        if (rest := len(problems) - _PROBLEMS_SHOWN) > 0:
            reporter.warn(f"and {rest} more pictures like these")
    return _Loaded(name, benchmark, data)


def _check_places(suite: Suite, loaded: _Loaded) -> None:
    """Raises InputError, before anything is written, for a folder with files that are not this run's: the data, other
    files under our names, the scores of another benchmark, answers that are not the ones to score."""
    question_lines, score_lines = outputs.records_with("id", "dataset", "question"), outputs.records_with("example_id", "value")
    answers = outputs.records_with("example_id|answer", "answer", "box_status|fingerprint")
    files = {
        "scores.jsonl": score_lines,
        "regions.jsonl": outputs.records_with("example_id"),
        "problems.jsonl": outputs.records_with("kind", "line", "id"),
        importing.FILE: answers,
        gate_curve.CURVE: outputs.beginning(b'{"benchmark"'),
        gate_curve.TABLE: outputs.beginning(",".join(gate_run.HEAD).encode()),
        **({"questions.jsonl": question_lines, ANSWERS: answers} if suite.config.model else {}),
    }
    for arm in suite.arms:
        folder = suite.folder(loaded.name, arm.name)
        if folder is None:
            continue
        of_samples = {path.name: score_lines for path in samples.files_in(folder)}
        outputs.check_folder(folder, "eval", (suite.data, suite.root(loaded.name)), files | of_samples)
        own_answers = folder / ANSWERS
        if suite.config.predictions is not None and len(suite.config.benchmarks) == 1 and own_answers.is_file():
            recorded = suite.config.predictions / ANSWERS if suite.config.predictions.is_dir() else suite.config.predictions
            if identity(recorded) != identity(own_answers):
                raise InputError(
                    f"{folder} holds answers of its own, {recorded} are others; name another folder for their scores"
                )
        if (folder / manifest.FILE).is_file():
            earlier = manifest.read(folder).results.get("benchmark", loaded.data.name)
            if earlier != loaded.data.name:
                raise InputError(f"{folder} holds scores of {earlier}; name another folder for those of {loaded.data.name}")


def _answer(suite: Suite, loaded: _Loaded, settings: InferConfig, workers: Runner, reporter: Reporter) -> None:
    """Runs `infer` over a benchmark's questions, all arms together; the questions stand beside the answers of each."""
    part = suite.config.part
    data = evaluate.first(loaded.data, suite.limit)
    answers, question_file = ANSWERS, "questions.jsonl"
    if part is not None:
        examples = [example for example in data.examples if part.holds(example.image, example.id)]
        answers, question_file = part.file(part.number or 0), f"questions.{part.number}-of-{part.of}.jsonl"
        data = replace(data, examples=examples)
        if not examples:
            reporter.note(f"{data.name}: part {part.number} of {part.of} has no question")
            return
    configs = []
    for arm in suite.arms:
        folder = suite.folder(loaded.name, arm.name)
        if folder is None:
            raise InputError("running a model needs a folder for its answers")
        # infer counts questions without a picture (ScienceQA has them) as skipped.
        evaluate.write_questions(data, folder / question_file)
        asked = replace(arm.of(settings), data=folder / question_file, images=data.image_root, out=folder / answers)
        configs.append(asked)
    reporter.note(f"{data.name}, {', '.join(arm.name for arm in suite.arms)}: {len(data.examples)} questions")
    for arm, config, outcome in zip(suite.arms, configs, infer.run_together(configs, reporter, workers=workers), strict=True):
        if isinstance(outcome, FailuresError):
            if settings.max_failures is not None:
                raise outcome
            # Scored all the same, with what is missing named; the run ends with its code.
            reporter.warn(f"{data.name}, {arm.name}: {outcome}")
            suite.failed.append(f"{data.name}, {arm.name}: {outcome}")
        elif config.out is not None:
            reporter.note(manifest.summary(outcome, config.out))


def _score(suite: Suite, loaded: _Loaded, arm: str, reporter: Reporter) -> Scored:
    folder = suite.folder(loaded.name, arm)
    predictions = suite.config.predictions if suite.config.predictions is not None else folder
    if predictions is None:
        raise InputError("nothing to score: neither recorded answers nor a folder with answers is given")
    if suite.config.part is not None and folder is not None:
        _collect(suite.config.part, evaluate.first(loaded.data, suite.limit), folder)
    if suite.config.predictions is not None and len(suite.config.benchmarks) > 1:
        predictions = _recorded(suite.config.predictions, loaded.name)
    places = {"data": suite.root(loaded.name), "predictions": predictions, "out": folder}
    config = options.widened(EvalConfig, suite.config.scoring, benchmark=loaded.name, **places)
    scored = evaluate.run(config, reporter, (loaded.benchmark, loaded.data))
    if folder is not None:
        reporter.note(manifest.summary(scored, folder))
    upload = None
    if suite.config.submissions and folder is not None:
        upload = folder / f"{loaded.data.name}-{loaded.data.split}-submission{loaded.benchmark.upload}"
        if not evaluate.submission(config, upload):
            reporter.note(f"{loaded.data.name} {loaded.data.split} is scored here; it has no submission file")
            upload = None
    return Scored(loaded.data.name, arm if suite.config.model or len(suite.arms) > 1 else None, scored, folder, upload)


def _recorded(root: Path, name: str) -> Path:
    """The answers to one of several benchmarks: ROOT/<name>.jsonl, ROOT/<name>/predictions.jsonl, or a harness's file there."""
    for path in (root / f"{plug.short(name)}.jsonl", root / plug.short(name) / ANSWERS):
        if path.is_file():
            return path
    if (recorded := answers_file.file_for(root, name)) is not None:
        return recorded
    raise InputError(f"{root} has neither {plug.short(name)}.jsonl nor {plug.short(name)}/{ANSWERS}")


def _collect(part: Part, data: BenchmarkData, folder: Path) -> None:
    """Joins the answers of all parts into one file, in the order of the data. Raises InputError that names absent parts."""

    def questions(number: int) -> list[Example]:
        mine = Part(part.of, number)
        return [example for example in data.examples if mine.holds(example.image, example.id)]

    files = {number: folder / part.file(number) for number in range(1, part.of + 1) if questions(number)}
    absent = [str(number) for number, file in files.items() if not manifest.path_for(file).is_file()]
    if absent:
        raise InputError(f"{folder} lacks finished answers of part {', '.join(absent)} of {part.of}; no score is given")
    fingerprints = {manifest.read(manifest.path_for(file)).fingerprint for file in files.values()}
    if len(fingerprints) > 1:
        raise InputError(f"the parts in {folder} were answered with different settings; answer them again")
    rows: dict[str, tuple[int, int]] = {}
    parts = [evaluate.read_predictions(file) for file in files.values()]
    for number, recorded in enumerate(parts):
        for _, prediction in recorded.walk():
            rows[prediction.example_id] = (number, len(recorded) - 1)
    places = (rows[e.id] for e in data.examples if e.id in rows)
    evaluate.write_records((parts[number][row] for number, row in places), folder / ANSWERS)


@contextmanager
def _locked(config: SuiteConfig) -> Iterator[None]:
    """The run's lock, released when the call or its process ends. Different parts do not exclude each other."""
    if config.out is None:
        yield
        return
    part = config.part
    name = f".part-{part.number}-of-{part.of}.lock" if part and part.number else ".run.lock"
    with durable.made_folder(config.out), FileLock(config.out / name, what=config.out) as lock:
        yield
        lock.check_place()


class Until:
    """A Reporter that ends the run at the first progress after `seconds`: batches are reported once they are on the disk."""

    def __init__(self, reporter: Reporter, seconds: float) -> None:
        self._reporter = reporter
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def note(self, text: str) -> None:
        self._reporter.note(text)

    def warn(self, text: str) -> None:
        self._reporter.warn(text)

    def progress(self, stage: str, done: int, total: int | None, detail: str = "") -> None:
        self._reporter.progress(stage, done, total, detail)
        if time.monotonic() >= self._end and not (total is not None and done >= total):
            raise TimeUpError(
                f"time is up after {self._seconds:g} s with {done} of {total} questions answered; the same command continues"
            )
