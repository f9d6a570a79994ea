"""Which file a name means: links by who made them, files that are not there yet, folders as people and systems leave them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import encoded, gradient
from PIL import Image
from refusals import refused
from reporters import Told
from two_passes import QUIET, Recorder, make_config, stored

from cos_core.errors import FailuresError, InputError, TransientError
from cos_core.files.images import ImageSource, foreign, open_image, picture_size
from cos_core.files.jsonl import open_input
from cos_core.files.picture_files import PictureFolder, check_visible, first_existing, image_path, listed, shipped
from cos_core.infer import InferConfig, run

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A picture folder put together from links: a folder, a file, a chain, and a name that climbs behind a link."""
    root, disk = tmp_path / "play" / "data", tmp_path / "disk" / "coco"
    root.mkdir(parents=True)
    (disk / "train").mkdir(parents=True)
    gradient(5, 3).save(disk / "train" / "1.png")
    gradient(7, 3).save(tmp_path / "disk" / "secret.png")
    (root / "coco").symlink_to("../../disk/coco")
    (root / "one.png").symlink_to(disk / "train" / "1.png")
    (root / "chain").symlink_to("coco")
    return root


INSIDE = ["coco/train/1.png", "one.png", "chain/train/1.png", "coco/../one.png"]


@pytest.mark.parametrize("name", INSIDE)
def test_links_are_followed_for_whoever_says_they_are_his(name: str, linked: Path) -> None:
    root = PictureFolder(linked, follow_links=True)
    assert open_image(root, name).size == picture_size(root, name) == (5, 3)
    (sent,) = shipped(root, [name]).values()
    assert not isinstance(sent, InputError)
    assert first_existing(root, [name]) == name
    check_visible(root, name)
    for careful in (linked, PictureFolder(linked)):
        with refused("--follow-links"):
            open_image(careful, name)


@pytest.mark.parametrize(
    "name",
    [
        "../../disk/secret.png",
        "coco/../../../disk/secret.png",
        "coco/../secret.png",
        "{disk}/secret.png",
        "../data/x.png/../../../x",
    ],
)
@pytest.mark.parametrize("follow", [False, True])
def test_a_name_never_climbs_out_by_itself(name: str, follow: bool, linked: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_image(PictureFolder(linked, follow), name.format(disk=tmp_path / "disk"))


def test_the_hub_s_cache_is_one_folder(tmp_path: Path) -> None:
    def repository(name: str) -> Path:
        snapshot = tmp_path / name / "snapshots" / "0123abcd"
        (snapshot / "direct").mkdir(parents=True)
        (tmp_path / name / "blobs").mkdir()
        gradient(5, 3).save(tmp_path / name / "blobs" / "aaa", "PNG")
        (snapshot / "direct" / "1.jpg").symlink_to("../../../blobs/aaa")
        return snapshot

    found = repository("datasets--craigwu--vstar_bench")
    assert open_image(found, "direct/1.jpg").size == open_image(found / "direct", "1.jpg").size == (5, 3)
    gradient(9, 9).save(tmp_path / "secret.png")
    (found / "planted.png").symlink_to(tmp_path / "secret.png")
    (found.parents[1] / "blobs" / "out").symlink_to(tmp_path / "secret.png")
    (found / "twice.png").symlink_to("../../blobs/out")
    other = repository("datasets--b--b")
    (other / "neighbour.png").symlink_to("../../../datasets--craigwu--vstar_bench/blobs/aaa")
    for root, name in (
        (found, "planted.png"),
        (found, "twice.png"),
        (found, "../../blobs/aaa"),
        (other, "neighbour.png"),
        (repository("mine"), "direct/1.jpg"),
    ):
        with refused(name):
            open_image(root, name)
    # A folder of blobs that is itself a link leads elsewhere.
    shutil.rmtree(other.parents[1] / "blobs")
    (other.parents[1] / "blobs").symlink_to(tmp_path)
    (other / "x.png").symlink_to("../../blobs/secret.png")
    with refused("x.png"):
        open_image(other, "x.png")


def test_what_is_not_there_may_come(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("none.png", "folder/none.png", "file/none.png"):
        with refused(kind=TransientError):
            open_image(tmp_path, name)
        with pytest.raises(TransientError):
            picture_size(tmp_path, name)
    source = ImageSource(tmp_path, pickle.loads(pickle.dumps(shipped(tmp_path, ["none.png", "../x"]))))
    with pytest.raises(TransientError):
        source.open("none.png")
    with pytest.raises(InputError) as caught:
        source.open("../x")
    assert not isinstance(caught.value, TransientError)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("x" * 5000, "a\0b", "loop", "\ud800.png", "file", "."):
        with pytest.raises(InputError) as caught:
            open_image(tmp_path, name)
        assert not isinstance(caught.value, TransientError), name
        str(caught.value).encode()


def test_names_of_any_bytes_are_one_line(tmp_path: Path) -> None:
    for raw in (b"caf\xe9.png", b"a\nb.png", b"\x1b[2J.png", "\u202egnp.x".encode()):
        place = tmp_path / os.fsdecode(raw)
        place.write_bytes(b"no picture")
        with pytest.raises(InputError) as caught:
            open_image(None, str(place))
        said = str(caught.value)
        said.encode()
        assert said.isprintable()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (LFS, "Git LFS"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC"),
        (b"\0\0\0\x18ftypmif1" + b"\0" * 50, "HEIC"),
        (b"\xff\x0a" + b"\0" * 50, "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%PDF-1.7", "document"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (b"  <!DOCTYPE html><html>404", "web page"),
        (b"a,b,c\n", None),
        (b"", None),
    ],
)
def test_what_stands_in_a_picture_s_place_is_named(head: bytes, said: str | None, tmp_path: Path) -> None:
    found = foreign(head)
    assert (found is None) == (said is None)
    if said and head:
        (tmp_path / "x.jpg").write_bytes(head)
        with refused("x.jpg", said):
            open_image(tmp_path, "x.jpg")


def test_files_that_git_lfs_has_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(LFS)
    with refused("data.json", "git lfs pull"):
        open_input(tmp_path / "data.json")


# --- one question about a folder -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    return replace(make_config(tmp_path), data=None, question="colour?", roi="none", images=tmp_path / "photos")


def test_a_folder_as_phones_and_browsers_leave_it(config: InferConfig, tmp_path: Path) -> None:
    folder = config.images
    assert folder is not None
    for place in (folder / "trip" / "deep", folder / "__MACOSX", folder / ".hidden", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
    forms = {
        "a.JPG": "JPEG",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "d.tga": "TGA",
        "e": "PNG",
        "f.dat": "BMP",
        "g.jp2": "JPEG2000",
    }
    forms |= {"trip/a.JPG": "PNG", "trip/deep/h.pgm": "PPM"}
    for name, form in forms.items():
        (folder / name).write_bytes(encoded(Image.new("RGB", (8, 8), "red"), form))
    failing = {"l.heic": b"\0\0\0\x18ftypheic", "m.jpg": b"<html>", "n.png": b"", "o": encoded(gradient(61, 43), "PNG")[:300]}
    for name, data in failing.items():
        (folder / name).write_bytes(data)
    for name in ("notes.txt", "Python.txt", "BMW.txt", "list.csv", "trip/p.py"):
        (folder / name).write_text("Python or BMW? " + name)
    for name in ("._a.JPG", "Thumbs.db", "trip/desktop.ini", "__MACOSX/a.JPG", ".hidden/a.JPG", ".DS_Store"):
        (folder / name).write_bytes(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    os.mkfifo(folder / "pipe")
    (tmp_path / "elsewhere" / "far.png").write_bytes(encoded(gradient(8, 8), "PNG"))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to("trip")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(encoded(gradient(8, 8), "JPEG"))
    config = replace(config, out=folder / "answers.jsonl")
    said = Told()
    done = run(config, said, Recorder())
    found = {p.example_id: p for p in stored(config.out)}
    assert list(found) == sorted([*forms, *failing])
    assert [name for name, p in found.items() if p.error] == sorted(failing)
    assert "HEIC" in (found["l.heic"].error or "")
    assert (done.counts["ok"], done.counts["failed"]) == (len(forms), len(failing) + 1)
    words = " ".join(said.warnings)
    assert "6 files are no pictures and were left out: BMW.txt, Python.txt, list.csv, notes.txt, pipe, ..." in words
    assert "2 folders are links" in words
    assert "caf\\udce9.jpg" in words
    assert any("13 pictures" in note and "2 of them in folders in it" in note for note in said.notes)
    # Its own answers are no file of the folder, and with its links there is one more picture.
    more = run(replace(config, follow_links=True), said, Recorder())
    assert more.counts["ok"] == len(forms) + 1
    assert "linked/far.png" in {p.example_id for p in stored(config.out)}


def test_a_folder_that_links_to_itself_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "x.png").write_bytes(b"x")
    assert listed(tmp_path, True).files == ["a/x.png"]
    assert listed(tmp_path, False).links == ["a/up"]


def test_infer_follows_links_where_it_is_told(config: InferConfig, linked: Path, tmp_path: Path) -> None:
    data = tmp_path / "linked.jsonl"
    data.write_text(
        "".join(
            json.dumps({"question_id": n, "image": n, "text": "?"}) + "\n" for n in ("coco/train/1.png", "../disk/secret.png")
        )
    )
    config = replace(config, data=data, question=None, images=linked)
    with refused("--follow-links", kind=FailuresError):
        run(replace(config, out=tmp_path / "not followed.jsonl"), QUIET, Recorder())
    done = run(replace(config, follow_links=True, out=tmp_path / "followed.jsonl"), QUIET, Recorder())
    assert (done.counts["ok"], done.counts["failed"]) == (1, 1)
    assert image_path(PictureFolder(linked, True), "coco/train/1.png") == (tmp_path / "disk/coco/train/1.png").resolve()
