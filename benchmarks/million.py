"""A million predictions through every command that reads them all: time, peak memory and count of each.

    python benchmarks/million.py [--rows 1000000] [--only pope,vqav2,...] [--keep FOLDER]

Writes POPE's and VQAv2's official files with two runs of recorded answers (as `cos infer` writes them, with boxes, some of them
not readable) below TMPDIR, about 2.3 GB for a million, and runs each command in a process of its own. Pictures are links to one
small file. Memory is the peak resident size that the kernel names for the process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CATEGORIES = ("adversarial", "popular", "random")
OBJECTS = "person car dog dining table chair cup bottle bowl umbrella handbag sports ball traffic light".split()  # noqa: SIM905
WORDS = "yes no red blue green two 2 three cat dog surfing pizza left right white black none t-shirt 1,000 a.m.".split()  # noqa: SIM905
LIMIT_GIB = 1.0


def write(root: Path, rows: int) -> None:
    """Both benchmarks' files, the pictures, and answers of two runs to each."""
    pictures = max(1, rows // 25)
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(pictures)]
    (root / "pope" / "coco").mkdir(parents=True)
    (root / "vqav2").mkdir()
    _pictures(root, names)
    _pope(root / "pope", names, rows)
    _vqav2(root / "vqav2", pictures, rows)
    for run, seed in (("a", 1), ("b", 2)):
        _lines(root / f"pope-{run}.jsonl", _answers(root / "pope" / "llava_pope_test.jsonl", seed))
        _lines(root / f"vqav2-{run}.jsonl", _vqa_answers(rows, pictures, seed))


def _pictures(root: Path, names: list[str]) -> None:
    folder = root / "pope" / "val2014"
    folder.mkdir()
    Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / names[0])
    for name in names[1:]:
        (folder / name).symlink_to(names[0])
    (root / "vqav2" / "val2014").symlink_to(folder)


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _pope(root: Path, names: list[str], rows: int) -> None:
    with (root / "llava_pope_test.jsonl").open("w", encoding="utf-8") as asked:
        number = 0
        for place, category in enumerate(CATEGORIES):
            with (root / "coco" / f"coco_pope_{category}.json").open("w", encoding="utf-8") as labels:
                for i in range(rows * place // 3, rows * (place + 1) // 3):
                    text = f"Is there a {OBJECTS[i % len(OBJECTS)]} in the image?"
                    row = {"question_id": i, "image": names[i * len(names) // rows], "text": text}
                    labels.write(json.dumps({**row, "label": "yes" if i % 2 else "no"}) + "\n")
                    prompt = f"{text}\nAnswer the question using a single word or phrase."
                    asked.write(json.dumps({**row, "question_id": number, "text": prompt, "category": category}) + "\n")
                    number += 1


def _vqav2(root: Path, pictures: int, rows: int) -> None:
    draw = random.Random(0)
    questions = (root / "v2_OpenEnded_mscoco_val2014_questions.json").open("w", encoding="utf-8")
    notes = (root / "v2_mscoco_val2014_annotations.json").open("w", encoding="utf-8")
    with questions, notes:
        questions.write('{"info": {"version": "2.0"}, "questions": [')
        notes.write('{"info": {"version": "2.0"}, "annotations": [')
        for i in range(rows):
            comma, key, image = ", " if i else "", 10 * i + 1, i * pictures // rows
            said = [draw.choice(WORDS)] * draw.randint(2, 10)
            said += [draw.choice(WORDS) for _ in range(10 - len(said))]
            question = {"image_id": image, "question": f"What is the thing {i} beside the tree?", "question_id": key}
            each = [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(said)]
            kind = ("yes/no", "number", "other")[i % 3]
            note = {"question_type": f"what {i % 65}", "multiple_choice_answer": said[0], "answers": each, "image_id": image}
            questions.write(comma + json.dumps(question))
            notes.write(comma + json.dumps({**note, "answer_type": kind, "question_id": key}))
        questions.write("]}\n")
        notes.write("]}\n")


def _answers(questions: Path, seed: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)
    with questions.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield _answer(str(row["question_id"]), draw.choice(("Yes", "No")), row["text"], row["image"], draw)


def _vqa_answers(rows: int, pictures: int, seed: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)
    for i in range(rows):
        question = f"What is the thing {i} beside the tree?\nAnswer the question using a single word or phrase."
        image = f"COCO_val2014_{i * pictures // rows:012d}.jpg"
        yield _answer(str(10 * i + 1), draw.choice(WORDS), question, image, draw)


def _answer(example_id: str, answer: str, question: str, image: str, draw: random.Random) -> dict[str, Any]:
    x0, y0 = round(0.5 * draw.random(), 3), round(0.5 * draw.random(), 3)
    box = [x0, y0, round(x0 + 0.4, 3), round(y0 + 0.3, 3)]
    readable = draw.random() < 0.9
    return {
        "example_id": example_id,
        "answer": answer,
        "box": box if readable else None,
        "box_text": str(box) if readable else "[0.1, 0.2",
        "box_status": "ok" if readable else "unparsable",
        "policy": "from_single_question",
        "profile": "paper",
        "question": question,
        "image": image,
        "tokens": {"first_in": 620, "first_out": 18, "second_in": 1210 + draw.randrange(9), "second_out": 3},
        "seconds": round(draw.random(), 4),
        "fingerprint": "0123456789abcdef",
        "error": None,
    }


def commands(root: Path) -> dict[str, list[str]]:
    """A name and the arguments of `cos`; the later ones read what the earlier ones wrote."""
    at = {name: str(root / name) for name in ("pope", "vqav2", "out")}
    runs = {name: str(root / "out" / name) for name in ("pope-a", "pope-b", "vqav2-a", "vqav2-b")}

    def scored(name: str, benchmark: str) -> list[str]:
        return ["eval", benchmark, "--predictions", f"{root / name}.jsonl", "--data", at[benchmark], "--out", runs[name]]

    found = {f"eval {name}": scored(name, name.partition("-")[0]) for name in runs}
    found |= {
        f"eval compare {name}": ["eval", "compare", runs[f"{name}-a"], runs[f"{name}-b"], "--out", f"{at['out']}/{name}.jsonl"]
        for name in ("pope", "vqav2")
    }
    pair = [runs["pope-a"], runs["pope-b"]]
    found["eval report"] = [
        "eval",
        "report",
        "--paper",
        f"base-13b={pair[0]}",
        f"cos-13b={pair[1]}",
        "--out",
        f"{at['out']}/paper",
    ]
    found["report, one run"] = ["visualize", "report", runs["vqav2-a"], "--out", f"{at['out']}/one.html"]
    found["report, two runs"] = ["visualize", "report", *pair, "--out", f"{at['out']}/two.html"]
    pictures = ["--images", f"{at['pope']}/val2014"]
    found["report, answers"] = ["visualize", "report", f"{root}/pope-a.jsonl", *pictures, "--out", f"{at['out']}/answers.html"]
    found["contact sheet"] = ["visualize", "compare", *pair, "--flipped", "--out", f"{at['out']}/flipped.png"]
    found["stats"] = ["visualize", "stats", f"{root}/pope-a.jsonl", "--out", f"{at['out']}/stats"]
    for format in ("coco", "fiftyone", "label-studio", "lmms-eval"):
        arguments = ["visualize", "export", runs["pope-a"], "--format", format, "--out", f"{at['out']}/{format}.json"]
        found[f"export {format}"] = arguments
    return found


def measured(arguments: list[str]) -> tuple[int, float, float, float]:
    """(exit status, seconds, CPU seconds, peak GiB) of one `cos` in a process of its own."""
    import time

    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "cos_cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--only", default="", help="names of commands, or beginnings of them, with commas")
    options.add_argument("--keep", type=Path, help="a folder for the inputs, used again when it holds them")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = given.keep or Path(scratch)
        if not (root / "vqav2-b.jsonl").exists():
            write(root, given.rows)
        print(f"{platform.machine()}, Python {platform.python_version()}; {given.rows:,} predictions")
        print(f"{'cos':24} {'exit':>4} {'seconds':>8} {'CPU s':>8} {'peak GiB':>9}")
        high = False
        for name, arguments in commands(root).items():
            if given.only and not any(name.startswith(start) for start in given.only.split(",")):
                continue
            status, seconds, cpu, peak = measured(arguments)
            high |= peak > LIMIT_GIB or status != 0
            print(f"{name:24} {status:4} {seconds:8.1f} {cpu:8.1f} {peak:9.2f}", flush=True)
    sys.exit(high)


if __name__ == "__main__":
    main()
