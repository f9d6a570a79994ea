"""Figures as vectors: fonts inside, boxes where they are, no pixels but the photograph's, and the same in inches at any dpi."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_visualize_golden import scene

from cos_core.dialogue.cropping import assumed_crop
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.visualize import overlay, overlay_vectors
from cos_core.visualize.config import FigureOptions, OverlayConfig
from cos_core.visualize.draw import COLOURS, Mark
from cos_core.visualize.overlay_pixels import render
from cos_core.visualize.panels import OverlayInput, Panel, panels

BOX = Box(0.25, 0.125, 0.75, 0.625)
QUIET = SilentReporter()
SVG = "{http://www.w3.org/2000/svg}"


def subject(width: int = 96, height: int = 72) -> OverlayInput:
    """A picture with two boxes, a map, the crop and notes."""
    picture = scene(width, height)
    marks = (Mark(Box(0.0, 0.0, 1.0, 1.0), "fallback: whole picture", "fallback"), Mark(BOX, "region of interest"))
    heat = np.array([[0.0, 0.5], [1.0, 0.25]])
    return OverlayInput(picture, marks, assumed_crop(picture, BOX), heat=heat, notes=(("Question", "what is $5_{x}$?"),))


def drawn(folder: Path, name: str, what: OverlayInput | None = None, panels: str | None = None, **figure: object) -> bytes:
    config = OverlayConfig(folder / name, panels=panels, figure=FigureOptions(**figure))  # type: ignore[arg-type]
    return overlay.drawn(config, subject() if what is None else what)


def images_of(pdf: bytes) -> list[tuple[int, int]]:
    """(width, height) of every picture in a PDF."""
    objects = [each for each in pdf.split(b"endobj") if b"/Subtype /Image" in each]
    return [tuple(int(re.search(rb"/%s (\d+)" % key, each)[1]) for key in (b"Width", b"Height")) for each in objects]  # type: ignore[index, misc]


def streams_of(pdf: bytes) -> bytes:
    """The drawing operators of a PDF's pages."""
    parts = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    texts = []
    for part in parts:
        try:
            texts.append(zlib.decompress(part))
        except zlib.error:
            texts.append(part)
    return next(text for text in texts if b" Tf\n" in text)


def test_a_pdf_has_its_fonts_and_only_the_pictures_as_pixels(tmp_path: Path) -> None:
    pdf = drawn(tmp_path, "o.pdf")
    assert pdf.count(b"/FontFile2") == 2, "plain and bold"
    assert b"/Type3" not in pdf
    assert images_of(pdf) == [(96, 72), (96, 72), (48, 36)], "picture, map and crop, every pixel of each"
    assert pdf == drawn(tmp_path, "o.pdf"), "no date"
    page = streams_of(pdf)
    red, green, blue = (f"{value / 255:.6f}".rstrip("0").encode()[:5] for value in COLOURS["predicted"])
    assert re.search(red + rb"\d* " + green + rb"\d* " + blue.rstrip(b".") + rb"\S* RG", page), "the box is a stroke"
    assert re.search(rb"\[ ?[\d. ]+\]\s[\d.]+\sd", page), "the fallback region is dashed"


def test_an_svg_has_shapes_letters_and_pictures(tmp_path: Path) -> None:
    svg = drawn(tmp_path, "o.svg")
    root = ElementTree.fromstring(svg)
    assert len(root.findall(f".//{SVG}image")) == 3
    assert svg == drawn(tmp_path, "o.svg")
    colour = "#{:02x}{:02x}{:02x}".format(*COLOURS["predicted"])
    strokes = [path.get("style") or "" for path in root.iter(f"{SVG}path") if f"stroke: {colour}" in (path.get("style") or "")]
    assert strokes
    assert not any("dasharray" in style for style in strokes)
    grey = "#{:02x}{:02x}{:02x}".format(*COLOURS["fallback"])
    greys = [path.get("style") or "" for path in root.iter(f"{SVG}path") if f"stroke: {grey}" in (path.get("style") or "")]
    assert greys
    assert all("dasharray" in style for style in greys)


def test_every_pixel_unless_dots_are_asked_for(tmp_path: Path) -> None:
    large = subject(1600, 1200)
    assert images_of(drawn(tmp_path, "o.pdf", large, "picture")) == [(1600, 1200)]
    ((width, height),) = images_of(drawn(tmp_path, "o.pdf", large, "picture", style="paper", dpi=100))
    assert 300 < width <= 325, "3.25 inches less the frame"
    assert width * 3 == pytest.approx(height * 4, abs=3)


@pytest.mark.parametrize(("style", "width", "dpi"), [("paper", None, 200), ("paper", 6.875, 96), ("screen", 4.0, 150)])
def test_a_picture_file_has_the_inches_that_were_asked_for(tmp_path: Path, style: str, width: float | None, dpi: int) -> None:
    for suffix in (".png", ".webp"):
        out = tmp_path / f"o{suffix}"
        out.write_bytes(drawn(tmp_path, out.name, style=style, width=width, dpi=dpi))
        with Image.open(out) as made:
            assert made.width == pytest.approx((width or 3.25) * dpi, abs=1)
            corner = np.asarray(made.convert("RGB"))[-1, -1]
            assert (corner == 255).all() == (style == "paper")


def test_type_has_eight_points_on_paper_and_grows_with_the_width_on_screen() -> None:
    def sizes(**options: object) -> set[float]:
        figure = overlay_vectors.draw(subject(), FigureOptions(**options))  # type: ignore[arg-type]
        return {text.get_fontsize() for text in figure.axes[0].texts}

    assert sizes(style="paper") == sizes(style="paper", width=6.875) == {8.0}
    assert sizes(width=2 * 6.875) == {16.0}


def test_a_box_is_framed_from_outside() -> None:
    """Of the strokes around the box, the inner border is the region, in the place of its pixels."""
    figure = overlay_vectors.draw(subject(), FigureOptions(style="paper"), ("picture",))
    axes = figure.axes[0]
    left, right, bottom, top = axes.images[0].get_extent()
    dark = [patch for patch in axes.patches if not patch.get_fill() and patch.get_edgecolor() == (0, 0, 0, 1)][-1]
    x, y, width, height = dark.get_bbox().bounds
    half = dark.get_linewidth() / 2
    inside = [x + half, y + half, x + width - half, y + height - half]
    across, down = right - left, bottom - top
    wanted = [left + across * BOX.x0, top + down * BOX.y0, left + across * BOX.x1, top + down * BOX.y1]
    assert inside == pytest.approx(wanted)


@pytest.mark.parametrize("sizes", [[(4, 3)], [(4, 3), (4, 3), (1, 1)], [(4, 300), (4, 300), (1, 90)], [(100, 60), (1, 90)]])
@pytest.mark.parametrize("width", [234.0, 495.0])
def test_panels_stay_on_the_sheet_and_have_one_height(sizes: list[tuple[int, int]], width: float) -> None:
    shown = [Panel("picture", "Whole image", "Whole", Image.new("RGB", size)) for size in sizes]
    places = overlay_vectors.arranged(shown, (width, 2.0), 8.0, False)
    assert len({(place.top, place.height) for place in places}) == 1
    assert all(place.width / place.height == pytest.approx(s[0] / s[1]) for place, s in zip(places, sizes, strict=True))
    ends = [place.left + max(place.column, place.width) for place in places]
    assert ends[-1] <= width
    assert all(end < after.left for end, after in zip(ends, places[1:], strict=False))


def test_panels_are_chosen(tmp_path: Path) -> None:
    assert len(images_of(drawn(tmp_path, "o.pdf", panels="crop, picture"))) == 2
    assert drawn(tmp_path, "o.pdf", panels="crop").count(b"/FontFile2") == 1, "no notes, no bold type"
    assert drawn(tmp_path, "o.pdf", style="paper").count(b"/FontFile2") == 1
    both, notes = render(subject(), chosen=("picture",)), render(subject(), chosen=("picture", "notes"))
    assert both.width == notes.width
    assert both.height < notes.height
    with pytest.raises(InputError, match="'title'"):
        OverlayConfig(tmp_path / "o.png", panels="picture,title")
    plain = OverlayInput(scene())
    with pytest.raises(InputError, match=r"crop.*picture"):
        panels(plain, ("crop",))


def test_type_in_pixels_grows_with_a_longer_picture() -> None:
    usual, long = render(subject(640, 480)), render(subject(640, 480), 1280)
    assert long.width == pytest.approx(2 * usual.width, rel=0.02)
    assert long.height == pytest.approx(2 * usual.height, rel=0.02)


def test_a_drawing_too_large_for_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dpi"):
        drawn(tmp_path, "o.png", width=40.0, dpi=2400)


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_a_figure_is_recognised_and_replaced(tmp_path: Path, suffix: str) -> None:
    scene().save(tmp_path / "a.png")
    config = OverlayConfig(tmp_path / f"o.{suffix}", image=tmp_path / "a.png", box=BOX.corners)
    overlay.run(config, QUIET)
    (tmp_path / f"o.{suffix}.manifest.json").unlink()
    overlay.run(config, QUIET)
    config.out.write_bytes(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / f"o.{suffix}.manifest.json").unlink()
    with pytest.raises(InputError, match=rf"o\.{suffix}"):
        overlay.run(config, QUIET)
