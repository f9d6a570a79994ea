"""The picture in the terminal: two pixels a character, letters without colour."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from cos_cli.preview import drawn, show


def test_two_pixels_are_one_character() -> None:
    picture = Image.new("RGB", (2, 2), (1, 2, 3))
    picture.putpixel((1, 1), (200, 0, 9))
    line = drawn(picture, 80, colour=True)
    assert line.count("▀") == 2
    assert line.startswith("\x1b[38;2;1;2;3m\x1b[48;2;1;2;3m▀")
    assert "\x1b[38;2;1;2;3m\x1b[48;2;200;0;9m▀\x1b[0m" in line


def test_a_wide_picture_is_as_wide_as_the_terminal() -> None:
    lines = drawn(Image.new("RGB", (400, 100), "white"), 40, colour=True).split("\n")
    assert len(lines) == 5
    assert all(len(re.findall("▀", line)) == 40 for line in lines)


def test_letters_without_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))
    picture.save(tmp_path / "a.png")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = io.StringIO()
    show(tmp_path / "a.png", stream)
    lines = stream.getvalue().splitlines()
    assert lines == ["@" * 20] * 10
    assert "\x1b" not in stream.getvalue()


def test_a_pdf_is_not_shown() -> None:
    stream = io.StringIO()
    show(Path("a.pdf"), stream)
    assert "no preview of a PDF" in stream.getvalue()
