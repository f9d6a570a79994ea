"""Recognises by their first bytes files that hold no records: the error says what to do. And tables of texts, which do."""

from __future__ import annotations

import csv
import zipfile
from itertools import islice
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files.text import one_line

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xff\xfe\0\0", "text in UTF-32"),
    (b"\0\0\xfe\xff", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ\0", "compressed with xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"version https://git-lfs", "a Git LFS pointer"),
)
_XLSX = b"PK\x03\x04"
_CONVERT = {
    "an old Excel workbook": "pd.read_excel({0!r}, dtype=str)",
}
_UNPACK = {"gzip": "gunzip -k", "zstd": "unzstd", "bzip2": "bunzip2 -k", "xz": "unxz -k"}
_DELIMITERS = ",\t;"
_NAMES = frozenset(("question", "image", "answer", "answers"))


def refuse(path: Path, start: bytes) -> None:
    """Raises InputError for a file that, by its first bytes, is no JSON, saying what it is and what to do."""
    what = _kind(path, start)
    if what is None:
        return
    name = one_line(path.name, 80)
    if what in _CONVERT:
        table = _CONVERT[what].format(name)
        line = f"import pandas as pd; {table}.to_json('questions.jsonl', orient='records', lines=True)"
        advice = f'its rows become JSON Lines with: python -c "{line}" (columns id, question, image and a list of answers)'
    elif what.startswith("text in UTF"):
        encoding = what.removeprefix("text in ")
        advice = f"save it as UTF-8, for example with: iconv -f {encoding} -t UTF-8 {name!r} > questions.json"
    elif what.startswith("compressed with"):
        advice = f"unpack it first, for example with: {_UNPACK[what.split()[-1]]} {name!r}"
    elif what == "a Git LFS pointer":
        advice = "fetch the data itself with: git lfs pull"
    else:
        advice = "name the file with the JSON records themselves" + (", unpacked" if "archive" in what else "")
    raise InputError(f"{path} is no JSON, but {'' if what[0] in 'at' else 'a file '}{what}; {advice}")


def _kind(path: Path, start: bytes) -> str | None:
    for magic, what in _MAGIC:
        if start.startswith(magic):
            return what
    halves = start[:256:2], start[1:256:2]
    if any(letters and all(letters) and not any(nuls) for letters, nuls in (halves, halves[::-1]) if nuls):
        # Letters of Europe in UTF-16 have a NUL in every second byte.
        return "text in UTF-16"
    if start[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or XML"
    return None


def is_workbook(path: Path, start: bytes) -> bool:
    """Whether a file that begins with the bytes `start` is an xlsx file."""
    if not start.startswith(_XLSX):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def delimiter(start: bytes) -> str | None:
    """What stands between the cells of a table of texts that begins with `start`; None for a file that is no such table.

    Its first two rows have equally many cells, or the first names a column that records have; neither begins as JSON does.
    """
    if b"\0" in start:
        return None
    lines = start.decode("utf-8", "replace").removeprefix("\ufeff").splitlines(keepends=True)
    if not lines or lines[0].lstrip()[:1] in ("{", "["):
        return None
    for mark in _DELIMITERS:
        try:
            head, first = [*islice(csv.reader(lines, delimiter=mark), 2), []][:2]
        except (csv.Error, ValueError):
            continue
        if len(head) < 2 or not all(cell.strip() for cell in head) or (first and first[0].lstrip()[:1] in ("{", "[")):
            continue
        if len(head) == len(first) or not _NAMES.isdisjoint(cell.strip().lower() for cell in head):
            return mark
    return None
