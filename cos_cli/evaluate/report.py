"""`cos eval report --paper`: the paper's tables beside finished runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cos_cli.command import command
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_cli.evaluate.figures import WIDTH, TableFormat
from cos_core import options
from cos_core.errors import InputError
from cos_core.files.text import Lines, escaped
from cos_core.options import INPUT, OUTPUT, SCORING, option

if TYPE_CHECKING:
    from cos_core.evaluate.paper import PaperCell


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Which runs stand for which rows of the paper."""

    runs: tuple[str, ...] = option(
        (),
        "Runs by the row they stand for: cos-13b=FOLDER, base-13b=FOLDER, monkey=FOLDER, none=FOLDER, ...",
        INPUT,
        argument=True,
        metavar="ROW=RUN...",
    )
    paper: bool = option(False, "Tables 1, 2, 3(a) and 3(b) of the paper (the only report so far).", INPUT)
    out: Path | None = option(None, "Folder for paper.md, .tex, .csv, .json and .html.", OUTPUT, shown_default="print only")
    format: TableFormat = option("text", "Or latex: tables with the rules of booktabs.", OUTPUT)
    replicates: int = option(2000, "Bootstrap samples.", SCORING, low=100, high=options.REPLICATES)


@command("eval report", ReportOptions)
def report(session: Session, config: ReportOptions) -> None:
    """Show the paper's tables, with finished runs beside: ours, the difference, its interval, a verdict.

    Rows: base-7b, cos-7b, base-13b, cos-13b, and the peers blip2, instructblip, shikra, idefics-80b, qwen-vl,
    qwen-vl-chat, mplug-owl2, monkey (Tables 1 and 2); none, center_crop, from_image, from_questions,
    from_single_question (3a); low-rate, one-epoch, two-epochs, three-epochs (3b). A peer's verdict is about the protocol,
    not about Chain-of-Spot.

    \b
    Example:
      cos eval report --paper base-13b=runs/base cos-13b=runs/cos --out report
    """
    from cos_core.evaluate import paper as papers
    from cos_core.evaluate import paper_files
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
        outputs.check_folder(config.out, "eval report", named.values(), paper_files.FILES)
    with reporting(session) as reporter:
        cells = papers.report(named, replicates=config.replicates, reporter=reporter)
        if config.out is not None:
            for path in paper_files.write(cells, config.out):
                reporter.note(f"written: {path}")
    if session.json:
        emit_json({"cells": [asdict(cell) for cell in cells]})
    elif config.format == "latex":
        emit(Lines(paper_files.tex(cells).splitlines()))
    else:
        emit(describe(cells))


def describe(cells: Sequence[PaperCell]) -> Lines:
    """The tables as the paper prints them, our figures below; then what was run, row by row; under a figure the gain over the
    row's reference, where there is one."""
    from cos_core.evaluate import paper_files

    parts: list[str] = []
    for title, group in paper_files.by_table(cells).items():
        parts += ["", title, columns(paper_files.overview(group))]
        parts += [line for words in paper_files.remarks(title) for line in textwrap.wrap(words, WIDTH)]
    run = [cell for cell in cells if cell.ours is not None or cell.note]
    for title, row in dict.fromkeys((cell.table, cell.row) for cell in run):
        lines: list[tuple[str, ...]] = [("", "paper", "ours", "95 %", "ours - paper", "verdict")]
        for cell in (cell for cell in run if (cell.table, cell.row) == (title, row)):
            lines.append(_figures(cell.column, "", cell.paper, (cell.ours, cell.low, cell.high), cell.verdict))
            if cell.gain_verdict is not None:
                values = (cell.gain, cell.gain_low, cell.gain_high)
                lines.append(_figures("  gain", "+", cell.paper_gain, values, cell.gain_verdict or ""))
        notes = [f"{cell.column}: {cell.note}" for cell in run if cell.note and (cell.table, cell.row) == (title, row)]
        wrapped = [line for note in notes for line in textwrap.wrap(escaped(note), WIDTH)]
        parts += ["", f"{row} ({title})", columns(lines), *wrapped]
    return Lines(parts[1:])


def _figures(name: str, sign: str, paper: float | None, ours: Sequence[float | None], verdict: str) -> tuple[str, ...]:
    value, *ends = ours
    shown = ["-" if paper is None else f"{paper:{sign}.1f}", "" if value is None else f"{value:{sign}.1f}"]
    between = " to ".join(f"{end:{sign}.1f}" for end in ends if end is not None)
    return (name, *shown, between, f"{value - paper:+.1f}" if value is not None and paper is not None else "", verdict)
