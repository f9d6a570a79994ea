"""Reports over eval folders: what is on the page, and what runs that are not whole give."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reporters import Told
from scored_runs import folder, scored

from cos_core.errors import FailuresError, InputError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Annotation
from cos_core.visualize import runs as runs_module
from cos_core.visualize.run_report import ReportConfig, run
from cos_core.visualize.runs import RunSources
from cos_core.visualize.select import Selection, selected_ids

QUIET = SilentReporter()
BOX = Box(0.2, 0.4, 0.6, 0.9)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Without and with regions, on four questions: both right, gained, lost, both wrong."""
    data = folder(tmp_path / "data")
    before = scored(tmp_path / "before", data, [True, False, True, False], policy="none")
    return before, scored(tmp_path / "after", data, [True, True, False, False], BOX)


def page(config: ReportConfig) -> tuple[dict[str, Any], str]:
    run(config, QUIET)
    return read_page(config.out)


def read_page(path: Path) -> tuple[dict[str, Any], str]:
    source = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
    shown = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", source, flags=re.DOTALL)
    return json.loads(data[1]) if data else {}, re.sub(r"\s+", " ", shown)


def test_a_card_shows_everything_about_its_question(two: tuple[Path, Path], tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path / "store", "f" * 16, {}) as store:
        store.put_many([Annotation("s0#q0", Box(0.1, 0.1, 0.9, 0.9), 1.0, "from_single_question", "f" * 16)])
    (tmp_path / "heat").mkdir()
    np.save(tmp_path / "heat" / "s0#q0.npy", np.eye(4))
    config = ReportConfig((two[1],), tmp_path / "r.html", store=tmp_path / "store", heat=tmp_path / "heat")
    data, text = page(config)
    card = data["cards"][0]
    assert card["q"] == "what number is on shape 0?"
    assert card["o"] == "right"
    assert card["b"] == [
        ["annotated", "annotation: left 10%, top 10%, right 90%, bottom 90%", 0.1, 0.1, 0.9, 0.9],
        ["gold", "gold region: left 25%, top 50%, right 50%, bottom 100%", 0.25, 0.5, 0.5, 1.0],
        ["predicted", "predicted by after: left 20%, top 40%, right 60%, bottom 90%", 0.2, 0.4, 0.6, 0.9],
    ]
    assert card["r"] == [
        ["answer", "0", "right", 0, ""],
        ["first pass", "[0.200, 0.400, 0.600, 0.900]", "", 1, ""],
        ["gold", "0", "", 0, ""],
    ]
    assert [view[1] for view in card["v"]] == ["region", "relevance"]
    assert card["f"] == {"Kind": "reading", "Box": "ok"}
    assert card["k"]["overlap with gold"] == pytest.approx(BOX.iou(Box(0.25, 0.5, 0.5, 1.0)), abs=1e-5)
    for words in ("50.0 %", "95 % intervals", "model, paper", "4 / 4", "25.0 %", "1 of 4", "regions.hit"):
        assert words in text, words
    assert "newer" not in text
    assert config.out.read_text().count('<img class="plot"') == 3
    assert data["cards"][2]["r"][1] == ["first pass", "red", "", 1, "(unparsable)"]


def test_cards_show_the_maps_that_the_store_keeps(two: tuple[Path, Path], tmp_path: Path) -> None:
    box = Box(0.1, 0.1, 0.9, 0.9)
    with Store.create_or_resume(tmp_path / "store", "f" * 16, {}) as store:
        kept = [Annotation(f"s{i}#q0", box, 1.0, "from_single_question", "f" * 16) for i in range(3)]
        store.put_many(kept, {"s0#q0": np.eye(4).tolist(), "s1#q0": np.eye(4)[::-1].tolist()})
    data, _ = page(ReportConfig((two[1],), tmp_path / "r.html", store=tmp_path / "store"))
    assert [[view[1] for view in card["v"]] for card in data["cards"]] == [["region", "relevance"]] * 2 + [[], ["region"]]
    # The folder's map comes before the store's: here it is the same as the other card's, on the same kind of picture.
    (tmp_path / "heat").mkdir()
    np.save(tmp_path / "heat" / "s0#q0.npy", np.eye(4))
    same, _ = page(ReportConfig((two[1],), tmp_path / "r2.html", store=tmp_path / "store", heat=tmp_path / "heat"))
    maps = [d["pictures"][d["cards"][0]["v"][1][0]] for d in (data, same)]
    assert maps[0] == maps[1], "a store's map is drawn as a file's: over the padded square"
    np.save(tmp_path / "heat" / "s0#q0.npy", np.eye(4)[::-1])
    other, _ = page(ReportConfig((two[1],), tmp_path / "r3.html", store=tmp_path / "store", heat=tmp_path / "heat"))
    assert other["pictures"][other["cards"][0]["v"][1][0]] != maps[0]


def test_two_runs_side_by_side(two: tuple[Path, Path], tmp_path: Path) -> None:
    data, text = page(ReportConfig(two, tmp_path / "r.html"))
    assert [card["o"] for card in data["cards"]] == ["both", "gained", "lost", "neither"]
    assert [row[:3] for row in data["cards"][1]["r"] if row[2]] == [["before", "x", "wrong"], ["after", "1", "right"]]
    for words in ("after − before", "+0.0", "1 / 1", "after against before"):
        assert words in text, words
    # Two pictures for four questions, and one crop of each.
    assert len(data["pictures"]) == 4


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection(flipped=True), ["s1#q0", "s2#q0"]),
        (Selection(wrong=True), ["s2#q0", "s3#q0"]),
        (Selection(fallback=True), ["s2#q0"]),
        (Selection(min_area=0.19), ["s0#q0", "s1#q0", "s3#q0"]),
        (Selection(min_area=0.3), []),
        (Selection(question=r"SHAPE [01]\?"), ["s0#q0", "s1#q0"]),
        (Selection(flipped=True, question="shape 2"), ["s2#q0"]),
    ],
)
def test_filters(two: tuple[Path, Path], selection: Selection, ids: list[str]) -> None:
    found = runs_module.load(two, RunSources(), QUIET)
    assert selected_ids(found, selection) == ids


def test_a_sample_is_the_same_for_the_same_seed(two: tuple[Path, Path]) -> None:
    found = runs_module.load(two, RunSources(), QUIET)
    drawn = [selected_ids(found, Selection(sample=2, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert all(len(ids) == 2 and ids == sorted(ids) for ids in drawn)
    assert len(set(map(tuple, drawn))) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"question": "("}, "question"), ({"min_area": 2.0}, "min_area"), ({"sample": 0}, "sample")],
)
def test_filters_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Selection(**changes)


def test_flipped_needs_two_scored_runs(two: tuple[Path, Path], tmp_path: Path) -> None:
    one = runs_module.load(two[:1], RunSources(), QUIET)
    with pytest.raises(InputError, match="--flipped"):
        selected_ids(one, Selection(flipped=True))
    bare = runs_module.load([two[0] / "predictions.jsonl"], RunSources(), QUIET)
    with pytest.raises(InputError, match="--wrong"):
        selected_ids(bare, Selection(wrong=True))


# --- runs that are not whole ---


def test_missing_and_newer_pictures(two: tuple[Path, Path], tmp_path: Path) -> None:
    pictures = tmp_path / "data" / "images"
    (pictures / "p0.png").unlink()
    later = manifest.read(two[1]).finished
    os.utime(pictures / "p1.png", (4e9, 4e9))
    assert later
    config = ReportConfig((two[1],), tmp_path / "r.html")
    data, _ = page(config)
    assert "p0.png" in data["cards"][0]["p"]
    assert data["cards"][0]["s"] is None
    assert [kind for _, kind in data["cards"][1]["t"]].count("wrong") == 1
    record = manifest.read(manifest.path_for(config.out))
    assert record.counts == {"ok": 2, "failed": 2, "skipped": 0}
    assert record.results["newer_pictures"] == 2


def test_a_run_without_boxes(two: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = page(ReportConfig(two[:1], tmp_path / "r.html"))
    assert 'class="plot"' not in (tmp_path / "r.html").read_text()
    assert all(not card["v"] for card in data["cards"])


def test_a_run_that_was_stopped(two: tuple[Path, Path], tmp_path: Path) -> None:
    (two[1] / manifest.FILE).unlink()
    lines = (two[1] / "predictions.jsonl").read_text().splitlines()
    (two[1] / "predictions.jsonl").write_text("\n".join(lines[:2]) + '\n{"example_id": "s2')
    (two[1] / "scores.jsonl").unlink()
    reporter = Told()
    out = tmp_path / "r.html"
    with pytest.raises(FailuresError, match=r"2 pictures.*r\.html"):
        run(ReportConfig((two[1],), out), reporter)
    text = out.read_text()
    assert 'class="banner"' in text
    assert any("manifest" in warning for warning in reporter.warnings)
    assert any("predictions.jsonl:3" in warning for warning in reporter.warnings)
    assert "what number is on shape 1?" in text


def test_unanswered_questions_are_counted(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    root = scored(tmp_path / "run", data, [True, True], BOX)
    data_on_page, text = page(ReportConfig((root,), tmp_path / "r.html"))
    assert re.search(r"\brun: 2 ", text)
    assert [card["r"][0][2] for card in data_on_page["cards"]] == ["right", "right", "wrong", "wrong"]


def test_answers_that_were_never_scored(two: tuple[Path, Path], tmp_path: Path) -> None:
    bare = tmp_path / "answers.jsonl"
    shutil.copy(two[1] / "predictions.jsonl", bare)
    data, _ = page(ReportConfig((bare,), tmp_path / "r.html", images=tmp_path / "data" / "images"))
    assert {card["o"] for card in data["cards"]} == {"unscored"}


def test_moved_data_and_changed_answers(two: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.move(tmp_path / "data", tmp_path / "moved")
    with pytest.raises(FailuresError, match=r"4 pictures.*r\.html"):
        page(ReportConfig(two[1:], tmp_path / "r.html"))
    data, text = read_page(tmp_path / "r.html")
    gone = re.compile(rf"after: [^;]*{re.escape(str(tmp_path / 'data'))} ")
    assert gone.search(text), "the remark names the data that is gone"
    assert all(box[0] == "predicted" for card in data["cards"] for box in card["b"])
    data, text = page(ReportConfig(two[1:], tmp_path / "r.html", data=tmp_path / "moved"))
    assert not gone.search(text)
    assert data["cards"][0]["b"][0][0] == "gold"
    answers = two[1] / "predictions.jsonl"
    answers.rename(tmp_path / "elsewhere.jsonl")
    data, _ = page(ReportConfig(two[1:], tmp_path / "r.html", data=tmp_path / "moved"))
    assert {box[0] for card in data["cards"] for box in card["b"]} == {"gold"}, "scores alone, without predictions"


def test_the_error_names_what_is_no_run(two: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.jsonl").write_text("")
    for paths, named in (
        ((tmp_path / "empty",), "empty"),
        ((tmp_path / "none.jsonl",), r"none\.jsonl"),
        ((tmp_path / "gone",), "gone"),
        ((two[0], two[0]), "twice"),
    ):
        with pytest.raises(InputError, match=named):
            run(ReportConfig(paths, tmp_path / "r.html"), QUIET)
    other = folder(tmp_path / "other", words=["another?"])
    lines = (other / "questions.jsonl").read_text().replace("#q0", "#q9")
    (other / "questions.jsonl").write_text(lines)
    third = scored(tmp_path / "third", other, [True])
    with pytest.raises(InputError, match="before and third"):
        run(ReportConfig((two[0], third), tmp_path / "r.html"), QUIET)


def test_no_question_fits(two: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = page(ReportConfig(two, tmp_path / "r.html", selection=Selection(question="no such question")))
    assert data == {}, "a page without a gallery"


def test_many_pictures_go_to_a_folder_and_come_back(two: tuple[Path, Path], tmp_path: Path) -> None:
    config = ReportConfig((two[1],), tmp_path / "r.html", embed_mb=0.0)
    data, _ = page(config)
    files = {str(p.relative_to(tmp_path)) for p in (tmp_path / "r_pictures").iterdir()}
    assert files == set(data["pictures"])
    with Image.open(tmp_path / data["pictures"][0]) as picture:
        assert picture.size == (96, 64)
    (tmp_path / "r_pictures" / "mine.txt").write_text("kept")
    data, _ = page(ReportConfig((two[1],), tmp_path / "r.html"))
    assert all(p.startswith("data:image/") for p in data["pictures"])
    assert [p.name for p in (tmp_path / "r_pictures").iterdir()] == ["mine.txt"]


def test_at_most_so_many_cards(two: tuple[Path, Path], tmp_path: Path) -> None:
    config = ReportConfig((two[1],), tmp_path / "r.html", cards=3)
    data, text = page(config)
    assert len(data["cards"]) == 3
    assert manifest.read(manifest.path_for(config.out)).results["questions"] == 4
    assert "3 of 4" in text
