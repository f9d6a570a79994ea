"""`cos eval report --paper`: the paper's tables beside finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cos_cli.command import command
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_core import options
from cos_core.errors import InputError
from cos_core.files.text import Lines
from cos_core.options import INPUT, OUTPUT, REQUIRED, SCORING, option

if TYPE_CHECKING:
    from cos_core.evaluate.paper import PaperCell


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Which runs stand for which rows of the paper."""

    runs: tuple[str, ...] = option(
        REQUIRED,
        "Runs by the row they stand for: cos-13b=FOLDER, base-13b=FOLDER, none=FOLDER, ...",
        INPUT,
        argument=True,
        metavar="ROW=RUN...",
    )
    paper: bool = option(False, "Tables 1, 2, 3(a) and 3(b) of the paper (the only report so far).", INPUT)
    out: Path | None = option(None, "Folder for paper.md, .csv, .json and .html.", OUTPUT, shown_default="print only")
    replicates: int = option(2000, "Bootstrap samples.", SCORING, low=100, high=options.REPLICATES)


@command("eval report", ReportOptions)
def report(session: Session, config: ReportOptions) -> None:
    """Set the paper's tables beside finished runs: ours, theirs, the difference, its interval, a verdict.

    Rows: base-7b, cos-7b, base-13b, cos-13b (Tables 1 and 2); none, center_crop, from_image, from_questions,
    from_single_question (3a); low-rate, one-epoch, two-epochs, three-epochs (3b).

    \b
    Example:
      cos eval report --paper base-13b=runs/base cos-13b=runs/cos --out report
    """
    from cos_core.evaluate import paper as papers
    from cos_core.files import outputs

    if not config.paper:
        raise typer.BadParameter("say which report: --paper")
    named: dict[str, Path] = {}
    for text in config.runs:
        row, mark, folder = text.partition("=")
        if not mark or not folder:
            raise InputError(f"a run is given as ROW=FOLDER, such as cos-13b=runs/cos, not {text!r}")
        named[row] = Path(folder)
    if config.out is not None:
        outputs.check_folder(config.out, "eval report", named.values(), papers.OURS)
    with reporting(session) as reporter:
        cells = papers.report(named, replicates=config.replicates)
        if config.out is not None:
            for path in papers.write(cells, config.out):
                reporter.note(f"written: {path}")
    if session.json:
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
