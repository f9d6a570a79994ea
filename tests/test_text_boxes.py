"""Boxes in texts, in the writing of any family, and samples of boxes as they come."""

from __future__ import annotations

import time

import pytest

from cos_core.dialogue.box_sample import MOST as MOST_KEPT
from cos_core.dialogue.box_sample import BoxSample
from cos_core.dialogue.text_boxes import MOST, boxes_in
from cos_core.models import families

STYLES = tuple(dict.fromkeys(families.of_type(name).boxes for name in families.names()))


@pytest.mark.parametrize(
    ("text", "numbers", "word"),
    [
        ("a <ref>cat</ref><box>[[12, 30,400,500]]</box>", [(12, 30, 400, 500)], "<box>"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', [(1, 2, 3, 4)], "bbox_2d"),
        ('{"label": "b", "bbox_2d":[5,6,7,8]}, {"bbox_2d": [1, 2, 3, 4]}', [(5, 6, 7, 8), (1, 2, 3, 4)], "bbox_2d"),
        ("{'bbox_2d': [ 1 ,2,3,4 ]}", [(1, 2, 3, 4)], "bbox_2d"),
        ("<|box_start|>(12,30),(400,500)<|box_end|>", [(12, 30, 400, 500)], "box_start"),
        ("<loc0246><loc0229><loc0872><loc0904> cat", [(246, 229, 872, 904)], "loc"),
        ("It is at [0.1, 0.25, .3, 0.45].", [(0.1, 0.25, 0.3, 0.45)], ""),
        ("(12,30),(400,500)", [(12, 30, 400, 500)], ""),
        ("[1, 2, 3, 4, 5] and [1, 2, 3] and 1.2.3.4", [], ""),
        ("[[1, 2], [3, 4], [5, 6], [7, 8]]", [], ""),
    ],
)
def test_boxes_of_a_text(text: str, numbers: list[tuple[float, ...]], word: str) -> None:
    found = boxes_in(text, STYLES)
    assert [box.numbers for box in found] == numbers
    for box in found:
        assert bool(box.styles) == bool(word)
        assert all(word in style.text for style in box.styles)


def test_whose_writing_it_is_may_be_several_families() -> None:
    (found,) = boxes_in('{"bbox_2d": [1, 2, 3, 4]}', STYLES)
    assert {style.unit for style in found.styles} == {"pixel", "thousandth"}
    assert found.whole
    assert not boxes_in("[0.5, 0.5, 1, 1]", STYLES)[0].whole


def test_long_texts_cost_little() -> None:
    begun = time.monotonic()
    assert len(boxes_in("[1, 2, 3, 4] " * 1000, STYLES)) == MOST
    for text in ("[ " * 50_000, '"' * 50_000, "bbox_2d" + " " * 50_000, "1" * 50_000, "<box>[[" * 10_000):
        assert boxes_in(text, STYLES) == []
    assert time.monotonic() - begun < 5


def test_a_sample_is_bounded_and_spread_evenly() -> None:
    sample = BoxSample[int]()
    for i in range(5 * MOST_KEPT):
        if sample.wants():
            sample.add((i, 0, i + 1, 1), ((10, 10), (10, 10)), "a", i)
    assert MOST_KEPT // 2 <= len(sample) < MOST_KEPT
    gaps = {b - a for a, b in zip(sample.origins, sample.origins[1:], strict=False)}
    assert gaps <= {sample.step, sample.step // 2, 2 * sample.step}
    assert sample.boxes().numbers[:, 0].tolist() == sample.origins


def test_a_box_counts_once_on_a_picture() -> None:
    sample = BoxSample[str]()
    for picture, name in (("a", "first"), ("a", "again"), ("b", "other")):
        assert sample.wants()
        sample.add((0, 0, 1, 1), ((8, 6), (4, 3)), picture, name, (0.0, 0.0, 0.5, 0.5) if picture == "b" else None)
    assert sample.origins == ["first", "other"]
    assert sample.boxes().pictures.tolist() == [[8, 6, 4, 3]] * 2
    boxes, gold = sample.referenced()
    assert (len(boxes), gold.tolist()) == (1, [[0, 0, 0.5, 0.5]])
