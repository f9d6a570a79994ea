"""VQAv2: VQA accuracy. Split "val" is scored here; "test-dev" is scored by EvalAI only, so it gives a submission file.

Scoring is GT-Vision-Lab/VQA's `vqaEval.py` (a013f00), by default on predictions that went through the m4c processor, as in
LLaVA's submissions (`convert_vqav2_for_submission.py`, c121f04): the official scorer does not even lower-case when all ten
annotators agree. The submission holds every question of the test split, empty outside test-dev, in the file's order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._sliced import choice, complete
from cos_core.errors import InputError
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers
from cos_core.types import Example, Prediction

VAL = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
TEST_DEV, TEST = "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_test2015.jsonl"
NEEDS = (
    *(Need((name,), "visualqa.org, version 2, validation", split="val") for name in VAL),
    Need((TEST_DEV,), "LLaVA's evaluation files (eval.zip)", split="test-dev"),
    Need((TEST,), "LLaVA's evaluation files (eval.zip); for the submission", split="test-dev"),
    Need(("val2014",), "images.cocodataset.org/zips/val2014.zip; only to run a model", split="val", optional=True),
    Need(("test2015",), "cocodataset.org, test2015.zip; only to run a model", split="test-dev", optional=True),
)
COUNTS = {"val": 214_354, "test-dev": 107_394}
SPLITS = ("val", "test-dev")


class VqaV2(_vqa.VqaBenchmark):
    """`split` "val" or "test-dev"."""

    name = "vqav2"
    summary = "VQAv2: VQA accuracy on val; test-dev by submission"
    slices = ("answer_type", "question_type")
    unlabelled = ("test-dev",)
    lmms = "lmms-eval"
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        if self.split == "val":
            source = "take both files of the v2 validation split from visualqa.org"
            questions, annotations = (_files.require(root, name, source=source) for name in VAL)
            examples: Sequence[Example] = _vqa.official_examples(questions, annotations, self.name)
            return BenchmarkData(self.name, self.split, examples, _files.image_root(root, "val2014"))
        path = _files.require(root, TEST_DEV, source="take it from LLaVA's evaluation files")
        examples = [Example(key, self.name, row["image"], row["text"]) for key, row in _vqa.asked_texts(path).items()]
        return BenchmarkData(self.name, self.split, examples, _files.image_root(root, "test2015"))

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str | None:
        """EvalAI's JSON list: every test question in order, processed answers, "" outside test-dev."""
        if self.split == "val":
            return None
        source = "a submission lists the whole test split; take it from LLaVA's evaluation files"
        path = _files.require(root, TEST, source=source)
        order = [str(row["question_id"]) for _, row in _files.rows(path, ("question_id",))]
        processed = {example.id: answers.vqa_m4c(answer) for example, answer in complete(data, predictions)}
        if foreign := sorted(set(processed) - set(order)):
            raise InputError(f"{path} lacks question {foreign[0]} of {TEST_DEV}; the files are of different versions")
        return json.dumps([{"question_id": int(key), "answer": processed.get(key, "")} for key in order])


def build(split: str | None = None, scorer: str | None = None) -> VqaV2:
    """`split`: "val" or "test-dev"; `scorer`: "llava" (the default), "official", "m4c" or "lmms-eval"."""
    return VqaV2(choice("vqav2", "split", split, SPLITS), choice("vqav2", "scorer", scorer, _vqa.SCORERS))
