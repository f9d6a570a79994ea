"""TextVQA (val 0.5.1): reading scene text; VQA accuracy as LLaVA's `eval_textvqa.py` and `m4c_evaluator.py` (c121f04) score it.

With LLaVA's question file the prompts carry Rosetta's OCR tokens, which is worth 10 points and more: the protocol says whether
the recorded prompts had them. LLaVA's answers name the image, not the question, so they are joined by image and question.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.benchmarks._sliced import choice
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers
from cos_core.types import Example, Prediction

SOURCE = "take TextVQA_0.5.1_val.json from the TextVQA site, llava_textvqa_val_v051_ocr.jsonl from LLaVA's evaluation files"
NEEDS = (
    Need(("TextVQA_0.5.1_val.json",), "textvqa.org/dataset"),
    Need(("llava_textvqa_val_v051_ocr.jsonl",), "LLaVA's evaluation files (eval.zip): the OCR tokens", optional=True),
    Need(("train_images",), "train_val_images.zip of TextVQA; only to run a model", optional=True),
)
COUNTS = {"val": 5_000, "val-plain": 5_000}
SPLITS = ("val", "val-plain")
SCORERS = ("m4c", "llava", "official", LMMS, VLM)
_OCR_MARKS = ("Reference OCR token: ", "OCR tokens: ")


class TextVqa(_vqa.VqaBenchmark):
    """`split` "val-plain" asks without OCR tokens even where LLaVA's question file is there."""

    name = "textvqa"
    summary = "TextVQA val 0.5.1: VQA accuracy, with OCR tokens when LLaVA's question file is there"
    scorers = SCORERS
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, "TextVQA_0.5.1_val.json", source=SOURCE)
        prepared = _files.optional(root, "llava_textvqa_val_v051_ocr.jsonl") if self.split == "val" else None
        prompts = _prompts(prepared) if prepared else {}
        examples = []
        for place, row in enumerate(_files.listed(path, "data")):
            where = f"{path}: question {place}"
            _files.demand(row, ("question_id", "question", "image_id", "answers"), where)
            question, image = row["question"], row["image_id"]
            text = prompts.get((image, question.lower()), f"{question}\n{answers.SHORT_ANSWER}")
            ten = _vqa.ten(row["answers"], where)
            question_id = str(row["question_id"])
            examples.append(Example(question_id, self.name, f"{image}.jpg", text, ten, question_id=image, asked=question))
        return BenchmarkData(self.name, self.split, examples, _files.image_root(root, "train_images"))

    def asked(self, prompt: str) -> str | None:
        """The lower-case question inside a recorded prompt."""
        return answers.textvqa_question(prompt)

    def protocol(self, predictions: Mapping[str, Prediction]) -> Mapping[str, Any]:
        prompts = [p.question for p in predictions.values() if p.question is not None]
        with_tokens = sum(any(mark in prompt for mark in _OCR_MARKS) for prompt in prompts)
        tokens = "unknown" if not prompts else {0: "no", len(prompts): "yes"}.get(with_tokens, "mixed")
        return {**super().protocol(predictions), "ocr_tokens": tokens}


def build(split: str | None = None, scorer: str | None = None) -> TextVqa:
    """`split`: "val" or "val-plain"; `scorer`: "m4c" (LLaVA's, the default), "llava", "official", "lmms-eval" (its scoring is
    m4c's) or "vlmevalkit"."""
    return TextVqa(choice("textvqa", "split", split, SPLITS), choice("textvqa", "scorer", scorer, SCORERS))


def _prompts(path: Path) -> dict[tuple[str, str], str]:
    rows = _files.rows(path, ("question_id", "text"))
    return {(str(row["question_id"]), answers.textvqa_question(row["text"]) or ""): row["text"] for _, row in rows}
