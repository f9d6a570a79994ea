"""Compares two scored runs on one benchmark; used by `cos eval compare`, reports and the demo.

The difference is of the benchmark's own headline (an F1, CircularEval, points) over the questions that both runs scored, both
runs resampled together by image. A figure that is not a finite number makes the verdict "undefined", neither better nor worse.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.errors import CosError, InputError
from cos_core.files import plug
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring import metrics, samples, statistics
from cos_core.scoring.columns import Scores
from cos_core.scoring.metrics import Estimate
from cos_core.scoring.statistics import AggregateDifference, Floats
from cos_core.types import RunManifest, Score

ARM = ("policy", "crop", "box_text", "global_scale", "gate")
"""Fields of the protocol that may differ, as runs are compared by them."""

SINCE_0_2 = ("rule", "pixel_budget")
"""Fields that older runs, or runs of other models, do not have; a run without one does not count as different."""

LEVEL = 0.05

Verdict = Literal["better", "worse", "unclear", "undefined"]


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One scored benchmark of a finished run.

    `further`: the scores of its samples 2, 3, ..., questions in the order of `scores`. Such a run is compared over all of them.
    """

    path: Path
    manifest: RunManifest
    scores: Sequence[Score]
    further: Sequence[Sequence[Score]] = ()

    @property
    def samples(self) -> list[Scores]:
        """The scores of every sample, the first of which are `scores`."""
        return [Scores.of(scores) for scores in (self.scores, *self.further)]

    @property
    def benchmark(self) -> str:
        return str(self.manifest.results.get("benchmark", "?"))

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for a fair comparison, the questions themselves included."""
        data = self.manifest.inputs.get("data", {}).get("questions_sha256")
        return {**self.manifest.results.get("protocol", {}), "data": data}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Run `b` against the reference `a` on one benchmark. `p_holm` is set when all comparisons of a call are known.

    `unit` is the metric's; `test` names where `p` comes from; `won`, `lost`: ids that B got right (or better) and A did not,
    and the other way round; `differs`: protocol fields that differ and were allowed to; `missing`: why the metric
    could not be computed at all, empty where it could; `samples`: how many answers a question A and B have, whose mean counts.
    """

    benchmark: str
    a: str
    b: str
    metric: str
    unit: str
    found: AggregateDifference
    p: float
    test: str
    n: int
    won: Sequence[str]
    lost: Sequence[str]
    differs: Sequence[str] = ()
    p_holm: float = 1.0
    only_a: int = 0
    only_b: int = 0
    missing: str = ""
    samples: tuple[int, int] = (1, 1)

    @property
    def undefined(self) -> str:
        """The reason for having no verdict; empty when there is one."""
        if self.missing:
            return self.missing
        figures = {
            f"{self.metric} of A": self.found.a,
            f"{self.metric} of B": self.found.b,
            "the difference": self.found.difference,
            "p": self.p,
            "p after Holm": self.p_holm,
        }
        return next((f"{name} is not a number" for name, value in figures.items() if not math.isfinite(value)), "")

    @property
    def verdict(self) -> Verdict:
        """Better, worse or unclear at 5 % after Holm; undefined when a figure that decides is not a finite number."""
        if self.undefined:
            return "undefined"
        if self.p_holm >= LEVEL or self.found.difference == 0:
            return "unclear"
        return "better" if self.found.difference > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null for a figure that is not a finite number (the ends of an interval may be infinite)."""
        fields = {key: getattr(self, key) for key in ("benchmark", "a", "b", "metric", "unit", "p", "p_holm", "test", "n")}
        flips = {"won": list(self.won), "lost": list(self.lost), "differs": list(self.differs)}
        rest = {key: value for key, value in self.found.to_json().items() if key not in ("a", "b", "p")}
        values = {"value_a": self.found.a, "value_b": self.found.b, "only_a": self.only_a, "only_b": self.only_b}
        reason = {"undefined": self.undefined} if self.undefined else {}
        sampled = {"samples_a": self.samples[0], "samples_b": self.samples[1]} if max(self.samples) > 1 else {}
        row = {**fields, **values, **rest, **flips, "verdict": self.verdict, **reason, **sampled}
        return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def differing(a: ScoredRun, b: ScoredRun) -> list[str]:
    """The protocol fields in which two runs differ, those that are meant to differ left out."""
    first, second = a.protocol, b.protocol
    silent = {key for key in SINCE_0_2 if key not in first or key not in second}
    keys = [key for key in dict.fromkeys([*first, *second]) if key not in ARM and key not in silent]
    return [key for key in keys if first.get(key) != second.get(key)]


def fair(a: ScoredRun, b: ScoredRun, despite: Collection[str] = ()) -> list[str]:
    """The protocol fields in which the runs differ and may (`despite`). Raises InputError for any other that differs."""
    fields = differing(a, b)
    refused = [key for key in fields if key not in despite and "all" not in despite]
    if refused:
        first, second = a.protocol, b.protocol
        differences = "; ".join(f"{key}: {_short(first.get(key))} against {_short(second.get(key))}" for key in refused)
        raise InputError(f"{a.path} and {b.path} were not made alike ({differences}); --despite {refused[0]} allows that")
    return fields


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's p-values over all; one that is undefined counts as a test and stays undefined."""
    p_values = statistics.holm([math.nan if c.undefined else c.p for c in comparisons])
    return [replace(c, p_holm=p) for c, p in zip(comparisons, p_values, strict=True)]


def pair(
    a: ScoredRun,
    b: ScoredRun,
    *,
    names: tuple[str, str],
    differs: Sequence[str] = (),
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> Comparison:
    """One benchmark of two runs, over the questions that both scored; without any, the verdict is undefined.

    Each question of a run with samples counts once, by the mean over its samples.
    """
    first, second = shared(a.samples, b.samples)
    n = len(first[0])
    head = a.manifest.results.get("headline", {})
    name, unit = str(head.get("metric", "accuracy")), str(head.get("unit", "fraction"))
    estimates = _estimates(a, first, second, name) if n else "the runs have no question in common"
    result = _NO_TEST if isinstance(estimates, str) else tested(*estimates, first[0], replicates, seed)
    changed = _changed(first, second, None if isinstance(estimates, str) else estimates)
    return Comparison(
        benchmark=a.benchmark,
        a=names[0],
        b=names[1],
        metric=name,
        unit=unit,
        found=result.found,
        p=result.p,
        test=result.name,
        n=changed.n,
        won=changed.won,
        lost=changed.lost,
        differs=differs,
        only_a=len(a.scores) - n,
        only_b=len(b.scores) - n,
        missing=estimates if isinstance(estimates, str) else "",
        samples=(len(first), len(second)),
    )


Samples = Sequence[Scores]
"""The scores of a run's samples, or of its one answer a question; questions in the same order."""


def shared(a: Samples, b: Samples) -> tuple[Samples, Samples]:
    """The scores of the questions that both have, in the order of `a`."""
    mine, theirs = a[0].ids, b[0].ids
    if mine.names == theirs.names and mine.unique():
        return a, b
    places = theirs.places()
    both = [(place, places[name]) for place, name in enumerate(mine.names) if name in places]
    of_a, of_b = (array("q", [pair[side] for pair in both]) for side in (0, 1))
    return [scores.take(of_a) for scores in a], [scores.take(of_b) for scores in b]


def counted(run: ScoredRun, first: Samples, second: Samples) -> NDArray[np.bool_]:
    """(rows,) the rows of two runs' `shared` scores that the headline is over; every row where the headline cannot be
    computed, or where several rows are right or wrong as one (MMBench's circles)."""
    name = str(run.manifest.results.get("headline", {}).get("metric", "accuracy"))
    estimates = _estimates(run, first, second, name) if len(first[0]) else ""
    if isinstance(estimates, str) or estimates[0].units is not None:
        return np.ones(len(first[0]), dtype=np.bool_)
    return estimates[0].population() | estimates[1].population()


class _Changed(NamedTuple):
    n: int
    won: list[str]
    lost: list[str]


def _changed(first: Samples, second: Samples, both: tuple[Estimate, Estimate] | None) -> _Changed:
    """How many questions the headline is over, and those that B won and lost: of one population with the difference and its p
    (ScienceQA's image accuracy: questions with a picture; MMBench: questions, not their rotations), by their mean over samples.

    A question of several rows is named by the row whose answer changed.
    """
    if both is None:
        both = metrics.mean_estimate("", first[0]), metrics.mean_estimate("", second[0])
    of_a, of_b = both
    counted = of_a.population() | of_b.population()
    values = zip(samples.mean_values(first), samples.mean_values(second), strict=True)
    gaps = [theirs - mine for mine, theirs in values]
    if of_a.units is None:
        changed = {row: gaps[row] for row in np.flatnonzero(counted).tolist() if gaps[row]}
    else:
        changed = {}
        rows_of: dict[str, list[int]] = {}
        for row, unit in enumerate(of_a.units):
            rows_of.setdefault(unit, []).append(row)
        gap = of_b.columns[:, 0] - of_a.columns[:, 0]
        for row in np.flatnonzero(gap).tolist():
            side = gap[row]
            same_side = [r for r in rows_of[of_a.units[row]] if gaps[r] * side > 0]
            changed[(same_side or [row])[0]] = side
    ids = {side: [first[0].ids.names[row] for row, gap in changed.items() if gap * side > 0] for side in (1, -1)}
    return _Changed(int(np.count_nonzero(counted)), ids[1], ids[-1])


class Tested(NamedTuple):
    """A difference, its p, and the name of the test that gave it."""

    found: AggregateDifference
    p: float
    name: str


_UNDEFINED = AggregateDifference(
    a=math.nan,
    b=math.nan,
    difference=math.nan,
    low=math.nan,
    high=math.nan,
    error=math.nan,
    p=math.nan,
    detectable=math.nan,
    clusters=0,
)
_NO_TEST = Tested(_UNDEFINED, math.nan, "none")


def tested(a: Estimate, b: Estimate, scores: Sequence[Score], replicates: int, seed: int) -> Tested:
    """McNemar's exact test where it applies, else the two runs swapped image by image; `scores`: either run's, in row order."""
    images = metrics.pictures(scores)
    difference = statistics.aggregate_difference(a.columns, b.columns, images, _scaled(a), replicates=replicates, seed=seed)
    if _is_exact(a, b, images):
        return Tested(difference, statistics.mcnemar(*_discordant(a, b)), "exact McNemar")
    return Tested(difference, difference.p, "runs swapped image by image")


def _benchmark(run: ScoredRun) -> Benchmark | str:
    """The benchmark that scored the run; a message when it cannot be loaded (a plug-in file that has moved)."""
    config = run.manifest.config
    options = {key: config[key] for key in ("split", "scorer") if config.get(key) is not None}
    try:
        benchmark: Benchmark = plug.load("benchmarks", str(config.get("benchmark", run.benchmark)), **options)
    except (CosError, TypeError) as error:
        return f"the benchmark that scored {run.path} cannot be loaded any more: {error}"
    return benchmark


def _estimates(run: ScoredRun, first: Samples, second: Samples, name: str) -> tuple[Estimate, Estimate] | str:
    """The headline of both runs as a statistic of sums, averaged over samples, or a message; the mean score for a benchmark
    without `estimates`."""
    benchmark = _benchmark(run)
    if isinstance(benchmark, str):
        return benchmark
    data = BenchmarkData(run.benchmark, str(run.protocol.get("split", "")), (), Path(), dict(run.protocol))
    both: list[Estimate] = []
    for side, each in (("A", first), ("B", second)):
        estimates = [samples.headline(benchmark, data, scores, name) for scores in each]
        known = [estimate for estimate in estimates if estimate is not None]
        if len(known) < len(each):
            return f"{side} has no {name} over the questions that both runs scored"
        estimate = samples.averaged(known)
        if estimate is None:
            return f"{name} is not made of the same parts in all samples of {side}"
        both.append(estimate)
    if both[0].columns.shape != both[1].columns.shape:
        return f"{name} is not made of the same parts in both runs"
    return both[0], both[1]


def _scaled(estimate: Estimate) -> Callable[[Floats], Floats]:
    """The statistic in the metric's units."""
    return lambda sums: estimate.scale * estimate.statistic(sums)


def _is_exact(a: Estimate, b: Estimate, images: Sequence[str]) -> bool:
    """Whether both are means of zeros and ones over the same questions, one on an image: then McNemar's test is exact."""
    if a.statistic is not statistics.ratio or b.statistic is not statistics.ratio:
        return False
    rows = a.population()
    if not np.array_equal(rows, b.population()):
        return False
    binary = statistics.is_binary(a.columns[rows, 0]) and statistics.is_binary(b.columns[rows, 0])
    alone = [images[row] for row in np.flatnonzero(rows).tolist()]
    return binary and len(set(alone)) == len(alone)


def _discordant(a: Estimate, b: Estimate) -> tuple[int, int]:
    gap = b.columns[:, 0] - a.columns[:, 0]
    return int(np.count_nonzero(gap > 0)), int(np.count_nonzero(gap < 0))


def flipped(comparison: Comparison, a: Mapping[str, Score], b: Mapping[str, Score]) -> Iterator[dict[str, Any]]:
    """The won and lost questions, one by one, with the extracted answer of each run."""
    for kind, ids in (("won", comparison.won), ("lost", comparison.lost)):
        for example_id in ids:
            x, y = a[example_id], b[example_id]
            row = {
                "benchmark": comparison.benchmark,
                "run": comparison.b,
                "id": example_id,
                "flip": kind,
                "expected": x.expected,
            }
            yield {**row, "a": x.extracted, "b": y.extracted, "value_a": x.value, "value_b": y.value}
