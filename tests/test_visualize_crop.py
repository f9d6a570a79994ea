"""The part of a report that says what the crop did: figures as `cos eval compare` has them, and questions drawn by a seed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scored_runs import folder, scored

from cos_core.evaluate import compare_runs, effects
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.visualize.crop_section import PICTURED, crop_section, crop_story, difference_bar
from cos_core.visualize.gallery import PagePictures
from cos_core.visualize.report_cards import CardMaker, CardSources
from cos_core.visualize.run_report import ReportConfig, run
from cos_core.visualize.runs import RunSources, load

BOX = Box(0.2, 0.4, 0.6, 0.9)
N = 24


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """One pass, and two passes that fix eight of twelve wrong answers and break two right ones."""
    data = folder(tmp_path / "data", N, 6)
    before = scored(tmp_path / "before", data, [i % 2 == 0 for i in range(N)], policy="none")
    after = [i % 2 == 0 or i < 16 for i in range(N)]
    after[2] = after[4] = False
    return before, scored(tmp_path / "after", data, after, BOX, policy="from_single_question")


def section(page: Path) -> str:
    source = page.read_text(encoding="utf-8")
    found = re.search(r'<section id="crop".*?</section>', source, re.DOTALL)
    return found[0] if found else ""


def test_the_section_has_the_figures_of_compare(two: tuple[Path, Path], tmp_path: Path) -> None:
    run(ReportConfig(two, tmp_path / "r.html"), SilentReporter())
    crop = manifest.read(manifest.path_for(tmp_path / "r.html")).results["crop"]
    (expected,) = effects.told(compare_runs.compare(two)).effects
    (found,) = crop["effects"]
    assert {**found, "a": "", "b": ""} == {**json.loads(json.dumps(expected.to_json())), "a": "", "b": ""}
    assert (expected.whole.fixed.n, expected.whole.broken.n) == (8, 2)
    shown = re.sub(r"<[^>]*>", " ", section(tmp_path / "r.html"))
    for words in ("8 fixed, 2 broken of 24 questions", "box not usable", "IoU below 0.5", "kind: colour", "call gain", "+25.0"):
        assert words in re.sub(r"\s+", " ", shown)
    assert f"{len(expected.strata)} strata" in shown


def test_fixed_and_broken_questions_are_drawn_alike(two: tuple[Path, Path], tmp_path: Path) -> None:
    loaded, album = load(two, RunSources(), SilentReporter()), PagePictures(tmp_path / "pictures")
    stories = [crop_story(loaded, CardMaker(loaded, album, CardSources()), seed) for seed in (0, 0, 5)]
    ids = [(sorted(story["fixed"]), sorted(story["broken"])) for each in stories if each and (story := each.to_json())]
    assert ids[0] == ids[1]
    assert ids[0][0] != ids[2][0]
    assert (len(ids[0][0]), ids[0][1]) == (PICTURED, ["s2#q0", "s4#q0"])
    assert stories[0] is not None
    source = crop_section(stories[0], album)
    cards = re.findall(r'<article class="still".*?</article>', source, re.DOTALL)
    assert len(cards) == PICTURED + 2
    assert all("<img" in card for card in cards)
    # The box and both answers are on each.
    usable = [card for card in cards if 'class="predicted"' in card]
    assert usable
    assert all("verdict right" in card and "verdict wrong" in card for card in cards)


def test_its_cards_are_not_counted_twice(two: tuple[Path, Path], tmp_path: Path) -> None:
    for picture in (tmp_path / "data" / "images").iterdir():
        if picture.name != "p0.png":
            picture.unlink()
    written = run(ReportConfig(two, tmp_path / "r.html"), SilentReporter())
    assert (written.counts["ok"], written.counts["failed"]) == (N // 6, N - N // 6)
    assert "noregion" in section(tmp_path / "r.html")


def test_runs_that_never_looked_twice_have_no_section(two: tuple[Path, Path], tmp_path: Path) -> None:
    plain = scored(tmp_path / "plain", tmp_path / "data", [True] * N, policy="none")
    for runs in ((two[1],), (two[1], plain)):
        written = run(ReportConfig(runs, tmp_path / "r.html"), SilentReporter())
        assert not section(tmp_path / "r.html")
        assert "crop" not in written.results


def test_a_question_of_another_hand_is_no_markup(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 3, 1, ["<script>alert(1)</script>"] * 3)
    before = scored(tmp_path / "before", data, [False] * 3, policy="none")
    after = scored(tmp_path / "after", data, [True] * 3, BOX, policy="from_single_question")
    run(ReportConfig((before, after), tmp_path / "r.html"), SilentReporter())
    source = section(tmp_path / "r.html")
    assert "<script>" not in source
    assert "&lt;script&gt;" in source


def test_a_bar_grows_from_the_middle() -> None:
    right, left = difference_bar(0.1, (-0.05, 0.2), 0.2, "up"), difference_bar(-0.1, None, 0.2, "down")
    assert 'class="fill gain" x="50.00" y="2" width="25.00"' in right
    assert 'x1="37.50" x2="100.00"' in right
    assert 'class="fill loss" x="25.00" y="2" width="25.00"' in left
