"""What the cases share: a small sound world, made once, that none of them may change, and the record of a case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.geometry import Box
from cos_core.store.annotations import Store
from cos_core.types import Annotation

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MARK = "0123456789abcdef"
TALK = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]
GOOD = {"id": "good", "image": "a.png", "conversations": TALK}


@dataclass(frozen=True)
class World:
    """`root` holds it all; `secret` lies beside the picture folder, and nothing may read it."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def data(self) -> Path:
        return self.root / "data.jsonl"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    @property
    def run(self) -> Path:
        """A finished `cos eval` of pope."""
        return self.root / "run"

    @property
    def page(self) -> Path:
        """Scene questions with answers, as the benchmark `scenes` reads them, whose answers are recorded in `answers`."""
        return self.root / "scenes"

    @property
    def answers(self) -> Path:
        return self.root / "answers.jsonl"

    def copy(self, name: str, to: Path) -> Path:
        """A copy of one of its things for a case to damage."""
        source = self.root / name
        return Path(shutil.copytree(source, to / name) if source.is_dir() else shutil.copy(source, to / name))


Arguments = Callable[[World, Path], list[Any]]


@dataclass(frozen=True)
class Case:
    """One bad input. `arguments` makes it in an empty folder of its own and returns the command line.

    `names` is the file at fault, with its line where it has one; `fact`, a word for what is wrong with it: a field, a value, a
    format. Both must stand in the message, in whatever sentence.
    """

    family: str
    name: str
    code: int
    fact: str
    arguments: Arguments
    names: str = ""
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def lines(path: Path, *rows: Any) -> Path:
    """Rows as JSON Lines; texts and bytes as they are."""
    pieces = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows]
    path.write_bytes(b"\n".join(pieces) + b"\n")
    return path


def put(path: Path, content: Any) -> Path:
    """A file of bytes, text, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    return path


def make_world(root: Path) -> World:
    # Looks for fonts once and keeps what it found in its own folder: not what the cases are to be watched for.
    import matplotlib.font_manager  # noqa: F401

    world = World(root)
    for folder in ("images", "secret"):
        (root / folder).mkdir(parents=True)
    for name, size in (("a.png", (31, 23)), ("b.png", (17, 29))):
        Image.new("RGB", size, (90, 30, 200)).save(world.images / name)
    Image.new("RGB", (13, 11), "white").save(world.secret / "secret.png")
    questions = [GOOD, {**GOOD, "id": "second", "image": "b.png"}]
    lines(world.data, *questions)
    with Store.create_or_resume(world.store, MARK, {"model": "tiny"}) as store:
        box = Box(0.1, 0.2, 0.9, 1.0)
        kept = [Annotation(f"{q['id']}#q0", box, 1.5, "random", MARK, (1,), None, q["image"]) for q in questions]
        store.commit(kept, {"good#q0": [[0.1, 0.7], [0.0, 0.2]]}, [("third#q0", "torn")])
    shutil.copytree(world.images, world.page / "images")
    asked = [{"id": f"s{i}", "image": "a.png", "question": "which?", "answers": ["red"]} for i in range(3)]
    lines(world.page / "questions.jsonl", *asked)
    lines(
        world.answers,
        *({"example_id": f"s{i}", "answer": "red", "box": [0.1, 0.2, 0.6, 0.7], "box_status": "ok"} for i in range(3)),
    )
    from cos_core.evaluate import EvalConfig, run

    run(EvalConfig("scenes", world.page, world.answers, world.run, replicates=20))
    return world
