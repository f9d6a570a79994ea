"""Pictures from untrusted files to upright 8-bit RGB, and to padded squares.

Colours follow LLaVA's `convert("RGB")` (transparency is dropped, not blended): a checkpoint sees what it was trained on. Two
deliberate departures: EXIF orientation is applied, and 16-bit values are scaled to 8 bits instead of clipped.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from cos_core.errors import InputError, TransientError
from cos_core.files.jsonl import LFS_POINTER
from cos_core.files.picture_files import ImageFile, Root, Shipped, check_file, image_path, read_file, shown, unreadable
from cos_core.geometry import SquarePad

FILL = (122, 116, 104)
"""LLaVA's padding colour: 255 times the mean of the CLIP image normalisation, truncated (RGB, 0-255)."""

MAX_PIXELS = 2**28 // 3 * 2
"""Pictures with more pixels (about 179 million, 0.7 GiB in Pillow's memory) are refused; Pillow's own limit for an error."""
MAX_SIDE = 2**18
"""Pictures with a longer side, in pixels, are refused; JPEG has at most 65,535, and no camera or scanner makes more."""

# Formats whose readers run no other program and fetch nothing (EPS would start Ghostscript); JPEG brings MPO, and an older
# Pillow may lack AVIF.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "TGA")
# What Pillow's readers raise on broken files; Image.DecompressionBombError is added for formats that grow while loading.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEADER_LOCK = threading.Lock()
T = TypeVar("T")


def open_image(root: Root, relative: str) -> Image.Image:
    """The picture as upright 8-bit RGB, fully decoded, without metadata; the first frame of an animation.

    The content decides the format, not the file's name. Raises InputError, one sentence that names the file, for anything that
    is outside `root`, too large, or not a whole picture; TransientError for one that is not there, or not read for want of
    memory.
    """
    return decoded(read_file(root, relative))


def decoded(file: ImageFile) -> Image.Image:
    """The picture in this file, decoded as by `open_image`. Raises as `open_image` does."""
    return _decoding(file.path, io.BytesIO(file.data), _pixels)


def _pixels(image: Image.Image, path: Path, _file: BinaryIO) -> Image.Image:
    image.load()
    return _upright(image, path)


def _decoding(path: Path, file: BinaryIO, read: Callable[[Image.Image, Path, BinaryIO], T]) -> T:
    """The result of `read(image, path, file)` for the picture in `file`. Raises as `open_image` does."""
    try:
        with _open_header(file) as image:
            _check_shape(image, path)
            return read(image, path, file)
    except UnidentifiedImageError:
        file.seek(0)
        what = foreign(file.read(SNIFFED))
        raise InputError(
            f"the image {shown(path)} is not a picture in a known format" + (f": it is {what}" if what else "")
        ) from None
    except MemoryError:
        raise TransientError(f"there is no memory to decode the image {shown(path)}") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"the image {shown(path)} cannot be decoded: {str(error)[:120] or type(error).__name__}") from None


def _check_shape(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"the image {shown(path)} is too large: {image.width}x{image.height} pixels (limit {MAX_PIXELS})")
    if max(image.size) > MAX_SIDE:
        raise InputError(f"the image {shown(path)} is too long: {image.width}x{image.height} pixels (limit {MAX_SIDE} a side)")


class ImageSource:
    """A worker's pictures by name: from a folder, or from files that were sent with its work."""

    def __init__(self, root: Root, files: Shipped | None = None) -> None:
        """`root`: the folder; `files`: name -> file, or the error of one that could not be read, instead of the folder's."""
        self._root, self._files = root, files

    def open(self, name: str) -> Image.Image:
        """The picture of this name, as `open_image`. Raises InputError."""
        if self._files is None:
            return open_image(self._root, name)
        file = self._files[name]
        if isinstance(file, InputError):
            raise file
        return decoded(file)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a picture's file: `size` as shown and `stored` as stored, both (width, height) in pixels, and the EXIF
    `orientation` that turns one into the other (1 to 8, 1 for none)."""

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int


def read_header(root: Root, relative: str) -> Header:
    """The header of the picture that `open_image` would return; the pixels are not decoded.

    Raises InputError as `open_image` does, except for damage after the header.
    """
    path = image_path(root, relative)
    check_file(path)
    try:
        with path.open("rb") as file:
            return _decoding(path, file, _header)
    except OSError as error:
        raise unreadable(path, error) from None


def picture_size(root: Root, relative: str) -> tuple[int, int]:
    """(width, height) in pixels of the picture that `open_image` would return. Raises InputError as `read_header` does."""
    return read_header(root, relative).size


def _header(image: Image.Image, _path: Path, file: BinaryIO) -> Header:
    width, height = image.size
    orientation = _orientation(image) if _may_have_exif(image, file) else 1
    if orientation < 5:
        return Header((width, height), (width, height), orientation)
    # Pillow's TIFF reader turns the picture itself and returns the turned size.
    upright = (width, height) if image.format == "TIFF" else (height, width)
    return Header(upright, upright[::-1], orientation)


WEB_PAGE = "a web page"
SNIFFED = 512
"""Bytes at the beginning of a file that identify its format."""
_FOREIGN: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (LFS_POINTER,), "a pointer of Git LFS, and the picture is not here; 'git lfs pull' fetches it"),
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC photograph, which cannot be read; save it as JPEG"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL picture, which cannot be read; save it as JPEG or PNG"),
    (0, (b"8BPS",), "a Photoshop file; save it as JPEG or PNG"),
    (0, (b"%PDF", b"%!PS"), "a document; save its page as JPEG or PNG"),
    (0, (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"FOVb"), "a camera's raw file; save it as JPEG"),
)


def foreign(head: bytes) -> str | None:
    """The unsupported picture format, LFS pointer or web page that begins with `head`, in words; None for other files."""
    for place, starts, words in _FOREIGN:
        if head[place:].startswith(starts):
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "an SVG drawing; save it as PNG"
    if text.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    return None


_SURE = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF")
"""Formats that their first bytes identify; a file of another format is identified by its whole header."""


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, whole or broken, or of an unsupported picture format (`foreign`)."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(SNIFFED)
            Image.init()
            if any(name in Image.OPEN and Image.OPEN[name][1](head[:16]) is True for name in _SURE):  # type: ignore[misc]
                return True
            if (what := foreign(head)) is not None:
                return what != WEB_PAGE
            file.seek(0)
            with _open_header(file):
                return True
    except (*_DECODE_ERRORS, MemoryError):
        return False


def _may_have_exif(image: Image.Image, file: BinaryIO) -> bool:
    """False for a PNG without EXIF, which Pillow would decode to its end to see whether a block follows the pixels."""
    if image.format != "PNG" or "exif" in image.info:
        return True
    place = file.seek(0, io.SEEK_CUR)
    file.seek(8)
    has_exif = False
    while not has_exif and len(head := file.read(8)) == 8:
        has_exif = head[4:] == b"eXIf"
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    file.seek(place)
    return has_exif


def reuse_memory(blocks: int = 8) -> None:
    """Lets Pillow keep up to `blocks` freed blocks, of at most 16 MiB each, for the next pictures.

    By default Pillow returns each block to the system, and mapping a megapixel anew, page by page, takes half as long as
    decoding it. The setting applies to this process and to those that it starts. A user's own setting (PILLOW_BLOCKS_MAX) has
    priority.
    """
    if "PILLOW_BLOCKS_MAX" not in os.environ:
        os.environ["PILLOW_BLOCKS_MAX"] = str(blocks)
        # Pillow has read its environment already.
        Image.core.set_blocks_max(blocks)


def reduced(image: Image.Image, most: float) -> Image.Image:
    """The picture, reduced by a whole factor where the square around it would have more than `most` pixels.

    A strip of 1 x 65,535 pixels has a square of 4 billion. Each side keeps at least one pixel, so a box in fractions holds.
    """
    factor = ceil(max(image.size) / sqrt(most))
    return image if factor <= 1 else image.reduce((min(factor, image.width), min(factor, image.height)))


def square_pad(image: Image.Image, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """The picture centred in a square of its longer side, as LLaVA's `expand2square` pads; a square stays as it is.

    One whose square would have more than MAX_PIXELS pixels is `reduced` first.
    """
    if image.width == image.height:
        return image
    image = reduced(image, MAX_PIXELS)
    pad = SquarePad(*image.size)
    canvas = Image.new("RGB", (pad.side, pad.side), fill)
    canvas.paste(image, pad.offset)
    return canvas


def _open_header(file: BinaryIO) -> Image.Image:
    # Pillow warns on stderr between half its limit and its limit; we decide by MAX_PIXELS alone. Swapping warning filters is
    # not safe between threads, hence the lock; only the header is read inside it.
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def _upright(image: Image.Image, path: Path) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _rgb(image, path)
    if turn is not None:
        rgb = rgb.transpose(turn)
    # Left in place, the EXIF block would make the next reader turn the picture a second time.
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS:
        # Viewers show a picture with a broken EXIF block as stored.
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(f"the image {shown(path)} has 32-bit values of no stated range; save it with 8 or 16 bits")
    if image.mode == "P":
        # By way of RGBA, which keeps the colours and spares a warning about transparent palettes.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
