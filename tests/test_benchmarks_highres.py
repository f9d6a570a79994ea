"""V*Bench and HR-Bench: small fixtures in their layouts, scored by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

from PIL import Image
from refusals import refused

from cos_core.evaluate import EvalConfig
from cos_core.evaluate import stage as evaluate

ASK = "Answer with the option's letter from the given choices directly."


def vstar(folder: Path, count: int = 12) -> Path:
    rows = [
        {
            "question_id": i,
            "image": f"{'direct_attributes' if i < 8 else 'relative_position'}/{i}.jpg",
            "text": f"What is the colour of thing {i}?\n(A) red\n(B) green\n(C) blue\n(D) white\n{ASK}",
            "label": "ABCD"[i % 4],
            "category": "direct_attributes" if i < 8 else "relative_position",
        }
        for i in range(count)
    ]
    (folder / "test_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def score(benchmark: str, folder: Path, said: dict[str, str], **more: str) -> dict[str, object]:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps({"question_id": k, "text": v}) + "\n" for k, v in said.items()))
    return dict(evaluate.run(EvalConfig(benchmark, folder, file, replicates=100, **more)).results["metrics"])  # type: ignore[arg-type]


def test_vstar(tmp_path: Path) -> None:
    vstar(tmp_path)
    # A letter, one in brackets, one with its text, the text alone, two letters (undecided), a wrong one, none, right.
    said = ["A", "(B)", "C. blue", "It is white.", "A or B", "A", "", "D"]
    found = score("vstar", tmp_path, {str(i): text for i, text in enumerate([*said, "A", "B", "C", "nothing"])})
    assert found == {
        "samples": 12,
        "accuracy": round(100 * 8 / 12, 2),
        "category": {"direct_attributes": 62.5, "relative_position": 75.0},
    }
    _, data = evaluate.load("vstar", tmp_path)
    assert data.examples[0].choices == ("red", "green", "blue", "white")
    assert data.examples[0].question.count(ASK) == 1
    row = {"question_id": 1, "image": "x", "text": "no options", "label": "A", "category": "c"}
    (tmp_path / "test_questions.jsonl").write_text(json.dumps(row))
    with refused(f"{tmp_path / 'test_questions.jsonl'}:1:", "label", "'A'"):
        evaluate.load("vstar", tmp_path)


def test_hrbench(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 24), "blue").save(picture, "JPEG")
    cell = base64.b64encode(picture.getvalue()).decode()
    with (tmp_path / "hr_bench_4k.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "question", "A", "B", "C", "D", "answer", "category", "image"])
        for i in range(12):
            shown = cell if i % 4 == 0 else str(i - i % 4)
            writer.writerow([i, "Which?", "cat", "dog", "cow", "hen", "ABCD"[i % 4], "single" if i < 8 else "cross", shown])
    found = score("hrbench", tmp_path, {str(i): "ABCD"[i % 4] if i != 3 else "a hen" for i in range(10)})
    # Ten of twelve: the last two have no answer. Row 3 names its option by text.
    assert found == {"samples": 12, "accuracy": 83.33, "category": {"single": 100.0, "cross": 50.0}}
    benchmark, data = evaluate.load("hrbench", tmp_path)
    benchmark.unpack(tmp_path)  # type: ignore[attr-defined]
    assert sorted(p.name for p in (tmp_path / "images" / "4k").iterdir()) == ["0.jpg", "4.jpg", "8.jpg"]
    assert [example.image for example in data.examples[:5]] == ["0.jpg"] * 4 + ["4.jpg"]
    with refused(tmp_path, "hr_bench_8k.tsv"):
        evaluate.load("hrbench", tmp_path, "8k")
