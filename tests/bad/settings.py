"""What a person writes: options, plug-ins, settings files, answer tables, maps, outputs that cannot be."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from errno import ELOOP, ENOENT
from os import strerror
from pathlib import Path
from typing import Any

import numpy as np

from bad.data import _infer as infer
from bad.pictures import annotate
from bad.world import Arguments, Case, World, put


class Trap:
    """Unpickled, it makes a folder: what a hostile file would do, and more."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.at),)


def _given(*words: Any) -> Arguments:
    """A command line with `{name}` for things of the world and `{here}` for the case's own folder."""

    def arguments(world: World, folder: Path) -> list[Any]:
        places = {name: getattr(world, name) for name in ("images", "data", "store", "run", "page", "answers", "root")}
        return [str(word).format(here=folder, **places) for word in words]

    return arguments


INFER = (
    "infer",
    "--engine",
    "scripted",
    "--model",
    "m",
    "--data",
    "{data}",
    "--images",
    "{images}",
    "--out",
    "{here}/out.jsonl",
)
ANNOTATE = ("annotate", "--policy", "random", "--model", "m", "--data", "{data}", "--images", "{images}", "--out", "{here}/s")
EVAL = ("eval", "scenes", "--data", "{page}", "--predictions", "{answers}", "--out", "{here}/out")
OVERLAY = ("visualize", "overlay", "--image", "{images}/a.png", "--out", "{here}/o.png")
TRAIN = ("train", "--policy", "none", "--data", "{data}", "--images", "{images}", "--model", "m", "--out", "{here}/t")


def _with(command: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    """The command with another value of an option that it gives."""
    at = command.index(option) + 1
    return (*command[:at], value, *command[at + 1 :])


WORDS: list[tuple[str, int, str, tuple[Any, ...]]] = [
    ("an unknown command", 2, "fly", ("fly",)),
    ("an unknown option", 2, "--fly", (*INFER, "--fly")),
    ("a number that is none", 2, "--batch-size", (*INFER, "--batch-size", "many")),
    ("a batch of 0", 2, "batch-size", (*INFER, "--batch-size", 0)),
    ("a number of 400 digits", 2, "1000000000", (*INFER, "--limit", "9" * 400)),
    ("a timeout that is not a number", 2, "--timeout", (*INFER, "--timeout", "nan")),
    ("memory below 0", 2, "--kv-budget", (*INFER, "--kv-budget", -1)),
    ("memory that is NaN", 2, "--kv-budget", (*INFER, "--kv-budget", "nan")),
    ("an unknown policy", 3, "'random'", (*INFER, "--roi", "randon")),
    ("an unknown engine", 3, "no engines plug-in", _with(INFER, "--engine", "steam")),
    ("a plug-in by a path out", 3, "no engines plug-in", _with(INFER, "--engine", "../../secret")),
    ("a plug-in's private part", 3, "no engines plug-in", _with(INFER, "--engine", "_prefix")),
    ("an unknown profile", 3, "'papers'", (*INFER, "--profile", "papers")),
    ("a profile that is not there", 3, strerror(ENOENT), (*INFER, "--profile", "{here}/x.toml")),
    ("an unknown device", 3, "", (*_with(INFER, "--engine", "hf"), "--device", "abacus")),
    ("no folder of pictures", 3, "folder", ("infer", "--engine", "scripted", "--model", "m", "--images", "{here}/x", "--question", "q", "--out", "{here}/o.jsonl")),
    ("a folder without a picture", 3, "picture", ("infer", "--engine", "scripted", "--model", "m", "--images", "{here}", "--question", "q", "--out", "{here}/o.jsonl")),
    ("a shard of words", 2, "i/n", (*ANNOTATE, "--shard", "a/b")),
    ("shard 3 of 2", 2, "i/n", (*ANNOTATE, "--shard", "3/2")),
    ("shard 0 of 2", 2, "i/n", (*ANNOTATE, "--shard", "0/2")),
    ("a threshold of words", 2, "otsu", (*ANNOTATE, "--threshold", "high")),
    ("a threshold of NaN", 3, "threshold", (*ANNOTATE, "--threshold", "nan")),
    ("a policy without region", 3, "none", _with(ANNOTATE, "--policy", "none")),
    ("a detector's unknown option", 3, "'sizes'", (*ANNOTATE, "--detector", "grid", "--detector-option", "sizes=1")),
    ("a detector's option without value", 2, "NAME=VALUE", (*ANNOTATE, "--detector-option", "scales")),
    ("features that are not there", 3, "features", (*ANNOTATE, "--detector", "precomputed", "--detector-option", "path={here}/x")),
    ("an unknown benchmark", 3, "'scenes'", ("eval", "scene", "--data", "{page}", "--predictions", "{answers}")),
    ("an unknown split", 3, "nothing.jsonl", (*EVAL, "--split", "nothing")),
    ("a split that is a path out", 3, "'../x'", (*EVAL, "--split", "../x")),
    ("an unknown scorer", 3, "scorer", (*EVAL, "--scorer", "kind")),
    ("a time of words", 2, "soon", (*EVAL, "--max-runtime", "soon")),
    ("a limit without value", 3, "accuracy", (*EVAL, "--fail-under", "accuracy")),
    ("a limit that is NaN", 3, "accuracy", (*EVAL, "--fail-under", "accuracy=nan")),
    ("a limit on an unknown metric", 3, "accurac", (*EVAL, "--fail-under", "accurac=1")),
    ("a limit that is missed", 6, "accuracy", (*EVAL, "--fail-under", "accuracy=1.5")),
    ("part 3 of 2", 3, "3", (*EVAL, "--shards", 2, "--shard", 3)),
    ("a baseline that is not there", 3, "run", (*EVAL, "--baseline", "{here}/x")),
    ("a link where a folder stands", 3, "latest", (*EVAL, "--latest", "{here}")),
    ("a benchmark's data that is not there", 3, "x", ("eval", "scenes", "--data", "{here}/x", "--predictions", "{answers}")),
    ("one run compared with nothing", 2, "", ("eval", "compare", "{run}")),
    ("a box turned round", 3, "box", (*OVERLAY, "--box", 0.9, 0.1, 0.2, 0.5)),
    ("a box of NaN", 2, "--box", (*OVERLAY, "--box", "nan", 0, 1, 1)),
    ("a picture's unknown ending", 3, ".txt", ("visualize", "overlay", "--image", "{images}/a.png", "--box", 0, 0, 1, 1, "--out", "{here}/o.txt")),
    ("an unknown example", 3, "'nobody'", ("visualize", "overlay", "--predictions", "{answers}", "--images", "{images}", "--example", "nobody", "--out", "{here}/o.png")),
    ("a broken expression", 3, "(", ("visualize", "report", "{run}", "--out", "{here}/r.html", "--question", "(")),
    ("a page with another ending", 3, ".html", ("visualize", "report", "{run}", "--out", "{here}/r.pdf")),
    ("an unknown id", 3, "'nobody'", ("store", "get", "{store}", "nobody")),
    ("a map's unknown ending", 3, ".npy or .json", ("store", "get", "{store}", "good#q0", "--heat", "{here}/m.png")),
    ("no map to write", 3, "second#q0", ("store", "get", "{store}", "second#q0", "--heat", "{here}/m.npy")),
    ("a format that needs questions", 3, "visual-cot", ("store", "export", "{store}", "--format", "visual-cot", "--out", "{here}/x")),
    ("a part that is the result", 3, "store", ("store", "merge", "{store}", "--out", "{store}")),
    ("a part named twice", 3, "store", ("store", "merge", "{store}", "{root}/../world/store", "--out", "{here}/m")),
    ("a checkpoint that is no checkpoint", 3, "images", ("model", "info", "{images}")),
    ("a checkpoint that is not there", 3, "folder", ("model", "info", "{here}/x")),
    ("an original that is not there", 3, "folder", ("model", "convert", "{here}/x", "--out", "{here}/y")),
]  # fmt: skip

OUTPUTS: list[tuple[str, Callable[[Path], object], tuple[Any, ...], str]] = [
    ("answers into a folder", lambda f: (f / "out.jsonl").mkdir(), INFER, "out.jsonl"),
    ("answers below a file", lambda f: put(f / "x", ""), (*INFER[:-1], "{here}/x/out.jsonl"), "x"),
    ("answers of another run", lambda f: put(f / "out.jsonl", '{"example_id": "a", "answer": "b", "fingerprint": "f"}\n'), INFER, "out.jsonl"),
    ("answers into a text", lambda f: put(f / "out.jsonl", "my notes\n"), INFER, "out.jsonl"),
    ("answers into /proc", lambda f: None, (*INFER[:-1], "/proc/cos/out.jsonl"), "/proc/cos"),
    ("scores into a file", lambda f: put(f / "out", ""), EVAL, "out"),
    ("scores into /proc", lambda f: None, (*EVAL[:-1], "/proc/cos"), "/proc/cos"),
    ("a picture into a folder", lambda f: (f / "o.png").mkdir(), (*OVERLAY, "--box", 0, 0, 1, 1), "o.png"),
    ("a picture below a file", lambda f: put(f / "x", ""), (*OVERLAY[:-1], "{here}/x/o.png", "--box", 0, 0, 1, 1), "x"),
    ("plots into a file", lambda f: put(f / "b", ""), ("visualize", "stats", "{store}", "--out", "{here}/b"), "b"),
    ("a page below a file", lambda f: put(f / "x", ""), ("visualize", "report", "{run}", "--out", "{here}/x/r.html"), "x"),
    ("an export into a folder", lambda f: (f / "e").mkdir(), ("store", "export", "{store}", "--out", "{here}/e"), "e"),
    ("an export through a link to itself", lambda f: (f / "e").symlink_to("e"), ("store", "export", "{store}", "--out", "{here}/e"), strerror(ELOOP)),
]  # fmt: skip


def _into(make: Callable[[Path], object], words: tuple[Any, ...]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        make(folder)
        return _given(*words)(world, folder)

    return arguments


PLUGINS: list[tuple[str, Any, str, str]] = [
    ("not there", None, "x.py", "x.py"),
    ("of broken Python", "def build(:\n", "x.py", "x.py"),
    ("that raises when imported", "1 / 0\n", "x.py", "x.py"),
    ("that imports what is not there", "import no_such_package\n", "x.py", "'no_such_package'"),
    ("without build", "x = 1\n", "x.py", "'build'"),
    ("with a build that is a number", "build = 7\n", "x.py", "'build'"),
    ("of another function's name", "def build(): ...\n", "x.py:made", "'made'"),
    ("in Latin-1", b"name = '\xe9'\n", "x.py", "x.py"),
    ("with a NUL", b"x = 1\0\n", "x.py", "x.py"),
    ("that exits", "raise SystemExit(0)\n", "x.py", "x.py"),
]  # fmt: skip


def _plugin(text: Any, name: str) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        if text is not None:
            put(folder / "x.py", text)
        return ["eval", folder / name, "--data", world.page, "--predictions", world.answers]

    return arguments


TOML: list[tuple[str, Any, str]] = [
    ("not there", None, "c.toml"),
    ("broken", "[train\n", "c.toml"),
    ("in UTF-16", "[train]\n".encode("utf-16"), "UTF-8"),
    ("of another command", "[infer]\nmodel = 'm'\n", "[train]"),
    ("with an unknown table", "[trian]\n", "'train'"),
    ("with an unknown key", "[train]\nlerning_rate = 1\n", "'learning_rate'"),
    ("that names itself", "[train]\nconfig = 'x'\n", "'config'"),
    ("with a value outside a table", "epochs = 1\n", "epochs"),
    ("nested too deeply", "x = " + "[" * 50_000, "c.toml"),
]  # fmt: skip


def _toml(text: Any) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        if text is not None:
            put(folder / "c.toml", text)
        return [*_given(*TRAIN)(world, folder), "--config", folder / "c.toml"]

    return arguments


TABLES: list[tuple[str, Any, str]] = [
    ("not there", None, strerror(ENOENT)),
    ("cut off", '{"a": ', "table.json"),
    ("a list", [], "object"),
    ("of numbers", {"a": 1}, "texts"),
    ("nested too deeply", "[" * 100_000, "nested"),
]


def _table(content: Any) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        if content is not None:
            put(folder / "table.json", content)
        return ["infer", "--engine", "scripted", "--model", folder / "table.json", *infer(world.data, world, folder)[5:]]

    return arguments


def _npy(value: Any) -> bytes:
    data = io.BytesIO()
    np.save(data, value, allow_pickle=True)
    return data.getvalue()


HEATS: list[tuple[str, str, Any, str]] = [
    ("not there", "h.npy", lambda f: None, strerror(ENOENT)),
    ("empty", "h.npy", lambda f: b"", ".npy"),
    ("of objects", "h.npy", lambda f: _npy(np.array([Trap(f / "trapped")], dtype=object)), ".npy"),
    ("a bare pickle", "h.npy", lambda f: pickle.dumps(Trap(f / "trapped")), ".npy"),
    ("of one row", "h.npy", lambda f: _npy(np.ones(3)), "rows"),
    ("of three sides", "h.npy", lambda f: _npy(np.ones((2, 2, 2))), "rows"),
    ("of nothing", "h.npy", lambda f: _npy(np.ones((0, 2))), "rows"),
    ("with NaN", "h.npy", lambda f: _npy(np.full((2, 2), np.nan)), "finite"),
    ("below zero", "h.npy", lambda f: _npy(-np.ones((2, 2))), "finite"),
    ("of texts", "h.npy", lambda f: _npy(np.array([["a"]])), "numbers"),
    ("that claims a million million cells", "h.npy", lambda f: _npy(np.ones((2, 2))).replace(b"(2, 2), }      ", b"(1000000, 1000000), }")[:200], ".npy"),
    ("with torn rows", "h.json", lambda f: b"[[1], [1, 2]]", "numbers"),
    ("of words", "h.json", lambda f: b'[["a"]]', "numbers"),
    ("an object", "h.json", lambda f: b'{"a": 1}', "numbers"),
    ("nested too deeply", "h.json", lambda f: b"[" * 100_000, "numbers"),
]  # fmt: skip


def _heat(name: str, make: Callable[[Path], Any]) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        if (content := make(folder)) is not None:
            put(folder / name, content)
        return [*_given(*OVERLAY)(world, folder), "--heat", folder / name]

    return arguments


def _features(content: bytes) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        path = put(folder / "f.tsv", content)
        return annotate(world.data, world.images, folder, "--detector", "precomputed", "--detector-option", f"path={path}")

    return arguments


CASES = [Case("options", name, code, fact, _given(*words)) for name, code, fact, words in WORDS]
CASES += [Case("output", name, 3, fact, _into(make, words)) for name, make, words, fact in OUTPUTS]
CASES += [
    Case("plug-in", name, 4 if fact == "'no_such_package'" else 3, fact, _plugin(text, call), "x.py")
    for name, text, call, fact in PLUGINS
]
CASES += [Case("settings file", name, 3, fact, _toml(text), "c.toml") for name, text, fact in TOML]
CASES += [Case("answer table", name, 3, fact, _table(content), "table.json") for name, content, fact in TABLES]
CASES += [Case("relevance map", name, 3, fact, _heat(file, make), file) for name, file, make, fact in HEATS]
CASES += [
    Case("features", "of one column", 3, "layout", _features(b"noise\n"), "f.tsv:1"),
    Case("features", "empty", 3, "layout", _features(b""), "f.tsv"),
    Case("features", "of broken numbers", 5, "questions", _features(b"a\t31\t23\tx\t!!\t??\n"), "store"),
    Case("features", "of too many boxes", 5, "questions", _features(b"a\t31\t23\t999999999\tAA\tAA\n"), "store"),
]
