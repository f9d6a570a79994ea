"""Stage `eval`: recorded predictions -> a score per question, and every aggregate from those alone. Never runs a model.

Predictions are our JSONL (`example_id`), LLaVA's answers file (`question_id`, `prompt`, `text`), or what VLMEvalKit or
lmms-eval recorded (importing.py), which is brought into our format first. Whatever does not fit is named and counted: missing,
failed, doubled and unknown answers, unreadable lines. `beside` in the results has further counts (counted.py). Predictions that
join badly are refused (joining.check).
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from cos_core.benchmarks import _files
from cos_core.errors import InputError
from cos_core.evaluate import answers_file, gate_run, judge, protocol, samples
from cos_core.evaluate.answers_file import AnswersFile
from cos_core.evaluate.config import EvalConfig
from cos_core.evaluate.counted import count_remarks
from cos_core.evaluate.gate_run import GateResults
from cos_core.evaluate.joining import NAMED, Answers, Joined, check, join, read_predictions
from cos_core.files import jsonl, manifest, plug
from cos_core.files.durable import atomic_file, atomic_write, utf8
from cos_core.files.locks import FileLock
from cos_core.files.text import one_line
from cos_core.interfaces import Benchmark, BenchmarkData, JudgedBenchmark, Reporter, SilentReporter
from cos_core.scoring import columns, gate_curve, metrics, statistics
from cos_core.scoring import samples as sample_scores
from cos_core.scoring.columns import IdColumn, Scores
from cos_core.scoring.metrics import RegionScore
from cos_core.scoring.recorded import Recorded
from cos_core.types import RunManifest, Score

SCORES, REGIONS, PROBLEMS = "scores.jsonl", "regions.jsonl", "problems.jsonl"
_LINES = 4096
"""Scores written at a time."""


Loaded = tuple[Benchmark, BenchmarkData]


def run(config: EvalConfig, reporter: Reporter | None = None, loaded: Loaded | None = None) -> RunManifest:
    """Scores a predictions file; the manifest's `results` are described at `summarise`, `counts` count the answers.

    Status "partial" when questions went unanswered (they score 0). With `out` writes scores.jsonl (for answers with several
    samples also scores.sample-2.jsonl, ...), regions.jsonl (where the data names regions), problems.jsonl (where there are any)
    and, last, manifest.json.
    `loaded`: what `load` gave for the config already.
    Raises InputError for unusable files and when no prediction belongs to the benchmark.
    """
    with _without_collector():
        return _run(config, reporter or SilentReporter(), loaded)


class _Groups(Mapping[str, Mapping[str, str]]):
    """The scores' groups by example id."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def __getitem__(self, example_id: str) -> Mapping[str, str]:
        return self._scores.groups_of(self._scores.ids.places()[example_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores.ids.names)

    def __len__(self) -> int:
        return len(self._scores)


@contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage collection: a million records that live to the end would be walked again and again, and hold no cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _run(config: EvalConfig, reporter: Reporter, loaded: Loaded | None) -> RunManifest:
    file = answers_file.find(config.predictions, config.benchmark)
    benchmark, data = loaded or load(config.benchmark, config.data, config.split, config.scorer)
    with answers_file.opened(file, benchmark, data) as answers:
        return _scored(config, benchmark, data, answers, reporter)


def _scored(
    config: EvalConfig, benchmark: Benchmark, data: BenchmarkData, answers: AnswersFile, reporter: Reporter
) -> RunManifest:
    questions = {"path": str(config.data.absolute()), "questions_sha256": data_digest(data)}
    clock = manifest.started("eval", config, seed=config.seed, inputs={**answers.inputs(config.out), "data": questions})
    recorded = answers.read()
    joined = join(data, recorded, benchmark, limit=config.limit)
    for words in answers.imported.remarks() if answers.imported is not None else ():
        reporter.warn(words)
    warning = check(joined, data, recorded, config.limit)
    if warning is not None and not config.partial_join:
        raise InputError(f"{warning}. --partial-join scores them nevertheless")
    whole, data = data, first(data, config.limit)
    scores, grades = _scores(config, benchmark, data, joined.predictions, reporter)
    regions = metrics.region_scores(data.examples, joined.predictions, _Groups(scores))
    resampled = {"replicates": config.replicates, "seed": config.seed}
    sampled = samples.scored(benchmark, data, joined.predictions, scores, **resampled)
    joined.predictions.ids.forget()
    results = summarise(benchmark, data, scores, regions, **resampled)
    if sampled is not None:
        results["samples"] = sampled.results
        if "reason" in sampled.results:
            reporter.warn(sampled.results["reason"])
    if (official := other_count(benchmark, data)) is not None:
        results["n_official"] = official
    results["beside"] = count_remarks(data, joined.predictions, scores, grades)
    answered = protocol.answered(answers.path)
    count = 1 if sampled is None else sampled.results["k"]
    results["protocol"] = protocol.of(benchmark, data, joined.predictions, protocol.settings(answered), count)
    gate = gate_run.results(config, benchmark, data, joined.predictions, scores, answered)
    if gate is not None:
        results["gate"] = gate.results
    if len(data.examples) < len(whole.examples):
        results["protocol"]["limit"] = config.limit
    if warning is not None:
        results["partial_join"] = warning
    if (rule := plug.source(config.benchmark)) is not None:
        # A benchmark of one's own counts by its content: an edited rule makes other scores.
        results["protocol"]["rule"] = rule
    if isinstance(benchmark, JudgedBenchmark) and grades is not None:
        results["protocol"]["judge"] = judge.protocol(config, benchmark)
    if answers.imported is not None:
        results["recorded"] = answers.imported.report(scores, benchmark.scorer, reporter)
    results["problems"] = joined.first_ids()
    counts = _counts(len(data.examples), joined)
    if grades is not None:
        _name_ungraded(grades, counts, reporter)
    for kind, ids in results["problems"].items():
        reporter.warn(f"{counts[kind]} {kind}: {_first_three(ids)}")
    if joined.other_prompts:
        reporter.warn(f"{len(joined.other_prompts)} of the unknown have the id of a question and the prompt of another")
    if warning is not None:
        reporter.warn(warning)
    complete = not (counts["missing"] or counts["failed"])
    finished = clock.finish(counts, "complete" if complete else "partial", results)
    if config.out is not None:
        further = () if sampled is None else sampled.further
        _write(config.out, [scores, *further], regions, joined, finished, answers, gate)
    return finished


def _scores(
    config: EvalConfig, benchmark: Benchmark, data: BenchmarkData, predictions: Answers, reporter: Reporter
) -> tuple[Scores, dict[str, list[float]] | None]:
    """The scores, and the judge's grades they come from; None for a benchmark without a judge, or one that was not graded."""
    if not isinstance(benchmark, JudgedBenchmark):
        return Scores.of(benchmark.score(data, predictions), predictions.ids), None
    grades = judge.grades(config, benchmark, data, predictions, reporter)
    rows = benchmark.score(data, predictions) if grades is None else benchmark.judged(data, predictions, grades)
    return Scores.of(rows, predictions.ids), grades


def load(name: str, data: Path, split: str | None = None, scorer: str | None = None) -> tuple[Benchmark, BenchmarkData]:
    """The benchmark and its questions. Raises InputError: unknown name, split or scorer, unusable files, doubled ids."""
    with _without_collector():
        return _load(name, data, split, scorer)


def _load(name: str, data: Path, split: str | None, scorer: str | None) -> Loaded:
    options = {key: value for key, value in (("split", split), ("scorer", scorer)) if value is not None}
    benchmark: Benchmark = plug.load("benchmarks", name, **options)
    loaded = benchmark.load(Path(data))
    if not loaded.examples:
        raise InputError(f"{data} holds no question of {name!r}")
    ids = columns.ids_of(loaded.examples)
    if not ids.unique():
        doubled = [example_id for example_id, times in Counter(ids.names).items() if times > 1]
        raise InputError(f"{data}: {len(doubled)} question ids are not unique, the first is {doubled[0]!r}")
    return benchmark, loaded


def check_data(benchmark: Benchmark, data: BenchmarkData, root: Path, reporter: Reporter) -> None:
    """Before anything runs: compares the files with SHA256SUMS beside them, if there is one, and with the digests that are
    published (Need.md5). Raises InputError for a file that is not what SHA256SUMS says."""
    checked = _files.check_sums(root)
    if checked:
        reporter.note(f"{data.name}: {checked} files are as {root / _files.SUMS} says")
    for need in benchmark.needs:
        if need.split in (None, data.split) and (other := _files.other_version(need, root)):
            reporter.warn(other)


def other_count(benchmark: Benchmark, data: BenchmarkData) -> int | None:
    """How many questions the official split has, where that is known and these are not as many."""
    usual = benchmark.counts.get(data.split)
    return usual if usual != len(data.examples) else None


def submission(config: EvalConfig, path: Path) -> bool:
    """Writes the file that the benchmark's server takes; False for a benchmark that is scored here and has none.

    Raises InputError when answers are missing.
    """
    benchmark, data = load(config.benchmark, config.data, config.split, config.scorer)
    if config.limit is not None:
        raise InputError("a submission holds every question; leave --limit out")
    with answers_file.opened(answers_file.find(config.predictions, config.benchmark), benchmark, data) as answers:
        joined = join(data, answers.read(), benchmark)
        content = benchmark.submission(config.data, data, joined.predictions)
    if content is not None:
        atomic_write(path, content)
    return content is not None


def write_records(records: Iterable[Any], path: Path) -> None:
    """Writes records (those of types.py, or mappings) as JSON Lines, whole or not at all. Raises InputError."""
    _write_lines(path, records)


def write_questions(data: BenchmarkData, path: Path) -> None:
    """Writes a benchmark's questions as Example JSONL, for `infer` to answer (images under `data.image_root`)."""
    _write_lines(path, data.examples)


# --- results ---------------------------------------------------------------------------------------------------------


def summarise(
    benchmark: Benchmark,
    data: BenchmarkData,
    scores: Sequence[Score],
    regions: Sequence[RegionScore] = (),
    *,
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every aggregate of one run, from its scores:

    metrics     the benchmark's own, in its own units      intervals   metric path -> [low, high], 95 %, images resampled
    headline    {metric, value, unit, low, high}           n           questions, unanswered ones included (`run` adds
                                                           n_official where the official split has another number)
    box_status  share of each status                       regions     hit, iou, area... and `kinds`, where the data has regions
    statistics  how the intervals were made                samples     `run` adds it for several samples (samples.summarise);
                                                           all else is of the first

    A metric that is not a finite number (a mean of nothing) is None: undefined, and no limit holds or fails for it.
    """
    table = _finite(benchmark.metrics(data, scores))
    clusters = metrics.pictures(scores)
    estimates = benchmark.estimates(data, scores)
    if estimates is None:
        estimates = [metrics.mean_estimate("accuracy", scores)]
    measured = metrics.measured(estimates, clusters, replicates=replicates, seed=seed)
    results: dict[str, Any] = {"benchmark": data.name, "metrics": table, "n": len(scores)}
    if regions:
        kinds: dict[str, list[RegionScore]] = {}
        for region in regions:
            kinds.setdefault(region.groups.get("kind", ""), []).append(region)
        results["regions"] = metrics.region_metrics(regions)
        if set(kinds) != {""}:
            results["regions"]["kinds"] = {kind: metrics.region_metrics(group) for kind, group in kinds.items()}
        images = [region.groups.get(metrics.IMAGE, region.example_id) for region in regions]
        measured |= metrics.measured(metrics.region_estimates(regions), images, replicates=replicates, seed=seed)
    results["intervals"] = {name: [interval.low, interval.high] for name, interval in measured.items()}
    results["headline"] = _headline(benchmark, table, results["intervals"])
    results["box_status"] = metrics.box_statuses(scores)
    results["statistics"] = {
        "level": statistics.LEVEL,
        "method": "Wilson for shares with one question an image, else expanded percentile bootstrap over images; "
        "Wilson with a trial each image for shares without spread",
        "without_spread": [name for name, interval in measured.items() if interval.method == metrics.WILSON_CLUSTERS],
        "images": len(set(clusters)),
        "replicates": replicates,
        "seed": seed,
    }
    return results


def first(data: BenchmarkData, limit: int | None) -> BenchmarkData:
    """The data with its first `limit` questions only."""
    return data if limit is None or limit >= len(data.examples) else replace(data, examples=data.examples[:limit])


def _finite(metrics: Any) -> Any:
    """The metrics with None for every value that is not a finite number."""
    if isinstance(metrics, Mapping):
        return {key: _finite(value) for key, value in metrics.items()}
    if isinstance(metrics, list):
        return [_finite(value) for value in metrics]
    return None if isinstance(metrics, float) and not math.isfinite(metrics) else metrics


def _headline(benchmark: Benchmark, table: Mapping[str, Any], intervals: Mapping[str, list[float]]) -> dict[str, Any]:
    name = benchmark.headline
    value = metrics.at_path(table, name)
    low, high = intervals.get(name, (None, None))
    return {"metric": name, "value": value, "unit": benchmark.unit, "low": low, "high": high}


def _name_ungraded(grades: Mapping[str, Sequence[float]], counts: dict[str, int], reporter: Reporter) -> None:
    """Names answers of which a grade was not read; where not one was, no answer counts as scored."""
    unread = [example_id for example_id, of_answer in grades.items() if any(map(math.isnan, of_answer))]
    if unread and all(math.isnan(grade) for of_answer in grades.values() for grade in of_answer):
        counts["ok"] = 0
    if unread:
        reporter.warn(
            f"grades not read: {len(unread)} ({_first_three(unread)}); the judge's replies stand in {judge.FILE}, "
            "and --judge-url asks again"
        )


def _first_three(ids: Sequence[str]) -> str:
    """The first three ids, for a message."""
    return ", ".join(map(one_line, ids[:3])) + (", ..." if len(ids) > 3 else "")


def _counts(total: int, joined: Joined) -> dict[str, int]:
    kinds = ("missing", "failed", "doubled", "unknown", "unreadable")
    counts = {kind: len(joined.problems.get(kind, ())) for kind in kinds} | {"reordered": joined.reordered}
    return {"ok": total - counts["missing"] - counts["failed"], "skipped": 0, "total": total, **counts}


# --- files -----------------------------------------------------------------------------------------------------------


def data_digest(data: BenchmarkData) -> str:
    """SHA-256 over every question as it is scored and asked: id, picture's name, text, answers and suffix, in order."""
    digest = hashlib.sha256()
    encode = msgspec.json.Encoder().encode
    if isinstance(data.examples, columns.Examples):
        parts = data.examples.asked()
    else:
        parts = ((e.id, e.image, e.question, e.answers, e.suffix) for e in data.examples)
    for name, image, question, answers, suffix in parts:
        row = (name, image, question, answers, *(() if suffix is None else (suffix,)))
        try:
            digest.update(encode(row))
        except UnicodeEncodeError:
            digest.update(utf8(json.dumps(row)))
    return digest.hexdigest()


def _write(
    out: Path,
    scores: Sequence[Scores],
    regions: Sequence[RegionScore],
    joined: Joined,
    finished: RunManifest,
    answers: AnswersFile,
    gate: GateResults | None,
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}") from None
    with FileLock(out / ".lock", what=out) as lock:
        # A folder whose manifest is there must hold what it says, so the old one goes first and the new one comes last.
        (out / manifest.FILE).unlink(missing_ok=True)
        for path in sample_scores.files_in(out):
            path.unlink()
        for number, of_sample in enumerate(scores, 1):
            _write_scores(out / (SCORES if number == 1 else sample_scores.file_of(number)), of_sample)
        for name, lines in ((REGIONS, regions), (PROBLEMS, _problem_lines(joined))):
            (out / name).unlink(missing_ok=True)
            if lines:
                _write_lines(out / name, lines)
        for name in gate_curve.FILES:
            (out / name).unlink(missing_ok=True)
        if gate is not None:
            gate.write(out)
        answers.keep(out)
        manifest.write(out / manifest.FILE, finished)
        lock.check_place()


def _problem_lines(joined: Joined) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "line": line, "id": example_id} for kind, pairs in joined.problems.items() for line, example_id in pairs
    ]


def _write_scores(path: Path, scores: Scores) -> None:
    """As `_write_lines`, for as many as a benchmark has. Raises InputError for a value that is no number."""
    bad = next((place for place, value in enumerate(columns.values(scores)) if not math.isfinite(value)), None)
    if bad is not None:
        raise InputError(f"the score of {scores[bad].example_id!r} is {scores[bad].value}, not a number that JSON knows")
    with atomic_file(path) as file:
        for start in range(0, len(scores), _LINES):
            file.write(scores.lines(start, min(start + _LINES, len(scores))))


def _write_lines(path: Path, records: Iterable[Any]) -> None:
    with atomic_file(path) as file:
        for record in records:
            row = record if isinstance(record, dict) else record.to_json()
            file.write(jsonl.encode_line(row))


def read_scores(path: Path, known: IdColumn | None = None) -> Scores:
    """The scores of a finished run: its folder, or a scores.jsonl. `known`: ids that they probably have, in order.

    Raises InputError, also for a value that is not finite.
    """
    return columns.read_scores(path / SCORES if path.is_dir() else path, known=known)


__all__ = [
    "NAMED",
    "PROBLEMS",
    "REGIONS",
    "SCORES",
    "EvalConfig",
    "Joined",
    "Recorded",
    "check",
    "check_data",
    "data_digest",
    "first",
    "join",
    "load",
    "other_count",
    "read_predictions",
    "read_scores",
    "run",
    "submission",
    "summarise",
    "write_questions",
    "write_records",
]
