"""Several sampled answers to each question: their mean (avg@k), their vote (maj@k), and how often they agree.

Samples are folded into their questions: avg@k averages the additive parts of a question's row over its samples. The rows stay
questions, and resampling draws pictures with all of their questions and samples. avg@k of a mean is the mean of the samples'
scores; avg@k of another statistic (an F1, points) is that of the averaged counts. maj@k is self-consistency (Wang et al. 2023,
arXiv:2203.11171).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cos_core.errors import InputError
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring import columns, metrics
from cos_core.scoring.columns import Scores
from cos_core.scoring.metrics import Estimate
from cos_core.types import Score

FILES = "scores.sample-*.jsonl"
"""The files with the scores of samples 2, 3, ...; those of sample 1 stand in scores.jsonl."""


def file_of(number: int) -> str:
    """The file with the scores of sample `number`, from 2."""
    return FILES.replace("*", str(number))


def files_in(folder: Path) -> list[Path]:
    """The files of further samples in a run's folder, whatever their number."""
    return [path for path in sorted(folder.glob(FILES)) if path.name[len("scores.sample-") : -len(".jsonl")].isdigit()]


def read_further(folder: Path, results: Mapping[str, Any], first: Sequence[Score]) -> tuple[Scores, ...]:
    """The scores of a finished run's samples 2, 3, ... (questions in the order of `first`); none for a run of one sample.

    `results`: those of its manifest. Raises InputError for a file that is not there, or that is of other questions.
    """
    sampled = results.get("samples", {})
    if "avg" not in sampled:
        return ()
    known = Scores.of(first).ids
    further = []
    for number in range(2, int(sampled["k"]) + 1):
        file = folder / file_of(number)
        scores = columns.read_scores(file, known=known)
        if scores.ids.names != known.names:
            raise InputError(f"{file} is of other questions than scores.jsonl beside it; score the run again")
        further.append(scores)
    return tuple(further)


# --- avg@k -----------------------------------------------------------------------------------------------------------


def headline(benchmark: Benchmark, data: BenchmarkData, scores: Sequence[Score], name: str) -> Estimate | None:
    """The estimate of the metric `name`; the mean score for a benchmark without `estimates`; None without such a one."""
    estimates = benchmark.estimates(data, scores)
    if estimates is None:
        return metrics.mean_estimate(name, scores)
    return next((estimate for estimate in estimates if estimate.name == name), None)


def averaged(estimates: Sequence[Estimate]) -> Estimate | None:
    """One estimate of a run's samples: `columns` (questions, k) are the mean over them, and a row counts that counts in any.

    None where the samples' columns differ in shape.
    """
    first = estimates[0]
    if len(estimates) == 1:
        return first
    if any(each.columns.shape != first.columns.shape for each in estimates):
        return None
    total = np.zeros(first.columns.shape)
    for each in estimates:
        total += each.columns
    counted = first.counted
    if counted is not None:
        counted = np.logical_or.reduce([each.population() for each in estimates])
    return replace(first, columns=total / len(estimates), counted=counted)


def mean_values(samples: Sequence[Sequence[Score]]) -> list[float]:
    """Each question's value, averaged over the samples in ascending order, so that their order plays no part."""
    if len(samples) == 1:
        return columns.values(samples[0])
    ordered = np.sort([columns.value_array(scores) for scores in samples], axis=0)
    means: list[float] = ordered.mean(axis=0).tolist()
    return means


# --- maj@k -----------------------------------------------------------------------------------------------------------


def votes(samples: Sequence[Sequence[Score]]) -> Iterator[NDArray[np.intp]]:
    """For the first 1, 2, 3, ... samples the vote: (questions,), the index of a sample that gave the winning answer.

    The most frequent extracted answer wins; of several, the first that reached the number. An answer that is not read (it names
    no option, nothing was extracted, or there is none) is no vote, unless none of the samples so far is read.
    """
    codes, read = _codes(samples)
    rows = len(codes)
    choice, most, is_read = np.zeros(rows, np.intp), np.zeros(rows, np.intp), np.zeros(rows, np.bool_)
    for number in range(len(samples)):
        same = (codes[:, : number + 1] == codes[:, [number]]) & (read[:, : number + 1] == read[:, [number]])
        times, mine = same.sum(axis=1), read[:, number]
        wins = np.where(mine, ~is_read | (times > most), ~is_read & (times > most))
        choice[wins], most[wins], is_read[wins] = number, times[wins], mine[wins]
        yield choice.copy()


def voted(samples: Sequence[Sequence[Score]], choice: NDArray[np.intp]) -> Scores:
    """The scores of the winning answers; `choice` from `votes`."""
    return Scores((samples[sample][place] for place, sample in enumerate(choice.tolist())), _ids(samples))


def folded(samples: Sequence[Sequence[Score]]) -> Scores:
    """One score a question: the winning answer, with the mean value of all samples."""
    if len(samples) == 1:
        return Scores.of(samples[0])
    *_, choice = votes(samples)
    result = Scores(known=_ids(samples))
    for score, value in zip(voted(samples, choice), mean_values(samples), strict=True):
        result.add(score.example_id, value, (score.extracted, score.expected, score.note), score.groups)
    return result


def agreement(samples: Sequence[Sequence[Score]]) -> float | None:
    """The share of the answered questions on which the same was read in all samples; None without an answered question."""
    codes, read = _codes(samples)
    answered = np.array([not metrics.is_gap(note) for note in columns.text_column(samples[0], "note")], dtype=np.bool_)
    same = (codes == codes[:, :1]).all(axis=1) & read.all(axis=1)
    return float(same[answered].mean()) if answered.any() else None


def _codes(samples: Sequence[Sequence[Score]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(questions, samples) each: a number for each extracted answer, equal for equal answers; and whether it was read."""
    numbers: dict[str | None, int] = {}
    codes = np.empty((len(samples[0]), len(samples)), np.int64)
    read = np.empty(codes.shape, np.bool_)
    for sample, scores in enumerate(samples):
        texts, notes = columns.text_column(scores, "extracted"), columns.text_column(scores, "note")
        codes[:, sample] = [numbers.setdefault(text, len(numbers)) for text in texts]
        pairs = zip(texts, notes, strict=True)
        read[:, sample] = [t is not None and note != metrics.UNREAD and not metrics.is_gap(note) for t, note in pairs]
    return codes, read


def _ids(samples: Sequence[Sequence[Score]]) -> columns.IdColumn | None:
    first = samples[0]
    return first.ids if isinstance(first, Scores) else None
