"""Records by the million: what columns and packed rows give back, and that their memory grows slowly with the rows."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core import evaluate
from cos_core.benchmarks import _vqa
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.files.big_json import read_listed
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.scoring import columns
from cos_core.scoring.columns import ById, Examples, Following, IdColumn, Scores
from cos_core.scoring.recorded import Recorded
from cos_core.types import Example, Prediction, Sample, Score
from cos_core.visualize import runs, select
from cos_core.visualize.export import RunExportConfig
from cos_core.visualize.export import run as export

TEXTS = st.text(st.characters(), max_size=8)
NUMBERS = st.floats(allow_nan=False) | st.integers(-(2**70), 2**70)
STEERING = st.fixed_dictionaries(
    {},
    optional={
        "sample": TEXTS,
        "turn": st.integers(0, 9),
        "question_id": TEXTS | st.integers(0, 2**70),
        "suffix": TEXTS,
        "asked": TEXTS,
        "gold": st.just(Box(0.1, 0.25, 0.5, 1.0)),
        "targets": st.just(((0.5, 0.25), (0.0, 1.0))),
    },
)
META = st.dictionaries(TEXTS, TEXTS | NUMBERS | st.none() | st.booleans() | st.lists(NUMBERS, max_size=3), max_size=3)
GROUPS = st.dictionaries(st.sampled_from(["image", "kind", "box_status", "x"]), TEXTS, max_size=3)


EXAMPLES = st.builds(
    lambda steering, *parts, meta: Example(*parts, meta=meta, **steering),
    STEERING,
    TEXTS.filter(bool),
    TEXTS,
    st.none() | TEXTS,
    TEXTS,
    st.tuples(TEXTS),
    meta=META,
)


@given(st.lists(EXAMPLES, max_size=6))
def test_packed_questions_are_the_questions(given: list[Example]) -> None:
    packed = Examples(given)
    assert list(packed) == given
    assert packed == given
    assert packed[1:] == given[1:]
    assert packed.steering == {name for each in given for name in each.steering()}
    assert [name for name, *_ in packed.asked()] == packed.ids.names == [each.id for each in given]
    assert [suffix for *_, suffix in packed.asked()] == [each.suffix for each in given]
    assert [Example.from_json(each.to_json()) for each in given] == given


@given(st.lists(st.builds(Score, TEXTS, NUMBERS, st.none() | TEXTS, st.none() | TEXTS, GROUPS, st.none() | TEXTS), max_size=8))
def test_columns_of_scores_are_the_scores(given: list[Score]) -> None:
    scores = Scores(given)
    assert list(scores) == given
    assert [list(each.groups) for each in scores] == [list(each.groups) for each in given]
    assert list(map(repr, scores.values())) == [repr(each.value) for each in given]
    assert scores.group("kind") == [each.groups.get("kind") for each in given]
    odd = list(range(1, len(given), 2))
    assert list(scores.take(odd)) == [given[place] for place in odd]


def test_many_texts_and_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_TEXTS", 10)
    groups = [{"image": f"p{i // 3}", **({"k": "a"} if i % 7 else {})} for i in range(500)]
    given = [Score(str(i), float(i % 2), f"said {i}", None, group) for i, group in enumerate(groups)]
    assert list(Scores(given)) == given


@pytest.mark.parametrize(("names", "same"), [("abc", True), ("ab", False), ("acb", False), ("abcd", False), ("", False)])
def test_ids_that_follow_others_are_theirs(names: str, same: bool) -> None:
    known = IdColumn(list("abc"))
    following = Following(known)
    for name in names:
        following.add(name)
    assert following.ids().names == list(names)
    assert (following.ids() is known) == same


def test_of_an_id_that_stands_twice_the_last_row_counts() -> None:
    twice = ById(IdColumn(["a", "b", "a"]), [1, 2, 3])
    assert dict(twice) == {"a": 3, "b": 2}
    assert not twice.ids.unique()


@pytest.mark.parametrize("step", [1, 3, 7, 50, 4000])
def test_a_list_is_read_a_piece_at_a_time(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces are, nested objects and texts that look like borders included."""
    monkeypatch.setattr("cos_core.files.json_window.CHUNK", step)
    border = '}}, {{"question_id": 1 é'
    notes = [{"question_id": i, "answers": [{"answer": border}] * (i % 4), "more": {"question": [i]}} for i in range(60)]
    for indent in (None, 2):
        path = tmp_path / "a.json"
        path.write_text(json.dumps({"info": {"annotations": [1]}, "annotations": notes, "license": "x"}, indent=indent))
        found = list(read_listed(path, "annotations", _vqa._Label, "question_id"))
        assert [(each.question_id, [a.answer for a in each.answers]) for each in found] == [
            (each["question_id"], [a["answer"] for a in each["answers"]]) for each in notes
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"annotations": [{"question_id": 1, "answers": []}, {"question_id": 2}]}', r"at \$\.annotations\[1\]"),
        ('{"annotations": [{"question_id": 1, "answers": []}, 7]}', r"at \$\.annotations\[1\]"),
        ('{"annotations": [{"question_id": 1, "answers": []} {"question_id": 2}]}', "expected ','"),
        ('{"annotations": [{"question_id": 1, "answers": []}', "expected ','"),
        ('{"annotations": [{"question_id": 1, "answers": []}]', "expected ','"),
        ('{"annotations": [{"question_id": 1, "answers": []}]} x', "behind the object"),
        ('{"annotation": []}', "no list 'annotations'"),
        ("[]", "not a JSON object"),
        ("", "not a JSON object"),
    ],
)
def test_a_list_of_another_layout_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        list(read_listed(path, "annotations", _vqa._Label, "question_id"))


def test_recorded_answers_are_found_again(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"example_id":"a","answer":"x","box":[0,0,1,1],"box_status":"ok"}',
        b'{"example_id":"\\ud800","answer":null,"error":"e","seconds":3}',
        b'{"question_id":7,"text":"t","prompt":["no text"]}',
        b"",
        b'{"example_id":"b"}',
        b'{"example_id":"c","answer":"z","box":{"box":[0.1,0.1,0.5,0.5],"frame":"image"},"new":[1]}',
        b'{"torn',
    ]
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(lines))
    recorded = Recorded(path)
    walked = list(recorded.walk())
    assert [line for line, _ in walked] == [1, 2, 3, 6]
    assert [each.line for each in recorded.unreadable] == [5, 7]
    for order in (range(4), reversed(range(4)), (2, 2, 0)):
        for row in order:
            assert recorded[row] == walked[row][1]
    again = Recorded(path)
    assert list(again.walk()) == walked
    path.write_bytes(path.read_bytes().replace(b'{"question_id":7', b'{"question_ix":7'))
    with pytest.raises(InputError, match="has changed while it was read"):
        again[2]


def test_the_quick_reader_keeps_what_is_written_only_where_it_is_set(tmp_path: Path) -> None:
    drawn = Sample("3", Box(0.1, 0.2, 0.5, 0.6), "[0.1]", "ok", {"pass2_out": 1}, "black")
    kept = [
        Prediction("plain", "7"),
        Prediction("shown", "7", shown="swap: b.png", transient=True),
        Prediction("open", "7", plain="3", margin=0.125, gate="open", tokens={"plain_in": 4}),
        Prediction("closed", "3", plain="3", margin=2, gate="closed"),
        Prediction("drawn", "3", samples=(drawn, Sample("7"))),
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(each.to_json()) + "\n" for each in kept))
    recorded = Recorded(path)
    assert [each for _, each in recorded.walk()] == kept == list(recorded)
    broken = [{"example_id": "a", "answer": "x", **other} for other in ({"gate": "ajar"}, {"samples": 3}, {"margin": "wide"})]
    path.write_text("".join(json.dumps(each) + "\n" for each in broken))
    refused = Recorded(path)
    assert not list(refused.walk())
    assert [each.line for each in refused.unreadable] == [1, 2, 3]


def pope(root: Path, rows: int) -> Path:
    """POPE's files and a run's answers of `rows` questions."""
    (root / "coco").mkdir(parents=True)
    kinds = ("adversarial", "popular", "random")
    lines: dict[str, list[str]] = {name: [] for name in (*kinds, "asked", "said")}
    known = {"box": [0.1, 0.2, 0.5, 0.6], "box_text": "[0.1, 0.2, 0.5, 0.6]", "box_status": "ok", "seconds": 0.25}
    for i in range(rows):
        image, text = f"COCO_val2014_{i // 20:012d}.jpg", f"Is there a thing {i} in the image?"
        row: dict[str, Any] = {"question_id": i, "image": image, "text": text}
        lines[kinds[i % 3]].append(json.dumps({**row, "label": "yes" if i % 2 else "no"}))
        lines["asked"].append(json.dumps({**row, "category": kinds[i % 3]}))
        answer = {"example_id": str(i), "answer": "yes" if i % 5 else "no", "question": text, "image": image}
        lines["said"].append(json.dumps({**answer, **known}))
    for kind in kinds:
        (root / "coco" / f"coco_pope_{kind}.json").write_text("\n".join(lines[kind]))
    (root / "llava_pope_test.jsonl").write_text("\n".join(lines["asked"]))
    (root / "p.jsonl").write_text("\n".join(lines["said"]))
    return root


def peak(work: Any) -> int:
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_grows_by_less_than_a_kilobyte_a_row(tmp_path: Path) -> None:
    """By growth between two sizes, which needs no machine to be quiet: a million rows then stay below 1 GiB.

    Lists of records took 2.5 (eval) to 6 (export) kilobytes a row.
    """
    small, large = 300, 1200
    peaks: dict[str, list[int]] = {}
    for rows in (30, small, large):  # the first loads what is loaded once
        data = pope(tmp_path / str(rows), rows)
        out = tmp_path / f"out{rows}"

        def score(data: Path = data, out: Path = out) -> None:
            evaluate.run(EvalConfig("pope", data, data / "p.jsonl", out, replicates=2))

        def look(out: Path = out) -> None:
            found = runs.load([out], runs.RunSources(), SilentReporter())
            select.selected_ids(found, select.Selection(flipped=False, wrong=True))

        def send(out: Path = out, rows: int = rows) -> None:
            export(RunExportConfig(out, tmp_path / f"{rows}.json", "label-studio"), SilentReporter())

        for name, work in (("eval", score), ("report", look), ("export", send)):
            peaks.setdefault(name, []).append(peak(work))
    growth = {name: (more - less) / (large - small) for name, (_, less, more) in peaks.items()}
    print(growth)
    assert all(each < 900 for each in growth.values()), growth
