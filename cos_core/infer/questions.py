"""The questions of a run: those of files, or one question about every picture of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cos_core.data.datasets import Problem, Snapshot, read_examples, spoken, tell
from cos_core.errors import InputError
from cos_core.files.images import is_picture
from cos_core.files.picture_files import listed
from cos_core.files.text import one_line
from cos_core.infer.config import InferConfig
from cos_core.interfaces import Reporter
from cos_core.types import Example


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a run; `problems` are records that cannot be used, `text_only` counts those without a picture."""

    examples: list[Example]
    siblings: Mapping[str, Sequence[str]]
    """All questions of each image, in the order of the file, whatever `limit` says."""
    pictures: Sequence[str] = ()
    """The names of all pictures that questions are about, sorted and each once, whatever `limit` says."""
    problems: list[Problem] = field(default_factory=list)
    text_only: int = 0
    snapshot: Snapshot | None = None
    """The data as it was read."""


def questions(config: InferConfig, reporter: Reporter) -> Questions:
    """The questions of a run, those on one picture side by side. Raises InputError when there is none."""
    if config.data is None:
        return _same_question(config, reporter)
    snapshot = Snapshot(config.data)
    problems: list[Problem] = []
    text_only = 0
    examples = []
    siblings: dict[str, list[str]] = {}
    for example in read_examples(config.data, columns=config.columns, text_only="keep", on_problem=problems.append):
        if example.image is None:
            text_only += 1
            continue
        examples.append(example)
        siblings.setdefault(example.image, []).append(example.question)
    snapshot.check()
    tell(config.data, problems, text_only, reporter, f"all are named in {problems_file(config.out)}" if config.out else None)
    if not examples:
        raise InputError(f"{spoken(config.data)} holds no question about a picture")
    return Questions(_grouped(examples[: config.limit]), siblings, sorted(siblings), problems, text_only, snapshot)


def problems_file(out: Path) -> Path:
    """Where a run names every record of its data that cannot be used, a line each."""
    return out.with_name(f"{out.name}.problems.jsonl")


def _grouped(examples: Sequence[Example]) -> list[Example]:
    """The questions of one picture side by side, pictures in the order in which they first appear."""
    groups: dict[str | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image, []).append(example)
    return [example for group in groups.values() for example in group]


def _same_question(config: InferConfig, reporter: Reporter) -> Questions:
    """`config.question` about every picture in the folder `config.images` and the folders in it, by name.

    A file counts as a picture by its content or its name, whether it opens or not. Hidden files are passed over; a warning
    names what else lies there.
    """
    folder = Path(config.images or "")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    listing = listed(folder, config.follow_links, output=config.out)
    names = [name for name in listing.files if _pictured(folder / name)]
    pictures = set(names)
    _warn_of(reporter, "files are no pictures and were left out", [name for name in listing.files if name not in pictures])
    _warn_of(reporter, "folders are links and were left out (--follow-links reads them)", listing.links)
    _warn_of(reporter, "files have a name that is no UTF-8, which no answer can record; rename them", listing.unnameable)
    _warn_of(reporter, "folders cannot be read", listing.closed)
    if not names:
        raise InputError(f"the folder {folder} holds no picture")
    if deeper := sum("/" in name for name in names):
        reporter.note(f"{len(names)} pictures in {folder}, {deeper} of them in folders in it")
    examples = [Example(id=name, dataset="folder", image=name, question=config.question or "") for name in names]
    problems = [Problem(folder, None, None, f"{one_line(name)} is no UTF-8") for name in listing.unnameable]
    return Questions(examples[: config.limit], {}, sorted(names), problems)


def _warn_of(reporter: Reporter, what: str, names: Sequence[str]) -> None:
    if names:
        few = ", ".join(one_line(name) for name in names[:_NAMED])
        reporter.warn(f"{len(names)} {what}: {few}{', ...' if len(names) > _NAMED else ''}")


def _pictured(path: Path) -> bool:
    return path.suffix.lower() in PICTURES or is_picture(path)


_NAMED = 5
PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".tga"),
    *(".heic", ".heif", ".jxl", ".mpo", ".ppm", ".pgm", ".pbm"),
)
"""Endings that call a file a picture, whatever is in it: one that does not open is a failure and not left out."""
