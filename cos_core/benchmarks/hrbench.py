"""HR-Bench: questions on 4K and 8K pictures, of one object (single) or several (cross); option letters, mean over four rounds.

Reads `hr_bench_4k.tsv` or `hr_bench_8k.tsv` of DreamMr/HR-Bench. Each question stands four times with its options rotated, and
the score is the plain mean over all rows, not CircularEval. The option an answer names is found by MMBench's rules without a
judge; the authors ask a judge where rules do not decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cos_core.benchmarks import _files, _tsv
from cos_core.benchmarks._harness import option_rule
from cos_core.benchmarks._sliced import SlicedBenchmark, choice
from cos_core.errors import InputError
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.types import Example

SPLITS = ("4k", "8k")
SOURCE = "DreamMr/HR-Bench on the Hugging Face hub"
# pragma: allowlist nextline secret
MD5 = {"4k": "f6b041b03d49543494b8a56d2e35be65", "8k": "274c9c7f89329b804a4723178a00219c"}
"""Of the two tables, as VLMEvalKit checks them."""
NEEDS = tuple(Need((f"hr_bench_{split}.tsv",), SOURCE, split=split, md5=MD5[split]) for split in SPLITS)
COUNTS = {"4k": 800, "8k": 800}


@dataclass(frozen=True)
class HrBench(SlicedBenchmark):
    """`split` "4k" or "8k". Pictures stand inside the table; `unpack` writes them where a run finds them."""

    split: str
    name = "hrbench"
    summary = "HR-Bench 4K and 8K: option letters on high-resolution pictures, single and cross"
    slices = ("category",)
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        examples = _tsv.examples(self._file(root), (*_tsv.FIELDS, "answer"), str, _example)
        return BenchmarkData(self.name, self.split, examples, root / "images" / self.split)

    def rule(self) -> metrics.Rule:
        return option_rule(answers.option_letter)

    def unpack(self, root: Path) -> list[str]:
        """Writes each row's picture as images/<split>/<index>.jpg."""
        return _tsv.unpack(self._file(root), root / "images" / self.split, str)

    def _file(self, root: Path) -> Path:
        return _files.require(root, f"hr_bench_{self.split}.tsv", source=f"take it from {SOURCE}")


def build(split: str | None = None) -> HrBench:
    """`split`: "4k" (the default) or "8k"."""
    return HrBench(choice("hrbench", "split", split, SPLITS))


def _example(row: Mapping[str, str], where: str) -> Example:
    answer, index = row["answer"].strip(), row["index"]
    options = {letter: row[letter] for letter in _tsv.LETTERS if row.get(letter, "").strip()}
    if answer not in options:
        raise InputError(f"{where}: the answer {answer!r} is not one of the options {', '.join(options)}")
    lines = [row["question"], *(f"{letter}. {option}" for letter, option in options.items()), answers.OPTION_LETTER]
    return Example(
        index,
        "hrbench",
        f"{index}.jpg",
        "\n".join(lines),
        (answer,),
        tuple(options.values()),
        {"category": row.get("category", "")},
        asked=row["question"],
        letters=None if _tsv.LETTERS.startswith(letters := "".join(options)) else letters,
    )
