"""From pictures to pixel tensors, as a checkpoint's image processor makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError
from cos_core.files.images import reduced, square_pad
from cos_core.geometry import SquarePad
from cos_core.models import pretrained

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def check_pictures(where: str, image_processor: Any, side: int) -> tuple[int, int, int]:
    """The colour that pads pictures. Raises InputError for a processor whose pictures are not `side` pixels wide and high."""
    from PIL import Image

    with pretrained.reading(where):
        fill = padding_colour(image_processor)
        resized = square_side(image_processor)
        if resized is None:
            shape = tuple(processed(image_processor, [Image.new("RGB", (3, 2))], fill).shape)
        else:
            shape = (1, 3, resized, resized)
    if shape != (1, 3, side, side):
        raise InputError(
            f"cannot load the checkpoint {where}: its image processor makes pictures of the shape {list(shape)}, and the "
            f"vision tower takes {[1, 3, side, side]}"
        )
    return fill


def padding_colour(image_processor: Any) -> tuple[int, int, int]:
    """`int(255 * mean)` per channel: (122, 116, 104) with CLIP's mean (upstream §1.3)."""
    red, green, blue = (int(255 * m) for m in image_processor.image_mean)
    return red, green, blue


def processed(image_processor: Any, pictures: Sequence[Image], fill: tuple[int, int, int]) -> torch.Tensor:
    """What the processor makes of pictures padded to squares, (n, 3, side, side) in float32 on the CPU, bit for bit.

    Where it only resizes, rescales and normalises, that is done here, for a fraction of its time: a batch of bytes through one
    table a channel, instead of four passes over floats for each picture.
    """
    import numpy as np
    import torch

    side = square_side(image_processor)
    if side is None:
        squares = [square_pad(picture, fill) for picture in pictures]
        result: torch.Tensor = image_processor(squares, return_tensors="pt")["pixel_values"]
        return result
    # What the processor's arithmetic makes of each of the 256 values a byte can have, in its own order of rounding.
    rescaled = (np.arange(256) * image_processor.rescale_factor).astype(np.float32)
    tables = [
        (rescaled - np.float32(mean)) / np.float32(std)
        for mean, std in zip(image_processor.image_mean, image_processor.image_std, strict=True)
    ]
    out = np.empty((len(pictures), 3, side, side), np.float32)
    for place, picture in zip(out, pictures, strict=True):
        raster = np.asarray(square_resized(picture, side, image_processor.resample, fill))
        for channel, table in enumerate(tables):
            # A byte is never out of range; the mode that would find out fills a copy first.
            np.take(table, raster[..., channel], out=place[channel], mode="clip")
    return torch.from_numpy(out)


_BAND_PIXELS = 2**24
_WIDEST, _TALLEST = 2**16, 2**14
"""Longer sides, in pixels, up to which pictures are resized bit for bit as their padded squares; others are reduced first."""


def square_resized(picture: Image, side: int, resample: Any, fill: tuple[int, int, int]) -> Image:
    """The picture padded to a square and resized to `side`, bit for bit, but padded late or in bands where that is the same.

    Pillow resizes rows first, then columns. Rows of padding are not changed by the first step, so a wide picture gets them
    between the two, when the canvas is a third as large. Rows are independent, so a tall picture goes in bands.
    """
    from PIL import Image

    wide = picture.width > picture.height
    picture = reduced(picture, float((_WIDEST if wide else _TALLEST) ** 2))
    pad = SquarePad(*picture.size)
    if not wide and pad.side**2 <= _BAND_PIXELS:
        return square_pad(picture, fill).resize((side, side), resample)
    canvas = Image.new("RGB", (side, pad.side), fill)
    if wide:
        canvas.paste(picture.resize((side, picture.height), resample), (0, pad.offset[1]))
    else:
        rows = max(1, _BAND_PIXELS // pad.side)
        for top in range(0, pad.side, rows):
            height = min(rows, pad.side - top)
            band = Image.new("RGB", (pad.side, height), fill)
            band.paste(picture.crop((0, top, picture.width, top + height)), (pad.offset[0], 0))
            canvas.paste(band.resize((side, height), resample), (0, top))
    return canvas.resize((side, side), resample)


def square_side(image_processor: Any) -> int | None:
    """The side that a square is resized to, when resizing, rescaling and normalising is all the processor does to a square.

    LLaVA's own processor, which pads to a square, does nothing more either.
    """
    steps = ("do_resize", "do_rescale", "do_normalize")
    pads = getattr(image_processor, "do_pad", False) and not type(image_processor).__name__.startswith("LlavaImageProcessor")
    if pads or not all(getattr(image_processor, step, False) for step in steps):
        return None
    sides = {int(v) for v in dict(image_processor.size).values() if v is not None}
    if getattr(image_processor, "do_center_crop", False):
        sides |= {int(v) for v in dict(image_processor.crop_size).values() if v is not None}
    return sides.pop() if len(sides) == 1 else None
