"""The demo's page: one HTML file that needs nothing else, with everything embedded and every data set's text escaped.

A strict Content-Security-Policy stands in the page: no request can leave it, and only its own script can run, so that a
question that holds markup stays text even if escaping were ever forgotten.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cos_core.errors import InputError
from cos_core.files import images
from cos_core.geometry import Box
from cos_core.visualize import demo_sections as sections
from cos_core.visualize.demo_records import (
    Answered,
    ArmComparison,
    ArmRow,
    ArmScore,
    DemoCard,
    DemoReport,
    LabelRow,
    Plot,
)
from cos_core.visualize.draw import EncoderView, show
from cos_core.visualize.gallery import (
    BoxKind,
    CardBox,
    CardLine,
    Gallery,
    GalleryCard,
    PagePictures,
    SmallPicture,
    gallery,
    in_words,
    publishing,
    write_page,
)
from cos_core.visualize.html import Html, data_uri, element, facts, fill, joined, page, text

__all__ = [
    "Answered",
    "ArmComparison",
    "ArmRow",
    "ArmScore",
    "DemoCard",
    "DemoReport",
    "EncoderView",
    "LabelRow",
    "Plot",
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
_BUTTONS = {"helped": "Helped", "both": "Both right", "hurt": "Hurt", "neither": "Both wrong"}


def write_demo_report(out: Path, report: DemoReport) -> None:
    """Writes the page to the file `out`, whole or not at all.

    Pictures that cannot be read leave a sentence in their place. The page computes nothing: every figure is from `report`.
    """
    with publishing(out) as album:
        content = _sections(report, album)
        title, first, banner = report.title, _hero(report), _banner(report.quick)
        write_page(out, page(title, content, first=first, banner=banner, in_folder=album.in_folder), album)


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
        caveat=element("p", report.caveat, class_="caveat") if report.caveat else "",
        explanation=explanation,
        worked=_worked(report),
    )


def _sections(report: DemoReport, album: PagePictures) -> list[tuple[str, str, Html]]:
    """(anchor, title, content) in page order; empty content leaves a section out."""
    nothing = text("")
    kinds = any(arm.kinds for arm in report.arms)
    label_words = (
        "No one drew these regions: annotation found them by asking the model which part of the picture its answer came from. "
        "This is how often they hold the centre of the right object."
    )
    hits = "“Region hits”: the region holds the centre of the right object."
    told = [facts(t, v) for t, v in (("Settings", report.settings), ("Provenance", report.provenance)) if v]
    return [
        ("arms", "The table", joined([_about(hits), sections.arms_table(report)])),
        ("differences", "Differences", sections.comparisons_table(report) if sections.shown_differences(report) else nothing),
        ("kinds", "By kind of question", sections.kinds_table(report) if kinds else nothing),
        (
            "labels",
            "The labels",
            joined([_about(label_words), sections.labels_table(report.labels)]) if report.labels else nothing,
        ),
        ("scenes", "Scenes", _gallery(report, album) if report.cards else nothing),
        ("plots", "Regions in numbers", _plots(report) if report.plots else nothing),
        ("next", "What to try next", sections.next_steps(report.next_steps)),
        ("facts", "How this was made", joined(told)),
    ]


def _about(words: str) -> Html:
    return element("p", words, class_="about")


def _worked(report: DemoReport) -> Html:
    """The first scene that only Chain-of-Spot answers, as the story of the method; nothing when there is none."""
    for card in report.cards:
        if card.predicted is None or not card.with_cos.correct or card.without.correct:
            continue
        try:
            views = _views(report, card, card.predicted)
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


_LEGEND: dict[BoxKind, str] = {
    "predicted": "region the model chose",
    "gold": "right region",
    "annotated": "label from annotation",
}


def _gallery(report: DemoReport, album: PagePictures) -> Html:
    cards = [_card(report, card, album) for card in report.cards]
    return gallery(Gallery(cards, _BUTTONS, "scenes", keys=_LEGEND), album)


def _card(report: DemoReport, card: DemoCard, album: PagePictures) -> GalleryCard:
    outcome = {(False, True): "helped", (True, True): "both", (True, False): "hurt", (False, False): "neither"}[
        card.without.correct, card.with_cos.correct
    ]
    rows = (
        _answer_row("without", card.without),
        _answer_row("with", card.with_cos),
        CardLine("truth", card.truth),
        CardLine("box", card.box_text or "–", code=True, note=f"({card.box_status})" if card.box_status != "ok" else ""),
    )
    kinds: tuple[tuple[BoxKind, Box | None], ...] = (
        ("annotated", card.annotated),
        ("gold", card.gold),
        ("predicted", card.predicted),
    )
    scene, problem = None, ""
    views: list[SmallPicture] = []
    try:
        picture = _picture_of(report, card)
        shown = show(picture, SCENE_PX).image if max(picture.size) > SCENE_PX else picture
        scene = (album.add(shown), shown.width, shown.height)
        seen = [("whole", "the whole picture", report.encoder.view(picture))]
        if card.predicted:
            seen.append(("region", "the chosen region", report.encoder.view(picture, card.predicted)))
        for name, of, view in seen:
            views.append(SmallPicture(album.add(view, lossless=True), f"encoder: {name}", _seen_words(view, of), "seen"))
    except InputError as error:
        problem = str(error)
    return GalleryCard(
        card.example_id,
        card.question,
        outcome,
        scene,
        problem,
        tuple(CardBox(kind, _LEGEND[kind], box) for kind, box in kinds if box is not None),
        tuple(views),
        rows,
        ((card.kind, ""), (_OUTCOMES[outcome], outcome), *([] if card.predicted else [("no usable region", "")])),
        {"Kind": card.kind},
        {"region area": card.predicted.area if card.predicted else None, "question": card.question},
        f"{card.kind} question {card.example_id}: {_OUTCOMES[outcome]}",
    )


def _answer_row(term: str, answer: Answered) -> CardLine:
    return CardLine(term, answer.text or "(nothing)", "right" if answer.correct else "wrong")


def _verdict(answer: Answered) -> Html:
    words, mark, name = ("right", "✓", "right") if answer.correct else ("wrong", "✗", "wrong")
    sign = element("span", mark, role="img", aria_label=words)
    return element("span", joined([element("bdi", answer.text or "(nothing)"), " ", sign]), class_=f"verdict {name}")


def _picture_of(report: DemoReport, card: DemoCard) -> Image.Image:
    return images.open_image(None if card.image.is_absolute() else report.images, str(card.image))


def _views(report: DemoReport, card: DemoCard, region: Box) -> dict[str, Html]:
    """The scene with its region, and what the encoder is given of all of it and of the region. Raises InputError."""
    picture = _picture_of(report, card)
    encoder = report.encoder
    return {
        "scene": _scene(picture, region),
        "whole": _seen(encoder.view(picture), "the whole picture"),
        "crop": _seen(encoder.view(picture, region), "the chosen region"),
    }


def _scene(picture: Image.Image, region: Box) -> Html:
    """The picture with its region drawn over it as a vector: exact at any size, and the picture itself unchanged."""
    shown = show(picture, SCENE_PX).image if max(picture.size) > SCENE_PX else picture
    photo = Html(f'<img src="{data_uri(shown)}" width="{shown.width}" height="{shown.height}" alt="">')
    place = {
        "x": f"{region.x0:.5f}",
        "y": f"{region.y0:.5f}",
        "width": f"{region.x1 - region.x0:.5f}",
        "height": f"{region.y1 - region.y0:.5f}",
    }
    marks = [element("rect", class_=kind, **place) for kind in ("halo", "predicted")]
    drawn = element("svg", joined(marks), viewBox="0 0 1 1", preserveAspectRatio="none", aria_hidden="true")
    label = f"Scene; {_LEGEND['predicted']}: {in_words(region)}"
    return element("span", joined([photo, drawn]), class_="stack", role="img", aria_label=label)


def _seen(view: Image.Image, what: str) -> Html:
    return _picture(view, _seen_words(view, what), "seen")


def _seen_words(view: Image.Image, what: str) -> str:
    return f"What the encoder is given of {what}: {view.width} by {view.height} pixels, shown enlarged"


def _picture(picture: Image.Image, alt: str, kind: str) -> Html:
    size = f'width="{picture.width}" height="{picture.height}"'
    return Html(f'<img class="{kind}" src="{data_uri(picture, lossless=True)}" {size} alt="{text(alt)}">')


def _plots(report: DemoReport) -> Html:
    figures = []
    for plot in report.plots:
        picture = _picture(images.open_image(None, str(plot.path)), plot.title, "plot")
        words = element("figcaption", joined([element("b", plot.title), " ", plot.caption]))
        figures.append(element("figure", joined([picture, words])))
    return element("div", joined(figures), class_="plots")
