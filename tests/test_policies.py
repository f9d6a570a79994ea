"""The rows of Table 3a and their controls, with the regions worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.types import Example


def example(name: str = "e", **meta: object) -> Example:
    return Example(id=name, dataset="d", image="i.png", question="q", meta=meta)


@pytest.mark.parametrize(
    ("name", "source", "asks"),
    [
        ("none", "none", "single"),
        ("full", "fixed", "single"),
        ("center_crop", "fixed", "single"),
        ("random", "fixed", "single"),
        ("gold", "gold", "single"),
        ("from_image", "model", "image"),
        ("from_questions", "model", "all"),
        ("from_single_question", "model", "single"),
    ],
)
def test_where_each_policy_takes_its_region_from(name: str, source: str, asks: str) -> None:
    policy = plug.load("policies", name)
    assert (policy.name, policy.source, policy.asks) == (name, source, asks)


def test_fixed_regions() -> None:
    assert plug.load("policies", "full").fixed_box(example(), 0) == Box(0, 0, 1, 1, "image")
    centre = plug.load("policies", "center_crop").fixed_box(example(), 0)
    assert centre == Box(0.25, 0.25, 0.75, 0.75, "image")
    assert centre.area == 0.25


@given(st.text(min_size=1, max_size=20), st.integers(0, 2**32))
def test_random_regions_have_the_centre_crops_size_and_hang_on_id_and_seed_only(name: str, seed: int) -> None:
    policy = plug.load("policies", "random")
    box = policy.fixed_box(example(name), seed)
    assert box == plug.load("policies", "random").fixed_box(example(name, other=1), seed)
    assert box.area == pytest.approx(0.25)


def test_random_regions_lie_everywhere() -> None:
    policy = plug.load("policies", "random")
    boxes = [policy.fixed_box(example(str(i)), 0) for i in range(2000)]
    assert boxes != [policy.fixed_box(example(str(i)), 1) for i in range(2000)]
    # Uniform over [0, 0.5]: mean 0.25, standard error 0.5 / sqrt(12 * 2000) = 0.0032; four of them.
    for side in (sum(b.x0 for b in boxes), sum(b.y0 for b in boxes)):
        assert side / 2000 == pytest.approx(0.25, abs=0.013)
    assert min(b.x0 for b in boxes) < 0.01 < 0.49 < max(b.x0 for b in boxes)


def test_the_gold_region() -> None:
    gold = plug.load("policies", "gold").fixed_box
    assert gold(example(gold=[0.1, 0.2, 0.3, 0.4]), 0) == Box(0.1, 0.2, 0.3, 0.4, "image")
    with pytest.raises(InputError, match=r"'e' has no gold region"):
        gold(example(), 0)
    with pytest.raises(InputError, match=r"'e'.*0\.3"):
        gold(example(gold=[0.3, 0.2, 0.1, 0.4]), 0)
    with pytest.raises(InputError, match="frame 'image'"):
        gold(example(gold={"box": [0.1, 0.2, 0.3, 0.4], "frame": "square"}), 0)
