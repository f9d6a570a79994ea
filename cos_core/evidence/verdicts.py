"""The seven rows, the differences in each, and the rules of every verdict. Pure: paired comparisons in, verdicts out.

A difference is "clear" where its p-value, Holm's over every difference of every benchmark of the call, is below 5 %. One that
is not clear is no proof of absence: beside it stands the smallest difference that would have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

from cos_core.scoring.comparison import LEVEL, Comparison, Verdict
from cos_core.scoring.statistics import POWER, Interval

Answer = Literal["yes", "no: the reverse", "partly", "no sign", "undefined", "not run"]
"""A row's verdict."""

Overall = Literal["reads the crop", "does not use the crop", "hurt by the crop", "mixed", "cannot tell"]


class Contrast(NamedTuple):
    """The difference `b` minus `a` of two arms; `measures`: what it is the effect of."""

    b: str
    a: str
    measures: str


@dataclass(frozen=True, slots=True)
class Row:
    """A question, the paper whose control answers it, and the differences; the first `decide` of them give the verdict."""

    key: str
    question: str
    source: str
    contrasts: tuple[Contrast, ...]
    decide: int = 1


SCALES: Mapping[str, float] = {"fraction": 1.0, "percent": 100.0}
"""The full range of a metric by its unit; points (MME's) have none that is known here."""

RIGHT, WRONG = "right boxes", "wrong boxes"
"""The two sides of the difference that boxes.py computes."""

TWICE = Contrast("model", "none", "looking twice instead of once")
BLACK = Contrast("model", "black", "what the crop shows, instead of black")
NOISE = Contrast("model", "noise", "what the crop shows, instead of noise")
BLACK_ALONE = Contrast("black", "none", "a black crop, instead of one look")
SWAP = Contrast("model", "swap", "the crop of this picture, instead of another picture's")
PLACE = Contrast(RIGHT, WRONG, "looking twice where the box is right, instead of where it is wrong")

ROWS = (
    Row("twice", "Does looking twice help?", "MED, arXiv 2602.01334", (TWICE,)),
    Row(
        "format",
        "Does the format alone do it?",
        "arXiv 2606.02357",
        (
            Contrast("absent", "none", "the dialogue with the box's text, but no crop"),
            Contrast("model", "absent", "the crop, when the box's text stands already"),
        ),
    ),
    Row(
        "unboxed",
        "Does the crop do it without its box?",
        "arXiv 2606.02357",
        (
            Contrast("unboxed", "none", "the crop alone, without the box's text"),
            Contrast("model", "unboxed", "the box's text, when the crop stands already"),
        ),
    ),
    Row(
        "content",
        "Is what the crop shows read?",
        "VisualNeedle, arXiv 2605.26380",
        (BLACK, NOISE, BLACK_ALONE),
        decide=2,
    ),
    Row(
        "place",
        "Is it this place that counts?",
        "DeepEyes issue 60; TreeBench",
        (SWAP, PLACE, Contrast("gold", "model", "the data set's own region, instead of the model's")),
    ),
    Row(
        "gap",
        "Does the crop bring what the whole picture lacks?",
        "LFPC, arXiv 2603.27494",
        (Contrast("blurred_model", "blurred_none", "looking twice, when the whole picture is blurred"),),
    ),
    Row(
        "tokens",
        "Is it more than a second picture's tokens?",
        "ZwZ (Zooming without Zooming)",
        (Contrast("model", "full", "the crop, instead of the whole picture again"),),
    ),
)


class Failed(NamedTuple):
    """Questions without an answer, which benchmarks count as wrong: in `a` alone, in `b` alone, and in both."""

    a: int = 0
    b: int = 0
    both: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """One difference with what stands behind it.

    `comparison`: None where an arm was not run, and `absent` says why. `tests`: differences over which Holm's p-values are.
    `interval`: one in the place of the comparison's, where few questions changed (differences.paired_interval).
    """

    contrast: Contrast
    comparison: Comparison | None = None
    absent: str = ""
    failed: Failed = Failed()
    tests: int = 1
    interval: Interval | None = None

    @property
    def scale(self) -> float:
        """The full range of the metric; for points without one, the larger of both values."""
        if self.comparison is None:
            return math.nan
        found = self.comparison.found
        return SCALES.get(self.comparison.unit, max(abs(found.a), abs(found.b)))

    @property
    def verdict(self) -> Verdict:
        """Undefined also where the questions that failed could have made a clear difference."""
        return "undefined" if self.undefined or self.comparison is None else self.comparison.verdict

    @property
    def undefined(self) -> str:
        """Why there is no verdict; empty where there is one."""
        if self.comparison is None:
            return self.absent
        if self.comparison.undefined or self.comparison.verdict == "unclear":
            return self.comparison.undefined
        lower = self.failed.a if self.comparison.verdict == "better" else self.failed.b
        if lower * self.scale >= abs(self.comparison.found.difference) * self.comparison.n:
            name = self.contrast.a if self.comparison.verdict == "better" else self.contrast.b
            return f"{lower} questions failed under {name!r} alone, enough to make the whole difference"
        return ""

    @property
    def ends(self) -> Interval:
        """The difference's 95 % interval. Where resampling shows no spread (no question changed, or all did), a share of
        pictures up to 1 - 0.025^(1/pictures) could still be otherwise (Clopper and Pearson 1934, none of so many)."""
        if self.comparison is None:
            return Interval(math.nan, math.nan)
        found = self.comparison.found
        if found.low == found.high and found.clusters:
            room = self.scale * (1 - 0.025 ** (1 / found.clusters))
            return Interval(max(-self.scale, found.low - room), min(self.scale, found.high + room))
        return self.interval or Interval(found.low, found.high)

    @property
    def most(self) -> float:
        """The largest difference that the interval and the failed questions leave possible."""
        if self.comparison is None or self.comparison.undefined:
            return math.inf
        unknown = self.failed.b + self.failed.both
        return self.ends.high + self.scale * unknown / max(1, self.comparison.n)

    @property
    def seen(self) -> float:
        """The smallest true difference that would have been clear four times in five, at Holm's first and hardest step.

        A normal approximation from the bootstrap's error, but at least what so many pictures can show when every change goes
        one way (sign test). Infinite where nothing could be seen.
        """
        if self.comparison is None or self.comparison.undefined:
            return math.inf
        found, level = self.comparison.found, LEVEL / self.tests
        normal = NormalDist()
        smooth = (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)) * found.error
        share = one_way_share(found.clusters, level) * found.clusters / max(1, self.comparison.n)
        return max(smooth if math.isfinite(smooth) else 0.0, self.scale * share)


def one_way_share(pictures: int, level: float) -> float:
    """The share of pictures that must change, all in one direction, for a two-sided sign test at `level` to find it four times
    in five; infinite where even all of them would not do."""
    needed = math.ceil(1 + math.log2(1 / level))
    if pictures < needed:
        return math.inf
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _at_least(needed, pictures, middle) >= POWER else (middle, high)
    return high


def _at_least(k: int, n: int, share: float) -> float:
    """The probability of at least `k` successes in `n` trials of probability `share`, in (0, 1]."""
    if share >= 1:
        return 1.0
    logs = math.log(share), math.log1p(-share)
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * logs[0] + (n - i) * logs[1] for i in range(k)
    )
    return 1.0 - math.fsum(map(math.exp, terms))


def row_answer(row: Row, lines: Sequence[Line]) -> Answer:
    """A row's verdict from its deciding differences: all clear in one direction, none clear, or in between."""
    deciding = lines[: row.decide]
    if any(line.comparison is None for line in deciding):
        return "not run"
    found = {line.verdict for line in deciding}
    if "undefined" in found:
        return "undefined"
    answers: Mapping[frozenset[str], Answer] = {
        frozenset({"better"}): "yes",
        frozenset({"worse"}): "no: the reverse",
        frozenset({"unclear"}): "no sign",
    }
    return answers.get(frozenset(found), "partly")


def overall(twice: Verdict, content: Sequence[Verdict], bounded: bool) -> Overall:
    """The verdict over all rows. `twice`: of model - none; `content`: of model - black, model - noise, model - swap; `bounded`:
    whether each of the three intervals excludes a use of the crop as large as the margin.

    The first line that fits holds:

    any of the four undefined                       cannot tell
    model worse than none, or worse than black      hurt by the crop
    better than black, noise and swap               reads the crop
    unclear against all three, bounded              does not use the crop
    unclear against all three, not bounded          cannot tell
    anything else                                   mixed
    """
    if "undefined" in (twice, *content):
        return "cannot tell"
    if twice == "worse" or content[0] == "worse":
        return "hurt by the crop"
    found = set(content)
    if found == {"better"}:
        return "reads the crop"
    if found == {"unclear"}:
        return "does not use the crop" if bounded else "cannot tell"
    return "mixed"


def bounded(lines: Sequence[Line], margin: float) -> bool:
    """Whether each difference is certainly below `margin`, in points of 100 of the metric's range."""
    return all(line.most < margin / 100 * line.scale for line in lines)
