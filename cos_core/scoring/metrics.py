"""From answers to scores, and from scores to every aggregate: what all benchmarks share, pure and without I/O.

A benchmark turns predictions into one Score per question with `judge`, and describes its aggregates as `Estimate`s, so that
values and their intervals come from the same scores and nothing else.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.geometry import Box
from cos_core.scoring import columns, statistics
from cos_core.scoring.columns import Examples, Scores
from cos_core.scoring.recorded import UNSAID
from cos_core.scoring.statistics import Floats, Interval
from cos_core.types import BOX_STATUSES, UNUSABLE_BOXES, BoxStatus, Example, Prediction, Score

IMAGE = "image"
"""The key of `Score.groups` that names the picture: the cluster of every interval."""

BOX_STATUS = "box_status"
"""The key of `Score.groups` that holds the status of the first pass's box."""


MISSING, FAILED = "missing", "failed"

UNREAD = "unread"
"""The note of a score whose answer names no option, or says neither yes nor no."""


# --- scoring ---------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A rule's result for one answer: its value (in the metric's units), the extracted and the expected answer, and whether the
    extracted one is a possible answer at all (an option, yes or no)."""

    value: float
    extracted: str | None
    expected: str | None
    read: bool = True


Rule = Callable[[Example, str], Verdict]


def judge(
    examples: Iterable[Example],
    predictions: Mapping[str, Prediction],
    rule: Rule,
    groups: Callable[[Example], Mapping[str, str]] = lambda example: {},
) -> Scores:
    """One Score per example, in order. A question without an answer scores 0, with the reason in `note`."""
    scores = Scores(known=examples.ids if isinstance(examples, Examples) else None)
    prediction_of: Callable[[str], AnsweredPrediction | None] = getattr(predictions, "for_scoring", predictions.get)
    for example in examples:
        _score(scores, example, prediction_of(example.id), rule, groups(example))
    return scores


class ShortAnswer(NamedTuple):
    """What scoring needs of a prediction that has an answer."""

    answer: str
    policy: str
    box_status: BoxStatus
    error: str | None = None


AnsweredPrediction = Prediction | ShortAnswer


def _score(
    scores: Scores, example: Example, prediction: AnsweredPrediction | None, rule: Rule, groups: Mapping[str, str]
) -> None:
    shared = {IMAGE: example.image or example.id, **groups}
    if prediction is not None and prediction.policy != UNSAID:
        shared[BOX_STATUS] = prediction.box_status
    if prediction is None or prediction.answer is None:
        note = MISSING if prediction is None else f"{FAILED}: {prediction.error or 'no answer'}"
        scores.add(example.id, 0.0, (None, rule(example, "").expected, note), shared)
        return
    verdict = rule(example, prediction.answer)
    scores.add(example.id, verdict.value, (verdict.extracted, verdict.expected, None if verdict.read else UNREAD), shared)


def unanswered(score: Score) -> bool:
    """Whether the question has no answer (missing or failed)."""
    return is_gap(score.note)


def is_gap(note: str | None) -> bool:
    """Whether the note of a score says that there is no answer."""
    return note is not None and note.split(":")[0] in (MISSING, FAILED)


# --- aggregates ------------------------------------------------------------------------------------------------------


def mean(scores: Sequence[Score]) -> float:
    """Mean value; 0.0 of no scores."""
    return sum(columns.values(scores)) / len(scores) if len(scores) else 0.0


def percent(scores: Sequence[Score]) -> float:
    """The mean in percent with two decimals, as the official scripts print it."""
    return round(100 * mean(scores), 2)


def at_path(table: Mapping[str, Any], path: str) -> Any:
    """The value of a metric by its path ("kinds.reading.accuracy") in a table of metrics; None where it has none."""
    value: Any = table
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def pictures(scores: Sequence[Score]) -> list[str]:
    """The cluster of each score, for intervals: its picture, else its own id."""
    images = columns.group(scores, IMAGE)
    if None not in images:
        return images  # type: ignore[return-value]
    return [example_id if name is None else name for name, example_id in zip(images, columns.names(scores), strict=True)]


def by_group(scores: Iterable[Score], key: str) -> dict[str, Sequence[Score]]:
    """Scores by their group `key`, in order of first appearance; scores without the key are left out."""
    rows = columns.reusable(scores)
    places: dict[str, array[int]] = {}
    for place, name in enumerate(columns.group(rows, key)):
        if name is not None:
            members = places.get(name)
            if members is None:
                members = places[name] = array("q")
            members.append(place)
    return {name: columns.at_places(rows, members) for name, members in places.items()}


@dataclass(frozen=True, slots=True)
class InGroup:
    """Whether a score's group `key` is `value`."""

    key: str
    value: str

    def __call__(self, score: Score) -> bool:
        return score.groups.get(self.key) == self.value


def in_group(key: str, value: str) -> InGroup:
    """Whether a score's group `key` is `value`."""
    return InGroup(key, value)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One aggregate, as a statistic of sums over questions, so that resampled images give its interval.

    `columns`: (questions, k) additive parts, rows in the order of the scores; `statistic`: sums (rows, k) -> values (rows,);
    `scale` brings the value into the metric's units (100 for percent). `name` is the metric's path, "random.f1".
    `counted`: (questions,) which of them the aggregate is over; not given, those of weight in a mean, else all. `units`: by
    question, the name of what is right or wrong as one (MMBench's circles), on whose first row `columns` has it.
    """

    name: str
    columns: Floats
    statistic: Callable[[Floats], Floats] = field(default=statistics.ratio)
    scale: float = 1.0
    counted: NDArray[np.bool_] | None = None
    units: Sequence[str] | None = None

    def population(self) -> NDArray[np.bool_]:
        """(questions,) the rows that the aggregate is over: counts of won and lost questions are over the same rows."""
        if self.counted is not None:
            return self.counted
        everything = np.ones(len(self.columns), dtype=np.bool_)
        return self.columns[:, 1] != 0 if self.statistic is statistics.ratio else everything

    def value(self) -> float:
        """The aggregate over all questions; nan when it is not defined (a mean of nothing)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.scale * float(self.statistic(self.columns.sum(axis=0, keepdims=True))[0])


def mean_estimate(
    name: str, scores: Sequence[Score], select: Callable[[Score], bool] | None = None, scale: float = 1.0
) -> Estimate:
    """The mean value of the scores that `select` takes (all of them without one)."""
    table = np.empty((len(scores), 2))
    if isinstance(select, InGroup):
        table[:, 1] = [group == select.value for group in columns.group(scores, select.key)]
    else:
        table[:, 1] = 1.0 if select is None else [bool(select(score)) for score in scores]
    table[:, 0] = columns.value_array(scores)
    table[:, 0] *= table[:, 1]
    return Estimate(name, table, scale=scale)


WILSON, WILSON_CLUSTERS, BOOTSTRAP = "Wilson", "Wilson over images", "bootstrap over images"


class Measured(NamedTuple):
    """A 95 % interval in the estimate's units, and where it comes from (WILSON, WILSON_CLUSTERS or BOOTSTRAP)."""

    low: float
    high: float
    method: str


def measured(estimates: Iterable[Estimate], clusters: Sequence[str], *, replicates: int, seed: int) -> dict[str, Measured]:
    """95 % intervals by name; an estimate without questions has none, and one without spread only when it is a share.

    A share whose questions are on pictures of their own has Wilson's interval. Any other is resampled by picture. Where that
    has no spread (none or all of 13 right: every sample is the same), a share has Wilson's interval with as many trials as
    there are pictures: the questions of one picture may all depend on each other, so they count as one.
    """
    index, estimates = statistics.cluster_index(clusters), list(estimates)
    closed = {estimate.name: _in_closed_form(estimate, index) for estimate in estimates}
    resampled = [estimate for estimate in estimates if closed[estimate.name] is None]
    parts = [(estimate.columns, estimate.statistic) for estimate in resampled]
    intervals = statistics.bootstrap(parts, index, replicates=replicates, seed=seed)
    boot = {estimate.name: interval for estimate, interval in zip(resampled, intervals, strict=True)}
    result = {}
    for estimate in estimates:
        interval, method = closed[estimate.name], WILSON
        if interval is None:
            interval, method = boot[estimate.name], BOOTSTRAP
            if interval.low == interval.high:
                interval, method = _without_spread(estimate, index), WILSON_CLUSTERS
        if interval is not None and all(map(math.isfinite, interval)):
            result[estimate.name] = Measured(estimate.scale * interval.low, estimate.scale * interval.high, method)
    return result


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


def _without_spread(estimate: Estimate, index: NDArray[np.intp]) -> Interval | None:
    """Wilson's interval of a mean of values in [0, 1], a trial each picture; None for another statistic.

    Values between 0 and 1 vary less than zeros and ones of the same mean, so for them the interval is too wide, not too narrow.
    """
    rows = estimate.columns[:, -1] != 0
    values, weights = estimate.columns[rows, 0], estimate.columns[rows, -1]
    if estimate.statistic is not statistics.ratio or np.any(values < 0) or np.any(values > weights):
        return None
    pictures = len(np.unique(index[rows]))
    return statistics.wilson(pictures * float(values.sum() / weights.sum()), pictures)


def box_statuses(scores: Iterable[Score]) -> dict[str, float]:
    """The share of each box status that occurs, among predictions with a status, in the order of BOX_STATUSES."""
    counts = Counter(status for status in columns.group(scores, BOX_STATUS) if status is not None)
    return {status: counts[status] / counts.total() for status in BOX_STATUSES if counts[status]}


# --- regions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegionScore:
    """How well one region of interest fits what its question is about; positions in frame "image".

    `hit`: the box contains the first target's centre; `hit_any`, `hit_all`: any, every target's; `iou` against the gold box,
    None where there is none; `area`: the box's share of the picture. Without a usable box: no hit, IoU 0, area None.
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
    """The fit of `box` for an example; None when the example has neither a gold box nor targets, or when its gold box is the
    whole picture.

    The targets of an example without any are its gold box's centre.
    """
    gold = example.gold
    targets: Sequence[tuple[float, float]] = example.targets or ((gold.centre,) if gold and gold.area < 1.0 else ())
    if not targets:
        return None
    hits = [box is not None and box.contains(x, y) for x, y in targets]
    iou = None if gold is None else (box.iou(gold) if box else 0.0)
    return RegionScore(example.id, hits[0], any(hits), all(hits), iou, box.area if box else None, dict(groups or {}))


def region_scores(
    examples: Iterable[Example], predictions: Mapping[str, Prediction], groups: Mapping[str, Mapping[str, str]]
) -> list[RegionScore]:
    """Fits of all predicted regions, one for each example that names where to look; empty when the run has no boxes at all.

    A question whose box is missing or was not usable counts as no hit, whatever was looked at instead (`--on-bad-box`). One
    whose plain answer stands without a box having been asked for (a gate) is left out. `groups`: the scores' groups by
    example id.
    """
    if isinstance(examples, Examples) and not examples.steering & {"gold", "targets"}:
        return []
    if not any(prediction.box is not None for prediction in predictions.values()):
        return []
    result = []
    for example in examples:
        prediction = predictions.get(example.id)
        if prediction is not None and prediction.gate == "closed" and prediction.box is None and prediction.box_text is None:
            continue
        fit = region_score(example, usable_box(prediction) if prediction else None, groups.get(example.id))
        if fit is not None:
            result.append(fit)
    return result


def usable_box(prediction: Prediction) -> Box | None:
    """The box that a prediction's first pass named; None when it named none, or none that could be used."""
    return None if prediction.box_status in UNUSABLE_BOXES else prediction.box


def region_metrics(regions: Sequence[RegionScore]) -> dict[str, float]:
    """Means over `regions`: hit, hit_any, hit_all, iou (over those with a gold box), area (over those with a usable box); and
    `n`, of which `usable` had a usable box."""
    result: dict[str, float] = {"n": len(regions), "usable": sum(region.area is not None for region in regions)}
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
