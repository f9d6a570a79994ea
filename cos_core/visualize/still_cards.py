"""Cards as plain HTML, for the few that a page shows without its script."""

from __future__ import annotations

from collections.abc import Sequence

from cos_core.files.text import printable
from cos_core.visualize.gallery import CardBox, CardLine, GalleryCard
from cos_core.visualize.html import Html, element, joined, text


def still_card(card: GalleryCard, addresses: Sequence[str]) -> Html:
    """`card` as the page's script would build it; `addresses`: those of the album (PagePictures.addresses)."""
    tags = joined(joined([element("span", printable(words), class_=f"tag {kind}"), " "]) for words, kind in card.tags)
    small = joined(
        element(
            "figure",
            joined([_image(addresses[view.picture], view.alt, view.kind), element("figcaption", printable(view.caption))]),
        )
        for view in card.views
    )
    parts = [
        element("p", tags, class_="tags"),
        element("h4", printable(card.heading), dir="auto"),
        element(
            "div", joined([element("figure", _scene(card, addresses)), element("div", small, class_="small")]), class_="views"
        ),
        element("dl", joined(map(_line, card.rows)), class_="answers"),
    ]
    return element("article", joined(parts), class_="still", aria_label=printable(card.label or card.heading))


def _scene(card: GalleryCard, addresses: Sequence[str]) -> Html:
    if card.scene is None:
        return element("p", printable(card.problem), class_="noregion")
    number, width, height = card.scene
    photo = Html(f'<img src="{text(addresses[number])}" width="{width}" height="{height}" alt="">')
    marks = joined(_rectangle(shape, kind) for shape in card.shapes for kind in (_under(shape), shape.kind))
    drawn = element("svg", marks, viewBox="0 0 1 1", preserveAspectRatio="none", aria_hidden="true")
    label = "; ".join(["Scene", *(shape.words() for shape in card.shapes)])
    return element("span", joined([photo, drawn]), class_="stack", role="img", aria_label=label)


def _under(shape: CardBox) -> str:
    """The class of the dark line under a box."""
    return {"predicted": "halo", "unseen": "halo", "sample": "hair"}.get(shape.kind, "thin")


def _rectangle(shape: CardBox, kind: str) -> Html:
    x0, y0, x1, y1 = shape.box.corners
    place = {"x": f"{x0:.5f}", "y": f"{y0:.5f}", "width": f"{x1 - x0:.5f}", "height": f"{y1 - y0:.5f}"}
    return element("rect", class_=kind, **place)


def _line(line: CardLine) -> Html:
    said = element("code" if line.code else "bdi", printable(line.text), dir="auto")
    if line.mark:
        sign = element("span", "✓" if line.mark == "right" else "✗", role="img", aria_label=line.mark)
        said = element("span", joined([said, " ", sign]), class_=f"verdict {line.mark}")
    note = joined([" ", element("small", printable(line.note))]) if line.note else text("")
    return element("div", joined([element("dt", printable(line.term)), element("dd", joined([said, note]))]))


def _image(address: str, alt: str, kind: str) -> Html:
    return Html(f'<img class="{text(kind)}" src="{text(address)}" alt="{text(printable(alt))}">')
