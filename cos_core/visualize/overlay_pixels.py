"""An overlay as pixels, by Pillow: captioned panels, and the notes below them."""

from __future__ import annotations

from collections.abc import Collection

from PIL import Image, ImageDraw, ImageOps

from cos_core.visualize.config import PANELS
from cos_core.visualize.draw import HAIRLINE, INK, PAPER, SOFT_INK, draw_marks, font_at, show, wrap, zoom
from cos_core.visualize.panels import OverlayInput, Panel, panels
from cos_core.visualize.relevance_maps import blend, with_bar

USUAL = 640
"""The longer side of the picture, in pixels, at which type has its usual size; on a longer one it grows with it."""

_GAP = 20
_TEXT_PX = 17
_LINES_PER_NOTE = 4
_MIN_WIDTH = 560
"""Narrower sheets would break the question into slivers."""


def render(scene: OverlayInput, longest: int = USUAL, chosen: Collection[str] = PANELS) -> Image.Image:
    """The sheet, RGB: the marked picture (longer side at most `longest` pixels), relevance map, crop enlarged, notes; of these,
    those that are `chosen`.

    `scene.image` is not changed. Raises InputError when there is no panel among `chosen`.
    """
    scale = max(1.0, longest / USUAL)
    drawn = [(panel.caption, _drawn(panel, scene, longest, scale)) for panel in panels(scene, chosen)]
    width, body = _arranged(drawn, scene.stacked, scale)
    gap = round(_GAP * scale)
    text = _text_block(scene.notes if "notes" in chosen else (), width - 2 * gap, scale)
    sheet = Image.new("RGB", (width, body.height + text.height + gap), PAPER)
    sheet.paste(body, (0, 0))
    sheet.paste(text, (gap, body.height))
    return sheet


def _drawn(panel: Panel, scene: OverlayInput, longest: int, scale: float) -> Image.Image:
    if panel.name == "picture":
        return draw_marks(show(panel.picture, longest), panel.marks, scale).image
    if panel.heat is not None:
        heated = blend(show(panel.picture, longest).image, panel.heat, panel.heat_frame)
        return with_bar(heated, float(panel.heat.max()), scale)
    # Beside a tall picture the crop may be as tall as it; below a wide one it gets half its length.
    return ImageOps.expand(zoom(panel.picture, longest // 2 if scene.stacked else longest * 3 // 5), 1, HAIRLINE)


def _arranged(drawn: list[tuple[str, Image.Image]], below: bool, scale: float) -> tuple[int, Image.Image]:
    """Captioned panels side by side, or one below the other, and the sheet's width in pixels."""
    gap, caption = round(_GAP * scale), round((_TEXT_PX + 8) * scale)
    font = font_at(round((_TEXT_PX - 3) * scale))
    widths = [max(panel.width, round(font.getlength(name))) for name, panel in drawn]
    heights = [panel.height + caption for _, panel in drawn]
    inner = max(widths) if below else sum(widths) + gap * (len(drawn) - 1)
    width = max(round(_MIN_WIDTH * scale), inner + 2 * gap)
    height = (sum(heights) + gap * (len(drawn) - 1) if below else max(heights)) + 2 * gap
    body = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(body)
    left = top = gap
    for (name, panel), panel_width, panel_height in zip(drawn, widths, heights, strict=True):
        pen.text((left, top), name, fill=SOFT_INK, font=font)
        body.paste(panel, (left, top + caption))
        if below:
            top += panel_height + gap
        else:
            left += panel_width + gap
    return width, body


def _text_block(lines: tuple[tuple[str, str], ...], width: int, scale: float) -> Image.Image:
    """The notes as a picture `width` pixels wide: headings in a column of their own."""
    size = round(_TEXT_PX * scale)
    plain, bold = font_at(size), font_at(size, bold=True)
    column = max((round(bold.getlength(heading)) for heading, _ in lines), default=0) + round(16 * scale)
    wrapped = [(heading, wrap(text, plain, width - column, _LINES_PER_NOTE)) for heading, text in lines]
    step = size + round(8 * scale)
    block = Image.new("RGB", (width, step * sum(max(1, len(rows)) for _, rows in wrapped)), PAPER)
    pen = ImageDraw.Draw(block)
    top = 0
    for heading, rows in wrapped:
        pen.text((0, top), heading, fill=INK, font=bold)
        for row in rows or [""]:
            pen.text((column, top), row, fill=INK, font=plain)
            top += step
    return block
