"""Scoring VQAv2 validation at full size: time, memory, and a plain transcription of the official procedure beside it.

    python benchmarks/eval.py [--questions 214354]

Writes synthetic questions, annotations and predictions in the official layout, scores them as `cos eval vqav2` does in one
process (reading, scoring, intervals, files) and by a straight transcription of vqaEval.py with vqa.py's index in another, and
compares CPU time and score.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = (
    "yes no red blue green two 2 three cat dog surfing pizza left right white black none t-shirt it's girl's 1,000 a.m.".split()  # noqa: SIM905
)
OURS = """
import json, sys
from pathlib import Path
from cos_core import evaluate
from cos_core.evaluate import EvalConfig
root = Path(sys.argv[1])
done = evaluate.run(EvalConfig("vqav2", root, root / "predictions.jsonl", out=root / "out", scorer="official"))
print(json.dumps(done.results["metrics"]["accuracy"]))
"""
PLAIN = """
import copy, json, re, sys
from pathlib import Path
from cos_core.answers import CONTRACTIONS
root = Path(sys.argv[1])
MARKS = list(';/[]"{}()=+\\\\_-><@`,?!')
COMMA, PERIOD = re.compile(r"(\\d)(\\,)(\\d)"), re.compile(r"(?!<=\\d)(\\.)(?!\\d)")
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)]))
NUMBERS = {k: str(v) for k, v in NUMBERS.items()}
def punctuation(text):
    out = text
    for mark in MARKS:
        if (mark + " " in text or " " + mark in text) or re.search(COMMA, text) is not None:
            out = out.replace(mark, "")
        else:
            out = out.replace(mark, " ")
    return PERIOD.sub("", out, re.UNICODE)
def digits(text):
    words = []
    for word in text.lower().split():
        word = NUMBERS.setdefault(word, word)
        if word not in ("a", "an", "the"):
            words.append(word)
    for i, word in enumerate(words):
        if word in CONTRACTIONS:
            words[i] = CONTRACTIONS[word]
    return " ".join(words)
dataset = json.loads((root / "v2_mscoco_val2014_annotations.json").read_text())
asked = json.loads((root / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
by_image, notes, by_id = {}, {}, {}
for a in dataset["annotations"]:
    by_image.setdefault(a["image_id"], []).append(a)
    notes[a["question_id"]] = a
for q in asked["questions"]:
    by_id[q["question_id"]] = q
results = copy.deepcopy(asked["questions"])
said = {r["question_id"]: r["text"] for r in map(json.loads, (root / "predictions.jsonl").open())}
total, by_question, by_answer = [], {}, {}
for key, note in notes.items():
    truth = [dict(a) for a in note["answers"]]
    for a in truth:
        a["answer"] = a["answer"].replace("\\n", " ").replace("\\t", " ").strip()
    guess = said[key].replace("\\n", " ").replace("\\t", " ").strip()
    if len(set(a["answer"] for a in truth)) > 1:
        for a in truth:
            a["answer"] = digits(punctuation(a["answer"]))
        guess = digits(punctuation(guess))
    each = []
    for a in truth:
        others = [b for b in truth if b != a]
        each.append(min(1, len([b for b in others if b["answer"] == guess]) / 3))
    value = sum(each) / len(each)
    total.append(value)
    by_question.setdefault(note["question_type"], []).append(value)
    by_answer.setdefault(note["answer_type"], []).append(value)
tables = [{k: round(100 * sum(v) / len(v), 2) for k, v in group.items()} for group in (by_question, by_answer)]
print(json.dumps(round(100 * sum(total) / len(total), 2)))
"""


def write(root: Path, count: int) -> None:
    """Questions, annotations (ten answers each, one in four unanimous) and predictions; five or six questions an image."""
    draw = random.Random(0)
    questions, notes, lines = [], [], []
    for i in range(count):
        key, image = 10 * i + 1, i * 40_504 // count
        common = f"{draw.choice(WORDS)} {draw.randrange(3000)}" if draw.random() < 0.3 else draw.choice(WORDS)
        share = 10 if draw.random() < 0.25 else draw.randint(2, 9)
        answers = [common] * share + [draw.choice(WORDS) for _ in range(10 - share)]
        questions.append({"question_id": key, "image_id": image, "question": f"What is thing {i}?"})
        rows = [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(answers)]
        kind = draw.choice(["yes/no", "number", "other"])
        notes.append(
            {"question_id": key, "image_id": image, "question_type": f"what {i % 65}", "answer_type": kind, "answers": rows}
        )
        said = common if draw.random() < 0.7 else draw.choice(WORDS)
        lines.append(
            json.dumps({"question_id": key, "prompt": f"What is thing {i}?", "text": said.capitalize() if i % 9 == 0 else said})
        )
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    (root / "predictions.jsonl").write_text("\n".join(lines) + "\n")


def measured(code: str, root: Path) -> tuple[float, float, float]:
    """(score, CPU seconds, peak memory in GB) of one process that runs `code`."""
    wrapped = code + (
        "\nimport resource as _r; _u = _r.getrusage(_r.RUSAGE_SELF)\nprint(_u.ru_utime + _u.ru_stime, _u.ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", wrapped, str(root)], capture_output=True, text=True, check=True)
    score, usage = done.stdout.splitlines()
    cpu, peak = map(float, usage.split())
    return float(score), cpu, peak / 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--questions", type=int, default=214_354)
    count = options.parse_args().questions
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, count)
        ours, plain = measured(OURS, root), measured(PLAIN, root)
    import numpy

    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {numpy.__version__}; VQAv2 val, {count:,} answers")
    print(f"{'':24} {'score':>8} {'CPU s':>8} {'GB':>6}")
    for name, (score, cpu, peak) in (("cos eval, whole command", ours), ("plain transcription", plain)):
        print(f"{name:24} {score:8.2f} {cpu:8.2f} {peak:6.2f}")
    print(f"CPU time ratio {plain[1] / ours[1]:.2f}; equal scores: {ours[0] == plain[0]}")
    if ours[0] != plain[0]:
        sys.exit(1)


if __name__ == "__main__":
    main()
