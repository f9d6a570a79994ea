"""The layouts of data files, told apart by their content: which reader yields the records of a file.

A reader gives (line or row from 1, record) of each record, in the keys that the file has; records.py says what a record means.
A layout that is not among LAYOUTS is JSON, in any mixture of lists and lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.data import arrow_files, foreign, tables, vqa
from cos_core.files.big_json import Records
from cos_core.files.data_files import is_packed, open_data
from cos_core.files.jsonl import OnProblem, Place, Problem, report

Rows = Iterator[tuple[int, dict[str, Any]]]
"""(line of the file or row of a binary table, from 1; the record) of each record."""
JSON = "JSON records"
"""The layout of a file that is none of LAYOUTS."""
_SNIFFED = 2**16


@dataclass(slots=True)
class Reading:
    """What readers of one data set share."""

    on_problem: OnProblem | None = None
    answers: vqa.Answers | None = None
    """Of the data set's files of VQA annotations."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`fits` sees the path and the first bytes, unpacked; `rows` streams the records."""

    name: str
    fits: Callable[[Path, bytes], bool]
    rows: Callable[[Path, Reading], Rows]


def _workbook(path: Path, reading: Reading) -> Rows:
    return tables.workbook_rows(path, reading.on_problem)


def _texts(path: Path, reading: Reading) -> Rows:
    return tables.text_rows(path, reading.on_problem)


def _table(path: Path, _reading: Reading) -> Rows:
    return arrow_files.rows(path)


def _questions(path: Path, reading: Reading) -> Rows:
    return vqa.rows(path, reading.answers, reading.on_problem)


def _annotations(_path: Path, _reading: Reading) -> Rows:
    return iter(())


ANNOTATIONS = Layout("VQA annotations", lambda path, start: vqa.list_of(path, start) == vqa.ANNOTATIONS, _annotations)
"""Holds no records: the answers of VQA questions."""
_QUESTIONS = Layout("VQA questions", lambda path, start: vqa.list_of(path, start) == vqa.QUESTIONS, _questions)
ARROW = Layout("Parquet or Arrow table", lambda _, start: arrow_files.is_table(start), _table)
"""Its values are pyarrow's: arrow_files.with_paths."""
_BINARY: tuple[Layout, ...] = (
    ARROW,
    Layout("Excel workbook", foreign.is_workbook, _workbook),
)
_TEXT: tuple[Layout, ...] = (
    _QUESTIONS,
    ANNOTATIONS,
    Layout("table of texts", lambda _, start: foreign.delimiter(start) is not None, _texts),
)
LAYOUTS = (*_BINARY, *_TEXT)


def layout_of(path: Path) -> Layout | None:
    """The layout of a file; None for JSON. Raises InputError for a file that holds no records at all."""
    with open_data(path) as file:
        start = file.read(_SNIFFED)
    found = next((layout for layout in _BINARY if layout.fits(path, start)), None)
    if found is not None:
        return found
    foreign.refuse(path, start)
    return next((layout for layout in _TEXT if layout.fits(path, start)), None)


class DataFile:
    """The records of one file with their places.

    `place.row` goes on from `row`, and `self.row` is the number of the next record when the file has been read. Only where
    `is_seekable` do places have an offset and a length in the file.
    """

    def __init__(self, path: Path, row: int, reading: Reading, layout: Layout | None) -> None:
        self.path, self.row, self.layout, self._reading = path, row, layout, reading

    def __iter__(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        if self.layout is not None:
            for line, record in self.layout.rows(self.path, self._reading):
                place = Place(line, self.row, 0, 0)
                self.row += 1
                yield place, record
            return
        records = Records(self.path, self._reading.on_problem, self.row)
        if not records.start:
            report(Problem(self.path, None, None, "the file is empty"), self._reading.on_problem)
        yield from records
        self.row = records.row


def is_seekable(path: Path) -> bool:
    """Whether single records of the file can be read again by their offset: those of plain JSON."""
    return layout_of(path) is None and not is_packed(path)
