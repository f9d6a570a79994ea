# ruff: noqa: E501
"""What `--out` may destroy: never an input, never what another command or another program wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad.world import World, make_world
from PIL import Image

from cos_cli.main import run
from cos_core.errors import InputError
from cos_core.files.durable import made_folder
from cos_core.files.locks import FileLock

Arguments = Callable[[World, Path], list[Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("outputs") / "world")


def infer(out: str) -> Arguments:
    return lambda w, f: [
        *("infer", "--engine", "scripted", "--model", "m", "--data", f / "asked.jsonl"),
        *("--images", w.images, "--out", f / out),
    ]


def one(out: str) -> Arguments:
    return lambda w, f: [
        *("infer", "--engine", "scripted", "--model", "m", "--roi", "none"),
        *("--image", w.images / "a.png", "--question", "q?", "--out", f / out),
    ]


COMMANDS: dict[str, Arguments] = {
    "infer": infer("out"),
    "infer one": one("out"),
    "visualize overlay": lambda w, f: ["visualize", "overlay", "--image", w.images / "a.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", f / "out.png"],
    "visualize report": lambda w, f: ["visualize", "report", w.run, "--out", f / "out.html"],
    "visualize export": lambda w, f: ["visualize", "export", w.run, "--format", "lmms-eval", "--out", f / "out"],
    "visualize export coco": lambda w, f: ["visualize", "export", w.run, "--format", "coco", "--out", f / "out"],
    "visualize compare": lambda w, f: ["visualize", "compare", w.run, "--out", f / "out.png"],
    "store export": lambda w, f: ["store", "export", w.store, "--out", f / "out"],
    "eval compare": lambda w, f: ["eval", "compare", w.run, w.run, "--out", f / "out"],
}  # fmt: skip

OTHERS: dict[str, Callable[[World, Path], object]] = {
    "text without an end": lambda w, p: p.write_text("my notes"),
    "text": lambda w, p: p.write_text("my notes\n{not a record}\n"),
    "text with a brace": lambda w, p: p.write_text("dear all\n{"),
    "a list": lambda w, p: p.write_text('[{"id": 1}]'),
    "questions": lambda w, p: p.write_text('{"question_id": 1, "image": "a.png", "text": "q?"}'),
    "scores": lambda w, p: shutil.copy(w.run / "scores.jsonl", p),
    "picture": lambda w, p: Image.new("RGB", (4, 4)).save(p, format="PNG"),
    "bytes": lambda w, p: p.write_bytes(bytes(range(256))),
}


def code(world: World, folder: Path, arguments: Arguments) -> int:
    (folder / "asked.jsonl").write_text('{"question_id": "q", "image": "a.png", "text": "q?"}\n')
    return run([str(word) for word in arguments(world, folder)])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_others_wrote_stays_as_it_is(
    command: str, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = COMMANDS[command]
    out = Path(next(word for word in arguments(world, tmp_path) if str(word).startswith(str(tmp_path / "out"))))
    for name, write in OTHERS.items():
        write(world, out)
        before = out.read_bytes()
        assert code(world, tmp_path, arguments) == 3, (command, name)
        said = capsys.readouterr().err
        assert said.startswith("cos: ") or "\ncos: " in said
        assert out.read_bytes() == before, (command, name)
        linked = out.with_name(f"linked-{out.name}")
        out.rename(linked)
        out.symlink_to(linked)
        assert code(world, tmp_path, arguments) == 3, (command, name, "through a link")
        assert linked.read_bytes() == before
        out.unlink()
        linked.unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_its_own_earlier_output_is_written_again(command: str, world: World, tmp_path: Path) -> None:
    done = code(world, tmp_path, COMMANDS[command])
    assert done in (0, 7)
    assert code(world, tmp_path, COMMANDS[command]) == done


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(lambda w, f: ["infer", "--engine", "scripted", "--model", "m", "--data", f / "asked.jsonl", "--images", w.images, "--out", f / "asked.jsonl"], id="infer over its questions"),
        pytest.param(lambda w, f: ["infer", "--engine", "scripted", "--model", "m", "--data", f / "asked.jsonl", "--images", w.images, "--out", f / "hard.jsonl"], id="infer over its questions by another name"),
        pytest.param(lambda w, f: ["visualize", "export", w.answers, "--format", "lmms-eval", "--out", w.answers], id="export over its predictions"),
        pytest.param(lambda w, f: ["visualize", "overlay", "--image", w.images / "a.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", w.images / "a.png"], id="overlay over its picture"),
        pytest.param(lambda w, f: ["visualize", "overlay", "--image", w.images / "a.png", "--box", 0.1, 0.1, 0.5, 0.5, "--out", w.images / "b.png"], id="overlay over another picture"),
        pytest.param(lambda w, f: ["eval", "compare", w.run, w.run, "--out", w.run / "scores.jsonl"], id="compare over a run's scores"),
        pytest.param(lambda w, f: ["eval", "scenes", "--data", w.page, "--predictions", w.answers, "--out", w.page], id="eval into its data"),
        pytest.param(lambda w, f: ["store", "export", w.store, "--out", w.answers], id="store export over predictions"),
        pytest.param(lambda w, f: ["annotate", "--policy", "random", "--model", "m", "--data", w.page / "questions.jsonl", "--images", w.images, "--out", w.images], id="annotate into the pictures"),
    ],
)  # fmt: skip
def test_an_input_is_no_output(arguments: Arguments, world: World, tmp_path: Path) -> None:
    def seen() -> dict[str, bytes]:
        every = [p for root in (tmp_path, world.root) for p in sorted(root.rglob("*"))]
        return {str(p): p.read_bytes() for p in every if p.is_file() and p.suffix != ".mdb"}

    (tmp_path / "asked.jsonl").write_text('{"question_id": "q", "image": "a.png", "text": "q?"}\n')
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "asked.jsonl")
    before = seen()
    assert run([str(word) for word in arguments(world, tmp_path)]) == 3
    assert seen() == before


def test_a_folder_that_nothing_came_into_is_removed_again(tmp_path: Path) -> None:
    """Only one that was made for the run: a folder of the user's stays, and so does one with a file."""
    new, own, used = tmp_path / "a" / "new", tmp_path / "own", tmp_path / "used"
    own.mkdir()

    def begin(folder: Path, *files: str) -> None:
        with made_folder(folder), FileLock(folder / ".lock"):
            for name in files:
                (folder / name).touch()
            raise InputError("no model")

    for folder, files in ((new, ()), (own, ()), (used, ("log",))):
        with pytest.raises(InputError, match="no model"):
            begin(folder, *files)
    assert (new.exists(), own.is_dir(), [each.name for each in used.iterdir()]) == (False, True, ["log"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"), made_folder(tmp_path / "file"):
        pass


def test_a_run_that_ends_before_it_begins_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "image": "a.png", "question": "q", "answers": ["a"]}\n')
    data = ["--data", str(tmp_path / "q.jsonl"), "--images", str(tmp_path)]
    for words in (["train", "--roi", "none"], ["annotate"]):
        assert run([*words, *data, "--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) in (3, 4)
        assert not (tmp_path / "out").exists()
