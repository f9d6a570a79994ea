"""The map of boxes placed at random, in closed form, and the regions' distance from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cos_core.scoring import placement
from cos_core.scoring.box_tally import MAP_CELLS, BoxTally
from cos_core.scoring.placement import Placement, covered_at_random


def placed(boxes: list[tuple[float, float, float, float]], pictures: list[str | None] | None = None) -> Placement:
    result = Placement()
    result.add(np.array(boxes), [f"{i}.png" for i in range(len(boxes))] if pictures is None else pictures)
    return result


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sides = rng.uniform(0.1, 0.9, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def test_half_of_a_side_by_hand() -> None:
    """An interval of 1/2: a point at x <= 1/2 is covered with probability 2x, and the other half mirrors it."""
    (found,) = covered_at_random(np.array([0.5]))
    middles = (np.arange(MAP_CELLS) + 0.5) / MAP_CELLS
    assert found == pytest.approx(2 * np.minimum(middles, 1 - middles))


@pytest.mark.parametrize("length", [0.003, 0.1, 0.37, 0.8, 0.999, 1 - 1e-9, 1.0])
def test_the_mean_over_every_place(length: float) -> None:
    """The slow way: the coverage of each cell at 20,001 left ends, equally far apart."""
    starts = np.linspace(0, 1 - length, 20_001)
    edges = np.linspace(0, 1, MAP_CELLS + 1)
    slow = [np.clip(np.minimum(starts + length, b) - np.maximum(starts, a), 0, None) for a, b in itertools.pairwise(edges)]
    (found,) = covered_at_random(np.array([length]))
    assert found == pytest.approx(np.trapezoid(slow, dx=1 / 20_000, axis=1) * MAP_CELLS, abs=2e-6)
    assert found.mean() == pytest.approx(length)


def test_the_map_is_the_mean_over_the_boxes_sizes() -> None:
    boxes = random_boxes(30)
    found = placed([tuple(box) for box in boxes]).expected
    sides = boxes[:, 2:] - boxes[:, :2]
    slow = sum(np.outer(covered_at_random(s[1:])[0], covered_at_random(s[:1])[0]) for s in sides) / 30
    assert found == pytest.approx(slow)
    assert found.mean() == pytest.approx(sides.prod(axis=1).mean())


def test_the_distance_is_that_of_the_two_maps() -> None:
    boxes = random_boxes(40, seed=3)
    tally = BoxTally()
    tally.add_many(boxes, "ok")
    random = placed([tuple(box) for box in boxes])
    one, other = tally.centre_bias, random.expected
    found = random.departure()
    assert found is not None
    assert found.total_variation == pytest.approx(np.abs(one / one.sum() - other / other.sum()).sum() / 2)


def test_the_whole_picture_is_no_departure_and_a_corner_is_one() -> None:
    whole = placed([(0.0, 0.0, 1.0, 1.0)] * 3).departure()
    assert whole is not None
    assert whole.total_variation == pytest.approx(0.0, abs=1e-12)
    # Of a quarter in the corner: each axis covers its half, where a random one lies with probability 2 min(x, 1 - x); the
    # overlap of the products, 1/2 * 1/2 of the mass where the corner is, is 1/4.
    corner = placed([(0.0, 0.0, 0.5, 0.5)] * 3).departure()
    assert corner is not None
    assert corner.total_variation == pytest.approx(0.75)
    assert Placement().departure() is None


def test_the_interval_knows_chance_from_a_habit() -> None:
    chance = placed([tuple(box) for box in random_boxes(400)]).departure()
    assert chance is not None
    assert chance.low == pytest.approx(0.0, abs=0.02)
    assert chance.high is not None
    assert chance.high < 0.1
    sides = random_boxes(400)[:, 2:] - random_boxes(400)[:, :2]
    middle = placed([tuple(box) for box in np.concatenate([0.5 - sides / 2, 0.5 + sides / 2], axis=1)]).departure()
    assert middle is not None
    assert middle.low is not None
    assert middle.low > chance.high
    assert middle.low < middle.total_variation
    assert middle.resampled == 400


def test_pictures_are_resampled_and_not_boxes() -> None:
    """Twenty boxes on each of 20 pictures, all alike on a picture, say as little as one on each."""
    some = [tuple(box) for box in random_boxes(20, seed=5)]
    once, often = (
        placed(some).departure(),
        placed([b for b in some for _ in range(20)], [str(i // 20) for i in range(400)]).departure(),
    )
    assert once is not None
    assert often is not None
    assert often == pytest.approx(once)
    assert once.resampled == 20
    unknown = placed(some, [None] * 20).departure()
    assert unknown is not None
    assert (unknown.low, unknown.high, unknown.resampled) == (None, None, None)


def test_more_pictures_than_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [tuple(box) for box in random_boxes(500, seed=9)]
    each = placed(boxes).departure()
    monkeypatch.setattr(placement, "GROUPS", 100)
    grouped = placed(boxes).departure()
    assert each is not None
    assert grouped is not None
    assert grouped.total_variation == pytest.approx(each.total_variation)
    assert grouped.resampled == 100
    widths = [found.high - found.low for found in (each, grouped)]  # type: ignore[operator]
    assert widths[1] == pytest.approx(widths[0], rel=0.5)


def test_batches_change_nothing() -> None:
    boxes, names = random_boxes(50), [f"{i % 7}.png" for i in range(50)]
    parts = Placement()
    for start in range(0, 50, 8):
        parts.add(boxes[start : start + 8], names[start : start + 8])
    parts.add(np.zeros((0, 4)), [])
    whole = placed([tuple(box) for box in boxes], names)
    assert parts.expected == pytest.approx(whole.expected)
    assert parts.departure() == pytest.approx(whole.departure())
