"""Question files: what stands in them, as a whole and in one record."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EISDIR, ELOOP, ENOENT, ENOTDIR
from os import strerror
from pathlib import Path
from typing import Any

from bad.world import GOOD, TALK, Arguments, Case, World, lines, put

HALF = "\ud800"


def _infer(data: Path, world: World, folder: Path) -> list[Any]:
    return [
        "infer",
        "--engine",
        "scripted",
        "--model",
        "m",
        "--data",
        data,
        "--images",
        world.images,
        "--out",
        folder / "out.jsonl",
    ]


def _file(make: Callable[[Path], object]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        make(folder / "data.json")
        return _infer(folder / "data.json", world, folder)

    return arguments


def _record(record: Any) -> Arguments:
    """A sound record first: it must be answered all the same."""

    def arguments(world: World, folder: Path) -> list[Any]:
        return _infer(lines(folder / "data.jsonl", GOOD, record), world, folder)

    return arguments


def _turns(*turns: Any) -> dict[str, Any]:
    return {"id": "x", "image": "a.png", "conversations": list(turns)}


FILES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("missing", lambda p: None, strerror(ENOENT), "data.json"),
    ("a folder", Path.mkdir, strerror(EISDIR), "data.json"),
    ("a pipe", os.mkfifo, "pipe", "data.json"),
    ("a link to nothing", lambda p: p.symlink_to("nowhere"), strerror(ENOENT), "data.json"),
    ("a link to itself", lambda p: p.symlink_to(p), strerror(ELOOP), "data.json"),
    ("below a file", lambda p: put(p.parent / "x", "") and p.symlink_to("x/y"), strerror(ENOTDIR), "data.json"),
    ("empty", lambda p: put(p, b""), "empty", "data.json"),
    ("spaces only", lambda p: put(p, b" \n\t\r\n "), "empty", "data.json"),
    ("a byte order mark only", lambda p: put(p, b"\xef\xbb\xbf"), "empty", "data.json"),
    ("UTF-16", lambda p: put(p, '[{"id": "x"}]'.encode("utf-16")), "UTF-16", "data.json"),
    ("Latin-1", lambda p: put(p, b'{"id": "\xe9t\xe9"}'), "UTF-8", "data.json:1"),
    ("a gzip file", lambda p: put(p, b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc"), "gzip", "data.json"),
    ("NUL bytes", lambda p: put(p, bytes(4099)), "JSON", "data.json:1"),
    ("a list cut off", lambda p: put(p, '[{"id": "x", "image'), "sample 0", "data.json:1"),
    ("a list without its end", lambda p: put(p, '[{"id": 1},\n{"id": 2}'), "sample 2", "data.json:2"),
    ("a comma too many", lambda p: put(p, "[{},]"), "','", "data.json:1"),
    ("samples without comma", lambda p: put(p, "[{} {}]"), "sample 1", "data.json:1"),
    ("a list of numbers", lambda p: put(p, "[1, 2]"), "number", "data.json:1"),
    ("an empty list", lambda p: put(p, "[]"), "data.json", "data.json"),
    ("lists within lists", lambda p: put(p, "[" * 100_000), "nested", "data.json:1"),
    ("objects within objects", lambda p: put(p, '{"a":' * 100_000), "nested", "data.json:1"),
    ("one text", lambda p: put(p, '"x"'), "string", "data.json:1"),
    ("null", lambda p: put(p, "null"), "null", "data.json:1"),
    ("a table without questions", lambda p: put(p, "id,image\n1,a.png\n"), "question", "data.json"),
    ("a number of 5,000 digits", lambda p: put(p, '{"id": ' + "9" * 5000 + "}"), "JSON", "data.json:1"),
    ("2 GB on one line", lambda p: os.truncate(put(p, b"{"), 2**31), "64 MiB", "data.json:1"),
]  # fmt: skip

RECORDS: list[tuple[str, Any, str]] = [
    ("not an object", [1], "object"),
    ("a torn line", '{"id": "x", "image": "a.png", "conver', "JSON"),
    ("no known layout", {"a": 1}, "question_id"),
    ("an id in capitals", {"image": "a.png", "ID": 1, "conversations": TALK}, "`id`"),
    ("an empty id", {**GOOD, "id": ""}, "`id`"),
    ("a true id", {**GOOD, "id": True}, "`id`"),
    ("a list as id", {**GOOD, "id": ["x"]}, "`id`"),
    ("half a character in the id", {**GOOD, "id": f"x{HALF}"}, "surrogate"),
    ("the same record again", GOOD, "'good'"),
    ("conversations no list", {**GOOD, "conversations": "hello"}, "`conversations`"),
    ("no turn", _turns(), "`conversations`"),
    ("a turn that is a text", _turns("hello", "you"), "turn 0"),
    ("a turn without value", _turns({"from": "human"}, TALK[1]), "turn 0"),
    ("an unknown speaker", _turns({"from": "system", "value": "be kind"}, *TALK), "'human'"),
    ("the answer first", _turns(*TALK[::-1]), "'human'"),
    ("a question twice", _turns(TALK[0], TALK[0]), "'gpt'"),
    ("no last answer", _turns(*TALK, TALK[0]), "(3)"),
    ("a question that is a number", _turns({"from": "human", "value": 7}, TALK[1]), "turn 0"),
    ("an empty question", _turns({"from": "human", "value": "<image>\n "}, TALK[1]), "turn 0"),
    ("half a character in an answer", _turns(TALK[0], {"from": "gpt", "value": HALF}), "surrogate"),
    ("two pictures", {**GOOD, "id": "x", "image": ["a.png", "b.png"]}, "a.png, b.png"),
    ("an empty picture path", {**GOOD, "id": "x", "image": ""}, "`image`"),
    ("half a character in the path", {**GOOD, "id": "x", "image": HALF}, "surrogate"),
    ("meta no list", {**GOOD, "id": "x", "meta": {}}, "`meta`"),
    ("meta of another length", {**GOOD, "id": "x", "meta": [{}, {}]}, "`meta`"),
    ("meta of numbers", {**GOOD, "id": "x", "meta": [1]}, "`meta`"),
    ("a gold box of three numbers", {**GOOD, "id": "x", "meta": [{"gold": [0, 0, 1]}]}, "box"),
    ("a gold box turned round", {**GOOD, "id": "x", "meta": [{"gold": [0.9, 0, 0.1, 1]}]}, "box"),
    ("a gold box off the picture", {**GOOD, "id": "x", "meta": [{"gold": [0, 0, 1, 40]}]}, "box"),
    ("a gold box of words", {**GOOD, "id": "x", "meta": [{"gold": ["a", "b", "c", "d"]}]}, "box"),
    ("a gold box of NaN", '{"id":"x","image":"a.png","question":"q","meta":{"gold":[NaN,0,1,1]}}', "box"),
    ("a question that is no text", {"question_id": 1, "image": "a.png", "text": None}, "`text`"),
    ("a question id that is half", {"question_id": 1.5, "image": "a.png", "text": "q"}, "`question_id`"),
    ("answers that are no texts", {"id": "x", "image": "a.png", "question": "q", "answers": [True]}, "`answers`"),
    ("choices with a list", {"id": "x", "image": "a.png", "question": "q", "choices": [[]]}, "`choices`"),
    ("a message with sound", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "'audio'"),
]  # fmt: skip

CASES = [Case("questions", name, 3, fact, _file(make), names, slow="2 GB" in name) for name, make, fact, names in FILES]
CASES += [Case("question record", name, 0, fact, _record(record), "data.jsonl:2") for name, record, fact in RECORDS]
