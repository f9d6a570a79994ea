"""What stands beside a score, counted: answers that name nothing, grades not read, questions asked without their picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cos_core.evaluate.joining import PICTURE_MARK, Answers
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import columns, metrics
from cos_core.types import Prediction, Score

UNREAD, UNGRADED, BLIND = "unread", "ungraded", "without_picture"
BESIDE = {
    UNREAD: "answers that name no option, or say neither yes nor no (they count as the official rule has it)",
    UNGRADED: "answers with a grade that could not be read (0)",
    BLIND: "questions that were asked without their picture",
}
"""What stands beside every score, and its words."""


def beside(
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    scores: Sequence[Score],
    grades: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, int]:
    """How many answers and questions of each kind of BESIDE there are, those that occur.

    Recorded prompts say whether a picture was shown where some of them have its mark (LLaVA's of ScienceQA).
    """
    blind = 0
    if not isinstance(predictions, Answers) or predictions.marked:
        prompts = {key: said.question for key, said in predictions.items() if said.question is not None}
        if any(PICTURE_MARK in prompt for prompt in prompts.values()):
            pictured = [prompts[e.id] for e in data.examples if e.image is not None and e.id in prompts]
            blind = sum(PICTURE_MARK not in prompt for prompt in pictured)
    ungraded = sum(any(math.isnan(grade) for grade in given) for given in (grades or {}).values())
    found = {
        UNREAD: 0 if grades is not None else columns.said(scores, "note").count(metrics.UNREAD),
        UNGRADED: ungraded,
        BLIND: blind,
    }
    return {kind: count for kind, count in found.items() if count}


def said_beside(found: Mapping[str, int]) -> list[str]:
    """`beside` in sentences."""
    return [f"{BESIDE[kind]}: {count:,}" for kind, count in found.items()]
