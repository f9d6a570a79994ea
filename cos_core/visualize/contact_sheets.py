"""`cos visualize compare`: the same questions in two runs (CoS Fig. 4, 6), as contact sheets for a paper and a table of all.

One drawing serves every format: in a PDF or SVG the boxes and words are vectors, and each picture is embedded as it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cos_core.dialogue.crop_content import content_of
from cos_core.errors import InputError
from cos_core.files import csv_writer, images, manifest, outputs
from cos_core.files.durable import atomic_write
from cos_core.geometry import Box
from cos_core.interfaces import Reporter
from cos_core.types import Prediction, RunManifest
from cos_core.visualize import figures, run_questions, runs, select
from cos_core.visualize.config import VECTORS, CompareConfig, FigureOptions
from cos_core.visualize.draw import COLOURS, RGB
from cos_core.visualize.figures import POINTS, TYPE_PT, USUAL_DPI, fraction, wrapped
from cos_core.visualize.run_questions import RunQuestion
from cos_core.visualize.runs import FinishedRun

OTHER = (0, 158, 115)
"""The earlier run's boxes: bluish green of the same colour-blind safe palette."""
CELL_INCHES = (2.5, 3.0)
_LEGEND_INCHES = 0.3
_WORDS_PT = 7
_DPI = 160
_LINES = 2
"""Lines of a question or an answer, at most."""


@dataclass(frozen=True, slots=True)
class SheetLook:
    """The cells of a sheet: their width in inches, the size of type in points, the dots per inch of their pictures, whether a
    cell is as high as its words need, and whether pictures are embedded as they are."""

    cell: float = CELL_INCHES[0]
    type: float = _WORDS_PT
    dpi: int = USUAL_DPI
    tight: bool = False
    vector: bool = False

    @classmethod
    def of(cls, options: FigureOptions, columns: int, suffix: str) -> SheetLook:
        """The look of a sheet of so many columns in a file of this kind."""
        cell = options.inches(columns * CELL_INCHES[0]) / columns
        paper = options.style == "paper"
        return cls(
            cell, TYPE_PT if paper else _WORDS_PT * cell / CELL_INCHES[0], options.dpi or USUAL_DPI, paper, suffix in VECTORS
        )

    @property
    def scale(self) -> float:
        """Of lengths, against a cell of CELL_INCHES."""
        return self.cell / CELL_INCHES[0]

    @property
    def step(self) -> float:
        """From line to line, in inches."""
        return self.type / _WORDS_PT / 8

    @property
    def room(self) -> float:
        """The width of a line, in points."""
        return (self.cell - 0.2 * self.scale) * POINTS

    def rows(self, cell: SheetCell) -> list[tuple[str, bool]]:
        """The lines of a cell's words as they are broken, each with whether it is bold."""
        return [(row, bold) for words, bold in cell.lines for row in wrapped(words, self.type, self.room, _LINES, bold)]

    def height(self, cells: Sequence[SheetCell]) -> float:
        """The height of a cell, in inches."""
        if not self.tight:
            return CELL_INCHES[1] * self.scale
        return 2.0 * self.scale + self.step * max(len(self.rows(cell)) for cell in cells)


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
    look = SheetLook.of(config.figure, columns, config.out.suffix.lower())
    ids = select.drawn(everything, config.selection.sample or columns * rows, config.selection.seed)
    cells = [_cell(loaded, example_id, round((look.cell - 0.16 * look.scale) * look.dpi)) for example_id in ids]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sheets = [sheet(cells[i : i + columns * rows], columns, rows, loaded, look) for i in range(0, len(cells), columns * rows)]
    files = _write(config.out, sheets, USUAL_DPI if config.figure.given and config.figure.dpi is None else config.figure.dpi)
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
    parts = ("answer", "score", "box_status", "box", *_looks(loaded))
    return ["id", "question", "gold", *(f"{run.name} {part}" for run in loaded for part in parts)]


def _looks(loaded: Sequence[FinishedRun]) -> list[str]:
    """The columns about second looks that any of the runs has something in."""
    return [name for name in runs.LATER_FIELDS if any(name in run.summary.fields for run in loaded)]


def table(loaded: Sequence[FinishedRun], ids: Sequence[str]) -> Iterator[list[str]]:
    """A row a question: id, question, gold answer, and for each run answer, verdict, box status and box, and what its second
    look showed, the gate's decision and the sampled answers where a run has any."""
    looks = _looks(loaded)
    for example_id in ids:
        items = [run.item(example_id) for run in loaded]
        row = [example_id, items[-1].question, run_questions.gold_answer(items)]
        for item in items:
            score = "" if item.score is None else f"{item.score.value:g}"
            box = "" if item.box is None else " ".join(f"{v:.4f}" for v in item.box.corners)
            row += [item.answer, score, item.prediction.box_status if item.prediction else "", box]
            row += [_look(item.prediction, name) for name in looks]
        yield row


def _look(prediction: Prediction | None, name: str) -> str:
    """One of LATER_FIELDS of an answer, as text."""
    value = None if prediction is None else getattr(prediction, name)
    if name == "samples":
        return run_questions.sample_words(value) if value else ""
    return "" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _cell(loaded: Sequence[FinishedRun], example_id: str, longest: int) -> SheetCell:
    """A question's cell; its picture has at most `longest` pixels a side."""
    items = [run.item(example_id) for run in loaded]
    name, root = run_questions.image_name(items), runs.picture_root(loaded)
    picture, problem = None, run_questions.NO_IMAGE
    if name is not None:
        try:
            picture = images.open_image(root, name)
            picture.thumbnail((longest, longest))
        except InputError as error:
            problem = str(error)
    boxes = [(OTHER, "--", item.box) for item in items[:-1] if item.box is not None]
    gold = run_questions.gold_region(items)
    boxes += [(COLOURS["gold"], ":", gold)] if gold is not None else []
    if items[-1].instead and items[-1].prediction is not None and items[-1].prediction.box is not None:
        boxes.append((COLOURS["fallback"], "--", items[-1].prediction.box))
    boxes += [(COLOURS["predicted"], "--" if items[-1].seen_otherwise else "-", items[-1].box)] if items[-1].box else []
    truth = run_questions.gold_answer(items)
    lines = [(items[-1].question, True)]
    lines += [(_answer_line(run, item, len(items) > 1), False) for run, item in zip(loaded, items, strict=True)]
    lines += [(f"gold: {truth}", False)] if truth else []
    return SheetCell(picture, problem, tuple(boxes), tuple(lines))


def _answer_line(run: FinishedRun, item: RunQuestion, several: bool) -> str:
    """The run's answer with its verdict, and with what was looked at instead of the region that it names; the run's name before
    it where there are `several` runs."""
    sign = "" if item.right is None else " ✓" if item.right else " ✗"
    notes = [item.instead]
    if (prediction := item.prediction) is not None:
        notes += [f"shown: {content_of(prediction.shown)}"] if prediction.shown is not None else []
        notes += [f"gate {prediction.gate}"] if prediction.gate is not None else []
        notes += [run_questions.agreement(prediction.samples)] if prediction.samples else []
    beside = "".join(f" ({note})" for note in notes if note)
    return f"{f'{run.name}: ' if several else ''}{item.answer}{sign}{beside}"


def sheet(
    cells: Sequence[SheetCell],
    columns: int,
    rows: int,
    loaded: Sequence[FinishedRun],
    look: SheetLook = SheetLook(),
) -> Figure:
    """One page: the cells row by row, and below them what each stroke means."""
    rows = min(rows, -(-len(cells) // columns))
    legend, scale, tall = _legend(cells, loaded), look.scale, look.height(cells)
    foot = _LEGEND_INCHES * look.type / _WORDS_PT
    width, height = columns * look.cell, rows * tall + foot
    per_row = max(1, int(width // (2.0 * look.type / _WORDS_PT)))
    height += foot * 0.6 * (-(-len(legend) // per_row) - 1 if legend else 0)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    for number, cell in enumerate(cells):
        left = (number % columns) * look.cell + 0.08 * scale
        top = height - (number // columns) * tall - 0.08 * scale
        place = (left / width, (top - 1.8 * scale) / height, (look.cell - 0.16 * scale) / width, 1.8 * scale / height)
        _draw(figure.add_axes(place), cell, look)
        _write_lines(figure, look.rows(cell), (left, top - 1.9 * scale), (width, height), look)
    for number, (colour, dash, words) in enumerate(legend):
        unit = look.type / _WORDS_PT
        x = (0.1 + number % per_row * 2.0) * unit
        y = (height - rows * tall - foot / 2 - number // per_row * 0.6 * foot) / height
        line = matplotlib.lines.Line2D([x / width, (x + 0.3 * unit) / width], [y] * 2, color=fraction(colour), linestyle=dash)
        figure.add_artist(line)
        figure.text((x + 0.38 * unit) / width, y, words, fontsize=look.type, va="center", parse_math=False)
    return figure


def _legend(cells: Sequence[SheetCell], loaded: Sequence[FinishedRun]) -> list[tuple[RGB, str, str]]:
    """(colour, line style, words) of the strokes that are drawn."""
    last = loaded[-1].name
    known = [
        (COLOURS["predicted"], "-", last),
        (COLOURS["predicted"], "--", f"{last}, not shown"),
        (COLOURS["fallback"], "--", f"{last}, fallback"),
        (COLOURS["gold"], ":", "gold"),
        *((OTHER, "--", run.name) for run in loaded[:-1]),
    ]
    drawn = {(colour, dash) for cell in cells if cell.picture is not None for colour, dash, _ in cell.boxes}
    return [each for each in known if each[:2] in drawn]


def _draw(axes: matplotlib.axes.Axes, cell: SheetCell, look: SheetLook) -> None:
    axes.set_axis_off()
    if cell.picture is None:
        words = "\n".join(wrapped(cell.problem, 6 * look.type / _WORDS_PT, 127 * look.scale, 6))
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=6 * look.type / _WORDS_PT, parse_math=False)
        return
    width, height = cell.picture.size
    # The extent puts pixel borders on whole numbers, so a box's fractions are exact places.
    axes.imshow(
        np.asarray(cell.picture),
        extent=(0, width, height, 0),
        interpolation="none" if look.vector else "nearest",
        aspect="equal",
    )
    for colour, dash, box in cell.boxes:
        place, size = (box.x0 * width, box.y0 * height), ((box.x1 - box.x0) * width, (box.y1 - box.y0) * height)
        for edge, style, line in (("black", "-", 2.6), (fraction(colour), dash, 1.5)):
            stroke: dict[str, Any] = {"edgecolor": edge, "linestyle": style, "linewidth": line * min(1.0, look.scale)}
            axes.add_patch(Rectangle(place, *size, fill=False, clip_on=False, **stroke))


def _write_lines(
    figure: Figure, rows: Sequence[tuple[str, bool]], place: tuple[float, float], size: tuple[float, float], look: SheetLook
) -> None:
    left, top = place
    for line, bold in rows:
        weight = "bold" if bold else "normal"
        style: dict[str, Any] = {"fontsize": look.type, "va": "top", "weight": weight}
        figure.text(left / size[0], top / size[1], line, parse_math=False, **style)
        top -= look.step


def _write(out: Path, sheets: Sequence[Figure], dpi: int | None) -> list[Path]:
    """Writes the sheets and returns the files."""
    suffix = out.suffix.lower()
    if suffix == ".pdf":
        atomic_write(out, figures.encoded(sheets, suffix))
        return [out]
    files = []
    for number, figure in enumerate(sheets, 1):
        file = out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")
        atomic_write(file, figures.encoded([figure], suffix, dpi))
        files.append(file)
    return files
