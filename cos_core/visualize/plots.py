"""Plots of a BoxTally by matplotlib, without pyplot: no display, no global state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cos_core.files import outputs
from cos_core.files.durable import atomic_write
from cos_core.scoring.box_tally import BoxTally, Histogram

_BAR = "#0072B2"
_LINE = "#D55E00"


def write_all(out: Path, tally: BoxTally, aspect_unit: str) -> None:
    """centre_bias.png, area.png, aspect.png, offset.png and status.png in `out`."""
    _save(centre_bias(tally), out / "centre_bias.png")
    n = tally.boxes
    area = histogram(tally.area, f"How large the regions are ({n:,} boxes)", "share of the picture's area")
    _save(area, out / "area.png")
    aspect = histogram(tally.aspect, f"Shape of the regions ({n:,} boxes)", f"width / height, in {aspect_unit}", log=True)
    _save(aspect, out / "aspect.png")
    label = "distance from the picture's centre to the region's centre (1: the side)"
    _save(histogram(tally.offset, f"How far from the centre ({n:,} boxes)", label), out / "offset.png")
    _save(status(tally), out / "status.png")
    if tally.overlap.counts.any():
        title = f"Overlap with the reference ({tally.overlap.counts.sum():,} pairs)"
        _save(histogram(tally.overlap, title, "intersection over union"), out / "overlap.png")


def unread(tally: BoxTally) -> str:
    """How many boxes are left out, as they could not be read: words to follow their number, or none."""
    return f", {tally.unread:,} more not readable" if tally.unread else ""


def centre_bias(tally: BoxTally) -> Figure:
    """The share of boxes that cover each place of the picture, every picture stretched to a square (CoS appendix B)."""
    figure, axes = _figure(5.4, 4.6)
    # cividis reads alike with and without colour vision deficiencies, and in grey.
    shown = axes.imshow(tally.centre_bias, cmap="cividis", extent=(0, 1, 1, 0), vmin=0, interpolation="nearest")
    axes.plot([0.5], [0.5], marker="+", markersize=14, color="white", markeredgewidth=1.6)
    bar = figure.colorbar(shown, ax=axes)
    bar.set_label("share of regions that cover this place")
    axes.set_title(f"Where the regions lie ({tally.boxes:,} boxes{unread(tally)})")
    axes.set_xlabel("x, fraction of the picture's width")
    axes.set_ylabel("y, fraction of its height")
    return figure


def histogram(values: Histogram, title: str, label: str, log: bool = False) -> Figure:
    """Bars of a histogram with the median as a line."""
    figure, axes = _figure(5.8, 3.6)
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
    figure, axes = _figure(5.8, 1.4 + 0.4 * len(items))
    total = sum(tally.status.values())
    bars = axes.barh([name for name, _ in items], [count for _, count in items], color=_BAR)
    axes.bar_label(bars, [f"{count:,} ({count / total:.1%})" for _, count in items], padding=4)
    axes.set_xlim(0, max((count for _, count in items), default=1) * 1.35)
    axes.set_title(f"How the regions were read ({total:,} examples)")
    axes.set_xlabel("examples")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": outputs.MARK})
    return data.getvalue()


def _save(figure: Figure, path: Path) -> None:
    atomic_write(path, png(figure))
