"""What a data set is read as: its layouts, how much it holds, what is missing, and which of its columns are not used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cos_core import options
from cos_core.data.datasets import paths_of, read_records
from cos_core.data.layouts import ANNOTATIONS, JSON, DataFile, Reading, layout_of
from cos_core.data.records import kind_of, picture_keys
from cos_core.errors import InputError
from cos_core.files import picture_files
from cos_core.files.data_files import COLUMNS, columns_of, with_columns
from cos_core.files.jsonl import Problem
from cos_core.options import INPUT, REQUIRED, Files, option

_KEYS_OF = 1000
"""Records of each file that are looked at for columns."""
_SHOWN = 5
_USED = frozenset((*COLUMNS, "category", "image_id"))


@dataclass(frozen=True, slots=True)
class DataCheckConfig:
    """The data that is looked at; with `images`, each picture's file, too."""

    data: Files = option(REQUIRED, "Files as --data takes them.", INPUT, argument=True, metavar="FILE [FILE...]")
    columns: str | None = options.columns_option()
    images: Path | None = option(
        None, "Folder that the image paths start from: pictures that are not there are counted.", INPUT
    )


@dataclass(slots=True)
class Survey:
    """What was found; counts are of the whole data set, `unused` of the first thousand records of each file.

    `missing`: pictures of which there is no file; None where nobody looked. `inside`: pictures that stand in a table.
    """

    layouts: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    records: int = 0
    questions: int = 0
    without_picture: int = 0
    without_answer: int = 0
    pictures: int = 0
    inside: int = 0
    missing: int | None = None
    first_missing: str | None = None
    first: dict[str, Any] | None = None
    unused: list[str] = field(default_factory=list)
    problems: int = 0
    shown_problems: list[str] = field(default_factory=list)


def survey(config: DataCheckConfig) -> Survey:
    """Reads the data once. Raises InputError for files that hold no records."""
    found = Survey(missing=None if config.images is None else 0)
    found.unused = _columns(config, found)
    pictures: set[bytes] = set()

    def on_problem(problem: Problem) -> None:
        found.problems += 1
        if len(found.shown_problems) < _SHOWN:
            found.shown_problems.append(str(problem))

    def inside(content: bytes) -> str:
        found.inside += 1
        return hashlib.sha256(content).hexdigest()

    for _, examples in read_records(config.data, on_problem, config.columns, pictures=inside):
        found.records += 1
        found.first = found.first or examples[0].to_json()
        for example in examples:
            found.questions += 1
            found.without_answer += not example.answers
            found.without_picture += example.image is None
            if example.image is not None:
                _look(example.image, pictures, config.images, found)
    found.pictures = len(pictures)
    return found


def _look(name: str, pictures: set[bytes], root: Path | None, found: Survey) -> None:
    digest = hashlib.sha256(name.encode()).digest()[:16]
    if digest in pictures:
        return
    pictures.add(digest)
    if root is None or found.missing is None or found.inside:
        return
    try:
        there = picture_files.image_path(root, name).is_file()
    except InputError:
        there = False
    if not there:
        found.missing += 1
        found.first_missing = found.first_missing or name


def _columns(config: DataCheckConfig, found: Survey) -> list[str]:
    """Notes the layouts of files and records; returns the keys that nothing is read from, in the order of the files."""
    wanted, unused = columns_of(config.columns), dict[str, None]()
    for path in paths_of(config.data):
        layout = layout_of(path)
        found.layouts[str(path)] = JSON if layout is None else layout.name
        if layout is ANNOTATIONS:
            continue
        for _, content in islice(DataFile(path, 0, Reading(lambda _: None), layout), _KEYS_OF):
            try:
                record = with_columns(content, wanted)
            except InputError:
                continue
            kind = kind_of(record)
            name = kind.name if kind is not None else "nothing known"
            found.kinds[name] = found.kinds.get(name, 0) + 1
            pictures = picture_keys(tuple(record))
            unused |= dict.fromkeys(key for key in record if key not in _USED and key not in pictures)
            if "messages" in record and isinstance(record["messages"], list) and _begins_with_system(record["messages"]):
                unused["the system message"] = None
    return list(unused)


def _begins_with_system(messages: list[Any]) -> bool:
    first = messages[0] if messages else None
    return isinstance(first, dict) and first.get("role", first.get("from")) == "system"
