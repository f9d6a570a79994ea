"""A run of `cos infer` in small: pictures, questions, an engine that answers by script, and what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.engines.scripted import last_user_text
from cos_core.infer import InferConfig
from cos_core.interfaces import Engine, Reply, Request, SilentReporter
from cos_core.types import Prediction

QUIET = SilentReporter()
BOX = "[0.250, 0.500, 0.750, 1.000]"


class Recorder(Engine):
    """An engine that answers Inst.1 with `box` and everything else with the question's own words, and keeps what it saw."""

    name = "scripted"

    def __init__(self, box: str | Callable[[str], str] = BOX) -> None:
        self.box = box
        self.seen: list[Request] = []
        self.calls: list[int] = []

    def generate(self, requests: list[Request]) -> list[Reply]:
        self.calls.append(len(requests))
        self.seen += requests
        return [self._one(last_user_text(request)) for request in requests]

    def _one(self, text: str) -> Reply:
        if "region of interest in the image?" not in text:
            return Reply(f"answer to {text[-12:]}", tokens_in=5, tokens_out=2)
        return Reply(self.box if isinstance(self.box, str) else self.box(text), tokens_in=7, tokens_out=3)

    def first_passes(self) -> list[str]:
        return [t for t in map(last_user_text, self.seen) if "region of interest in the image?" in t]


def make_pictures(root: Path) -> Path:
    """a.png 40x20 (wide), b.png 17x31 (tall): each pixel's colour is its place."""
    root.mkdir()
    for name, (width, height) in {"a.png": (40, 20), "b.png": (17, 31)}.items():
        image = Image.new("RGB", (width, height))
        image.putdata([(x, y, 200) for y in range(height) for x in range(width)])
        image.save(root / name)
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    return root


def questions(tmp_path: Path, rows: list[tuple[str, str, str]], name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps({"question_id": i, "image": image, "text": text}) + "\n" for i, image, text in rows))
    return path


def make_config(tmp_path: Path) -> InferConfig:
    """Three questions on two of the pictures, two at a time."""
    pictures = make_pictures(tmp_path / "images")
    data = questions(tmp_path, [("q1", "a.png", "colour?"), ("q2", "a.png", "shape?"), ("q3", "b.png", "digit?")])
    return InferConfig(
        model="no/model", engine="scripted", data=data, images=pictures, out=tmp_path / "out.jsonl", batch_size=2
    )


def stored(path: Path | None) -> list[Prediction]:
    assert path is not None
    return [Prediction.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def comparable(path: Path | None) -> list[dict[str, Any]]:
    return [{**p.to_json(), "seconds": 0} for p in stored(path)]


def failing_data(tmp_path: Path) -> Path:
    return questions(
        tmp_path,
        [
            ("1", "a.png", "fine?"),
            ("2", "absent.png", "?"),
            ("3", "broken.png", "?"),
            ("4", "../data.jsonl", "?"),
            ("5", "b.png", "ok?"),
        ],
        "failing.jsonl",
    )
