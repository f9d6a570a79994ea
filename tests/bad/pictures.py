"""Pictures and the paths that name them: broken files, and ways out of the picture folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile import BROKEN, Hostile

from bad.world import GOOD, Arguments, Case, World, lines


def _alone(hostile: Hostile) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        hostile.make(folder / "x.png")
        return ["infer", "--engine", "scripted", "--model", "m", "--image", folder / "x.png", "--question", "what?"]

    return arguments


def _drawn(hostile: Hostile) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        hostile.make(folder / "x.png")
        return ["visualize", "overlay", "--image", folder / "x.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", folder / "o.png"]

    return arguments


def _annotated(hostile: Hostile) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        shutil.copytree(world.images, folder / "images")
        hostile.make(folder / "images" / "x.png")
        return annotate(lines(folder / "data.jsonl", GOOD, {**GOOD, "id": "x", "image": "x.png"}), folder / "images", folder)

    return arguments


def annotate(data: Path, images: Path, folder: Path, *more: Any) -> list[Any]:
    own = ["annotate", "--policy", "random", "--model", "m", "--data", data, "--images", images]
    return [*own, "--out", folder / "store", "--max-failures", 0, *more]


WAYS: list[tuple[str, Callable[[World], str], Callable[[World, Path], object]]] = [
    ("up and out", lambda w: "../secret/secret.png", lambda w, i: None),
    ("down, up and out", lambda w: "sub/../../secret/secret.png", lambda w, i: (i / "sub").mkdir()),
    ("an absolute path", lambda w: str(w.secret / "secret.png"), lambda w, i: None),
    ("a link to a file outside", lambda w: "x.png", lambda w, i: (i / "x.png").symlink_to(w.secret / "secret.png")),
    ("a link to a folder outside", lambda w: "d/secret.png", lambda w, i: (i / "d").symlink_to(w.secret)),
    ("a link to a link outside", lambda w: "x.png", lambda w, i: [(i / "x.png").symlink_to("y"), (i / "y").symlink_to(w.secret / "secret.png")]),
    ("a link to itself", lambda w: "x.png", lambda w, i: (i / "x.png").symlink_to("x.png")),
    ("a NUL in the path", lambda w: "a\0.png", lambda w, i: None),
    ("a name of 5,000 letters", lambda w: "x" * 5000 + ".png", lambda w, i: None),
    ("a path of 3,000 folders", lambda w: "x/" * 3000 + "x.png", lambda w, i: None),
    ("a file as a folder", lambda w: "a.png/x.png", lambda w, i: None),
    ("the folder itself", lambda w: ".", lambda w, i: None),
    ("letters that steer the terminal", lambda w: "\x1b[2J\r.png", lambda w, i: None),
    ("a line end in the name", lambda w: "a\nb.png", lambda w, i: None),
    ("another normal form", lambda w: "e\u0301.png", lambda w, i: shutil.copy(i / "a.png", i / "\xe9.png")),
    ("right-to-left marks", lambda w: "\u202egnp.x", lambda w, i: None),
    ("a web address", lambda w: "https://example.com/a.png", lambda w, i: None),
    ("the home folder", lambda w: "~/a.png", lambda w, i: None),
    ("a variable", lambda w: "$HOME/a.png", lambda w, i: None),
]  # fmt: skip


def _way(name: Callable[[World], str], make: Callable[[World, Path], object]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        images = folder / "images"
        shutil.copytree(world.images, images)
        make(world, images)
        data = lines(folder / "data.jsonl", GOOD, json.dumps({**GOOD, "id": "x", "image": name(world)}))
        return annotate(data, images, folder)

    return arguments


CASES = [Case("picture alone", str(h), 3, h.reason or "", _alone(h), "x.png") for h in BROKEN]
CASES += [Case("picture drawn", str(h), 3, h.reason or "", _drawn(h), "x.png") for h in BROKEN]
CASES += [Case("picture annotated", str(h), 5, "1 questions", _annotated(h), "store") for h in BROKEN]
CASES += [Case("picture path", name, 5, "1 questions", _way(way, make), "store") for name, way, make in WAYS]
