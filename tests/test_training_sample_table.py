"""The table of samples equals the plain list of them, whatever the data file looks like, and notices when that is changed."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from training_world import BOX, Collected, Ears, collected, config, examples, make_world, recipe

from cos_core import training
from cos_core.annotate import AnnotateConfig
from cos_core.annotate.stage import windows
from cos_core.data.datasets import Snapshot, read_examples
from cos_core.data.released import ReleasedRegions
from cos_core.errors import CosError, InputError
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.training import sample_table
from cos_core.training.dataset import TrainDataset, TrainingItem
from cos_core.training.sample_table import SampleSet
from cos_core.training.samples import Rules
from cos_core.training.skipped import SkipCounts, SkipFile, Skipped
from cos_core.types import Annotation, Example

GOLDEN = Path(__file__).resolve().parent / "golden" / "original" / "expected"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def built(place: Path, data: Path, policy: str = "none", annotations: Any = None, on_no_region: Any = "full") -> SampleSet:
    place.mkdir()
    sample_table.build(place, data, Rules(plug.load("policies", policy), 0, on_no_region), annotations)
    return sample_table.opened(place)


def equal(found: SampleSet, expected: Collected) -> None:
    """Samples with the lines of their questions, outlines, ids, and everything that was left out."""
    assert list(found.samples) == expected.samples
    lines = [[question.line for question in sample.questions] for sample in expected.samples]
    assert [[question.line for question in sample.questions] for sample in found.samples] == lines
    every = range(len(expected.samples))
    assert [found.samples.outline(i) for i in every] == [sample.outline for sample in expected.samples]
    assert [found.samples.id(i) for i in every] == [sample.id for sample in expected.samples]
    assert list(found.skipped) == expected.skipped
    assert list(found.lacking) == expected.lacking
    assert list(found.shifted) == expected.shifted
    assert (found.region_questions, len(found.lacking)) == (expected.region_questions, len(expected.lacking))
    assert found.mixed == (len({sample.image is None for sample in expected.samples}) == 2)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def all_kinds() -> list[dict[str, Any]]:
    """Conversations, questions and examples of our own; repeats, namesakes, texts beyond ASCII, empty turns, broken records."""
    a = {"id": "a", "image": "0.png", "conversations": turns("<image>\nq\u00e9?", "\U0001f600 a", "two?", "2")}
    return [
        a,
        {"id": "a", "image": "0.png", "conversations": turns("other?", "yes")},
        a,
        {"id": "words", "conversations": turns("Hello\nthere", "Hi")},
        {"id": "half", "image": "1.png", "conversations": turns("  ", "lost", "kept?", "yes")},
        {"id": "odd", "image": "1.png", "conversations": turns("alone?")},
        {"question_id": 7, "image": "2.png", "text": "what?"},
        {"id": "e1", "image": "2.png", "question": "q1", "answers": ["a"], "meta": {"sample": "joined", "index": 3}},
        {"id": "e2", "image": "2.png", "question": "q2", "answers": ["b"], "meta": {"sample": "joined", "index": 3}},
        {"id": "e3", "image": "2.png", "question": "q3", "answers": ["c"], "meta": {"sample": "joined"}},
        {"id": "e4", "image": "3.png", "question": "q4", "answers": ["d"]},
        {"id": "e5", "image": "3.png", "question": "q5"},
        # The questions of one record in two samples, the second of which goes on in the next record.
        {
            "id": "split",
            "image": "3.png",
            "conversations": turns("s0", "0", "s1", "1", "s2", "2"),
            "meta": [{"sample": "left"}, {"sample": "right"}, {"sample": "right"}],
        },
        {"id": "more", "image": "3.png", "conversations": turns("s3", "3"), "meta": [{"sample": "right"}]},
        {"id": "last", "image": "0.png", "conversations": turns("end?", "yes"), "meta": [{"gold": [0, 0.25, 1, 1]}]},
    ]


def write(path: Path, layout: str) -> None:
    records = all_kinds()
    if layout == "list":
        path.write_text(json.dumps([*records[:5], 3, *records[5:]]))
    elif layout == "list by hand":
        text = "\ufeff [\n" + " ,\n\n".join(json.dumps(r, indent=1, ensure_ascii=False) for r in records) + "\n]\n"
        path.write_text(text, encoding="utf-8")
    else:
        lines = [json.dumps(r, ensure_ascii=False) for r in records]
        ending = "\r\n" if layout == "lines of Windows" else "\n"
        text = ("\ufeff" if layout == "lines of Windows" else "") + ending.join([*lines[:2], "", "{torn", "[]", *lines[2:]])
        path.write_bytes(text.encode())


LAYOUTS = ("list", "list by hand", "lines", "lines of Windows")


@pytest.mark.parametrize("chunk", [37, 2**22])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_of_all_kinds(tmp_path: Path, layout: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cos_core.files.json_window.CHUNK", chunk)
    data = tmp_path / "data.json"
    write(data, layout)
    problems: list[Any] = []
    listed = list(read_examples(data, text_only="keep", on_problem=problems.append))
    assert len(listed) == 16
    for policy in ("none", "full", "gold", "random"):
        found = built(tmp_path / policy, data, policy)
        equal(found, collected(listed, plug.load("policies", policy), None))
        assert list(found.named_problems()) == problems
    joined = next(sample for sample in found.samples if sample.id == "joined")
    assert [question.id for question in joined.questions] == ["e1", "e2", "e3"]
    right = next(sample for sample in found.samples if sample.id == "right")
    assert [question.question for question in right.questions] == ["s1", "s2", "s3"]


@contextmanager
def gaps(folder: Path, listed: list[Example]) -> Iterator[Store]:
    """A store that lacks some questions, failed at some, found nothing for some and saw another picture for some."""
    draw = random.Random(5)
    with Store.create_or_resume(folder, "f", {}) as store:
        for i, example in enumerate(listed):
            x, y = draw.uniform(0, 0.5), draw.uniform(0, 0.5)
            box = Box(x, y, x + draw.uniform(1e-3, 0.5), y + 0.1)
            if i % 5 == 1:
                store.put_failures([(example.id, "torn")])
            elif i % 5 == 2:
                store.put_many([Annotation(example.id, None, 0.0, "p", "f", reason="no relevance")])
            elif i % 5 != 3:
                image = "other.png" if i % 10 == 0 else example.image
                store.put_many([Annotation(example.id, box, 1.0, "p", "f", image=image)])
        yield store


@pytest.mark.parametrize("on_no_region", ["full", "skip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_of_a_store(tmp_path: Path, layout: str, on_no_region: str) -> None:
    data = tmp_path / "data.json"
    write(data, layout)
    listed = list(read_examples(data, text_only="keep", on_problem=lambda _: None))
    with gaps(tmp_path / "store", listed) as store:
        policy = plug.load("policies", "from_single_question")
        found = built(tmp_path / "table", data, "from_single_question", store, on_no_region)
        expected = collected(listed, policy, store, on_no_region)
    equal(found, expected)
    assert expected.lacking
    assert expected.skipped
    assert any(one.lacking for one in expected.skipped) == any(
        one.id in {other.id for other in expected.lacking} for one in expected.skipped
    )


def test_regions_as_released(tmp_path: Path) -> None:
    data, regions = GOLDEN / "ef_data.json", ReleasedRegions(GOLDEN / "ef_chain-of-spot.json")
    listed = list(read_examples(data, text_only="keep", on_problem=lambda _: None))
    expected = collected(listed, plug.load("policies", "from_single_question"), regions)
    equal(built(tmp_path / "table", data, "from_single_question", regions), expected)
    shifted = {f"{(i + 7) * (i % 2) + i:06d}_{e.sample}_q{e.turn}": [1, 2, 30] for i, e in enumerate(listed)}
    other = tmp_path / "shifted.json"
    other.write_text(json.dumps({**{key: {"params": value} for key, value in shifted.items()}, "junk": 1}))
    expected = collected(listed, plug.load("policies", "from_single_question"), ReleasedRegions(other))
    found = built(tmp_path / "other", data, "from_single_question", ReleasedRegions(other))
    equal(found, expected)
    assert expected.shifted
    assert [one.id for one in found.unusable] == ["junk"]
    assert found.regions == other


# Items, in processes


def seen(item: TrainingItem) -> tuple[Any, ...]:
    return (
        item.id,
        item.encoded,
        [(picture.size, picture.tobytes()) for picture in item.pictures],
        item.skipped,
        item.filler,
        item.fallback,
    )


@pytest.mark.parametrize("policy", ["from_single_question", "none", "random"])
def test_items_equal_those_of_the_list_in_every_epoch_and_process(world: Path, tmp_path: Path, policy: str) -> None:
    import torch

    with gaps(tmp_path / "store", examples(world)[:-2]) as store:
        listed = collected(examples(world), plug.load("policies", policy), store)
        found = built(tmp_path / "table", world / "data.json", policy, store)
    broken = replace(
        listed.samples[1], questions=tuple(structs.replace(q, image="gone.png") for q in listed.samples[1].questions)
    )
    assert broken != listed.samples[1]
    made = recipe(world, policy)
    plain, mapped = TrainDataset(listed.samples, made), TrainDataset(found.samples, made)
    size = len(plain)
    keys = [*range(4 * size), *(-key - 1 for key in range(size))]
    expected = [seen(plain[key]) for key in keys]
    assert [seen(mapped[key]) for key in keys] == expected
    assert [mapped.length(i, epoch) for epoch in range(3) for i in range(size)] == [
        plain.length(i, epoch) for epoch in range(3) for i in range(size)
    ]
    for context in ("fork", "spawn"):
        if policy != "none" and context == "spawn":
            continue
        loader: Any = torch.utils.data.DataLoader(
            mapped,  # type: ignore[arg-type]
            batch_size=None,
            sampler=keys,
            num_workers=2,
            multiprocessing_context=context,
        )
        assert [seen(item) for item in loader] == expected


def test_a_table_travels_to_another_process_by_its_path(world: Path, tmp_path: Path) -> None:
    found = built(tmp_path / "table", world / "data.json")
    sent = pickle.dumps(found.samples)
    assert len(sent) < 1000
    assert list(pickle.loads(sent)) == list(found.samples)


# Changes of the data file


def test_a_data_file_that_changes_is_an_error_and_no_other_sample(tmp_path: Path, world: Path) -> None:
    data = tmp_path / "data.json"
    data.write_bytes((world / "data.json").read_bytes())
    found = built(tmp_path / "table", data)
    items = TrainDataset(found.samples, recipe(world, "none"))
    assert items[0].id == "s0"
    before, times = data.read_bytes(), (data.stat().st_atime_ns, data.stat().st_mtime_ns)
    data.write_bytes(before + b"\n")
    for act in (lambda: items[0], lambda: sample_table.opened(tmp_path / "table")):
        with pytest.raises(CosError, match=r"data\.json has changed since it was first read") as error:
            act()
        assert not isinstance(error.value, InputError), "that would be a sample to skip"
    # A change that size and time do not show: the record is no JSON, or another sample.
    for text, words in ((b'"id"; "s0"', "cannot be read any more"), (b'"id": "s9"', "does not hold the sample 's0'")):
        data.write_bytes(before.replace(b'"id": "s0"', text))
        os.utime(data, ns=times)
        with pytest.raises(CosError, match=words):
            items[0]
        assert items[1].id == "s1"
    # A file that is put in its place does not matter to those who read the old one.
    data.write_bytes(before)
    os.utime(data, ns=times)
    assert items[0].id == "s0"
    (tmp_path / "new").write_bytes(b"[]")
    (tmp_path / "new").replace(data)
    assert items[0].id == "s0"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_whose_data_changes_stops_with_a_sentence(
    world: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cos_core.training import runtime

    data = tmp_path / "data.json"
    data.write_bytes((world / "data.json").read_bytes())
    arguments = runtime.arguments

    def changing(*given: Any) -> Any:
        with data.open("ab") as file:
            file.write(b"\n")
        return arguments(*given)

    monkeypatch.setattr(runtime, "arguments", changing)
    with pytest.raises(CosError) as error:
        training.run(config(world, tmp_path / "out", data=data, workers=workers), SilentReporter())
    assert str(error.value) == f"{data} has changed since it was first read; leave it as it is and run again"


def test_a_full_disk_is_named(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_table, "_ROWS", 1)

    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_table.np, "array", full)
    with pytest.raises(InputError, match=r"No space left on device; TMPDIR names another place"):
        built(tmp_path / "table", world / "data.json")


# Reasons


def test_reasons_are_counted_and_all_of_them_kept(tmp_path: Path) -> None:
    log = SkipFile(tmp_path / "log")
    every = [Skipped(f"e{i}", "common" if i % 2 else f"rare \udc80 {i}", line=i, lacking=i % 3 == 0) for i in range(1000)]
    for one in every:
        log.append(one)
    log.close()
    again = SkipFile(tmp_path / "log", log.reasons)
    assert (list(again), len(again)) == (every, 1000)
    assert len(log.reasons.counts) == 200, "memory does not grow with the number of different reasons"
    assert str(log.reasons).startswith("500 x common (first: e1); 1 x rare")
    assert str(log.reasons).endswith("and more than 197 further reasons")
    few = SkipCounts.of([Skipped("a", "x"), Skipped("b", "y"), Skipped("c", "y"), Skipped("d", "z"), Skipped("e", "w")])
    assert str(few) == "2 x y (first: b); 1 x x (first: a); 1 x z (first: d) and 1 further reasons"


def test_a_file_without_regions_leaves_no_list_in_memory(world: Path, tmp_path: Path) -> None:
    """What is left out is in `skipped.jsonl`, and told by its number."""
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        store.put_many([Annotation("s0#q1", BOX, 1.0, "p", "f")])
    ears = Ears()
    made = config(world, tmp_path / "out", store=tmp_path / "store", on_no_region="skip", max_steps=1, max_no_region=1.0)
    done = training.run(made, ears)
    assert done.counts == {"ok": 2, "failed": 0, "skipped": 11}
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 11
    assert any("11 of 12 questions about pictures have no region and are left out" in text for text in ears.warnings)


# Memory


@pytest.mark.slow
def test_processes_share_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark in small: what a rank and its four workers hold for samples, and what the list of them takes."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import train_memory

    few, many = (train_memory.write(tmp_path / str(n), n, "released") for n in (1280, 40_000))
    without = train_memory.measured("table", few, many.samples)
    found, listed = (train_memory.measured(way, many, many.samples) for way in ("table", "list"))
    assert found["letters"] == listed["letters"] > 0
    held, former = found["pss"] - without["pss"], listed["pss"] - without["pss"]
    assert former > 40_000 * 800, "at least one copy of objects of 800 bytes a question"
    assert held < former / 4


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 12])
def test_a_limit_counts_questions_and_ends_with_a_whole_sample(tmp_path: Path, limit: int) -> None:
    """What lies behind the limit is neither a sample nor counted, and `cos annotate` with the same limit covers the rest."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps(all_kinds()))
    rules = Rules(plug.load("policies", "from_single_question"), 0, limit=limit)
    with Store.create_or_resume(tmp_path / "store", "f", {}) as store:
        (tmp_path / "table").mkdir()
        sample_table.build(tmp_path / "table", data, rules, store)
    limited = sample_table.opened(tmp_path / "table")
    whole = built(tmp_path / "whole", data)
    assert [sample.id for sample in limited.samples] == [sample.id for sample in whole.samples][: len(limited.samples)]
    asked = [question for sample in limited.samples for question in sample.questions]
    assert limited.partial
    assert not whole.partial
    assert len(asked) - len(limited.samples[-1].questions) < limit
    pictured = {question.id for question in asked if question.image is not None}
    assert pictured <= {skipped.id for skipped in limited.lacking}
    assert len(limited.lacking) == limited.region_questions
    job = AnnotateConfig(data, tmp_path, "no model", tmp_path / "regions", policy="gold", limit=limit)
    annotated = {example.id for window in windows(job, Snapshot(data)) for group in window for example in group}
    assert pictured <= annotated
    assert len(pickle.loads(pickle.dumps(limited.samples))) == len(limited.samples), "in a worker process, too"
