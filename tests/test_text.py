"""Text from outside: what is read, what is refused, and what a line may hold."""

import os

import pytest

from cos_core.errors import InputError
from cos_core.files.text import one_line, read_text


def test_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfkey = 1\n")
    assert read_text(tmp_path / "a") == "key = 1\n"


@pytest.mark.parametrize("data", [b"a\0b", "key".encode("utf-16"), b"\xff\xfe", b"caf\xe9"])
def test_what_is_no_utf8_text_is_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError):
        read_text(tmp_path / "a")


def test_size_is_bounded_and_devices_and_pipes_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe")
    for path, limit in ((tmp_path / "a", 10), (tmp_path / "pipe", 10), (tmp_path, 10), (tmp_path / "none", 10)):
        with pytest.raises(InputError):
            read_text(path, limit)
    with pytest.raises(InputError):
        read_text("/dev/zero")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 东京 🙂", "café 东京 🙂"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x9b", "\\x1b[31mred\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("half \ud800", "half \\ud800"),
        ("line\u2028end", "line\\u2028end"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_one_line_holds_no_second_line_and_no_control(text, shown):
    assert one_line(text) == shown
