"""Pictures from untrusted files to upright 8-bit RGB, and the pixel side of the geometry: square padding and crops.

Colours follow LLaVA's `convert("RGB")` (transparency is dropped, not blended): a checkpoint sees what it was trained on. Two
deliberate departures: EXIF orientation is applied, and 16-bit values are scaled to 8 bits instead of clipped.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad

FILL = (122, 116, 104)
"""LLaVA's padding colour: 255 times the mean of the CLIP image normalisation, truncated (RGB, 0-255)."""

MAX_PIXELS = 2**28 // 3 * 2
"""Pictures with more pixels (about 179 million, 0.5 GiB as RGB) are refused; Pillow's own limit for an error."""
MAX_FILE_BYTES = 2**29

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
    MemoryError,
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


def image_path(root: Path | None, relative: str) -> Path:
    """The file that `relative` names under `root`, links resolved; without a root, the path as it is given.

    Raises InputError for a path that is absolute, climbs out of the root or is linked out of it.
    """
    try:
        if root is None:
            return Path(relative).resolve()
        base = Path(root).resolve()
        path = (base / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the image path {relative[:200]!r} cannot be used: {error}") from None
    if Path(relative).is_absolute() or not path.is_relative_to(base):
        raise InputError(f"the image path {relative[:200]!r} leaves the image folder {root}; give the folder it really lies in")
    return path


def open_image(root: Path | None, relative: str) -> Image.Image:
    """The picture as upright 8-bit RGB, fully decoded, without metadata; the first frame of an animation.

    The content decides the format, not the file's name. Raises InputError, one sentence that names the file, for anything that
    is missing, outside `root`, too large, or not a whole picture.
    """
    return decoded(read_file(root, relative))


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture's file as it lies on the disk: its bytes, and the path that messages name."""

    path: Path
    data: bytes


def read_file(root: Path | None, relative: str) -> ImageFile:
    """The file behind a picture, not decoded. Raises InputError as `open_image` does, save for what is wrong inside it."""
    path = image_path(root, relative)
    return ImageFile(path, _read(path))


def decoded(file: ImageFile) -> Image.Image:
    """What `open_image` gives for this file, and raises."""
    path = file.path
    try:
        with _open_header(io.BytesIO(file.data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"the image {path} is too large: {image.width}x{image.height} pixels (limit {MAX_PIXELS})")
            image.load()
            return _upright(image, path)
    except UnidentifiedImageError:
        raise InputError(f"the image {path} is not a picture in a known format") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"the image {path} cannot be decoded: {str(error)[:120] or type(error).__name__}") from None


class ImageSource:
    """Where a worker's pictures come from: a folder, or the files that came with its work (`take`)."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._files: Mapping[str, ImageFile | str] | None = None

    def take(self, files: Mapping[str, ImageFile | str] | None) -> None:
        """From now on `open` knows these files alone, or the folder's for None; a text says why a file could not be read."""
        self._files = files

    def open(self, name: str) -> Image.Image:
        """The picture of this name, as `open_image`. Raises InputError."""
        if self._files is None:
            return open_image(self._root, name)
        file = self._files[name]
        if isinstance(file, str):
            raise InputError(file)
        return decoded(file)


def shipped(root: Path | None, names: Iterable[str]) -> dict[str, ImageFile | str]:
    """The files of these pictures, for an ImageSource elsewhere."""
    files: dict[str, ImageFile | str] = {}
    for name in names:
        try:
            files[name] = read_file(root, name)
        except InputError as error:
            files[name] = str(error)
    return files


def witness(root: Path | None, names: Iterable[str], most: int = 100) -> str | None:
    """The first of the names behind which a file is seen here, of `most` at the most; for `check_seen` elsewhere."""
    for name in islice(names, most):
        try:
            if image_path(root, name).is_file():
                return name
        except (InputError, OSError):
            continue
    return None


def check_seen(root: Path | None, seen: str | None) -> None:
    """For a worker: raises InputError when it does not see the picture that whoever sent it here does (None: sees none)."""
    if seen is not None and not image_path(root, seen).is_file():
        raise InputError(
            f"a worker cannot see the image {seen} in {root}; "
            "put it on a file system that all nodes share, or give --ship-images"
        )


def picture_size(root: Path | None, relative: str) -> tuple[int, int]:
    """(width, height) in pixels of what `open_image` would give, from the file's header; the pixels are not decoded.

    Raises InputError as `open_image` does, save for damage behind the header.
    """
    path = image_path(root, relative)
    _check_file(path)
    try:
        with path.open("rb") as file, _open_header(file) as image:
            width, height = image.size
            # Pillow's TIFF reader turns by itself, and says the size that this gives.
            turned = image.format != "TIFF" and _may_have_exif(image, file) and _orientation(image) >= 5
            return (height, width) if turned else (width, height)
    except UnidentifiedImageError:
        raise InputError(f"the image {path} is not a picture in a known format") from None
    except _DECODE_ERRORS as error:
        raise InputError(f"the image {path} cannot be decoded: {str(error)[:120] or type(error).__name__}") from None


def _may_have_exif(image: Image.Image, file: BinaryIO) -> bool:
    """False for a PNG without EXIF, which Pillow would decode to its end to see whether a block follows the pixels."""
    if image.format != "PNG" or "exif" in image.info:
        return True
    place = file.seek(0, io.SEEK_CUR)
    file.seek(8)
    found = False
    while not found and len(head := file.read(8)) == 8:
        found = head[4:] == b"eXIf"
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    file.seek(place)
    return found


def reuse_memory(blocks: int = 8) -> None:
    """Lets Pillow keep up to `blocks` freed blocks, of at most 16 MiB each, for the next pictures.

    By default it gives each back to the system, and to have a megapixel mapped anew, page by page, takes half as long as to
    decode it. For processes that read pictures all day: this one, and those that it begins. A user's own setting
    (PILLOW_BLOCKS_MAX) stands.
    """
    if "PILLOW_BLOCKS_MAX" not in os.environ:
        os.environ["PILLOW_BLOCKS_MAX"] = str(blocks)
        # Pillow has read its environment already.
        Image.core.set_blocks_max(blocks)


def square_pad(image: Image.Image, fill: tuple[int, int, int] = FILL) -> Image.Image:
    """The picture centred in a square of its longer side, as LLaVA's `expand2square` pads; a square stays as it is."""
    pad = SquarePad(*image.size)
    if image.width == image.height:
        return image
    canvas = Image.new("RGB", (pad.side, pad.side), fill)
    canvas.paste(image, pad.offset)
    return canvas


def crop_region(
    image: Image.Image,
    box: Box,
    crop_from: Literal["image", "canvas"],
    fill: tuple[int, int, int],
) -> Image.Image:
    """The region of interest at full resolution: whole pixels, at least one on each side, not yet padded to a square.

    `box` may be in either frame. `crop_from` is the profile's, `fill` the colour in which the checkpoint pads its pictures
    (`checkpoints.fill_of`). crop_from "image": the part of it that lies on the picture, cut from the original pixels;
    "canvas": cut from the padded square, so padding inside the box is kept in the colour `fill` (the released code's
    inference). Raises InputError for "image" and a box that lies wholly in the padding.
    """
    pad = SquarePad(*image.size)
    if crop_from == "image":
        inside = box if box.frame == "image" else pad.to_image(box)
        return image.crop(inside.pixels(*image.size))
    if crop_from != "canvas":
        raise InputError(f"crop_from is 'image' or 'canvas', got {crop_from!r}")
    on_canvas = box if box.frame == "square" else pad.to_square(box)
    left, top, right, bottom = on_canvas.pixels(pad.side, pad.side)
    dx, dy = pad.offset
    # Only the crop is made, never the whole canvas: a panorama's square would be a hundred times the picture.
    canvas = Image.new("RGB", (right - left, bottom - top), fill)
    visible = (max(left - dx, 0), max(top - dy, 0), min(right - dx, image.width), min(bottom - dy, image.height))
    if visible[0] < visible[2] and visible[1] < visible[3]:
        canvas.paste(image.crop(visible), (visible[0] + dx - left, visible[1] + dy - top))
    return canvas


def _read(path: Path) -> bytes:
    _check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read: {error.strerror}") from None


def _check_file(path: Path) -> None:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"the image {path} is not a file")
        if info.st_size == 0:
            raise InputError(f"the image {path} is empty")
        if info.st_size > MAX_FILE_BYTES:
            raise InputError(f"the image {path} is too large: {info.st_size >> 20} MiB (limit {MAX_FILE_BYTES >> 20})")
    except FileNotFoundError:
        raise InputError(f"there is no image {path}") from None
    except OSError as error:
        raise InputError(f"the image {path} cannot be read: {error.strerror}") from None


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
        # A broken EXIF block says nothing about the picture, which every viewer shows as stored.
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(f"the image {path} has 32-bit values of no stated range; save it with 8 or 16 bits")
    if image.mode == "P":
        # By way of RGBA, which keeps the colours and spares a warning about transparent palettes.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
