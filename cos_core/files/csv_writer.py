"""CSV files: the one writer of all that hold text from data, safe to open in a spreadsheet.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end for a formula, and runs it. Such a text
gets an apostrophe in front, which shows it as text; a number stays a number. Controls and half characters become U+FFFD.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cos_core.files.durable import atomic_file
from cos_core.files.text import printable

_RUN = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def cell(value: object) -> object:
    """`value` as it may stand in a cell; None is an empty one."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    # A lone carriage return is written without quotes and would end the row.
    text = printable(str(value)).replace("\r\n", "\n").replace("\r", "\n")
    # Spreadsheets pass over spaces in front; a "+" or "-" of a number begins no formula.
    runs = text.startswith(("\t", "\n")) or text.lstrip().startswith(_RUN)
    return f"'{text}" if runs and not _NUMBER.fullmatch(text) else text


def write(path: Path, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table whole or not at all, row by row. Raises InputError."""
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([cell(value) for value in head])
        writer.writerows([cell(value) for value in row] for row in rows)
        text.flush()
        text.detach()
