"""What the crop did: run B against run A, question by question, by what B's second pass was shown.

A question is fixed where B has the higher value, broken where it has the lower one. MED's four terms (arXiv 2602.01334) split
the difference of the two means by whether B's second pass was shown the region of a usable box ("called"). Pure: facts.py
reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.scoring import comparison, metrics, samples, statistics
from cos_core.scoring.columns import Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.facts import LOOKS, USABLE, Bools, Facts
from cos_core.scoring.metrics import Estimate
from cos_core.scoring.statistics import Floats

AREAS = (0.05, 0.2, 0.5)
"""Where the bins of a box's share of the picture begin: below 5 %, 5 to 20 %, 20 to 50 %, and above."""

OVERLAP = 0.5
"""The IoU with the data's own region from which on a box counts as at the right place."""

MOST_GROUPS = 24
"""A question group with more values than this is left out, and a remark names it."""

KINDS = ("all", "box", "overlap", "area")
"""The kinds of strata that are not a question group."""

CELLS = ("fixed", "broken", "both right", "both wrong")
TERMS = ("call gain", "schema gain", "call harm", "schema harm")


def signed_ends(sign: int, low: float | None, high: float | None) -> tuple[float, float] | None:
    """The ends of an interval times `sign`, the lower first; None without both."""
    if low is None or high is None:
        return None
    first, second = sorted((sign * low + 0.0, sign * high + 0.0))
    return first, second


class Share(NamedTuple):
    """`n` questions of a stratum; `low`, `high`: the 95 % interval of their share, None where it has none."""

    n: int
    share: float
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        return finite(self._asdict())


@dataclass(frozen=True, slots=True)
class Stratum:
    """A set of questions. `kind`: "all", "box", "overlap", "area" or a question group's name; `name`: its value there.

    `a`, `b`: both runs' mean values; `net` = b - a with its 95 % interval, pictures resampled. The two cells of equal values:
    `both_right` where the value is above 0 (in part right, alike), else `both_wrong`.
    """

    kind: str
    name: str
    n: int
    pictures: int
    fixed: Share
    broken: Share
    both_right: Share
    both_wrong: Share
    a: float
    b: float
    net: float
    low: float
    high: float

    @property
    def cells(self) -> tuple[Share, Share, Share, Share]:
        """In the order of CELLS."""
        return self.fixed, self.broken, self.both_right, self.both_wrong

    def named_cells(self) -> list[tuple[str, Share]]:
        """(name, share) in the order of CELLS."""
        return list(zip(CELLS, self.cells, strict=True))

    def words(self) -> str:
        """The stratum's name in a list of all: a question group's value stands behind the group's name."""
        return self.name if self.kind in KINDS else f"{self.kind}: {self.name}"

    def to_json(self) -> dict[str, Any]:
        cells = {name.replace(" ", "_"): share.to_json() for name, share in self.named_cells()}
        rest = {key: getattr(self, key) for key in ("kind", "name", "n", "pictures", "a", "b", "net", "low", "high")}
        return finite(rest | cells)


@dataclass(frozen=True, slots=True)
class Term:
    """One of TERMS: `value` = `mass` x `policy` x `quality`, at least 0, with its 95 % interval.

    Of right and wrong answers: mass is the share of questions that A had wrong (of a harm: right), policy the share of those in
    which B was called (of a schema term: not), quality the share of those that B turned. Of values between, a question counts
    with what A left to gain, or had to lose.
    """

    name: str
    mass: float
    policy: float
    quality: float
    value: float
    low: float | None = None
    high: float | None = None

    def signed(self) -> tuple[float, tuple[float, float] | None]:
        """The term as a part of B - A, a harm below 0, and its interval."""
        sign = -1 if self.name.endswith("harm") else 1
        return sign * self.value + 0.0, signed_ends(sign, self.low, self.high)

    def to_json(self) -> dict[str, Any]:
        return finite(asdict(self))


@dataclass(frozen=True, slots=True)
class Effect:
    """What B did to A's answers on one benchmark. `p` and `test` are of `whole` alone; the strata describe and test nothing.

    `terms`: MED's four, in the order of TERMS, which add up to `whole.net` (harms taken off); none where B never looked twice,
    or where its answers are not known. `remarks`: what is not known, a sentence each.
    """

    benchmark: str
    a: str
    b: str
    whole: Stratum
    p: float
    test: str
    strata: tuple[Stratum, ...] = ()
    terms: tuple[Term, ...] = ()
    remarks: tuple[str, ...] = ()

    def stratum(self, kind: str, name: str) -> Stratum | None:
        """The stratum of this kind and name; None where it holds no question."""
        return next((each for each in self.strata if (each.kind, each.name) == (kind, name)), None)

    def reading(self) -> str:
        """How the strata are to be read, in words."""
        return (
            f"{len(self.strata)} strata were looked at. They describe: each interval is a 95 % one by itself, about one in "
            "twenty misses its value, and only the difference of the mean scores over all questions is tested "
            f"(p {self.p:.2g}, {self.test})."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null for a figure that is not a finite number."""
        return finite(
            {
                "benchmark": self.benchmark,
                "a": self.a,
                "b": self.b,
                "whole": self.whole.to_json(),
                "p": self.p,
                "test": self.test,
                "strata": [each.to_json() for each in self.strata],
                "terms": [each.to_json() for each in self.terms],
                "remarks": list(self.remarks),
            }
        )


def effect(
    a: ScoredRun,
    b: ScoredRun,
    facts_b: Facts,
    *,
    names: tuple[str, str] | None = None,
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> Effect:
    """Run `b` against the reference `a` over the questions that both scored and the headline is over.

    `facts_b`: those of `b` (facts.read). `names`: how the runs are called, else their folders. A mean of no question is nan.
    """
    values = paired(a, b)
    known = facts_b.take(values.scores.ids)
    tested = comparison.tested(values.estimate("a"), values.estimate("b"), values.scores, replicates, seed)
    strata, remarks = [], list(known.remarks)
    for kind, name, rows in _strata(values.scores, known, remarks):
        if np.any(rows):
            # One set of questions has one interval: that of all questions is the comparison's.
            found = tested.found if np.all(rows) else None
            strata.append(_stratum(kind, name, values, rows, replicates, seed, found))
    whole = _stratum("all", "all questions", values, np.ones(len(values.a), dtype=np.bool_), replicates, seed, tested.found)
    return Effect(
        benchmark=a.benchmark,
        a=names[0] if names else str(a.path),
        b=names[1] if names else str(b.path),
        whole=whole,
        p=tested.p,
        test=tested.name,
        strata=tuple(strata),
        terms=terms(values, known.called, replicates, seed) if known.looked else (),
        remarks=tuple(remarks),
    )


# --- pairs of values -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Paired:
    """Both runs' values (questions,) of the same questions; `scores`: the first run's, for ids, pictures and groups."""

    scores: Scores
    a: Floats
    b: Floats

    @property
    def gap(self) -> Floats:
        return self.b - self.a

    @property
    def clusters(self) -> list[str]:
        """The picture of each question."""
        return metrics.pictures(self.scores)

    def estimate(self, side: str) -> Estimate:
        """One side's mean value."""
        return mean_of(side, self.a if side == "a" else self.b)


def paired(a: ScoredRun, b: ScoredRun) -> Paired:
    """The values of the questions that both runs scored and the headline is over, in the order of `a`; means over samples."""
    first, second = comparison.shared(a.samples, b.samples)
    rows = comparison.counted(a, first, second)
    values = (np.array(samples.mean_values(scores), dtype=np.float64)[rows] for scores in (first, second))
    return Paired(first[0].take(np.flatnonzero(rows).tolist()), *values)


def mean_of(name: str, values: Floats) -> Estimate:
    """The mean of `values` (questions,) as an estimate."""
    return Estimate(name, np.stack([values, np.ones(len(values))], axis=1))


def mean(values: NDArray[Any]) -> float:
    """nan of nothing."""
    return float(values.mean()) if values.size else float("nan")


def _stratum(
    kind: str,
    name: str,
    values: Paired,
    rows: Bools,
    replicates: int,
    seed: int,
    found: statistics.AggregateDifference | None = None,
) -> Stratum:
    """The stratum of the questions `rows`; `found`: the difference, where it is computed already."""
    a, b = values.a[rows], values.b[rows]
    clusters = [picture for picture, taken in zip(values.clusters, rows.tolist(), strict=True) if taken]
    gap = b - a
    cells = (gap > 0, gap < 0, (gap == 0) & (b > 0), (gap == 0) & ~(b > 0))
    estimates = [mean_of(cell, members.astype(np.float64)) for cell, members in zip(CELLS, cells, strict=True)]
    measured = metrics.measured(estimates, clusters, replicates=replicates, seed=seed)
    fixed, broken, right, wrong = (
        Share(int(members.sum()), mean(members), *(measured[cell][:2] if cell in measured else ()))
        for cell, members in zip(CELLS, cells, strict=True)
    )
    if found is None:
        index = statistics.cluster_index(clusters)
        low, high = statistics.paired_mean_interval(gap, index, replicates=replicates, seed=seed)
    else:
        low, high = found.low, found.high
    pictures = len(set(clusters))
    return Stratum(kind, name, len(gap), pictures, fixed, broken, right, wrong, mean(a), mean(b), mean(gap), low, high)


def _strata(scores: Scores, known: Facts, remarks: list[str]) -> Iterator[tuple[str, str, Bools]]:
    """(kind, name, rows) of every stratum; remarks of what is left out go to `remarks`."""
    if known.looked:
        yield from (("box", name, known.looks == look) for look, name in enumerate(LOOKS))
        has_gold = ~np.isnan(known.iou)
        yield "overlap", f"IoU at least {OVERLAP:g}", has_gold & (known.iou >= OVERLAP)
        yield "overlap", f"IoU below {OVERLAP:g}", has_gold & (known.iou < OVERLAP)
        usable = known.looks == USABLE
        edges = (0.0, *AREAS, float("inf"))
        for low, high in pairwise(edges):
            yield "area", _bin_name(low, high), usable & (known.area >= low) & (known.area < high)
    for key in _group_keys(scores):
        column = scores.group(key)
        names = list(dict.fromkeys(value for value in column if value is not None))
        if len(names) > MOST_GROUPS:
            remarks.append(f"the question group {key!r} has {len(names)} values; it is left out")
        elif len(names) > 1:
            yield from ((key, name, np.array([value == name for value in column])) for name in names)


def _bin_name(low: float, high: float) -> str:
    if low == 0:
        return f"area below {100 * high:g} %"
    return f"area {100 * low:g} % or more" if high > 1 else f"area {100 * low:g} to {100 * high:g} %"


def _group_keys(scores: Scores) -> list[str]:
    keys = dict.fromkeys(key for place in range(len(scores)) for key in scores.groups_of(place))
    return [key for key in keys if key not in (metrics.IMAGE, metrics.BOX_STATUS)]


# --- MED's four terms ------------------------------------------------------------------------------------------------


def terms(values: Paired, called: Bools, replicates: int = statistics.REPLICATES, seed: int = 0) -> tuple[Term, ...]:
    """MED's call gain, schema gain, call harm and schema harm, each mass x policy x quality (arXiv 2602.01334).

    gain = P(A wrong) P(called | A wrong) P(B right | called, A wrong), harm the same of what A had right; the schema terms are
    those of questions in which B was not called. Values beyond 0 and 1 are taken between the least and the greatest seen. A
    term without a question that could count in it (no call in the arm "absent") is 0 and has no interval.
    """
    gap = values.gap
    both = np.concatenate([values.a, values.b, [0.0, 1.0]])
    room = {"gain": both.max() - values.a, "harm": values.a - both.min()}
    turned = {"gain": np.maximum(gap, 0), "harm": np.maximum(-gap, 0)}
    parts = {name: (name.split()[1], called if name.startswith("call") else ~called) for name in TERMS}
    estimates = [mean_of(name, np.where(rows, turned[side], 0.0)) for name, (side, rows) in parts.items()]
    measured = metrics.measured(estimates, values.clusters, replicates=replicates, seed=seed)
    result = []
    for estimate in estimates:
        side, rows = parts[estimate.name]
        total, taken = float(room[side].sum()), float(room[side][rows].sum())
        moved = float(turned[side][rows].sum())
        # Where no question can be turned the term is 0 by what the arm is, not by what was seen.
        ends = measured[estimate.name][:2] if estimate.name in measured and taken else ()
        mass, policy, quality = _ratio(total, len(gap)), _ratio(taken, total), _ratio(moved, taken)
        result.append(Term(estimate.name, mass, policy, quality, _ratio(moved, len(gap)), *ends))
    return tuple(result)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for every figure that is not a finite number."""
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
