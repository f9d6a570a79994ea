"""SEED-Bench v1: option letters over nine image and three video kinds of question (one middle frame a video).

Scoring is LLaVA's `convert_seed_for_submission.py` (c121f04): the answer must equal the letter exactly, case included; a
missing answer is wrong. A question id that the official JSON holds twice (49914) counts as often as it stands there, and both
rows have the id's one answer, as in that script. The official JSON was changed on 2023-11-30; LLaVA's question file and figures
go with the version before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import structs

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._harness import (
    HARNESSES,
    LMMS,
    OFFICIAL,
    VLM,
    Reader,
    lmms_first_letter,
    option_rule,
    vlm_option_letter,
)
from cos_core.benchmarks._sliced import SlicedBenchmark, choice, complete
from cos_core.errors import InputError
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate
from cos_core.types import Example, Prediction, Score

SOURCE = "take SEED-Bench.json from AILab-CVC/SEED-Bench (the version before 2023-11-30 for LLaVA's question file)"
NEEDS = (
    Need(("SEED-Bench.json",), "AILab-CVC/SEED-Bench, the version before 2023-11-30"),
    Need(("llava-seed-bench.jsonl",), "LLaVA's evaluation files (eval.zip)", optional=True),
    Need(("SEED-Bench-image",), "SEED-Bench-image.zip; only to run a model", optional=True),
    Need(("SEED-Bench-video-image",), "middle frames, by LLaVA's extract_video_frames.py", split="video", optional=True),
)
SPLITS = ("all", "image", "video")


@dataclass(frozen=True)
class Seed(SlicedBenchmark):
    """`split`: "all", or the questions on images or videos only. Question texts are LLaVA's where its file is there."""

    split: str
    scorer: str = OFFICIAL
    name = "seed"
    summary = "SEED-Bench v1: option letters; total, image and video accuracy"
    headline = "Total"
    slices = ("type", "data_type")
    upload = ".jsonl"
    scorers = HARNESSES
    folders = ("seed_bench", "SEED-Bench", "seed")
    needs = NEEDS

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, "SEED-Bench.json", source=SOURCE)
        kinds = _files.read_object(path).get("question_type")
        if not isinstance(kinds, dict):
            raise InputError(f"{path} has no object 'question_type'")
        names = {number: name for name, number in kinds.items()}
        prepared = _vqa.asked_texts(_files.optional(root, "llava-seed-bench.jsonl"))
        rows = enumerate(_files.listed(path, "questions"))
        examples = [_example(row, f"{path}: question {place}", names, prepared) for place, row in rows]
        examples = list(_numbered(examples))
        if self.split != "all":
            examples = [example for example in examples if example.meta["data_type"] == self.split]
        return BenchmarkData(self.name, self.split, examples, root)

    def rule(self) -> metrics.Rule:
        return option_rule(_READERS[self.scorer])

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        groups = metrics.by_group(scores, "type") | metrics.by_group(scores, "data_type")
        return {**{name: metrics.percent(group) for name, group in groups.items()}, "Total": metrics.percent(scores)}

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        result = [metrics.mean_estimate("Total", scores, scale=100.0)]
        for key in self.slices:
            for name in metrics.by_group(scores, key):
                result.append(metrics.mean_estimate(name, scores, metrics.in_group(key, name), scale=100.0))
        return result

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str:
        """The leaderboard's JSON lines: question id and the answer as it was given."""
        pairs = complete(data, predictions)
        rows = ({"question_id": example.repeats or example.id, "prediction": answer} for example, answer in pairs)
        return "".join(json.dumps(row) + "\n" for row in rows)


def build(split: str | None = None, scorer: str | None = None) -> Seed:
    """`split`: "all" (the default), "image" or "video"; `scorer`: "official" (LLaVA's, the default), "lmms-eval" or
    "vlmevalkit", which knows the images only."""
    split = choice("seed", "split", split, SPLITS)
    scorer = choice("seed", "scorer", scorer, HARNESSES)
    if scorer == VLM and split != "image":
        raise InputError("VLMEvalKit scores SEED-Bench's images only; take the split 'image'")
    return Seed(split, scorer)


def _numbered(examples: Iterable[Example]) -> Iterator[Example]:
    """The examples with unique ids: the second row of an id becomes `49914#2`, with `repeats` set to that id."""
    counts: Counter[str] = Counter()
    for example in examples:
        counts[example.id] += 1
        if (times := counts[example.id]) > 1:
            example = structs.replace(example, id=f"{example.id}#{times}", repeats=example.id, question_id=example.id)
        yield example


def _example(row: Any, where: str, names: Mapping[int, str], prepared: Mapping[str, dict[str, Any]]) -> Example:
    needed = ("question_id", "question", "choice_a", "choice_b", "choice_c", "choice_d")
    _files.demand(row, (*needed, "answer", "data_id", "data_type", "question_type_id"), where)
    if row["question_type_id"] not in names:
        raise InputError(f"{where}: unknown question type {row['question_type_id']!r}")
    key = str(row["question_id"])
    choices = tuple(str(row[f"choice_{letter}"]) for letter in "abcd")
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    # Frames cut from videos are named after their question; LLaVA's file, where it is there, has other names.
    video = row["data_type"] == "video"
    image = f"SEED-Bench-video-image/{key}.png" if video else f"SEED-Bench-image/{row['data_id']}"
    text = f"{row['question']}\n{options}\n{answers.OPTION_LETTER}"
    prompt = prepared.get(key, {"image": image, "text": text})
    meta = {"type": names[row["question_type_id"]], "data_type": row["data_type"]}
    return Example(key, "seed", prompt["image"], prompt["text"], (row["answer"],), choices, meta, asked=row["question"])


_READERS: Mapping[str, Reader] = {
    OFFICIAL: lambda answer, options: answer,
    LMMS: lambda answer, options: lmms_first_letter(answer),
    VLM: vlm_option_letter,
}
