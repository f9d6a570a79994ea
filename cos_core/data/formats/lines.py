"""JSON Lines, the format that loses nothing: `Store.export_jsonl` writes it, this reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.data.formats.records import Heats, ImportSource, Incoming
from cos_core.errors import InputError
from cos_core.files import jsonl
from cos_core.files.jsonl import Problem
from cos_core.store.annotations import Heat
from cos_core.types import Annotation


def fingerprint(path: Path) -> str | None:
    """The settings that made the first annotation of the file; None when it holds none."""
    for _, record in jsonl.read_lines(path, lambda problem: None):
        if isinstance(record.get("fingerprint"), str):
            return record["fingerprint"]
    return None


def read(source: ImportSource) -> Iterator[Incoming]:
    """Annotations, maps and failures of a file. Raises InputError for lines of two jobs; see `Annotation.from_json`."""
    for line, record in jsonl.read_lines(source.path, source.on_problem):
        example_id = record.get("example_id")
        try:
            incoming = _incoming(record)
            if incoming.annotation is not None:
                source.measure(incoming.annotation)
            yield incoming
        except (InputError, TypeError, ValueError) as error:
            name = example_id if isinstance(example_id, str) else None
            jsonl.report(Problem(source.path, line, name, str(error)), source.on_problem)
            continue
        if record.get("fingerprint", source.fingerprint) != source.fingerprint:
            raise InputError(
                f"{source.path}:{line}: fingerprint {record['fingerprint']!r}, before it {source.fingerprint!r}; "
                "a store holds one job: import each from a file of its own"
            )


def _incoming(record: Mapping[str, Any]) -> Incoming:
    example_id = record.get("example_id")
    if not isinstance(example_id, str) or not example_id:
        raise InputError("the line lacks `example_id`")
    if "failure" in record:
        if not isinstance(record["failure"], str):
            raise InputError("`failure` must be a text")
        return Incoming(example_id, failure=record["failure"])
    for name, kind in (("score", int | float), ("policy", str), ("fingerprint", str)):
        if not isinstance(record.get(name), kind) or isinstance(record.get(name), bool):
            raise InputError(f"`{name}` is missing or no {'number' if name == 'score' else 'text'}")
    for name in ("reason", "image"):
        if not isinstance(record.get(name), str | None):
            raise InputError(f"`{name}` must be a text")
    return Incoming(
        example_id, Annotation.from_json({**record, "score": float(record["score"])}), heat=_heat(record.get("heat"))
    )


def _heat(value: object) -> Heats | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"cells", "top"}:
        raise InputError("`heat` must be an object of `cells` and `top`")
    cells = np.asarray(value["cells"])
    if cells.ndim != 2 or cells.dtype.kind != "i" or cells.min(initial=0) < 0 or cells.max(initial=0) > 255:
        raise InputError("`heat` needs rows of whole numbers from 0 to 255")
    top = value["top"]
    if isinstance(top, bool) or not isinstance(top, int | float) or not 0 <= top < math.inf:
        raise InputError("`heat` needs its maximum, `top`")
    return Heat(cells.astype(np.uint8), float(top)).rows()
