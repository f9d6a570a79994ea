"""Scoring VQAv2 validation at full size: time, memory, and a plain transcription of the official procedure beside it.

    python benchmarks/eval.py [--questions 214354]

Writes synthetic questions, annotations and predictions in the official layout, scores them as `cos eval vqav2` does in one
process (reading, scoring, intervals, files) and by the plain procedure of vqaEval.py and vqa.py (tests/reference) in another,
which needs no intervals and writes nothing, and compares CPU time and every score. The results file that the plain one reads is
made beforehand.
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
from typing import Any

WORDS = (
    "yes no red blue green two 2 three cat dog surfing pizza left right white black none t-shirt it's girl's 1,000 a.m.".split()  # noqa: SIM905
)
REFERENCE = Path(__file__).parent.parent / "tests" / "reference" / "vqa_reference.py"
OURS = """
import json, sys
from pathlib import Path
from cos_core import evaluate
from cos_core.evaluate import EvalConfig
root = Path(sys.argv[1])
done = evaluate.run(EvalConfig("vqav2", root, root / "predictions.jsonl", out=root / "out", scorer="official"))
names = {"accuracy": "overall", "question_type": "perQuestionType", "answer_type": "perAnswerType"}
print(json.dumps({theirs: done.results["metrics"][name] for name, theirs in names.items()}))
"""
PLAIN = """
import runpy, sys
root = sys.argv[1]
files = ("v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json", "results.json")
sys.argv[1:] = [f"{root}/{name}" for name in files]
runpy.run_path(REFERENCE, run_name="__main__")
""".replace("REFERENCE", repr(str(REFERENCE)))


def write(root: Path, count: int) -> None:
    """Questions, annotations (ten answers each, one in four unanimous) and predictions; five or six questions an image."""
    draw = random.Random(0)
    questions, notes, lines, results = [], [], [], []
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
        said = said.capitalize() if i % 9 == 0 else said
        lines.append(json.dumps({"question_id": key, "prompt": f"What is thing {i}?", "text": said}))
        results.append({"question_id": key, "answer": said})
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    (root / "results.json").write_text(json.dumps(results))
    (root / "predictions.jsonl").write_text("\n".join(lines) + "\n")


def measured(code: str, root: Path) -> tuple[dict[str, Any], float, float]:
    """(scores, CPU seconds, peak memory in GB) of one process that runs `code`, start-up included."""
    wrapped = code + (
        "\nimport resource as _r; _u = _r.getrusage(_r.RUSAGE_SELF)\nprint(_u.ru_utime + _u.ru_stime, _u.ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", wrapped, str(root)], stdout=subprocess.PIPE, text=True, check=True)
    scores, usage = done.stdout.splitlines()
    cpu, peak = map(float, usage.split())
    return json.loads(scores), cpu, peak / 1e6


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
    for name, (scores, cpu, peak) in (("cos eval, whole command", ours), ("plain transcription", plain)):
        print(f"{name:24} {scores['overall']:8.2f} {cpu:8.2f} {peak:6.2f}")
    groups = len(ours[0]["perQuestionType"]) + len(ours[0]["perAnswerType"])
    print(f"CPU time ratio {plain[1] / ours[1]:.2f}; equal scores, overall and in {groups} groups: {ours[0] == plain[0]}")
    if ours[0] != plain[0]:
        sys.exit(1)


if __name__ == "__main__":
    main()
