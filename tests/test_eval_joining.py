"""Answers that do not find their questions, and scores of the first questions only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from official_files import GOLDEN, config, dump_lines, results
from refusals import refused

from cos_cli import main
from cos_core import evaluate
from cos_core.files import manifest

# --- joining is checked ----------------------------------------------------------------------------------------------


def quiz(folder: Path, count: int) -> Path:
    rows = [
        {"id": f"q{n}", "dataset": "quiz", "image": f"{n}.png", "question": f"What is {n}?", "answers": ["x"]}
        for n in range(count)
    ]
    return dump_lines(folder / "questions.jsonl", rows).parent


def answered(count: int, astray: int, extra: int = 0) -> list[dict[str, Any]]:
    """One answer a question, the last `astray` of them under ids of another spelling, and `extra` to no question at all."""
    ids = [*(f"q{n}" for n in range(count - astray)), *(f"images/q{n}" for n in range(count - astray, count))]
    return [{"example_id": key, "answer": "x", "policy": "none"} for key in [*ids, *(f"extra{n}" for n in range(extra))]]


@pytest.mark.parametrize(
    ("count", "astray", "extra", "is_refused"),
    [
        (10, 10, 0, True),  # none belongs
        (20, 4, 0, True),  # the border: one in five
        (20, 3, 0, False),
        (20, 0, 15, False),  # answers of a larger set: nothing is missing
        (20, 5, 1, True),  # five of six are astray
        (20, 5, 4, False),  # nearly half belong to another set
        (4, 2, 0, True),
    ],
)
def test_a_wrong_join_is_no_score(tmp_path: Path, count: int, astray: int, extra: int, is_refused: bool) -> None:
    data = quiz(tmp_path, count)
    settings = config("scenes", data, answered(count, astray, extra))
    if not is_refused:
        done = evaluate.run(settings)
        assert (done.counts["unknown"], done.counts["missing"]) == (astray + extra, astray)
        assert "partial_join" not in done.results
        return
    first = count - astray
    with refused(f"'images/q{first}'", f"'q{first}'"):
        evaluate.run(settings)
    if astray < count:
        done = evaluate.run(dataclasses.replace(settings, partial_join=True))
        assert done.counts["unknown"] == astray + extra
        assert "belong to no question" in done.results["partial_join"]
        assert done.config["partial_join"] is True


def test_a_share_of_missing_questions_alone_is_no_wrong_join(tmp_path: Path) -> None:
    done = evaluate.run(config("scenes", quiz(tmp_path, 20), answered(20, 0)[:2]))
    assert (done.counts["missing"], done.counts["unknown"]) == (18, 0)


def test_the_same_id_with_another_prompt_is_named(tmp_path: Path) -> None:
    rows = [{**row, "question": "Where\nis \x1b[31mit?"} for row in answered(6, 0)]
    with refused("6 ", "'q0'") as caught:
        results("scenes", quiz(tmp_path, 6), rows)
    assert "'What is 0?'" in str(caught.value)
    assert "\x1b" not in str(caught.value)


# --- the first questions only ----------------------------------------------------------------------------------------


def test_a_limit_marks_the_score_and_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = quiz(tmp_path, 8)
    answers = dump_lines(tmp_path / "answers.jsonl", [*answered(8, 0)[2:], *answered(8, 0, 3)[7:]])
    scored = ["eval", "scenes", "--data", str(data), "--predictions", str(answers), "-q"]
    assert main.run([*scored, "--limit", "4", "--out", str(tmp_path / "four")]) == 0
    assert "PARTIAL: only the first 4 questions (--limit 4)" in capsys.readouterr().out
    found = manifest.read(tmp_path / "four")
    assert (found.counts["total"], found.counts["ok"], found.counts["missing"]) == (4, 2, 2)
    assert (found.results["metrics"]["accuracy"], found.results["protocol"]["limit"]) == (0.5, 4)
    assert main.run([*scored, "--out", str(tmp_path / "all")]) == 0
    assert main.run(["eval", "compare", str(tmp_path / "four"), str(tmp_path / "all")]) == 3
    assert "limit: 4 against none" in capsys.readouterr().err
    assert main.run([*scored, "--limit", "8", "--json"]) == 0
    assert "limit" not in json.loads(capsys.readouterr().out)["protocol"], "all of them are no part"
    for name, folder in (("mme", "mme"), ("pope", "pope"), ("seed", "seed_doubled"), ("scienceqa", "scienceqa")):
        golden = GOLDEN / folder
        part = results(name, golden, golden / "predictions.jsonl", limit=3)
        assert (part["n"], part["protocol"]["limit"]) == (3, 3)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nosuch"], 3, "nosuch"),
        (["pope", "nosuch"], 3, "nosuch"),
        (["pope"], 2, "--data"),
        (["pope", "--data", "x", "--predictions", "y", "--submissions"], 2, "--submissions"),
        (["pope", "--data", "x", "--predictions", "y", "--submissions", "--limit", "3", "--out", "z"], 2, "--limit"),
        (["pope", "--data", "x", "--predictions", "y", "--limit", "0"], 2, "--limit"),
    ],
)
def test_what_cannot_be_meant(capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str) -> None:
    assert main.run(["eval", *words]) == code
    assert message in capsys.readouterr().err
