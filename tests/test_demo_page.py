"""The page of reports with the demo's story on top: claims what its figures bear, needs nothing else, escapes every text."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cos_core.demo import story
from cos_core.demo.results import CAVEAT, claims
from cos_core.files.pages import digest
from cos_core.geometry import Box
from cos_core.types import Example, Prediction, Score
from cos_core.visualize.draw import EncoderView
from cos_core.visualize.gallery import publishing, write_page
from cos_core.visualize.html import Html, element, fill, text
from cos_core.visualize.report_cards import CardMaker, CardSources
from cos_core.visualize.run_report import Report, report_page
from cos_core.visualize.runs import FinishedRun
from cos_core.visualize.source import Cuts

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


REGION, GOLD = Box(0.25, 0.5, 0.5, 1.0), (0.2, 0.5, 0.5, 1.0)
ENCODER = EncoderView(40)


def finished(images: Path, name: str, right: Sequence[bool], changes: Mapping[str, Any], box: Box | None) -> FinishedRun:
    """A run held in memory: one question for each of `right`, on one picture."""
    run = FinishedRun(name, images, images=images, cuts=Cuts(images / "answers.jsonl"), about=changes.get("about", ""))
    examples, predictions, scores = {}, {}, {}
    for number, correct in enumerate(right):
        example_id = changes.get("id", f"s1#q{number}")
        question, truth = changes.get("question", "what number is on the red circle?"), changes.get("truth", "7")
        meta = {"kind": "reading", "gold": list(GOLD)}
        examples[example_id] = Example(example_id, "toy", changes.get("image", "scene.png"), question, (truth,), meta=meta)
        region = {"box": box, "box_text": changes.get("box_text", "[0.250, 0.500, 0.500, 0.833]"), "box_status": "ok"}
        if changes.get("unparsable"):
            region |= {"box": None, "box_status": "unparsable"}
        answer = changes.get("answer", truth if correct else "3")
        prediction = Prediction(example_id, answer, policy="x", image="scene.png", **(region if box else {}))
        predictions[example_id] = prediction
        scores[example_id] = Score(example_id, float(correct), groups={"kind": "reading"})
        run.summary.add(prediction, run.cuts)
    run.examples, run.predictions, run.scores = examples, predictions, scores
    return run


def difference(against: str, mean: float, low: float, high: float) -> dict[str, Any]:
    return {"kind": None, "against": against, "mean": mean, "low": low, "high": high}


ALL = [
    difference("none", 0.5, 0.46, 0.54),
    difference("untrained", 0.145, 0.12, 0.17),
    difference("untrained_grammar", 0.065, 0.04, 0.09),
    difference("black", 0.525, 0.49, 0.56),
    difference("swap", 0.535, 0.5, 0.57),
    difference("absent", 0.515, 0.48, 0.55),
]


def results(differences: Sequence[Mapping[str, Any]] = ALL, quick: bool = False, **changes: Any) -> dict[str, Any]:
    headline, effects = claims(differences)
    shares = {"none": 0.3, "black": 0.275, "untrained": 0.655, "untrained_grammar": 0.735, "from_single_question": 0.8}
    arms = [{"name": n, "title": n, "accuracy": a, "low": a - 0.03, "high": a + 0.03} for n, a in shares.items()]
    label = {"policy": "from_single_question", "kind": "reading", "questions": 800, "hit": 0.94, "iou": 0.56}
    base = {"quick": quick, "questions": 1000, "headline": headline, "effects": effects, "caveat": CAVEAT, "arms": arms}
    base |= {"labels": [label, {**label, "policy": "random", "hit": 0.1}]}
    return {**base, "settings": {"seed": 0}, "versions": {"torch": "2.13"}, "hardware": {"cores": 2}, **changes}


def written(folder: Path, changes: Mapping[str, Any] | None = None, right: Sequence[bool] = (True, False), **more: Any) -> Page:
    """The demo's page over two runs whose questions and answers are changed by `changes`; `more` is for `results`."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (384, 256), (200, 210, 220)).save(folder / "scene.png")
    changes = changes or {}
    before = finished(folder, "one pass", [False] * len(right), {**changes, "unparsable": False}, None)
    after = finished(folder, "two passes", right, changes, REGION)
    with publishing(folder / "report.html") as album:
        maker = CardMaker([before, after], album, CardSources(encoder=ENCODER))
        ids = list(after.examples)
        cards = [maker.card(example_id) for example_id in ids]
        found = results(**more)
        told = story.story(found, story.worked_question(maker, ids, ENCODER), (("Ask", "cos infer --image photo.jpg"),))
        write_page(folder / "report.html", report_page(Report(maker.runs, maker.runs, cards), album, told), album)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_first_words_are_the_result_with_its_caveat(tmp_path: Path) -> None:
    page = written(tmp_path)
    first = page.text[page.text.index("Looking first adds") :]
    for fact in (
        "50.0 points",
        "14.5",
        "+46.0 to +54.0",
        "+12.0 to +17.0",
        "+4.0 to +9.0",
        "+49.0 to +56.0",
        "+53.5",
        "+51.5",
        CAVEAT,
    ):
        assert fact in first[:2000], fact
    assert first.index(CAVEAT) < first.index("One of the questions")
    for fact in (
        "30.0 %",
        "27.5 %",
        "65.5 %",
        "73.5 %",
        "80.0 %",
        "40 × 40",
        "94.0 %",
        "10.0 %",
        "cos infer --image photo.jpg",
    ):
        assert fact in page.text, fact
    assert not [attributes for tag, attributes in page.tags if attributes.get("class") == "banner"]


def test_a_quick_run_claims_nothing(tmp_path: Path) -> None:
    page = written(tmp_path, quick=True)
    assert [attributes for tag, attributes in page.tags if attributes.get("class") == "banner"]
    assert "50.0 points" not in page.text


@pytest.mark.parametrize(
    ("low", "high", "verbs"),
    [
        (0.01, 0.09, ("adds 5.0 points", "add 5.0 points")),
        (-0.01, 0.11, ("makes no clear difference", "make no clear difference")),
        (0.0, 0.1, ("makes no clear difference", "make no clear difference")),
        (-0.09, -0.01, ("costs 5.0 points", "cost 5.0 points")),
    ],
)
def test_the_headline_claims_what_the_intervals_bear(low: float, high: float, verbs: tuple[str, str]) -> None:
    mean = -0.05 if high < 0 else 0.05
    headline, _ = claims([difference(row["against"], mean, low, high) for row in ALL])
    looking, _, training = headline.partition(";")
    assert looking.endswith(verbs[0])
    assert training.endswith(verbs[1])


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
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
    plain = written(tmp_path / "plain", {"about": "x"}, [True])
    changed = dict.fromkeys(("question", "truth", "box_text", "id", "answer", "about"), words)
    page = written(tmp_path / "hostile", changed, [True], settings={words: words})
    # No tag appears or goes because of a text.
    assert sorted(tag for tag, _ in page.tags) == sorted(tag for tag, _ in plain.tags)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    kept = re.sub("[\x00\ud800\u202e]", "\ufffd", words)
    assert re.sub(r"\s+", " ", kept) in page.text
    (card,) = page.data["cards"]
    assert card["q"] == card["id"] == kept
    assert [row[1] for row in card["r"]] == [kept] * 4


def test_every_picture_has_words_and_every_table_its_headings(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert all("alt" in image for image in page.all("img"))
    assert len(page.all("caption")) == 2
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
    assert boxes[1][1:] == ["predicted by two passes: left 25%, top 50%, right 50%, bottom 100%", 0.25, 0.5, 0.5, 1.0]


def test_a_missing_picture_leaves_a_sentence(tmp_path: Path) -> None:
    page = written(tmp_path, {"image": "gone.png"})
    assert all("gone.png" in card["p"] and card["s"] is None for card in page.data["cards"])
    assert not page.all("ol")


def test_a_card_without_a_usable_box(tmp_path: Path) -> None:
    page = written(tmp_path, {"unparsable": True, "box_text": "red"})
    assert page.data["cards"][0]["r"][2] == ["first pass", "red", "", 1, "(unparsable)"]
    assert [box[0] for box in page.data["cards"][0]["b"]] == ["gold"]
    assert not page.all("ol")


def test_a_picture_is_kept_once(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert len(page.data["cards"]) == 2
    assert len(page.data["pictures"]) == 3


def test_html_escapes_by_default() -> None:
    assert text('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"
    assert text(Html("<b>")) == "<b>"
    assert element("td", "<", aria_label='"', class_="n") == '<td aria-label="&quot;" class="n">&lt;</td>'
    with pytest.raises(KeyError):
        fill("story.html", headline="only this")


def test_many_cards_stay_small(tmp_path: Path) -> None:
    written(tmp_path, right=[True] * 60)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
