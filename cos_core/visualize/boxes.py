"""Statistics of the regions of a store or predictions file: plots, with their numbers beside them (CoS Fig. 7, appendix B)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files import csv_writer, images, manifest, outputs
from cos_core.files.durable import atomic_write
from cos_core.files.jsonl import Problem
from cos_core.files.picture_files import Root, folder
from cos_core.interfaces import Reporter
from cos_core.scoring.box_tally import BoxTally
from cos_core.types import RunManifest
from cos_core.visualize import plots, source
from cos_core.visualize.config import BoxStatsConfig
from cos_core.visualize.plots import unread

MOST_SETS, OTHERS = 100, "(others)"
"""Most data sets with a tally of their own, and the name that further ones share: together they bound the memory."""

_CSV = outputs.beginning(b"low,high,count", b"status,count", b"x0,", b"data_set,examples")
_TABLES = ("area", "aspect", "offset", "overlap", "status", "centre_bias", "data_sets")
_OURS = {"boxes.json": outputs.beginning(b"{\n  "), **{f"{name}.csv": _CSV for name in _TABLES}}


def run(config: BoxStatsConfig, reporter: Reporter) -> RunManifest:
    """Writes boxes.json, centre_bias/area/aspect/offset/status as .png and .csv (and overlap where there is a reference,
    data_sets.csv where there are several), and manifest.json last.

    Unreadable lines are counted as failed and reported, not fatal. Raises InputError when the source is not there or holds
    no example.
    """
    work = manifest.started("visualize boxes", config)
    outputs.check_folder(config.out, "visualize boxes", (config.source, config.images, config.reference), _OURS)
    if not config.source.exists():
        raise InputError(f"{config.source}: no such store or predictions file")
    sets, unreadable = _counted(config, reporter)
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
    _write_numbers(config.out, tally)
    atomic_write(config.out / "boxes.json", json.dumps(statistics, indent=2) + "\n")
    plots.write_all(config.out, tally, unit)
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


def _counted(config: BoxStatsConfig, reporter: Reporter) -> tuple[dict[str, BoxTally], int]:
    """A tally for each data set, and the number of unreadable lines (the first five become warnings)."""
    unreadable = 0

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
            if done % 5000 == 0:
                reporter.progress("boxes", done, None)
    return sets, unreadable


def _data_set(image: str | None) -> str:
    """The first folder of an image path: `coco` of `coco/train2017/1.jpg`; empty without one."""
    return image.partition("/")[0] if image is not None and "/" in image else ""


# Questions on one image follow each other; a small memory keeps each header from being read again.
@lru_cache(maxsize=256)
def _shape(root: Root, relative: str) -> float:
    """Width / height of a picture."""
    width, height = images.picture_size(root, relative)
    return width / height


def _write_numbers(out: Path, tally: BoxTally) -> None:
    histograms = [("area", tally.area), ("aspect", tally.aspect), ("offset", tally.offset)]
    if tally.overlap.counts.any():
        histograms.append(("overlap", tally.overlap))
    for name, histogram in histograms:
        csv_writer.write(out / f"{name}.csv", ("low", "high", "count"), histogram.rows())
    csv_writer.write(out / "status.csv", ("status", "count"), sorted(tally.status.items()))
    cover = tally.centre_bias
    columns = [f"x{i}" for i in range(cover.shape[1])]
    csv_writer.write(out / "centre_bias.csv", columns, (tuple(f"{v:.6g}" for v in row) for row in cover))


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
