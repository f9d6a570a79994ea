"""How the store writes keys, annotations and relevance maps as bytes; equal records give equal bytes."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.types import Annotation

MAX_KEY = 511
LEVELS = 255
"""A map's cells are stored as whole numbers from 0 to LEVELS, which stands for the map's maximum."""
_MOST_CELLS = 4096 * 4096

HEAD = struct.Struct("<5d2H3I")
"""x0, y0, x1, y1 (NaN: no box), score; then the numbers of regions used, of bytes of policy, of image and reason (plus one; 0:
None), and of id (only of a cut key; else 0). Regions as unsigned 32-bit numbers and the texts follow in this order."""
HEAD_DTYPE = np.dtype(
    [
        ("box", "<f8", 4),
        ("score", "<f8"),
        ("used", "<u2"),
        ("policy", "<u2"),
        ("image", "<u4"),
        ("reason", "<u4"),
        ("id", "<u4"),
    ]
)
"""HEAD for many records at once."""
_HEAT = struct.Struct("<2Id")
_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True, slots=True)
class Heat:
    """A relevance map as it is stored: (rows, columns) cells from 0 to LEVELS, `top` the map's maximum in its own units."""

    cells: np.ndarray
    top: float

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]], example_id: str) -> Heat:
        """The map, rounded to the nearest of 256 levels: no cell moves by more than 1/510 of the maximum, which is exact.

        Raises InputError: not rows of equal length, empty, negative or not finite.
        """
        try:
            values = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"the relevance map of {example_id!r} is not rows of numbers of equal length") from None
        if values.ndim != 2 or not 0 < values.size <= _MOST_CELLS:
            raise InputError(f"the relevance map of {example_id!r} needs rows and columns, got shape {values.shape}")
        top = float(values.max())
        if not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"the relevance map of {example_id!r} holds a value that is negative or not finite")
        if top < sys.float_info.min:
            return cls(np.zeros(values.shape, dtype=np.uint8), 0.0)
        return cls(np.rint(values / top * LEVELS).astype(np.uint8), top)

    def rows(self) -> tuple[tuple[float, ...], ...]:
        """The map in its own units, (rows, columns) row by row."""
        return tuple(map(tuple, (self.cells / LEVELS * self.top).tolist()))

    def packed(self) -> bytes:
        rows, columns = self.cells.shape
        return _HEAT.pack(rows, columns, self.top) + zlib.compress(self.cells.tobytes())

    @classmethod
    def unpacked(cls, value: bytes) -> Heat:
        """Raises ValueError for bytes that are no map."""
        try:
            rows, columns, top = _HEAT.unpack_from(value)
            if not 0 < rows * columns <= _MOST_CELLS or not (math.isfinite(top) and top >= 0):
                raise ValueError("its shape or maximum cannot be")
            reader = zlib.decompressobj()
            data = reader.decompress(value[_HEAT.size :], rows * columns + 1)
        except (struct.error, zlib.error) as error:
            raise ValueError(str(error)) from None
        if len(data) != rows * columns:
            raise ValueError(f"{len(data)} cells instead of {rows} x {columns}")
        return cls(np.frombuffer(data, dtype=np.uint8).reshape(rows, columns), top)


def key_of(example_id: str) -> bytes:
    """The id in UTF-8 (surrogatepass). An id longer than LMDB's limit becomes its beginning, 0xff (in no id) and a SHA-256.

    Raises InputError for an empty id.
    """
    key = example_id.encode("utf-8", "surrogatepass")
    if not key:
        raise InputError("an example needs an id")
    if len(key) > MAX_KEY:
        digest = hashlib.sha256(key).hexdigest().encode()
        key = key[: MAX_KEY - len(digest) - 1] + b"\xff" + digest
    return key


def is_cut(key: bytes) -> bool:
    """Whether an id was too long to be its own key."""
    return len(key) == MAX_KEY and b"\xff" in key


def pack(annotation: Annotation, key: bytes) -> bytes:
    """The annotation without its fingerprint, which is the store's. Raises InputError for what the format cannot hold."""
    box, score = annotation.box, annotation.score
    if not math.isfinite(score):
        raise InputError(f"the annotation {annotation.example_id!r} has score {score}")
    # Half a character in a path or a reason can be kept too.
    policy = annotation.policy.encode("utf-8", "surrogatepass")
    image = b"" if annotation.image is None else annotation.image.encode("utf-8", "surrogatepass")
    reason = b"" if annotation.reason is None else annotation.reason.encode("utf-8", "surrogatepass")
    full_id = annotation.example_id.encode("utf-8", "surrogatepass") if is_cut(key) else b""
    used = annotation.regions_used
    try:
        head = HEAD.pack(
            *(_NO_BOX if box is None else (box.x0, box.y0, box.x1, box.y1)),
            score,
            len(used),
            len(policy),
            0 if annotation.image is None else len(image) + 1,
            0 if annotation.reason is None else len(reason) + 1,
            len(full_id),
        )
        regions = struct.pack(f"<{len(used)}I", *used) if used else b""
    except struct.error as error:
        raise InputError(f"the annotation {annotation.example_id!r} cannot be kept: {error}") from None
    return b"".join((head, regions, policy, image, reason, full_id))


def unpack(key: bytes, value: bytes, fingerprint: str) -> Annotation:
    """The inverse of `pack`. Raises InputError for a damaged record."""
    try:
        x0, y0, x1, y1, score, used, policy, image, reason, full_id = HEAD.unpack_from(value)
        at = HEAD.size
        regions = struct.unpack_from(f"<{used}I", value, at) if used else ()
        at += 4 * used
        texts: list[str | None] = []
        for size in (policy, image - 1, reason - 1):
            texts.append(None if size < 0 else value[at : at + size].decode("utf-8", "surrogatepass"))
            at += max(0, size)
        if at + full_id != len(value):
            raise ValueError(f"{len(value)} bytes instead of {at + full_id}")
        example_id = (value[at:] if full_id else key).decode("utf-8", "surrogatepass")
        box = None if x0 != x0 else Box(x0, y0, x1, y1)
        return Annotation(example_id, box, score, texts[0] or "", fingerprint, regions, texts[2], texts[1])
    except (struct.error, ValueError, InputError) as error:
        raise InputError(f"the record {shown(key)} is damaged: {error}") from None


def failure(key: bytes, value: bytes) -> tuple[str, str]:
    """(example id, reason). Raises InputError for a damaged record."""
    try:
        reason, example_id = json.loads(value)
        if not isinstance(reason, str) or not isinstance(example_id, str):
            raise ValueError("expected two texts")
    except (ValueError, TypeError) as error:
        raise InputError(f"the failure {shown(key)} is damaged: {error}") from None
    return example_id, reason


def shown(key: bytes) -> str:
    """A key in a message: in quotes, escaped, not longer than a line."""
    text = key[:80].decode("utf-8", "backslashreplace")
    return repr(text) + ("..." if len(key) > 80 else "")
