"""V*Bench: small objects in large pictures; attributes of one object, or how two lie to each other. Options by letter.

Reads `test_questions.jsonl` of craigwu/vstar_bench, whose texts hold the options and the format sentence. The option an answer
names is found by MMBench's rules without a judge; the authors rank the options by likelihood instead, so figures of models that
answer freely are their own protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import option_rule
from cos_core.benchmarks._sliced import SlicedBenchmark, choice
from cos_core.errors import InputError
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.types import Example

SOURCE = "craigwu/vstar_bench on the Hugging Face hub"
NEEDS = (
    Need(("test_questions.jsonl",), SOURCE),
    Need(("direct_attributes",), f"{SOURCE}; only to run a model", optional=True),
    Need(("relative_position",), f"{SOURCE}; only to run a model", optional=True),
)
COUNTS = {"test": 191}
_OPTION = re.compile(r"^\(([A-D])\)\s*(.+)$", re.MULTILINE)


class VStar(SlicedBenchmark):
    """One split."""

    name = "vstar"
    summary = "V*Bench: small objects in large pictures, option letters by category"
    slices = ("category",)
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, "test_questions.jsonl", source=f"take it from {SOURCE}")
        rows = _files.rows(path, ("question_id", "image", "text", "label", "category"))
        return BenchmarkData(self.name, "test", [_example(row, f"{path}:{line}") for line, row in rows], root)

    def rule(self) -> metrics.Rule:
        return option_rule(answers.option_letter)


def build(split: str | None = None) -> VStar:
    """`split`: only "test"."""
    choice("vstar", "split", split, ("test",))
    return VStar()


def _example(row: Mapping[str, Any], where: str) -> Example:
    options = dict(_OPTION.findall(row["text"]))
    if row["label"] not in options:
        raise InputError(f"{where}: the label {row['label']!r} is not one of the options {', '.join(options) or '(none)'}")
    text = row["text"] if answers.OPTION_LETTER in row["text"] else f"{row['text']}\n{answers.OPTION_LETTER}"
    return Example(
        str(row["question_id"]),
        "vstar",
        row["image"],
        text,
        (row["label"],),
        tuple(options.values()),
        {"category": row["category"]},
        asked=row["text"].split("\n")[0],
    )
