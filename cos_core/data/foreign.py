"""Recognises files that are no JSON records by their first bytes; the error says how to convert each kind."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files.text import one_line

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet table"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"ARROW1", "an Arrow table"),
    (b"\xff\xff\xff\xff", "an Arrow table"),
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
_CONVERT = {
    "a Parquet table": "pd.read_parquet({0!r})",
    "an Arrow table": "pd.read_feather({0!r})",
    "an Excel workbook": "pd.read_excel({0!r}, dtype=str)",
    "an old Excel workbook": "pd.read_excel({0!r}, dtype=str)",
    "a CSV table": "pd.read_csv({0!r}, dtype=str)",
    "a TSV table": "pd.read_csv({0!r}, sep='\\t', dtype=str)",
    "a table with semicolons": "pd.read_csv({0!r}, sep=';', dtype=str)",
}
_UNPACK = {"gzip": "gunzip -k", "zstd": "unzstd", "bzip2": "bunzip2 -k", "xz": "unxz -k"}
_DELIMITERS = {",": "a CSV table", "\t": "a TSV table", ";": "a table with semicolons"}


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
            return "an Excel workbook" if what == "a ZIP archive" and _is_workbook(path) else what
    halves = start[:256:2], start[1:256:2]
    if any(letters and all(letters) and not any(nuls) for letters, nuls in (halves, halves[::-1]) if nuls):
        # Letters of Europe in UTF-16 have a NUL in every second byte.
        return "text in UTF-16"
    if start[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or XML"
    return _table(start)


def _is_workbook(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("xl/") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _table(start: bytes) -> str | None:
    """A table of texts: its first two lines have equally many cells, and no line begins as JSON does."""
    lines = start.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if len(lines) < 2 or any(line.lstrip()[:1] in ("{", "[") for line in lines[:-1] or lines):
        return None
    for mark, what in _DELIMITERS.items():
        try:
            header, first = list(csv.reader(lines[:2], delimiter=mark))[:2]
        except (csv.Error, ValueError):
            continue
        if len(header) > 1 and len(header) == len(first) and all(cell.strip() for cell in header):
            return what
    return None
