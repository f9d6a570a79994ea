"""The demo's page: says what its figures bear, holds everything itself, and shows hostile text as text."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cos_core.errors import InputError
from cos_core.files.pages import digest
from cos_core.geometry import Box
from cos_core.visualize import demo_sections as sections
from cos_core.visualize.demo_page import (
    Answered,
    ArmComparison,
    ArmRow,
    ArmScore,
    DemoCard,
    DemoReport,
    EncoderView,
    LabelRow,
    Plot,
    write_demo_report,
)
from cos_core.visualize.html import Html, element, fill, text

VOID = {"meta", "img", "input", "br", "hr", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'); alert(1); //",
    "</textarea></style></script><svg onload=alert(1)>",
    "&lt;b&gt; & &amp;",
    "\u202eRTL \u0645\u0631\u062d\u0628\u0627",
    "x" * 10_000,
    "nul\x00 and a lone \ud800 surrogate",
    "$title ${title} $$",
]


class Page(HTMLParser):
    """The page as its tags with attributes; fails on tags that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.DOTALL)
        self.data = json.loads(data[1]) if data else {"cards": [], "pictures": []}
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def report(images: Path, **changes: object) -> DemoReport:
    Image.new("RGB", (384, 256), (200, 210, 220)).save(images / "scene.png")
    card = DemoCard(
        "s1#q0",
        Path("scene.png"),
        "reading",
        "what number is on the red circle?",
        "7",
        Answered("3", False),
        Answered("7", True),
        Box(0.25, 0.5, 0.5, 1.0),
        Box(0.2, 0.5, 0.5, 1.0),
        None,
        "[0.250, 0.500, 0.500, 0.833]",
    )
    arms = (
        ArmRow("no Chain-of-Spot", 300, 1000, 0.27, 0.33, "baseline", "one pass", status={"skipped": 1000}),
        ArmRow(
            "Chain-of-Spot",
            800,
            1000,
            0.77,
            0.83,
            "method",
            hit=0.912,
            status={"ok": 980, "clamped": 20},
            kinds={"reading": ArmScore(700, 800), "colour": ArmScore(100, 200)},
        ),
    )
    base = DemoReport(
        "Chain-of-Spot in small",
        arms,
        (ArmComparison("Chain-of-Spot", "no Chain-of-Spot", 0.5, 0.46, 0.54, gained=520, lost=20, goal=0.4),),
        ("reading", "colour"),
        (LabelRow("reading", 800, 0.94, 0.56, 0.1),),
        (card, replace(card, example_id="s1#q1", kind="colour", with_cos=Answered("9", False))),
        encoder=EncoderView(40),
        images=images,
        next_steps=(("Ask your own", "cos infer --image photo.jpg"),),
        settings={"seed": 0},
        provenance={"torch": "2.13"},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def written(images: Path, **changes: object) -> Page:
    out = images / "report.html"
    write_demo_report(out, report(images, **changes))
    return Page(out.read_text(encoding="utf-8"))


def test_the_first_words_are_the_result(tmp_path: Path) -> None:
    page = written(tmp_path)
    for words in (
        "A model that first says where to look answers far better",
        "80.0 %",
        "30.0 %",
        "+50.0 points (95 % interval +46.0 to +54.0)",
        "40 × 40 pixels",
        "800 / 1,000",
        "91.2 %",
        "98.0 %20 clamped",
        "+40.0: reached",
        "520 / 20",
        "cos infer --image photo.jpg",
        "87.5 %of 800",
    ):
        assert words in page.text, words
    assert "proves nothing" not in page.text


def test_a_quick_run_says_that_it_proves_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, quick=True)
    assert "Quick run: proves nothing." in page.text
    assert "answers far better" not in page.text


@pytest.mark.parametrize(
    ("difference", "low", "high", "words"),
    [
        (0.5, 0.4, 0.6, "far better"),
        (0.05, 0.01, 0.09, "answers better"),
        (0.05, -0.01, 0.11, "no clear difference"),
        (0.0, 0.0, 0.0, "no clear difference"),
        (-0.05, -0.09, -0.01, "worse"),
    ],
)
def test_the_headline_claims_what_the_interval_bears(difference: float, low: float, high: float, words: str) -> None:
    assert words in sections.headline(ArmComparison("a", "b", difference, low, high))


def test_a_goal_is_not_reached_by_luck(tmp_path: Path) -> None:
    unsure = ArmComparison("Chain-of-Spot", "no Chain-of-Spot", 0.41, -0.1, 0.9, goal=0.4)
    assert "not reached" in written(tmp_path, comparisons=(unsure,)).text
    assert "What each way of looking answers" in written(tmp_path, comparisons=()).text


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path, plots=(Plot("Where", tmp_path / "scene.png", "all of them"),))
    assert not page.all("link")
    assert not page.all("iframe")
    for image in page.all("img"):
        assert image["src"].startswith("data:image/")
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert all(picture.startswith("data:image/") for picture in page.data["pictures"])
    for script in page.all("script"):
        assert script in ({}, {"type": "application/json", "id": "data"})
    source = (tmp_path / "report.html").read_text()
    without = re.sub(r'"data:image/[^"]*"', "", source).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z]+\.", without)


def test_only_the_pages_own_style_and_script_may_run(tmp_path: Path) -> None:
    page = written(tmp_path)
    source = (tmp_path / "report.html").read_text()
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    assert f"script-src '{digest(scripts[0])}'" in policy
    assert f"style-src '{digest(styles[0])}'" in policy
    assert "default-src 'none'" in policy
    assert not any(key == "style" or key.startswith("on") for _, attributes in page.tags for key in attributes)


@pytest.mark.parametrize("words", HOSTILE, ids=lambda w: ascii(w[:12]))
def test_hostile_text_is_text(tmp_path: Path, words: str) -> None:
    plain = written(tmp_path)
    base = report(tmp_path)
    changed = {"question": words, "truth": words, "box_text": words, "example_id": words, "without": Answered(words, False)}
    cards = tuple(replace(card, **changed) for card in base.cards)  # type: ignore[arg-type]
    arms = tuple(replace(arm, explain=words) for arm in base.arms)
    page = written(tmp_path, cards=cards, arms=arms, title=words, settings={words: words}, note=words)
    # No tag appears or goes because of a text, except that a given note and explanation add their own places.
    names = [tag for tag, _ in page.tags if tag not in ("small", "code")]
    assert sorted(names) == sorted(tag for tag, _ in plain.tags if tag not in ("small", "code"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    kept = re.sub("[\x00\ud800\u202e]", "\ufffd", words)
    assert re.sub(r"\s+", " ", kept) in page.text
    for card in page.data["cards"]:
        assert card["q"] == card["id"] == kept
        assert [row[1] for row in card["r"]] == [kept, card["r"][1][1], kept, kept]


def test_every_picture_has_words_and_every_table_its_headings(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert all("alt" in image for image in page.all("img"))
    assert len(page.all("caption")) >= 4
    assert all(heading.get("scope") in ("col", "row") for heading in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1


def test_shown_is_what_the_encoder_is_given(tmp_path: Path) -> None:
    page = written(tmp_path)
    with Image.open(tmp_path / "scene.png") as picture:
        scene = picture.convert("RGB")
    addresses = [image["src"] for image in page.all("img") if image.get("class") == "seen"]
    addresses += [page.data["pictures"][number] for number, _, _, kind in page.data["cards"][0]["v"] if kind == "seen"]
    expected = [EncoderView(40).view(scene), EncoderView(40).view(scene, Box(0.25, 0.5, 0.5, 1.0))]
    for address, view in zip(addresses, 2 * expected, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as embedded:
            assert embedded.tobytes() == view.tobytes()


def test_boxes_over_a_scene_are_the_boxes(tmp_path: Path) -> None:
    page = written(tmp_path)
    drawn = [a for a in page.all("rect") if a.get("class") == "predicted"]
    assert drawn[0] == {"class": "predicted", "x": "0.25000", "y": "0.50000", "width": "0.25000", "height": "0.50000"}
    boxes = page.data["cards"][0]["b"]
    assert [box[0] for box in boxes] == ["gold", "predicted"]
    assert boxes[1][1:] == ["region the model chose: left 25%, top 50%, right 50%, bottom 100%", 0.25, 0.5, 0.5, 1.0]


def test_a_missing_picture_leaves_a_sentence(tmp_path: Path) -> None:
    base = report(tmp_path)
    page = written(tmp_path, cards=(replace(base.cards[0], image=Path("gone.png")), base.cards[0]))
    assert "gone.png" in page.data["cards"][0]["p"]
    assert page.data["cards"][0]["s"] is None
    assert "One of the questions" in page.text


def test_a_card_without_a_usable_box(tmp_path: Path) -> None:
    base = report(tmp_path)
    card = replace(base.cards[0], predicted=None, box_status="unparsable", box_text="red")
    page = written(tmp_path, cards=(card,))
    (shown,) = page.data["cards"]
    assert ["no usable region", ""] in shown["t"]
    assert shown["r"][3] == ["box", "red", "", 1, "(unparsable)"]
    assert "One of the questions" not in page.text


def test_a_region_hit_is_defined(tmp_path: Path) -> None:
    assert "the region holds the centre of the right object" in written(tmp_path).text


def test_a_picture_is_kept_once(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert len(page.data["cards"]) == 2
    assert len(page.data["pictures"]) == 3


def test_the_smallest_report(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    write_demo_report(out, DemoReport("empty", (ArmRow("one", 0, 0, 0.0, 1.0),), ()))
    page = Page(out.read_text())
    assert "0 / 0" in page.text
    assert not page.all("form")


def test_a_report_survives_json(tmp_path: Path) -> None:
    base = report(tmp_path, plots=(Plot("Where", Path("a.png")),))
    assert DemoReport.from_json(json.loads(json.dumps(base.to_json()))) == base
    for broken in ({}, {"arms": [{}]}, {**base.to_json(), "cards": [{"image": 3}]}, {**base.to_json(), "colour": 1}):
        with pytest.raises(InputError, match="not a demo report"):
            DemoReport.from_json(broken)


def test_reports_that_cannot_be() -> None:
    with pytest.raises(InputError, match="at least one arm"):
        DemoReport("x", (), ())
    with pytest.raises(InputError, match="names the arm 'b'"):
        DemoReport("x", (ArmRow("a", 1, 2, 0.1, 0.9),), (ArmComparison("a", "b", 0.1, 0.0, 0.2),))


def test_html_escapes_by_default() -> None:
    assert text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert text(Html("<b>")) == "<b>"
    assert element("td", "<", aria_label='"', class_="n") == '<td aria-label="&quot;" class="n">&lt;</td>'
    with pytest.raises(KeyError):
        fill("hero.html", headline="only this")


def test_many_cards_stay_small(tmp_path: Path) -> None:
    base = report(tmp_path)
    cards = tuple(replace(base.cards[0], example_id=f"s{i}") for i in range(60))
    written(tmp_path, cards=cards)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
