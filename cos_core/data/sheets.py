"""Tables of texts from spreadsheets (xlsx) and from text files (csv, tsv), row by row.

Nothing in a workbook is run: of a formula the value that stands beside it is taken, links lead nowhere, macros are passed over.
What a workbook unpacks to is bounded before anything is parsed, and a document type definition, which no workbook has, is
refused: entities that grow when they are expanded stand there.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from cos_core.errors import InputError, MissingError
from cos_core.files.jsonl import open_input
from cos_core.files.plug import nearest
from cos_core.files.text import one_line
from cos_core.system.extras import install

MISSING = frozenset(("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"))
MISSING |= {"", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""What pandas reads as a missing value (the default `na_values` of read_csv and read_excel)."""

ZIP = b"PK\x03\x04"
"""The first bytes of an xlsx file."""

MAX_BYTES = 128 * 2**20
"""The most that the parts of a workbook may unpack to, together."""

MAX_PARTS = 1_000
MAX_TAGS = 5_000_000
"""Of XML, in all parts of a workbook: each takes memory, however short it is. A cell has up to eight."""

MAX_CELLS = 5_000_000
"""Of a workbook's sheet, empty ones between others included."""

MAX_TEXT = 256 * 2**20
"""Characters of a workbook's sheet: any number of cells may show one text of the workbook."""

_LONGEST_MARK = 2**16
"""Of XML, in bytes."""

CELL_LIMIT = 64 * 2**20
"""Characters of one cell in a text file."""

_NAMED = 30
"""How many of a sheet's columns a message looks at."""

_START = 2**10
_CHUNK = 2**20
_LONG_RUN = re.compile(rb"<(?![!?])[^<]{%d,}" % _LONGEST_MARK)
_TAG = re.compile(rb"<(?:[^>\"']++|\"[^\"]*+(?:\"|$)|'[^']*+(?:'|$))*+")
_DECLARED = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_ENCODING = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)")

Row = dict[str, str]
"""Column -> text; columns whose cell is empty are left out."""

# What openpyxl raises on a file that is damaged is not declared.
_DAMAGED = (
    zipfile.BadZipFile, zlib.error, ParseError, KeyError, ValueError, TypeError, IndexError, AttributeError, OSError, EOFError,
    NotImplementedError, RuntimeError,
)  # fmt: skip


def read(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
    """(line or row number from 1, cells) of each row below the head, which names the columns.

    The file is a workbook when it begins as one, else text with tabs where its first line holds one, else with commas. Raises
    InputError: not a table, without a column of `needed`, or too large; MissingError without the package that reads workbooks.
    """
    with open_input(path) as file:
        if file.peek(len(ZIP)).startswith(ZIP):
            yield from _rows(path, _workbook(path, file), needed)
            return
        yield from _rows(path, _text(path, file), needed)


def workbook(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """(row number from 1, texts of the cells) of each row of the first sheet that is not empty; raises as `read` does."""
    with open_input(path) as file:
        yield from _workbook(path, file)


def check_columns(path: Path, columns: Iterable[object], needed: Sequence[str]) -> None:
    """Raises InputError when a column of `needed` is not among `columns`; the one that was probably meant is named."""
    names = [one_line(name, 40) for name in columns if name]
    for missing in needed:
        if missing not in names:
            raise InputError(f"{path} has no column {missing!r}{nearest(missing, names[:_NAMED])}")


def _rows(path: Path, lines: Iterable[tuple[int, Sequence[str]]], needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    head: Sequence[str] | None = None
    for number, cells in lines:
        if head is None:
            head = [cell.strip() for cell in cells]
            doubled = sorted({name for name in head if name and head.count(name) > 1})
            if doubled:
                raise InputError(f"{path} has two columns {one_line(doubled[0], 40)!r}")
            check_columns(path, head, needed)
            continue
        yield number, {name: cell for name, cell in zip(head, cells, strict=False) if name and cell}


def _text(path: Path, file: Any) -> Iterator[tuple[int, Sequence[str]]]:
    csv.field_size_limit(max(CELL_LIMIT, csv.field_size_limit()))
    first = file.peek(_CHUNK).split(b"\n", 1)[0]
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            # Strict: a quote that is never closed would take all rows after it into one cell.
            reader = csv.reader(text, delimiter="\t" if b"\t" in first else ",", strict=True)
            begun = 1
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
                begun = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}:{begun} cannot be read as a row of a table: {error}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None


def _workbook(path: Path, file: Any) -> Iterator[tuple[int, Sequence[str]]]:
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError:
        raise MissingError(f"{path} is an xlsx file; {install('sheets')}") from None
    try:
        with zipfile.ZipFile(file) as archive:
            _check(path, archive)
        book = load_workbook(file, read_only=True, data_only=True, keep_links=False, keep_vba=False)
        try:
            yield from _sheet(path, book)
        finally:
            book.close()
    except _DAMAGED as error:
        raise InputError(f"{path} cannot be read as a workbook: {one_line(str(error) or type(error).__name__, 120)}") from None


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises InputError for a workbook that unpacks to too much, or that declares entities."""
    parts = archive.infolist()
    unpacked = sum(part.file_size for part in parts)
    if len(parts) > MAX_PARTS or unpacked > MAX_BYTES:
        raise InputError(
            f"{path} unpacks to {unpacked >> 20:,} MiB in {len(parts):,} parts; at most {MAX_BYTES >> 20} MiB in {MAX_PARTS:,} "
            "are read; save the sheet as tsv"
        )
    tags = 0
    for part in parts:
        # Any part may be the sheet, whatever it is called. None is longer than its entry says: zipfile stops there.
        with archive.open(part) as file:
            content = file.read()
        if not _is_ascii_like(content[:_START]):
            raise InputError(f"{path}: {part.filename} is text in another encoding than UTF-8; save the sheet as tsv")
        if _DECLARED.search(content):
            raise InputError(f"{path}: {part.filename} declares a document type, which no workbook needs; it is not read")
        tags += content.count(b"<")
        if tags > MAX_TAGS:
            raise InputError(f"{path} has more than {MAX_TAGS:,} cells and marks; save the sheet as tsv")
        if _has_long_mark(content):
            raise InputError(f"{path}: {part.filename} has a mark of more than {_LONGEST_MARK:,} bytes; save the sheet as tsv")


def _has_long_mark(content: bytes) -> bool:
    """Whether a part that may be XML has a tag, a comment or an instruction longer than `_LONGEST_MARK`.

    The parser begins again at the start of an unfinished mark with every piece of the file that it gets: the time that a mark
    takes grows with the square of its length.
    """
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return False
    for opening, closing in ((b"<!--", b"-->"), (b"<?", b"?>")):
        begin = content.find(opening)
        while begin >= 0:
            end = content.find(closing, begin)
            if (len(content) if end < 0 else end) - begin > _LONGEST_MARK:
                return True
            begin = content.find(opening, begin + len(opening))
    return any(len(_TAG.match(run[0])[0]) > _LONGEST_MARK for run in _LONG_RUN.finditer(content))  # type: ignore[index]


def _is_ascii_like(start: bytes) -> bool:
    """Whether a part, if it is XML, is written so that its marks are their ASCII bytes. `start`: its first bytes."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")):
        return False
    encoding = _ENCODING.match(start)
    return encoding is None or encoding[1].lower() in (b"utf-8", b"utf8", b"us-ascii")


def _sheet(path: Path, book: Any) -> Iterator[tuple[int, Sequence[str]]]:
    if not book.worksheets:
        raise InputError(f"{path} has no sheet")
    sheet = book.worksheets[0]
    # What a sheet says about its size is not believed.
    sheet.reset_dimensions()
    cells = characters = 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), 1):
        cells += 1 + len(row)
        if cells > MAX_CELLS:
            raise InputError(f"{path} has more than {MAX_CELLS:,} cells; save the sheet as tsv")
        if any(value is not None for value in row):
            shown = [_shown(value) for value in row]
            characters += sum(map(len, shown))
            if characters > MAX_TEXT:
                raise InputError(f"{path} shows more than {MAX_TEXT:,} characters; save the sheet as tsv")
            yield number, shown


def _shown(value: object) -> str:
    """A cell's text: whole numbers without a decimal point, as pandas has them."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)
