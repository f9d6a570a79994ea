"""HTML from shipped templates, escaped by default: a value is markup only when it is an `Html`."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from PIL import Image, features

from cos_core import assets
from cos_core.visualize.draw import printable


class Html(str):
    """Text that is HTML already. Everything else that reaches a page is escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as HTML text, safe in an attribute too."""
    return value if isinstance(value, Html) else Html(escape(printable(str(value)), quote=True))


def fill(name: str, **values: object) -> Html:
    """The template `report/<name>` with its `$names` filled in. Raises KeyError when one is missing (a bug, not an input)."""
    source = assets.template("report", name).read_text(encoding="utf-8")
    return Html(Template(source).substitute({key: text(value) for key, value in values.items()}))


def shipped(name: str) -> Html:
    """A style sheet or script of ours, as it is."""
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


def digest(source: str) -> str:
    """The Content-Security-Policy source of an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def data_uri(image: Image.Image, lossless: bool = False) -> str:
    """`image` inside a `data:` address: PNG when `lossless`, else WebP where Pillow has it, else JPEG."""
    kind = "png" if lossless else "webp" if features.check("webp") else "jpeg"
    data = io.BytesIO()
    if lossless:
        image.save(data, format="PNG", optimize=True)
    else:
        image.save(data, format=kind.upper(), quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
