"""LLaVA's ready-made question files: the prompts are theirs, the scores stay what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from official_files import GOLDEN, LETTER, SHORT, config, dump, dump_lines, results, said

from cos_core.evaluate import stage as evaluate


def test_prepared_gqa_questions(tmp_path: Path) -> None:
    types = {"structural": "verify", "semantic": "obj"}
    rows = {f"2{i}": {"question": f"Is it {i}?", "answer": "yes", "imageId": f"n{i}", "types": types} for i in range(3)}
    dump(tmp_path / "testdev_balanced_questions.json", rows)
    images = {key: f"{row['imageId']}.jpg" for key, row in rows.items()}
    prepared = [
        {"question_id": key, "image": image, "text": f"Is it {key[1:]}?\nIn one word."} for key, image in images.items()
    ]
    prompts = check_prepared("gqa", tmp_path, "llava_gqa_testdev_balanced.jsonl", prepared, "yes")
    assert prompts == [row["text"] for row in prepared]


def test_prepared_seed_questions(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "seed" / "SEED-Bench.json", tmp_path)
    _, data = evaluate.load("seed", tmp_path)
    prepared = [{"question_id": e.id, "image": f"x/{e.id}.jpg", "text": f"Now: {e.question}"} for e in data.examples]
    prompts = check_prepared("seed", tmp_path, "llava-seed-bench.jsonl", prepared, "A")
    assert prompts == [row["text"] for row in prepared]
    assert [e.image for e in evaluate.load("seed", tmp_path)[1].examples] == [row["image"] for row in prepared]


def test_prepared_textvqa_questions(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "textvqa" / "TextVQA_0.5.1_val.json", tmp_path)
    _, data = evaluate.load("textvqa", tmp_path)
    below = f"Reference OCR token: A, B\n{SHORT}"
    prepared = [{"question_id": e.question_id, "image": e.image, "text": f"{e.asked}\n{below}"} for e in data.examples]
    prompts = check_prepared("textvqa", tmp_path, "llava_textvqa_val_v051_ocr.jsonl", prepared, "x")
    assert prompts == [row["text"] for row in prepared]
    found = results("textvqa", tmp_path, [said(row["question_id"], "x", row["text"]) for row in prepared])
    assert found["protocol"]["ocr_tokens"] == "yes"
    assert all("OCR" not in e.question for e in evaluate.load("textvqa", tmp_path, "val-plain")[1].examples)


def test_prepared_vizwiz_questions(tmp_path: Path) -> None:
    names = [f"VizWiz_test_{i:08d}.jpg" for i in range(12)]
    prepared = [{"question_id": name, "image": name, "text": f"What {name}?\n{SHORT}"} for name in names]
    dump_lines(tmp_path / "llava_test.jsonl", prepared)
    answers = [said(row["question_id"], "A cat.", row["text"]) for row in prepared]
    evaluate.submission(config("vizwiz", tmp_path, answers, split="test"), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [{"image": row["image"], "answer": "cat"} for row in prepared]


def test_prepared_scienceqa_questions(tmp_path: Path) -> None:
    for name in ("problems.json", "pid_splits.json"):
        shutil.copy(GOLDEN / "scienceqa" / name, tmp_path)
    _, data = evaluate.load("scienceqa", tmp_path)
    turns = {
        e.id: [{"from": "human", "value": f"<image>\nText of {e.id}"}, {"from": "gpt", "value": "A"}] for e in data.examples
    }
    dump(tmp_path / "llava_test_CQM-A.json", [{"id": key, "conversations": talk} for key, talk in turns.items()])
    asked = evaluate.load("scienceqa", tmp_path)[1].examples
    assert [(e.id, e.question) for e in asked] == [(e.id, f"Text of {e.id}") for e in data.examples]
    # Apart from the question: the profile says where it stands.
    assert {e.suffix for e in asked} == {f"\n{LETTER}"}


def check_prepared(name: str, root: Path, file: str, prepared: list[dict[str, Any]], text: str) -> list[str]:
    """The prompts once LLaVA's file is there; its answers and answers by our ids score the same with and without it."""
    before = evaluate.load(name, root)[1].examples
    ours = [{"example_id": e.id, "answer": text} for e in before]
    expected = results(name, root, ours)["metrics"]
    dump_lines(root / file, prepared)
    theirs = [said(row["question_id"], text, row["text"]) for row in prepared]
    assert results(name, root, ours)["metrics"] == results(name, root, theirs)["metrics"] == expected
    return [e.question for e in evaluate.load(name, root)[1].examples]
