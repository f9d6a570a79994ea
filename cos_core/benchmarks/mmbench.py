"""MMBench: multiple choice under CircularEval: a question counts only when every rotation of its options is answered right.

Rows whose index agrees modulo 10^6 are one question. The option an answer names is found by MMBench's rules without a judge
(answers.option_letter); an answer that they do not decide is wrong, as in VLMEvalKit without a judge. The published figure
comes from the server, which asks a judge in those cases.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.benchmarks import _files, _tsv
from cos_core.benchmarks._harness import (
    HARNESSES,
    LMMS,
    OFFICIAL,
    VLM,
    Reader,
    lmms_option_letter,
    option_rule,
    vlm_option_letter,
)
from cos_core.benchmarks._sliced import SlicedBenchmark, choice, complete, percentages
from cos_core.errors import InputError, MissingError
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate
from cos_core.system.extras import install
from cos_core.types import Example, Prediction, Score

FILES = {"en": "mmbench_dev_20230712.tsv", "cn": "mmbench_dev_cn_20231003.tsv"}
SUFFIXES = {"en": answers.OPTION_LETTER, "cn": "请直接回答选项字母。"}
SOURCE = "LLaVA's or OpenCompass's evaluation files"
NEEDS = tuple(Need((name,), SOURCE, split=split) for split, name in FILES.items())
ROUND = 10**6
_SHEET: tuple[str, ...] = ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SLICES = ("l2_category", "category")


@dataclass(frozen=True)
class MmBench(SlicedBenchmark):
    """`split` "en" or "cn". Pictures stand inside the TSV; `unpack` writes them where a run finds them."""

    split: str
    scorer: str = OFFICIAL
    name = "mmbench"
    summary = "MMBench dev (2023-07-12 EN, 2023-10-03 CN): CircularEval accuracy, without a judge"
    slices = ("circle", *_SLICES)
    upload = ".xlsx"
    scorers = HARNESSES
    needs = NEEDS

    def load(self, root: Path) -> BenchmarkData:
        example_of_row = partial(_example, suffix=SUFFIXES[self.split])
        examples = _tsv.examples(self._file(root), _tsv.FIELDS, _stem, example_of_row)
        labelled = all(example.answers for example in examples)
        hidden = sum("hidden" in example.meta for example in examples)
        protocol = {"labels": labelled, **({"options_hidden": hidden} if hidden else {})}
        return BenchmarkData(self.name, self.split, examples, _images(root, self.split), protocol)

    def rule(self) -> metrics.Rule:
        return option_rule(_READERS[self.scorer])

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        return super().score(data, predictions) if data.protocol["labels"] else []

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        if not scores:
            return {"server_scored": True}
        circles = _circles(scores)
        return {
            "questions": len(circles),
            **percentages(circles, _SLICES),
            "samples": len(scores),
            "one_round": _vanilla(scores),
            **({"options_hidden": data.protocol["options_hidden"]} if "options_hidden" in data.protocol else {}),
        }

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        hits, counted = {circle.example_id: circle.value for circle in _circles(scores)}, set()
        columns = np.zeros((len(scores), 2))
        for row, score in enumerate(scores):
            circle = score.groups["circle"]
            if circle not in counted:
                columns[row] = (hits[circle], 1.0)
                counted.add(circle)
        units = [score.groups["circle"] for score in scores]
        return [Estimate("accuracy", columns, scale=100.0, units=units)] if scores else []

    def unpack(self, root: Path) -> list[str]:
        """Writes the pictures as images/<split>/<index modulo 10^6>.jpg; one that only a rotation shows under its own index."""
        return _tsv.unpack(self._file(root), _images(root, self.split), _stem)

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> bytes:
        """The sheet that the server takes: the table without hint, categories, source, picture and comment, with `prediction`.

        Raises InputError when an answer is missing, MissingError without the package that writes sheets.
        """
        try:
            from openpyxl import Workbook
            from openpyxl.cell import WriteOnlyCell
        except ModuleNotFoundError:
            raise MissingError(f"an MMBench submission is an xlsx file; {install('sheets')}") from None
        by_id = {example.id: answer for example, answer in complete(data, predictions)}
        book = Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        sheet.append(list(_SHEET))
        for _, row in _tsv.rows(self._file(root)):
            cells = {**row, "prediction": by_id[row["index"]]}
            texts = [WriteOnlyCell(sheet, _UNWRITABLE.sub("", cells.get(name, ""))) for name in _SHEET[1:]]
            for cell in texts:
                cell.data_type = "s"  # an answer that begins with "=" is no formula
            sheet.append([int(row["index"]), *texts])
        file = io.BytesIO()
        book.save(file)
        return file.getvalue()

    def _file(self, root: Path) -> Path:
        return _files.require(root, FILES[self.split], source=f"take it from {SOURCE}")


def build(split: str | None = None, scorer: str | None = None) -> MmBench:
    """`split`: "en" (the default) or "cn"; `scorer`: "official" (the default), "lmms-eval" (its `mmbench_en_dev_static`) or
    "vlmevalkit" (without its judge)."""
    split = choice("mmbench", "split", split, tuple(FILES))
    return MmBench(split, choice("mmbench", "scorer", scorer, HARNESSES))


def _images(root: Path, split: str) -> Path:
    return root / "images" / split


def _example(row: Mapping[str, str], where: str, suffix: str) -> Example:
    visible, answer = _tsv.first_options(row), row.get("answer", "").strip()
    options = _tsv.all_options(row, answer if row.get(answer) else "")
    if answer and answer not in options:
        raise InputError(f"{where}: the answer {answer!r} is not one of the options {', '.join(options)}")
    hint = [] if _tsv.blank(row.get("hint")) else [row["hint"]]
    text = "\n".join([*hint, row["question"], *(f"{letter}. {option}" for letter, option in visible.items())])
    circle = _stem(row["index"])
    meta = {
        "circle": circle,
        "category": row.get("category", ""),
        "l2_category": row.get("l2-category", ""),
    }
    letters = None
    if list(options) != list(visible):
        # LLaVA's reader stops at the first option that reads "None", "nan" or "NA"; what stands there may be the answer.
        letters, meta["hidden"] = "".join(options), "".join(letter for letter in options if letter not in visible)
    return Example(
        row["index"],
        "mmbench",
        f"{circle}.jpg",
        text,
        (answer,) if answer else (),
        tuple(options.values()),
        meta,
        asked=row["question"],
        suffix=f"\n{suffix}",
        letters=letters,
    )


def _stem(index: str) -> str:
    return str(int(index) % ROUND)


_READERS: Mapping[str, Reader] = {OFFICIAL: answers.option_letter, LMMS: lmms_option_letter, VLM: vlm_option_letter}


def _circles(scores: Sequence[Score]) -> list[Score]:
    """One score a question: right when every rotation is."""
    result = []
    for circle, rounds in metrics.by_group(scores, "circle").items():
        result.append(Score(circle, float(all(r.value == 1.0 for r in rounds)), groups=rounds[0].groups))
    return result


def _vanilla(scores: Sequence[Score]) -> float:
    """Accuracy in percent over the rows as they stand in the first round (index below 10^6)."""
    return metrics.percent([score for score in scores if int(score.example_id) < ROUND])
