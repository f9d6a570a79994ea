"""Overlays against golden pictures: geometry to the pixel, photographs and glyphs within a tolerance.

`python tests/test_visualize_golden.py` draws the golden pictures anew; look at each before it is committed.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cos_core.dialogue.cropping import assumed_crop
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.geometry import Box
from cos_core.visualize import relevance_maps as heat
from cos_core.visualize.draw import BLACK, COLOURS, Mark, draw_marks, show
from cos_core.visualize.overlay import OverlayInput, render

GOLDEN = Path(__file__).parent / "golden" / "overlays"
ONE_PIXEL = Box(20 / 48, 10 / 36, 21 / 48, 11 / 36)


def scene(width: int = 48, height: int = 36) -> Image.Image:
    """A gradient with a bright disc: any shift or flip shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    disc = (x - width * 0.7) ** 2 + (y - height * 0.3) ** 2 < (min(width, height) * 0.18) ** 2
    pixels = np.stack([255 * x / width, 255 * y / height, np.full(x.shape, 90.0)], axis=2)
    pixels[disc] = (250, 250, 240)
    return Image.fromarray(pixels.astype(np.uint8))


def stored(picture: Image.Image, folder: Path, name: str, **options: object) -> Image.Image:
    """What `open_image` makes of the picture once it is a file."""
    picture.save(folder / name, **options)
    return images.open_image(folder, name)


def turned(folder: Path) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(scene(), folder, "turned.png", exif=exif)


# name -> (picture, box, its (left, top, right, bottom) in pixels of the picture)
CASES = {
    "border": (lambda _: scene(), Box(0.0, 0.0, 0.25, 0.5), (0, 0, 12, 18)),
    "far_border": (lambda _: scene(), Box(0.75, 0.5, 1.0, 1.0), (36, 18, 48, 36)),
    "one_pixel": (lambda _: scene(), ONE_PIXEL, (20, 10, 21, 11)),
    "whole": (lambda _: scene(), Box(0.0, 0.0, 1.0, 1.0), (0, 0, 48, 36)),
    "exif": (turned, Box(0.5, 0.25, 1.0, 0.75), (18, 12, 36, 36)),
    "portrait": (lambda _: scene(20, 90), Box(0.1, 0.7, 0.9, 0.9), (2, 63, 18, 81)),
    "palette": (lambda f: stored(scene().quantize(16), f, "p.png"), Box(0.5, 0.0, 1.0, 0.5), (24, 0, 48, 18)),
    "8k": (lambda f: stored(scene(7680, 4320), f, "8.png", compress_level=1), Box(0.5, 0.125, 0.875, 0.5), (3840, 540, 6720, 2160)),  # noqa: E501
}  # fmt: skip


def drawn(name: str, folder: Path) -> tuple[Image.Image, Image.Image, tuple[int, int, int, int], tuple[int, int]]:
    picture, box, _ = CASES[name]
    shown = show(picture(folder), 192)
    marked = draw_marks(shown, [Mark(box)])
    return shown.image, marked.image, marked.rectangles[0], marked.origin


def difference(one: Image.Image, other: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(one.convert("RGB"), dtype=int) - np.asarray(other.convert("RGB"), dtype=int)).max(axis=2)


@pytest.mark.parametrize("name", CASES)
def test_marks_stand_where_the_golden_picture_has_them(name: str, tmp_path: Path) -> None:
    _, marked, rectangle, _ = drawn(name, tmp_path)
    with Image.open(GOLDEN / f"{name}.png") as golden:
        assert marked.size == golden.size
        # Strokes are exact; a photograph may be resampled to a neighbouring level by another Pillow.
        strokes = np.array([BLACK, COLOURS["predicted"]])
        pixels = np.asarray(golden.convert("RGB"))
        stroke = (pixels[:, :, None] == strokes).all(axis=3).any(axis=2)
        apart = difference(marked, golden)
    assert stroke.sum() > 4 * (rectangle[2] - rectangle[0])
    assert apart[stroke].max() == 0
    assert apart.max() <= 3


@pytest.mark.parametrize("name", CASES)
def test_the_drawn_rectangle_is_the_box(name: str, tmp_path: Path) -> None:
    """The clear area inside the stroke, measured on the drawing, scaled back to the picture's own pixels."""
    picture, box, expected = CASES[name]
    opened = picture(tmp_path)
    assert box.pixels(*opened.size) == expected
    shown, marked, rectangle, (dx, dy) = drawn(name, tmp_path)
    pixels = np.asarray(marked)
    left, top, right, bottom = (v + d for v, d in zip(rectangle, (dx, dy, dx, dy), strict=True))
    ring = [
        *pixels[top - 1, left:right],
        *pixels[bottom, left:right],
        *pixels[top:bottom, left - 1],
        *pixels[top:bottom, right],
    ]
    assert {tuple(p) for p in ring} == {BLACK}
    assert np.array_equal(
        pixels[top:bottom, left:right], np.asarray(shown)[rectangle[1] : rectangle[3], rectangle[0] : rectangle[2]]
    )
    scale = opened.width / shown.width
    assert np.allclose(np.array(rectangle) * scale, expected, atol=max(1e-9, scale / 2))


def sheet(folder: Path) -> Image.Image:
    marks = (
        Mark(Box(0.05, 0.1, 0.3, 0.4), "", "region"),
        Mark(Box(0.1, 0.5, 0.6, 0.95), "annotated", "annotated"),
        Mark(Box(0.55, 0.1, 0.9, 0.55), "gold", "gold"),
        Mark(Box(0.5, 0.05, 0.85, 0.5), "region of interest", "predicted"),
    )
    cells = np.zeros((6, 6))
    cells[1:3, 3:5] = [[0.5, 1.0], [0.25, 0.5]]
    notes = (("Question", "what is bright here?"), ("Region", "[0.500, 0.163, 0.850, 0.500]"), ("Answer", "a disc"))
    return render(OverlayInput(scene(96, 72), marks, assumed_crop(scene(96, 72), marks[-1].box), heat=cells, notes=notes), 240)


def test_the_whole_sheet(tmp_path: Path) -> None:
    """Several boxes, the relevance map with its bar, the crop and the notes; glyphs may be drawn a little otherwise."""
    made = sheet(tmp_path)
    with Image.open(GOLDEN / "sheet.png") as golden:
        assert made.size == golden.size
        apart = difference(made, golden)
    assert apart.mean() < 1.0
    assert (apart > 40).mean() < 0.01
    assert (difference(made, Image.new("RGB", made.size)) > 0).mean() > 0.9


# --- the relevance map ---


def test_a_map_over_the_square_lies_on_the_picture_without_its_padding() -> None:
    # 40 x 20 in a square of 40: a 4 x 4 map's middle two rows lie on the picture.
    cells = np.zeros((4, 4))
    cells[1, 0], cells[0, 3] = 1.0, 9.0
    values = heat.over_picture(cells, (40, 20), "square")
    assert values.shape == (20, 40)
    # Cell (1, 0) covers x 0..10 and y 0..10 of the picture; its centre is the maximum there.
    assert values[5, 4] == pytest.approx(1.0, abs=0.1)
    assert values[15, 4] < 0.1
    whole = heat.over_picture(cells, (40, 20), "image")
    assert whole[0, 39] == pytest.approx(9.0, abs=0.01)


def test_blending_keeps_the_callers_picture_and_grows_with_relevance() -> None:
    picture = Image.new("RGB", (32, 32), (100, 150, 200))
    before = picture.tobytes()
    mixed = np.asarray(heat.blend(picture, np.array([[0.0, 0.0], [0.0, 4.0]]), "image"), dtype=int)
    assert picture.tobytes() == before
    # Nothing: 10 % of inferno's black, within a level; the most: 80 % of its brightest.
    assert np.abs(mixed[0, 0] - [90, 135, 180]).max() <= 1
    assert np.abs(mixed[31, 31] - (0.2 * np.array([100, 150, 200]) + 0.8 * np.array([252, 255, 164]))).max() <= 3
    assert heat.blend(picture, np.zeros((3, 3))).size == (32, 32)


@pytest.mark.parametrize(
    "content", [b"[[0, 1], [2]]", b"[1, 2]", b"[[0, -1]]", b"[[NaN, 1]]", b"[]", b"no", b'[["a"]]'], ids=str
)
def test_the_error_names_a_map_that_cannot_be_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "map.json").write_bytes(content)
    with pytest.raises(InputError, match=r"map\.json"):
        heat.read_heat(tmp_path / "map.json")


def test_maps_from_both_formats(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2, 3]], dtype=np.float32))
    (tmp_path / "a.json").write_text("[[1, 2, 3]]")
    assert heat.read_heat(tmp_path / "a.npy").tolist() == heat.read_heat(tmp_path / "a.json").tolist() == [[1.0, 2.0, 3.0]]
    (tmp_path / "b.npy").write_bytes(b"broken")
    for name in ("b.npy", "gone.npy"):
        with pytest.raises(InputError, match=name):
            heat.read_heat(tmp_path / name)
    data = io.BytesIO()
    np.save(data, np.array([{}]), allow_pickle=True)
    (tmp_path / "code.npy").write_bytes(data.getvalue())
    with pytest.raises(InputError, match=r"code\.npy"):
        heat.read_heat(tmp_path / "code.npy")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            drawn(case, Path(scratch))[1].save(GOLDEN / f"{case}.png", optimize=True)
        sheet(Path(scratch)).save(GOLDEN / "sheet.png", optimize=True)
