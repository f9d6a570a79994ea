"""Parquet: the layout in which regions are published. `datasets.load_dataset` opens the folder; a dataset card lies in it.

One row an annotation, those without a box too. The columns are those of `COLUMNS`; the schema's metadata has the key `cos`, a
JSON object with the frame and unit of the boxes, the version of cos, fingerprint and settings. Boxes are float64: a store keeps
them so, and nothing less reads back equal to the bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cos_core
from cos_core.data.formats import parquet_files
from cos_core.data.formats.parquet_files import files_of, opened
from cos_core.data.formats.records import IMPORTED, ImportSource, Incoming
from cos_core.errors import InputError
from cos_core.files.jsonl import Problem, decode, report
from cos_core.geometry import Box
from cos_core.store.annotations import Heat
from cos_core.system.arrow import pyarrow
from cos_core.types import Annotation, Example

COLUMNS: Mapping[str, str] = {
    "id": "the example's id, unique",
    "question": "the question; null where the export was made without the questions' file",
    "answer": "its first accepted answer, or null",
    "image": "the picture's path, relative to the picture folder",
    "box": "the region: left, top, right, bottom in fractions of the upright picture, float64; null where there is none",
    "score": "the relevance of the region, comparable within one fingerprint",
    "policy": "the rule that made the region",
    "regions_used": "the numbers of the detector's regions that it was made from",
    "reason": "why there is no box, or what sets this one apart; null for the others",
    "fingerprint": "a digest of the settings that made the row",
}
HEAT_COLUMNS: Mapping[str, str] = {
    "heat": "the relevance map over the picture padded to a square: uint8 cells row by row, 255 for the maximum; or null",
    "heat_rows": "its number of rows",
    "heat_columns": "its number of columns",
    "heat_top": "its maximum, for which 255 stands",
}
FRAME = {"frame": "image", "unit": "fraction", "order": "x0y0x1y1", "picture": "upright, after its EXIF orientation"}
"""What the numbers of `box` are, in the metadata."""
_KEY = b"cos"
_REPEATED = ("image", "policy", "reason", "fingerprint", "question", "answer")
_NOT_STORED = ("id", "question", "answer")
_PAGE = 2048


@dataclass(slots=True)
class Written:
    """What an export wrote: rows, of these `boxed` with a box, `heats` with a map, `asked` with a question; how many files.

    `refused`: rows that parquet cannot hold.
    """

    rows: int = 0
    boxed: int = 0
    heats: int = 0
    asked: int = 0
    files: int = 0
    refused: int = 0


def published(settings: Any) -> Any:
    """Settings for others: absolute paths, which name a machine and its users, are cut to their last part."""
    if isinstance(settings, Mapping):
        return {key: published(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [published(value) for value in settings]
    if isinstance(settings, str) and Path(settings).is_absolute():
        return Path(settings).name
    return settings


def schema(info: Mapping[str, Any], heats: bool) -> Any:
    """The pyarrow schema of an export; `info`: Store.info()."""
    arrow = pyarrow()
    text = arrow.string()
    types = {"box": arrow.list_(arrow.float64()), "score": arrow.float64(), "regions_used": arrow.list_(arrow.uint32())}
    types |= {"heat": arrow.binary(), "heat_rows": arrow.int32(), "heat_columns": arrow.int32(), "heat_top": arrow.float64()}
    names = (*COLUMNS, *(HEAT_COLUMNS if heats else ()))
    kept = {**FRAME, "version": cos_core.__version__, "fingerprint": info["fingerprint"], "settings": info["provenance"]}
    return arrow.schema([(name, types.get(name, text)) for name in names], {_KEY: json.dumps(kept, sort_keys=True).encode()})


def write(
    folder: Path,
    pairs: Iterable[tuple[Annotation, Example | None]],
    info: Mapping[str, Any],
    heat_of: Callable[[str], Heat | None] | None,
    on_problem: Callable[[str, str], None],
) -> Written:
    """The rows, as they come, in files of the folder `folder`, which is replaced whole.

    `heat_of`: the map of an example; None leaves maps out. `on_problem` takes the id and the reason of a row that parquet
    cannot hold, which is left out. Raises InputError when the disk refuses, MissingError without pyarrow.
    """
    written = Written()
    with parquet_files.shards(folder, schema(info, heat_of is not None), _REPEATED) as out:
        for annotation, example in pairs:
            heat = heat_of(annotation.example_id) if heat_of is not None else None
            row = _row(annotation, example, heat)
            if (name := _half(row)) is not None:
                written.refused += 1
                on_problem(annotation.example_id, f"`{name}` holds half a character, which parquet cannot hold")
                continue
            out.add(row, 0 if heat is None else heat.cells.size)
            written.boxed += annotation.box is not None
            written.heats += heat is not None
            written.asked += example is not None
    written.rows, written.files = out.count, out.files
    return written


def _row(annotation: Annotation, example: Example | None, heat: Heat | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": annotation.example_id,
        "question": example.question if example else None,
        "answer": example.answers[0] if example and example.answers else None,
        "image": example.image if annotation.image is None and example else annotation.image,
        "box": None if annotation.box is None else annotation.box.corners,
        "score": float(annotation.score),
        "policy": annotation.policy,
        "regions_used": annotation.regions_used,
        "reason": annotation.reason,
        "fingerprint": annotation.fingerprint,
    }
    if heat is not None:
        rows, columns = heat.cells.shape
        row |= {"heat": heat.cells.tobytes(), "heat_rows": rows, "heat_columns": columns, "heat_top": heat.top}
    return row


def _half(row: Mapping[str, Any]) -> str | None:
    """The column with a text that is no UTF-8; None where all are."""
    for name, value in row.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return name
    return None


# --- reading ---


def stated(path: Path) -> tuple[str | None, Mapping[str, Any]]:
    """Fingerprint and provenance in a file's metadata, else the first row's fingerprint; None for a file of others.

    Raises InputError for a file that is no parquet, or whose boxes are in another frame than a store's."""
    with opened(files_of(path)[0]) as file:
        kept = (file.schema_arrow.metadata or {}).get(_KEY)
        if kept is None and "fingerprint" in file.schema_arrow.names:
            first = next(file.iter_batches(1, columns=["fingerprint"]), None)
            mark = first.column(0)[0].as_py() if first is not None else None
            return (mark if isinstance(mark, str) else None), {}
    if kept is None:
        return None, {}
    try:
        data = decode(kept)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{path}: its metadata `cos` is no JSON object")
    for name, value in FRAME.items():
        if data.get(name, value) != value:
            raise InputError(f"{path}: its boxes have {name} {data[name]!r}; a store holds {value!r}")
    mark, settings = data.get("fingerprint"), data.get("settings")
    return (mark if isinstance(mark, str) else None), (settings if isinstance(settings, dict) else {})


def read(source: ImportSource) -> Iterator[Incoming]:
    """The rows of a file, or of all files of an export's folder; rows are named by their number, from 1.

    Needed are `id` (or `example_id`) and `box`; of the other columns those that are there are taken. What does not fit goes to
    `source.on_problem`. Raises InputError for a file without these columns, and for rows of two jobs.
    """
    for path in files_of(source.path):
        with opened(path) as file:
            names = set(file.schema_arrow.names)
            key = next((name for name in ("id", "example_id") if name in names), None)
            if key is None or "box" not in names:
                raise InputError(f"{path} needs the columns `id` and `box`; it has {', '.join(sorted(names)[:20])}")
            wanted = [key, *(name for name in (*COLUMNS, *HEAT_COLUMNS) if name in names and name not in _NOT_STORED)]
            place = 0
            for batch in file.iter_batches(_PAGE, columns=wanted):
                for row in batch.to_pylist():
                    place += 1
                    incoming = _incoming(row, key, path, place, source)
                    if incoming is not None:
                        yield incoming


def _incoming(row: Mapping[str, Any], key: str, path: Path, place: int, source: ImportSource) -> Incoming | None:
    name = row[key] if isinstance(row[key], str) and row[key] else None
    try:
        if name is None:
            raise InputError(f"`{key}` must be a text")
        annotation, heat = _annotation(name, row, source.fingerprint), _heat(row)
    except (InputError, TypeError, ValueError) as error:
        report(Problem(path, place, name, str(error)), source.on_problem)
        return None
    if annotation.fingerprint != source.fingerprint:
        raise InputError(
            f"{path}:{place}: fingerprint {annotation.fingerprint!r}, before it {source.fingerprint!r}; "
            "a store holds one job: import each from a file of its own"
        )
    source.measure(annotation)
    return Incoming(name, annotation, heat=heat)


def _annotation(name: str, row: Mapping[str, Any], mark: str) -> Annotation:
    for column in ("policy", "reason", "image", "fingerprint"):
        if not isinstance(row.get(column), str | None):
            raise InputError(f"`{column}` must be a text")
    box = row["box"]
    if box is not None:
        if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) and math.isfinite(v) for v in box):
            raise InputError(f"`box` must be four numbers (left, top, right, bottom in fractions), got {str(box)[:80]}")
        box = Box(float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    score = row.get("score", 0.0)
    if type(score) not in (int, float):
        raise InputError("`score` must be a number")
    used = row.get("regions_used") or ()
    if not all(type(v) is int and v >= 0 for v in used):
        raise InputError("`regions_used` must be whole numbers from 0")
    policy, reason = row.get("policy"), row.get("reason")
    return Annotation(
        name,
        box,
        float(score),
        IMPORTED if policy is None else policy,
        mark if row.get("fingerprint") is None else row["fingerprint"],
        tuple(used),
        "no box in the file" if box is None and not reason else reason,
        row.get("image"),
    )


def _heat(row: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    cells, shape, top = row.get("heat"), (row.get("heat_rows"), row.get("heat_columns")), row.get("heat_top")
    if cells is None:
        return None
    rows, columns = shape
    fits = isinstance(cells, bytes) and type(rows) is int and type(columns) is int and min(rows, columns) > 0
    if not fits or rows * columns != len(cells):  # type: ignore[operator]
        raise InputError("`heat` must hold heat_rows x heat_columns bytes")
    if type(top) not in (int, float) or not 0 <= top < math.inf:  # type: ignore[operator]
        raise InputError("`heat` needs its maximum, `heat_top`")
    return Heat(np.frombuffer(cells, np.uint8).reshape(rows, columns), float(top)).rows()  # type: ignore[arg-type]
