"""Tables of texts as records: CSV, TSV, tables with semicolons, and Excel workbooks. The first row names the columns.

An empty cell is None. A row with more or fewer cells than columns, or that is not UTF-8, is a Problem, and the rest goes on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cos_core.data import foreign, sheets
from cos_core.errors import InputError
from cos_core.files.data_files import open_data
from cos_core.files.jsonl import OnProblem, Problem, report
from cos_core.files.text import one_line

_SNIFFED = 2**16


def text_rows(path: Path, on_problem: OnProblem | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line where the row begins, cells by column) of each row. Raises InputError for columns without a name or twice there."""
    return _named(path, _text(path, on_problem), on_problem)


def workbook_rows(path: Path, on_problem: OnProblem | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """`text_rows` of the first sheet of an xlsx file. Raises MissingError without the package that reads it."""
    return _named(path, sheets.workbook(path), on_problem, pads=True)


def _named(
    path: Path, rows: Iterator[tuple[int, Sequence[str]]], on_problem: OnProblem | None, pads: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    _, head = next(rows, (1, ()))
    names = [name.strip() for name in head]
    doubled = sorted({name for name in names if name and names.count(name) > 1})
    if doubled:
        raise InputError(f"{path} has two columns {one_line(doubled[0], 40)!r}")
    for line, cells in rows:
        if pads:
            cells = [*cells, *[""] * (len(names) - len(cells))]
        if len(cells) != len(names):
            report(Problem(path, line, None, f"the row has {len(cells)} cells; the table has {len(names)} columns"), on_problem)
        elif not _is_utf8(cells):
            report(Problem(path, line, None, "the row is not UTF-8"), on_problem)
        else:
            yield line, {name: cell or None for name, cell in zip(names, cells, strict=True) if name}


def _text(path: Path, on_problem: OnProblem | None) -> Iterator[tuple[int, Sequence[str]]]:
    csv.field_size_limit(max(sheets.CELL_LIMIT, csv.field_size_limit()))
    with open_data(path) as file:
        delimiter = foreign.delimiter(file.read(_SNIFFED)) or ","
    with io.TextIOWrapper(open_data(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        # Strict: a quote that is never closed would take all rows after it into one cell.
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        begun = 1
        try:
            for cells in reader:
                if cells:
                    yield begun, cells
                begun = reader.line_num + 1
        except csv.Error as error:
            reason = f"cannot be read as a row of a table: {error}; the rows after it cannot be read"
            report(Problem(path, begun, None, reason), on_problem)


def _is_utf8(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True
