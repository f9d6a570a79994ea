"""Statistics of the regions of a store or predictions file: plots, with their numbers beside them (CoS Fig. 7, appendix B)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.errors import InputError
from cos_core.files import csv_writer, images, manifest, outputs
from cos_core.files.durable import atomic_write
from cos_core.files.jsonl import Problem
from cos_core.files.picture_files import Root, folder
from cos_core.interfaces import Reporter
from cos_core.scoring.box_tally import BoxTally
from cos_core.scoring.placement import Placement
from cos_core.types import RunManifest
from cos_core.visualize import plots, source
from cos_core.visualize.config import BoxStatsConfig
from cos_core.visualize.plots import unread

MOST_SETS, OTHERS = 100, "(others)"
"""Most data sets with a tally of their own, and the name that further ones share: together they bound the memory."""

_BATCH = 4096
_CSV = outputs.beginning(b"low,high,count", b"status,count", b"x0,", b"data_set,examples")
_TABLES = ("area", "aspect", "offset", "overlap", "status", "centre_bias", "centre_bias_at_random", "data_sets")
_PLOTS = ("centre_bias", "area", "aspect", "offset", "status", "overlap")
_OURS = {
    "boxes.json": outputs.beginning(b"{\n  "),
    **{f"{name}.csv": _CSV for name in _TABLES},
    # A figure is recognised by its own mark.
    **{f"{name}.{kind}": lambda head: False for name in _PLOTS for kind in ("pdf", "svg")},
}


def run(config: BoxStatsConfig, reporter: Reporter) -> RunManifest:
    """Writes boxes.json, centre_bias/area/aspect/offset/status as plots and .csv (and overlap where there is a reference,
    data_sets.csv where there are several), and manifest.json last.

    Unreadable lines are counted as failed and reported, not fatal. Raises InputError when the source is not there or holds
    no example.
    """
    work = manifest.started("visualize boxes", config)
    outputs.check_folder(config.out, "visualize boxes", (config.source, config.images, config.reference), _OURS)
    if not config.source.exists():
        raise InputError(f"{config.source}: no such store or predictions file")
    placement = Placement()
    sets, unreadable = _counted(config, reporter, placement)
    tally = BoxTally()
    for part in sets.values():
        tally.merge(part)
    if not tally.status:
        raise InputError(f"{config.source} holds no examples{f' ({unreadable} unreadable lines)' if unreadable else ''}")
    if tally.boxes == 0:
        reporter.warn(f"{config.source} holds no boxes; the plots are empty")
    config.out.mkdir(parents=True, exist_ok=True)
    unit = "pixels" if config.images else "fractions of the picture"
    statistics = {"source": str(config.source), "aspect_unit": f"width / height in {unit}", **tally.to_json()}
    if len(sets) > 1:
        statistics["data_sets"] = {name or "(no folder)": part.to_json() for name, part in sorted(sets.items())}
        _write_sets(config.out, statistics["data_sets"])
    statistics["placed_at_random"] = _departure(placement)
    _write_numbers(config.out, tally, placement)
    atomic_write(config.out / "boxes.json", json.dumps(statistics, indent=2) + "\n")
    plots.write_all(config.out, tally, unit, placement, plots.PlotLook(config.format, config.figure))
    failed = tally.status.get("failed", 0)
    counts = {
        "ok": tally.boxes,
        "failed": failed + unreadable,
        "skipped": sum(tally.status.values()) - tally.boxes - failed,
    }
    result = work.finish(counts, results=statistics)
    manifest.write(config.out / "manifest.json", result)
    reporter.note(f"{tally.boxes} boxes of {sum(tally.status.values())} examples{unread(tally)}: {config.out}")
    return result


def _departure(placement: Placement) -> dict[str, Any] | None:
    found = placement.departure()
    return None if found is None else found._asdict()


def _counted(config: BoxStatsConfig, reporter: Reporter, placement: Placement) -> tuple[dict[str, BoxTally], int]:
    """A tally for each data set, and the number of unreadable lines (five become warnings). `placement` gets every box."""
    unreadable = 0
    waiting: list[tuple[tuple[float, ...], str | None]] = []

    def report(problem: Problem) -> None:
        nonlocal unreadable
        unreadable += 1
        if unreadable <= 5:
            reporter.warn(str(problem))

    sets: dict[str, BoxTally] = {}
    with source.references(config.reference) as reference_of:
        for done, region in enumerate(source.read_boxes(config.source, report), 1):
            shape = 1.0
            if config.images is not None and region.box is not None and region.image is not None:
                shape = _shape(folder(config.images, config.follow_links), region.image)
            name = _data_set(region.image)
            tally = sets.get(name if name in sets or len(sets) < MOST_SETS else OTHERS)
            if tally is None:
                tally = sets[name if len(sets) < MOST_SETS else OTHERS] = BoxTally()
            tally.add(region.box, region.status, shape, reference_of(region.example_id))
            if region.box is not None:
                waiting.append((region.box.corners, region.image))
                if len(waiting) == _BATCH:
                    _place(placement, waiting)
            if done % 5000 == 0:
                reporter.progress("boxes", done, None)
    _place(placement, waiting)
    return sets, unreadable


def _place(placement: Placement, waiting: list[tuple[tuple[float, ...], str | None]]) -> None:
    """Adds the boxes that wait, and empties the list."""
    placement.add(np.array([corners for corners, _ in waiting]), [image for _, image in waiting])
    waiting.clear()


def _data_set(image: str | None) -> str:
    """The first folder of an image path: `coco` of `coco/train2017/1.jpg`; empty without one."""
    return image.partition("/")[0] if image is not None and "/" in image else ""


# Questions on one image follow each other; a small memory keeps each header from being read again.
@lru_cache(maxsize=256)
def _shape(root: Root, relative: str) -> float:
    """Width / height of a picture."""
    width, height = images.picture_size(root, relative)
    return width / height


def _write_numbers(out: Path, tally: BoxTally, placement: Placement) -> None:
    histograms = [("area", tally.area), ("aspect", tally.aspect), ("offset", tally.offset)]
    if tally.overlap.counts.any():
        histograms.append(("overlap", tally.overlap))
    for name, histogram in histograms:
        csv_writer.write(out / f"{name}.csv", ("low", "high", "count"), histogram.rows())
    csv_writer.write(out / "status.csv", ("status", "count"), sorted(tally.status.items()))
    for name, cover in (("centre_bias", tally.centre_bias), ("centre_bias_at_random", placement.expected)):
        columns = [f"x{i}" for i in range(cover.shape[1])]
        csv_writer.write(out / f"{name}.csv", columns, (tuple(f"{v:.6g}" for v in row) for row in cover))


def _write_sets(out: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    head = ("data_set", "examples", "boxes", "area_mean", "area_median", "aspect_mean", "offset_mean", "covers_picture_centre")
    rows = [
        (
            name,
            part["examples"],
            part["boxes"],
            part["area"]["mean"],
            part["area"]["median"],
            part["aspect"]["mean"],
            part["centre_offset"]["mean"],
            part["covers_picture_centre"],
        )
        for name, part in sets.items()
    ]
    csv_writer.write(out / "data_sets.csv", head, rows)
