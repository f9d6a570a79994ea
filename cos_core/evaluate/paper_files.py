"""The report on the paper's tables as Markdown, LaTeX, CSV, JSON and HTML: each table as printed, ours below; then by cell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from cos_core.evaluate.paper import PaperCell
from cos_core.evaluate.paper_tables import TABLES
from cos_core.files import csv_writer, latex, outputs, pages
from cos_core.files.durable import atomic_write

OURS = "ours"
"""In the first column of a line of our figures, below the paper's."""

_HEAD = ("row", "column", "paper", "ours", "95 %", "difference", "verdict", "gain: paper", "gain: ours", "95 %", "gain verdict")
_NO_RUN = "No run is given; each is named as in the first column: `cos eval report --paper cos-13b=FOLDER`."


def by_table(cells: Sequence[PaperCell]) -> dict[str, list[PaperCell]]:
    """The cells of each table, by its title."""
    result: dict[str, list[PaperCell]] = {}
    for cell in cells:
        result.setdefault(cell.table, []).append(cell)
    return result


def overview(cells: Sequence[PaperCell], titles: bool = False) -> list[tuple[str, ...]]:
    """One table as the paper prints it: head, then a line a row, and a line of our figures below each row that was run.

    First the name that a run is given under; the row's title where `titles`; the language model where the table names any. A
    figure that the paper does not give is a dash.
    """
    rows: dict[str, list[PaperCell]] = {}
    for cell in cells:
        rows.setdefault(cell.name, []).append(cell)
    languages = any(cell.language for cell in cells)
    about = ("row", *(["model"] if titles else []), *(["language model"] if languages else []))
    lines = [(*about, *(cell.column for cell in next(iter(rows.values()))))]
    for name, row in rows.items():
        first = (name, *([row[0].row] if titles else []), *([row[0].language] if languages else []))
        lines.append((*first, *("-" if cell.paper is None else f"{cell.paper:.1f}" for cell in row)))
        if any(cell.ours is not None for cell in row):
            blank = [""] * (len(about) - 1)
            lines.append((OURS, *blank, *("" if cell.ours is None else f"{cell.ours:.1f}" for cell in row)))
    return lines


def remarks(title: str) -> Sequence[str]:
    """What is known of a table's figures beyond the paper."""
    return next((table.remarks for table in TABLES if table.title == title), ())


def _line(cell: PaperCell) -> tuple[str, ...]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None else f"{number(low, sign)} to {number(high, sign)}"

    verdict = f"{cell.verdict} ({cell.note})" if cell.note else cell.verdict
    paper = "-" if cell.paper is None else number(cell.paper)
    first = (cell.row, cell.column, paper, number(cell.ours), interval(cell.low, cell.high))
    gain = (number(cell.paper_gain, "+"), number(cell.gain, "+"), interval(cell.gain_low, cell.gain_high, "+"))
    return (*first, number(cell.difference, "+"), verdict, *gain, cell.gain_verdict or "")


def _run(cells: Sequence[PaperCell]) -> list[PaperCell]:
    """The cells about which a run says something."""
    return [cell for cell in cells if cell.ours is not None or cell.note]


def markdown(cells: Sequence[PaperCell]) -> str:
    """Every table of the paper as a Markdown table, and one of the cells that were run."""
    parts = []
    for title, group in by_table(cells).items():
        parts.append(f"## {title}\n\n{_markdown(overview(group, titles=True))}")
        parts += remarks(title)
        if run := _run(group):
            parts.append(_markdown([_HEAD, *map(_line, run)]))
    return "\n\n".join(parts if _run(cells) else [*parts, _NO_RUN]) + "\n"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join((head, "|" + " --- |" * len(rows[0]), *body))


def tex(cells: Sequence[PaperCell]) -> str:
    """The tables of `markdown` in LaTeX."""
    parts = []
    for title, group in by_table(cells).items():
        parts.append(latex.table(overview(group, titles=True), title, remarks(title)))
        if run := _run(group):
            parts.append(latex.table([_HEAD, *map(_line, run)], f"{title}: the cells that were run"))
    return "\n".join([latex.HEAD, *parts])


def page(cells: Sequence[PaperCell]) -> str:
    """One self-contained HTML page."""
    parts = []
    for title, group in by_table(cells).items():
        parts.append(f"<h2>{pages.text(title)}</h2>\n{_html(overview(group, titles=True), 'figures')}")
        parts += [f"<p>{pages.text(words)}</p>\n" for words in remarks(title)]
        if run := _run(group):
            parts.append(_html([_HEAD, *map(_line, run)], "cells"))
    if not _run(cells):
        parts.append(f"<p>{pages.text(_NO_RUN.replace('`', ''))}</p>\n")
    head = pages.head("The paper's tables", _STYLE)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n'
        f"<h1>The paper's tables, run again</h1>\n{''.join(parts)}</body>\n</html>\n"
    )


def _html(rows: Sequence[tuple[str, ...]], kind: str) -> str:
    head = "".join(f'<th scope="col">{pages.text(name)}</th>' for name in rows[0])
    body = ""
    for row in rows[1:]:
        mark = f' class="{OURS}"' if kind == "figures" and row[0] == OURS else ""
        body += f"<tr{mark}>" + "".join(f"<td>{pages.text(text)}</td>" for text in row) + "</tr>\n"
    return f'<div class="wide" tabindex="0"><table class="{kind}">\n<tr>{head}</tr>\n{body}</table></div>\n'


FILES = {
    "paper.md": outputs.beginning(b"## Table", b"\n"),
    "paper.tex": outputs.beginning(latex.HEAD.encode()),
    "paper.csv": outputs.beginning(b"table,", b"\n"),
    "paper.json": outputs.beginning(b'{\n  "cells"'),
    "paper.html": lambda head: False,
}
"""Tests for the first bytes of the files that `write` writes; a page is recognised by its own mark."""

_STYLE = """
:root{color-scheme:light dark}
body{font:15px system-ui,sans-serif;margin:2rem;line-height:1.4}
p{max-width:60rem}
.wide{overflow-x:auto;margin-bottom:1rem}
table{border-collapse:collapse}
td,th{padding:.2rem .6rem;text-align:left;vertical-align:top}
.figures td,.figures th{white-space:nowrap}
.cells tr:nth-child(odd){background:#8881}
.figures tr{border-top:1px solid #8884}
.figures tr.ours{border-top:none;font-weight:600}
"""


def write(cells: Sequence[PaperCell], out: Path) -> list[Path]:
    """paper.md, paper.tex, paper.csv, paper.json and paper.html below `out`. Raises InputError."""
    texts = {
        "paper.md": markdown(cells),
        "paper.tex": tex(cells),
        "paper.json": json.dumps({"cells": [asdict(cell) for cell in cells]}, indent=2) + "\n",
        "paper.html": page(cells),
    }
    for name, text in texts.items():
        atomic_write(out / name, text)
    head = [column.name for column in fields(PaperCell)]
    csv_writer.write(out / "paper.csv", head, ([getattr(cell, name) for name in head] for cell in cells))
    return [out / name for name in ("paper.md", "paper.tex", "paper.csv", "paper.json", "paper.html")]
