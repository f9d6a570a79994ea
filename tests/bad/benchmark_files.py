"""Benchmarks' official files: folders without them, and files that are broken or of another layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bad.world import GOLDEN, Arguments, Case, World, put
from cos_core.files import plug

MAIN = {
    "scienceqa": "problems.json",
    "seed": "SEED-Bench.json",
    "textvqa": "TextVQA_0.5.1_val.json",
    "pope": "coco/coco_pope_random.json",
    "vizwiz": "val.json",
}
"""A file that each of the benchmarks with golden files needs."""
BROKEN: list[tuple[str, Any]] = [
    ("missing", None),
    ("empty", b""),
    ("cut off", b'{"questions": [{"question_id": 1, '),
    ("not UTF-8", b'{"\xff": 1}'),
    ("a number", b"7"),
    ("an empty object", b"{}"),
    ("a list of numbers", b"[1, 2]"),
    ("objects within objects", b'{"a":' * 100_000),
    ("a folder", "folder"),
    ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"),
    ("a list of one empty object", b"[{}]"),
]


def _without(name: str) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        (folder / "data").mkdir()
        return ["eval", name, "--data", folder / "data", "--predictions", world.answers]

    return arguments


def _with(name: str, file: str, content: Any) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        data = Path(shutil.copytree(GOLDEN / name, folder / "data"))
        path = data / file
        path.unlink()
        if content == "folder":
            path.mkdir()
        elif content is not None:
            put(path, content)
        return ["eval", name, "--data", data, "--predictions", data / "predictions.jsonl"]

    return arguments


CASES = [Case("benchmark", f"{name} without its files", 3, "", _without(name), "data") for name in plug.available("benchmarks")]
CASES += [
    Case("benchmark file", f"{name}: {file} {how}", 3, "", _with(name, file, content), "data")
    for name, file in MAIN.items()
    for how, content in BROKEN
]
