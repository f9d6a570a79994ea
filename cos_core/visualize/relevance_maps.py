"""Relevance maps: read from a file or a store, and drawn over the picture with a colour bar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cos_core.errors import InputError
from cos_core.files.durable import atomic_file
from cos_core.files.jsonl import decode
from cos_core.files.text import printable
from cos_core.geometry import Frame, SquarePad
from cos_core.store.annotations import Store
from cos_core.visualize.draw import HAIRLINE, PAPER, SOFT_INK, font_at

Grid = NDArray[np.float64]

_MOST_STEM = 200
"""Bytes of a file's name, without its ending; file systems take 255 with it."""

_MOST_CELLS = 4096 * 4096
_OPACITY = (0.10, 0.80)
"""Opacity of the least and of the most relevant place: the picture stays recognisable everywhere."""
BAR_PX = 16
_BAR_LABEL_PX = 12


def read_heat(path: Path) -> Grid:
    """A map (rows, columns) from a `.npy` file or a JSON list of rows. Raises InputError: unreadable, not two-dimensional,
    empty, negative or not finite."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.asarray(decode(path.read_bytes()), dtype=np.float64)
        return checked(values, str(path))
    except OSError as error:
        raise InputError(f"the relevance map {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, MemoryError):
        raise InputError(f"the relevance map {path} is neither a .npy array nor a JSON list of rows of numbers") from None


def file_stem(example_id: str) -> str:
    """The name, without its ending, of an example's map in a folder of maps: the id with "/" and what no name holds as "_".

    An id of more than 200 bytes is cut and has the beginning of its SHA-256 (16 digits) behind it.
    """
    stem = "".join("_" if c in "/\n\t\r" or printable(c) != c else c for c in example_id)
    data = stem.encode("utf-8", "replace")
    if len(data) <= _MOST_STEM:
        return stem
    digest = hashlib.sha256(example_id.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{data[: _MOST_STEM - 17].decode('utf-8', 'ignore')}-{digest}"


def stored_heat(store: Store, example_id: str) -> Grid | None:
    """The store's map of an example, over the padded square, or None."""
    rows = store.heat(example_id)
    return None if rows is None else checked(rows, f"{store.path}, {example_id!r}")


def write_heat(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Writes a map so that `read_heat` reads it: a `.npy` array or a `.json` list of rows. Raises InputError."""
    if path.suffix not in (".npy", ".json"):
        raise InputError(f"{path}: a relevance map is written as .npy or .json")
    with atomic_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, np.asarray(rows, dtype=np.float64))
        else:
            file.write(json.dumps([list(row) for row in rows]).encode() + b"\n")


def checked(values: object, where: str) -> Grid:
    """`values` as a map (rows, columns), non-negative, arbitrary units. Raises InputError; `where` names it in the message."""
    try:
        grid = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: a relevance map is rows of numbers") from None
    if grid.ndim != 2 or not 0 < grid.size <= _MOST_CELLS:
        raise InputError(f"{where}: a relevance map has rows and columns, got shape {grid.shape}")
    if not np.isfinite(grid).all() or grid.min() < 0:
        raise InputError(f"{where}: relevance is finite and not negative")
    return grid


def over_picture(heat: Grid, size: tuple[int, int], frame: Frame) -> Grid:
    """`heat` at every pixel of a picture of `size` (width, height): (height, width), interpolated between cell centres.

    In frame "square" the map lies over the padded square, and what falls on the padding is cut away.
    """
    width, height = size
    cells = Image.fromarray(heat.astype(np.float32))
    if frame == "image":
        return np.asarray(cells.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)
    pad = SquarePad(width, height)
    left, top = pad.offset
    rows, columns = heat.shape
    place = (
        left / pad.side * columns,
        top / pad.side * rows,
        (left + width) / pad.side * columns,
        (top + height) / pad.side * rows,
    )
    return np.asarray(cells.resize(size, Image.Resampling.BILINEAR, box=place), dtype=np.float64)


def blend(picture: Image.Image, heat: Grid, frame: Frame = "square") -> Image.Image:
    """A new picture with the map laid over it: colour and opacity grow with relevance, from nothing to the map's maximum."""
    values = over_picture(heat, picture.size, frame)
    top = float(heat.max())
    share = np.clip(values / top, 0.0, 1.0) if top > 0 else np.zeros_like(values)
    shades = colours()[np.rint(255 * share).astype(np.intp)]
    opacity = (_OPACITY[0] + (_OPACITY[1] - _OPACITY[0]) * share)[..., None]
    mixed = np.asarray(picture.convert("RGB"), dtype=np.float64) * (1 - opacity) + shades * opacity
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def with_bar(picture: Image.Image, most: float, scale: float = 1.0) -> Image.Image:
    """`picture` with the colour bar to its right, `scale` times as wide as usual: 0 at the bottom, `most` (the map's own units)
    on top."""
    label, wide, gap, after = (round(px * scale) for px in (_BAR_LABEL_PX, BAR_PX, 10, 6))
    font = font_at(label)
    high, low = f"{most:.3g}", "0"
    height = max(picture.height, 3 * label)
    width = picture.width + gap + wide + after + round(max(font.getlength(high), font.getlength(low))) + 1
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(picture, (0, 0))
    pen = ImageDraw.Draw(sheet)
    left = picture.width + gap
    levels = np.linspace(255, 0, height).round().astype(np.intp)
    bar = np.repeat(colours()[levels].astype(np.uint8)[:, None, :], wide, axis=1)
    sheet.paste(Image.fromarray(bar), (left, 0))
    pen.rectangle((left, 0, left + wide - 1, height - 1), outline=HAIRLINE)
    pen.text((left + wide + after, 1), high, fill=SOFT_INK, font=font, anchor="lt")
    pen.text((left + wide + after, height - 2), low, fill=SOFT_INK, font=font, anchor="ls")
    return sheet


@lru_cache(maxsize=1)
def colours() -> Grid:
    """(256, 3), 0..255: inferno, which grows evenly brighter and reads alike with any common colour vision deficiency."""
    import matplotlib

    return np.asarray(matplotlib.colormaps["inferno"](np.arange(256))[:, :3]) * 255
