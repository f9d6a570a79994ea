"""Several benchmarks, several arms, one model: what `cos eval` does once its options are read.

Everything is decided from files, so that the same call goes on where a former one was stopped: questions that are answered are
not asked again, and a score is written only for a whole set of answers (or, recorded answers, with what is missing named).
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_cli.console import summary
from cos_core.errors import FailuresError, InputError, TimeUpError
from cos_core.files.jsonl import utf8
from cos_core.files.locks import identity

if TYPE_CHECKING:
    from cos_core.evaluate import EvalConfig
    from cos_core.infer import InferConfig
    from cos_core.interfaces import Benchmark, BenchmarkData, Reporter, Runner
    from cos_core.types import RunManifest

ANSWERS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Part:
    """A run in `of` parts that need not know of each other: answer only part `number` (from 1), or, without, score them all."""

    of: int
    number: int | None = None

    def __post_init__(self) -> None:
        if self.of < 1 or (self.number is not None and not 1 <= self.number <= self.of):
            raise InputError(f"a part is a number from 1 to the number of parts, got {self.number} of {self.of}")

    def file(self, number: int) -> str:
        return f"predictions.{number}-of-{self.of}.jsonl"

    def holds(self, image: str | None, example_id: str) -> bool:
        """Whether a question is this part's: all questions of a picture are one part's, whatever the order of the file."""
        return zlib.crc32(utf8(image or example_id)) % self.of + 1 == self.number


@dataclass(frozen=True, slots=True)
class Suite:
    """One call. `score` has the settings of scoring (its benchmark and predictions are filled in), `model` those of answering,
    None to score what is there; `arms` are values of --roi; `out` None writes nothing."""

    benchmarks: Sequence[str]
    data: Path
    score: EvalConfig
    model: InferConfig | None = None
    predictions: Path | None = None
    arms: Sequence[str] = ("model",)
    out: Path | None = None
    part: Part | None = None
    max_seconds: float | None = None
    submissions: bool = False
    failed: list[str] = field(default_factory=list)
    """What each run says of itself in which most questions failed."""

    def root(self, name: str) -> Path:
        """A benchmark's folder below `data`, else `data` itself (_files.home)."""
        from cos_core.benchmarks import _files
        from cos_core.files import plug

        return _files.home(self.data, short(name), plug.load("benchmarks", name))

    def folder(self, name: str, arm: str) -> Path | None:
        """Where one benchmark's run of one arm lies: `out` itself when there is only one."""
        if self.out is None:
            return None
        pieces = [arm] if len(self.arms) > 1 else []
        pieces += [short(name)] if len(self.benchmarks) > 1 or len(self.arms) > 1 else []
        return self.out.joinpath(*pieces)


@dataclass(frozen=True, slots=True)
class Scored:
    """One benchmark under one arm: its manifest and where it lies; `upload` is the file for the server that scores it."""

    benchmark: str
    arm: str | None
    manifest: RunManifest
    folder: Path | None
    upload: Path | None = None

    def to_json(self) -> dict[str, Any]:
        found = {**self.manifest.results, "status": self.manifest.status, "counts": self.manifest.counts}
        where = {"arm": self.arm, "folder": str(self.folder) if self.folder else None}
        return {
            **found,
            "fingerprint": self.manifest.fingerprint,
            **where,
            **({"upload": str(self.upload)} if self.upload else {}),
        }


@dataclass(slots=True)
class _Loaded:
    name: str
    benchmark: Benchmark
    data: BenchmarkData


def short(name: str) -> str:
    """A benchmark's name in paths: a plug-in file's stem."""
    return Path(name.partition(":")[0]).stem


def run(suite: Suite, reporter: Reporter) -> list[Scored]:
    """Answers and scores; empty when one part of several has been answered.

    With `score.limit` the first questions of each benchmark are answered and scored, and the score is marked as partial.
    Raises InputError before anything is run when a benchmark's files cannot be used, TimeUpError when `max_seconds` are over.
    """
    with _locked(suite):
        reporter = Until(reporter, suite.max_seconds) if suite.max_seconds is not None else reporter
        loaded = [_load(suite, name, reporter) for name in suite.benchmarks]
        for each in loaded:
            _check_places(suite, each)
        if suite.model:
            from cos_core.files.picture_files import check_folder
            from cos_core.infer import stage as infer

            for each in loaded:
                if any(example.image is not None for example in each.data.examples):
                    check_folder(each.data.image_root)
            with infer.start(suite.model, reporter) as workers:
                for each in loaded:
                    for arm in suite.arms:
                        _answer(suite, each, arm, workers, reporter)
        if suite.part is not None and suite.part.number is not None:
            return []
        return [_score(suite, each, arm, reporter) for arm in suite.arms for each in loaded]


_PROBLEMS_TOLD = 5


def _load(suite: Suite, name: str, reporter: Reporter) -> _Loaded:
    from cos_core.evaluate import stage as evaluate

    root = suite.root(name)
    benchmark, data = evaluate.load(name, root, suite.score.split, suite.score.scorer)
    evaluate.check_data(benchmark, data, root, reporter)
    if suite.model is not None:
        if suite.score.limit is None and (usual := evaluate.other_count(benchmark, data)) is not None:
            reporter.warn(
                f"{data.name} {data.split} has {len(data.examples):,} questions here, {usual:,} in the official files"
            )
        problems = benchmark.unpack(root) or ()
        for words in problems[:_PROBLEMS_TOLD]:
            reporter.warn(words)
        if (rest := len(problems) - _PROBLEMS_TOLD) > 0:
            reporter.warn(f"and {rest} more pictures like these")
    return _Loaded(name, benchmark, data)


def _check_places(suite: Suite, each: _Loaded) -> None:
    """Raises InputError, before anything is written, for a folder with files that are not this run's: the data, others' files
    of our names, the scores of another benchmark, answers of its own that are not the ones to score."""
    from cos_core.files import manifest, outputs

    asked = outputs.records_with("id", "dataset", "question")
    answers = outputs.records_with("example_id|answer", "answer", "box_status|fingerprint")
    files = {
        "scores.jsonl": outputs.records_with("example_id", "value"),
        "regions.jsonl": outputs.records_with("example_id"),
        "problems.jsonl": outputs.records_with("kind", "line", "id"),
        **({"questions.jsonl": asked, ANSWERS: answers} if suite.model else {}),
    }
    for arm in suite.arms:
        folder = suite.folder(each.name, arm)
        if folder is None:
            continue
        outputs.check_folder(folder, "eval", (suite.data, suite.root(each.name)), files)
        own = folder / ANSWERS
        if suite.predictions is not None and len(suite.benchmarks) == 1 and own.is_file():
            given = suite.predictions / ANSWERS if suite.predictions.is_dir() else suite.predictions
            if identity(given) != identity(own):
                raise InputError(f"{folder} holds answers of its own, {given} are others; name another folder for their scores")
        if (folder / manifest.FILE).is_file():
            there = manifest.read(folder).results.get("benchmark", each.data.name)
            if there != each.data.name:
                raise InputError(f"{folder} holds scores of {there}; name another folder for those of {each.data.name}")


def _answer(suite: Suite, each: _Loaded, arm: str, workers: Runner, reporter: Reporter) -> None:
    """Runs `infer` over a benchmark's questions; they stand beside the answers."""
    from cos_core.evaluate import stage as evaluate
    from cos_core.infer import stage as infer

    folder = suite.folder(each.name, arm)
    if suite.model is None or folder is None:
        raise InputError("running a model needs a folder for its answers")
    data, part = evaluate.first(each.data, suite.score.limit), suite.part
    answers, asked = folder / ANSWERS, "questions.jsonl"
    if part is not None:
        examples = [example for example in data.examples if part.holds(example.image, example.id)]
        answers, asked = folder / part.file(part.number or 0), f"questions.{part.number}-of-{part.of}.jsonl"
        data = replace(data, examples=examples)
        if not examples:
            reporter.note(f"{data.name}: part {part.number} of {part.of} has no question")
            return
    # Questions about no picture (ScienceQA has them) are the data's, not the model's: infer counts them as skipped.
    evaluate.write_questions(data, folder / asked)
    reporter.note(f"{data.name}, --roi {arm}: {len(data.examples)} questions")
    settings = replace(suite.model, roi=arm, data=folder / asked, images=data.image_root, out=answers)
    try:
        done = infer.run(settings, reporter, workers=workers)
    except FailuresError as error:
        if settings.max_failures is not None:
            raise
        # Scored all the same, with what is missing named; the run ends with its code.
        reporter.warn(f"{data.name}, --roi {arm}: {error}")
        suite.failed.append(f"{data.name}, --roi {arm}: {error}")
        return
    reporter.note(summary(done, answers))


def _score(suite: Suite, each: _Loaded, arm: str, reporter: Reporter) -> Scored:
    from cos_core.evaluate import stage as evaluate

    folder = suite.folder(each.name, arm)
    predictions = suite.predictions if suite.predictions is not None else folder
    if predictions is None:
        raise InputError("nothing to score: neither recorded answers nor a folder with answers is given")
    if suite.part is not None and folder is not None:
        _collect(suite.part, evaluate.first(each.data, suite.score.limit), folder)
    if suite.predictions is not None and len(suite.benchmarks) > 1:
        predictions = _recorded(suite.predictions, each.name)
    config = replace(suite.score, benchmark=each.name, data=suite.root(each.name), predictions=predictions, out=folder)
    manifest = evaluate.run(config, reporter, (each.benchmark, each.data))
    if folder is not None:
        reporter.note(summary(manifest, folder))
    upload = None
    if suite.submissions and folder is not None:
        upload = folder / f"{each.data.name}-{each.data.split}-submission{each.benchmark.upload}"
        if not evaluate.submission(config, upload):
            reporter.note(f"{each.data.name} {each.data.split} is scored here; it has no submission file")
            upload = None
    return Scored(each.data.name, arm if suite.model or len(suite.arms) > 1 else None, manifest, folder, upload)


def _recorded(root: Path, name: str) -> Path:
    """The answers to one of several benchmarks: ROOT/<name>.jsonl or ROOT/<name>/predictions.jsonl."""
    for path in (root / f"{short(name)}.jsonl", root / short(name) / ANSWERS):
        if path.is_file():
            return path
    raise InputError(f"{root} has neither {short(name)}.jsonl nor {short(name)}/{ANSWERS}")


def _collect(part: Part, data: BenchmarkData, folder: Path) -> None:
    """Joins the answers of all parts into one file, in the order of the data. Raises InputError that names absent parts."""
    from cos_core.evaluate import stage as evaluate
    from cos_core.files import manifest
    from cos_core.types import Example

    def questions(number: int) -> list[Example]:
        mine = Part(part.of, number)
        return [example for example in data.examples if mine.holds(example.image, example.id)]

    files = {number: folder / part.file(number) for number in range(1, part.of + 1) if questions(number)}
    absent = [str(number) for number, file in files.items() if not manifest.path_for(file).is_file()]
    if absent:
        raise InputError(f"{folder} lacks finished answers of part {', '.join(absent)} of {part.of}; no score is given")
    made = {manifest.read(manifest.path_for(file)).fingerprint for file in files.values()}
    if len(made) > 1:
        raise InputError(f"the parts in {folder} were answered with different settings; answer them again")
    given: dict[str, tuple[int, int]] = {}
    parts = [evaluate.read_predictions(file) for file in files.values()]
    for number, recorded in enumerate(parts):
        for _, prediction in recorded.walk():
            given[prediction.example_id] = (number, len(recorded) - 1)
    places = (given[e.id] for e in data.examples if e.id in given)
    evaluate.write_records((parts[number][row] for number, row in places), folder / ANSWERS)


@contextmanager
def _locked(suite: Suite) -> Iterator[None]:
    """The run's own lock: held until the call ends, and by nobody when its process dies. Parts do not exclude each other."""
    from cos_core.files.locks import FileLock

    if suite.out is None:
        lock: Any = nullcontext()
    else:
        part = suite.part
        name = f".part-{part.number}-of-{part.of}.lock" if part and part.number else ".run.lock"
        try:
            suite.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{suite.out} cannot be made: {error.strerror}") from None
        lock = FileLock(suite.out / name, what=suite.out)
    with lock as held:
        yield
        if held is not None:
            held.check_place()


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


def link(name: Path, folder: Path) -> None:
    """Points the link `name` at `folder` in one step: whoever reads it sees the old run or the new one, never none."""
    import os

    if name.exists() and not name.is_symlink():
        raise InputError(f"{name} exists and is no link; give --latest another name")
    scratch = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        scratch.unlink(missing_ok=True)
        scratch.symlink_to(os.path.relpath(folder.resolve(), name.parent.resolve()))
        scratch.replace(name)
    except OSError as error:
        raise InputError(f"{name} cannot be linked to {folder}: {error.strerror}") from None


def limits(texts: Sequence[str]) -> dict[str, float]:
    """`METRIC=VALUE` texts as a mapping. Raises InputError."""
    found = {}
    for text in texts:
        name, mark, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            mark = ""
        if not mark or not name or math.isnan(found[name]):
            raise InputError(f"--fail-under takes METRIC=VALUE, such as mean_f1=0.85 or pope.mean_f1=0.85, not {text!r}")
    return found


def below(runs: Sequence[Scored], wanted: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """What stands below its limit, and which limited metrics are not defined (no number), in words.

    Raises InputError for a metric that no run has.
    """
    from cos_cli.evaluate.tables import flat

    fallen, undefined = [], []
    for name, limit in wanted.items():
        values: list[float | None] = []
        for each in runs:
            metrics = dict(flat(each.manifest.results.get("metrics", {})))
            arm = f"{each.arm}." if each.arm else ""
            for prefix in dict.fromkeys((f"{arm}{each.benchmark}.", f"{each.benchmark}.", "")):
                own = name.removeprefix(prefix)
                if name.startswith(prefix) and own in metrics and isinstance(value := metrics[own], int | float | None):
                    values.append(value)
        if not values:
            raise InputError(f"--fail-under: no run has the metric {name!r}")
        for value in values:
            if value is None or math.isnan(value):
                undefined.append(f"{name} is not a number, so it cannot be held against {limit:g}")
            elif value < limit:
                fallen.append(f"{name} is {value:g}, below {limit:g}")
    return fallen, undefined
