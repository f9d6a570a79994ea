"""Runs with several sampled answers a question: each sample is scored by the official rules, then all are summed up.

The score of such a run, and every figure beside it, is that of sample 1, whose scores stand in scores.jsonl. Those of the
others stand beside it, in files of the same format (scoring/samples.py). avg@k and maj@k are over all samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from cos_core.evaluate.joining import Answers
from cos_core.interfaces import Benchmark, BenchmarkData, JudgedBenchmark
from cos_core.scoring import metrics, samples
from cos_core.scoring.columns import Scores
from cos_core.scoring.metrics import Estimate, Measured
from cos_core.types import Prediction, Score

_HELD = 1 << 20
"""Short answers in memory at a time: those of as many samples as fit are read together."""

NOT_GRADED = "a judge grades the first sample only, so there is no avg@k and no maj@k"
NOT_SCORED = "a server scores this benchmark, so there is no avg@k and no maj@k here"


class SampleAnswers(Answers):
    """The answers of sample `number` (from 1) by example id, with box, status and tokens, each read from the file on access.

    A question that failed has failed in every sample.
    """

    def __init__(self, whole: Answers, number: int) -> None:
        super().__init__(whole.ids, whole.recorded)
        self.number, self.marked = number, whole.marked

    def read(self, row: int) -> Prediction:
        return of_sample(super().read(row), self.number)


def of_sample(prediction: Prediction, number: int) -> Prediction:
    """The prediction as sample `number` (from 1) answered it; one without samples as it is."""
    if not prediction.samples:
        return prediction
    return msgspec.structs.replace(prediction, **msgspec.structs.asdict(prediction.samples[number - 1]), samples=())


def views(answers: Answers, numbers: Sequence[int]) -> list[SampleAnswers]:
    """The answers of these samples, made in one walk through the file."""
    made = [SampleAnswers(answers, number) for number in numbers]
    for place, row in answers.rows():
        prediction = answers.read(row)
        for view in made:
            view.put(place, row, of_sample(prediction, view.number))
    return made


def _each(answers: Answers, count: int) -> Iterator[SampleAnswers]:
    """Samples 2 to `count`, of which only some are held at a time."""
    together = max(1, _HELD // max(1, len(answers.ids)))
    for start in range(2, count + 1, together):
        yield from views(answers, range(start, min(start + together, count + 1)))


@dataclass(frozen=True, slots=True)
class Sampled:
    """`further`: the scores of samples 2, 3, ...; `results`: see `summarise`, or {"k", "reason"} where there are none."""

    further: Sequence[Scores]
    results: Mapping[str, Any]


def scored(
    benchmark: Benchmark, data: BenchmarkData, answers: Answers, first: Scores, *, replicates: int, seed: int
) -> Sampled | None:
    """The scores of every sample; `first`: those of sample 1. None for a run with one answer a question.

    Raises InputError when questions differ in their number of samples.
    """
    count = answers.samples()
    if count == 1:
        return None
    if isinstance(benchmark, JudgedBenchmark) or not len(first):
        reason = NOT_GRADED if isinstance(benchmark, JudgedBenchmark) else NOT_SCORED
        return Sampled((), {"k": count, "reason": reason})
    further = [Scores.of(benchmark.score(data, view), answers.ids) for view in _each(answers, count)]
    return Sampled(further, summarise(benchmark, data, [first, *further], replicates=replicates, seed=seed))


def summarise(
    benchmark: Benchmark, data: BenchmarkData, each: Sequence[Sequence[Score]], *, replicates: int, seed: int
) -> dict[str, Any]:
    """The figures over all samples, from their scores alone:

    k       samples a question                         avg, maj   {metric, value, unit, low, high}: the headline as avg@k, maj@k
    agree   share of the answered questions on which   curve      {k, avg, maj} of the first 1, 2, 4, ... samples, and of all
            every sample says the same

    `low`, `high`: 95 %, pictures resampled, each question with all of its samples. None for a figure that is not defined.
    """
    name, counts = benchmark.headline, _powers(len(each))
    estimates = [samples.headline(benchmark, data, scores, name) for scores in each]
    of_votes = {count: choice for count, choice in enumerate(samples.votes(each), 1) if count in counts}
    found: dict[tuple[str, int], Estimate] = {}
    for count in counts:
        known = [estimate for estimate in estimates[:count] if estimate is not None]
        mean = samples.averaged(known) if len(known) == count else None
        vote = samples.headline(benchmark, data, samples.voted(each, of_votes[count]), name)
        found |= {(kind, count): each for kind, each in (("avg", mean), ("maj", vote)) if each is not None}
    named = {f"{kind}@{count}": replace(estimate, name=f"{kind}@{count}") for (kind, count), estimate in found.items()}
    measured = metrics.measured(named.values(), metrics.pictures(each[0]), replicates=replicates, seed=seed)

    def figure(kind: str, count: int) -> dict[str, Any]:
        return _figure(benchmark, named.get(f"{kind}@{count}"), measured.get(f"{kind}@{count}"))

    curve = [{"k": count, "avg": figure("avg", count), "maj": figure("maj", count)} for count in counts]
    return {**curve[-1], "agree": samples.agreement(each), "curve": curve}


def _powers(count: int) -> list[int]:
    """1, 2, 4, ... up to `count`, and `count`."""
    return sorted({*(1 << power for power in range(count.bit_length())), count})


def _figure(benchmark: Benchmark, estimate: Estimate | None, measured: Measured | None) -> dict[str, Any]:
    value = math.nan if estimate is None else estimate.value()
    low, high = (None, None) if measured is None else (measured.low, measured.high)
    ends = {"low": low, "high": high}
    return {"metric": benchmark.headline, "value": value if math.isfinite(value) else None, "unit": benchmark.unit, **ends}
