"""Plots of a BoxTally by matplotlib, without pyplot: no display, no global state."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cos_core.files import outputs
from cos_core.files.durable import atomic_write
from cos_core.scoring.box_tally import MAP_CELLS, BoxTally, Histogram
from cos_core.scoring.placement import Departure, Placement
from cos_core.visualize.config import FigureOptions, PlotFormat
from cos_core.visualize.figures import TYPE_PT, encoded, picture_dpi

_BAR = "#0072B2"
_LINE = "#D55E00"
_DPI = 130
_USUAL_INCHES = 5.8


@dataclass(frozen=True, slots=True)
class PlotLook:
    """The file format of plots, and how they are drawn."""

    format: PlotFormat = "png"
    figure: FigureOptions = field(default_factory=FigureOptions)


def write_all(
    out: Path, tally: BoxTally, aspect_unit: str, placement: Placement | None = None, look: PlotLook | None = None
) -> None:
    """The plots centre_bias, area, aspect, offset, status, and overlap where there is a reference, in `out`."""
    look, n = look or PlotLook(), tally.boxes
    label = "distance from the picture's centre to the region's centre (1: the side)"
    title = f"Overlap with the reference ({tally.overlap.counts.sum():,} pairs)"
    size = f"How large the regions are ({n:,} boxes)"
    shape = f"Shape of the regions ({n:,} boxes)"
    with matplotlib.rc_context(_type(look.figure)):
        figures = {
            "centre_bias": centre_bias(tally, placement),
            "area": histogram(tally.area, size, "share of the picture's area"),
            "aspect": histogram(tally.aspect, shape, f"width / height, in {aspect_unit}", log=True),
            "offset": histogram(tally.offset, f"How far from the centre ({n:,} boxes)", label),
            "status": status(tally),
        }
        if tally.overlap.counts.any():
            figures["overlap"] = histogram(tally.overlap, title, "intersection over union")
        for name, figure in figures.items():
            _save(figure, out / f"{name}.{look.format}", look.figure)


def _type(options: FigureOptions) -> dict[str, float]:
    """Matplotlib's settings of type and lines."""
    if options.style == "paper":
        return {"font.size": TYPE_PT, "axes.titlesize": TYPE_PT, "axes.linewidth": 0.6, "lines.linewidth": 1.0}
    return {} if options.width is None else {"font.size": 10 * options.width / _USUAL_INCHES}


def unread(tally: BoxTally) -> str:
    """How many boxes are left out, as they could not be read: words to follow their number, or none."""
    return f", {tally.unread:,} more not readable" if tally.unread else ""


def centre_bias(tally: BoxTally, placement: Placement | None = None) -> Figure:
    """The share of boxes that cover each place of the picture, every picture stretched to a square (CoS appendix B); with a
    `placement` beside it, in the same colours, what boxes of these sizes cover when they are placed at random."""
    title = f"Where the regions lie ({tally.boxes:,} boxes{unread(tally)})"
    if placement is None:
        figure, axes = empty(5.4, 4.6)
        maps = [(axes, tally.centre_bias, title)]
    else:
        figure, maps = _side_by_side(tally, placement)
        figure.suptitle(title + departure_words(placement.departure()), fontsize=matplotlib.rcParams["axes.titlesize"])
    most = max(float(values.max()) for _, values, _ in maps) or 1.0
    edges = np.linspace(0, 1, MAP_CELLS + 1)
    for axes, values, words in maps:
        # cividis reads alike with and without colour vision deficiencies, and in grey.
        shown = axes.pcolormesh(edges, edges, values, cmap="cividis", vmin=0, vmax=most, edgecolors="face", linewidth=0.6)
        axes.set_xlim(0, 1)
        axes.set_ylim(1, 0)
        axes.set_aspect("equal")
        axes.plot(
            [0.5], [0.5], marker="+", markersize=1.2 * matplotlib.rcParams["font.size"], color="white", markeredgewidth=1.6
        )
        axes.set_title(words)
        axes.set_xlabel("x / width")
    maps[0][0].set_ylabel("y / height")
    bar = figure.colorbar(shown, ax=[axes for axes, _, _ in maps], shrink=0.8)
    bar.set_label("share of regions")
    # Matplotlib would make it a picture; each step's edge covers the seam to the next.
    if bar.solids is not None:
        bar.solids.set(rasterized=False, edgecolor="face")
    return figure


def _side_by_side(tally: BoxTally, placement: Placement) -> tuple[Figure, list[tuple[Any, np.ndarray, str]]]:
    figure = Figure(figsize=(9.6, 4.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    return figure, [(left, tally.centre_bias, "these regions"), (right, placement.expected, "placed at random")]


def departure_words(found: Departure | None) -> str:
    """The distance from chance, with its interval, to follow a title; empty without boxes."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"; total variation from random places {found.total_variation:.2f}{interval}"


def histogram(values: Histogram, title: str, label: str, log: bool = False) -> Figure:
    """Bars of a histogram with the median as a line."""
    figure, axes = empty(5.8, 3.6)
    axes.bar(
        values.edges[:-1],
        values.counts,
        width=values.edges[1:] - values.edges[:-1],
        align="edge",
        color=_BAR,
        edgecolor="white",
    )
    median = values.summary()["median"]
    if median is not None:
        axes.axvline(median, color=_LINE, linewidth=2, label=f"median {median:.3g}")
        axes.legend(frameon=False)
    if log:
        axes.set_xscale("log")
        axes.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.minorticks_off()
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.set_ylabel("regions")
    return figure


def status(tally: BoxTally) -> Figure:
    """How many examples have each status, most frequent on top."""
    items = sorted(tally.status.items(), key=lambda item: item[1])
    figure, axes = empty(5.8, 1.4 + 0.4 * len(items))
    total = sum(tally.status.values())
    bars = axes.barh([name for name, _ in items], [count for _, count in items], color=_BAR)
    axes.bar_label(bars, [f"{count:,} ({count / total:.1%})" for _, count in items], padding=4)
    axes.set_xlim(0, max((count for _, count in items), default=1) * 1.35)
    axes.set_title(f"How the regions were read ({total:,} examples)")
    axes.set_xlabel("examples")
    return figure


def empty(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches, with its axes."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": outputs.MARK})
    return data.getvalue()


def _save(figure: Figure, path: Path, options: FigureOptions) -> None:
    if options.style == "paper":
        figure.suptitle("")
        if len(figure.axes) == 1 or not figure.axes[0].collections:
            figure.axes[0].set_title("")
    if options.style == "paper" or options.width is not None:
        width, height = figure.get_size_inches()
        wide = options.inches(width)
        figure.set_size_inches(wide, max(height * wide / width, 1.6 if options.style == "paper" else 0))
    if path.suffix == ".png" and not options.given:
        atomic_write(path, png(figure))
        return
    atomic_write(path, encoded([figure], path.suffix, picture_dpi(path.suffix, options.dpi)))
