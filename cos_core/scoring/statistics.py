"""Confidence intervals for one run; paired differences and tests for two.

Every function is pure; random ones take a seed and use numpy's generator, so a result can be computed again to the bit.
Questions on one image are not independent, so whatever resamples, resamples images ("clusters").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.errors import InputError
from cos_core.scoring import REPLICATES as REPLICATES

LEVEL = 0.95
FLIPS = 10_000
_CACHED = 1 << 15
"""Random numbers in memory at a time, so that they stay in the processor's cache."""

_EXACT_PAIRS = 1000
"""The most discordant pairs for which McNemar's test is computed in whole numbers."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the units of its statistic."""

    low: float
    high: float


def wilson(successes: float, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), in [0, 1]. Raises InputError unless 0 <= successes <= n and n > 0."""
    if n <= 0 or not 0 <= successes <= n:
        raise InputError(f"an interval needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, room = successes / n, z * z / n
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / n + room / (4 * n))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


# --- bootstrap -------------------------------------------------------------------------------------------------------


def cluster_index(clusters: Sequence[Hashable]) -> NDArray[np.intp]:
    """A number for each item's cluster, 0 .. clusters - 1 in order of first appearance; shape (items,)."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(c, len(numbers)) for c in clusters), dtype=np.intp, count=len(clusters))


def cluster_sums(columns: Floats, index: NDArray[np.intp]) -> Floats:
    """Sums of `columns` (items, k) within clusters: (clusters, k)."""
    groups = int(index.max()) + 1 if index.size else 0
    return np.stack([np.bincount(index, weights=column, minlength=groups) for column in columns.T], axis=1)


def resampled_sums(sums: Floats, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """Totals of `replicates` samples of clusters drawn with replacement; (clusters, k) -> (replicates, k)."""
    groups = sums.shape[0]
    generator = np.random.default_rng(seed)
    # As many replicates at a time as stay in the cache: one for 40,000 images, thousands for a few.
    block = max(1, _CACHED // max(1, groups))
    totals = np.empty((replicates, sums.shape[1]))
    for start in range(0, replicates, block):
        rows = min(block, replicates - start)
        sample = generator.integers(0, groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        times = np.bincount(sample.ravel(), minlength=rows * groups).reshape(rows, groups)
        with np.errstate(invalid="ignore"):  # an infinite value times none of it is nan, and stays out of the interval
            totals[start : start + rows] = times @ sums
    return totals


def percentile_interval(values: Floats, clusters: int, level: float = LEVEL) -> Interval:
    """The expanded percentile interval (Hesterberg 2015, §5.3) of bootstrap `values` (replicates,).

    The plain percentile interval is too narrow for few clusters: it misses both the t quantile and the factor
    sqrt(n / (n - 1)); here the percentiles move outwards to make up for both. Values that are not finite are left out.
    """
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Interval(math.nan, math.nan)
    if clusters < 2:
        return Interval(-math.inf, math.inf)
    wide = math.sqrt(clusters / (clusters - 1)) * _t_quantile((1 + level) / 2, clusters - 1)
    tail = 100 * NormalDist().cdf(-wide)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def bootstrap(
    parts: Sequence[tuple[Floats, Callable[[Floats], Floats]]],
    index: NDArray[np.intp],
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of several statistics of the same items, resampling clusters.

    `parts`: (columns, statistic) each. `columns` (items, k) are additive parts (a mean needs value and 1; F1 needs true and
    false positives and false negatives); `statistic` maps sums (rows, k) to values (rows,). `index` (items,) numbers each
    item's cluster.
    All statistics use the same resampled clusters, as in survey sampling: the share of a group varies from sample to sample.
    A statistic to which fewer than two clusters contribute has the interval (-inf, inf).
    """
    if not parts:
        return []
    ends = np.cumsum([columns.shape[1] for columns, _ in parts]).tolist()
    sums = np.concatenate([cluster_sums(columns, index) for columns, _ in parts], axis=1)
    totals = resampled_sums(sums, replicates, seed)
    intervals = []
    for (columns, statistic), end in zip(parts, ends, strict=True):
        columns_of_part = slice(end - columns.shape[1], end)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = statistic(totals[:, columns_of_part])
        intervals.append(percentile_interval(values, int(np.any(sums[:, columns_of_part] != 0, axis=1).sum()), level))
    return intervals


def ratio(sums: Floats) -> Floats:
    """The statistic "sum of column 0 over sum of column 1": a mean."""
    return sums[:, 0] / sums[:, 1]


def is_binary(values: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))


def _t_quantile(p: float, freedom: int) -> float:
    """Student's t quantile by the expansion in 1/freedom (Abramowitz & Stegun 26.7.5); within 0.5 % from 4 degrees on."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


# --- two runs --------------------------------------------------------------------------------------------------------


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar test: the binomial probability of a split at least as uneven, at even odds. 1.0 without any."""
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    if n > _EXACT_PAIRS:
        # The same sum from logarithms: right to ten digits, and quick for a hundred thousand pairs.
        log_all = math.lgamma(n + 1) - n * math.log(2)
        terms = (math.exp(log_all - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(k + 1))
        return min(1.0, 2 * math.fsum(terms))
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / (1 << n))


@dataclass(frozen=True, slots=True)
class AggregateDifference:
    """B minus A of one aggregate, in the statistic's units, with its interval and test.

    `low`, `high`: 95 % interval, clusters resampled together in both runs; `error`: the bootstrap's standard error; `p`:
    two-sided, clusters' results swapped between the runs; `detectable`: the smallest true difference that a test at 5 % on this
    many clusters finds four times in five.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    error: float
    p: float
    detectable: float
    clusters: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


POWER = 0.8


def aggregate_difference(
    a: Floats,
    b: Floats,
    clusters: Sequence[Hashable],
    statistic: Callable[[Floats], Floats] = ratio,
    *,
    replicates: int = REPLICATES,
    flips: int = FLIPS,
    seed: int = 0,
) -> AggregateDifference:
    """The difference of any statistic of column sums (a mean, an F1, MME's points) between two runs on the same items.

    `a`, `b`: (items, k) additive parts of each run, rows in the same order. The test swaps both runs' rows, image by image:
    under the null either run could have given either; for a mean this is the sign-flip test. One cluster: an infinite interval.
    Where the statistic is not defined for a run, its value, the difference and `p` are nan.
    """
    index = cluster_index(clusters)
    sums = np.concatenate([cluster_sums(np.asarray(part, dtype=np.float64), index) for part in (a, b)], axis=1)
    k = a.shape[1]

    def difference(totals: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return statistic(totals[:, k:]) - statistic(totals[:, :k])

    total = sums.sum(axis=0, keepdims=True)
    differences = difference(resampled_sums(sums, replicates, seed))
    interval = percentile_interval(differences, len(sums))
    finite = differences[np.isfinite(differences)]
    error = float(finite.std(ddof=1)) if finite.size > 1 else math.nan
    normal = NormalDist()
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = float(statistic(total[:, :k])[0]), float(statistic(total[:, k:])[0])
    return AggregateDifference(
        a=first,
        b=second,
        difference=second - first,
        low=interval.low,
        high=interval.high,
        error=error,
        p=_swapped(sums, k, difference, flips, seed),
        detectable=(normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * error,
        clusters=len(sums),
    )


def _swapped(sums: Floats, k: int, difference: Callable[[Floats], Floats], flips: int, seed: int) -> float:
    """Two-sided permutation test: clusters' columns of A and B swapped at random; p is at least 1 / (flips + 1)."""
    total = sums.sum(axis=0)
    gap = sums[:, k:] - sums[:, :k]
    gap = gap[np.any(gap != 0, axis=1)]
    if not len(gap):
        return 1.0
    observed = abs(float(difference(total[None])[0]))
    if not math.isfinite(observed):
        return math.nan
    slack = 1e-9 * max(1.0, observed)
    generator = np.random.default_rng(seed)
    block = max(1, _CACHED // len(gap))
    extreme = 0
    for start in range(0, flips, block):
        rows = min(block, flips - start)
        shift = generator.integers(0, 2, size=(rows, len(gap)), dtype=np.int8) @ gap
        swapped = np.concatenate([total[:k] + shift, total[k:] - shift], axis=1)
        # A swap for which the statistic is undefined counts against a difference, not for one.
        extreme += int(np.count_nonzero(~(np.abs(difference(swapped)) < observed - slack)))
    return (1 + extreme) / (1 + flips)


PSEUDO = math.sqrt(0.5)
"""The difference of each of two pictures that `paired_mean_interval` adds: their squares sum to one question that changed."""


def paired_mean_interval(
    differences: Floats, index: NDArray[np.intp], *, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """The 95 % interval of a mean of paired differences (items,) in [-1, 1], few clusters and few changes allowed for.

    Clusters are resampled, two more among them: as many items as a cluster has on average, which differ by +PSEUDO and by
    -PSEUDO. They add no difference, and the variance of one changed item, as Agresti and Min (2005, "Simple improved confidence
    intervals for comparing matched proportions") add half an observation to each cell. Without them three changes, all one way,
    would look certain, and none at all would leave an interval of no width. (nan, nan) of no item.
    """
    if not differences.size:
        return Interval(math.nan, math.nan)
    columns = np.stack([np.asarray(differences, dtype=np.float64), np.ones(differences.size)], axis=1)
    sums = cluster_sums(columns, index)
    sums = sums[sums[:, 1] > 0]
    size = differences.size / len(sums)
    sums = np.concatenate([sums, [[PSEUDO * size, size], [-PSEUDO * size, size]]])
    return percentile_interval(ratio(resampled_sums(sums, replicates, seed)), len(sums))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given: reject those at most the level, and the chance of any false
    rejection stays at it. A p that is not a number counts as a test and stays one."""
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
            adjusted[i] = highest
    return adjusted
