"""Files in which other harnesses keep answers: VLMEvalKit's prediction sheets and lmms-eval's samples, as rows of one kind.

VLMEvalKit (ms-vlmeval 0.0.20, `infer_data_job`) writes MODEL_DATASET.xlsx, or .tsv or .json by PRED_FORMAT: the columns of its
data set without the picture, and `prediction`. lmms-eval (0.7.3, `save_results_samples`) writes
MODEL/DATE_samples_TASK.jsonl with `doc_id`, `target`, `input`, `filtered_resps` and a key a metric, most of them with the
official id; releases before 0.3 wrote TASK.json, whose list `logs` has the same with `doc` and `arguments`. Its own pickles are
not read: loading one runs what stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cos_core.data import sheets
from cos_core.errors import InputError
from cos_core.files import jsonl
from cos_core.files.jsonl import Problem
from cos_core.files.text import one_line

VLMEVALKIT: Final = "VLMEvalKit"
LMMS_EVAL: Final = "lmms-eval"

DATASETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "POPE": ("pope", ("coco",)),
    "MME": ("mme", ("all",)),
    "GQA_TestDev_Balanced": ("gqa", ("testdev-balanced",)),
    "TextVQA_VAL": ("textvqa", ("val", "val-plain")),
    "VizWiz": ("vizwiz", ("val",)),
    "MMBench_DEV_EN": ("mmbench", ("en",)),
    "MMBench_DEV_CN": ("mmbench", ("cn",)),
    "ScienceQA_TEST": ("scienceqa", ("test", "test-image")),
    "ScienceQA_VAL": ("scienceqa", ("val", "val-image")),
    "SEEDBench_IMG": ("seed", ("image", "all")),
    "VStarBench": ("vstar", ("test",)),
    "HRBench4K": ("hrbench", ("4k",)),
    "HRBench8K": ("hrbench", ("8k",)),
    "MMVet": ("mmvet", ()),
}
"""VLMEvalKit's name of a data set -> the benchmark and the splits that it belongs to; () for any."""

TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys(("pope", "pope_adv", "pope_pop", "pope_random"), ("pope", ("coco",))),
    "mme": ("mme", ("all",)),
    **dict.fromkeys(("gqa", "gqa_lite"), ("gqa", ("testdev-balanced",))),
    **dict.fromkeys(("textvqa_val", "textvqa_val_lite"), ("textvqa", ("val", "val-plain"))),
    **dict.fromkeys(("vizwiz_vqa_val", "vizwiz_vqa_val_lite"), ("vizwiz", ("val",))),
    **dict.fromkeys(("mmbench_en_dev", "mmbench_en_dev_static", "mmbench_en_dev_lite"), ("mmbench", ("en",))),
    **dict.fromkeys(("mmbench_cn_dev", "mmbench_cn_dev_lite"), ("mmbench", ("cn",))),
    "scienceqa": ("scienceqa", ("test", "test-image")),
    "scienceqa_img": ("scienceqa", ("test", "test-image")),
    **dict.fromkeys(("seedbench", "seedbench_lite"), ("seed", ("all", "image", "video"))),
    **dict.fromkeys(("ok_vqa_val2014", "ok_vqa_val2014_lite"), ("okvqa", ("val",))),
    **dict.fromkeys(("vqav2_val", "vqav2_val_lite"), ("vqav2", ("val",))),
    **dict.fromkeys(("vstar_bench", "vstar_bench_direct_attributes", "vstar_bench_relative_position"), ("vstar", ("test",))),
    "hrbench4k": ("hrbench", ("4k",)),
    "hrbench8k": ("hrbench", ("8k",)),
    "mmvet": ("mmvet", ()),
}
"""lmms-eval's name of a task -> the benchmark and the splits that it belongs to."""

COLUMNS = ("index", "question", "prediction")
"""The columns that every prediction sheet has."""

FAILURE = "Failed to obtain answer"
"""The beginning of what VLMEvalKit writes in the place of an answer that it did not get."""

_MAX_WHOLE = 256 * 2**20
"""The largest file that is decoded as one JSON object, in bytes."""

_SAMPLES = re.compile(r"(?P<date>.*?)_?samples_(?P<task>\w[\w.+-]*?)\.jsonl")
_OPTIONS = "ABCDEFGH"
_IDS = ("question_id", "questionId", "index", "id", "image")


@dataclass(frozen=True, slots=True)
class HarnessRow:
    """One answer. `line`: in its file, from 1; `place`: of its question in the harness's data set, from 0.

    `ids`: what the row calls its question, by the column or key that says so; `truth`: the true answer as the file has it;
    `picture`: the picture's name; `verdict`: the harness's own score of the answer, where the file has one. `missing`: pandas,
    which VLMEvalKit reads its sheets with, takes the answer for a missing value. `answer` None: the harness got none.
    """

    line: int
    place: int
    question: str
    answer: str | None
    ids: Mapping[str, str] = field(default_factory=dict)
    truth: str | None = None
    options: tuple[str, ...] = ()
    hint: str = ""
    categories: tuple[str, ...] = ()
    picture: str = ""
    verdict: float | None = None
    missing: bool = False


@dataclass(slots=True)
class HarnessFile:
    """A file of answers: whose, of which data set (a harness's name; None where the file's name does not say) and model."""

    path: Path
    harness: str
    dataset: str | None = None
    model: str | None = None
    rows: list[HarnessRow] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def benchmark(self) -> tuple[str, tuple[str, ...]] | None:
        """The benchmark and its splits that the data set belongs to, where that is known."""
        known = DATASETS if self.harness == VLMEVALKIT else TASKS
        return known.get(self.dataset or "")


def read(path: Path) -> HarnessFile | None:
    """The answers of a harness's file; None for a file that is of neither harness.

    Raises InputError: a file that a harness wrote but that holds no recorded answers, or that cannot be read.
    """
    if path.suffix.lower() in (".pkl", ".xls"):
        raise InputError(f"{path} is not read: answers are taken from xlsx, tsv, csv, json and jsonl files")
    with jsonl.open_input(path) as file:
        start = file.peek(4096)[:4096]
        line = file.readline(jsonl.MAX_RECORD_BYTES)
    if start.startswith(sheets.ZIP):
        return _sheet(path, sheets.read(path, COLUMNS))
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return _samples(path, line)
    if text.startswith(b"["):
        return _listed(path)
    head = {name.strip(b' "\r\n') for name in line.removeprefix(b"\xef\xbb\xbf").replace(b"\t", b",").split(b",")}
    if path.suffix.lower() in (".tsv", ".csv") or {b"index", b"prediction"} <= head:
        return _sheet(path, sheets.read(path, COLUMNS))
    return None


# --- VLMEvalKit ------------------------------------------------------------------------------------------------------


def _sheet(path: Path, rows: Iterable[tuple[int, Mapping[str, str]]], as_json: bool = False) -> HarnessFile:
    """The rows of a prediction sheet; `as_json`: only a cell that is not there is a missing value."""
    dataset, model = _named(path)
    found = HarnessFile(path, VLMEVALKIT, dataset, model)
    for place, (line, cells) in enumerate(rows):
        if "index" not in cells or "question" not in cells:
            found.problems.append(Problem(path, line, None, "a row of a prediction sheet has an index and a question"))
            continue
        found.rows.append(_sheet_row(line, place, cells, frozenset() if as_json else sheets.MISSING))
    return found


def _sheet_row(line: int, place: int, cells: Mapping[str, str], missing: frozenset[str]) -> HarnessRow:
    category, picture = cells.get("category", ""), cells.get("image_path", "")
    ids = {name: cells[name] for name in ("index", "question_id") if name in cells}
    if category and picture:
        ids["category and picture"] = f"{category}/{_file_name(picture)}"
    answer = cells.get("prediction", "")
    return HarnessRow(
        line,
        place,
        cells["question"],
        None if answer.startswith(FAILURE) else answer,
        ids,
        cells.get("answer"),
        tuple(cells[letter] for letter in _OPTIONS if cells.get(letter, "") not in sheets.MISSING),
        "" if cells.get("hint", "") in sheets.MISSING else cells["hint"],
        tuple(part.strip() for part in category.split(",") if part.strip()),
        _file_name(picture),
        missing="prediction" not in cells or answer in missing,
    )


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def _named(path: Path) -> tuple[str | None, str | None]:
    """(data set, model) by a sheet's name. Raises InputError for a file that VLMEvalKit derives from a prediction sheet."""
    stem = path.stem
    for dataset in sorted(DATASETS, key=len, reverse=True):
        model, mark, rest = stem.rpartition(f"_{dataset}")
        if mark and not rest:
            return dataset, model or None
        if mark and rest.startswith("_"):
            raise InputError(
                f"{path} is not the prediction sheet of {dataset}: {rest!r} in its name stands for another data set, or for a "
                f"file that was made of the sheet; give {model}_{dataset}{path.suffix}"
            )
    return (stem, None) if stem in DATASETS else (None, None)


def _listed(path: Path) -> HarnessFile | None:
    """A JSON list of rows; None for a list of anything else, which has none of the columns. NaN stands for an empty cell."""
    rows = _whole(path)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return None
    if not {str(name).casefold() for name in rows[0]} & set(COLUMNS):
        return None
    sheets.check_columns(path, rows[0], COLUMNS)
    cells = (_filled(row) if isinstance(row, dict) else {} for row in rows)
    return _sheet(path, enumerate(cells, 1), as_json=True)


def _filled(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells that hold something, as texts."""
    return {name: _text(value) for name, value in row.items() if value is not None and value == value}


def _whole(path: Path) -> Any:
    """The value of a JSON file; None for one that is too large, or no JSON."""
    if path.stat().st_size > _MAX_WHOLE:
        return None
    with jsonl.open_input(path) as file:
        try:
            return jsonl.decode(file.read())
        except ValueError:
            return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


# --- lmms-eval -------------------------------------------------------------------------------------------------------


def _samples(path: Path, line: bytes) -> HarnessFile | None:
    """lmms-eval's samples: a line each, or `logs` of one object; None for a file that holds neither."""
    try:
        first = jsonl.decode(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        first = None
    if isinstance(first, dict) and _is_sample(first):
        problems: list[Problem] = []
        named = _SAMPLES.fullmatch(path.name)
        found = HarnessFile(path, LMMS_EVAL, named["task"] if named else None, _model(path, named), problems=problems)
        _add(found, jsonl.read_lines(path, problems.append))
        return found
    if path.suffix.lower() != ".json" or (isinstance(first, dict) and "logs" not in first):
        return None
    return _logs(path)


def _is_sample(record: Mapping[str, Any]) -> bool:
    return "doc_id" in record and ("filtered_resps" in record or "resps" in record)


def _logs(path: Path) -> HarnessFile | None:
    """The object that releases before 0.3 wrote for a task."""
    whole = _whole(path)
    logs = whole.get("logs") if isinstance(whole, dict) else None
    if not isinstance(logs, list) or not logs or not isinstance(logs[0], dict) or not _is_sample(logs[0]):
        return None
    settings = whole.get("args")
    model = settings.get("model_args") or settings.get("model") if isinstance(settings, dict) else None
    found = HarnessFile(path, LMMS_EVAL, path.stem, one_line(str(model), 200) if model else None)
    _add(found, ((row, record) for row, record in enumerate(logs, 1) if isinstance(record, dict)))
    return found


def _model(path: Path, named: re.Match[str] | None) -> str | None:
    """The model's name by the results beside the samples, else by the folder, which lmms-eval names after it."""
    if named is None:
        return None
    results = path.with_name(f"{named['date']}_results.json")
    try:
        with jsonl.open_input(results) as file:
            whole = jsonl.decode(file.read(_MAX_WHOLE))
        name = whole.get("model_name") if isinstance(whole, dict) else None
    except (InputError, OSError, ValueError):
        name = None
    return name if isinstance(name, str) and name else path.absolute().parent.name or None


def _add(found: HarnessFile, records: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    for line, record in records:
        try:
            found.rows.append(_sample(line, record))
        except InputError as error:
            found.problems.append(Problem(found.path, line, None, str(error)))


def _sample(line: int, record: Mapping[str, Any]) -> HarnessRow:
    document = record.get("doc")
    about = [document if isinstance(document, dict) else {}, *(each for each in record.values() if isinstance(each, dict))]
    ids: dict[str, str] = {}
    for each in about:
        for name in _IDS:
            if isinstance(value := each.get(name), str | int) and not isinstance(value, bool):
                ids.setdefault(name, str(value))
    place = record.get("doc_id")
    if not isinstance(place, int) or isinstance(place, bool):
        raise InputError("the sample's doc_id is no number")
    question = _first_text(record.get("input")) or _first_text(record.get("arguments")) or _first_text(about[0].get("question"))
    category = next((each["category"] for each in about if isinstance(each.get("category"), str)), "")
    target = record.get("target")
    return HarnessRow(
        line,
        place,
        question or "",
        _response(record),
        ids,
        target if isinstance(target, str) else None,
        categories=(category,) if category else (),
        verdict=_verdict(record),
    )


def _first_text(value: Any) -> str | None:
    """A text, or the first one in a list of anything."""
    for _ in range(3):
        if isinstance(value, list | tuple) and value:
            value = value[0]
    return value if isinstance(value, str) else None


def _response(record: Mapping[str, Any]) -> str:
    """The answer that was scored. Raises InputError for a sample with several, or none."""
    value = record.get("filtered_resps", record.get("resps"))
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        raise InputError(f"the sample has {len(value)} answers; runs with one answer a question are scored")
    raise InputError("the sample has no answer")


def _verdict(record: Mapping[str, Any]) -> float | None:
    """The score that the sample was given: a number under exact_match, or in the first metric that says one."""
    if isinstance(value := record.get("exact_match"), int | float):
        return float(value)
    for metric in record.values():
        if isinstance(metric, dict) and isinstance(value := metric.get("score"), int | float):
            return float(value)
        if isinstance(metric, dict) and isinstance(said := metric.get("pred"), str) and isinstance(metric.get("answer"), str):
            return float(said.lower().strip() == metric["answer"].lower().strip())
    return None
