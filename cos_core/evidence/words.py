"""The sentences of `cos evidence`: what a difference, a row and all rows together say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cos_core.evidence.arms import LABELS
from cos_core.evidence.verdicts import Answer, Line, Overall
from cos_core.visualize.run_sections import signed

CAVEATS = (
    "Every arm but “one look” and “two looks” shows the model what it was not trained on. A black crop may do harm of its "
    "own, and so may noise; that is why black, noise, another picture's crop and no crop stand side by side.",
    "No sign of a difference is no proof that there is none. Beside each difference stands the smallest one that would have "
    "been seen four times in five; smaller ones may be there.",
    "The verdict is about these questions, this pixel budget and this way to read the box. Another benchmark may need the crop "
    "more, or less.",
    "“Reads the crop” means that what the crop shows changes answers for the better. Whether looking twice pays at all is the "
    "first row; what it costs stands in the table of arms.",
    "An arm that reads more or fewer tokens differs in that, too. The table of arms says on how many questions its last pass "
    "read as many as that of two looks.",
)
"""What the page cannot tell."""


def points(value: float, unit: str) -> str:
    """The size of a difference: "4.2 points" for shares and percentages, else the metric's own units."""
    size = signed(abs(value), unit).lstrip("+−")
    return size if unit not in ("fraction", "percent") else f"{size} points"


def signed_interval(low: float | None, high: float | None, unit: str) -> str:
    """`−1.2 to +3.4`; a word for an end without bound."""
    if low is None or high is None:
        return "unbounded"
    return f"{signed(low, unit)} to {signed(high, unit)}"


def line_words(line: Line) -> str:
    """A difference's verdict in words."""
    pair = line.comparison
    if pair is None:
        return f"not run: {line.absent}"
    if line.undefined:
        return f"undefined: {line.undefined}"
    size = points(pair.found.difference, pair.unit)
    if line.verdict == "unclear":
        return _unseen(line)
    return f"adds {size}" if line.verdict == "better" else f"costs {size}"


def _unseen(line: Line) -> str:
    if line.comparison is None or not math.isfinite(line.seen):
        return "no sign; on so few pictures no difference could have been seen"
    if line.seen >= line.scale:
        return "no sign; only a difference of the whole range would have been seen"
    return f"no sign; {points(line.seen, line.comparison.unit)} would have been seen four times in five"


def row_words(answer: Answer, deciding: Sequence[Line]) -> str:
    """A row's verdict in words, from its deciding differences."""
    if answer in ("not run", "undefined"):
        wanted = next(line for line in deciding if line.comparison is None or line.undefined)
        return line_words(wanted)
    if answer == "no sign":
        return _unseen(max(deciding, key=lambda line: line.seen)).removeprefix("no sign; ")
    if len(deciding) == 1:
        return line_words(deciding[0])
    return "; ".join(f"against {LABELS[line.contrast.a]}: {line_words(line)}" for line in deciding)


def overall_words(verdict: Overall, twice: Line, content: Sequence[Line], margin: float) -> str:
    """The verdict over all rows with its reasons, a few sentences."""
    gain = f"Looking twice {_gain(twice)}."
    against = "; ".join(f"{LABELS[line.contrast.a]}: {line_words(line)}" for line in content)
    if verdict == "reads the crop":
        least = min(content, key=lambda line: line.comparison.found.difference if line.comparison else math.inf)
        pair = least.comparison
        size = points(pair.found.difference, pair.unit) if pair is not None else ""
        return f"What the crop shows is worth at least {size} (against black, noise and another picture's crop). {gain}"
    if verdict == "does not use the crop":
        return (
            "The answers are no worse when the crop is black, noise, or another picture's. A use of the crop of up to "
            f"{_most(content)} could have been missed; larger ones are ruled out (95 % intervals). {gain}"
        )
    if verdict == "hurt by the crop":
        return f"{gain} Two looks against {against}."
    if verdict == "mixed":
        return f"The controls do not agree. Two looks against {against}. {gain}"
    wrong = next((line for line in (twice, *content) if line.verdict == "undefined"), None)
    if wrong is not None:
        return f"{LABELS[wrong.contrast.b]} − {LABELS[wrong.contrast.a]} is {_why(wrong)}."
    return (
        "The answers are not clearly worse when the crop is black, noise, or another picture's, but a use of the crop of up to "
        f"{_most(content)} is not ruled out, and {margin:g} points of 100 would count: more questions are needed. {gain}"
    )


def plain_words(black: Line) -> str:
    """What black - none says of the reference itself, as a sentence behind the verdict; empty where it says nothing.

    A black crop shows nothing. Where it beats one look, it is the dialogue of one look that the model does not know.
    """
    if black.verdict != "better" or black.comparison is None:
        return ""
    found = points(black.comparison.found.difference, black.comparison.unit)
    return (
        f" One look scores {found} less than two looks at a black crop: these weights hardly know the dialogue of one look, so "
        "that what looking twice adds is overstated. Weights trained on that dialogue are the fair reference for it."
    )


def _most(content: Sequence[Line]) -> str:
    """The largest use of the crop that any of the differences leaves possible."""
    line = max(content, key=lambda line: line.most)
    if line.comparison is None or not line.most < line.scale:
        return "the whole range"
    return points(line.most, line.comparison.unit)


def _why(line: Line) -> str:
    return line_words(line) if line.comparison is None or line.undefined else "undefined"


def _gain(twice: Line) -> str:
    words = line_words(twice)
    if twice.verdict == "unclear":
        return f"shows no clear gain or loss ({words.removeprefix('no sign; ')})"
    return words if twice.verdict in ("better", "worse") else f"is {words}"


__all__ = ["CAVEATS", "line_words", "overall_words", "points", "row_words", "signed", "signed_interval"]
