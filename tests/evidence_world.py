"""Scored arms without a model or pictures: outcomes drawn with a known effect, as `cos evidence` would find them scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cos_core.evidence.differences import of_arms
from cos_core.evidence.verdicts import PLACE, ROWS, Contrast, Line
from cos_core.scoring import comparison, metrics
from cos_core.scoring.columns import Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.types import RunManifest

CONTRASTS = tuple(contrast for row in ROWS for contrast in row.contrasts if contrast != PLACE)
KNOWN = 0.5
"""The mean score of one look in every drawn set."""

Outcomes = NDArray[np.float64]
Effects = Mapping[str, tuple[float, float]]
"""Arm -> (share of answers that it draws anew, how often such a one is right); its mean is KNOWN + share (right - KNOWN)."""


def drawn(rng: np.random.Generator, effects: Effects, pictures: int, per_picture: int) -> dict[str, Outcomes]:
    """Right (1) or wrong (0) of each question under each arm, (pictures * per_picture,), questions of a picture together.

    Pictures differ in how often one look is right, and in how many answers an arm changes, so that questions of a picture are
    not independent.
    """
    n = pictures * per_picture
    ease = np.repeat(rng.beta(1.5, 1.5, pictures), per_picture)
    once = (rng.random(n) < ease).astype(np.float64)
    outcomes = {"none": once}
    for arm, (share, right) in effects.items():
        here = np.repeat(rng.beta(4 * share, 4 * (1 - share), pictures), per_picture)
        changed = rng.random(n) < here
        outcomes[arm] = np.where(changed, rng.random(n) < right, once)
    return outcomes


def truth(effects: Effects, arm: str) -> float:
    share, right = effects.get(arm, (0.0, KNOWN))
    return KNOWN + share * (right - KNOWN)


def run_of(outcomes: Outcomes, per_picture: int, known: Scores | None = None) -> ScoredRun:
    """A finished run of the benchmark "scenes" with these outcomes."""
    scores = Scores(known=known.ids if known is not None else None)
    for place, value in enumerate(outcomes.tolist()):
        scores.add(str(place), value, (None, None, None), {metrics.IMAGE: str(place // per_picture)})
    headline = {"metric": "accuracy", "unit": "fraction"}
    record = RunManifest(
        "eval", "complete", {"benchmark": "scenes"}, "f", {}, results={"benchmark": "scenes", "headline": headline}
    )
    return ScoredRun(Path("drawn"), record, scores)


def lines(outcomes: Mapping[str, Outcomes], per_picture: int, replicates: int = 400) -> dict[Contrast, Line]:
    """Every difference of the rows whose arms were drawn, with p-values after Holm."""
    runs: dict[str, ScoredRun] = {}
    for arm, values in outcomes.items():
        first = next(iter(runs.values()), None)
        runs[arm] = run_of(values, per_picture, Scores.of(first.scores) if first is not None else None)
    found = of_arms(runs, replicates=replicates).found
    adjusted = comparison.adjusted([pair for pair, *_ in found.values()])
    return {
        contrast: Line(contrast, pair, tests=len(adjusted), interval=interval)
        for (contrast, (_, interval, _)), pair in zip(found.items(), adjusted, strict=True)
    }
