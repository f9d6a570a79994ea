"""Small finished runs for tests: drawn pictures, questions with gold regions, answers scored by the real `eval` stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cos_core.evaluate import EvalConfig
from cos_core.evaluate import run as evaluate
from cos_core.geometry import Box
from cos_core.types import Example, Prediction

GOLD = (0.25, 0.5, 0.5, 1.0)


def folder(root: Path, questions: int = 4, pictures: int = 2, words: Sequence[str] = ()) -> Path:
    """A folder that the benchmark `scenes` reads; question number i is about picture i % pictures."""
    (root / "images").mkdir(parents=True)
    for number in range(pictures):
        level, green = np.linspace(40, 220, 96).astype(np.uint8), np.full((64, 96), 30 + number * 20 % 200)
        pixels = np.stack([np.tile(level, (64, 1)), green, np.tile(level[::-1], (64, 1))], 2)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"p{number}.png")
    lines = []
    for i in range(questions):
        question = words[i] if i < len(words) else f"what number is on shape {i}?"
        meta = {"kind": ("reading", "colour")[i % 2], "gold": list(GOLD)}
        example = Example(f"s{i}#q0", "toy", f"p{i % pictures}.png", question, (str(i % 10),), meta=meta)
        lines.append(json.dumps(example.to_json()) + "\n")
    (root / "questions.jsonl").write_text("".join(lines))
    return root


def scored(
    root: Path, data: Path, right: Sequence[bool], box: Box | None = None, policy: str = "model", **changes: object
) -> Path:
    """An eval folder at `root` whose i-th answer is right or wrong; every third box could not be used."""
    root.mkdir(parents=True)
    rows = []
    for i, line in enumerate((data / "questions.jsonl").read_text().splitlines()[: len(right)]):
        example = Example.from_json(json.loads(line))
        used = box is not None and i % 3 != 2
        prediction = Prediction(
            example.id,
            example.answers[0] if right[i] else "x",
            box if used else None,
            None if box is None else "[0.200, 0.400, 0.600, 0.900]" if used else "red",
            "skipped" if box is None else "ok" if used else "unparsable",
            policy,
            question=example.question,
            image=example.image,
        )
        rows.append(json.dumps(prediction.to_json()) + "\n")
    (root / "predictions.jsonl").write_text("".join(rows))
    evaluate(EvalConfig("scenes", data, root / "predictions.jsonl", root, replicates=50))
    return root
