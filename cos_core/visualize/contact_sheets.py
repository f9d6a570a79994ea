"""`cos visualize compare`: the same questions in two runs (CoS Fig. 4, 6), as contact sheets for a paper and a table of all.

One drawing serves every format: in a PDF the boxes and words are vectors, and each picture is embedded as it is shown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cos_core.errors import InputError
from cos_core.files import csv_writer, images, manifest, outputs
from cos_core.files.durable import atomic_write
from cos_core.geometry import Box
from cos_core.interfaces import Reporter
from cos_core.types import RunManifest
from cos_core.visualize import run_questions, runs, select
from cos_core.visualize.config import CompareConfig
from cos_core.visualize.draw import COLOURS, font_at, wrap
from cos_core.visualize.overlay import mark
from cos_core.visualize.run_questions import RunQuestion
from cos_core.visualize.runs import FinishedRun

OTHER = (0, 158, 115)
"""The earlier run's boxes: bluish green of the same colour-blind safe palette."""
CELL_INCHES = (2.5, 3.0)
_WORDS_PX = 9
_PICTURE_PX = 700
_DPI = 160


@dataclass(frozen=True, slots=True)
class SheetCell:
    """One question of a sheet: its picture, or the `problem` with it; boxes (colour, line style, box); lines (text, bold)."""

    picture: Image.Image | None
    problem: str
    boxes: tuple[tuple[tuple[int, int, int], str, Box], ...]
    lines: tuple[tuple[str, bool], ...]


def run(config: CompareConfig, reporter: Reporter) -> RunManifest:
    """Writes the sheets, `<out>.csv` and `<out>.manifest.json`. Raises InputError when no question fits."""
    outputs.check_file(config.out, "visualize compare", (*config.runs, config.data, config.images))
    work = manifest.started("visualize compare", config)
    loaded = runs.load(config.runs, runs.RunSources(config.data, config.images, config.follow_links), reporter)
    everything = select.selected_ids(loaded, replace(config.selection, sample=None))
    if not everything:
        raise InputError(f"no question of {' and '.join(r.name for r in loaded)} fits: {config.selection.words()}")
    columns, rows = config.shape()
    ids = select.drawn(everything, config.selection.sample or columns * rows, config.selection.seed)
    cells = [_cell(loaded, example_id) for example_id in ids]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sheets = [sheet(cells[i : i + columns * rows], columns, rows, loaded) for i in range(0, len(cells), columns * rows)]
    files = _write(config.out, sheets)
    csv_writer.write(config.out.with_name(f"{config.out.name}.csv"), head(loaded), table(loaded, everything))
    missing = sum(cell.picture is None for cell in cells)
    results = {"fitting": len(everything), "shown": ids, "files": [file.name for file in files]}
    result = work.finish(
        {"ok": len(cells) - missing, "failed": missing, "skipped": len(everything) - len(cells)}, results=results
    )
    manifest.write(manifest.path_for(config.out), result)
    reporter.note(f"{len(everything)} questions fit, {len(cells)} are shown: {', '.join(map(str, files))}")
    return result


def head(loaded: Sequence[FinishedRun]) -> list[str]:
    """The columns of `table`."""
    parts = ("answer", "score", "box_status", "box")
    return ["id", "question", "gold", *(f"{run.name} {part}" for run in loaded for part in parts)]


def table(loaded: Sequence[FinishedRun], ids: Sequence[str]) -> Iterator[list[str]]:
    """A row a question: id, question, gold answer, and for each run answer, verdict, box status and box."""
    for example_id in ids:
        items = [run.item(example_id) for run in loaded]
        row = [example_id, items[-1].question, run_questions.gold_answer(items)]
        for item in items:
            score = "" if item.score is None else f"{item.score.value:g}"
            box = "" if item.box is None else " ".join(f"{v:.4f}" for v in item.box.corners)
            row += [item.answer, score, item.prediction.box_status if item.prediction else "", box]
        yield row


def _cell(loaded: Sequence[FinishedRun], example_id: str) -> SheetCell:
    items = [run.item(example_id) for run in loaded]
    name, root = run_questions.image_name(items), runs.picture_root(loaded)
    picture, problem = None, run_questions.NO_IMAGE
    if name is not None:
        try:
            picture = images.open_image(root, name)
            picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
        except InputError as error:
            problem = str(error)
    boxes = [(OTHER, "--", item.box) for item in items[:-1] if item.box is not None]
    gold = run_questions.gold_region(items)
    boxes += [(COLOURS["gold"], ":", gold)] if gold is not None else []
    boxes += [(COLOURS["predicted"], "-", items[-1].box)] if items[-1].box is not None else []
    truth = run_questions.gold_answer(items)
    lines = [(items[-1].question, True)]
    lines += [(_answer_line(run, item, len(items) > 1), False) for run, item in zip(loaded, items, strict=True)]
    lines += [(f"gold: {truth}", False)] if truth else []
    return SheetCell(picture, problem, tuple(boxes), tuple(lines))


def _answer_line(run: FinishedRun, item: RunQuestion, several: bool) -> str:
    """The run's answer with its verdict; the run's name before it where there are `several` runs."""
    sign = "" if item.right is None else " ✓" if item.right else " ✗"
    instead = f" ({item.instead})" if item.instead else ""
    return f"{f'{run.name}: ' if several else ''}{item.answer}{sign}{instead}"


def sheet(cells: Sequence[SheetCell], columns: int, rows: int, loaded: Sequence[FinishedRun]) -> Figure:
    """One page: the cells row by row, and below them what each stroke means."""
    rows = min(rows, -(-len(cells) // columns))
    width, height = columns * CELL_INCHES[0], rows * CELL_INCHES[1] + 0.3
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    for number, cell in enumerate(cells):
        left = (number % columns) * CELL_INCHES[0] + 0.08
        top = height - (number // columns) * CELL_INCHES[1] - 0.08
        axes = figure.add_axes((left / width, (top - 1.8) / height, (CELL_INCHES[0] - 0.16) / width, 1.8 / height))
        _draw(axes, cell)
        _write_lines(figure, cell, (left, top - 1.9), (width, height))
    drawn = {(colour, dash) for cell in cells if cell.picture is not None for colour, dash, _ in cell.boxes}
    legend = [(COLOURS["predicted"], "-", loaded[-1].name), (COLOURS["gold"], ":", "gold")]
    legend += [(OTHER, "--", run.name) for run in loaded[:-1]]
    legend = [each for each in legend if each[:2] in drawn]
    for number, (colour, dash, words) in enumerate(legend):
        x = 0.1 + number * 2.0
        line = matplotlib.lines.Line2D([x / width, (x + 0.3) / width], [0.15 / height] * 2, color=_rgb(colour), linestyle=dash)
        figure.add_artist(line)
        figure.text((x + 0.38) / width, 0.15 / height, words, fontsize=7, va="center", parse_math=False)
    return figure


def _draw(axes: matplotlib.axes.Axes, cell: SheetCell) -> None:
    axes.set_axis_off()
    if cell.picture is None:
        words = "\n".join(wrap(cell.problem, font_at(_WORDS_PX), 190, 6))
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=6, parse_math=False)
        return
    width, height = cell.picture.size
    # The extent puts pixel borders on whole numbers, so a box's fractions are exact places.
    axes.imshow(np.asarray(cell.picture), extent=(0, width, height, 0), interpolation="nearest", aspect="equal")
    for colour, dash, box in cell.boxes:
        place, size = (box.x0 * width, box.y0 * height), ((box.x1 - box.x0) * width, (box.y1 - box.y0) * height)
        for edge, style, line in (("black", "-", 2.6), (_rgb(colour), dash, 1.5)):
            axes.add_patch(Rectangle(place, *size, fill=False, edgecolor=edge, linestyle=style, linewidth=line, clip_on=False))


def _write_lines(figure: Figure, cell: SheetCell, place: tuple[float, float], size: tuple[float, float]) -> None:
    left, top = place
    # Measured at a whole pixel size, in the face that is drawn: 72 points and 72 pixels to the inch.
    for words, bold in cell.lines:
        for line in wrap(words, font_at(_WORDS_PX, bold), (CELL_INCHES[0] - 0.2) * 72 * _WORDS_PX / 7, 2):
            weight = "bold" if bold else "normal"
            figure.text(left / size[0], top / size[1], line, fontsize=7, va="top", weight=weight, parse_math=False)
            top -= 0.125


def _rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _write(out: Path, sheets: Sequence[Figure]) -> list[Path]:
    """Writes the sheets and returns the files."""
    if out.suffix.lower() == ".pdf":
        data = io.BytesIO()
        # Type 42 keeps the text selectable and is what publishers take.
        with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(data, metadata={"Creator": outputs.MARK}) as pages:
            for figure in sheets:
                pages.savefig(figure)
        atomic_write(out, data.getvalue())
        return [out]
    files = []
    for number, figure in enumerate(sheets, 1):
        file = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        data = io.BytesIO()
        figure.savefig(data, format=out.suffix[1:].lower(), pil_kwargs={"exif": mark()})
        atomic_write(file, data.getvalue())
        files.append(file)
    return files
