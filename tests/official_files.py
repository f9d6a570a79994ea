"""What the tests of the benchmarks share: files in official layouts, recorded answers, and their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cos_core import evaluate
from cos_core.evaluate import EvalConfig

LETTER = "Answer with the option's letter from the given choices directly."
GOLDEN = Path(__file__).parent / "golden"
SHORT = "Answer the question using a single word or phrase."


def dump(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def dump_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(benchmark: str, data: Path, answers: Path | list[dict[str, Any]], **more: Any) -> EvalConfig:
    if isinstance(answers, list):
        answers = dump_lines(data / "answers.jsonl", answers)
    return EvalConfig(benchmark, data, answers, replicates=200, **more)


def results(benchmark: str, data: Path, answers: Path | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return evaluate.run(config(benchmark, data, answers, **more)).to_json()["results"]


def said(key: object, text: str, prompt: str | None = None) -> dict[str, Any]:
    return {"question_id": key, "text": text} | ({"prompt": prompt} if prompt is not None else {})
