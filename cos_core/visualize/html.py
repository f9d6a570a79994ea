"""HTML from shipped templates, escaped by default: a value is markup only when it is an `Html`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import Any

from PIL import Image, features

from cos_core.files import assets, manifest, pages

Section = tuple[str, str, "Html"]
"""(anchor, title, content) of a part of a page; empty content leaves it out."""


class Html(str):
    """Text that is HTML already. Everything else that reaches a page is escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as HTML text, safe in an attribute too."""
    return value if isinstance(value, Html) else Html(pages.text(value))


def fill(name: str, **values: object) -> Html:
    """The template `report/<name>` with its `$names` filled in. Raises KeyError when one is missing (a bug, not an input)."""
    source = assets.template("report", name).read_text(encoding="utf-8")
    return Html(Template(source).substitute({key: text(value) for key, value in values.items()}))


def shipped(name: str) -> Html:
    """The text of a shipped style sheet or script."""
    return Html(assets.template("report", name).read_text(encoding="utf-8"))


def joined(parts: Iterable[object]) -> Html:
    return Html("".join(text(part) for part in parts))


def element(name: str, content: object = "", **attributes: object) -> Html:
    """`<name attributes>content</name>`; in attribute names `class_` gives class, `aria_label` gives aria-label."""
    pairs = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{pairs}>{text(content)}</{name}>")


def table(caption: str, head: Sequence[object], rows: Iterable[object], numbers: Sequence[int] = ()) -> Html:
    """A table with column headings; `rows` are ready `<tr>`s; the columns in `numbers` are set flush right."""
    cells = joined(element("th", cell, scope="col", class_="n" if i in numbers else "t") for i, cell in enumerate(head))
    body = element("tbody", joined(rows))
    inner = joined([element("caption", caption), element("thead", element("tr", cells)), body])
    # A focusable region, so that a wide table can be scrolled from the keyboard.
    return element("div", element("table", inner), class_="scroll", tabindex="0", role="region", aria_label=caption)


def percent(share: float | None) -> str:
    """78.2 %, or a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def share_bar(share: float, ends: tuple[float, float] | None, role: str, label: str) -> Html:
    """A share in [0, 1] as a bar on 0..100 %, with its interval, if any, as a whisker."""
    marks = [
        element("rect", class_="track", x=0, y=4, width=100, height=8),
        element("rect", class_=f"fill {role}", x=0, y=2, width=f"{100 * share:.2f}", height=12),
    ]
    if ends is not None:
        low, high = (f"{100 * end:.2f}" for end in ends)
        marks.append(element("line", x1=low, x2=high, y1=8, y2=8))
        marks += [element("line", x1=end, x2=end, y1=4, y2=12) for end in (low, high)]
    return element(
        "svg", joined(marks), class_="bar", viewBox="0 0 100 16", preserveAspectRatio="none", role="img", aria_label=label
    )


def facts(title: str, values: Mapping[str, Any]) -> Html:
    """A folded two-column table of settings."""
    rows = [
        element("tr", joined([element("th", key, scope="row"), element("td", _plain(value))]), class_="arm")
        for key, value in values.items()
    ]
    body = element("tbody", joined(rows))
    return element("details", joined([element("summary", title), element("div", element("table", body), class_="scroll")]))


def data_uri(image: Image.Image, lossless: bool = False) -> str:
    """`image` as a `data:` address; see `encoded`."""
    return uri(*encoded(image, lossless, quality=88))


def encoded(image: Image.Image, lossless: bool, quality: int) -> tuple[str, bytes]:
    """(format, file) of `image`: "png" when `lossless`, else "webp" where Pillow has it, else "jpeg", at `quality`."""
    kind = "png" if lossless else "webp" if features.check("webp") else "jpeg"
    data = io.BytesIO()
    image.save(data, format=kind.upper(), **({"optimize": True} if lossless else {"quality": quality}))
    return kind, data.getvalue()


def uri(kind: str, data: bytes) -> str:
    """The `data:` address of a picture file of the format `kind` (png, webp, jpeg)."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def page(title: str, sections: Sequence[Section], *, first: Html, banner: Html, in_folder: bool = False) -> Html:
    """The whole page: `first` on top, then the sections with content, with a link to each in the navigation.

    The Content-Security-Policy allows only the shipped style and script, embedded pictures, and (`in_folder`) pictures of the
    page's own origin.
    """
    parts = [part for part in sections if part[2]]
    style, script = shipped("report.css"), shipped("report.js")
    return fill(
        "page.html",
        head=Html(pages.head(title, style, script, "data: 'self' file:" if in_folder else "data:")),
        script=script,
        banner=banner,
        nav=joined(element("a", name, href=f"#{anchor}") for anchor, name, _ in parts),
        sections=joined([first, *(_section(*part) for part in parts)]),
        footer=f"{title} · written by cos {manifest.versions().get('cos', '')}".strip(),
    )


def _section(anchor: str, title: str, content: Html) -> Html:
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", joined([heading, content]), id=anchor, aria_labelledby=f"{anchor}-title")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return str(value)
