"""`cos eval report --paper`: the paper's tables beside finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cos_cli import options, settings
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_core.errors import InputError
from cos_core.files.text import Lines
from cos_core.system import bounds

if TYPE_CHECKING:
    from cos_core.evaluate.paper import PaperCell


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs by the row they stand for: cos-13b=FOLDER, base-13b=FOLDER, none=FOLDER, ...", metavar="ROW=RUN..."
        ),
    ],
    paper: Annotated[
        bool, typer.Option("--paper", help="Tables 1, 2, 3(a) and 3(b) of the paper (the only report so far).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for paper.md, .csv, .json and .html.", show_default="print only")
    ] = None,
    replicates: Annotated[int, typer.Option(min=100, max=bounds.REPLICATES, help="Bootstrap samples.")] = 2000,
    config_file: settings.Config = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Set the paper's tables beside finished runs: ours, theirs, the difference, its interval, a verdict.

    Rows: base-7b, cos-7b, base-13b, cos-13b (Tables 1 and 2); none, center_crop, from_image, from_questions,
    from_single_question (3a); low-rate, one-epoch, two-epochs, three-epochs (3b).

    \b
    Example:
      cos eval report --paper base-13b=runs/base cos-13b=runs/cos --out report
    """
    from cos_core.evaluate import paper as papers
    from cos_core.files import outputs

    if not paper:
        raise typer.BadParameter("say which report: --paper")
    named: dict[str, Path] = {}
    for text in runs:
        row, mark, folder = text.partition("=")
        if not mark or not folder:
            raise InputError(f"a run is given as ROW=FOLDER, such as cos-13b=runs/cos, not {text!r}")
        named[row] = Path(folder)
    if out is not None:
        outputs.check_folder(out, "eval report", named.values(), papers.OURS)
    with reporting(ctx.ensure_object(Session)) as reporter:
        cells = papers.report(named, replicates=replicates)
        if out is not None:
            for path in papers.write(cells, out):
                reporter.note(f"written: {path}")
    if json:
        emit_json({"cells": [asdict(cell) for cell in cells]})
    else:
        emit(describe([cell for cell in cells if cell.verdict != papers.ABSENT]))


def describe(cells: Sequence[PaperCell]) -> Lines:
    """What was run, table by table, row by row; under a figure the gain over the row's reference, where there is one."""
    parts: list[str] = []
    for title, row in dict.fromkeys((cell.table, cell.row) for cell in cells):
        lines: list[tuple[str, ...]] = [("", "paper", "ours", "95 %", "ours - paper", "verdict")]
        for cell in (cell for cell in cells if (cell.table, cell.row) == (title, row)):
            lines.append(_figures(cell.column, "", cell.paper, (cell.ours, cell.low, cell.high), cell.verdict))
            if cell.gain_verdict is not None:
                values = (cell.gain, cell.gain_low, cell.gain_high)
                lines.append(_figures("  gain", "+", cell.paper_gain, values, cell.gain_verdict or ""))
        notes = [f"{cell.column}: {cell.note}" for cell in cells if cell.note and (cell.table, cell.row) == (title, row)]
        parts += ["", title, row, columns(lines), *notes]
    return Lines(parts[1:])


def _figures(name: str, sign: str, paper: float | None, ours: Sequence[float | None], verdict: str) -> tuple[str, ...]:
    value, *ends = ours
    shown = [f"{x:{sign}.1f}" if x is not None else "" for x in (paper, value)]
    between = " to ".join(f"{end:{sign}.1f}" for end in ends if end is not None)
    return (name, *shown, between, f"{value - paper:+.1f}" if value is not None and paper is not None else "", verdict)
