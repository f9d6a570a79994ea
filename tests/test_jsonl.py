"""Reading lines and lists that may be broken, and writing lines that must last."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

import cos_core
from cos_core.errors import InputError, LockedError
from cos_core.files import json_window, jsonl
from cos_core.files.big_json import read_json_list, read_members
from cos_core.files.durable_writer import DurableWriter
from cos_core.files.jsonl import Problem, read_lines

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}


def lines_of(path: Path) -> tuple[list[tuple[int, dict]], list[Problem]]:
    problems: list[Problem] = []
    return list(read_lines(path, problems.append)), problems


def test_lines_and_their_problems(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\n\n[1]\n{"a": \n"s"\nnull\n{"b": "\xff"}\n' + b"[" * 100_000 + b'\n{"c": 3}\n{"d": 4'
    )
    records, problems = lines_of(path)
    assert records == [(1, {"a": 1}), (9, {"c": 3})]
    assert [p.line for p in problems] == [3, 4, 5, 6, 7, 8, 10]
    assert "list" in problems[0].reason
    assert "UTF-8" in problems[4].reason
    assert str(problems[0]).startswith(f"{path}:3: ")


def test_without_a_listener_the_first_problem_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nnonsense\n')
    with refused("x.jsonl:2"):
        list(read_lines(path))
    with refused(os.strerror(errno.ENOENT)):
        list(read_lines(tmp_path / "none"))
    with refused(os.strerror(errno.EISDIR)):
        list(read_lines(tmp_path))


def test_a_line_without_end_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n')
    records, problems = lines_of(path)
    assert [n for n, _ in records] == [1]
    assert f"{jsonl.MAX_RECORD_BYTES >> 20} MiB" in problems[0].reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_what_is_decoded_equals_json_loads(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1)):
        assert jsonl.decode(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["12345678901234567890123", "1e400", '"\\ud800"', '{"a": 1, "a": 2}', "-0.0", "\ufeff[1]"])
def test_what_json_loads_takes_is_taken(text: str) -> None:
    assert repr(jsonl.decode(text.encode())) == repr(json.loads(text.encode()))


@pytest.mark.parametrize("text", [b"{", b"[1,]", b""])
def test_what_json_loads_refuses_is_refused_in_its_words(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as theirs:
        json.loads(text)
    with pytest.raises(type(theirs.value)) as ours:
        jsonl.decode(text)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'"\xff"', "the text is not UTF-8"),
        ("[1]".encode("utf-16"), "the text is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_else_is_refused_is_a_value_error_too(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jsonl.decode(text)


@given(st.lists(json_values, max_size=12), st.sampled_from([None, 0, 2]), st.integers(1, 40), st.booleans())
def test_list_elements_equal_json_load(
    tmp_path_factory: pytest.TempPathFactory, values: list, indent: int | None, chunk: int, ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", newline="")
    problems: list[Problem] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "CHUNK", chunk)
        got = list(read_json_list(path, problems.append))
    assert [(i, v) for _, i, v in got] == [(i, v) for i, v in enumerate(values) if isinstance(v, dict)]
    assert len(problems) == sum(not isinstance(v, dict) for v in values)
    text = path.read_text(encoding="utf-8").split("\n")
    for line, _, _ in got:
        assert "{" in text[line - 1]


def test_list_problems_name_line_and_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    cases = {
        '[\n{"a": 1},\n{"a": 2},\n{"a" 3},\n{"a": 4}]': (4, "sample 2"),
        '[{"a": 1},\n{"a": "never en': (2, "sample 1"),
        '[{"a": 1}\n{"a": 2}]': (2, "expected ','"),
        '[{"a": 1},\n': (2, "sample 1"),
        '[{"a": 1}': (1, "breaks off"),
        "{}": (1, "expected a JSON list"),
        "[1": (1, "breaks off"),
    }
    for text, (line, words) in cases.items():
        path.write_text(text)
        problems: list[Problem] = []
        records = list(read_json_list(path, problems.append))
        assert problems[-1].line == line, text
        assert words in problems[-1].reason, text
        assert [r["a"] for _, _, r in records] == [1, 2][
            : text.count('"a": 1') + text.count('"a": 2')
        ] or "expected ','" in words
    path.write_text('[{"a": 1},\n{"a" 3}]')
    with refused("x.json:2", "sample 1"):
        list(read_json_list(path))


def test_an_error_in_a_long_list_is_found_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    good = [{"id": i, "text": "x" * 500} for i in range(20_000)]
    path.write_text(json.dumps(good[:100], indent=0)[:-1] + ',\n{"id": oops},' + json.dumps(good)[1:])
    problems: list[Problem] = []
    assert len(list(read_json_list(path, problems.append))) == 100
    assert problems[0].line == 4 * 100 + 3


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[" + ",\n".join(json.dumps({"id": i, "text": "word " * 200}) for i in range(15_000)) + "]")
    assert path.stat().st_size > 15e6
    tracemalloc.start()
    count = sum(1 for _ in read_json_list(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 30e6


def test_append_read_and_append_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.jsonl"
    with DurableWriter(path, batch=2) as writer:
        for i in range(5):
            writer.append({"i": i, "text": "naïve\n\u2028"})
            assert len(path.read_bytes().splitlines()) == i + 1, "each record reaches the system at once"
    with DurableWriter(path) as writer:
        writer.append({"i": 5})
    assert [r["i"] for _, r in read_lines(path)] == list(range(6))
    assert [p.name for p in path.parent.iterdir()] == ["out.jsonl"], "no lock is left behind"


@pytest.mark.parametrize("cut", range(1, 12))
def test_torn_last_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    whole = b'{"i":0}\n{"i":1}\n'
    torn = b'{"i":2222}\n'[:cut]
    path.write_bytes(whole + torn)
    with DurableWriter(path) as writer:
        writer.append({"i": 9})
    kept = [{"i": 2222}] if cut >= 10 else []  # only the line end was missing, or nothing
    assert [r for _, r in read_lines(path)] == [{"i": 0}, {"i": 1}, *kept, {"i": 9}]


def test_a_torn_line_longer_than_the_reading_step(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"i":0}\n' + b'{"t":"' + b"x" * 200_000)
    DurableWriter(path).close()
    assert path.read_bytes() == b'{"i":0}\n'
    path.write_bytes(b"\0" * 100_000)
    DurableWriter(path).close()
    assert path.read_bytes() == b""


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with DurableWriter(path) as writer:
        writer.append({"i": 0})
        with pytest.raises(LockedError) as caught:
            DurableWriter(path)
        assert caught.value.exit_code == 75
        code = "import sys, pathlib, cos_core.files.durable_writer as w; w.DurableWriter(pathlib.Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert "LockedError" in other.stderr
        assert str(os.getpid()) in other.stderr
    DurableWriter(path).close()


def test_what_is_no_json_is_refused_and_the_file_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with DurableWriter(path) as writer:
        writer.append({"i": 0})
        for bad in ({"x": float("nan")}, {"x": object()}, {"x": b"bytes"}):
            with refused(path):
                writer.append(bad)
        writer.append({"i": 1})
    with refused(path):
        writer.append({"i": 2})
    assert [r["i"] for _, r in read_lines(path)] == [0, 1]


KILLED = """
import sys
from pathlib import Path
from cos_core.files.durable_writer import DurableWriter
with DurableWriter(Path(sys.argv[1]), batch=50) as writer:
    for i in range(1_000_000):
        writer.append({"i": i, "text": "x" * 100})
        print(i, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_appended(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        last = 0
        for line in process.stdout:
            last = int(line)
            if last >= 333:
                break
        process.send_signal(signal.SIGKILL)
    with DurableWriter(path):
        records = [r["i"] for _, r in read_lines(path)]
    assert records == list(range(len(records)))
    assert len(records) > last


FULL = """
import resource, signal, sys
from pathlib import Path
from cos_core.errors import InputError
from cos_core.files.durable_writer import DurableWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with DurableWriter(Path(sys.argv[1])) as writer:
    try:
        for i in range(1000):
            writer.append({"i": i, "text": "x" * 90})
    except InputError as error:
        print(error)
"""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert str(tmp_path) in done.stdout
    records, problems = lines_of(path)
    assert not problems
    assert [r["i"] for _, r in records] == list(range(9))  # 9 lines of 107 bytes fit in 1000
    assert path.read_bytes().endswith(b"\n")


def test_unwritable_places_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        DurableWriter(tmp_path / "file" / "x.jsonl")
    (tmp_path / "folder").mkdir()
    with refused(tmp_path / "folder"):
        DurableWriter(tmp_path / "folder")
    with pytest.raises(InputError):
        DurableWriter(tmp_path / "x.jsonl", batch=0)


# One big object


@given(
    st.dictionaries(st.text(max_size=6), json_values, max_size=12),
    st.sampled_from([None, 2]),
    st.integers(1, 60),
    st.booleans(),
)
def test_members_equal_json_load(
    tmp_path_factory: pytest.TempPathFactory, values: dict, indent: int | None, chunk: int, nested: bool
) -> None:
    values = {key: {"},": value} for key, value in values.items()} if nested else values
    path = tmp_path_factory.getbasetemp() / "object.json"
    path.write_text(json.dumps(values, indent=indent), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_window, "CHUNK", chunk)
        assert list(read_members(path)) == list(values.items())


@pytest.mark.parametrize("chunk", [3, 2**22])
def test_what_is_no_object_is_refused(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    path = tmp_path / "x.json"
    for text, *facts in (
        ("",),
        ("[]",),
        ('{"a": {"b": 1},\n "c": {"d": oops}}', "line 2"),
        ('{"a": {"b": 1},}', "line 1"),
        ('{"a": {"b": 1}', "line 1"),
        ('{"a": {"b": 1} "c": {}}', "','"),
        ('{"a" {"b": 1}}', "':'"),
        ('{1: {"b": 1}}', "':'"),
        ('{"a": {}} {"b": {}}', "line 1"),
    ):
        path.write_text(text)
        with refused(path, *facts):
            list(read_members(path))


def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("{" + ",\n".join(f'"{i:06d}_id_q0": {{"params": [{i}, 2, 3]}}' for i in range(400_000)) + "}")
    assert path.stat().st_size > 14e6
    tracemalloc.start()
    count = sum(1 for _ in read_members(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400_000
    assert peak < 60e6
