"""Contact sheets and exports: what is on them, in every format, and boxes that stay what they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored_runs import folder, scored

from cos_cli import main
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.visualize import contact_sheets as compare
from cos_core.visualize import export
from cos_core.visualize.contact_sheets import CompareConfig, sheet
from cos_core.visualize.draw import COLOURS
from cos_core.visualize.export import RunExportConfig
from cos_core.visualize.select import Selection

QUIET = SilentReporter()
BOX = Box(0.25, 0.5, 0.75, 1.0)
HOSTILE = "what costs $5_{x}$ <b>?"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    data = folder(tmp_path / "data", words=["=SUM(A1)", HOSTILE])
    return (
        scored(tmp_path / "before", data, [True, False, True, False], policy="none"),
        scored(tmp_path / "after", data, [True, True, False, False], BOX),
    )


def test_a_sheet_of_flipped_questions(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "sheets" / "flipped.png"
    result = compare.run(CompareConfig(two, out, grid="2x1", selection=Selection(flipped=True)), QUIET)
    assert result.results == {"fitting": 2, "shown": ["s1#q0", "s2#q0"], "files": ["flipped.png"]}
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        assert picture.width > picture.height
    for kind in ("predicted", "gold"):
        assert (np.abs(pixels.astype(int) - COLOURS[kind]).max(axis=1) <= 2).sum() > 100
    assert manifest.read(manifest.path_for(out)).counts == {"ok": 2, "failed": 0, "skipped": 0}


def test_the_table_names_everything_that_fits(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.png"
    compare.run(CompareConfig(two, out, grid="1x1"), QUIET)
    rows = list(csv.reader((tmp_path / "all.png.csv").open()))
    parts = ["answer", "score", "box_status", "box"]
    assert rows[0] == ["id", "question", "gold", *(f"before {p}" for p in parts), *(f"after {p}" for p in parts)]
    # A spreadsheet must not take a question for a formula.
    assert rows[1][:3] == ["s0#q0", "'=SUM(A1)", "0"]
    assert rows[2] == ["s1#q0", HOSTILE, "1", "x", "0", "skipped", "", "1", "1", "ok", "0.2500 0.5000 0.7500 1.0000"]
    assert len(rows) == 5


def test_a_pdf_holds_every_sheet_as_vectors(two: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.pdf"
    result = compare.run(CompareConfig(two, out, grid="2x1", selection=Selection(sample=4)), QUIET)
    assert result.results["files"] == ["all.pdf"]
    data = out.read_bytes()
    assert data.startswith(b"%PDF")
    assert b"/Count 2" in data
    assert b"/FontFile2" in data or b"/Type0" in data
    compare.run(CompareConfig(two, tmp_path / "all.png", grid="2x1", selection=Selection(sample=4)), QUIET)
    assert (tmp_path / "all-2.png").is_file()


def test_boxes_are_drawn_where_they_are() -> None:
    run = type("Named", (), {"name": "one"})()
    cell = compare.SheetCell(Image.new("RGB", (40, 20)), "", ((COLOURS["predicted"], "-", BOX),), (("q", True),))
    figure = sheet([cell], 1, 1, [run])
    drawn = figure.axes[0].patches[-1]
    assert drawn.get_bbox().bounds == (10.0, 10.0, 20.0, 10.0)
    assert figure.axes[0].images[0].get_extent() == (0, 40, 20, 0) or figure.axes[0].images[0].get_extent() == [0, 40, 20, 0]


def test_a_gone_picture_leaves_a_sentence(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "p1.png").unlink()
    result = compare.run(CompareConfig(two, tmp_path / "a.webp"), QUIET)
    assert result.counts == {"ok": 2, "failed": 2, "skipped": 0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"out": Path("a.gif")}, r"a\.gif"),
        ({"grid": "4"}, "'4'"),
        ({"grid": "0x3"}, "'0x3'"),
        ({"runs": ()}, "run"),
    ],
)
def test_sheets_that_cannot_be(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        CompareConfig(**{"runs": (Path("a"),), "out": Path("a.png"), **changes})  # type: ignore[arg-type]


def test_nothing_fits(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such question"):
        compare.run(CompareConfig(two, tmp_path / "a.png", selection=Selection(question="no such question")), QUIET)


# --- exports ---


def exported(run: Path, out: Path, form: str, **changes: object) -> str:
    export.run(RunExportConfig(run, out, form, **changes), QUIET)  # type: ignore[arg-type]
    return out.read_text()


def test_coco(two: tuple[Path, Path], tmp_path: Path) -> None:
    data = json.loads(exported(two[1], tmp_path / "coco.json", "coco"))
    assert data["images"][0] == {"id": 1, "file_name": "p0.png", "width": 96, "height": 64}
    assert [c["name"] for c in data["categories"]] == ["predicted", "gold"]
    first, second = data["annotations"][:2]
    assert (first["id"], first["image_id"], first["category_id"], first["iscrowd"]) == (1, 1, 1, 0)
    assert first["bbox"] == [24.0, 32.0, 48.0, 32.0]
    assert first["area"] == 48 * 32
    assert (first["question"], first["answer"], first["score"], first["box_status"]) == ("=SUM(A1)", "0", 1.0, "ok")
    assert second["category_id"] == 2
    # Three usable boxes and four gold regions.
    assert len(data["annotations"]) == 7


def test_fiftyone(two: tuple[Path, Path], tmp_path: Path) -> None:
    labels = json.loads(exported(two[1], tmp_path / "labels.json", "fiftyone"))["labels"]
    assert set(labels) == {"p0", "p1"}
    assert labels["p1"][0]["label"] == "predicted"
    assert labels["p1"][0]["bounding_box"] == [0.25, 0.5, 0.5, 0.5]
    assert labels["p1"][0]["attributes"]["question"] == HOSTILE


def test_label_studio(two: tuple[Path, Path], tmp_path: Path) -> None:
    tasks = json.loads(exported(two[1], tmp_path / "t.json", "label-studio", image_prefix="/data/local-files/?d="))
    assert len(tasks) == 4
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=p0.png"
    versions = {p["model_version"]: p["result"] for p in tasks[0]["predictions"]}
    assert set(versions) == {"after", "gold"}
    value = versions["after"][0]["value"]
    assert (value["x"], value["y"], value["width"], value["height"]) == (25.0, 50.0, 50.0, 50.0)
    assert value["rectanglelabels"] == ["predicted"]
    assert tasks[2]["predictions"][0]["model_version"] == "gold"


def test_lmms_eval_samples(two: tuple[Path, Path], tmp_path: Path) -> None:
    text = exported(two[1], tmp_path / "s.jsonl", "lmms-eval", selection=Selection(wrong=True))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["doc"]["id"] for line in lines] == ["s2#q0", "s3#q0"]
    assert lines[1]["doc_id"] == 1
    assert lines[1]["target"] == "3"
    assert lines[1]["resps"] == [["x"]]
    assert lines[1]["accuracy"] == 0.0
    assert lines[1]["roi"]["box"] == [0.25, 0.5, 0.75, 1.0]


def test_an_export_without_pictures(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "images" / "p1.png").unlink()
    result = export.run(RunExportConfig(two[1], tmp_path / "c.json", "coco"), QUIET)
    assert result.counts == {"ok": 2, "failed": 2, "skipped": 0}
    with pytest.raises(InputError, match="yolo"):
        RunExportConfig(two[1], tmp_path / "c.json", "yolo")  # type: ignore[arg-type]


# --- as a person calls them ---


def test_the_commands(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = map(str, two)
    calls = (
        (["report", before, after, "--out", str(tmp_path / "r.html"), "--flipped"], "2 cards of 2 questions"),
        (["compare", before, after, "--out", str(tmp_path / "c.png"), "--grid", "1x1"], "4 questions fit, 1 are shown"),
        (["export", after, "--format", "coco", "--out", str(tmp_path / "e.json"), "--wrong"], "2 questions"),
    )
    for arguments, words in calls:
        assert main.run(["visualize", *arguments, "--json"]) == 0
        said = capsys.readouterr()
        assert words in said.err
        assert json.loads(said.out)["status"] == "complete"
    assert main.run(["visualize", "report", before, "--out", str(tmp_path / "x.html"), "--flipped"]) == 3
    assert "--flipped" in capsys.readouterr().err
