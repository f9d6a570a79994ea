"""A data set written in another layout: JSON Lines of our examples, LLaVA conversations, CSV or Parquet.

JSON Lines, CSV and Parquet lose nothing: read again, they give equal examples. LLaVA conversations hold questions with an
answer only, with the first of several. Pictures that stand in a table themselves are written out as files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal

from cos_core import options
from cos_core.data.arrow_files import Pictures, UnusablePictureError
from cos_core.data.datasets import paths_of, read_records, tell
from cos_core.data.formats.parquet_files import Rows
from cos_core.errors import InputError
from cos_core.files import outputs
from cos_core.files.durable import atomic_file, atomic_write
from cos_core.files.jsonl import Problem, encode_line
from cos_core.interfaces import Reporter
from cos_core.options import INPUT, OUTPUT, REQUIRED, Files, option
from cos_core.system.arrow import pyarrow
from cos_core.types import Example

DataFormat = Literal["jsonl", "llava", "csv", "parquet"]
_ENDINGS: Mapping[str, DataFormat] = {".csv": "csv", ".parquet": "parquet"}
_COLUMNS = ("id", "dataset", "image", "question", "answers", "choices", "meta")
_LISTS = ("answers", "choices")
_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)
"""First bytes of picture files, and their ending."""


@dataclass(frozen=True, slots=True)
class DataConvertConfig:
    """The data that is read, and the file that is written; its ending says the format where `format` does not."""

    data: Files = option(REQUIRED, "Files as --data takes them.", INPUT, argument=True, metavar="FILE [FILE...]")
    out: Path = option(REQUIRED, "File to write.", OUTPUT)
    columns: str | None = options.columns_option()
    format: DataFormat | None = option(
        None,
        "llava is LLaVA's conversations, a line each.",
        OUTPUT,
        shown_default="by the ending of --out: csv, parquet, else jsonl",
    )
    pictures: Path | None = option(
        None, "Folder for pictures that stand in a table themselves; then --images of other commands.", OUTPUT
    )

    @property
    def layout(self) -> DataFormat:
        """What is written."""
        return self.format or _ENDINGS.get(self.out.suffix.lower(), "jsonl")


@dataclass(slots=True)
class Converted:
    """How many questions were written, and what was not: records that cannot be read, and questions without a place."""

    questions: int = 0
    problems: int = 0
    left_out: int = 0
    """Questions without an answer, which conversations have no place for."""
    answers_left_out: int = 0
    """Further answers of a question, likewise."""
    pictures: int = 0


def run(config: DataConvertConfig, reporter: Reporter) -> Converted:
    """Writes the data set; `out` is there in one step, or not at all. Raises InputError for data that cannot be read."""
    outputs.check_file(config.out, "data convert", paths_of(config.data), _OURS[config.layout])
    done, problems = Converted(), list[Problem]()
    pictures = _writer_of(config.pictures, done) if config.pictures is not None else None
    with atomic_file(config.out) as file, _WRITERS[config.layout](file, done) as write:
        for _, examples in read_records(config.data, problems.append, config.columns, pictures=pictures):
            done.questions += len(examples)
            write(examples)
        if not done.questions:
            tell(config.data, problems, 0, reporter)
            raise InputError(f"{config.out} would hold no question")
    done.problems = len(problems)
    tell(config.data, problems, 0, reporter)
    return done


def _writer_of(folder: Path, done: Converted) -> Pictures:
    def write(content: bytes) -> str:
        ending = "webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else _ending(content)
        if ending is None:
            raise UnusablePictureError("the picture in the row is no JPEG, PNG, WebP, GIF, BMP or TIFF file")
        digest = hashlib.sha256(content).hexdigest()[:32]
        name = f"{digest[:2]}/{digest}.{ending}"
        if not (folder / name).is_file():
            atomic_write(folder / name, content)
            done.pictures += 1
        return name

    return write


def _ending(content: bytes) -> str | None:
    return next((ending for start, ending in _KINDS if content.startswith(start)), None)


Write = Callable[[list[Example]], object]
"""Takes the examples of one record."""


@contextmanager
def _jsonl(file: BinaryIO, _done: Converted) -> Iterator[Write]:
    yield lambda examples: file.writelines(encode_line(each.to_json()) for each in examples)


@contextmanager
def _llava(file: BinaryIO, done: Converted) -> Iterator[Write]:
    def write(examples: list[Example]) -> None:
        answered = [each for each in examples if each.answers]
        done.left_out += len(examples) - len(answered)
        done.questions -= len(examples) - len(answered)
        done.answers_left_out += sum(len(each.answers) - 1 for each in answered)
        for name, group in groupby(answered, key=lambda each: each.sample or each.id):
            file.write(encode_line(_conversation(name, list(group))))

    yield write


def _conversation(name: str, examples: list[Example]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number, example in enumerate(examples):
        mark = "<image>\n" if number == 0 and example.image is not None else ""
        turns += [{"from": "human", "value": mark + example.question}, {"from": "gpt", "value": example.answers[0]}]
    own = {"sample", "turn", "index", "record_id"}
    metas = [{key: value for key, value in each.to_json()["meta"].items() if key not in own} for each in examples]
    picture = {} if examples[0].image is None else {"image": examples[0].image}
    kept = {"meta": metas} if any(metas) else {}
    return {"id": name, "dataset": examples[0].dataset, **picture, "conversations": turns, **kept}


@contextmanager
def _csv(file: BinaryIO, _done: Converted) -> Iterator[Write]:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)

    def cell(value: object) -> object:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value

    try:
        yield lambda examples: rows.writerows([[cell(each.to_json()[key]) for key in _COLUMNS] for each in examples])
    finally:
        text.detach()


@contextmanager
def _parquet(file: BinaryIO, _done: Converted) -> Iterator[Write]:
    text = pyarrow().string()
    schema = pyarrow().schema([(key, pyarrow().list_(text) if key in _LISTS else text) for key in _COLUMNS])
    with Rows(file, schema) as rows:

        def write(examples: list[Example]) -> None:
            for each in examples:
                row = each.to_json()
                rows.add({**row, "meta": json.dumps(row["meta"], ensure_ascii=False)})

        yield write


_WRITERS = {"jsonl": _jsonl, "llava": _llava, "csv": _csv, "parquet": _parquet}
_OURS: Mapping[str, outputs.IsOurs | None] = {
    "jsonl": outputs.records_with("id", "dataset", "question"),
    "llava": outputs.records_with("id", "dataset", "conversations"),
    "csv": outputs.beginning(",".join(_COLUMNS).encode()),
    "parquet": None,
}
