"""A page that is replaced keeps its pictures until the new one is whole; what could not be read is drawn nowhere."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reporters import Told
from scored_runs import folder, scored

from cos_core.errors import FailuresError, InputError, LockedError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.infer import InferConfig
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Example, Prediction
from cos_core.visualize import boxes, overlay
from cos_core.visualize import contact_sheets as compare
from cos_core.visualize.config import FORMATS, RunExportConfig
from cos_core.visualize.export import run as export
from cos_core.visualize.gallery import publishing, write_page
from cos_core.visualize.html import Html
from cos_core.visualize.overlay import OverlayConfig
from cos_core.visualize.relevance_maps import file_stem, write_heat
from cos_core.visualize.run_report import ReportConfig, run

QUIET = SilentReporter()


def made(out: Path, shade: int, pictures: int = 3) -> None:
    """A page with pictures of its own, and one that every page has, in a folder."""
    with publishing(out, limit=0) as album:
        for level in (7, *(shade + n for n in range(pictures))):
            album.add(Image.new("L", (4, 4), level), lossless=True)
        write_page(out, Html(f"page {shade}: " + " ".join(album.addresses())), album)


def whole(out: Path) -> str:
    """The shade of the page that stands, after every picture that it names was opened."""
    text = out.read_text()
    for name in re.findall(r"\S+_pictures/\S+", text):
        Image.open(io.BytesIO((out.parent / name).read_bytes())).load()
    return text.split(":")[0]


@pytest.mark.parametrize("call", ["write_bytes", "replace", "fsync", "open"])
def test_a_disk_that_fails_at_any_write_leaves_a_whole_page(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.html"
    made(out, 100)
    owner: Any = os if call == "fsync" else Path
    real: Callable[..., Any] = getattr(owner, call)
    failures = 0
    for wanted in range(1, 30):
        count = 0

        def failing(*args: Any, wanted: int = wanted, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count != wanted:
                return real(*args, **options)
            if call == "write_bytes":
                real(args[0], args[1][: len(args[1]) // 2])  # as a full disk does
            raise OSError(errno.ENOSPC, "No space left on device")

        said = ""
        with monkeypatch.context() as patched:
            patched.setattr(owner, call, failing)
            try:
                made(out, 150 + wanted)
            except InputError as error:
                said = str(error)
        failures += bool(said)
        assert ("No space left" in said) == bool(said)
        # What fails behind the page's own rename leaves the new page.
        assert whole(out) in ("page 100", f"page {150 + wanted}") if said else whole(out) == f"page {150 + wanted}"
        made(out, 100)
        assert whole(out) == "page 100"
        assert len(list((tmp_path / "p_pictures").iterdir())) == 4, "nothing is left of the page that did not come to be"
        if count < wanted:
            break
    assert failures >= 3


def test_two_starts_at_once_and_a_neighbour(tmp_path: Path) -> None:
    out = tmp_path / "p.html"
    made(out, 100)
    made(tmp_path / "p.htm", 50)
    with publishing(out, limit=0) as album:
        album.add(Image.new("L", (4, 4), 1), lossless=True)
        with pytest.raises(LockedError):
            made(out, 150)
        assert whole(out) == "page 100"
        write_page(out, Html("page 1: " + " ".join(album.addresses())), album)
    assert whole(out) == "page 1"
    assert whole(tmp_path / "p.htm") == "page 50"
    assert not list(tmp_path.glob(".*")), "no lock is left"


KILLED = """
import os, signal, sys
from pathlib import Path
from cos_core.files import manifest
from cos_core.interfaces import SilentReporter
from cos_core.visualize import gallery
from cos_core.visualize.run_report import ReportConfig, run
gallery.atomic_write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run(ReportConfig((Path(sys.argv[1]),), Path(sys.argv[2]), embed_mb=0.0, cards=1), SilentReporter())
"""


def test_a_process_that_is_killed_before_its_page_is_written(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    after = scored(tmp_path / "after", data, [True, True, False, False], Box(0.2, 0.4, 0.6, 0.9))
    out = tmp_path / "r.html"
    run(ReportConfig((after,), out, embed_mb=0.0), QUIET)
    before = out.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(after), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert out.read_bytes() == before
    shown = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert all((tmp_path / name).is_file() for name in shown["pictures"])
    run(ReportConfig((after,), out, embed_mb=0.0, cards=1), QUIET)
    shown = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert {p.name for p in (tmp_path / "r_pictures").iterdir()} == {Path(name).name for name in shown["pictures"]}


# --- boxes that could not be read ------------------------------------------------------------------------------------


def answers(path: Path, statuses: tuple[str, ...], images: str | None = None) -> Path:
    """A predictions file, each answer with a box: of a readable one a quarter, else the whole picture that stood in for it."""
    (path.parent / "photos").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(path.parent / "photos" / "a.png")
    rows = []
    for i, status in enumerate(statuses):
        box = Box(0.0, 0.0, 1.0, 1.0) if status in ("degenerate", "unparsable") else Box(0.25, 0.25, 0.75, 0.75)
        rows.append(Prediction(f"q{i}", "x", box, "[1", status, "model", question="what?", image="a.png"))  # type: ignore[arg-type]
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows))
    if images is not None:
        clock = manifest.started("infer", InferConfig(model="m", images=Path(images)))
        manifest.write(manifest.path_for(path), clock.finish({"ok": len(rows)}))
    return path


def test_a_box_that_was_not_read_is_no_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = answers(tmp_path / "a.jsonl", ("ok", "unparsable", "degenerate"), "photos")
    result = overlay.run(OverlayConfig(tmp_path / "o.png", path, "q1", tmp_path / "photos"), QUIET)
    assert [(mark["kind"], mark["label"]) for mark in result.results["boxes"]] == [("fallback", "fallback: whole picture")]
    found = boxes.run(boxes.BoxStatsConfig(path, tmp_path / "stats"), QUIET).results
    assert (found["boxes"], found["not_readable"], found["area"]["n"]) == (1, 2, 1)
    # Its pictures are found by the manifest beside the answers.
    monkeypatch.chdir(tmp_path.parent)
    run(ReportConfig((path,), tmp_path / "r.html"), QUIET)
    shown = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert [[box[0] for box in card["b"]] for card in shown["cards"]] == [["predicted"], [], []]
    assert [[view[1] for view in card["v"]] for card in shown["cards"]] == [["region"], *([["fallback: whole picture"]] * 2)]
    assert re.search(r"\b1 boxes, 2 ", (tmp_path / "r.html").read_text())
    compare.run(compare.CompareConfig((path,), tmp_path / "c.png", images=tmp_path / "photos"), QUIET)
    table = (tmp_path / "c.png.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in table[1:]] == ["0.2500 0.2500 0.7500 0.7500", "", ""]


def test_notes_and_warnings_of_a_region_that_no_model_wrote(tmp_path: Path) -> None:
    image = tmp_path / "p.png"
    Image.new("RGB", (30, 20)).save(image)
    by_hand = overlay._prediction_by_hand(OverlayConfig(tmp_path / "o.png", image=image, box=(0.1, 0.1, 0.5, 0.5)))
    assert "Region" not in dict(overlay.notes(by_hand, by_hand=True))
    by_policy = Prediction("a", "x", Box(0.1, 0.1, 0.5, 0.5), None, "skipped", "relevance")
    assert "relevance" in dict(overlay.notes(by_policy))["Region"]
    path = answers(tmp_path / "a.jsonl", ("ok",))
    with Store.create_or_resume(tmp_path / "s", "f" * 16, {}):
        pass
    told = Told()
    overlay.run(OverlayConfig(tmp_path / "o.png", path, images=tmp_path / "photos", store=tmp_path / "s"), told)
    assert "'q0'" in told.warnings[0]


def test_pictures_that_are_all_missing_are_said_and_are_no_success(tmp_path: Path) -> None:
    path = answers(tmp_path / "a.jsonl", ("ok", "ok"))
    told = Told()
    with pytest.raises(FailuresError):
        run(ReportConfig((path,), tmp_path / "r.html", images=tmp_path), told)
    assert "2 of 2" in told.warnings[-1]
    assert "a.png" in told.warnings[-1]


# --- names from data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_and_records_that_cannot_be_are_left_out_one_by_one(tmp_path: Path, format: str) -> None:
    path = answers(tmp_path / "a.jsonl", ("ok",) * 9)
    names = ["a.png", ".", "/", "..", "", "b/..", "\x00", "a.png", "a.png"]
    rows = [json.loads(line) | {"image": name} for line, name in zip(path.read_text().splitlines(), names, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    meta = [{}] * 7 + [{"x": float("nan")}, {"x": [float("inf")]}]
    questions = [
        Example(f"q{i}", "d", name or None, "what?", meta=m) for i, (name, m) in enumerate(zip(names, meta, strict=True))
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in questions))
    out = tmp_path / "out.json"
    result = export(RunExportConfig(path, out, format, tmp_path / "q.jsonl", tmp_path / "photos"), QUIET)  # type: ignore[arg-type]
    assert result.counts["ok"] >= 3
    text = out.read_text()
    lines = text.splitlines() if format == "lmms-eval" else [text]
    for line in lines:
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
    if format == "fiftyone":
        assert list(json.loads(text)["labels"]) == ["a"]
    if format == "label-studio":
        assert {task["data"]["image"] for task in json.loads(text)} == {"a.png"}


def test_maps_are_found_under_names_that_can_be(tmp_path: Path) -> None:
    ids = ["a", "x" * 10_000, "x" * 9_999 + "y", "a/b", "..", ".", "a\x00b", "é" * 300, "\ud800", "\u202e", "a\nb"]
    stems = [file_stem(each) for each in ids]
    assert stems[0] == "a"
    assert stems[3] == "a_b"
    assert len(set(stems[:6])) == 6
    for each, stem in zip(ids, stems, strict=True):
        write_heat(tmp_path / f"{stem}.npy", [[1.0]])
        assert (tmp_path / f"{stem}.npy").is_file(), each[:20]
    path = answers(tmp_path / "a.jsonl", ("ok",) * len(ids))
    rows = [json.loads(line) | {"example_id": each} for line, each in zip(path.read_text().splitlines(), ids, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(ReportConfig((path,), tmp_path / "r.html", images=tmp_path / "photos", heat=tmp_path), QUIET)
    shown = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "r.html").read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert all([view[1] for view in card["v"]] == ["region", "relevance"] for card in shown["cards"])
