"""What looking twice is worth where the model's box is right, against where it is wrong (TreeBench's question).

Only where the data says where to look. A box is right from an IoU of 0.5 with the data set's region on. Right boxes are more
frequent on easy questions, so not the scores are compared but the gains over one look at the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from cos_core.evidence.verdicts import PLACE
from cos_core.scoring import metrics, statistics
from cos_core.scoring.columns import Scores
from cos_core.scoring.comparison import Comparison, ScoredRun
from cos_core.scoring.statistics import AggregateDifference, Floats

IOU = 0.5


class Group(NamedTuple):
    """Questions of one kind of box: how many, on how many pictures, and the mean score of one look and of two."""

    n: int
    pictures: int
    once: float
    twice: float


class BoxEffect(NamedTuple):
    """The difference of gains as a comparison, and both groups."""

    comparison: Comparison
    right: Group
    wrong: Group


def effect(
    none: ScoredRun, model: ScoredRun, iou: Mapping[str, float], *, replicates: int = statistics.REPLICATES, seed: int = 0
) -> BoxEffect | None:
    """(model - none on right boxes) - (model - none on wrong boxes), of mean scores, pictures resampled; None without both.

    p: two-sided, from the bootstrap's error, no smaller than the least of a swapping test; the hypothesis is that both gains
    are equal, which swapping the runs does not test.
    """
    once, twice = Scores.of(none.scores).by_id(), Scores.of(model.scores).by_id()
    ids = [name for name in once if name in twice and name in iou]
    right = np.array([iou[name] >= IOU for name in ids], dtype=bool)
    if not ids or right.all() or not right.any():
        return None
    pictures = metrics.pictures([once[name] for name in ids])
    values = [np.array([scores[name].value for name in ids], dtype=np.float64) for scores in (once, twice)]
    a, b = (np.stack([value * right, right, value * ~right, ~right], axis=1) for value in values)
    found = statistics.aggregate_difference(a, b, pictures, _right_minus_wrong, replicates=replicates, seed=seed)
    groups = [_group(mask, pictures, values) for mask in (right, ~right)]
    if found.low == found.high:
        # No spread to resample: the gain of either group could be otherwise on a few pictures (verdicts.Line.ends).
        room = sum(1 - 0.025 ** (1 / group.pictures) for group in groups)
        found = replace(found, low=found.low - room, high=found.high + room)
    enough = min(group.pictures for group in groups) > 1
    p = _normal_p(found) if enough else math.nan
    comparison = Comparison(
        benchmark=model.benchmark,
        a=PLACE.a,
        b=PLACE.b,
        metric="mean score",
        unit="fraction",
        found=found,
        p=p,
        test="normal, from the bootstrap's error",
        n=len(ids),
        won=(),
        lost=(),
        missing="" if enough else "right or wrong boxes are on one picture only",
    )
    return BoxEffect(comparison, *groups)


def _normal_p(found: AggregateDifference) -> float:
    if found.difference == 0:
        return 1.0
    if not found.error > 0:
        return math.nan
    return max(1 / (1 + statistics.FLIPS), 2 * NormalDist().cdf(-abs(found.difference) / found.error))


def _right_minus_wrong(sums: Floats) -> Floats:
    return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]


def _group(mask: np.ndarray, pictures: list[str], values: list[Floats]) -> Group:
    once, twice = (float(value[mask].mean()) for value in values)
    return Group(int(mask.sum()), len({name for name, inside in zip(pictures, mask, strict=True) if inside}), once, twice)
