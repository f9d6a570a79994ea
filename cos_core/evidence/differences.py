"""The paired differences of one benchmark's arms, with intervals, before Holm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cos_core.evidence import boxes
from cos_core.evidence.boxes import BoxEffect
from cos_core.evidence.verdicts import PLACE, ROWS, SCALES, TWICE, Contrast, Failed
from cos_core.scoring import columns, comparison, effects, metrics, statistics
from cos_core.scoring.comparison import Comparison, ScoredRun
from cos_core.scoring.statistics import Floats, Interval

FEW = 20
"""Pictures with a changed question, below which resampling the pictures alone gives too narrow an interval."""


class Difference(NamedTuple):
    """A paired comparison; `interval`: one to put in the place of the comparison's, where few questions changed."""

    comparison: Comparison
    interval: Interval | None
    failed: Failed


class Differences(NamedTuple):
    """What could be compared of a benchmark's arms, by contrast; `boxes`: what stands behind the difference by boxes."""

    found: dict[Contrast, Difference]
    boxes: BoxEffect | None


def of_arms(
    runs: Mapping[str, ScoredRun],
    iou: Mapping[str, float] | None = None,
    *,
    replicates: int = statistics.REPLICATES,
    seed: int = 0,
) -> Differences:
    """Every difference of the rows whose two arms are among `runs` and scored. `iou`: of the model's box with the data's own
    region, by question id."""
    scored = {name: run for name, run in runs.items() if run.scores}
    found: dict[Contrast, Difference] = {}
    for contrast in (contrast for row in ROWS for contrast in row.contrasts):
        if contrast.a in scored and contrast.b in scored:
            a, b = scored[contrast.a], scored[contrast.b]
            pair = comparison.pair(a, b, names=(contrast.a, contrast.b), replicates=replicates, seed=seed)
            found[contrast] = Difference(pair, paired_interval(a, b, pair, replicates, seed), _failed(a, b))
    effect = None
    if iou and TWICE in found:
        effect = boxes.effect(scored[TWICE.a], scored[TWICE.b], iou, replicates=replicates, seed=seed)
    if effect is not None:
        found[PLACE] = Difference(effect.comparison, None, found[TWICE].failed)
    return Differences(found, effect)


def _failed(a: ScoredRun, b: ScoredRun) -> Failed:
    """The questions without an answer, of those that the headline is over."""
    counted = frozenset(effects.paired(a, b).scores.ids.names)
    first, second = (_gaps(run) & counted for run in (a, b))
    return Failed(len(first - second), len(second - first), len(first & second))


def _gaps(run: ScoredRun) -> frozenset[str]:
    notes = zip(columns.names(run.scores), columns.text_column(run.scores, "note"), strict=True)
    return frozenset(name for name, note in notes if metrics.is_gap(note))


def paired_interval(a: ScoredRun, b: ScoredRun, pair: Comparison, replicates: int, seed: int) -> Interval | None:
    """The interval of `few_changes` in the metric's units; None where it has none, and where the headline is no mean of the
    questions' values."""
    scale = SCALES.get(pair.unit)
    if scale is None or pair.undefined:
        return None
    values = effects.paired(a, b)
    if not len(values.gap) or abs(scale * float(values.gap.mean()) - pair.found.difference) > 1e-9 * scale:
        return None
    found = few_changes(values.gap, statistics.cluster_index(values.clusters), replicates, seed)
    return None if found is None else Interval(scale * found.low, scale * found.high)


def few_changes(gap: Floats, index: NDArray[np.intp], replicates: int, seed: int = 0) -> Interval | None:
    """The 95 % interval of the mean of `gap` (items,), where questions of fewer than FEW pictures changed, and of fewer than
    half of all; else None. `index` (items,): each item's picture.

    Plain resampling covers 87 to 93 % there, and 95 % elsewhere; statistics.paired_mean_interval covers 94 % and more.
    """
    changed = len(np.unique(index[gap != 0]))
    if not 0 < changed < min(FEW, len(np.unique(index)) / 2):
        return None
    return statistics.paired_mean_interval(gap, index, replicates=replicates, seed=seed)
