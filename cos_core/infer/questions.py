"""What a run asks: a file of questions, or one question about every picture of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cos_core.datasets import Problem, Snapshot, read_examples, spoken, tell
from cos_core.errors import InputError
from cos_core.infer.settings import InferConfig
from cos_core.interfaces import Reporter
from cos_core.types import Example


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked; `problems` are the records that cannot be used, `text_only` counts those without a picture."""

    examples: list[Example]
    siblings: Mapping[str, Sequence[str]]
    """All questions of each image, in the order of the file, whatever `limit` says."""
    problems: list[Problem] = field(default_factory=list)
    text_only: int = 0
    snapshot: Snapshot | None = None
    """The data as it was read."""


def questions(config: InferConfig, reporter: Reporter) -> Questions:
    """What a run asks: one picture's questions side by side. Raises InputError when there is none."""
    if config.data is None:
        found = _same_question(config)
        return Questions(found[: config.limit], {})
    snapshot = Snapshot(config.data)
    problems: list[Problem] = []
    text_only = 0
    found = []
    siblings: dict[str, list[str]] = {}
    for example in read_examples(config.data, text_only="keep", on_problem=problems.append):
        if example.image is None:
            text_only += 1
            continue
        found.append(example)
        siblings.setdefault(example.image, []).append(example.question)
    snapshot.check()
    tell(config.data, problems, text_only, reporter, f"all are named in {problems_file(config.out)}" if config.out else None)
    if not found:
        raise InputError(f"{spoken(config.data)} holds no question about a picture")
    return Questions(_grouped(found[: config.limit]), siblings, problems, text_only, snapshot)


def problems_file(out: Path) -> Path:
    """Where a run names every record of its data that cannot be used, a line each."""
    return out.with_name(f"{out.name}.problems.jsonl")


def _grouped(examples: Sequence[Example]) -> list[Example]:
    """The questions of one picture side by side, pictures in the order in which they first appear."""
    groups: dict[str | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image, []).append(example)
    return [example for group in groups.values() for example in group]


def _same_question(config: InferConfig) -> list[Example]:
    """`config.question` about every picture that lies in the folder `config.images`, by name."""
    folder = Path(config.images or "")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
    if not names:
        raise InputError(f"the folder {folder} holds no picture")
    return [Example(id=name, dataset="folder", image=name, question=config.question or "") for name in names]


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What counts as a picture in a folder."""
