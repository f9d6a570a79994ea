"""The demo's page: one HTML file that needs nothing else, with everything embedded and every data set's text escaped.

A strict Content-Security-Policy stands in the page: no request can leave it, and only its own script can run, so that a
question that holds markup stays text even if escaping were ever forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cos_core import images, manifest
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.visualize import sections
from cos_core.visualize.draw import Encoder, show
from cos_core.visualize.html import Html, data_uri, digest, element, fill, joined, shipped, text
from cos_core.visualize.records import (
    Answered,
    ArmRow,
    Card,
    Comparison,
    DemoReport,
    LabelRow,
    Plot,
    Tally,
)

__all__ = [
    "Answered",
    "ArmRow",
    "Card",
    "Comparison",
    "DemoReport",
    "Encoder",
    "LabelRow",
    "Plot",
    "Tally",
    "write_demo_report",
]

SCENE_PX = 448
"""Longer side of an embedded scene: twice what a card shows, for dense screens."""

_OUTCOMES = {
    "helped": "Chain-of-Spot alone is right",
    "both": "both right",
    "hurt": "Chain-of-Spot alone is wrong",
    "neither": "both wrong",
}
_BUTTONS = {"": "All", "helped": "Helped", "both": "Both right", "hurt": "Hurt", "neither": "Both wrong"}


def write_demo_report(out: Path, report: DemoReport) -> None:
    """Writes the page to the file `out`, whole or not at all.

    Pictures that cannot be read leave a sentence in their place. The page computes nothing: every figure is from `report`.
    """
    parts = [part for part in _sections(report) if part[2]]
    body = joined([_hero(report), *(_section(name, title, content) for name, title, content in parts)])
    style, script = shipped("report.css"), shipped("report.js")
    page = fill(
        "page.html",
        title=report.title,
        style=style,
        style_hash=Html(digest(style)),
        script=script,
        script_hash=Html(digest(script)),
        banner=_banner(report.quick),
        nav=joined(element("a", title, href=f"#{name}") for name, title, _ in parts),
        sections=body,
        footer=f"{report.title} · written by cos {manifest.versions().get('cos', '')}".strip(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest.atomic_write(out, page)


def _banner(quick: bool) -> Html:
    if not quick:
        return text("")
    words = " It shows that every stage runs; its figures come from too little data and training to mean anything."
    return element("p", joined([element("strong", "Quick run: proves nothing."), words]), class_="banner", role="note")


def _hero(report: DemoReport) -> Html:
    first = report.headline
    headline = "Every stage ran; too little data to say more" if report.quick else sections.headline(first)
    questions = max(arm.total for arm in report.arms)
    explanation = report.note or (
        "Both are the same model, trained for the same number of steps, answering the same "
        f"{questions:,} questions about scenes they have never seen. The one difference: Chain-of-Spot first writes down "
        "where to look, and then sees that place enlarged as well."
    )
    return fill(
        "hero.html",
        headline=headline,
        duel=sections.duel(report, first),
        difference=f"{sections.points(first.difference)} points" if first else "",
        interval=f"(95 % interval {sections.interval(first)})" if first else "",
        explanation=explanation,
        worked=_worked(report),
    )


def _section(name: str, title: str, content: Html) -> Html:
    return element(
        "section", joined([element("h2", title, id=f"{name}-title"), content]), id=name, aria_labelledby=f"{name}-title"
    )


def _sections(report: DemoReport) -> list[tuple[str, str, Html]]:
    """(anchor, title, content) in page order; empty content leaves a section out."""
    nothing = text("")
    kinds = any(arm.kinds for arm in report.arms)
    label_words = (
        "No one drew these regions: annotation found them by asking the model which part of the picture its answer came from. "
        "This is how often they lie on the right object."
    )
    hits = "“Region hits”: the region's centre lies on the right object."
    facts = [sections.facts(t, v) for t, v in (("Settings", report.settings), ("Provenance", report.provenance)) if v]
    return [
        ("arms", "The table", joined([_about(hits), sections.arms_table(report)])),
        ("differences", "Differences", sections.comparisons_table(report) if sections.shown_differences(report) else nothing),
        ("kinds", "By kind of question", sections.kinds_table(report) if kinds else nothing),
        (
            "labels",
            "The labels",
            joined([_about(label_words), sections.labels_table(report.labels)]) if report.labels else nothing,
        ),
        ("scenes", "Scenes", _gallery(report) if report.cards else nothing),
        ("plots", "Regions in numbers", _plots(report) if report.plots else nothing),
        ("next", "What to try next", sections.next_steps(report.next_steps)),
        ("facts", "How this was made", joined(facts)),
    ]


def _about(words: str) -> Html:
    return element("p", words, class_="about")


def _worked(report: DemoReport) -> Html:
    """The first scene that only Chain-of-Spot answers, as the story of the method; nothing when there is none."""
    for card in report.cards:
        if card.predicted is None or not card.with_cos.correct or card.without.correct:
            continue
        try:
            views = _views(report, card, gold=False)
        except InputError:
            continue
        return fill(
            "worked.html",
            question=card.question,
            side=report.encoder.side,
            box_text=card.box_text,
            without=_verdict(card.without),
            with_cos=_verdict(card.with_cos),
            **views,
        )
    return text("")


def _gallery(report: DemoReport) -> Html:
    kinds = report.kinds or tuple(dict.fromkeys(card.kind for card in report.cards))
    outcomes = [
        element("button", words, type="button", data_outcome=name, aria_pressed="false" if name else "true")
        for name, words in _BUTTONS.items()
    ]
    count = f"{len(report.cards)} of {len(report.cards)} scenes"
    options = [element("option", kind, value=kind) for kind in kinds]
    cards = [_card(report, card) for card in report.cards]
    return fill("gallery.html", outcomes=joined(outcomes), kinds=joined(options), count=count, cards=joined(cards))


def _card(report: DemoReport, card: Card) -> Html:
    outcome = {(False, True): "helped", (True, True): "both", (True, False): "hurt", (False, False): "neither"}[
        card.without.correct, card.with_cos.correct
    ]
    try:
        views = _views(report, card)
    except InputError as error:
        blank = element("p", str(error), class_="noregion")
        views = {"scene": blank, "whole": text(""), "crop": text("")}
    return fill(
        "card.html",
        kind=card.kind,
        outcome=outcome,
        outcome_words=_OUTCOMES[outcome],
        label=f"{card.kind} question {card.example_id}: {_OUTCOMES[outcome]}",
        question=card.question,
        truth=card.truth,
        without=_verdict(card.without),
        with_cos=_verdict(card.with_cos),
        box_text=card.box_text or "–",
        box_note=f"({card.box_status})" if card.box_status != "ok" else "",
        **views,
    )


def _verdict(answer: Answered) -> Html:
    words, mark, name = ("right", "✓", "right") if answer.correct else ("wrong", "✗", "wrong")
    sign = element("span", mark, role="img", aria_label=words)
    return element("span", joined([element("bdi", answer.text or "(nothing)"), " ", sign]), class_=f"verdict {name}")


def _views(report: DemoReport, card: Card, gold: bool = True) -> dict[str, Html]:
    """The scene with its boxes, and what the encoder is given of all of it and of the region. Raises InputError."""
    picture = images.open_image(None if card.image.is_absolute() else report.images, str(card.image))
    boxes = [("predicted", "region the model chose", card.predicted)]
    if gold:
        boxes = [("annotated", "label from annotation", card.annotated), ("gold", "right region", card.gold), *boxes]
    encoder = report.encoder
    return {
        "scene": _scene(picture, [(kind, name, box) for kind, name, box in boxes if box is not None]),
        "whole": _seen(encoder.view(picture), "the whole picture"),
        "crop": _seen(encoder.view(picture, card.predicted), "the chosen region") if card.predicted else _no_region(),
    }


def _scene(picture: Image.Image, boxes: Sequence[tuple[str, str, Box]]) -> Html:
    """The picture with its boxes drawn over it as vectors: exact at any size, and the picture itself unchanged."""
    shown = show(picture, SCENE_PX).image if max(picture.size) > SCENE_PX else picture
    photo = Html(f'<img src="{data_uri(shown)}" width="{shown.width}" height="{shown.height}" alt="">')
    marks = []
    for kind, _, box in boxes:
        place = {
            "x": f"{box.x0:.5f}",
            "y": f"{box.y0:.5f}",
            "width": f"{box.x1 - box.x0:.5f}",
            "height": f"{box.y1 - box.y0:.5f}",
        }
        halo = "halo" if kind == "predicted" else "thin"
        marks += [element("rect", class_=halo, **place), element("rect", class_=kind, **place)]
    label = "; ".join(["Scene", *(f"{name}: {_in_words(box)}" for _, name, box in boxes)])
    drawn = element("svg", joined(marks), viewBox="0 0 1 1", preserveAspectRatio="none", aria_hidden="true")
    return element("span", joined([photo, drawn]), class_="stack", role="img", aria_label=label)


def _in_words(box: Box) -> str:
    sides = ("left", box.x0), ("top", box.y0), ("right", box.x1), ("bottom", box.y1)
    return ", ".join(f"{name} {value:.0%}" for name, value in sides)


def _seen(view: Image.Image, what: str) -> Html:
    return _picture(view, f"What the encoder is given of {what}: {view.width} by {view.height} pixels, shown enlarged", "seen")


def _picture(picture: Image.Image, alt: str, kind: str) -> Html:
    size = f'width="{picture.width}" height="{picture.height}"'
    return Html(f'<img class="{kind}" src="{data_uri(picture, lossless=True)}" {size} alt="{text(alt)}">')


def _no_region() -> Html:
    return element("p", "no usable region", class_="noregion")


def _plots(report: DemoReport) -> Html:
    figures = []
    for plot in report.plots:
        picture = _picture(images.open_image(None, str(plot.path)), plot.title, "plot")
        words = element("figcaption", joined([element("b", plot.title), " ", plot.caption]))
        figures.append(element("figure", joined([picture, words])))
    return element("div", joined(figures), class_="plots")
