"""Tables for spreadsheets: nothing in a cell is run, and numbers stay numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cos_core.files import csv_writer


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        *((mark + rest, f"'{mark}{rest}") for mark in "=+-@\t\n" for rest in ("cmd|' /C calc'!A0", "1+1", "SUM(A1)", " x")),
        ("\r=1", "'\n=1"),
        ("\r\nx", "'\nx"),
        ("a\rb", "a\nb"),
        ("=", "'="),
        (" =1+1", "' =1+1"),
        ("\u00a0=1+1", "'\u00a0=1+1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1+1", "'-1+1"),
        ("-1,5", "'-1,5"),
        ("+49 30", "'+49 30"),
        ("--", "'--"),
        ("-inf", "'-inf"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("-.5", "-.5"),
        (-0.5, "-0.5"),
        (3, "3"),
        (True, "True"),
        (None, ""),
        ("", ""),
        ("a=b", "a=b"),
        ("a\x00b\x1b\ud800\u202e", "a\ufffdb\ufffd\ufffd\ufffd"),
        ('said "x", y\nz', 'said "x", y\nz'),
    ],
)
def test_cells(tmp_path: Path, given: object, kept: str) -> None:
    csv_writer.write(tmp_path / "t.csv", ["=head", "b"], [[given, 1]])
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["'=head", "b"], [kept, "1"]]
