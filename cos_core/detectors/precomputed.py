"""Regions with features that were computed before, in the public layouts of bottom-up attention (Anderson et al., 2018).

  DIR/*.npz   one file a picture: `x` features (n, d), or (d, n) as the Caffe tool wrote them, `bbox` (n, 4), `num_bbox`,
              `image_w`, `image_h`
              (MILVLG/bottom-up-attention.pytorch; peteanderson80/bottom-up-attention tools/extract_feature_to_npz.py)
  FILE.tsv    one line a picture, tab-separated without a header, arrays in base64:
              image_id image_w image_h num_boxes boxes features      (peteanderson80/bottom-up-attention tools/generate_tsv.py)
              img_id img_h img_w objects_id objects_conf attrs_id attrs_conf num_boxes boxes features       (airsplay/lxmert)
Boxes are float32 x0 y0 x1 y1 in pixels of the original picture, features float32. No confidences stand in the first and second
layout outside of a pickled object, which is not read: they count as 1.

Files are not trusted: no pickle is loaded, sizes are checked before anything is allocated, a line is read when its
picture is asked for. A TSV file is walked once, when it is opened, to learn where its lines begin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar

import numpy as np

from cos_core.errors import InputError
from cos_core.files.jsonl import open_input
from cos_core.geometry import Box, clipped
from cos_core.interfaces import Detector
from cos_core.types import Regions

if TYPE_CHECKING:
    from PIL.Image import Image

LAYOUTS: Mapping[int, tuple[str, ...]] = {
    6: ("id", "width", "height", "count", "boxes", "features"),
    10: ("id", "height", "width", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "count", "boxes", "features"),
}
"""Columns of a TSV file, by their number."""

MOST_BYTES = 2**26
"""A picture's record may not be larger than this (64 MiB; 100 boxes of 2048 numbers take 1.1 MiB as base64)."""
MOST_BOXES = 4096
_BLOCK = 2**20
_LONGEST_ID = 1024
_NAMED = 3
_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)")


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """One picture's regions as they stand in a file.

    `where`: file and line, for messages; `size`: width and height of the picture they were computed from, in pixels, None where
    the file does not tell. `boxes`: (n, 4) in those pixels; `features`: (n, d); `confidence`: (n,).
    """

    where: str
    size: tuple[float, float] | None
    boxes: np.ndarray
    features: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of .npz files: `a/b.jpg` is looked for as `a/b.npz`, then as `b.npz`."""

    path: Path
    notes: ClassVar[tuple[str, ...]] = ()

    @property
    def layout(self) -> str:
        return "npz"

    def record(self, image: str) -> FeatureRow:
        """Raises InputError when there is no file for the image, or none that can be used."""
        relative = PurePosixPath(image).with_suffix(".npz") if PurePosixPath(image).name else PurePosixPath(".npz")
        if relative.is_absolute() or ".." in relative.parts:
            raise InputError(f"the image path {image[:200]!r} leaves the folder of features {self.path}")
        for candidate in dict.fromkeys((self.path / relative, self.path / relative.name)):
            if candidate.is_file():
                return _read_npz(candidate)
        raise InputError(f"there are no features for the image {image!r}: {self.path} has no {relative}")

    @property
    def mark(self) -> str:
        """Changes with the names and sizes of the files."""
        digest = hashlib.sha256()
        for name, size in sorted((str(p.relative_to(self.path)), p.stat().st_size) for p in self.path.rglob("*.npz")):
            digest.update(f"{name}:{size}\n".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """A TSV file. `places`: where the line of each id begins, and its number; of lines with the same id the first whole one
    counts, which `notes` tell of.

    An image is found by its path without the ending, its name without the ending, or the number that COCO's names end with:
    `train2014/COCO_train2014_000000000009.jpg` and `000000000009.jpg` are both image 9.
    """

    path: Path
    columns: int
    places: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...] = ()

    def record(self, image: str) -> FeatureRow:
        """Raises InputError when there is no line for the image, or none that can be used."""
        bare = str(PurePosixPath(image).with_suffix("")) if PurePosixPath(image).name else image
        name = PurePosixPath(bare).name
        number = _COCO.fullmatch(name)
        for key in (bare, name, *([number[1]] if number else [])):
            if key in self.places:
                offset, line = self.places[key]
                return self.read(offset, line)
        raise InputError(f"there are no features for the image {image!r} in {self.path}: no line has the id {name!r}")

    def read(self, offset: int, line: int) -> FeatureRow:
        """The line that begins at `offset`. Raises InputError when it is not whole."""
        where = f"{self.path}:{line}"
        with self.path.open("rb") as file:
            file.seek(offset)
            text = file.readline(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"{where}: the line is longer than {MOST_BYTES >> 20} MiB")
        values = text.rstrip(b"\r\n").split(b"\t")
        if len(values) != self.columns:
            raise InputError(f"{where}: {len(values)} columns, but the file's first line has {self.columns}")
        row = dict(zip(LAYOUTS[self.columns], values, strict=True))
        width, height, count = (_whole(row[name], name, where) for name in ("width", "height", "count"))
        if not 0 <= count <= MOST_BOXES:
            raise InputError(f"{where}: {count} boxes (at most {MOST_BOXES})")
        boxes = _floats(row["boxes"], count, 4, "boxes", where)
        features = _floats(row["features"], count, None, "features", where)
        known = "objects_conf" in row
        confidence = _floats(row["objects_conf"], count, 1, "objects_conf", where)[:, 0] if known else np.ones(count)
        return FeatureRow(where, (width, height), boxes, features, confidence)

    @property
    def layout(self) -> str:
        return f"tsv of {self.columns} columns"

    @property
    def mark(self) -> str:
        """Changes with the file's size, its first line and where its lines begin."""
        with self.path.open("rb") as file:
            digest = hashlib.sha256(file.read(_BLOCK))
        for key, (offset, _) in self.places.items():
            digest.update(f"{key}:{offset}\n".encode())
        digest.update(str(self.path.stat().st_size).encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Precomputed(Detector):
    """Made by `build`."""

    source: Folder | FeatureTable
    settings: Mapping[str, Any] = field(default_factory=dict)
    parallel: ClassVar[bool] = True

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Detector."""
        return self.source.notes

    def detect(self, image: Image, path: str = "") -> Regions:
        """What the files say of the picture at `path`; boxes of more than a pixel outside of it are refused.

        The file's own size of the picture is the boxes' frame. It must have the picture's shape: features of a picture that
        was turned or cut since do not belong to it. Raises InputError, one sentence with file and line.
        """
        if not path:
            raise InputError("precomputed features are found by the picture's path, and this picture has none")
        record = self.source.record(path)
        size = record.size or image.size
        _check_shape(size, image.size, record.where)
        boxes = tuple(_box(row, size, f"{record.where}: box {i}") for i, row in enumerate(record.boxes.tolist()))
        return Regions(boxes, tuple(record.confidence.tolist()), record.features)


def build(path: str | None = None) -> Precomputed:
    """`path`: a folder of .npz files, or a .tsv file. Raises InputError when it is neither."""
    if path is None:
        raise InputError("the detector 'precomputed' needs path=FOLDER (of .npz files) or path=FILE.tsv")
    where = Path(path)
    if where.is_dir():
        source: Folder | FeatureTable = Folder(where)
    elif where.is_file():
        source = _table(where)
    else:
        raise InputError(f"there are no features at {where}: no such folder or file")
    # A moved folder holds the same features.
    return Precomputed(source, {"layout": source.layout, "files": source.mark})


# --- TSV ---


def _table(path: Path) -> FeatureTable:
    """Walks the file once. Raises InputError unless its first line has a known number of columns."""
    places: dict[str, tuple[int, int]] = {}
    doubled: dict[str, list[tuple[int, int]]] = {}
    with open_input(path) as file:
        first = file.readline(MOST_BYTES + 1)
        columns = first.count(b"\t") + 1
        if columns not in LAYOUTS or len(first) > MOST_BYTES:
            raise InputError(
                f"{path}:1: not a known layout of features: {columns} tab-separated columns, where bottom-up attention has "
                "6 and LXMERT has 10"
            )
        file.seek(0)
        for line, (offset, start) in enumerate(_line_starts(file), 1):
            key, tab, _ = start.partition(b"\t")
            # A line without a tab names no picture; the picture it was meant for will be missed by its name.
            if tab:
                text = key.decode("utf-8-sig" if line == 1 else "utf-8", "replace").strip()
                name = str(int(text)) if text.isascii() and text.isdigit() else text
                if name in places:
                    doubled.setdefault(name, [places[name]]).append((offset, line))
                else:
                    places[name] = (offset, line)
    return _first_whole(FeatureTable(path, columns, places), doubled)


def _first_whole(table: FeatureTable, doubled: Mapping[str, Sequence[tuple[int, int]]]) -> FeatureTable:
    """The table with the first whole line of each id that has several, and a note on them."""
    places = dict(table.places)
    torn: list[str] = []
    other: list[str] = []
    for name, lines in doubled.items():
        records = [(place, _whole_record(table, *place)) for place in lines]
        # A line that is torn between two numbers reads as one of fewer features.
        most = max((record.features.shape[1] for _, record in records if record is not None), default=0)
        whole = [(place, record) for place, record in records if record is not None and record.features.shape[1] == most]
        if not whole:
            continue
        (place, first), *rest = whole
        places[name] = place
        if place != lines[0]:
            torn.append(f"{name!r} (line {place[1]} for line {lines[0][1]})")
        if not all(_same(first, record) for _, record in rest):
            other.append(f"{name!r} (lines {', '.join(str(line) for _, line in lines)})")
    notes = []
    if doubled:
        listed = ", ".join(
            f"{name!r} (lines {', '.join(str(line) for _, line in doubled[name])})" for name in [*doubled][:_NAMED]
        )
        notes.append(f"{table.path}: {len(doubled)} images have several lines, of which the first whole one counts: {listed}")
    for names, words in ((torn, "a whole line counts for a torn one before it"), (other, "the lines do not say the same")):
        if names:
            notes.append(f"{table.path}: for {len(names)} of them {words}: {', '.join(names[:_NAMED])}")
    return replace(table, places=places, notes=tuple(notes))


def _whole_record(table: FeatureTable, offset: int, line: int) -> FeatureRow | None:
    try:
        return table.read(offset, line)
    except InputError:
        return None


def _same(a: FeatureRow, b: FeatureRow) -> bool:
    return a.size == b.size and np.array_equal(a.boxes, b.boxes) and np.array_equal(a.features, b.features)


def _line_starts(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(offset, first _LONGEST_ID bytes) of each line; one block in memory, however long the lines are."""
    offset, head, position = 0, b"", 0
    while block := file.read(_BLOCK):
        place = 0
        while (end := block.find(b"\n", place)) >= 0:
            yield offset, (head + block[place : min(end, place + _LONGEST_ID)])[:_LONGEST_ID]
            place, offset, head = end + 1, position + end + 1, b""
        head = (head + block[place : place + _LONGEST_ID])[:_LONGEST_ID]
        position += len(block)
    if head:
        yield offset, head


def _whole(text: bytes, name: str, where: str) -> int:
    value = text.strip()
    if not value.isdigit() or len(value) > 9:
        raise InputError(f"{where}: {name} should be a whole number, found {value[:20].decode('utf-8', 'replace')!r}")
    return int(value)


def _floats(text: bytes, rows: int, columns: int | None, name: str, where: str) -> np.ndarray:
    """(rows, columns) of float32 numbers out of base64; `columns` None: as many as there are."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise InputError(f"{where}: {name} is not base64") from None
    if columns is None:
        columns = len(data) // (4 * rows) if rows else 0
    if len(data) != 4 * rows * columns:
        raise InputError(f"{where}: {name} has {len(data)} bytes, which are not float32 numbers for {rows} boxes")
    return np.frombuffer(data, "<f4").reshape(rows, columns)


# --- NPZ ---


def _read_npz(path: Path) -> FeatureRow:
    """Raises InputError for a file that is no such archive, would run code, or unpacks to more than MOST_BYTES."""
    try:
        with zipfile.ZipFile(path) as archive:
            boxes, features = _array(archive, "bbox", path), _array(archive, "x", path)
            width, height, count = (_number(archive, name, path) for name in ("image_w", "image_h", "num_bbox"))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable .npz file: {str(error)[:120]}") from None
    if features.ndim == 2 and len(features) != len(boxes) and features.shape[1] == len(boxes):
        features = features.T
    if boxes.ndim != 2 or boxes.shape[1] != 4 or features.ndim != 2 or not len(features) == len(boxes) <= MOST_BOXES:
        raise InputError(f"{path}: bbox of shape {boxes.shape} and x of shape {features.shape} are not boxes with features")
    if count is not None and count != len(boxes):
        raise InputError(f"{path}: num_bbox is {count:g}, but there are {len(boxes)} boxes")
    size = None if width is None or height is None else (width, height)
    return FeatureRow(str(path), size, boxes, features, np.ones(len(boxes)))


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    """One member as float32. What its header promises is compared with its size before memory is taken."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise InputError(f"{path}: has no array {name!r}") from None
    with archive.open(info) as member:
        try:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
            start = member.tell()
        except ValueError as error:
            raise InputError(f"{path}: the array {name!r} cannot be read: {str(error)[:120]}") from None
    if dtype.kind not in "fiu":
        raise InputError(f"{path}: the array {name!r} holds no plain numbers, and nothing else is loaded")
    promised = dtype.itemsize * int(np.prod(shape, dtype=object))
    if info.file_size > MOST_BYTES:
        raise InputError(f"{path}: the array {name!r} unpacks to {info.file_size} bytes (at most {MOST_BYTES})")
    if promised != info.file_size - start:
        raise InputError(f"{path}: the array {name!r} claims {promised} bytes, but is stored with {info.file_size - start}")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False).astype(np.float32, copy=False)


def _number(archive: zipfile.ZipFile, name: str, path: Path) -> float | None:
    if f"{name}.npy" not in archive.namelist():
        return None
    value = _array(archive, name, path)
    if value.size != 1:
        raise InputError(f"{path}: {name} should be one number, found shape {value.shape}")
    return float(value.reshape(()))


# --- checks ---


def _check_shape(size: tuple[float, float], picture: tuple[int, int], where: str) -> None:
    """The file's picture may have been larger or smaller, not of another shape (beyond the rounding of a pixel)."""
    if not all(math.isfinite(side) and side >= 1 for side in size):
        raise InputError(f"{where}: a picture of {size[0]:g}x{size[1]:g} pixels does not exist")
    if abs(picture[0] * size[1] / (picture[1] * size[0]) - 1) > 1 / min(*size, *picture) + 1e-6:
        raise InputError(
            f"{where}: features of a picture of {size[0]:g}x{size[1]:g} pixels, but this one has {picture[0]}x{picture[1]}; "
            "was it turned or cut?"
        )


def _box(row: list[float], size: tuple[float, float], where: str) -> Box:
    """Pixels to frame "image"."""
    (x0, y0, x1, y1), (width, height) = row, size
    # At most a pixel outside, with some area inside; a comparison with NaN is False.
    if -1 <= x0 < min(x1, width) and -1 <= y0 < min(y1, height) and 0 < x1 <= width + 1 and 0 < y1 <= height + 1:
        return clipped(x0 / width, y0 / height, x1 / width, y1 / height, "image")
    raise InputError(f"{where} has corners {x0:g}, {y0:g}, {x1:g}, {y1:g}, not inside a picture of {width:g}x{height:g} pixels")
