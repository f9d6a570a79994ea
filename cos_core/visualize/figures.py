"""Figures by matplotlib as files: vectors with their fonts (.pdf, .svg), or pixels (.png, .webp), marked as written by cos.

No pyplot: no display, no global state. Equal figures give equal files: they carry no date.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from PIL import Image

from cos_core.errors import InputError
from cos_core.files import outputs
from cos_core.options import LONGEST_PX
from cos_core.visualize.config import VECTORS
from cos_core.visualize.draw import RGB, font_at, shorten, wrap

POINTS = 72
"""To the inch."""
TYPE_PT = 8.0
USUAL_DPI = 300
_MEASURED_PX = 40
"""The size at which text is measured: its widths are those of any size, in proportion."""
_SOFTWARE = 0x0131
"""The EXIF tag that names the program."""

_RC = {
    "pdf.fonttype": 42,  # whole outlines, which keeps text selectable and is what publishers take
    "svg.fonttype": "path",  # letters as outlines: an SVG that looks alike without the font
    "svg.hashsalt": outputs.MARK,
    "image.composite_image": False,  # each picture stays itself
}


def encoded(figures: Sequence[Figure], suffix: str, dpi: float | None = None) -> bytes:
    """One file with these figures, each a page of a .pdf; any other format holds one figure.

    `dpi`: dots per inch of a .png or .webp, the figure's own without. Raises InputError for a drawing with too many pixels.
    """
    data = io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # A letter that no font has is drawn as a box, here as in pixels.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        if suffix == ".pdf":
            with PdfPages(data, metadata={"Creator": outputs.MARK, "CreationDate": None}) as pages:
                for figure in figures:
                    pages.savefig(figure)
        else:
            (figure,) = figures
            figure.savefig(data, format=suffix[1:], **_details(figure, suffix, dpi))
    return data.getvalue()


def _details(figure: Figure, suffix: str, dpi: float | None) -> dict[str, Any]:
    if suffix == ".svg":
        return {"metadata": {"Creator": outputs.MARK, "Date": None}}
    dots = dpi or figure.dpi
    check_pixels(max(figure.get_size_inches()), dots)
    return {"dpi": dots, "pil_kwargs": {"exif": mark(), **({"lossless": True} if suffix == ".webp" else {})}}


def check_pixels(inches: float, dpi: float) -> None:
    """Raises InputError for a side of more than 2 LONGEST_PX pixels."""
    if (longer := inches * dpi) > (most := 2 * LONGEST_PX):
        raise InputError(f"a drawing has at most {most:,} pixels a side, not {longer:,.0f}; give a smaller dpi or width")


def mark() -> Image.Exif:
    """The EXIF block that marks a picture as written by this program (outputs.MARK)."""
    block = Image.Exif()
    block[_SOFTWARE] = outputs.MARK
    return block


def picture_dpi(suffix: str, dpi: int | None) -> int | None:
    """The dots per inch that the pictures in a file are brought to; None leaves every pixel of a vector file's."""
    return dpi if suffix in VECTORS else dpi or USUAL_DPI


def fraction(colour: RGB) -> tuple[float, float, float]:
    """A colour as matplotlib takes it."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def text_width(text: str, points: float, bold: bool = False) -> float:
    """The width of a line, in points, in type of `points`."""
    return font_at(_MEASURED_PX, bold).getlength(text) * points / _MEASURED_PX


def wrapped(text: str, points: float, width: float, lines: int, bold: bool = False) -> list[str]:
    """`text` in at most `lines` lines of at most `width` points (draw.wrap)."""
    return wrap(text, font_at(_MEASURED_PX, bold), width * _MEASURED_PX / points, lines)


def shortened(text: str, points: float, width: float) -> str:
    """`text` on one line of at most `width` points (draw.shorten)."""
    return shorten(text, font_at(_MEASURED_PX), width * _MEASURED_PX / points)
