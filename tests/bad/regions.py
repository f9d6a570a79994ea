"""Regions to import: JSON Lines, COCO, the authors' released file, Visual-CoT."""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOENT
from os import strerror
from pathlib import Path
from typing import Any

from bad.world import GOOD, MARK, Arguments, Case, World, lines, put

KEPT = {"example_id": "good#q0", "box": [0.1, 0.2, 0.6, 0.7], "score": 1.0, "policy": "random", "fingerprint": MARK}
PIXELS = {"id": 1, "image_id": 1, "bbox": [1, 2, 10, 9], "example_id": "good#q0"}
PICTURE = {"id": 1, "file_name": "a.png", "width": 31, "height": 23}
ASKED = {
    "question": "q",
    "answer": "a",
    "image": "a.png",
    "width": 31,
    "height": 23,
    "bboxs": [[1, 2, 9, 9]],
    "dataset": "d",
    "split": "train",
}


def _import(make: Callable[[Path], object], form: str, *more: Any) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        make(folder / "in.json")
        given = ["--data", world.data, "--images", world.images] if form == "chain-of-spot" else []
        return ["store", "import", folder / "in.json", "--format", form, "--out", folder / "store", *given, *more]

    return arguments


def _line(record: Any) -> Callable[[Path], object]:
    return lambda p: lines(p, {**KEPT, "example_id": "first"}, record)


def _coco(entry: Any, picture: Any = PICTURE) -> Callable[[Path], object]:
    sound = {**PIXELS, "id": 7, "image_id": 9, "example_id": "first"}
    return lambda p: put(p, {"images": [picture, {**PICTURE, "id": 9}], "annotations": [sound, entry]})


def _spot(entry: Any, key: str = "000001_second_q0") -> Callable[[Path], object]:
    return lambda p: put(p, {"000000_good_q0": {"params": [1, 2, 9]}, key: entry})


def _cot(record: Any) -> Callable[[Path], object]:
    return lambda p: lines(p, ASKED, record)


JSONL: list[tuple[str, Any, str]] = [
    ("no id", {**KEPT, "example_id": None}, "`example_id`"),
    ("an empty id", {**KEPT, "example_id": ""}, "`example_id`"),
    ("no score", {k: v for k, v in KEPT.items() if k != "score"}, "`score`"),
    ("a score that is true", {**KEPT, "score": True}, "`score`"),
    ("a score that is a text", {**KEPT, "score": "1"}, "`score`"),
    ("a score that is infinite", '{"example_id":"x","box":[0,0,1,1],"score":Infinity,"policy":"p","fingerprint":"0123456789abcdef"}', "score"),
    ("a policy that is a number", {**KEPT, "policy": 1}, "`policy`"),
    ("neither box nor reason", {**KEPT, "box": None}, "reason"),
    ("a reason that is a list", {**KEPT, "reason": []}, "`reason`"),
    ("a box of five numbers", {**KEPT, "box": [0, 0, 1, 1, 1]}, "box"),
    ("a box off the picture", {**KEPT, "box": [0, 0, 1, 3]}, "box"),
    ("regions that are words", {**KEPT, "regions_used": ["a"]}, "$.regions_used"),
    ("regions that are a number", {**KEPT, "regions_used": 7}, "int"),
    ("a region below zero", {**KEPT, "regions_used": [-1]}, "good#q0"),
    ("a failure that is a list", {"example_id": "x", "failure": []}, "`failure`"),
    ("a map that is a list", {**KEPT, "heat": [[1]]}, "`heat`"),
    ("a map with torn rows", {**KEPT, "heat": {"cells": [[1], [1, 2]], "top": 1}}, ""),
    ("a map above 255", {**KEPT, "heat": {"cells": [[256]], "top": 1}}, "255"),
    ("a map without its maximum", {**KEPT, "heat": {"cells": [[1]], "top": "x"}}, "maximum"),
    ("an empty map", {**KEPT, "heat": {"cells": [[]], "top": 1}}, "`heat`"),
]  # fmt: skip
COCO: list[tuple[str, Callable[[Path], object], str]] = [
    ("a picture that is not there", _coco({**PIXELS, "image_id": 5}), "image"),
    ("a picture number that is a list", _coco({**PIXELS, "image_id": [1]}), "image"),
    ("a picture whose number is a list", _coco(PIXELS, {**PICTURE, "id": [1]}), "image"),
    ("a picture without name", _coco(PIXELS, {"id": 1}), "image"),
    ("a picture without size", _coco(PIXELS, {"id": 1, "file_name": "a.png"}), "size"),
    ("a picture of no width", _coco(PIXELS, {**PICTURE, "width": 0}), "size"),
    ("a picture whose width is a text", _coco(PIXELS, {**PICTURE, "width": "31"}), "size"),
    ("a box of three numbers", _coco({**PIXELS, "bbox": [1, 2, 3]}), "`bbox`"),
    ("a box of words", _coco({**PIXELS, "bbox": list("abcd")}), "number"),
    ("a box of no width", _coco({**PIXELS, "bbox": [1, 2, 0, 5]}), "box"),
    ("a box off the picture", _coco({**PIXELS, "bbox": [900, 900, 5, 5]}), "box"),
    ("a fingerprint that is a list", _coco({**PIXELS, "bbox": 1, "fingerprint": [1]}), "`bbox`"),
    ("a score that is a text", _coco({**PIXELS, "score": "x"}), "number"),
]  # fmt: skip
SPOT: list[tuple[str, Callable[[Path], object], str]] = [
    ("a key of another form", _spot({"params": [1, 2, 3]}, "second"), "key"),
    ("two numbers", _spot({"params": [1, 2]}), "`params`"),
    ("words", _spot({"params": ["a", "b", "c"]}), "`params`"),
    ("no params", _spot([1, 2, 3]), "`params`"),
    ("a side of 0", _spot({"params": [1, 2, 0]}), "`params`"),
    ("infinity", lambda p: put(p, '{"000000_good_q0": {"params": [1, 2, 9]}, "000001_second_q0": {"params": [1, 2, 1e999]}}'), "`params`"),
    ("a square off the picture", _spot({"params": [900, 900, 3]}), "17x29"),
    ("a key of no question", _spot({"params": [1, 2, 3]}, "000009_gone_q0"), "question"),
]  # fmt: skip
COT: list[tuple[str, Callable[[Path], object], str]] = [
    ("no known layout", _cot({"a": 1}), "metadata"),
    ("no box", _cot({**ASKED, "bboxs": []}), "box"),
    ("a box of three", _cot({**ASKED, "bboxs": [[1, 2, 3]]}), "box"),
    ("a box that is an object", _cot({**ASKED, "bboxs": {"a": 1}}), "list"),
    ("a question that is a number", _cot({**ASKED, "question": 7}), "`question`"),
    ("no data set", _cot({**ASKED, "dataset": ""}), "`dataset`"),
    ("a width that is a list", _cot({**ASKED, "width": [31]}), "size"),
    ("a height below zero", _cot({**ASKED, "height": -23}), "size"),
    ("a picture without mark", _cot({"question_id": 1, "image": ["a.png"], "conversations": []}), "list"),
    ("a marked box of words", _cot({"question_id": 1, "image": ["a.png###[a]"], "conversations": [{}, {}], "dataset": "d", "split": "s"}), "four"),
    ("no turn", _cot({"question_id": 1, "image": ["a.png###[1,2,3,4]"], "conversations": []}), "turns"),
]  # fmt: skip
FILES: list[tuple[str, str, Callable[[Path], object], str]] = [
    ("jsonl", "missing", lambda p: None, strerror(ENOENT)),
    ("jsonl", "empty", lambda p: put(p, b""), "region"),
    ("jsonl", "of two jobs", _line({**KEPT, "fingerprint": "other"}), "job"),
    ("jsonl", "questions", lambda p: lines(p, GOOD), "region"),
    ("coco", "a list", lambda p: put(p, []), "COCO"),
    ("coco", "cut off", lambda p: put(p, '{"images": ['), "JSON"),
    ("coco", "no annotations", lambda p: put(p, {"images": []}), "COCO"),
    ("coco", "annotations of numbers", lambda p: put(p, {"images": [], "annotations": [1]}), "COCO"),
    ("coco", "nested too deeply", lambda p: put(p, "[" * 100_000), "nested"),
    ("coco", "Latin-1", lambda p: put(p, b'{"\xe9": 1}'), "UTF-8"),
    ("chain-of-spot", "a list", lambda p: put(p, []), "object"),
    ("chain-of-spot", "cut off", lambda p: put(p, '{"000000_good_q0": '), "JSON"),
    ("chain-of-spot", "empty", lambda p: put(p, b""), "object"),
    ("chain-of-spot", "nested too deeply", lambda p: put(p, "[" * 100_000), "object"),
    ("chain-of-spot", "entries nested too deeply", lambda p: put(p, '{"a": ' + "[" * 100_000), "nested"),
    ("visual-cot", "empty", lambda p: put(p, b""), "region"),
    ("visual-cot", "a list cut off", lambda p: put(p, "[{"), "JSON"),
]  # fmt: skip

CASES = [Case("import jsonl", name, 0, fact, _import(_line(record), "jsonl"), "in.json") for name, record, fact in JSONL]
CASES += [Case("import coco", name, 0, fact, _import(make, "coco"), "in.json") for name, make, fact in COCO]
CASES += [Case("import chain-of-spot", name, 0, fact, _import(make, "chain-of-spot"), "in.json") for name, make, fact in SPOT]
CASES += [Case("import visual-cot", name, 0, fact, _import(make, "visual-cot"), "in.json") for name, make, fact in COT]
CASES += [Case(f"import file {form}", name, 3, fact, _import(make, form), "in.json") for form, name, make, fact in FILES]
