"""What `cos evidence` claims holds as often as it says: intervals and verdicts over drawn sets with known effects."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from evidence_world import CONTRASTS, KNOWN, Effects, drawn, lines, run_of, truth

from cos_core.evidence import boxes, verdicts
from cos_core.evidence.differences import FEW, few_changes
from cos_core.evidence.verdicts import BLACK, NOISE, SWAP, TWICE
from cos_core.scoring import statistics
from cos_core.scoring.statistics import Interval

READS: Effects = {
    "model": (0.4, 0.8),
    "black": (0.3, 0.45),
    "noise": (0.3, 0.4),
    "swap": (0.3, 0.35),
    "absent": (0.2, 0.5),
    "unboxed": (0.4, 0.75),
    "full": (0.25, 0.55),
}
IGNORES: Effects = dict.fromkeys(("model", "black", "noise", "swap"), (0.15, 0.6))
"""Looking twice adds 1.5 points, whatever the crop shows; 15 % of the answers change, each arm's at random."""
HURT: Effects = {"model": (0.5, 0.1), "black": (0.1, 0.5), "noise": (0.1, 0.5), "swap": (0.3, 0.4)}
MARGIN = 5.0
AT_MARGIN: Effects = {arm: (0.1, 1.0 if arm == "model" else 0.5) for arm in ("model", "black", "noise", "swap")}
"""The model's crop is worth exactly the margin."""
REPLICATES = 500
pytestmark = pytest.mark.slow
BLACK_ONCE = next(contrast for contrast in CONTRASTS if contrast[:2] == ("black", "none"))
UNBOXED = next(contrast for contrast in CONTRASTS if contrast[:2] == ("unboxed", "none"))


def test_intervals_of_all_rows_cover_the_true_difference() -> None:
    """Ten differences a set, of 240 questions on 80 pictures, three a picture."""
    rng = np.random.default_rng(20)
    index, ones = np.repeat(np.arange(80), 3), np.ones(240)
    wanted = [c for c in CONTRASTS if {c.a, c.b} <= {"none", *READS}]
    assert len(wanted) == 10
    inside, below, sets = 0, 0, 400
    for _ in range(sets):
        outcomes = drawn(rng, READS, 80, 3)
        for contrast in wanted:
            a, b = (np.stack([outcomes[arm], ones], axis=1) for arm in (contrast.a, contrast.b))
            found = statistics.aggregate_difference(a, b, index, replicates=REPLICATES, flips=1)
            true = truth(READS, contrast.b) - truth(READS, contrast.a)
            inside += found.low <= true <= found.high
            below += found.high < true
    assert inside / (sets * len(wanted)) == pytest.approx(0.95, abs=0.015)
    assert below / (sets * len(wanted)) == pytest.approx(0.025, abs=0.0125), "and misses on both sides"


@pytest.mark.parametrize(("pictures", "share"), [(100, 0.05), (40, 0.2), (30, 0.4)])
def test_intervals_of_few_changes_cover_it_too(pictures: int, share: float) -> None:
    """One question a picture, and 5 to 16 answers that are drawn anew: resampling alone covers 90 to 93 % of such sets."""
    rng, effects = np.random.default_rng(1), {"model": (share, 0.9)}
    true, inside, sets = truth(effects, "model") - KNOWN, 0, 600
    index = np.arange(pictures)
    for _ in range(sets):
        outcomes = drawn(rng, effects, pictures, 1)
        gap = outcomes["model"] - outcomes["none"]
        ends = few_changes(gap, index, REPLICATES)
        if ends is None and gap.any():
            a, b = (np.stack([outcomes[arm], np.ones(pictures)], axis=1) for arm in ("none", "model"))
            found = statistics.aggregate_difference(a, b, index, replicates=REPLICATES, flips=1)
            ends = Interval(found.low, found.high)
        low, high = ends or (-(1 - 0.025 ** (1 / pictures)), 1 - 0.025 ** (1 / pictures))
        inside += low <= true <= high
    assert inside / sets >= 0.935


def test_the_rows_have_these_intervals() -> None:
    outcomes = drawn(np.random.default_rng(3), {**READS, "unboxed": (0.03, 0.9)}, 80, 3)
    outcomes["black"] = outcomes["none"]
    found, index = lines(outcomes, 3, REPLICATES), np.repeat(np.arange(80), 3)
    changed = {c: outcomes[c.b] - outcomes[c.a] for c in found}
    pictures = {c: len(np.unique(index[gap != 0])) for c, gap in changed.items()}
    assert pictures[BLACK_ONCE] == 0 < pictures[UNBOXED] < FEW < pictures[TWICE]
    a, b = (np.stack([outcomes[arm], np.ones(240)], axis=1) for arm in ("none", "model"))
    plain = statistics.aggregate_difference(a, b, index, replicates=REPLICATES, flips=1)
    assert found[TWICE].ends == (plain.low, plain.high)
    assert found[UNBOXED].ends == statistics.paired_mean_interval(changed[UNBOXED], index, replicates=REPLICATES)
    room = 1 - 0.025 ** (1 / 80)
    assert found[BLACK_ONCE].ends == pytest.approx((-room, room))


def test_the_difference_by_boxes_covers_the_true_one() -> None:
    """Looking twice adds 20 points where the box is right, and nothing where it is wrong."""
    rng = np.random.default_rng(8)
    iou = {str(place): float(place // 2 % 3 != 0) for place in range(240)}
    right = np.array(list(iou.values())) > 0
    inside, sets = 0, 150
    for _ in range(sets):
        outcomes = drawn(rng, {"model": (0.4, 1.0), "same": (0.2, 0.5)}, 120, 2)
        model = np.where(right, outcomes["model"], outcomes["same"])
        found = boxes.effect(run_of(outcomes["none"], 2), run_of(model, 2), iou, replicates=REPLICATES)
        assert found is not None
        assert (found.right.n, found.wrong.n) == (160, 80)
        inside += found.comparison.found.low <= 0.2 <= found.comparison.found.high
    assert inside / sets >= 0.91


def said(effects: Effects, sets: int, pictures: int, per_picture: int, seed: int) -> Counter[str]:
    """How often each verdict over all rows was given."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    for _ in range(sets):
        found = lines(drawn(rng, effects, pictures, per_picture), per_picture, REPLICATES)
        content = [found[contrast] for contrast in (BLACK, NOISE, SWAP)]
        bounded = verdicts.bounded(content, MARGIN)
        counts[verdicts.overall(found[TWICE].verdict, [line.verdict for line in content], bounded)] += 1
    return counts


def test_a_model_that_ignores_its_crop_is_rarely_said_to_read_it_or_to_be_hurt() -> None:
    counts = said(IGNORES, 100, 300, 2, seed=1)
    assert counts["reads the crop"] + counts["hurt by the crop"] <= 5
    assert counts["does not use the crop"] >= 70, counts


def test_a_use_as_large_as_the_margin_is_rarely_called_none() -> None:
    assert truth(AT_MARGIN, "model") - truth(AT_MARGIN, "black") == pytest.approx(MARGIN / 100)
    assert said(AT_MARGIN, 100, 200, 1, seed=2)["does not use the crop"] <= 5


def test_models_that_read_or_are_hurt_are_found() -> None:
    assert said(READS, 40, 150, 3, seed=3)["reads the crop"] >= 36
    assert said(HURT, 40, 100, 2, seed=4)["hurt by the crop"] >= 38
