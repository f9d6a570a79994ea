"""The demo's page: a report of its runs with the demo's story on top.

The story is the headline with its bars and its caveat, one question worked through, and the labels against gold. Every figure
is from `results`; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from cos_core.demo.config import BASE, BLACK, MAIN, UNTRAINED
from cos_core.geometry import Box
from cos_core.visualize.draw import EncoderView, show
from cos_core.visualize.gallery import in_words
from cos_core.visualize.html import Html, data_uri, element, facts, fill, joined, percent, share_bar, table, text
from cos_core.visualize.report_cards import CardMaker, encoded_words
from cos_core.visualize.run_questions import RunQuestion
from cos_core.visualize.run_report import Story

SCENE_PX = 448
"""Longer side of the scene that is worked through: twice what is shown, for dense screens."""

_BARS = {BASE: "baseline", BLACK: "arm", **dict.fromkeys(UNTRAINED, "arm"), MAIN: "method"}
"""Arm -> how its bar is drawn, in the order of the bars."""

_EXPLANATION = (
    "Chain-of-Spot first writes down where to look, and then sees that place enlarged as well. One pass sees the whole "
    "picture only. “Black” is Chain-of-Spot with a black picture in its place. The untrained model is the checkpoint that "
    "all arms start from. It was pre-trained with grounding, as LLaVA-1.5 was, so it can name a region before it is trained "
    "to. All answer the same {questions:,} questions about scenes that no training has seen."
)


def story(results: Mapping[str, Any], worked: Html, next_steps: Sequence[tuple[str, str]]) -> Story:
    """The story of a finished demo. `worked`: one question worked through; `next_steps`: (words, command)."""
    quick = results["quick"]
    effects = [element("p", joined([element("strong", f), " ", words]), class_="gap") for f, words in results["effects"]]
    first = fill(
        "story.html",
        headline="Every stage ran; too little data to say more" if quick else results["headline"],
        bars=joined(_bar(row, role) for name, role in _BARS.items() for row in results["arms"] if row["name"] == name),
        effects="" if quick else joined(effects),
        caveat="" if quick else element("p", results["caveat"], class_="caveat"),
        explanation=_EXPLANATION.format(questions=results["questions"]),
        worked=worked,
    )
    steps = joined(joined([element("p", words), element("pre", element("code", line))]) for words, line in next_steps)
    provenance = {**results["versions"], **{k: str(v) for k, v in results["hardware"].items()}}
    return Story(
        title="Chain-of-Spot in small",
        first=first,
        banner=_banner(quick),
        sections=(("labels", "The labels", _labels(results["labels"])), ("next", "What to try next", steps)),
        facts=joined([facts("Settings", results["settings"]), facts("Provenance", provenance)]),
    )


def _banner(quick: bool) -> Html:
    if not quick:
        return text("")
    words = " It shows that every stage runs; its figures come from too little data and training to mean anything."
    return element("p", joined([element("strong", "Quick run: proves nothing."), words]), class_="banner", role="note")


def _bar(row: Mapping[str, Any], role: str) -> Html:
    """One arm: its name, its accuracy, and a bar with the interval as a whisker."""
    ends = f"95 % interval {percent(row['low'])} to {percent(row['high'])}"
    name = element("dt", joined([element("span", row["title"]), element("b", percent(row["accuracy"]))]))
    bar = share_bar(row["accuracy"], (row["low"], row["high"]), role, f"{percent(row['accuracy'])}, {ends}")
    return element("div", joined([name, element("dd", bar)]), class_=role)


def _labels(rows: Sequence[Mapping[str, Any]]) -> Html:
    """How often a label that annotation made lies on the right object, for each kind of question."""
    chance = {row["kind"]: row["hit"] for row in rows if row["policy"] == "random"}
    cells = []
    for row in rows:
        if row["policy"] == MAIN:
            values = f"{row['questions']:,}", percent(row["hit"]), f"{row['iou']:.2f}", percent(chance.get(row["kind"]))
            numbers = joined(element("td", value, class_="n") for value in values)
            cells.append(element("tr", joined([element("th", row["kind"], scope="row"), numbers])))
    words = (
        "No one drew these regions: cos annotate asked the model which part of the picture its answer came from. "
        "This is how often they hold the centre of the right object."
    )
    head = ["Kind", "Labels", "Region hits", "IoU with gold", "Hits of random regions"]
    labels = table("Labels of the training scenes against the gold regions.", head, cells, numbers=(1, 2, 3, 4))
    return joined([element("p", words, class_="about"), labels])


def worked_question(maker: CardMaker, ids: Sequence[str], encoder: EncoderView) -> Html:
    """The first of `ids` that only the last run answers, as the story of the method; nothing when there is none."""
    for example_id in ids:
        before, after = maker.runs[0].item(example_id), maker.runs[-1].item(example_id)
        if before.right or not after.right or after.box is None or after.image is None:
            continue
        picture = maker.picture(after.image)
        if isinstance(picture, str):
            continue
        return fill(
            "worked.html",
            question=after.question,
            side=encoder.side,
            box_text=(after.prediction.box_text if after.prediction else None) or "",
            without=_verdict(before),
            with_cos=_verdict(after),
            scene=_scene(picture, after.box),
            whole=_encoded(encoder.view(picture), "the whole picture"),
            crop=_encoded(encoder.view(picture, after.box), "the chosen region"),
        )
    return text("")


def _verdict(item: RunQuestion) -> Html:
    words, mark = ("right", "✓") if item.right else ("wrong", "✗")
    sign = element("span", mark, role="img", aria_label=words)
    return element("span", joined([element("bdi", item.answer), " ", sign]), class_=f"verdict {words}")


def _scene(picture: Image.Image, region: Box) -> Html:
    """The picture with its region drawn over it as a vector: exact at any size, and the picture itself unchanged."""
    shown = show(picture, SCENE_PX).image if max(picture.size) > SCENE_PX else picture
    photo = Html(f'<img src="{data_uri(shown)}" width="{shown.width}" height="{shown.height}" alt="">')
    x0, y0, x1, y1 = region.corners
    place = {"x": f"{x0:.5f}", "y": f"{y0:.5f}", "width": f"{x1 - x0:.5f}", "height": f"{y1 - y0:.5f}"}
    marks = [element("rect", class_=kind, **place) for kind in ("halo", "predicted")]
    drawn = element("svg", joined(marks), viewBox="0 0 1 1", preserveAspectRatio="none", aria_hidden="true")
    label = f"Scene; region the model chose: {in_words(region)}"
    return element("span", joined([photo, drawn]), class_="stack", role="img", aria_label=label)


def _encoded(view: Image.Image, what: str) -> Html:
    """`view` as the vision encoder gets it, shown pixel by pixel."""
    size = f'width="{view.width}" height="{view.height}"'
    return Html(f'<img class="seen" src="{data_uri(view, lossless=True)}" {size} alt="{text(encoded_words(view, what))}">')
