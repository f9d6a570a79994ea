"""OKVQA (val2014): questions that need outside knowledge, in the layout of VQA version 1; VQA accuracy.

The five annotators' answers stand twice, so ten equal answers are common, and then the official scorer (`vqaEval.py` a013f00,
the text of Chain-of-Spot's `scripts/eval_okvqa.py`) normalises nothing. Which processing the paper used is not known; the
default here runs predictions through the m4c processor first; the scorer "official" leaves them as they are.
"""

from __future__ import annotations

from pathlib import Path

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._sliced import choice
from cos_core.interfaces import BenchmarkData, Need

FILES = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")

NEEDS = (
    *(Need((name,), "okvqa.allenai.org, version 1.1") for name in FILES),
    Need(("val2014",), "images.cocodataset.org/zips/val2014.zip; only to run a model", optional=True),
)
COUNTS = {"val": 5_046}


class OkVqa(_vqa.VqaBenchmark):
    """One split."""

    name = "okvqa"
    summary = "OKVQA val2014: VQA accuracy, questions that need outside knowledge"
    slices = ("question_type",)
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        source = "take both files of OK-VQA v1.1 from okvqa.allenai.org"
        questions, annotations = (_files.require(root, name, source=source) for name in FILES)
        examples = _vqa.official_examples(questions, annotations, self.name)
        return BenchmarkData(self.name, "val", examples, _files.image_root(root, "val2014"))


def build(split: str | None = None, scorer: str | None = None) -> OkVqa:
    """`split`: only "val"; `scorer`: "llava" (the default), "official", "m4c" or "lmms-eval" (its scoring is m4c's)."""
    return OkVqa(choice("okvqa", "split", split, ("val",)), choice("okvqa", "scorer", scorer, _vqa.SCORERS))
