"""Numbers that the official scripts gave, to the last digit: ScienceQA, SEED-Bench, TextVQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from official_files import GOLDEN, config, results
from refusals import refused

from cos_core.evaluate import stage as evaluate


@pytest.mark.parametrize("name", ["scienceqa", "seed", "textvqa"])
def test_every_golden_number(name: str) -> None:
    found = results(name, GOLDEN / name, GOLDEN / name / "predictions.jsonl")
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    assert {key: found["metrics"].get(key) for key in expected} == expected


def test_seed_upload_file(tmp_path: Path) -> None:
    upload = tmp_path / "upload.jsonl"
    evaluate.submission(config("seed", GOLDEN / "seed", GOLDEN / "seed" / "predictions.jsonl"), upload)
    assert upload.read_text() == (GOLDEN / "seed" / "expected_upload.jsonl").read_text()


def test_seed_split_and_missing_answers(tmp_path: Path) -> None:
    answers = [json.loads(line) for line in (GOLDEN / "seed" / "predictions.jsonl").read_text().splitlines()]
    (tmp_path / "SEED-Bench.json").write_text((GOLDEN / "seed" / "SEED-Bench.json").read_text())
    assert results("seed", tmp_path, answers, split="image")["metrics"]["Total"] == 35.43
    with refused("seed", "1 ", "'100000'"):
        evaluate.submission(config("seed", tmp_path, answers[1:]), tmp_path / "upload.jsonl")
    assert not (tmp_path / "upload.jsonl").exists()


def test_scienceqa_without_marked_prompts_goes_by_the_problems_picture(tmp_path: Path) -> None:
    answers = [json.loads(line) for line in (GOLDEN / "scienceqa" / "predictions.jsonl").read_text().splitlines()]
    for name in ("problems.json", "pid_splits.json"):
        (tmp_path / name).write_text((GOLDEN / "scienceqa" / name).read_text())
    ours = [{"example_id": row["question_id"], "answer": row["text"], "policy": "none"} for row in answers]
    found = results("scienceqa", tmp_path, ours)["metrics"]
    assert found["accuracy"] == 40.0
    assert found["image_total"] == 32  # the one without an answer is in it now
    assert found["image_accuracy"] == 31.25
    assert results("scienceqa", tmp_path, ours, split="test-image")["metrics"]["accuracy"] == 31.25


def test_textvqa_protocol_and_prompts() -> None:
    found = results("textvqa", GOLDEN / "textvqa", GOLDEN / "textvqa" / "predictions.jsonl")
    assert found["protocol"]["ocr_tokens"] == "mixed"
    assert found["protocol"]["scorer"] == "m4c"
