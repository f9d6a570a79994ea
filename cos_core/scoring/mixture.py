"""The headline of answers of which each is taken from one of two scorings of the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring import metrics, statistics
from cos_core.scoring.columns import Scores
from cos_core.scoring.metrics import Estimate
from cos_core.scoring.statistics import Floats
from cos_core.types import Score

Chosen = NDArray[np.bool_]
"""(questions,) whether each question takes the second scoring."""

_ROUNDED = (None, 2, 1)
"""The decimals to which benchmarks round a mean (metrics.percent), None: not at all."""


class Mixed(NamedTuple):
    """`value`: the benchmark's headline, in its units; nan where it has none. `sums`: (clusters, k) what its intervals are made
    of (Estimate.columns, summed by picture)."""

    value: float
    sums: Floats


class Mixture:
    """Two scorings of the same questions, rows in the same order.

    A headline that is a mean of the questions' own scores is computed from these; any other (an F1, circles, points) anew by
    the benchmark for each mixture. `index`: (questions,) the picture's number of each question.
    """

    def __init__(self, benchmark: Benchmark, data: BenchmarkData, first: Scores, second: Scores) -> None:
        self._benchmark, self._data = benchmark, data
        self._scores = first, second
        self.index = statistics.cluster_index(metrics.pictures(first))
        estimates = [self._estimate(scores) for scores in self._scores]
        self._estimates = [each for each in estimates if each is not None]
        self._decimals = self._quick_decimals() if len(self._estimates) == 2 else None
        self._rows: tuple[list[Score], list[Score]] | None = None

    @property
    def clusters(self) -> int:
        """How many pictures the questions are about."""
        return int(self.index.max()) + 1 if self.index.size else 0

    @property
    def gains(self) -> Floats:
        """(questions,) the score of the second minus that of the first."""
        first, second = (scores.value_array() for scores in self._scores)
        return second - first

    def statistic(self, sums: Floats) -> Floats:
        """The headline of totals (rows, k), in the benchmark's units: (rows,). Nan where intervals are not defined."""
        if len(self._estimates) < 2:
            return np.full(len(sums), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._estimates[0].scale * self._estimates[0].statistic(sums)

    def at(self, second: Chosen) -> Mixed:
        """The mixture in which the questions of `second` take the second scoring."""
        if self._decimals is None:
            return self._anew(second)
        columns = np.where(second[:, None], self._estimates[1].columns, self._estimates[0].columns)
        value = float(self.statistic(columns.sum(axis=0, keepdims=True))[0])
        return Mixed(_rounded(value, self._decimals[0]), statistics.cluster_sums(columns, self.index))

    def _anew(self, second: Chosen) -> Mixed:
        if self._rows is None:
            self._rows = list(self._scores[0]), list(self._scores[1])
        rows = [both[takes] for both, takes in zip(zip(*self._rows, strict=True), second.tolist(), strict=True)]
        scores = Scores(rows, self._scores[0].ids)
        estimate = self._estimate(scores)
        columns = np.zeros((len(scores), 1)) if estimate is None else estimate.columns
        return Mixed(self._tabled(scores), statistics.cluster_sums(columns, self.index))

    def _estimate(self, scores: Scores) -> Estimate | None:
        name = self._benchmark.headline
        estimates = self._benchmark.estimates(self._data, scores)
        if estimates is None:
            estimates = [metrics.mean_estimate(name, scores)]
        return next((estimate for estimate in estimates if estimate.name == name), None)

    def _tabled(self, scores: Sequence[Score]) -> float:
        value = metrics.at_path(self._benchmark.metrics(self._data, scores), self._benchmark.headline)
        return float(value) if isinstance(value, int | float) else math.nan

    def _quick_decimals(self) -> tuple[int | None] | None:
        """The decimals to which the headline is a mean of the questions' scores; None where it is not such a mean."""
        first, second = self._estimates
        if not np.array_equal(first.columns[:, 1:], second.columns[:, 1:]):
            return None
        for estimate, scores in zip(self._estimates, self._scores, strict=True):
            plain = estimate.statistic is statistics.ratio and estimate.units is None and estimate.columns.shape[1] == 2
            if not plain or not np.array_equal(estimate.columns[:, 0], scores.value_array() * estimate.columns[:, 1]):
                return None
        pairs = [(each.value(), self._tabled(scores)) for each, scores in zip(self._estimates, self._scores, strict=True)]
        for decimals in _ROUNDED:
            if all(math.isclose(_rounded(value, decimals), tabled, rel_tol=1e-12, abs_tol=1e-12) for value, tabled in pairs):
                return (decimals,)
        return None


def _rounded(value: float, decimals: int | None) -> float:
    return value if decimals is None else round(value, decimals)
