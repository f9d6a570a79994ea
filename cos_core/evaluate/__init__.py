"""Stage `eval`: recorded predictions -> a score per question, and every aggregate from those alone. Never runs a model.

Predictions are our JSONL (`example_id`) or LLaVA's answers file (`question_id`, `prompt`, `text`). Whatever does not fit is
named and counted: missing, failed, doubled, re-ordered and unknown answers, unreadable lines.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cos_core import jsonl, manifest, metrics, plug, statistics
from cos_core.benchmarks._files import SUMS, check_sums
from cos_core.errors import InputError
from cos_core.evaluate import judge
from cos_core.interfaces import Benchmark, BenchmarkData, Reporter, SilentReporter
from cos_core.locks import FileLock
from cos_core.metrics import RegionScore
from cos_core.statistics import PairedDifference
from cos_core.types import Prediction, RunManifest, Score

SCORES, REGIONS, PROBLEMS = "scores.jsonl", "regions.jsonl", "problems.jsonl"
NAMED = 20
"""Of each kind of problem, so many are named in the manifest; problems.jsonl names all."""


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """`benchmark`: a name or a plug-in file; `data`: the folder with its official files; `predictions`: a JSONL file, or a
    folder with predictions.jsonl; `out`: a folder for scores and manifest, None to write nothing; `split` as the benchmark
    names it; `scorer`: one of the benchmark's scorers where it has several; `replicates` and `seed` of the bootstrap.

    Answers that a language model grades (MM-Vet): `judge_url` is an OpenAI-compatible endpoint, asked only when it is given;
    `judge_runs` grades an answer. Grades are kept in `out` and read from there without a `judge_url`.
    """

    benchmark: str
    data: Path
    predictions: Path
    out: Path | None = None
    split: str | None = None
    scorer: str | None = None
    replicates: int = statistics.REPLICATES
    seed: int = 0
    judge_url: str | None = None
    judge_model: str = "gpt-4-0613"
    judge_runs: int = 1


Loaded = tuple[Benchmark, BenchmarkData]


def run(config: EvalConfig, reporter: Reporter | None = None, loaded: Loaded | None = None) -> RunManifest:
    """Scores a predictions file; the manifest's `results` are described at `summarise`, `counts` count the answers.

    Status "partial" when questions went unanswered (they score 0). With `out` writes scores.jsonl, regions.jsonl (where the
    data names regions), problems.jsonl (where there are any) and, last, manifest.json.
    `loaded`: what `load` gave for the config already.
    Raises InputError for unusable files and when no prediction belongs to the benchmark.
    """
    with _without_collector():
        return _run(config, reporter or SilentReporter(), loaded)


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
    file = _predictions_file(config.predictions)
    benchmark, data = loaded or load(config.benchmark, config.data, config.split, config.scorer)
    clock = manifest.started("eval", config, seed=config.seed, inputs=_inputs(config, file, data))
    joined = join(data, read_predictions(file), benchmark)
    by_judge = getattr(benchmark, "judged", None)
    grades = judge.grades(config, benchmark, data, joined.predictions, reporter) if by_judge else None
    if by_judge is not None and grades is not None:
        scores = list(by_judge(data, joined.predictions, grades))
    else:
        scores = list(benchmark.score(data, joined.predictions))
    regions = metrics.region_scores(data.examples, joined.predictions, {score.example_id: score.groups for score in scores})
    results = summarise(benchmark, data, scores, regions, replicates=config.replicates, seed=config.seed)
    results["protocol"] = protocol(benchmark, data, joined.predictions)
    if grades is not None:
        results["protocol"]["judge"] = judge.protocol(config, benchmark)
    results["problems"] = joined.named()
    counts = _counts(len(data.examples), joined)
    for kind, ids in results["problems"].items():
        reporter.warn(f"{counts[kind]} {kind}: {', '.join(ids[:3])}{', ...' if counts[kind] > 3 else ''}")
    complete = not (counts["missing"] or counts["failed"])
    finished = clock.finish(counts, "complete" if complete else "partial", results)
    if config.out is not None:
        _write(config.out, scores, regions, joined, finished)
    return finished


def load(name: str, data: Path, split: str | None = None, scorer: str | None = None) -> tuple[Benchmark, BenchmarkData]:
    """The benchmark and its questions. Raises InputError: unknown name, split or scorer, unusable files, doubled ids."""
    with _without_collector():
        return _load(name, data, split, scorer)


def _load(name: str, data: Path, split: str | None, scorer: str | None) -> Loaded:
    options = {key: value for key, value in (("split", split), ("scorer", scorer)) if value is not None}
    try:
        benchmark: Benchmark = plug.load("benchmarks", name, **options)
    except TypeError as error:
        refused = next((option for option in options if f"keyword argument '{option}'" in str(error)), None)
        if refused is None:
            raise
        raise InputError(f"the benchmark {name!r} has no {refused}s to choose from") from None
    loaded = benchmark.load(Path(data))
    if not loaded.examples:
        raise InputError(f"{data} holds no question of {name!r}")
    if len({e.id for e in loaded.examples}) < len(loaded.examples):
        doubled = [example_id for example_id, times in Counter(e.id for e in loaded.examples).items() if times > 1]
        raise InputError(f"{data}: {len(doubled)} question ids are not unique, the first is {doubled[0]!r}")
    return benchmark, loaded


def check_data(benchmark: Benchmark, data: BenchmarkData, root: Path, reporter: Reporter) -> None:
    """Before a model runs: compares the files with SHA256SUMS beside them, if there is one, and warns of an unusual count.

    Raises InputError for a file that differs.
    """
    checked = check_sums(root)
    if checked:
        reporter.note(f"{data.name}: {checked} files are as {root / SUMS} says")
    usual = getattr(benchmark, "counts", {}).get(data.split)
    if usual is not None and usual != len(data.examples):
        reporter.warn(f"{data.name} {data.split} has {len(data.examples)} questions here, {usual} in the official files")


def submission(config: EvalConfig, path: Path) -> None:
    """Writes the file that the benchmark's server takes. Raises InputError when it takes none, or when answers are missing."""
    benchmark, data = load(config.benchmark, config.data, config.split, config.scorer)
    make = getattr(benchmark, "submission", None)
    if make is None:
        raise InputError(f"{data.name} {data.split} is scored here; it has no submission file")
    joined = join(data, read_predictions(_predictions_file(config.predictions)), benchmark)
    manifest.atomic_write(path, make(config.data, data, joined.predictions))


def write_records(records: Iterable[Any], path: Path) -> None:
    """Writes records (those of types.py, or mappings) as JSON Lines, whole or not at all. Raises InputError."""
    _write_lines(path, records)


def write_questions(data: BenchmarkData, path: Path) -> None:
    """Writes a benchmark's questions as Example JSONL, for `infer` to answer (images under `data.image_root`)."""
    _write_lines(path, data.examples)


# --- predictions -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Recorded:
    """A predictions file as read: (line, prediction) in order, and the lines that could not be read."""

    path: Path
    rows: list[tuple[int, Prediction]] = field(default_factory=list)
    unreadable: list[jsonl.Problem] = field(default_factory=list)


@dataclass(slots=True)
class Joined:
    """Predictions by example id, the last of each, and what did not fit: kind -> (line or None, id) pairs."""

    predictions: dict[str, Prediction] = field(default_factory=dict)
    problems: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)

    def add(self, kind: str, line: int | None, example_id: str) -> None:
        self.problems.setdefault(kind, []).append((line, example_id))

    def named(self) -> dict[str, list[str]]:
        """The first ids of each kind."""
        return {kind: [example_id for _, example_id in found[:NAMED]] for kind, found in self.problems.items() if found}


def read_predictions(path: Path) -> Recorded:
    """Reads our predictions or LLaVA's answers, told apart line by line. A line that is neither is kept as a problem."""
    recorded = Recorded(path)
    for line, row in jsonl.read_lines(path, recorded.unreadable.append):
        try:
            recorded.rows.append((line, _prediction(row)))
        except InputError as error:
            recorded.unreadable.append(jsonl.Problem(path, line, None, str(error)))
    if not recorded.rows:
        why = f"; {recorded.unreadable[0]}" if recorded.unreadable else ", it is empty"
        raise InputError(f"{path} holds no prediction{why}")
    return recorded


def _prediction(row: Mapping[str, Any]) -> Prediction:
    if "example_id" in row:
        return Prediction.from_json(row)
    if "question_id" not in row or not isinstance(row.get("text"), str):
        raise InputError("a prediction has example_id and answer, or question_id and text (LLaVA's answers format)")
    prompt = row.get("prompt")
    question = prompt if isinstance(prompt, str) else None
    return Prediction(str(row["question_id"]), row["text"], policy=metrics.UNSAID, profile=metrics.UNSAID, question=question)


def join(data: BenchmarkData, recorded: Recorded, benchmark: Benchmark | None = None) -> Joined:
    """Gives every prediction its example: by id, or by official question id and, where that repeats, by the question asked.

    The last of several answers to one question counts, as in the official scripts that join by id; a failure never replaces
    an answer, and an answer after a failure is a repair, not counted as doubled. A prediction whose prompt asks another
    question than the example is "unknown".
    Raises InputError when no prediction belongs to the data.
    """
    asked = getattr(benchmark, "asked", None) or (lambda prompt: prompt)
    by_id = {example.id: example for example in data.examples}
    by_question: dict[str, list[Any]] = {}
    for example in data.examples:
        by_question.setdefault(str(example.meta.get("question_id", example.id)), []).append(example)
    place = {example.id: number for number, example in enumerate(data.examples)}
    joined, before = Joined(), -1
    for line, prediction in recorded.rows:
        own = by_id.get(prediction.example_id)
        candidates = [own] if own is not None else by_question.get(prediction.example_id, [])
        if len(candidates) > 1:
            said = _words(asked(prediction.question or "") or "")
            candidates = [example for example in candidates if _words(example.meta.get("asked", example.question)) == said]
            # The same question twice on one image: answers go to them in turn.
            candidates = [example for example in candidates if example.id not in joined.predictions][:1] or candidates[-1:]
        if not candidates or not _asks(prediction, candidates[0]):
            joined.add("unknown", line, prediction.example_id)
            continue
        example_id = candidates[0].id
        earlier = joined.predictions.get(example_id)
        if earlier is not None and earlier.answer is not None:
            joined.add("doubled", line, example_id)
            if prediction.answer is None:
                continue
        elif place[example_id] < before:
            joined.add("reordered", line, example_id)
        before = place[example_id]
        joined.predictions[example_id] = prediction
    _add_gaps(joined, data, recorded)
    return joined


def _add_gaps(joined: Joined, data: BenchmarkData, recorded: Recorded) -> None:
    if not joined.predictions:
        raise InputError(
            f"none of the {len(recorded.rows)} predictions in {recorded.path} belongs to {data.name} {data.split}; "
            f"the first is {recorded.rows[0][1].example_id!r}, the data's first question {data.examples[0].id!r}"
        )
    for example in data.examples:
        prediction = joined.predictions.get(example.id)
        if prediction is None:
            joined.add("missing", None, example.id)
        elif prediction.answer is None:
            joined.add("failed", None, example.id)
    for problem in recorded.unreadable:
        joined.add("unreadable", problem.line, str(problem))


def _asks(prediction: Prediction, example: Any) -> bool:
    """Whether the recorded prompt, if any, holds the example's question; guards against another version of the data."""
    if prediction.question is None:
        return True
    asked = example.meta.get("asked", example.question)
    return asked in prediction.question or _words(asked) in _words(prediction.question)


def _words(text: str) -> str:
    return " ".join(text.lower().split())


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
    headline    {metric, value, unit, low, high}           n           questions, unanswered ones included
    box_status  share of each status                       regions     hit, iou, area... and `kinds`, where the data has regions
    statistics  how the intervals were made
    """
    table = benchmark.metrics(data, scores)
    clusters = [score.groups.get(metrics.IMAGE, score.example_id) for score in scores]
    make = getattr(benchmark, "estimates", None)
    estimates = make(data, scores) if make else [metrics.mean_estimate("accuracy", scores)]
    found = metrics.intervals(estimates, clusters, replicates=replicates, seed=seed)
    results: dict[str, Any] = {"benchmark": data.name, "metrics": table, "n": len(scores)}
    if regions:
        kinds: dict[str, list[RegionScore]] = {}
        for region in regions:
            kinds.setdefault(region.groups.get("kind", ""), []).append(region)
        results["regions"] = metrics.region_metrics(regions)
        if set(kinds) != {""}:
            results["regions"]["kinds"] = {kind: metrics.region_metrics(group) for kind, group in kinds.items()}
        images = [region.groups.get(metrics.IMAGE, region.example_id) for region in regions]
        found |= metrics.intervals(metrics.region_estimates(regions), images, replicates=replicates, seed=seed)
    results["intervals"] = found
    results["headline"] = _headline(benchmark, table, found)
    results["box_status"] = metrics.box_statuses(scores)
    results["statistics"] = {
        "level": statistics.LEVEL,
        "method": "Wilson for shares with one question an image, else expanded percentile bootstrap over images",
        "images": len(set(clusters)),
        "replicates": replicates,
        "seed": seed,
    }
    return results


def _headline(benchmark: Benchmark, table: Mapping[str, Any], found: Mapping[str, list[float]]) -> dict[str, Any]:
    name = getattr(benchmark, "headline", "accuracy")
    value: Any = table
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    low, high = found.get(name, (None, None))
    return {"metric": name, "value": value, "unit": getattr(benchmark, "unit", "fraction"), "low": low, "high": high}


def protocol(benchmark: Benchmark, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> dict[str, Any]:
    """What must be equal for two scores to be comparable: split, profile, policy, and what the benchmark adds.

    A run of several profiles or policies lists them all.
    """
    own = getattr(benchmark, "protocol", None)
    return {
        "benchmark": data.name,
        "split": data.split,
        "profile": _one_or_all(p.profile for p in predictions.values()),
        "policy": _one_or_all(p.policy for p in predictions.values()),
        **data.protocol,
        **(own(predictions) if own else {}),
    }


def _one_or_all(values: Iterable[str]) -> str | list[str]:
    distinct = sorted(set(values))
    return distinct[0] if len(distinct) == 1 else distinct


def _counts(total: int, joined: Joined) -> dict[str, int]:
    kinds = ("missing", "failed", "doubled", "reordered", "unknown", "unreadable")
    counts = {kind: len(joined.problems.get(kind, ())) for kind in kinds}
    return {"ok": total - counts["missing"] - counts["failed"], "skipped": 0, "total": total, **counts}


# --- files -----------------------------------------------------------------------------------------------------------


def _predictions_file(path: Path) -> Path:
    return path / "predictions.jsonl" if path.is_dir() else path


def _inputs(config: EvalConfig, file: Path, data: BenchmarkData) -> dict[str, dict[str, Any]]:
    return {
        "predictions": manifest.file_input(file),
        "data": {"path": str(config.data.absolute()), "questions_sha256": data_digest(data)},
    }


def data_digest(data: BenchmarkData) -> str:
    """SHA-256 over every question as it is scored and asked: id, picture's name, text, answers, in order."""
    digest = hashlib.sha256()
    for example in data.examples:
        digest.update(msgspec.json.encode((example.id, example.image, example.question, example.answers)))
    return digest.hexdigest()


def _write(out: Path, scores: Sequence[Score], regions: Sequence[RegionScore], joined: Joined, finished: RunManifest) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}") from None
    with FileLock(out / ".lock", what=out):
        # A folder whose manifest is there must hold what it says, so the old one goes first and the new one comes last.
        (out / manifest.FILE).unlink(missing_ok=True)
        _write_scores(out / SCORES, scores)
        for name, lines in ((REGIONS, regions), (PROBLEMS, _problem_lines(joined))):
            (out / name).unlink(missing_ok=True)
            if lines:
                _write_lines(out / name, lines)
        manifest.write(out / manifest.FILE, finished)


def _problem_lines(joined: Joined) -> list[dict[str, Any]]:
    return [{"kind": k, "line": line, "id": i} for k, found in joined.problems.items() for line, i in found]


def _write_scores(path: Path, scores: Sequence[Score]) -> None:
    """As `_write_lines`, for as many as a benchmark has. Raises InputError for a value that is no number."""
    odd = next((score for score in scores if not math.isfinite(score.value)), None)
    if odd is not None:
        raise InputError(f"the score of {odd.example_id!r} is {odd.value}, not a number that JSON knows")
    with manifest.atomic_file(path) as file:
        file.write(msgspec.json.Encoder().encode_lines(scores))


def _write_lines(path: Path, records: Iterable[Any]) -> None:
    with manifest.atomic_file(path) as file:
        for record in records:
            row = record if isinstance(record, dict) else record.to_json()
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n")


def read_scores(path: Path) -> list[Score]:
    """The scores of a finished run: its folder, or a scores.jsonl. Raises InputError."""
    path = path / SCORES if path.is_dir() else path
    return [Score.from_json(row) for _, row in jsonl.read_lines(path)]


# --- two runs --------------------------------------------------------------------------------------------------------


def paired(
    scores_a: Path | Iterable[Score], scores_b: Path | Iterable[Score], clusters: Mapping[str, str] | None = None
) -> PairedDifference:
    """The difference B - A over the questions both runs scored, with its interval and test (statistics.paired).

    `clusters`: the image of each example id; without it, the one that the scores name. Raises InputError when the runs share
    no question.
    """
    a, b = (read_scores(runs) if isinstance(runs, Path) else list(runs) for runs in (scores_a, scores_b))
    images = clusters if clusters is not None else {s.example_id: s.groups.get(metrics.IMAGE, s.example_id) for s in (*a, *b)}
    return statistics.paired({s.example_id: s.value for s in a}, {s.example_id: s.value for s in b}, images)
