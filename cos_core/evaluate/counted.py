"""Counts that a score is reported with: answers that were not understood, grades that were not read, pictures not shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cos_core.evaluate.joining import PICTURE_MARK, Answers
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import columns, metrics
from cos_core.types import Prediction, Score

UNREAD, UNGRADED, WITHOUT_PICTURE = "unread", "ungraded", "without_picture"
DESCRIPTIONS = {
    UNREAD: "answers that name no option, or say neither yes nor no (they count as the official rule has it)",
    UNGRADED: "answers with a grade that could not be read (0)",
    WITHOUT_PICTURE: "questions that were asked without their picture",
}
"""Each kind that is counted, and its description for a person."""


def count_remarks(
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    scores: Sequence[Score],
    grades: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, int]:
    """The number of answers or questions of each kind in DESCRIPTIONS; kinds without any are left out.

    `grades`: a judge's grades by example id; None for a benchmark that is scored by a rule.
    Whether a question was asked with its picture is known only where some of the recorded prompts hold the picture's mark
    (LLaVA's of ScienceQA).
    """
    without_picture = 0
    if not isinstance(predictions, Answers) or predictions.marked:
        prompts = {key: prediction.question for key, prediction in predictions.items() if prediction.question is not None}
        if any(PICTURE_MARK in prompt for prompt in prompts.values()):
            pictured = [prompts[e.id] for e in data.examples if e.image is not None and e.id in prompts]
            without_picture = sum(PICTURE_MARK not in prompt for prompt in pictured)
    counts = {
        UNREAD: 0 if grades is not None else columns.text_column(scores, "note").count(metrics.UNREAD),
        UNGRADED: sum(any(map(math.isnan, of_answer)) for of_answer in (grades or {}).values()),
        WITHOUT_PICTURE: without_picture,
    }
    return {kind: count for kind, count in counts.items() if count}


def remark_lines(counts: Mapping[str, int]) -> list[str]:
    """The counts of `count_remarks` as text, one line a kind."""
    return [f"{DESCRIPTIONS[kind]}: {count:,}" for kind, count in counts.items()]
