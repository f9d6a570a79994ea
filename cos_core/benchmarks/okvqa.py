"""OKVQA (val2014): questions that need outside knowledge, in the layout of VQA version 1; VQA accuracy.

The five annotators' answers stand twice, so ten equal answers are common, and then the official scorer (`vqaEval.py` a013f00,
the text of Chain-of-Spot's `scripts/eval_okvqa.py`) normalises nothing. Which processing the paper used is not known; the
default here runs predictions through the m4c processor first; the scorer "official" leaves them as they are.
"""

from __future__ import annotations

from pathlib import Path

from cos_core.benchmarks import _files, _vqa
from cos_core.interfaces import BenchmarkData

FILES = ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")

NEEDS = (
    *(_files.Need((name,), "okvqa.allenai.org, version 1.1") for name in FILES),
    _files.Need(("val2014",), "images.cocodataset.org/zips/val2014.zip; only to run a model", optional=True),
)
COUNTS = {"val": 5_046}


def build(split: str | None = None, scorer: str | None = None) -> _vqa.VqaScores:
    """`split`: only "val"; `scorer`: "llava" (the default), "official", "m4c" or "lmms-eval" (its scoring is m4c's)."""
    split = _vqa.chosen("okvqa", "split", split, ("val",))
    scorer = _vqa.chosen("okvqa", "scorer", scorer, _vqa.SCORERS)
    summary = "OKVQA val2014: VQA accuracy, questions that need outside knowledge"
    return _vqa.VqaScores("okvqa", split, scorer, summary, slices=("question_type",), needs=NEEDS, counts=COUNTS, load=_load)


def _load(root: Path) -> BenchmarkData:
    source = "take both files of OK-VQA v1.1 from okvqa.allenai.org"
    questions, annotations = (_files.require(root, name, source=source) for name in FILES)
    examples = _vqa.official_examples(questions, annotations, "okvqa")
    return BenchmarkData("okvqa", "val", examples, _files.image_root(root, "val2014"))
