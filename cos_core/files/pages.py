"""The head of every HTML page that is written: its policy, so that nothing leaves the page and no script runs but its own."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from string import Template

from cos_core.files import assets
from cos_core.files.text import printable


def text(value: object) -> str:
    """`value` as HTML text, safe in an attribute too."""
    return escape(printable(str(value)), quote=True)


def digest(source: str) -> str:
    """The Content-Security-Policy source of an inline style or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def head(title: str, style: str, script: str = "", pictures: str = "data:") -> str:
    """Everything inside `<head>`; `style` and `script` are the only ones that the page may have, `pictures` where its pictures
    may come from."""
    source = assets.template("report", "head.html").read_text(encoding="utf-8")
    values = {
        "title": text(title),
        "style": style,
        "style_hash": digest(style),
        "script": f"'{digest(script)}'" if script else "'none'",
        "pictures": pictures,
    }
    return Template(source).substitute(values)
