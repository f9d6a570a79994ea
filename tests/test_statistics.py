"""Intervals and tests against hand-computed values, closed forms and simulation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.errors import InputError
from cos_core.scoring import metrics, statistics
from cos_core.scoring.metrics import Estimate
from cos_core.scoring.statistics import Interval


def mean_interval(values: list[float], clusters: Sequence[Hashable], replicates: int = 2000, seed: int = 0) -> Interval | None:
    """The interval of a mean, computed as in every run; None where there is none."""
    columns = np.stack([np.array(values), np.ones(len(values))], axis=1)
    measured = metrics.measured([Estimate("mean", columns)], [str(c) for c in clusters], replicates=replicates, seed=seed)
    return Interval(measured["mean"].low, measured["mean"].high) if measured else None


def test_wilson_by_hand() -> None:
    # Newcombe (1998), table I: 81 of 263 and 15 of 148, and the ends.
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert statistics.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert statistics.wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(InputError):
        statistics.wilson(successes, n)


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 32)
    assert statistics.mcnemar(3, 10) == pytest.approx(2 * (1 + 13 + 78 + 286) / 2**13)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_tail_and_symmetric(wins: int, losses: int) -> None:
    n, k = wins + losses, min(wins, losses)
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(k + 1))
    assert statistics.mcnemar(wins, losses) == pytest.approx(float(min(Fraction(1), 2 * tail)))
    assert statistics.mcnemar(wins, losses) == statistics.mcnemar(losses, wins)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (3, 10, 0.09228515625),
        (0, 5, 0.0625),
        (16, 6, 0.052478790283203125),
        (41, 59, 0.08862608011406758),
        (333, 391, 0.03407016497934544),
        (700, 800, 0.010559255466711506),
        (5000, 5333, 0.0010895502386537956),
    ],
)
def test_mcnemar_as_scipy_and_statsmodels(wins: int, losses: int, p: float) -> None:
    """Values of scipy 1.17.1, `binomtest(min(wins, losses), wins + losses, 0.5).pvalue`, and statsmodels 0.15.0,
    `mcnemar([[7, wins], [losses, 11]], exact=True).pvalue`, equal to the last digit."""
    assert statistics.mcnemar(wins, losses) == pytest.approx(p, rel=1e-10)


def test_mcnemar_of_thousands() -> None:
    # Normal approximation with continuity correction: z = (|40000 - 40400| - 1) / sqrt(80400)
    p = statistics.mcnemar(40_000, 40_400)
    assert p == pytest.approx(math.erfc(399 / math.sqrt(80_400) / math.sqrt(2)), rel=1e-3)
    whole = Fraction(2 * sum(math.comb(1500, i) for i in range(701)), 2**1500)
    assert statistics.mcnemar(700, 800) == pytest.approx(float(whole), rel=1e-10)


def test_t_quantile() -> None:
    for freedom, expected in ((4, 2.7764), (9, 2.2622), (29, 2.0452), (99, 1.9842)):
        assert statistics._t_quantile(0.975, freedom) == pytest.approx(expected, rel=5e-4)


def test_cluster_sums() -> None:
    index = statistics.cluster_index(["b", "a", "b", "c"])
    assert index.tolist() == [0, 1, 0, 2]
    sums = statistics.cluster_sums(np.array([[1.0, 2], [3, 5], [7, 11], [13, 17]]), index)
    assert sums.tolist() == [[8, 13], [3, 5], [13, 17]]


def test_resampling_is_repeatable_and_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.arange(14.0).reshape(7, 2)
    first = statistics.resampled_sums(sums, 50, seed=3)
    assert np.array_equal(first, statistics.resampled_sums(sums, 50, seed=3))
    assert not np.array_equal(first, statistics.resampled_sums(sums, 50, seed=4))
    monkeypatch.setattr(statistics, "_CACHED", 20)
    assert np.array_equal(first, statistics.resampled_sums(sums, 50, seed=3))


def test_bootstrap_of_a_mean_has_the_textbook_width() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values.tolist(), list(range(400)), replicates=4000)
    half = 1.966 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.012)
    assert high == pytest.approx(values.mean() + half, abs=0.012)


def test_mean_interval_is_wilson_only_for_independent_shares() -> None:
    values = [1.0, 0.0, 1.0, 1.0]
    assert mean_interval(values, "abcd") == statistics.wilson(3, 4)
    assert mean_interval(values, "aabb") != statistics.wilson(3, 4)
    assert mean_interval([0.3, 0.0, 1.0, 1.0], "abcd") != statistics.wilson(2.3, 4)


def test_clustered_is_wider_on_clustered_data() -> None:
    generator = np.random.default_rng(5)
    images = np.repeat(np.arange(100), 8)
    values = (generator.random(100)[images] < 0.5).astype(float)  # all eight questions of an image agree
    together = mean_interval(values.tolist(), images.tolist())
    alone = mean_interval(values.tolist(), list(range(800)))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_one_cluster_and_nothing_have_no_interval() -> None:
    assert mean_interval([1.0, 0.0], "aa") is None
    assert mean_interval([], []) is None
    columns = np.array([[1.0, 1.0], [0.0, 1.0]])
    assert statistics.bootstrap([(columns, statistics.ratio)], np.array([0, 0])) == [(-math.inf, math.inf)]


def test_all_aggregates_of_a_run_come_from_the_same_resampled_pictures() -> None:
    """What is drawn for one aggregate alone is drawn for it beside others; a part and its whole stay consistent."""
    generator = np.random.default_rng(2)
    index = np.repeat(np.arange(53), 3)
    values = generator.random(159)
    part = (generator.random(159) < 0.3).astype(float)
    whole, share = np.stack([values, np.ones(159)], 1), np.stack([values * part, part], 1)
    together = statistics.bootstrap([(whole, statistics.ratio), (share, statistics.ratio)], index, replicates=300)
    alone = [statistics.bootstrap([(one, statistics.ratio)], index, replicates=300)[0] for one in (whole, share)]
    assert together == alone
    assert together[1].high - together[1].low > together[0].high - together[0].low


@pytest.mark.slow
@pytest.mark.parametrize("images", [25, 120])
def test_coverage_of_the_clustered_interval(images: int) -> None:
    generator = np.random.default_rng(images)
    owners = np.repeat(np.arange(images), 3).tolist()
    inside, runs = 0, 4000
    for run in range(runs):
        ease = generator.beta(2, 2, size=images)
        values = (generator.random((images, 3)) < ease[:, None]).astype(float).ravel()
        low, high = mean_interval(values.tolist(), owners, replicates=400, seed=run)
        inside += low <= 0.5 <= high
    # 4000 runs give a standard error of 0.35 points.
    assert inside / runs == pytest.approx(0.95, abs=0.01)


@pytest.mark.slow
def test_coverage_and_level_of_a_comparison() -> None:
    """Two runs of equal quality, an image's questions alike: the interval holds 0, and the test errs, as often as they say."""
    generator, images, runs = np.random.default_rng(5), 60, 2500
    owners = np.repeat(np.arange(images), 3).tolist()
    inside = wrong = 0
    for run in range(runs):
        ease = generator.beta(2, 2, size=images)[:, None]
        a, b = ((generator.random((images, 3)) < ease).astype(float).ravel() for _ in range(2))
        columns = [np.stack([values, np.ones_like(values)], axis=1) for values in (a, b)]
        found = statistics.aggregate_difference(*columns, owners, replicates=400, flips=200, seed=run)
        inside += found.low <= 0 <= found.high
        wrong += found.p < 0.05
    assert inside / runs == pytest.approx(0.95, abs=0.01)
    assert wrong / runs <= 0.06


def means(values: list[float]) -> np.ndarray:
    """The additive parts of a mean: each value, and 1."""
    return np.stack([np.array(values), np.ones(len(values))], axis=1)


def test_the_swap_test_agrees_with_mcnemar_on_single_questions() -> None:
    a = means([0.0] * 16 + [1.0] * 6 + [1.0] * 30)
    b = means([1.0] * 16 + [0.0] * 6 + [1.0] * 30)
    found = statistics.aggregate_difference(a, b, range(52), replicates=100, flips=40_000)
    assert found.difference == pytest.approx(10 / 52)
    assert found.p == pytest.approx(statistics.mcnemar(16, 6), abs=0.004)


def test_the_swap_test_against_all_swaps() -> None:
    gaps = np.array([0.9, 0.4, -0.3, 1.2, 0.7, -0.1])
    patterns = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T @ gaps
    exact = np.mean(np.abs(patterns) >= abs(gaps.sum()) - 1e-12)
    found = statistics.aggregate_difference(means([0.0] * 6), means(gaps.tolist()), range(6), replicates=100, flips=40_000)
    assert found.p == pytest.approx(exact, abs=0.01)
    assert statistics.aggregate_difference(means([0.5] * 4), means([0.5] * 4), range(4), replicates=100).p == 1.0


def test_a_difference_takes_images_into_account() -> None:
    generator = np.random.default_rng(2)
    better = generator.random(50) < 0.6
    b = means([0.5 + (0.25 if better[i // 8] else -0.25) for i in range(400)])
    clustered = statistics.aggregate_difference(means([0.5] * 400), b, [i // 8 for i in range(400)])
    alone = statistics.aggregate_difference(means([0.5] * 400), b, range(400))
    assert clustered.clusters == 50
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.p > alone.p


def test_swaps_without_a_value_do_not_make_a_difference_look_sure() -> None:
    """A ratio whose denominator is nothing in half of the swaps: those count as if they were as extreme."""
    a, b = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])
    found = statistics.aggregate_difference(a, b, range(2), replicates=100, flips=4000)
    # As it stands 2/1 - 0/1 = 2; both swapped -2; one swapped: 0/0 or a division by nothing in one of the runs.
    assert found.difference == 2.0
    assert found.p == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_difference_of_what_is_no_number_is_none(value: float) -> None:
    found = statistics.aggregate_difference(means([0.0, 1.0]), means([value, 1.0]), range(2), replicates=100)
    assert not math.isfinite(found.difference)
    assert math.isnan(found.p)


def test_intervals_of_what_is_not_known() -> None:
    """No value that is finite: nothing is known. One image: nothing bounds the value."""
    low, high = statistics.percentile_interval(np.array([math.nan, math.inf]), clusters=7)
    assert math.isnan(low)
    assert math.isnan(high)
    assert statistics.percentile_interval(np.array([0.5, 0.5]), clusters=1) == Interval(-math.inf, math.inf)
    empty = Estimate("accuracy", np.zeros((0, 2)))
    assert math.isnan(empty.value())


@pytest.mark.parametrize(
    ("right", "questions", "each"), [(0, 13, 1), (13, 13, 1), (0, 13, 2), (13, 13, 2), (0, 40, 5), (40, 40, 5)]
)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_none_and_all_have_an_interval(right: int, questions: int, each: int, scale: float) -> None:
    """Wilson's interval with a trial each picture, so that many questions on few pictures promise no more than the pictures."""
    values = [1.0] * right + [0.0] * (questions - right)
    columns = np.array([[value, 1.0] for value in values])
    pictures = [str(n // each) for n in range(questions)]
    estimate = metrics.Estimate("accuracy", columns, scale=scale)
    found = metrics.measured([estimate], pictures, replicates=200, seed=0)["accuracy"]
    trials = len(set(pictures))
    wanted = statistics.wilson(trials if right else 0, trials)
    assert (found.low, found.high) == pytest.approx((scale * wanted.low, scale * wanted.high))
    assert found.high - found.low > 0.1 * scale
    assert found.method == (metrics.WILSON if each == 1 else metrics.WILSON_CLUSTERS)
    if each == 1 and right == 0:
        assert found.high == pytest.approx(scale * 0.2281, abs=scale * 1e-4)  # by hand: z^2 / (13 + z^2)


def test_a_statistic_without_spread_that_is_no_share_has_no_interval() -> None:
    perfect = metrics.Estimate(
        "f1", np.array([[1.0, 0.0, 0.0]] * 6), lambda sums: 2 * sums[:, 0] / (2 * sums[:, 0] + sums[:, 1] + sums[:, 2])
    )
    even = metrics.Estimate("vqa", np.array([[0.6, 1.0]] * 6))
    found = metrics.measured([perfect, even], list("aabbcc"), replicates=100, seed=0)
    assert "f1" not in found
    assert found["vqa"].low < 0.6 < found["vqa"].high
