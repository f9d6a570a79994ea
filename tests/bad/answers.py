"""Recorded answers: what stands in a predictions file, and the folders and files of finished runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad.world import Arguments, Case, World, lines, put

RIGHT = {"example_id": "s0", "answer": "red"}


def _eval(answers: Path, world: World, folder: Path, *more: Any) -> list[Any]:
    return ["eval", "scenes", "--data", world.page, "--predictions", answers, "--out", folder / "run", *more]


def _file(make: Callable[[Path], object]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        make(folder / "answers.jsonl")
        return _eval(folder / "answers.jsonl", world, folder)

    return arguments


def _record(record: Any) -> Arguments:
    return lambda world, folder: _eval(lines(folder / "answers.jsonl", RIGHT, record), world, folder)


def _stats(record: Any) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        data = lines(folder / "answers.jsonl", {**RIGHT, "box": [0.1, 0.1, 0.5, 0.5], "box_status": "ok"}, record)
        return ["visualize", "stats", data, "--out", folder / "boxes"]

    return arguments


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda p: None, "answers.jsonl"),
    ("an empty folder", Path.mkdir, "answers.jsonl"),
    ("empty", lambda p: put(p, b""), "empty"),
    ("a page of HTML", lambda p: put(p, "<html>\n"), "prediction"),
    ("one JSON list", lambda p: put(p, [RIGHT]), "list"),
    ("answers to other questions", lambda p: lines(p, {"example_id": "z", "answer": "a"}), "scenes"),
    ("half of the ids spelt otherwise", lambda p: lines(p, RIGHT, {"example_id": "img/s1", "answer": "a"}), "s1"),
    ("the ids of other questions", lambda p: lines(p, {**RIGHT, "question": "Why?"}), "'Why?'"),
    ("questions instead of answers", lambda p: lines(p, {"question_id": 1, "image": "a"}), "question_id"),
    ("Latin-1", lambda p: put(p, b'{"example_id": "s0", "answer": "\xe9"}\n'), "UTF-8"),
]  # fmt: skip

RECORDS: list[tuple[str, Any, str]] = [
    ("no answer", {"example_id": "s1"}, "field `answer`"),
    ("no id", {"answer": "red"}, "example_id"),
    ("an id that is a number", {**RIGHT, "example_id": 1}, "$.example_id`"),
    ("an id that is a list", {**RIGHT, "example_id": [1]}, "$.example_id`"),
    ("an answer that is a number", {**RIGHT, "example_id": "s1", "answer": 7}, "$.answer`"),
    ("an answer that is a list", {**RIGHT, "example_id": "s1", "answer": ["red"]}, "$.answer`"),
    ("a box of two numbers", {**RIGHT, "example_id": "s1", "box": [0, 1]}, "box"),
    ("a box turned round", {**RIGHT, "example_id": "s1", "box": [0.9, 0, 0.1, 1]}, "box"),
    ("a box of words", {**RIGHT, "example_id": "s1", "box": "here"}, "box"),
    ("a box that is an object", {**RIGHT, "example_id": "s1", "box": {"x": 1}}, "box"),
    ("a box with NaN", '{"example_id":"s1","answer":"red","box":[NaN,0,1,1]}', "box"),
    ("a box in true and false", {**RIGHT, "example_id": "s1", "box": [False, False, True, True]}, "box"),
    ("an unknown box status", {**RIGHT, "example_id": "s1", "box_status": "good"}, "'good'"),
    ("a box status that is a list", {**RIGHT, "example_id": "s1", "box_status": []}, "status"),
    ("a question that is a number", {**RIGHT, "example_id": "s1", "question": 7}, "$.question`"),
    ("a picture that is a number", {**RIGHT, "example_id": "s1", "image": 7}, "$.image`"),
    ("seconds that are a text", {**RIGHT, "example_id": "s1", "seconds": "long"}, "$.seconds`"),
    ("tokens that are a text", {**RIGHT, "example_id": "s1", "tokens": "many"}, "$.tokens`"),
    ("a policy that is an object", {**RIGHT, "example_id": "s1", "policy": {}}, "$.policy`"),
    ("an error that is an object", {**RIGHT, "example_id": "s1", "error": {}}, "$.error`"),
    ("a torn line", '{"example_id": "s1", "ans', "JSON"),
    ("a line that is a number", 7, "number"),
]  # fmt: skip


def _run(change: Callable[[Path], object], command: Callable[[World, Path], list[Any]]) -> Arguments:
    """A finished run with something wrong in its folder."""

    def arguments(world: World, folder: Path) -> list[Any]:
        run = world.copy("run", folder)
        change(run)
        return command(world, run)

    return arguments


def _manifest(text: Any) -> Callable[[Path], object]:
    return lambda run: put(run / "manifest.json", text)


def _scores(row: Any) -> Callable[[Path], object]:
    return lambda run: lines(run / "scores.jsonl", row)


RUNS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no manifest", lambda r: (r / "manifest.json").unlink(), "run"),
    ("a manifest that is empty", _manifest(b""), "manifest.json"),
    ("a manifest cut off", _manifest('{"stage": "eval", '), "manifest.json"),
    ("a manifest that is a list", _manifest([]), "manifest.json"),
    ("a manifest without config", _manifest({"stage": "eval", "status": "complete"}), "manifest.json"),
    ("a manifest whose results are a list", _manifest({"stage": "eval", "status": "complete", "config": {}, "fingerprint": "x", "counts": {}, "results": []}), "manifest.json"),
    ("a manifest whose counts are words", _manifest({"stage": "eval", "status": "complete", "config": {}, "fingerprint": "x", "counts": {"ok": "all"}}), "$.counts"),
    ("a manifest in Latin-1", _manifest(b'{"stage": "\xe9"}'), "manifest.json"),
    ("a manifest nested too deeply", _manifest("[" * 100_000), "manifest.json"),
    ("a manifest that is a folder", lambda r: [(r / "manifest.json").unlink(), (r / "manifest.json").mkdir()], "run"),
    ("a score without value", _scores({"example_id": "s0"}), "scores.jsonl:1"),
    ("a score that is a text", _scores({"example_id": "s0", "value": "good"}), "scores.jsonl:1"),
    ("a score that is NaN", _scores('{"example_id": "s0", "value": NaN}'), "scores.jsonl:1"),
    ("groups that are a list", _scores({"example_id": "s0", "value": 1, "groups": []}), "scores.jsonl:1"),
    ("scores cut off", _scores('{"example_id": "s0", "val'), "scores.jsonl:1"),
]  # fmt: skip

CASES = [Case("answers", name, 3, fact, _file(make), "answers.jsonl") for name, make, fact in FILES]
CASES += [Case("answer record", name, 0, fact, _record(record), "") for name, record, fact in RECORDS]
CASES += [Case("answer record drawn", name, 0, fact, _stats(record), "answers.jsonl:2") for name, record, fact in RECORDS[6:8]]
CASES += [
    Case("run compared", name, 3, fact, _run(change, lambda world, run: ["eval", "compare", world.run, run]), "run")
    for name, change, fact in RUNS
]
