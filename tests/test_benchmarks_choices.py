"""Yes or no, and option letters, official layouts scored by hand: MME, MMBench; MM-Vet's export."""

from __future__ import annotations

import json
from pathlib import Path

import openpyxl
import pytest
from official_files import (
    GOLDEN,
    LETTER,
    config,
    dump,
    dump_lines,
    mmbench_layout,
    mme_layout,
    results,
    said,
)
from PIL import Image
from refusals import refused
from two_passes import Recorder

from cos_core.dialogue.prompts import load_profile
from cos_core.engines.scripted import last_user_text
from cos_core.evaluate import stage as evaluate
from cos_core.files import plug
from cos_core.files.images import FILL
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting

# --- MME -------------------------------------------------------------------------------------------------------------


def test_mme(tmp_path: Path) -> None:
    answers = mme_layout(tmp_path)
    done = results("mme", tmp_path, answers)
    table = done["metrics"]
    assert table["existence"] == pytest.approx({"acc": 5 / 6, "acc_plus": 2 / 3, "score": 150.0, "other": 0})
    assert table["OCR"] == pytest.approx({"acc": 0.5, "acc_plus": 0.0, "score": 50.0, "other": 2})
    assert table["code_reasoning"] == pytest.approx({"acc": 0.5, "acc_plus": 0.5, "score": 100.0, "other": 0})
    assert (table["perception"], table["cognition"]) == (pytest.approx(200.0), pytest.approx(100.0))
    assert done["headline"]["unit"] == "points"
    assert done["headline"]["low"] <= 200 <= done["headline"]["high"]
    assert len(done["protocol"]["missing_categories"]) == 11
    assert results("mme", tmp_path, answers[::-1])["metrics"] == table  # pairs are found by name, not by order


def test_mme_without_pictures_takes_names_from_llavas_file(tmp_path: Path) -> None:
    answers = mme_layout(tmp_path)
    expected = results("mme", tmp_path, answers)["metrics"]
    for picture in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        picture.unlink()
    dump_lines(tmp_path / "llava_mme.jsonl", [{"question_id": row["question_id"]} for row in answers])
    assert results("mme", tmp_path, answers)["metrics"] == expected


def test_mme_broken_text_file(tmp_path: Path) -> None:
    mme_layout(tmp_path)
    (tmp_path / "existence" / "0001.txt").write_text("Is it?\tYes\n")
    with refused(tmp_path / "existence" / "0001.txt"):
        results("mme", tmp_path, [said("existence/0000.jpg", "Yes")])


# --- MMBench ---------------------------------------------------------------------------------------------------------


def test_mmbench_counts_circles(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    done = results("mmbench", tmp_path, answers)
    table = done["metrics"]
    assert (table["questions"], table["samples"]) == (9, 12)
    assert table["accuracy"] == round(100 * 3 / 9, 2)  # questions 1, 3 and 4
    assert table["category"] == {"colour": round(100 * 2 / 7, 2), "count": 50.0}
    assert table["one_round"] == round(100 * 4 / 9, 2)
    low, high = done["intervals"]["accuracy"]
    assert low < 100 * 3 / 9 < high
    _, data = evaluate.load("mmbench", tmp_path)
    third = next(example for example in data.examples if example.id == "3")
    assert third.question == "A hint.\nWhich of 3?\nA. red\nB. blue"
    assert third.suffix == f"\n{LETTER}"
    assert data.examples[1].image == "1.jpg"


@pytest.mark.parametrize("name", ["mmbench", "scienceqa"])
def test_the_request_for_a_letter_stands_where_the_released_evaluation_put_it(name: str, tmp_path: Path) -> None:
    """Upstream 3.4: behind the closing quote of the second instruction only; the paper's profile keeps it in both quotes."""
    mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    _, data = evaluate.load(name, tmp_path if name == "mmbench" else GOLDEN / "scienceqa")
    example = data.examples[0]
    seen: dict[str, list[str]] = {}
    for profile in ("repo-2024", "paper"):
        engine = Recorder()
        setting = Setting(plug.load("policies", "from_single_question"), load_profile(profile), FILL)
        TwoPass(engine, setting).predict([(example, Image.new("RGB", (9, 8)))])
        seen[profile] = [last_user_text(request) for request in engine.seen]
    released, paper = seen["repo-2024"], seen["paper"]
    asked = example.question
    assert released[0] == f'<image>\nTo answer the question: "{asked}", what is the region of interest in the image?'
    assert released[1].endswith(f'<image>\n. Answer the question: "{asked}"\n{LETTER}')
    assert paper[0] == f'<image>\nTo answer the question: "{asked}\n{LETTER}", where is the region of interest in the image?'
    assert paper[1].endswith(f'"{asked}\n{LETTER}"')


def test_mmbench_sheet(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    answers[0]["text"] = "=A\x07"
    upload = tmp_path / "upload.xlsx"
    evaluate.submission(config("mmbench", tmp_path, answers), upload)
    rows = list(openpyxl.load_workbook(upload)["Sheet1"].iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert len(rows) == 13
    assert rows[1][0] == 1
    assert rows[1][6] == "=A", "text, not a formula; control characters cannot stand in a sheet"
    with refused("mmbench", "1 "):
        evaluate.submission(config("mmbench", tmp_path, answers[1:]), tmp_path / "other.xlsx")


def test_mmbench_without_labels_and_in_chinese(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_cn_20231003.tsv", labels=False)
    assert results("mmbench", tmp_path, answers, split="cn")["metrics"] == {"server_scored": True}
    _, data = evaluate.load("mmbench", tmp_path, "cn")
    assert data.examples[0].suffix == "\n请直接回答选项字母。"


def test_mmbench_unpacks_its_pictures(tmp_path: Path) -> None:
    mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv", picture=bytes(range(256)))
    benchmark, data = evaluate.load("mmbench", tmp_path)
    benchmark.unpack(tmp_path)  # type: ignore[attr-defined]
    assert all((data.image_root / (example.image or "")).read_bytes() == bytes(range(256)) for example in data.examples)


def test_mmbench_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text("index\tquestion\tA\tB\tanswer\n1\tWhich?\tx\ty\tC\n")
    with refused(f"{path}:2:", "'C'", "A, B"):
        evaluate.load("mmbench", tmp_path)
    path.write_text("index\tquestion\tA\n1\tWhich?\tx\n")
    with refused(f"{path}:2:", "'B'"):
        evaluate.load("mmbench", tmp_path)
    path.write_text("index\tquestion\tA\tB\none\tWhich?\tx\ty\n")
    with refused(f"{path}:2:", "index", "'one'"):
        evaluate.load("mmbench", tmp_path)


# --- MM-Vet ----------------------------------------------------------------------------------------------------------


def test_mmvet_reads_and_exports(tmp_path: Path) -> None:
    rows = {
        f"v1_{i}": {"imagename": f"v1_{i}.png", "question": f"What is {i}?", "answer": "a<AND>b", "capability": ["ocr", "math"]}
        for i in range(12)
    }
    dump(tmp_path / "mm-vet.json", rows)
    answers = [said(i, f"answer {i}", f"What is {i}?") for i in range(12)]
    done = evaluate.run(config("mmvet", tmp_path, answers))
    assert done.results["metrics"] == {"server_scored": True}
    assert done.counts["ok"] == 12
    evaluate.submission(config("mmvet", tmp_path, answers), tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == json.dumps({f"v1_{i}": f"answer {i}" for i in range(12)}, indent=2)
