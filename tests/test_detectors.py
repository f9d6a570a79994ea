"""Candidate regions: every detector's contract, and the grid's geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cos_core.detectors import components, grid
from cos_core.errors import InputError
from cos_core.files import plug

sizes = st.tuples(st.integers(1, 700), st.integers(1, 700))


def picture(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


class TestGrid:
    def test_the_default_on_a_square(self) -> None:
        boxes = grid.build().detect(picture(1000, 1000)).boxes
        assert len(boxes) == 29
        assert boxes[0].corners == (0.0, 0.0, 0.3, 0.3)
        assert boxes[1].corners == pytest.approx((0.175, 0.0, 0.475, 0.3))
        assert boxes[24].corners == pytest.approx((0.7, 0.7, 1.0, 1.0))
        assert [b.corners for b in boxes[25:]] == [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]

    def test_a_wide_picture_gets_more_windows_of_the_same_size(self) -> None:
        boxes = grid.build(((0.3, 5),)).detect(picture(2000, 1000)).boxes
        assert len(boxes) == 5 * 11  # (2000 - 300) / 175 = 9.7 steps
        assert {b.pixels(2000, 1000)[2] - b.pixels(2000, 1000)[0] for b in boxes} == {300}

    def test_a_panorama_has_a_bound(self) -> None:
        boxes = grid.build().detect(picture(30000, 10)).boxes
        assert len(boxes) == 20 * 5 + 20 * 2
        assert max(b.x1 for b in boxes) == 1.0

    def test_one_window_stands_in_the_middle(self) -> None:
        (box,) = grid.build(((0.5, 1),)).detect(picture(100, 100)).boxes
        assert box.corners == (0.25, 0.25, 0.75, 0.75)

    def test_a_pixel_is_one_window(self) -> None:
        assert [b.corners for b in grid.build().detect(picture(1, 1)).boxes] == [(0, 0, 1, 1)]

    @given(sizes, st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(1, 6)), min_size=1, max_size=3))
    def test_windows_are_square_inside_and_cover_the_borders(
        self, size: tuple[int, int], windows: list[tuple[float, int]]
    ) -> None:
        width, height = size
        boxes = grid.build(tuple(windows)).detect(picture(width, height)).boxes
        assert len(set(boxes)) == len(boxes) > 0
        for box in boxes:
            left, top, right, bottom = box.pixels(width, height)
            assert right - left == bottom - top
        if all(count > 1 for _, count in windows):
            assert min(b.x0 for b in boxes) == min(b.y0 for b in boxes) == 0.0
            assert max(b.x1 for b in boxes) == max(b.y1 for b in boxes) == 1.0

    @pytest.mark.parametrize("windows", [(), ((0.0, 2),), ((1.5, 2),), ((0.3, 0),)])
    def test_impossible_windows(self, windows: tuple[tuple[float, int], ...]) -> None:
        with pytest.raises(InputError, match="grid"):
            grid.build(windows)


# Of detectron2 the same is asked in tests/with_detectron2.
@pytest.mark.parametrize("name", [name for name in plug.available("detectors") if name != "detectron2"])
@pytest.mark.parametrize("size", [(1, 1), (97, 61), (3, 400)])
def test_every_detector_proposes_boxes_in_the_image(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if name == "precomputed":
        width, height = size
        np.savez(tmp_path / "a.npz", x=np.ones((2, 5)), bbox=[[0, 0, width, height], [0, 0, 0.5, 0.5]])
        options["path"] = str(tmp_path)
    found = plug.load("detectors", name, **options).detect(picture(*size), "a.png")
    assert all(box.frame == "image" for box in found.boxes)
    assert found.scores is None


class TestComponents:
    def test_things_on_a_plain_ground(self) -> None:
        image = Image.new("RGB", (480, 240), (220, 220, 220))
        draw = ImageDraw.Draw(image)
        draw.rectangle((48, 24, 95, 119), fill="red")  # pixels 48-95 across, 24-119 down
        draw.rectangle((300, 100, 419, 219), fill="blue")
        draw.point((5, 5), fill="black")  # too small to count
        first, second = components.build().detect(image).boxes
        assert first.corners == pytest.approx((300 / 480, 100 / 240, 420 / 480, 220 / 240), abs=0.025 + 1 / 48)
        assert first.contains(300 / 480, 100 / 240)
        assert first.contains(420 / 480, 220 / 240)
        assert second.corners == pytest.approx((0.1, 0.1, 0.2, 0.5), abs=0.025 + 1 / 48)

    def test_a_winding_area_is_one(self) -> None:
        spiral = np.zeros((9, 9), bool)
        spiral[1, 1:8] = spiral[1:8, 7] = spiral[7, 1:8] = spiral[3:8, 1] = spiral[3, 1:6] = spiral[3:6, 5] = True
        spiral[5, 3] = True
        areas = components._areas(spiral)
        assert sorted(len(rows) for rows, _ in areas) == [1, int(spiral.sum()) - 1]

    def test_nothing_on_an_empty_ground(self) -> None:
        assert components.build().detect(picture(64, 64)).boxes == ()

    def test_impossible_settings(self) -> None:
        with pytest.raises(InputError, match="components"):
            components.Components(side=0)
