"""Bad and odd pictures, one function each: what strangers' data sets hold. Every command is tried on them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cos_core.files import picture_files


@dataclass(frozen=True)
class Hostile:
    """`make` writes the picture to a path; `reason`: the fact for which it is refused, None where it must be read."""

    name: str
    make: Callable[[Path], object]
    reason: str | None = None

    def __str__(self) -> str:
        return self.name


def gradient(width: int, height: int, seed: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def _half(form: str) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        data = encoded(gradient(61, 43), form)
        path.write_bytes(data[: len(data) // 2])

    return make


def _bomb(path: Path) -> None:
    # A PNG of a few bytes that claims 60,000 x 60,000 pixels.
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def _huge_tiff(path: Path) -> None:
    # Sparse: no byte of it is on the disk.
    with path.open("wb") as file:
        file.truncate(picture_files.MAX_FILE_BYTES + 1)


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient(61, 43).save(path, "JPEG", exif=exif)


def _animated(path: Path) -> None:
    frames = [gradient(31, 23, seed).convert("P") for seed in range(3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def _sixteen_bit(path: Path) -> None:
    Image.fromarray(np.arange(43 * 61, dtype=np.uint16).reshape(43, 61) * 20).save(path, "PNG")


BROKEN = [
    Hostile("missing", lambda path: None, "x.png"),
    Hostile("zero-byte", lambda path: path.write_bytes(b""), "empty"),
    Hostile("truncated PNG", _half("PNG"), "decoded"),
    Hostile("truncated JPEG", _half("JPEG"), "decoded"),
    Hostile("web page", lambda path: path.write_text("<html>404 Not Found</html>"), "format"),
    Hostile(
        "PostScript",
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"),
        "format",
    ),
    Hostile("folder", lambda path: path.mkdir(), "not a file"),
    Hostile("pipe", os.mkfifo, "not a file"),
    Hostile("decompression bomb", _bomb, "limit"),
    Hostile("huge file", _huge_tiff, "MiB"),
    Hostile("float TIFF", lambda path: Image.fromarray(np.ones((5, 7), np.float32)).save(path, "TIFF"), "32-bit"),
]

ODD = [
    Hostile("GIF called JPEG", lambda path: gradient(61, 43).convert("P").save(path, "GIF")),
    Hostile("CMYK", lambda path: gradient(61, 43).convert("CMYK").save(path, "JPEG")),
    Hostile("16-bit", _sixteen_bit),
    Hostile("palette", lambda path: gradient(61, 43).convert("P").save(path, "PNG")),
    Hostile("rotated by EXIF", _rotated),
    Hostile("animated", _animated),
    Hostile("one pixel", lambda path: gradient(1, 1).save(path, "PNG")),
    Hostile("30,000 pixels wide", lambda path: Image.new("RGB", (30_000, 40), (90, 30, 200)).save(path, "PNG")),
]
