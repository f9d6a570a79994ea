"""The records: their lines on disk, what 0.1.0 wrote, and that they travel between processes as they are."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from msgspec import structs

from cos_core.errors import InputError
from cos_core.files.jsonl import encode_line
from cos_core.geometry import Box
from cos_core.types import Annotation, Example, Prediction, RunManifest, Score, split_meta

RECORDED: list[tuple[type[Any], bytes]] = [
    (
        Example,
        b'{"id":"x#q1","dataset":"mix","image":"a/b.jpg","question":"Where?","answers":["here"],"choices":[],'
        b'"meta":{"sample":"x","turn":1,"index":7,"kind":"place"}}\n',
    ),
    (
        Example,
        b'{"id":"7","dataset":"mmbench","image":"7.jpg","question":"Which?\\nA. one\\nC. two",'
        b'"answers":["A"],"choices":["one","two"],"meta":{"asked":"Which?","suffix":"\\n(letter)","letters":"AC","circle":"7"}}\n',
    ),
    (
        Example,
        b'{"id":"s","dataset":"scenes","image":null,"question":"?","answers":[],"choices":[],'
        b'"meta":{"gold":[0.1,0.25,0.5,1.0],"targets":[[0.5,0.25]],"kind":"reading","width":64,"height":48}}\n',
    ),
    (
        Annotation,
        b'{"example_id":"x#q1","box":[0.1,0.25,0.5,1.0],"score":0.5,"policy":"from_single_question","fingerprint":"f",'
        b'"regions_used":[3,1],"reason":null,"image":"a/b.jpg"}\n',
    ),
    (
        Prediction,
        b'{"example_id":"x#q1","answer":"here","box":null,"box_text":"[0, 0","box_status":"unparsable","policy":"model",'
        b'"profile":"paper","question":"Where?","image":"a/b.jpg","tokens":{"in":3,"out":1},"seconds":0.25,"fingerprint":"f",'
        b'"error":null}\n',
    ),
    (
        Score,
        b'{"example_id":"x#q1","value":1.0,"extracted":"here","expected":"here","groups":{"kind":"place"},"note":null}\n',
    ),
]
"""Lines as 0.1.0 wrote them."""


@pytest.mark.parametrize(("kind", "line"), RECORDED)
def test_a_line_of_0_1_0_is_read_and_written_the_same(kind: type[Any], line: bytes) -> None:
    record = kind.from_json(json.loads(line))
    assert encode_line(record.to_json()) == line
    assert pickle.loads(pickle.dumps(record)) == record
    assert structs.replace(record) == record


def test_what_steers_is_a_field_and_meta_names_slices() -> None:
    example = Example.from_json(json.loads(RECORDED[2][1]))
    assert example.gold == Box(0.1, 0.25, 0.5, 1.0)
    assert example.targets == ((0.5, 0.25),)
    assert example.meta == {"kind": "reading", "width": 64, "height": 48}
    assert set(example.steering()) == {"gold", "targets"}


def test_the_meta_of_a_plug_in_of_0_1_0_reaches_the_fields() -> None:
    old = Example("1", "mine", "a.png", "Why?\nIn a word.", ("so",), meta={"asked": "Why?", "question_id": 1, "split": "dev"})
    assert old == Example("1", "mine", "a.png", "Why?\nIn a word.", ("so",), meta={"split": "dev"}, asked="Why?", question_id=1)
    assert structs.replace(old, id="2").asked == "Why?"


@pytest.mark.parametrize(
    ("meta", "steering", "slices"),
    [
        ({"turn": "left", "index": True, "sample": 3}, {}, {"turn": "left", "index": True, "sample": 3}),
        ({"gold": None, "suffix": None, "kind": None}, {}, {"kind": None}),
        ({"gold": {"box": [0, 0, 1, 1], "frame": "image"}}, {"gold": Box(0.0, 0.0, 1.0, 1.0)}, {}),
    ],
    ids=["other kinds stay slices", "null is nothing", "a box with its frame"],
)
def test_meta_is_split(meta: dict[str, Any], steering: dict[str, Any], slices: dict[str, Any]) -> None:
    assert split_meta(meta) == (steering, slices)


@pytest.mark.parametrize(
    "meta",
    [{"gold": [0.3, 0.1, 0.2, 0.4]}, {"gold": {"box": [0, 0, 1, 1], "frame": "square"}}, {"targets": [[1]]}, {"targets": 3}],
)
def test_a_malformed_region_is_refused_with_its_example(meta: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="'q7'"):
        Example("q7", "d", None, "?", meta=meta)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Prediction, "answer", 7),
        (Prediction, "box_status", "lost"),
        (Prediction, "box", [0, 0, 1]),
        (Annotation, "score", float("nan")),
        (Annotation, "score", True),
        (Score, "value", "good"),
        (Score, "groups", []),
        (Prediction, "tokens", {"in": "three"}),
        (Annotation, "regions_used", ["first"]),
    ],
)
def test_a_field_of_another_kind_is_an_input_error(kind: type[Any], field: str, value: object) -> None:
    (line,) = (line for each, line in RECORDED if each is kind)
    with pytest.raises(InputError):
        kind.from_json({**json.loads(line), field: value})


@pytest.mark.parametrize(("kind", "line"), RECORDED)
def test_what_a_newer_version_adds_is_passed_over(kind: type[Any], line: bytes) -> None:
    assert encode_line(kind.from_json({**json.loads(line), "added": [1]}).to_json()) == line


def test_a_number_is_kept_as_it_was_written() -> None:
    line = next(line for each, line in RECORDED if each is Score).replace(b"1.0", b"1")
    assert encode_line(Score.from_json(json.loads(line)).to_json()) == line


@pytest.mark.parametrize("kind", [Example, Annotation, Prediction, Score, RunManifest])
def test_a_record_that_lacks_a_field_names_it(kind: type[Any]) -> None:
    first = kind.__struct_fields__[0]
    with pytest.raises(InputError, match=f"['`]{first}['`]"):
        kind.from_json({})
    with pytest.raises(InputError, match="list"):
        kind.from_json([])
