"""From answers to scores, and from scores to every aggregate: what all benchmarks share, pure and without I/O.

A benchmark turns predictions into one Score per question with `judge`, and describes its aggregates as `Estimate`s, so that
values and their intervals come from the same scores and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core import statistics
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.statistics import Floats, Interval
from cos_core.types import BOX_STATUSES, Example, Prediction, Score

IMAGE = "image"
"""The key of `Score.groups` that names the picture: the cluster of every interval."""

BOX_STATUS = "box_status"
"""The key of `Score.groups` that says how the first pass's box was read."""

UNSAID = "unknown"
"""The profile and policy of answers that do not say theirs (LLaVA's format)."""

MISSING, FAILED = "missing", "failed"


# --- scoring ---------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a rule makes of one answer: its value (in the metric's units), what was read from it, what was expected."""

    value: float
    extracted: str | None
    expected: str | None


Rule = Callable[[Example, str], Verdict]


def judge(
    examples: Iterable[Example],
    predictions: Mapping[str, Prediction],
    rule: Rule,
    groups: Callable[[Example], Mapping[str, str]] = lambda example: {},
) -> list[Score]:
    """One Score per example, in order. A question without an answer scores 0 and says why in `note`: it is never left out."""
    return [_score(example, predictions.get(example.id), rule, groups(example)) for example in examples]


def _score(example: Example, prediction: Prediction | None, rule: Rule, groups: Mapping[str, str]) -> Score:
    shared = {IMAGE: example.image or example.id, **groups}
    if prediction is not None and prediction.policy != UNSAID:
        shared[BOX_STATUS] = prediction.box_status
    if prediction is None or prediction.answer is None:
        note = MISSING if prediction is None else f"{FAILED}: {prediction.error or 'no answer'}"
        return Score(example.id, 0.0, None, rule(example, "").expected, shared, note)
    verdict = rule(example, prediction.answer)
    return Score(example.id, verdict.value, verdict.extracted, verdict.expected, shared)


def unanswered(score: Score) -> bool:
    """Whether the question got no answer (missing or failed)."""
    return score.note is not None and score.note.split(":")[0] in (MISSING, FAILED)


# --- aggregates ------------------------------------------------------------------------------------------------------


def mean(scores: Sequence[Score]) -> float:
    """Mean value; 0.0 of no scores."""
    return sum(score.value for score in scores) / len(scores) if scores else 0.0


def percent(scores: Sequence[Score]) -> float:
    """The mean in percent with two decimals, as the official scripts print it."""
    return round(100 * mean(scores), 2)


def by_group(scores: Iterable[Score], key: str) -> dict[str, list[Score]]:
    """Scores by their group `key`, in order of first appearance; scores without the key are left out."""
    result: dict[str, list[Score]] = {}
    for score in scores:
        if key in score.groups:
            result.setdefault(score.groups[key], []).append(score)
    return result


def in_group(key: str, value: str) -> Callable[[Score], bool]:
    """Whether a score's group `key` is `value`."""
    return lambda score: score.groups.get(key) == value


@dataclass(frozen=True, slots=True)
class Estimate:
    """One aggregate, as a statistic of sums over questions, so that resampled images give its interval.

    `columns`: (questions, k) additive parts, rows in the order of the scores; `statistic`: sums (rows, k) -> values (rows,);
    `scale` brings the value into the metric's units (100 for percent). `name` is the metric's path, "random.f1".
    """

    name: str
    columns: Floats
    statistic: Callable[[Floats], Floats] = field(default=statistics.ratio)
    scale: float = 1.0

    def value(self) -> float:
        """The aggregate over all questions; nan when it is not defined (a mean of nothing)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.scale * float(self.statistic(self.columns.sum(axis=0, keepdims=True))[0])


def mean_estimate(
    name: str, scores: Sequence[Score], select: Callable[[Score], bool] | None = None, scale: float = 1.0
) -> Estimate:
    """The mean value of the scores that `select` takes (all of them without one)."""
    chosen = np.array([1.0 if select is None or select(score) else 0.0 for score in scores])
    values = np.array([score.value for score in scores])
    return Estimate(name, np.stack([values * chosen, chosen], axis=1) if scores else np.zeros((0, 2)), scale=scale)


def intervals(estimates: Iterable[Estimate], clusters: Sequence[str], *, replicates: int, seed: int) -> dict[str, list[float]]:
    """95 % intervals `[low, high]` by name, in the estimates' units; an estimate without questions or spread has none."""
    index, estimates = statistics.cluster_index(clusters), list(estimates)
    found = {estimate.name: _in_closed_form(estimate, index) for estimate in estimates}
    drawn = [estimate for estimate in estimates if found[estimate.name] is None]
    parts = [(estimate.columns, estimate.statistic) for estimate in drawn]
    resampled = statistics.bootstrap(parts, index, replicates=replicates, seed=seed)
    found |= {estimate.name: interval for estimate, interval in zip(drawn, resampled, strict=True)}
    return {
        estimate.name: [estimate.scale * end for end in interval]
        for estimate in estimates
        if (interval := found[estimate.name]) is not None and all(map(math.isfinite, interval))
    }


def _in_closed_form(estimate: Estimate, index: NDArray[np.intp]) -> Interval | None:
    """Wilson's interval of a share whose questions are on pictures of their own; (nan, nan) of nothing; else None."""
    rows = np.flatnonzero(np.any(estimate.columns != 0, axis=1))
    if not len(rows):
        return Interval(math.nan, math.nan)
    columns = estimate.columns[rows]
    if estimate.statistic is not statistics.ratio or not np.all(columns[:, 1] == 1) or not statistics.is_binary(columns[:, 0]):
        return None
    alone = np.bincount(index[rows]).max() == 1
    return statistics.wilson(float(columns[:, 0].sum()), len(rows)) if alone else None


def box_statuses(scores: Iterable[Score]) -> dict[str, float]:
    """Shares of box statuses among the predictions that tell theirs, the ones that occur, in the order of BOX_STATUSES."""
    found = [score.groups[BOX_STATUS] for score in scores if BOX_STATUS in score.groups]
    return {status: found.count(status) / len(found) for status in BOX_STATUSES if status in found}


# --- regions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegionScore:
    """How well one region of interest fits what its question is about; positions in frame "image".

    `hit`: the box contains the first target's centre; `hit_any`, `hit_all`: any, every target's; `iou` against the gold box,
    None where there is none; `area`: the box's share of the picture. Without a box: no hit, IoU 0, area None.
    """

    example_id: str
    hit: bool
    hit_any: bool
    hit_all: bool
    iou: float | None
    area: float | None
    groups: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "groups": dict(self.groups)}


def region_score(example: Example, box: Box | None, groups: Mapping[str, str] | None = None) -> RegionScore | None:
    """The fit of `box` for an example; None when the example names neither a gold box nor targets.

    `meta["gold"]`: [x0, y0, x1, y1]; `meta["targets"]`: list of [x, y], the centres of the objects that the question is about
    (without it, the gold box's own centre). Both in frame "image". Raises InputError when they are malformed.
    """
    gold = _gold(example)
    targets = _targets(example) or ([gold.centre] if gold else [])
    if not targets:
        return None
    hits = [box is not None and box.contains(x, y) for x, y in targets]
    iou = None if gold is None else (box.iou(gold) if box else 0.0)
    return RegionScore(example.id, hits[0], any(hits), all(hits), iou, box.area if box else None, dict(groups or {}))


def region_scores(
    examples: Iterable[Example], predictions: Mapping[str, Prediction], groups: Mapping[str, Mapping[str, str]]
) -> list[RegionScore]:
    """Fits of all predicted regions, one for each example that names where to look; empty when the run has no boxes at all.

    A question whose box is missing counts as no hit. `groups`: the scores' groups by example id.
    """
    if not any(prediction.box is not None for prediction in predictions.values()):
        return []
    result = []
    for example in examples:
        prediction = predictions.get(example.id)
        fit = region_score(example, prediction.box if prediction else None, groups.get(example.id))
        if fit is not None:
            result.append(fit)
    return result


def region_metrics(regions: Sequence[RegionScore]) -> dict[str, float]:
    """Means over `regions`: hit, hit_any, hit_all, iou (over those with a gold box), area (over those with a box), and n."""
    result: dict[str, float] = {"n": len(regions)}
    for name in ("hit", "hit_any", "hit_all", "iou", "area"):
        values = [float(value) for region in regions if (value := getattr(region, name)) is not None]
        if values:
            result[name] = sum(values) / len(values)
    return result


def region_estimates(regions: Sequence[RegionScore]) -> list[Estimate]:
    """Estimates of `regions.hit` and `regions.iou`; rows in the order of `regions`."""
    estimates = []
    for name in ("hit", "iou"):
        values = [getattr(region, name) for region in regions]
        columns = np.array([[float(v), 1.0] if v is not None else [0.0, 0.0] for v in values])
        if len(columns) and columns[:, 1].any():
            estimates.append(Estimate(f"regions.{name}", columns))
    return estimates


def _gold(example: Example) -> Box | None:
    gold = example.meta.get("gold")
    if gold is None:
        return None
    try:
        return Box.from_json(gold)
    except InputError as error:
        raise InputError(f"the gold region of {example.id!r} cannot be used: {error}") from None


def _targets(example: Example) -> list[tuple[float, float]]:
    targets = example.meta.get("targets") or []
    try:
        return [(float(x), float(y)) for x, y in targets]
    except (TypeError, ValueError):
        raise InputError(f"the targets of {example.id!r} must be a list of [x, y], got {str(targets)[:80]}") from None
