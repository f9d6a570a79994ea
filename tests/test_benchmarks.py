"""Every benchmark: the contract, then its official numbers (tests/golden) or a hand-scored fixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.evaluate import stage as evaluate
from cos_core.files import plug

GOLDEN = Path(__file__).parent / "golden"


def run(benchmark: str, data: Path, predictions: Path | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The manifest of a scoring run, as the command line prints it."""
    if isinstance(predictions, list):
        path = data / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in predictions))
        predictions = path
    return evaluate.run(EvalConfig(benchmark, data, predictions, replicates=200, **more)).to_json()


@pytest.mark.parametrize("name", plug.available("benchmarks"))
def test_contract(name: str, tmp_path: Path) -> None:
    benchmark = plug.load("benchmarks", name)
    assert benchmark.name == name
    assert benchmark.summary
    assert "\n" not in benchmark.summary
    with pytest.raises(InputError):
        benchmark.load(tmp_path)  # an empty folder: a sentence that says what to fetch
    with pytest.raises(InputError):
        benchmark.load(tmp_path / "absent")
    with pytest.raises(InputError):
        plug.load("benchmarks", name, split="../no such split")


# --- POPE ------------------------------------------------------------------------------------------------------------


def test_pope_equals_the_official_script() -> None:
    done = run("pope", GOLDEN / "pope", GOLDEN / "pope" / "predictions.jsonl")
    expected = json.loads((GOLDEN / "pope" / "expected.json").read_text())
    found = done["results"]["metrics"]
    assert found.keys() == expected.keys()
    assert found["mean_f1"] == pytest.approx(expected["mean_f1"], abs=1e-12)
    for category in ("adversarial", "popular", "random"):
        assert found[category] == pytest.approx(expected[category], abs=1e-12)
    assert done["status"] == "complete"
    low, high = done["results"]["intervals"]["mean_f1"]
    assert low < expected["mean_f1"] < high


def test_pope_with_the_label_files_alone(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "pope" / "coco", tmp_path / "coco")
    _, data = evaluate.load("pope", tmp_path)
    _, llava = evaluate.load("pope", GOLDEN / "pope")
    assert len(data.examples) == 178
    assert data.examples[0].id == "adversarial-1"
    assert {(e.image, e.question, e.answers) for e in data.examples} == {
        (e.image, e.question, e.answers) for e in llava.examples
    }


def test_pope_refuses_the_other_random_file(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "pope", tmp_path, dirs_exist_ok=True)
    labels = tmp_path / "coco" / "coco_pope_random.json"
    rows = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join([*rows, rows[0], rows[1]]))
    with pytest.raises(InputError, match=r"60 labels .* 58 random questions"):
        run("pope", tmp_path, tmp_path / "predictions.jsonl")
    labels.write_text("".join([rows[1], rows[0], *rows[2:]]))
    with pytest.raises(InputError, match=r"coco_pope_random\.json:1 and .*ask different questions"):
        run("pope", tmp_path, tmp_path / "predictions.jsonl")


def test_pope_missing_and_reordered_answers_do_not_shift_the_rest(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (GOLDEN / "pope" / "predictions.jsonl").read_text().splitlines()]
    shutil.copytree(GOLDEN / "pope", tmp_path, dirs_exist_ok=True)
    shuffled = run("pope", tmp_path, rows[::-1])
    straight = run("pope", tmp_path, rows)
    assert shuffled["results"]["metrics"] == straight["results"]["metrics"]
    assert shuffled["counts"]["reordered"] == 177
    # Question 1 is a true "yes" answered yes: without its answer one hit turns into one miss and nothing else moves.
    shorter = run("pope", tmp_path, [row for row in rows if row["question_id"] != 1])
    table, before = shorter["results"]["metrics"]["adversarial"], straight["results"]["metrics"]["adversarial"]
    assert (table["tp"], table["fn"]) == (before["tp"] - 1, before["fn"] + 1)
    assert shorter["results"]["problems"]["missing"] == ["1"]
    assert shorter["status"] == "partial"


def test_pope_published_confusion_matrix(tmp_path: Path) -> None:
    """TP 1183, FP 31, TN 1379, FN 317 give the published F1 0.87178, accuracy 0.88041, precision 0.97446, recall 0.78867."""
    (tmp_path / "coco").mkdir()
    answers = []
    for category in ("adversarial", "popular", "random"):
        lines = []
        cells = [("yes", "yes")] * 1183 + [("no", "yes")] * 31 + [("no", "no")] * 1379 + [("yes", "no")] * 317
        for number, (label, said) in enumerate(cells):
            text = f"Is there a thing{number} in the image?"
            lines.append(json.dumps({"question_id": number, "image": "x.jpg", "text": text, "label": label}) + "\n")
            answers.append({"example_id": f"{category}-{number}", "answer": said})
        (tmp_path / "coco" / f"coco_pope_{category}.json").write_text("".join(lines))
    table = run("pope", tmp_path, answers)["results"]["metrics"]["popular"]
    found = [round(table[key], 5) for key in ("f1", "accuracy", "precision", "recall")]
    assert found == [0.87178, 0.88041, 0.97446, 0.78867]
