"""Examples from LLaVA conversations, question files and our own lines, whole or broken."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from cos_core.data.datasets import Problem, by_image, read_examples
from cos_core.errors import InputError
from cos_core.types import Example


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]


def read(path: Path, content: Any, **options: Any) -> tuple[list[Example], list[Problem]]:
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    path.write_text(text, encoding="utf-8")
    problems: list[Problem] = []
    return list(read_examples(path, on_problem=problems.append, **options)), problems


def test_a_conversation_is_one_example_a_question(tmp_path: Path) -> None:
    sample = {
        "id": "VG_100K/2345",
        "image": "vg/VG_100K/2345.jpg",
        "conversations": talk("<image>\nWho is it?\nAnswer briefly.", "Anna.", "<image>Where is she? ", "at home"),
        "meta": [{"gold": [0.1, 0.2, 0.3, 0.4], "kind": "reading"}, {"kind": "place"}],
    }
    examples, problems = read(tmp_path / "mix.json", [sample])
    assert not problems
    meta = {"sample": "VG_100K/2345", "index": 0}
    image = "vg/VG_100K/2345.jpg"
    gold = {"gold": [0.1, 0.2, 0.3, 0.4], "kind": "reading"}
    assert examples == [
        Example("VG_100K/2345#q0", "mix", image, "Who is it?\nAnswer briefly.", ("Anna.",), meta={**meta, "turn": 0, **gold}),
        Example("VG_100K/2345#q1", "mix", image, "Where is she?", ("at home",), meta={**meta, "turn": 1, "kind": "place"}),
    ]


def test_lists_and_lines_give_the_same(tmp_path: Path) -> None:
    samples = [{"id": i, "image": f"{i}.jpg", "conversations": talk("<image>\nq", "a", "r", "b")} for i in range(5)]
    as_list, _ = read(tmp_path / "data.json", samples)
    as_lines, _ = read(tmp_path / "data.jsonl", "\n".join(map(json.dumps, samples)))
    compact, _ = read(tmp_path / "data.x", "\ufeff" + json.dumps(samples))
    assert as_list == as_lines == [Example(**{**_fields(e), "dataset": "data"}) for e in compact]
    assert [e.id for e in as_list[:3]] == ["0#q0", "0#q1", "1#q0"]


def _fields(example: Example) -> dict[str, Any]:
    data = example.to_json()
    return {**data, "answers": tuple(data["answers"]), "choices": tuple(data["choices"])}


def test_question_files_keep_the_type_of_the_id(tmp_path: Path) -> None:
    lines = [
        {"question_id": 0, "image": "COCO_val2014_1.jpg", "text": "Is there a cat?\nAnswer yes or no.", "category": "random"},
        {"question_id": "7a", "text": "No picture here"},
    ]
    text = "\n".join(map(json.dumps, lines))
    examples, problems = read(tmp_path / "pope.jsonl", text, text_only="keep")
    assert not problems
    assert examples[0].id == "0"
    assert examples[0].meta == {"category": "random"}
    assert examples[0].steering() == {"sample": "0", "question_id": 0, "index": 0}
    assert examples[0].answers == ()
    assert examples[1].image is None
    assert [e.id for e in read(tmp_path / "pope.jsonl", text)[0]] == ["0"]


def test_our_own_examples_come_back_equal(tmp_path: Path) -> None:
    examples = [
        Example("a", "scenes", "a.png", "What?", ("x", "y"), ("x", "y", "z"), {"gold": [0, 0, 0.5, 1], "kind": "reading"}),
        Example("b", "scenes", "b.png", "Who?"),
    ]
    text = "".join(json.dumps(e.to_json()) + "\n" for e in examples)
    assert read(tmp_path / "x.jsonl", text) == (examples, [])


def test_text_only_samples_are_kept_or_counted(tmp_path: Path) -> None:
    samples = [
        {"id": "t", "conversations": talk("Hello", "Hi", "More", "Less")},
        {"id": "p", "image": "p.jpg", "conversations": talk("<image>\nq", "a")},
        {"id": "n", "image": None, "conversations": talk("Hello", "Hi")},
    ]
    path = tmp_path / "x.json"
    kept, problems = read(path, samples, text_only="keep")
    assert [(e.id, e.image) for e in kept] == [("t#q0", None), ("t#q1", None), ("p#q0", "p.jpg"), ("n#q0", None)]
    skipped: list[Problem] = []
    seen, problems = read(path, samples, on_skip=skipped.append)
    assert [e.id for e in seen] == ["p#q0"]
    assert not problems
    assert [p.example_id for p in skipped] == ["t#q0", "t#q1", "n#q0"]
    with pytest.raises(InputError):
        read(path, samples, text_only="drop")


GOOD = {"id": "good", "image": "g.jpg", "conversations": talk("<image>\nq", "a")}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": ({"id": "x", "image": "x", "conversations": talk("q")}, "odd number of turns (1)"),
    "starts with gpt": (
        {"id": "x", "image": "x", "conversations": talk("a", "b", "c")[1:]},
        "turn 0 is from 'gpt', expected 'human'",
    ),
    "same speaker": ({"id": "x", "conversations": [talk("a")[0]] * 2}, "turn 1 is from 'human', expected 'gpt'"),
    "unknown speaker": ({"id": "x", "conversations": [{"from": "system", "value": "s"}]}, "turn 0 is from 'system'"),
    "no value": ({"id": "x", "conversations": [{"from": "human"}]}, "turn 0 lacks"),
    "turn is text": ({"id": "x", "conversations": ["hello"]}, "turn 0 lacks"),
    "no turns": ({"id": "x", "conversations": []}, "list of turns"),
    "turns are text": ({"id": "x", "conversations": "hello"}, "list of turns"),
    "id in capitals": ({"ID": "x", "conversations": talk("q", "a")}, "did you mean `id`"),
    "id of true": ({"id": True, "conversations": talk("q", "a")}, "`id` must be"),
    "two images": ({"id": "x", "image": ["a", "b"], "conversations": talk("q", "a")}, "names 2 pictures (a, b)"),
    "empty image": ({"id": "x", "image": "", "conversations": talk("q", "a")}, "`image` must be one path"),
    "empty answer": ({"id": "x", "image": "x", "conversations": talk("q", " \n")}, "turn 1 is empty"),
    "only the mark": ({"id": "x", "image": "x", "conversations": talk("<image>\n", "a")}, "turn 0 is empty"),
    "number": ({"id": "x", "image": "x", "conversations": talk("q", 3)}, "turn 1 is not a text"),  # type: ignore[arg-type]
    "half a character": ({"id": "x", "image": "x", "conversations": talk("q \ud800", "a")}, "half a Unicode character"),
    "meta too short": ({"id": "x", "image": "x", "conversations": talk("q", "a"), "meta": []}, "one object a question"),
    "gold no box": (
        {"id": "x", "image": "x", "conversations": talk("q", "a"), "meta": [{"gold": [1, 0, 0, 1]}]},
        "a box needs",
    ),
    "neither": ({"id": "x", "image": "x"}, "neither a conversation"),
    "answers no texts": ({"id": "x", "question": "q", "answers": [True]}, "`answers` is not a text"),
    "answers half a list": ({"id": "x", "question": "q", "answers": "['a', "}, "begins as a list"),
}


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_named_and_the_rest_goes_on(name: str, lines: bool, tmp_path: Path) -> None:
    bad, reason = BROKEN[name]
    samples = [GOOD, bad, {**GOOD, "id": "last"}]
    content = "\n".join(map(json.dumps, samples)) if lines else "[\n" + ",\n".join(map(json.dumps, samples)) + "\n]"
    examples, problems = read(tmp_path / "x", content, text_only="keep")
    assert [e.id for e in examples] == ["good#q0", "last#q0"]
    assert len(problems) == 1
    assert problems[0].line == (2 if lines else 3)
    assert reason in problems[0].reason
    with refused(f"{tmp_path / 'x'}:"):
        list(read_examples(tmp_path / "x", text_only="keep"))


def test_an_empty_turn_costs_its_pair_only(tmp_path: Path) -> None:
    sample = {"id": "x", "image": "x", "conversations": talk("q", "a", "r", "", "s", "c")}
    examples, problems = read(tmp_path / "x.json", [sample])
    assert [(e.id, e.turn) for e in examples] == [("x#q0", 0), ("x#q2", 2)]
    assert problems[0].example_id == "x"
    assert "turn 3 is empty; this question is left out" in problems[0].reason


def test_broken_lines_in_between(tmp_path: Path) -> None:
    examples, problems = read(tmp_path / "x.jsonl", json.dumps(GOOD) + '\n{"id": \n\n' + json.dumps({**GOOD, "id": "b"}))
    assert [e.id for e in examples] == ["good#q0", "b#q0"]
    assert [p.line for p in problems] == [2]


@pytest.mark.parametrize("content", ["", "  \n ", "nonsense", "[", "3", '"text"'])
def test_files_without_samples(content: str, tmp_path: Path) -> None:
    examples, problems = read(tmp_path / "x", content)
    assert not examples
    assert len(problems) == 1


def test_repeats_and_namesakes(tmp_path: Path) -> None:
    first = {"id": "0001", "image": "a.jpg", "conversations": talk("<image>\nq", "a")}
    namesake = {**first, "image": "b.jpg"}
    again = dict(reversed(first.items()))
    samples = [first, namesake, again, {**namesake}, first, {"id": 1, "image": "c.jpg", "conversations": talk("q", "a")}]
    examples, problems = read(tmp_path / "x.json", samples)
    assert len({e.id for e in examples}) == len(examples) == 3
    assert examples[0].id == "0001#q0"
    stem, _, digest = examples[1].id.partition("~")
    assert stem == "0001"
    assert len(digest) == 8 + len("#q0")
    assert int(digest[:8], 16) >= 0
    assert examples[2].id == "1#q0"
    assert [p.example_id for p in problems] == ["0001"] * 3
    assert all("the same sample was there before" in p.reason for p in problems)
    again_read, _ = read(tmp_path / "x.json", samples)
    assert again_read == examples, "ids do not change from run to run"


def test_marks_are_gone_however_they_are_nested(tmp_path: Path) -> None:
    sample = {"id": "x", "image": "x", "conversations": talk("<ima<image>ge>What?\n<image>", "That.")}
    (example,), _ = read(tmp_path / "x.json", [sample])
    assert (example.question, example.answers) == ("What?", ("That.",))


def test_grouping_by_image_keeps_the_order() -> None:
    def example(name: str, image: str | None, sample: str = "") -> Example:
        return Example(name, "d", image, "q", meta={"sample": sample} if sample else {})

    items = [example("1", "a"), example("2", "a"), example("3", "b"), example("4", None, "s"), example("5", None, "s")]
    items += [example("6", None, "t"), example("7", None), example("8", None), example("9", "a")]
    assert [[e.id for e in group] for group in by_image(items)] == [["1", "2"], ["3"], ["4", "5"], ["6"], ["7"], ["8"], ["9"]]
    assert list(by_image([])) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = ("id", "image", "conversations", "question_id", "text", "question", "answers", "choices", "meta", "dataset")
speakers = st.sampled_from(["human", "gpt"]) | json_values
turns = st.fixed_dictionaries({"from": speakers, "value": st.text(max_size=9) | json_values})
records = st.dictionaries(st.sampled_from(keys), json_values | st.lists(turns, max_size=4), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(records, max_size=6))
def test_any_json_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, samples: list) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(samples))
    problems: list[Problem] = []
    examples = list(read_examples(path, text_only="keep", on_problem=problems.append))
    assert len({e.id for e in examples}) == len(examples)
    assert all(e.question.strip() for e in examples)
    assert len(problems) <= 3 * len(samples) + 1


def test_memory_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("w") as file:
        file.write("[")
        for i in range(5_000):
            pairs = talk(*(f"Question {k} of {i}, with some more words in it?" for k in range(10)))
            file.write(("," if i else "") + json.dumps({"id": f"{i:09d}", "image": f"coco/{i}.jpg", "conversations": pairs}))
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in read_examples(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 25_000
    # 5,000 ids and digests at about 200 bytes each, and the window.
    assert peak < 25e6
