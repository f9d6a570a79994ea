"""VizWiz-VQA: questions of blind people, some unanswerable. Split "val" is scored here, "test" gives a submission file.

The default scorer "vizwiz" is the rule of the challenge's public evaluation tool: min(1, n/3) for n of the ten answers that
equal the prediction, which goes through both normalising steps of vqaEval.py, while the answers are taken as they are. (Copies
of that tool in other repositories leave each annotator out in turn: 0.3, 0.6 and 0.9 for 1, 2 and 3 equal answers instead of
1/3, 2/3 and 1.) "m4c" is the processing of LLaVA's submissions (`convert_vizwiz_for_submission.py`, c121f04) on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.benchmarks._sliced import choice, complete
from cos_core.files.big_json import read_json_list
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers
from cos_core.types import Example, Prediction

SUFFIX = f"{answers.UNANSWERABLE}\n{answers.SHORT_ANSWER}"
SOURCE = "take val.json (or test.json) from vizwiz.org"

NEEDS = (
    Need(("val.json", "Annotations/val.json"), "vizwiz.org, VQA annotations", split="val"),
    Need(("llava_test.jsonl", "test.json", "Annotations/test.json"), "LLaVA's files, or vizwiz.org", split="test"),
    Need(("val",), "val.zip of VizWiz; only to run a model", split="val", optional=True),
    Need(("test",), "test.zip of VizWiz; only to run a model", split="test", optional=True),
)
SCORERS = ("vizwiz", "m4c", "llava", "official", LMMS, VLM)
COUNTS = {"val": 4_319, "test": 8_000}


class VizWiz(_vqa.VqaBenchmark):
    """`split` "val" or "test"."""

    name = "vizwiz"
    summary = "VizWiz: VQA accuracy on val; test by submission"
    slices = ("answer_type",)
    unlabelled = ("test",)
    scorers = SCORERS
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        examples = _labelled(root) if self.split == "val" else _unlabelled(root)
        return BenchmarkData(self.name, self.split, examples, _files.image_root(root, self.split))

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str | None:
        """The challenge's JSON list of image and processed answer."""
        if self.split == "val":
            return None
        pairs = complete(data, predictions)
        return json.dumps([{"image": example.image, "answer": answers.vqa_m4c(answer)} for example, answer in pairs])


def build(split: str | None = None, scorer: str | None = None) -> VizWiz:
    """`split`: "val" or "test"; `scorer`: "vizwiz" (the challenge's own, the default), "m4c", "llava", "official", "lmms-eval"
    (its scoring is m4c's) or "vlmevalkit"."""
    return VizWiz(choice("vizwiz", "split", split, ("val", "test")), choice("vizwiz", "scorer", scorer, SCORERS))


def _labelled(root: Path) -> list[Example]:
    path = _files.require(root, "val.json", "Annotations/val.json", source=SOURCE)
    examples = []
    for line, _, row in read_json_list(path):
        where = f"{path}:{line}"
        _files.demand(row, ("image", "question", "answers"), where)
        ten = _vqa.ten([a.get("answer") if isinstance(a, dict) else None for a in row["answers"]], where)
        meta = {"answer_type": str(row.get("answer_type", "other"))}
        text = f"{row['question']}\n{SUFFIX}"
        examples.append(Example(row["image"], "vizwiz", row["image"], text, ten, meta=meta, asked=row["question"]))
    return examples


def _unlabelled(root: Path) -> list[Example]:
    """LLaVA's question file where it is there, else the official list."""
    prepared = _files.optional(root, "llava_test.jsonl")
    if prepared:
        return [Example(key, "vizwiz", row["image"], row["text"]) for key, row in _vqa.asked_texts(prepared).items()]
    path = _files.require(root, "test.json", "Annotations/test.json", source=SOURCE)
    examples = []
    for line, _, row in read_json_list(path):
        _files.demand(row, ("image", "question"), f"{path}:{line}")
        examples.append(Example(row["image"], "vizwiz", row["image"], f"{row['question']}\n{SUFFIX}"))
    return examples
